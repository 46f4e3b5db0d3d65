"""What is wrong with a data set, file by file: what `stage=doctor` finds.

Every file is opened, on several threads (decoding lets others run meanwhile). Nothing ends it: what
a run would refuse becomes a `Problem`, in the words of that refusal, for the very functions that
read a run's data are asked.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from iad_r1.data import Part, faults, folders, images, mix, published
from iad_r1.data.cache import Kept
from iad_r1.data.mix import Photo
from iad_r1.errors import DataError
from iad_r1.grid import Grid, Rule
from iad_r1.judge import mmad
from iad_r1.rewards.vocabulary import Vocabulary
from iad_r1.settings.data import (
    DrawnSplit,
    Folder,
    OwnMasks,
    ReaderSettings,
    Trains,
    nothing,
    reader,
)
from iad_r1.types import Mask, Sample, Shapes

# Kinds of problems with which no run starts, and those that are worth a look.
STOPPING = {
    "layout": "Rows, files or folders that cannot be read as they are labelled",
    "missing": "Files that are not there",
    "unreadable": "Files that cannot be opened",
    "listed_twice": "Pictures or masks that are listed twice",
    "contradiction": "The same picture, good in one place and defective in another",
    "mask_size": "Masks that do not fit their picture",
    "mask_turn": "Masks of turned pictures: which way up were they drawn?",
    "mask_empty": "Empty masks of defective pictures",
    "mask_on_good": "Good pictures with a mask",
    "masks_inverted": "Masks that may be inverted",
    "parts": "Parts of a run that would lack pictures",
}
NOTED = {
    "label": "Labels that a folder contradicts",
    "leak": "Training pictures that nearly equal one to test or validate with",
    "duplicate": "The same picture more than once",
    "mask_large": "Masks that mark more than half of their picture",
    "type": "Types that the vocabulary does not hold",
    "small_defect": "Defects too small to be seen",
    "balance": "Products that train on good or on defective pictures alone",
    "count": "Other numbers of test pictures than published",
    "reading": "Pictures and masks that are not plain 8-bit ones, and how they are read",
}
KINDS = {**STOPPING, **NOTED}
MASKS = frozenset(  # the kinds whose file is a mask
    ("mask_size", "mask_turn", "mask_empty", "mask_on_good", "masks_inverted", "mask_large")
)
MASK_FOLDERS = folders.MASKS | {"rbg mask", "rgb mask"}
THUMBNAILS = frozenset(("thumbs.db", "desktop.ini", "@eadir", "__macosx", "thumbnails"))
_AT_ONCE = 512  # pictures handed to the threads at a time


@dataclass(frozen=True)
class Problem:
    """One thing to mend or to know: its kind (of `KINDS`), the file, and a sentence."""

    kind: str
    file: str
    say: str
    beside: str = ""  # a second picture to look at

    @property
    def stops(self) -> bool:
        """Whether no run starts with it."""
        return self.kind in STOPPING


@dataclass(frozen=True)
class Look:
    """What was seen of one sample: `photo` is None where its files have problems."""

    sample: Sample
    photo: Photo | None
    size: tuple[int, int] | None  # width and height as shown
    read_as: tuple[str, ...] = ()  # what about its file is not plain
    problems: tuple[Problem, ...] = ()

    @property
    def labelled(self) -> Sample:
        """As labelled; with the place of the defect where its mask is sound."""
        return self.photo.sample if self.photo else self.sample


@dataclass
class Source:
    """One reader's data: `data`, or a benchmark."""

    section: str  # of the settings: "data", "data.parts.<name>" or "benchmark.<name>"
    settings: ReaderSettings
    looks: list[Look] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    leaks: int = 0
    near_duplicates: int = 0
    suspect_masks: int = 0  # those that mark more than half of their picture

    @property
    def trains(self) -> bool:
        """Whether it is `data`, or a part of it."""
        return self.section.partition(".")[0] == "data"

    @property
    def root(self) -> Path | None:
        """Where its files lie; None of what is drawn."""
        return Path(self.settings.root) if isinstance(self.settings, Folder) else None

    @property
    def samples(self) -> list[Sample]:
        return [look.labelled for look in self.looks]

    @property
    def pictures(self) -> Collection[Look]:
        """What was seen of every picture, once each."""
        return {_key(look.sample): look for look in self.looks}.values()

    @property
    def answers(self) -> Mapping[object, str]:
        """Whether a picture is defective, "Yes" or "No", where something says it."""
        said = ((_key(look.sample), _answer(look.sample)) for look in self.looks)
        return {key: answer for key, answer in said if answer}


# --- one data set ------------------------------------------------------------------------------


def listed(section: str, settings: ReaderSettings, seed: int) -> Source:
    """All that a reader can read; what it cannot is among the problems."""
    source = Source(section, settings)
    with faults.gathered() as found, folders.readable():
        for sample in reader(settings.name).read(settings, seed):
            source.looks.append(Look(sample, None, None))
    source.problems += [Problem("layout", _file_of(str(e), source), str(e)) for e in found]
    samples = [look.sample for look in source.looks]
    repeated = {str(file): say for file, say in mix.repeated(samples)}
    source.problems += [Problem("listed_twice", file, say) for file, say in repeated.items()]
    if not samples and not found:
        say = nothing(settings, said(settings))
        source.problems.append(Problem("layout", str(source.root or ""), say))
    return source


def said(settings: ReaderSettings) -> str:
    """What is read, as a run announces it; where that cannot be told, from where."""
    with faults.gathered():
        return settings.announce()
    return Folder.announce(settings) if isinstance(settings, Folder) else settings.name


def to_open(source: Source) -> dict[object, Sample]:
    """The samples whose files are opened: of several questions about one picture, the first."""
    return {_key(look.sample): look.sample for look in reversed(source.looks)}


def _key(sample: Sample) -> object:
    return sample.id if sample.question.options is None else sample.image


def _answer(sample: Sample) -> str | None:
    """Whether its picture is defective; None where the question is about something else."""
    options, letter = sample.question.options, sample.solution.answer
    if options is None:
        return letter
    if sample.question.subtask != mmad.DETECTION:
        return None
    return "Yes" if mmad.says_defective(options[letter]) else "No"


def opened(
    source: Source,
    grid: Grid,
    rule: Rule,
    workers: int,
    advance: Callable[[], None],
    kept: Kept | None = None,
) -> None:
    """Look at every picture and mask of a source, `workers` at a time. `kept` is told what was
    found."""
    asked, seen = [look.sample for look in source.looks], dict[object, Look]()
    waiting = iter(reversed(to_open(source).values()))
    with ThreadPoolExecutor(workers, "doctor") as pool:
        while some := list(islice(waiting, _AT_ONCE)):
            for look in pool.map(lambda sample: examined(sample, grid, rule, kept), some):
                seen[_key(look.sample)] = look
                source.problems += look.problems
                advance()
    source.looks = [_with(seen[_key(sample)], sample) for sample in asked]


def _with(look: Look, sample: Sample) -> Look:
    """What was seen of a picture, for another question about it."""
    if look.sample is sample:
        return look
    return replace(look, sample=sample, photo=look.photo and replace(look.photo, sample=sample))


def examined(sample: Sample, grid: Grid, rule: Rule, kept: Kept | None = None) -> Look:
    """Open the files of a sample; what is wrong with them is told, never raised."""
    try:
        photo = mix.inspect(sample, grid, rule, True, kept)
        return Look(sample, photo, images.size(sample), tuple(_read_as(sample)))
    except Exception as error:  # a broken file may raise anything
        problems = tuple(_diagnosed(sample, error, grid, rule))
        return Look(sample, None, None, (), problems)


def _diagnosed(sample: Sample, error: Exception, grid: Grid, rule: Rule) -> Iterator[Problem]:
    """Everything that is wrong with the files of a sample which cannot be used."""
    broken = False
    for what, files in (("image", mix.files(sample.image)), ("mask", mix.files(sample.mask))):
        for file in files:
            for problem in _file_problem(file, what, sample):
                broken = True
                yield problem
    if broken:
        return
    mask = next((str(file) for file in mix.files(sample.mask)), sample.where)
    say = _shortened(str(error), sample.where)
    if not isinstance(error, DataError):
        yield Problem("unreadable", mask, f"{mask}: cannot be read ({error!r}). Replace the file.")
        return
    shown = named(sample)
    try:
        images.open_mask(sample)
    except DataError:
        turned = "EXIF orientation" in say
        yield Problem("mask_turn" if turned else "mask_size", mask, say, shown)
        return
    if sample.mask is None:
        yield Problem("layout", shown, say)
        return
    defective = sample.solution.answer == "Yes"
    yield Problem("mask_empty" if defective else "mask_on_good", mask, say, shown)


def _file_problem(file: Path, what: str, sample: Sample) -> Iterator[Problem]:
    row = "" if sample.where in ("", str(file)) else f" ({sample.where})"
    if not file.exists():
        mend = "Put it there, or take out what names it."
        yield Problem("missing", str(file), f"{file}: this {what} does not exist{row}. {mend}")
        return
    try:
        if what == "image":
            images.upright(file)
        else:
            images.marked(file, _threshold(sample))
    except DataError as error:
        yield Problem("unreadable", str(file), str(error))
    except Exception as error:  # of a decoder that did not foresee it
        say = f"{file}: this {what} cannot be read ({error!r}). Replace the file or take it out."
        yield Problem("unreadable", str(file), say)


def _threshold(sample: Sample) -> float | None:
    return sample.mask.threshold if isinstance(sample.mask, Mask) else None


def _read_as(sample: Sample) -> Iterator[str]:
    """What a picture has that is not plain, and how it is read."""
    if not isinstance(sample.image, Path):
        return
    with images.opened(sample.image, "image") as image:
        if image.mode.startswith("I"):
            yield (
                "16 bits: it stands for 12 bits where no value is above 4,095, else for 16. It is "
                "scaled to 8 and not stretched, so a dark picture stays dark"
            )
        if image.mode == "F":
            yield "values with a point: 0 is black and 1 is white"
        if (times := images.smaller(image)) > 1:
            yield (
                f"more than {images.LARGE // 10**6} megapixels: it is decoded with sides {times} "
                "times smaller"
            )
        if images.turn(image) > 1:
            yield "a turn by its camera (EXIF): it is shown upright, its mask with it"
        if image.mode == "CMYK":
            yield "CMYK colours: they are read as RGB, without a colour profile"
        if image.mode in ("RGBA", "LA", "PA"):
            yield "transparency: it is left out, and the colours beneath are read"
        if image.format in ("TIFF", "GIF", "WEBP") and getattr(image, "n_frames", 1) > 1:
            yield "several pages: the first is read"
    if _threshold(sample) is None and any(map(images.is_soft, mix.files(sample.mask))):
        yield (
            "a mask of many grey values (soft, or saved as JPEG): each but zero marks a defect, "
            "unless data.masks_threshold says from which share of white on"
        )


def named(sample: Sample) -> str:
    """The file of a picture; the id of one in memory."""
    return next((str(file) for file in mix.files(sample.image)), sample.id)


def _shortened(say: str, where: str) -> str:
    """Without the row or file in front of it where the sentence names it anyway."""
    rest = say.removeprefix(f"{where}: ")
    return rest if where and where in rest else say


def _file_of(say: str, source: Source) -> str:
    """The file that a sentence is about, which readers put in front of it."""
    before = say.partition(": ")[0]
    for text in (before, before.partition(", ")[0], before.partition(" ")[0]):
        if text and Path(text).exists():
            return text
    return str(source.root or "")


# --- between pictures --------------------------------------------------------------------------


def compared(source: Source, photos: Sequence[Photo], apart: Sequence[Photo] = ()) -> None:
    """What shows only when the pictures of a source are laid side by side, and beside those kept
    `apart` by benchmarks and other parts of `data`, which must not be trained on."""
    _identical(source, photos)
    _near(source, photos, apart)
    _masks(source, photos)
    _labels(source)
    _balance(source)
    _counted(source)
    for how, some in _by_reading(source).items():
        file, others = str(some[0].image), len(some) - 1
        also = f", as {others:,} other{'s' * (others > 1)}" if others else ""
        source.problems.append(Problem("reading", file, f"{file} has {how}{also}."))


def _identical(source: Source, photos: Iterable[Photo]) -> None:
    first: dict[str, Sample] = {}
    answers = source.answers
    for photo in photos:
        if photo.image_digest is None:
            continue
        sample, twin = photo.sample, first.setdefault(photo.image_digest, photo.sample)
        if twin is sample or twin.image == sample.image:
            continue
        file, other = named(sample), named(twin)
        kind, say = "duplicate", f"{file}: the same picture as {other}. Take one of them out."
        if {answers.get(_key(one)) for one in (sample, twin)} == {"Yes", "No"}:
            kind = "contradiction" if source.trains else "duplicate"
            say = f"{file}: the same picture as {other}, but with the other label. Correct one."
        source.problems.append(Problem(kind, file, say, other))


def parted(source: Source, seed: int) -> Sequence[Photo]:
    """What was seen of every picture, once each; of `data` in the part that a run has it in."""
    photos: Sequence[Photo] = distinct(source)
    if not source.trains:
        return photos
    with suppress(DataError):  # `judged` tells it
        photos = mix.drawn(photos, source.settings, seed)
    return mix.parted(source.settings, photos, [], seed).photos


def is_apart(source: Source, photo: Photo) -> bool:
    """Whether it tests or, of `data`, validates."""
    part = mix.head(photo.sample)
    return part == "test" or (source.trains and part == "validation")


def distinct(source: Source) -> list[Photo]:
    """What was seen of every picture, once each."""
    return [look.photo for look in source.pictures if look.photo]


def _near(source: Source, photos: Sequence[Photo], apart: Sequence[Photo]) -> None:
    """Near-duplicates, and those of them that stand on both sides of training and test."""
    own = [photo for photo in photos if isinstance(photo.sample.image, Path)]
    photos = [*own, *(photo for photo in apart if isinstance(photo.sample.image, Path))]
    if not own:
        return
    limit, twins = _near_bits(source.settings), mix.twins_of(photos)
    of_own = twins[: len(own), : len(own)]
    groups = Counter(mix.groups_of(own, limit, of_own).tolist())
    source.near_duplicates = sum(n for n in groups.values() if n > 1)
    trained = np.flatnonzero([photo.sample.split in mix.TRAINED for photo in own])
    kept = [i for i, photo in enumerate(photos) if i >= len(own) or is_apart(source, photo)]
    mine, shown = [photos[i] for i in trained], [photos[i] for i in kept]
    alike = mix.near(mine, shown, limit, twins[trained][:, kept])
    for photo, places in zip(mine, alike, strict=True):
        if len(places):
            source.leaks += 1
            twin = shown[places[0]].sample
            file, other, part = str(photo.sample.image), str(twin.image), mix.head(twin)
            mend = "It may be shown as a reference of that picture."
            if source.trains:
                mend = f"{source.section}.drop_leaks=true leaves it out of training."
            say = f"{file}: nearly equals the {part} picture {other}, so results on that flatter."
            source.problems.append(Problem("leak", file, f"{say} {mend}", other))


def _near_bits(settings: ReaderSettings) -> int:
    return settings.near_duplicate_bits if isinstance(settings, Trains) else NEAR_BITS


NEAR_BITS = 10  # of benchmarks, as data.near_duplicate_bits of photographs


def _masks(source: Source, photos: Sequence[Photo]) -> None:
    large = [photo for photo in photos if photo.marked is not None and photo.marked > 0.5]
    source.suspect_masks += len(large)
    try:
        mix.check_polarity(source.settings, photos)
    except DataError as error:
        first = next(photo.sample for photo in large if mix.files(photo.sample.mask))
        file = str(mix.files(first.mask)[0])
        source.problems.append(Problem("masks_inverted", file, str(error), named(first)))
        return
    for photo in large:
        for file in mix.files(photo.sample.mask)[:1]:
            say = (
                f"{file}: this mask marks {photo.marked:.0%} of its picture. If it is black where "
                "the defect is, invert it."
            )
            source.problems.append(Problem("mask_large", str(file), say, named(photo.sample)))


def _labels(source: Source) -> None:
    """Of the user's own tables: labels that the name of a folder contradicts."""
    if source.root is None or not isinstance(source.settings, OwnMasks):
        return
    for sample in source.samples:
        if not isinstance(sample.image, Path) or not sample.image.is_relative_to(source.root):
            continue
        for folder in sample.image.relative_to(source.root).parts[-2::-1]:
            says = _said(folder)
            if says is not None:
                break
        else:
            continue
        if says != sample.solution.answer:
            label = "defective" if sample.solution.answer == "Yes" else "good"
            say = (
                f"{sample.image}: labelled {label} ({sample.where}), but in a folder called "
                f"{folder}. Correct the label or move the picture."
            )
            source.problems.append(Problem("label", str(sample.image), say))


def types(source: Source, vocabulary: Vocabulary, name: str) -> None:
    """Types that the vocabulary called `name` cannot place, and the line of YAML that would."""
    found: dict[str, list[Sample]] = defaultdict(list)
    for sample in source.samples:
        if sample.solution.type:
            found[sample.solution.type].append(sample)
    for label in vocabulary.unplaced(found):
        file, n = named(found[label][0]), len(found[label])
        places = [place for word in label.split() if (place := vocabulary.find(word))]
        near = next((place for place in places if place.type_class), None)
        under = "the class it belongs to"
        if near:
            under = f"groups > {near.group} > classes > {near.type_class} > types"
        say = (
            f"{label!r} ({n:,} picture{'s' * (n > 1)}, such as {file}) is not in the vocabulary "
            f"{name}: only these very words are rewarded. In a copy of "
            f'iad_r1/rewards/vocabularies/default.yaml add the line "{label}: []" under {under}, '
            "and set rewards.vocabulary=<the copy>."
        )
        source.problems.append(Problem("type", file, say))


def _balance(source: Source) -> None:
    """Of training pictures: products without good or without defective ones."""
    if not source.trains:
        return
    rows = [row for row in classes(source) if row["split"] in mix.TRAINED]
    if not all(sum(row[label] for row in rows) for label in ("good", "defective")):
        return  # they are lacking altogether
    for row in rows:
        counts = {"good": row["good"], "defective": row["defective"]}
        if not all(counts.values()):
            lacking = next(word for word, n in counts.items() if not n)
            root = str(source.root or "")
            say = (
                f"{root}: {row['product']} has no {lacking} pictures in {row['split']}, so what it "
                "shows tells the answer. Add some, or leave the product out."
            )
            source.problems.append(Problem("balance", root, say))


def _counted(source: Source) -> None:
    """The test pictures of a benchmark against the published counts."""
    sets: dict[str, dict[str, tuple[int, int]]] = defaultdict(dict)
    for row in classes(source):
        part, _, name = str(row["split"]).partition(".")
        if part == "test":
            known = name.lower() if source.settings.name == "industrial_test" else None
            here = sets[known or source.settings.name]
            here[str(row["product"])] = row["good"], row["defective"]
    for name, here in sets.items():
        for difference in published.differences(name, here):
            root = str(source.root or "")
            say = (
                f"{root}: {name}: {difference}. Unpack it again, or do not compare the results "
                "with published ones."
            )
            source.problems.append(Problem("count", root, say))


def _said(folder: str) -> str | None:
    """The answer that the name of a folder gives; None where it gives none."""
    if folders.is_good(folder):
        return "No"
    word = folders.words(folder).lower()
    return "Yes" if word in folders.DEFECTIVE else None


def _by_reading(source: Source) -> Mapping[str, list[Sample]]:
    found: dict[str, list[Sample]] = defaultdict(list)
    for look in source.pictures:
        for how in look.read_as:
            found[how].append(look.sample)
    return found


# --- what a run would say ----------------------------------------------------------------------


def judged(source: Source, grid: Grid, rule: Rule, seed: int, alone: bool, defects: bool) -> None:
    """What a run would refuse beyond single files: parts that lack pictures. `alone`: no benchmark
    tests what `data` trains. `defects`: some part of `data` has them, so this one need not."""
    own = source.trains
    parts: set[Part] = {"train"} if own else {"test"}
    if own and defects and "Yes" not in source.answers.values():
        parts = set()
    if own and alone and source.settings.tests:
        parts.add("test")
    drawn = mix.unsplit(source.samples, source.settings)
    for part in sorted(parts) if source.looks and not drawn else ():
        try:
            of = "the folder" if own else source.section.replace(".", " ")
            mix.check_part(source.samples, part, of)
        except DataError as error:
            source.problems.append(Problem("parts", str(source.root or ""), str(error)))
    if not own or source.root is None:
        return
    if any(problem.stops for problem in source.problems):
        return  # a run would stop there already
    photos = {look.sample.id: look.photo for look in source.looks if look.photo}

    def remembered(sample: Sample, *_: object) -> Photo:
        found = photos[sample.id]
        return replace(found, sample=replace(found.sample, split=sample.split))

    settings = source.settings
    if isinstance(settings, DrawnSplit):
        settings = settings.model_copy(update={"views": None})  # takes time and finds nothing
    try:
        mix.load(settings, grid, rule, seed, frozenset(parts), look=remembered)
    except DataError as error:
        source.problems.append(Problem("parts", str(source.root), str(error)))


# --- files that nothing names ------------------------------------------------------------------


def passed_over(source: Source) -> None:
    """Count, by reason, the files below the root that no sample names."""
    if source.root is None or not source.root.is_dir():
        return
    used = set(_named(source))
    for path, hidden in _walk(str(source.root), False):
        if os.path.normpath(path) not in used:
            source.skipped[_reason(Path(path).relative_to(source.root), hidden)] += 1


def _named(source: Source) -> Iterator[str]:
    """Every file that a sample is made of, and the tables that list them."""
    tables: set[str] = set()
    for look in source.looks:
        for sample in (look.sample, *look.sample.references):
            for file in (*mix.files(sample.image), *mix.files(sample.mask)):
                yield os.path.normpath(file)
            tables.add(sample.where.rpartition(", ")[0])
    yield from map(os.path.normpath, tables - {""})


def _walk(folder: str, hidden: bool) -> Iterator[tuple[str, bool]]:
    """Every file below a folder, and whether it or a folder above it is hidden; a folder that
    cannot be looked into is one."""
    try:
        entries = list(os.scandir(folder))
    except OSError:
        yield folder, hidden
        return
    for entry in entries:
        veiled = hidden or folders.is_hidden(entry.name)
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path, veiled)
        else:
            yield entry.path, veiled


def _reason(where: Path, hidden: bool) -> str:
    """Of a file, from the root on."""
    if {part.lower() for part in where.parts} & THUMBNAILS:
        return "thumbnail"
    if hidden:
        return "hidden"
    if where.suffix.lower() in folders.UNOPENED:
        return "format not read"
    if where.suffix.lower() not in folders.PICTURES:
        return "not a picture"
    if {folders.words(part).lower() for part in where.parent.parts} & MASK_FOLDERS:
        return "mask without picture"
    return "not listed"


# --- all together ------------------------------------------------------------------------------


def content(sources: Sequence[Source], costs: Mapping[str, Any]) -> dict[str, Any]:
    """What `doctor.json` holds."""
    problems = [problem for source in sources for problem in source.problems]
    samples = [look.labelled for source in sources for look in source.pictures]
    truths = [sample.solution for sample in samples]
    rows = [row for source in sources for row in classes(source)]
    used = {file for sample in samples for file in mix.files(sample.mask)}
    unfit = {p.file for p in problems if p.kind in ("mask_size", "mask_turn", "mask_empty",
                                                    "mask_on_good")}  # fmt: skip
    missing = {p.file for p in problems if p.kind in ("missing", "unreadable")}
    skipped = sum((source.skipped for source in sources), Counter())
    return {
        "ok": not any(problem.stops for problem in problems),
        "pictures": len(samples),
        "good": sum(row["good"] for row in rows),
        "defective": sum(row["defective"] for row in rows),
        "kinds": dict(sorted(Counter(t.type for t in truths if t.type).items())),
        "masks": {
            "used": len({str(file) for file in used} - missing)
            + sum(isinstance(sample.mask, Shapes) for sample in samples),
            "unmatched": skipped["mask without picture"],
            "suspect": len(unfit) + sum(source.suspect_masks for source in sources),
        },
        "skipped": dict(sorted(skipped.items())),
        "places": dict(sorted(Counter(t.location for t in truths if t.location).items())),
        "leaks": sum(source.leaks for source in sources),
        "near_duplicates": sum(source.near_duplicates for source in sources),
        "problems": [
            {"kind": p.kind, "file": p.file, "say": p.say, "stops": p.stops}
            for p in sorted(problems, key=lambda p: (list(KINDS).index(p.kind), p.file))
        ],
        "classes": rows,
        "costs": costs,
    }


def classes(source: Source) -> Iterator[dict[str, Any]]:
    """Good and defective pictures of every product and part, in the order of the reader."""
    found: dict[tuple[str, str], Counter[str]] = {}
    answers = source.answers
    for sample in (look.sample for look in source.pictures):
        key = (sample.product, sample.split)
        found.setdefault(key, Counter())[answers.get(_key(sample), "")] += 1
    for (product, split), n in found.items():
        yield {
            "source": source.section,
            "product": product,
            "split": split,
            "good": n["No"],
            "defective": n["Yes"],
        }
