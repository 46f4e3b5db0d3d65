"""From the samples of readers to what a run reads: `data` trains, every benchmark tests.

The `split` of a reader's sample says where it may go:

    train             PA-SFT and SC-GRPO alike, less a share that is kept apart for validation
                      (`TrainingSplit`)
    sft, rl           one of them
    ""                any of them: a share of every product and label tests (`DrawnSplit`)
    validation, test  kept apart; `test.new` is the part of it that is called "new"

A reader may give a sample its references; one that has none gets good training pictures of its
product. Places are the words for the cells that its mask covers. Nothing is opened that the run
does not use, and no picture is trained on and validated with.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image
from scipy import sparse

from iad_r1.data import EVERY, Part, duplicates, images, views
from iad_r1.data.cache import Answer, Kept
from iad_r1.data.folders import UNSPLIT, readable
from iad_r1.errors import DataError
from iad_r1.grid import Grid, Rule, cells_from_mask, describe, parse_cells
from iad_r1.settings.data import (
    DrawnSplit,
    OwnMasks,
    ReaderSettings,
    TrainingSplit,
    Trains,
    nothing,
    reader,
)
from iad_r1.types import Cut, Dataset, Mask, Sample, Shapes

REFERENCES_PER_SAMPLE = 4
SPLIT_NAME = "seen"  # of a plain `validation` or `test`: its products are trained on

PLAIN: tuple[Part, ...] = ("train", "validation", "test")
TRAINED = ("train", "sft", "rl")
DROPPED = "dropped"

Stratum = tuple[str, bool]  # product, defective
# a sample, good pictures of its product, and how many of them to choose
Choose = Callable[[Sample, Sequence[Sample], int], tuple[Sample, ...]]
GoodOnes = Mapping[str, tuple[Sample, ...]]  # good pictures by product


@dataclass(frozen=True)
class Photo:
    """A sample whose files were opened and found sound, its place filled in."""

    sample: Sample
    bits: NDArray[np.bool_] | None  # perceptual hash, where near-duplicates matter
    image_digest: str | None  # None of a picture in memory, as of its mask
    mask_digest: str | None
    marked: float | None = None  # the share of its pixels that the mask of a defect marks
    grain: NDArray[np.bool_] | None = None  # where it shows a plain surface


def load(
    settings: ReaderSettings,
    grid: Grid,
    rule: Rule,
    seed: int,
    required: frozenset[Part] = EVERY,
    benchmarks: Mapping[str, ReaderSettings] = MappingProxyType({}),
    limit: int | None = None,
    look: Callable[[Sample, Grid, Rule, bool], Photo] | None = None,
    choose: Choose | None = None,
) -> Dataset:
    """The `required` parts of `settings`, and the test part of every benchmark, of each of its
    splits the first `limit` pictures. Where benchmarks are all that is read, `settings` is left
    alone. `look` is for who has opened the files already; by default `inspect` does. `choose`
    ranks good pictures for references; without it the seed draws them.

    Raises DataError naming the row or file that is wrong, or the part that would lack good or
    defective pictures.
    """
    look = look or inspect
    parts = settings.members() if required or not benchmarks else {}
    watched = "train" in required and any(isinstance(part, Trains) for part in parts.values())
    tests: list[Photo] = []
    prints: dict[str, str] = {}
    good: dict[str, GoodOnes] = {}
    for name, found in benchmarks.items():
        chosen, own_good = tested(
            name, found, seed, limit, lambda s: look(s, grid, rule, True), choose
        )
        good |= own_good
        photos = [look(s, grid, rule, watched) for s in chosen]
        check_polarity(found, photos)
        prints[f"benchmark.{name}"] = _fingerprint(found, seed, photos)
        tests += photos
    read: dict[str, Sequence[Photo]] = {}
    for key, part in parts.items():
        photos = [look(s, grid, rule, isinstance(part, Trains)) for s in _samples(part, seed)]
        read[key] = drawn(photos, part, seed)
    split = {
        key: parted(part, read[key], [*tests, *_elsewhere(read, key, "test")], seed)
        for key, part in parts.items()
    }
    ready = {key: found.photos for key, found in split.items()}
    for key, part in parts.items():
        split[key] = _apart(part, split[key], list(_elsewhere(ready, key, "validation")))
    own = {
        key: _own(part, _name(key), seed, required, read[key], split[key], choose, grid, rule)
        for key, part in parts.items()
    }
    whole = _joined(own, getattr(settings, "weights", {}), seed)
    if len(parts) > 1 and "train" in required:
        trained = [replace(sample, split="train") for sample in (*whole.sft, *whole.rl)]
        check_part(trained, "train", of="the mix")
    fingerprints = {f"data{key}": found.fingerprint for key, found in own.items()} | prints
    if not benchmarks:
        return replace(whole, fingerprints=fingerprints)
    shown = [photo.sample for photo in tests]
    return replace(
        whole,
        name=whole.name or "+".join(benchmarks),
        fingerprint=_hash([whole.fingerprint, *prints.values()]),
        fingerprints=fingerprints,
        test=_by_name(shown, "test"),
        counts={**whole.counts, **_sizes(shown)},
        good=good,
    )


def _name(key: str) -> str:
    """Of a part of `data`; "" where it has none."""
    return key.rpartition(".")[2]


def _elsewhere(read: Mapping[str, Sequence[Photo]], key: str, part: Part) -> Iterator[Photo]:
    """What the other parts of `data` test or validate with."""
    for other, photos in read.items():
        for photo in photos if other != key else ():
            if head(photo.sample) == part:
                yield replace(photo, sample=_under(_name(other), photo.sample))


def tested(
    name: str,
    settings: ReaderSettings,
    seed: int,
    limit: int | None,
    look: Callable[[Sample], Photo],
    choose: Choose | None = None,
) -> tuple[list[Sample], dict[str, GoodOnes]]:
    """The test part of a benchmark, with references of its own good training pictures, and the good
    ones of every split. `look` opens a picture, which a split that is drawn needs."""
    samples = _samples(settings, seed)
    if unsplit(samples, settings):
        samples = [photo.sample for photo in drawn(list(map(look, samples)), settings, seed)]
    tests = sorted((s for s in samples if head(s) == "test"), key=_order)
    check_part(tests, "test", of=f"benchmark {name}")
    pools = _pools(samples, {})
    taken: Counter[str] = Counter()
    chosen: list[Sample] = []
    for sample in tests:
        taken[sample.split] += 1
        if limit is None or taken[sample.split] <= limit:
            chosen.append(_under(name, _referred(sample, pools, {}, seed, choose)))
    return chosen, _good(chosen, pools)


def _own(
    settings: ReaderSettings,
    name: str,
    seed: int,
    required: frozenset[Part],
    photos: Sequence[Photo],
    split: Parted,
    choose: Choose | None,
    grid: Grid,
    rule: Rule,
) -> Dataset:
    """What `data` holds, or its part of that name: its photos, and how they are `split`."""
    samples, groups = [photo.sample for photo in photos], split.groups
    _check_identical(photos)
    check_polarity(settings, photos)
    if not settings.tests:
        required -= {"test"}
    if name and not any(map(_is_defective, samples)):
        required -= {"train"}  # other parts of a mix may have defects
    for part in PLAIN:
        if part in required and part != "validation":
            check_part(samples, part)
    samples = [photo.sample for photo in split.photos]
    counts = _sizes(samples)
    if isinstance(settings, TrainingSplit):
        counts = _counts(samples, groups)
        if "train" in required:
            check_part(samples, "train")
            check_part(samples, "validation")
    if isinstance(settings, Trains):
        counts |= _leak_counts(samples, split.leaks)
    if "validation" in required:
        check_part(samples, "validation")
    pools = _pools(samples, groups)
    used = sorted((sample for sample in samples if sample.split != DROPPED), key=_order)
    ready = [_referred(sample, pools, groups, seed, choose, "train" in required) for sample in used]
    kept = [_under(name, sample) if name else sample for sample in ready]
    validation, test = _by_name(kept, "validation"), _by_name(kept, "test")
    trained = {"sft": _of(ready, "train", "sft"), "rl": _of(ready, "train", "rl")}
    if "train" in required and isinstance(settings, DrawnSplit) and settings.views is not None:
        viewer = views.Viewer(settings.views, grid, rule, seed)
        counts = counts | {f"views_{part}": getattr(settings.views, part) for part in trained}
        trained = {
            part: tuple(viewer.draw(found, part, counts[f"views_{part}"]))
            for part, found in trained.items()
        }
    return Dataset(
        name=samples[0].dataset,
        fingerprint=_fingerprint(settings, seed, photos),
        sft=trained["sft"],
        rl=trained["rl"],
        validation=validation,
        test=test,
        counts=counts,
        good=_good([*chain(*validation.values(), *test.values())], pools),
        leaks={test: frozenset(ids) for test, ids in split.leaks.items()},
    )


def _joined(own: Mapping[str, Dataset], weights: Mapping[str, float], seed: int) -> Dataset:
    """All parts of `data` as one; each training picture as often as the weight of its part says."""
    if not own:
        return Dataset("", "", (), (), {}, {})
    if not weights:
        (alone,) = own.values()
        return alone
    parts = {_name(key): found for key, found in own.items()}
    facts = [[name, weights[name], found.fingerprint] for name, found in parts.items()]
    return Dataset(
        name="+".join(found.name for found in parts.values()),
        fingerprint=_hash(facts),
        sft=tuple(s for n in parts for s in _weighted(parts[n].sft, weights[n], f"{seed}/{n}")),
        rl=tuple(s for n in parts for s in _weighted(parts[n].rl, weights[n], f"{seed}/{n}")),
        validation={name: s for found in parts.values() for name, s in found.validation.items()},
        test={name: s for found in parts.values() for name, s in found.test.items()},
        counts={f"{n}.{key}": k for n, found in parts.items() for key, k in found.counts.items()},
        good={split: ones for found in parts.values() for split, ones in found.good.items()},
        leaks={
            test: frozenset().union(*(found.leaks.get(test, ()) for found in parts.values()))
            for test in sorted({test for found in parts.values() for test in found.leaks})
        },
    )


def _weighted(samples: Sequence[Sample], weight: float, stream: str) -> Iterator[Sample]:
    """Every sample as often as `weight` says; of what is left of it, a share that is drawn."""
    whole, share = divmod(weight, 1)
    for _ in range(int(whole)):
        yield from samples
    yield from random.Random(f"weights/{stream}").sample(samples, round(share * len(samples)))


# --- reading -----------------------------------------------------------------------------------


def _samples(settings: ReaderSettings, seed: int) -> list[Sample]:
    """All that a reader knows of. No mask for two pictures, and no picture twice, but in parts that
    a reader names itself, and with and without a reference."""
    with readable():
        found = list(reader(settings.name).read(settings, seed))
    if not found:
        raise DataError(nothing(settings, settings.announce()))
    for _, say in repeated(found):
        raise DataError(say)
    return found


def repeated(samples: Iterable[Sample]) -> Iterator[tuple[Path, str]]:
    """Pictures that are listed twice and masks of two pictures, each with a sentence."""
    pictures: dict[tuple[str, str, int], Sample] = {}
    masks: dict[str, Sample] = {}
    folders: dict[Path, str] = {}
    for sample in samples:
        if sample.question.options is not None or isinstance(sample.image, Cut):
            continue  # several of these are of one picture
        if isinstance(sample.image, Path):
            part = "" if sample.split in PLAIN else sample.split
            first = pictures.setdefault((_true(sample.image, folders), part, sample.shots), sample)
            if first is not sample:
                yield (
                    sample.image,
                    f"{sample.where}: {sample.image.name} is listed already in {first.where}.",
                )
        for mask in files(sample.mask):
            first = masks.setdefault(_true(mask, folders), sample)
            if first is not sample:
                yield (
                    mask,
                    f"{sample.where}: its mask {mask.name} belongs to {first.where} "
                    "already. Give every defective picture a mask of its own, and pictures "
                    "different names.",
                )


def _true(path: Path, folders: dict[Path, str]) -> str:
    """A file without links; `folders` remembers those that were resolved."""
    if os.path.islink(path):
        return os.path.realpath(path)
    parent = path.parent
    if parent not in folders:
        folders[parent] = os.path.realpath(parent)
    return f"{folders[parent]}/{path.name}"


def inspect(
    sample: Sample, grid: Grid, rule: Rule, hashed: bool, kept: Kept | None = None
) -> Photo:
    """Open the files of a sample, but where `kept` knows what is in them. Raises DataError if one
    is missing, broken or contradictory."""
    try:
        digest = bits = grain = None
        if hashed or files(sample.image):
            seen = _asked(kept, sample, [], lambda: _hashes(sample))
            digest, bits = seen["digest"], _unpacked(seen["bits"], duplicates.BITS)
            grain = seen["grain"] and _unpacked(seen["grain"], duplicates.GRAIN)
            images.note_size(sample, seen["size"])
        mask = None
        if sample.mask is not None:
            is_placed = sample.question.options is None
            asked = [str(grid), rule, is_placed, _how(sample.mask)]
            mask = _asked(kept, sample, asked, lambda: _marks(sample, grid, rule))
        placed, marked = _placed(sample, grid, mask)
    except DataError as error:
        raise DataError(f"{sample.where or sample.id}: {error}") from error
    of_mask = mask["digest"] if mask else None
    if not hashed:
        return Photo(placed, None, digest, of_mask, marked)
    return Photo(placed, bits, digest, of_mask, marked, grain)


def _asked(
    kept: Kept | None, sample: Sample, asked: Sequence[object], find: Callable[[], Answer]
) -> Answer:
    """What is found in the picture of a sample, or, if anything is `asked`, in its mask too."""
    opened = (*files(sample.image), *(files(sample.mask) if asked else ()))
    in_memory = isinstance(sample.image, Image) or (asked and isinstance(sample.mask, Image))
    if kept is None or in_memory:
        return find()

    def noted() -> Answer:
        answer = find()
        return {**answer, "paged": [opened.index(f) for f in opened if f in images.several_pages]}

    box = sample.image.box if isinstance(sample.image, Cut) else None
    answer = kept.found(opened, [box, *asked], noted)
    images.several_pages.update(opened[i] for i in answer["paged"])
    return answer


def _how(mask: Mask | Shapes | Image) -> str:
    """All that a mask says beside its files."""
    return repr(replace(mask, files=()) if isinstance(mask, Mask) else mask)


def _hashes(sample: Sample) -> Answer:
    """The size of a picture, and hashes of its file and of what it shows."""
    picture = images.open_image(sample)
    bits, grain = duplicates.described(picture)
    return {
        "size": picture.size,
        "digest": _digest(sample.image),
        "bits": _packed(bits),
        "grain": None if grain is None else _packed(grain),
    }


def _packed(bits: NDArray[np.bool_]) -> str:
    return np.packbits(bits).tobytes().hex()


def _unpacked(text: str, n: int) -> NDArray[np.bool_]:
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=n).astype(np.bool_)


def _marks(sample: Sample, grid: Grid, rule: Rule) -> Answer:
    """What share of the picture a mask marks, and the words for where."""
    values = images.open_mask(sample)
    assert values is not None
    named = values.any() and sample.question.options is None
    place = describe(cells_from_mask(values, grid, rule), grid) if named else ""
    return {
        "digest": _digest(sample.mask),
        "share": float(values.mean()),
        "place": place or None,
    }


def _placed(sample: Sample, grid: Grid, mask: Answer | None) -> tuple[Sample, float | None]:
    """With the place that its mask shows, and what share of the picture that marks; a good picture
    needs no mask."""
    if sample.question.options is not None:
        return sample, None
    if mask is None:
        return _in_words_of(grid, sample), None
    defective = _is_defective(sample)
    if defective and not mask["share"]:
        raise DataError(
            f"{_named(sample)}: this mask is empty, but its picture is labelled defective. Leave "
            "the mask out if the place is not known."
        )
    if not defective and mask["share"]:
        raise DataError(
            f"{_named(sample)}: this mask marks a defect, but its picture is labelled good."
        )
    if not defective:
        return replace(sample, mask=None), None
    solution = replace(sample.solution, location=mask["place"])
    return replace(sample, solution=solution), mask["share"]


def _in_words_of(grid: Grid, sample: Sample) -> Sample:
    """With the place that its data set names in the grid's own words."""
    said = sample.solution.location
    if said is None:
        return sample
    cells = parse_cells(said, grid)
    if cells is None:
        raise DataError(
            f"the location {said!r} is no place on a {grid} grid. Correct it, or choose the grid "
            "that the data set was made for (grid=...)."
        )
    return replace(sample, solution=replace(sample.solution, location=describe(cells, grid)))


def files(shown: Path | Cut | Mask | Shapes | Image | None) -> tuple[Path, ...]:
    """The files of a picture or mask; those in memory have none."""
    if isinstance(shown, Cut):
        return (shown.file,)
    return (shown,) if isinstance(shown, Path) else shown.files if isinstance(shown, Mask) else ()


def _named(sample: Sample) -> str:
    """The files of its mask, or whose mask it is."""
    return ", ".join(map(str, files(sample.mask))) or f"{sample.image}"


def _digest(shown: Path | Cut | Mask | Shapes | Image | None) -> str | None:
    if isinstance(shown, Shapes):
        return hashlib.sha256(repr(shown).encode()).hexdigest()
    found = files(shown)
    if not found:
        return None
    content = hashlib.sha256()
    for file in found:
        content.update(file.read_bytes())
    if isinstance(shown, Cut):
        content.update(repr(shown.box).encode())
    return content.hexdigest()


# --- splitting ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parted:
    """The photos of a reader, each with its part as its split, or `DROPPED`."""

    photos: Sequence[Photo]
    groups: Mapping[str, int]  # of near-duplicates, by id, where some are carved for validation
    leaks: Mapping[str, set[str]]  # training pictures that recur in a set to test or validate with


def parted(
    settings: ReaderSettings, photos: Sequence[Photo], tests: Sequence[Photo], seed: int
) -> Parted:
    """Photos of which it is known what tests, with those that validate, and without those that
    recur in a test if they are to be left out. `tests` are from elsewhere."""
    if not isinstance(settings, Trains):
        return Parted(photos, {}, {})
    twins = twins_of(photos)
    leaks = _leaks(photos, twins, tests, settings.near_duplicate_bits)
    photos = _without(photos, leaks, settings)
    groups: dict[str, int] = {}
    if isinstance(settings, TrainingSplit):
        samples = [photo.sample for photo in photos]
        found = groups_of(photos, settings.near_duplicate_bits, twins).tolist()
        groups = {s.id: group for s, group in zip(samples, found, strict=True)}
        carved = _carved(samples, groups, settings, seed)
        photos = [replace(p, sample=s) for p, s in zip(photos, carved, strict=True)]
    return Parted(photos, groups, leaks)


def _apart(settings: ReaderSettings, split: Parted, validate: Sequence[Photo]) -> Parted:
    """A part of `data` beside what the other parts `validate` with."""
    if not isinstance(settings, Trains) or not validate:
        return split
    trained = [photo for photo in split.photos if photo.sample.split in TRAINED]
    none = duplicates.pairs([], [], len(trained))
    leaks = _leaks(trained, none, validate, settings.near_duplicate_bits)
    photos = _without(split.photos, leaks, settings)
    return Parted(photos, split.groups, {**split.leaks, **leaks})


def _without(
    photos: Sequence[Photo], leaks: Mapping[str, set[str]], settings: Trains
) -> Sequence[Photo]:
    """With those that leak as `DROPPED`, if they are to be."""
    gone = set().union(*leaks.values()) if settings.drop_leaks else set()
    return [
        replace(p, sample=replace(p.sample, split=DROPPED)) if p.sample.id in gone else p
        for p in photos
    ]


def _leaks(
    photos: Sequence[Photo], twins: sparse.csr_array, tests: Sequence[Photo], limit: int
) -> dict[str, set[str]]:
    """By test or validation set, the training pictures that nearly equal one of its pictures, here
    (where `twins` are) or in `tests`."""
    train = np.flatnonzero([photo.sample.split in TRAINED for photo in photos])
    here = np.flatnonzero([_is_kept_apart(photo) for photo in photos])
    mine, hashed = [photos[i] for i in train], [test for test in tests if test.bits is not None]
    pairs = [twins[train][:, here]]
    if hashed:
        pairs.append(twins_of([*mine, *hashed])[: len(mine), len(mine) :])
    shown = [*(photos[i] for i in here), *hashed]
    names = [_set_of(photo.sample) for photo in shown]
    found: dict[str, set[str]] = {name: set() for name in names}
    numbers = {name: number for number, name in enumerate(found)}
    set_of = np.array([numbers[name] for name in names], np.intp)
    both = sparse.csr_array(sparse.hstack(pairs))
    for photo, others in zip(mine, near(mine, shown, limit, both), strict=True):
        recurs = np.bincount(set_of[others], minlength=len(found))
        for name, n in zip(found, recurs, strict=True):
            if n:
                found[name].add(photo.sample.id)
    return {name: ids for name, ids in found.items() if ids}


def _is_kept_apart(photo: Photo) -> bool:
    return head(photo.sample) in ("test", "validation")


def _set_of(sample: Sample) -> str:
    """What a set is called beside its leaks: "seen", "photos", "validation.photos"."""
    part, _, name = sample.split.partition(".")
    return sample.split if part == "validation" else name or SPLIT_NAME


def near(
    photos: Sequence[Photo], others: Sequence[Photo], limit: int, twins: sparse.csr_array
) -> Iterator[NDArray[np.intp]]:
    """Of every photo the numbers of the others that nearly equal it. All of them have a hash."""
    return duplicates.near(_bits(photos), _bits(others), limit, twins)


def groups_of(photos: Sequence[Photo], limit: int, twins: sparse.csr_array) -> NDArray[np.int32]:
    """[n] the group of near-duplicates of every photo."""
    return duplicates.groups(_bits(photos), limit, twins)


def twins_of(photos: Sequence[Photo]) -> sparse.csr_array:
    """[n, n] True where two photos show the same part of a product with a plain surface."""
    plain: dict[str, list[int]] = {}
    for i, photo in enumerate(photos):
        if photo.grain is not None:
            plain.setdefault(photo.sample.product.casefold(), []).append(i)
    first: list[int] = []
    second: list[int] = []
    for places in plain.values():
        of_product = duplicates.twins(np.array([photos[i].grain for i in places]))
        for side, found in zip((first, second), of_product.nonzero(), strict=True):
            side += np.array(places)[found].tolist()
    return duplicates.pairs(first, second, len(photos))


def _bits(photos: Sequence[Photo]) -> NDArray[np.bool_]:
    """[n, 256] the hashes of photos that have one."""
    bits = [photo.bits for photo in photos if photo.bits is not None]
    return np.array(bits, np.bool_).reshape(len(bits), duplicates.BITS)


def unsplit(samples: Iterable[Sample], settings: ReaderSettings) -> list[Sample]:
    """The samples whose part is to be drawn."""
    if not isinstance(settings, DrawnSplit):
        return []
    return [s for s in samples if settings.split == "drawn" or s.split == UNSPLIT]


def drawn(photos: Sequence[Photo], settings: ReaderSettings, seed: int) -> Sequence[Photo]:
    """With test or train as the split of every photo whose data say neither, or of all where it is
    to be drawn: `test_share` of every product and label, and whole groups of near-duplicates."""
    loose = unsplit([photo.sample for photo in photos], settings)
    if not loose:
        return photos
    assert isinstance(settings, DrawnSplit)
    groups = groups_of(photos, settings.near_duplicate_bits, twins_of(photos)).tolist()
    of = {photo.sample.id: group for photo, group in zip(photos, groups, strict=True)}
    apart = carve(
        [of[sample.id] for sample in loose],
        [(sample.product, _is_defective(sample)) for sample in loose],
        settings.test_share,
        f"test/{seed}",
    )
    tested = {_is_defective(s) for s, kept in zip(loose, apart, strict=True) if kept}
    if tested != set(map(_is_defective, loose)):
        raise DataError(
            "Nothing says which pictures test, and a share of them cannot be kept apart for that: "
            "there are too few, or most are near-duplicates of one another. Add pictures, lower "
            "data.near_duplicate_bits, or sort them into <product>/train/ and <product>/test/."
        )
    moved = {s.id: "test" if kept else "train" for s, kept in zip(loose, apart, strict=True)}
    return [
        replace(p, sample=replace(p.sample, split=moved.get(p.sample.id, p.sample.split)))
        for p in photos
    ]


def _carved(
    samples: Sequence[Sample],
    groups: Mapping[str, int],
    settings: TrainingSplit,
    seed: int,
) -> list[Sample]:
    """Every sample with its part as its split: train, validation, test or dropped. Where there are
    validation pictures already, none are carved."""
    rest = [s for s in samples if s.split == "train"]
    if any(s.split == "validation" for s in samples):
        rest = []  # the data says itself what is kept apart
    apart = carve(
        [groups[sample.id] for sample in rest],
        [(sample.product, _is_defective(sample)) for sample in rest],
        settings.validation_share,
        f"validation/{seed}",
    )
    moved = {s.id for s, kept in zip(rest, apart, strict=True) if kept}
    return [replace(s, split="validation") if s.id in moved else s for s in samples]


def carve(groups: Sequence[int], strata: Sequence[Stratum], share: float, seed: str) -> list[bool]:
    """Which pictures are kept apart: about `share` of every stratum, and whole groups only.

    Groups come in an order drawn from `seed`; one that would overfill a stratum stays. A stratum
    of at least two pictures asks for at least one; one whose groups are all too large gets none.
    """
    sizes = Counter(strata)
    wanted = {s: max(1, round(share * n)) if n > 1 else 0 for s, n in sizes.items()}
    members: dict[int, Counter[Stratum]] = {}
    for group, stratum in zip(groups, strata, strict=True):
        members.setdefault(group, Counter())[stratum] += 1
    order = sorted(members)
    random.Random(seed).shuffle(order)
    taken: Counter[Stratum] = Counter()
    chosen: set[int] = set()
    for group in order:
        if all(taken[s] + n <= wanted[s] for s, n in members[group].items()):
            taken += members[group]
            chosen.add(group)
    return [group in chosen for group in groups]


# --- samples -----------------------------------------------------------------------------------


def head(sample: Sample) -> str:
    """The part that it is in, before what its reader names it."""
    return sample.split.partition(".")[0]


def _under(name: str, sample: Sample) -> Sample:
    """In a split of that name, before what its reader names it: "test.photos", "test.drawn_new"."""
    part, *named = sample.split.split(".")
    return replace(sample, split="_".join([f"{part}.{name}", *named]))


def _is_defective(sample: Sample) -> bool:
    return sample.solution.answer == "Yes"


def _order(sample: Sample) -> str:
    """Splits that a reader names itself keep its order; the others are mixed: any prefix holds
    what the whole holds, roughly."""
    return hashlib.sha256(sample.id.encode()).hexdigest() if sample.split in PLAIN else ""


def _of(samples: Iterable[Sample], *splits: str) -> tuple[Sample, ...]:
    return tuple(sample for sample in samples if sample.split in splits)


def _by_name(samples: Iterable[Sample], part: Part) -> dict[str, tuple[Sample, ...]]:
    """The samples of a part by what follows it in the name of their split."""
    found: dict[str, list[Sample]] = {}
    for sample in samples:
        if head(sample) == part:
            name = sample.split.partition(".")[2] or SPLIT_NAME
            found.setdefault(name, []).append(replace(sample, split=f"{part}.{name}"))
    return {name: tuple(of_name) for name, of_name in found.items()}


class _Pool:
    """The good training pictures of a product, in their order. They may be many, so none of what
    is asked goes through them."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self.groups: list[int | None] = []  # of near-duplicates, by place in `samples`
        self.places: dict[object, list[int]] = {}  # of an id, of a file and of a group

    def add(self, sample: Sample, group: int | None) -> None:
        """One more."""
        for key in {sample.id, _shown(sample), group}:
            self.places.setdefault(key, []).append(len(self.samples))
        self.samples.append(sample)
        self.groups.append(group)

    def near(self, sample: Sample, group: int | None) -> Sequence[int]:
        """The places of this very picture and, if it has one, of its group, in order."""
        keys = {sample.id, _shown(sample)}
        itself = {place for key in keys for place in self.places.get(key, ())}
        alike = self.places.get(group, []) if group is not None else []
        others = [place for place in itself if group is None or self.groups[place] != group]
        return sorted([*alike, *others]) if others else alike

    def drawn(self, most: int, apart: Sequence[int], stream: random.Random) -> tuple[Sample, ...]:
        """Samples of all places but those `apart`."""
        left = len(self.samples) - len(apart)
        drawn = stream.sample(range(left), min(most, left))
        # the n-th place that is left lies behind those apart that have at most n left before them
        skipped = [bisect_right(range(len(apart)), n, key=lambda i: apart[i] - i) for n in drawn]
        return tuple(self.samples[n + k] for n, k in zip(drawn, skipped, strict=True))


def _shown(sample: Sample) -> str | Path:
    """What a picture is known by beside its id: its file, if it has one of its own."""
    return sample.image if isinstance(sample.image, Path) else sample.id


def _pools(samples: Iterable[Sample], groups: Mapping[str, int]) -> dict[str, _Pool]:
    """The good training pictures of every product."""
    pools: dict[str, _Pool] = {}
    for sample in samples:
        if sample.split in TRAINED and sample.solution.answer == "No":
            pools.setdefault(sample.product, _Pool()).add(sample, groups.get(sample.id))
    return pools


def _good(judged: Sequence[Sample], pools: Mapping[str, _Pool]) -> dict[str, GoodOnes]:
    """By split and product, the good training pictures that there are to compare with or, if none,
    the references that the data set gives; none that is judged in that split."""
    shown: dict[str, set[object]] = {}
    given: dict[tuple[str, str], dict[str, Sample]] = {}
    for sample in judged:
        shown.setdefault(sample.split, set()).update(_known_by(sample))
        own = given.setdefault((sample.split, sample.product), {})
        own.update({reference.id: reference for reference in sample.references})
    found: dict[str, dict[str, tuple[Sample, ...]]] = {split: {} for split in shown}
    for (split, product), own in given.items():
        ones = pools[product].samples if product in pools else own.values()
        found[split][product] = tuple(s for s in ones if shown[split].isdisjoint(_known_by(s)))
    return dict(found)


def _known_by(sample: Sample) -> set[object]:
    """Its id and, unless it was drawn in memory, what it shows."""
    return {sample.id} if isinstance(sample.image, Image) else {sample.id, sample.image}


def _referred(
    sample: Sample,
    pools: Mapping[str, _Pool],
    groups: Mapping[str, int],
    seed: int,
    choose: Choose | None,
    needed: bool = False,
) -> Sample:
    """With references, unless its reader gave it some: never the picture itself, and none of its
    near-duplicates as long as there are others. The first is the one that a single shot shows."""
    if sample.references:
        return sample
    pool = pools.get(sample.product, _Pool())
    apart = pool.near(sample, groups.get(sample.id))
    if len(apart) == len(pool.samples):
        apart = pool.near(sample, None)
    if needed and len(apart) == len(pool.samples) and sample.question.options is None:
        raise DataError(
            f"{sample.where or sample.id}: {sample.product!r} has no (other) good picture in its "
            "training part, so there is nothing to compare this one with. Add good pictures "
            "of it with split=train, or lower data.validation_share."
        )
    if choose is not None:
        others = set(range(len(pool.samples))).difference(apart)
        ranked = choose(sample, [pool.samples[i] for i in sorted(others)], REFERENCES_PER_SAMPLE)
        return replace(sample, references=ranked)
    stream = random.Random(f"references/{seed}/{sample.id}")
    return replace(sample, references=pool.drawn(REFERENCES_PER_SAMPLE, apart, stream))


# --- checks and counts -------------------------------------------------------------------------

_TOO_FEW = {
    "train": "Training needs both. Mark pictures with split=train (or put them into "
    "<product>/train/<defect>/). Or draw anew what trains and what tests: data.split=drawn.",
    "test": "The test needs both. Mark pictures with split=test (or put them into "
    "<product>/test/<defect>/).",
    "validation": "There are too few to keep some apart, or most are near-duplicates of one "
    "another. Add pictures, raise data.validation_share or lower data.near_duplicate_bits.",
}


def check_part(samples: Sequence[Sample], part: Part, of: str = "the folder") -> None:
    """A part holds good and defective pictures. Those that a reader has named itself are as it
    wants them."""
    splits = {sample.split for sample in samples}
    if part == "train" and {"sft", "rl"} <= splits:
        return
    if any(split.startswith(f"{part}.") for split in splits):
        return
    here = [sample for sample in samples if sample.split == part]
    asked = [sample for sample in samples if sample.question.options is None]
    if here and not any(sample.split == part for sample in asked):
        return  # a letter says nothing of defects
    if here and not any(map(_is_defective, asked)):
        if part == "train":
            raise DataError(
                f"All pictures of {of} are good. They can be references, and show how often a "
                "model takes a good part for a defective one (stage=evaluate). PA-SFT and SC-GRPO "
                "also need pictures of defects: add some, in a folder named after the defect, or "
                "mix these with data that have some (data=mix data/parts=[synthetic,photos])."
            )
        return  # there are no misses to count, only false alarms
    found = {_is_defective(sample) for sample in asked if sample.split == part}
    missing = [word for word, label in (("good", False), ("defective", True)) if label not in found]
    if missing:
        raise DataError(
            f"The {part} part of {of} holds no {' and no '.join(missing)} pictures. "
            f"{_TOO_FEW[part]}"
        )


def _check_identical(photos: Iterable[Photo]) -> None:
    """The same picture cannot be good in one place and defective in another."""
    first: dict[str, Sample] = {}
    for photo in photos:
        if photo.image_digest is None:
            continue
        twin = first.setdefault(photo.image_digest, photo.sample)
        if _is_defective(twin) != _is_defective(photo.sample):
            raise DataError(
                f"{photo.sample.where}: the same picture as in {twin.where}, but with the other "
                "label. Correct one of them."
            )


def check_polarity(settings: ReaderSettings, photos: Iterable[Photo]) -> None:
    """Masks that mark more than half of most pictures are likely to be white where all is well."""
    if not isinstance(settings, OwnMasks) or settings.masks_inverted is not None:
        return
    marked = [
        (photo.marked, photo.sample)
        for photo in photos
        if photo.marked is not None and isinstance(photo.sample.mask, Mask)
    ]
    large = [(share, sample) for share, sample in marked if share > 0.5]
    if large and 2 * len(large) > len(marked):
        share, sample = large[0]
        raise DataError(
            f"{_named(sample)}: this mask marks {share:.1%} of its "
            f"picture as defective, and {len(large)} of {len(marked)} masks mark more than half. "
            "Set data.masks_inverted=true if they are black where a defect is, "
            "data.masks_inverted=false if the defects are that large."
        )


def _sizes(samples: Iterable[Sample]) -> dict[str, int]:
    """Pictures of every split, and how many of them are defective."""
    counts: dict[str, int] = {}
    for sample in samples:
        counts[sample.split] = counts.get(sample.split, 0) + 1
        if sample.question.options is None:
            name = f"{sample.split}.defective"
            counts[name] = counts.get(name, 0) + _is_defective(sample)
    return counts


def _counts(samples: Sequence[Sample], groups: Mapping[str, int]) -> dict[str, int]:
    """Pictures of every part and what is not annotated, and what recurs."""
    counts = {"read": len(samples)}
    for part in PLAIN:
        found = _of(samples, part)
        defective = [sample for sample in found if _is_defective(sample)]
        counts[f"{part}_normal"] = len(found) - len(defective)
        counts[f"{part}_anomalous"] = len(defective)
        counts[f"{part}_without_mask"] = sum(s.solution.location is None for s in defective)
        counts[f"{part}_untyped"] = sum(s.solution.type is None for s in defective)
    recurring = sum(n for n in Counter(groups.values()).values() if n > 1)
    return counts | {"near_duplicates": recurring}


def _leak_counts(samples: Sequence[Sample], leaks: Mapping[str, set[str]]) -> dict[str, int]:
    """Training pictures that are near-duplicates of pictures to test or validate with, in all and
    by set."""
    return {
        "leaks": len(set().union(*leaks.values())),
        "leaks_dropped": len(_of(samples, DROPPED)),
        **{f"leaks.{name}": len(ids) for name, ids in leaks.items()},
    }


def _fingerprint(settings: ReaderSettings, seed: int, photos: Iterable[Photo]) -> str:
    """Equal exactly when pictures, annotations, settings and seed are; wherever the folder is.
    What a reader draws is known by the settings and the reader's `VERSION`."""
    rows = [
        [p.image_digest, p.mask_digest, p.sample.product, p.sample.split,
         _is_defective(p.sample), p.sample.solution.type, *_written(p.sample)]
        for p in photos
    ]  # fmt: skip
    facts = [settings.model_dump(mode="json", exclude={"root"}), seed, rows]
    version = getattr(reader(settings.name), "VERSION", None)
    return _hash(facts if version is None else [*facts, version])


def _written(sample: Sample) -> list[object]:
    """What its data set says of a sample in words of its own."""
    solution, asked = sample.solution, sample.question
    facts = [
        sample.target,
        asked.text,
        asked.options and [dict(asked.options), solution.answer],
        solution.location if sample.mask is None else None,
    ]
    return facts if any(facts) else []


def _hash(facts: object) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
