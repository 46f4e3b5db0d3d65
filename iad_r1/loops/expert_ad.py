"""Expert-AD, built from labels and masks: facts, texts, filters, lists.

Every picture is one line of `drafts.jsonl` as soon as it is done. A run that goes on does the rest.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import tee
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console

from iad_r1.data import cache, images, mix
from iad_r1.data.ahead import Ahead
from iad_r1.data.mix import Photo
from iad_r1.errors import DataError, MismatchError
from iad_r1.expert import card, facts, filters, lists
from iad_r1.expert import review as reviews
from iad_r1.expert.choice import LISTS, Candidate, References, candidates, spread, unfit, view_of
from iad_r1.expert.teachers import Asked, Draft, Rejection, Teacher, find
from iad_r1.grid import Grid, Rule, as_grid, describe
from iad_r1.judge.predictions import repair
from iad_r1.loops.opening import check_same_data
from iad_r1.nearest.alike import Alike
from iad_r1.report import expert as shown
from iad_r1.rewards.vocabulary import vocabulary
from iad_r1.settings.config import Config
from iad_r1.settings.expert import ExpertSettings
from iad_r1.store.progress import progress
from iad_r1.store.run_folder import RunFolder, replacing
from iad_r1.types import Dataset, Sample

DATASET = "dataset"  # the folder of the lists
DRAFTS = "drafts.jsonl"
REVIEWED = "reviewed.jsonl"  # the same, as reviewers have left them
AHEAD = 16  # pictures that are looked at before their texts are written
MAIN = ""  # the text of the lists themselves, beside those of their arms
PICTURES = "pictures"  # below DATASET: those that are in no file of their own


def run(config: Config, folder: RunFolder) -> None:
    """Build the lists and the data card, and say what is in them."""
    torch.set_num_threads(config.engine.threads)
    print("reading or drawing the pictures ...", flush=True)
    plan = _plan(config, folder)
    drafts, out = folder.path / DRAFTS, folder.path / DATASET
    out.mkdir(exist_ok=True)
    teacher = find(_settings(config).teacher.name).teacher(config, folder)
    writer = _Writer(config, plan, out, teacher)
    done = _taken_up(drafts, plan, writer)
    planned = _seen_ahead(plan, done, config.engine.picture_threads)
    try:
        with (
            progress("writing", len(plan.order)) as bar,
            drafts.open("a", encoding="utf-8") as file,
        ):
            bar.skip(done)
            for row in writer.rows(planned):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                file.flush()
                bar.advance()
    finally:  # what it took is paid for, whatever ends the run
        folder.update_summary(teacher=teacher.close())
    write_lists(config, folder)


def write_lists(config: Config, folder: RunFolder) -> None:
    """From the drafts of a build, as reviewers have left them: the lists, the data card, and what
    the terminal says."""
    stage, out = _settings(config), folder.path / DATASET
    drafts, review = _reviewed(config, folder)
    found = lists.write(drafts, out, stage.shots, str(as_grid(config.grid)), stage.arms)
    found = {**found, "review": review}
    if not _both_in(found["kept"]):
        where = f"{out / 'rejected.jsonl'} says of each why."
        raise DataError(_too_little(found["kept"], found["rejected"], where))
    base, took = base_of(config, folder), folder.summary().get("teacher", {})
    card.write(out, config, found, took, base, folder.read_json("manifest.json"))
    folder.update_summary(expert_ad=found)
    shown.show(found, out, base, Console(highlight=False))


def _reviewed(config: Config, folder: RunFolder) -> tuple[Path, dict[str, Any] | None]:
    """The file with the lines of a build as reviewers have left them, and what they did; its drafts
    and None where nobody has reviewed it."""
    stage, drafts, left = _settings(config), folder.path / DRAFTS, folder.path / REVIEWED
    decisions = reviews.Decisions(folder.path / reviews.FOLDER)
    standing = decisions.standing()
    if not any(standing.values()):
        left.unlink(missing_ok=True)
        return drafts, None
    grid = str(as_grid(config.grid))
    lines = reviews.reviewed(lambda: lists.rows(drafts), standing, grid, rules(config), stage.alike)
    with replacing(left) as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in lines)
    return left, reviews.told(lists.rows(left), standing, decisions.times())


def _counted(kept: Mapping[str, Mapping[str, int]]) -> str:
    """In words, what the lists hold."""
    return ", ".join(
        f"{shown.NAMES[part]} has " + " and ".join(f"{n:,} {label}" for label, n in labels.items())
        for part, labels in kept.items()
    )


def _settings(config: Config) -> ExpertSettings:
    assert isinstance(config.stage, ExpertSettings)
    return config.stage


# --- which pictures ------------------------------------------------------------------------------


Planned = Candidate | tuple[Sample, Rejection]


@dataclass(frozen=True)
class _Plan:
    """What a run writes about, in order: pictures that nothing speaks against so far, then those
    that are left out whatever is written. `base` is what paths of pictures start from."""

    order: Sequence[Planned]
    references: References
    alike: Alike
    photos: Mapping[str, Photo]
    base: Path


def _plan(config: Config, folder: RunFolder) -> _Plan:
    stage, photos = _settings(config), dict[str, Photo]()
    dataset = read_data(config, photos)
    check_same_data(folder, dataset)
    folder.update_manifest(
        data={"name": dataset.name, "fingerprint": dataset.fingerprint,
              "fingerprints": dict(dataset.fingerprints), "counts": dict(dataset.counts)}
    )  # fmt: skip
    samples = list({sample.id: sample for sample in (*dataset.sft, *dataset.rl)}.values())
    left_out = _left_out(config, dataset, samples)
    fit = [sample for sample in samples if sample.id not in left_out]
    found, both = candidates(fit, _groups(config, fit, photos), stage.rl_share, config.seed)
    order = spread(found, config.seed)
    given = {id: photo.sample.references for id, photo in photos.items()}
    alike = Alike(images.open_image)
    references = References(order, given, alike.nearest)
    rejected = [(s, r) for s in samples if (r := (left_out | both).get(s.id)) is not None]
    _check_lists(order, [why for _, why in rejected], references, stage.items)
    base = base_of(config, folder)
    return _Plan([*order[: stage.items], *rejected], references, alike, photos, base)


def _check_lists(
    order: Sequence[Candidate], rejected: Sequence[Rejection], references: References,
    items: int | None,
) -> None:  # fmt: skip
    """DataError, before a teacher is paid, where what is to be written about leaves a list without
    good or without defective pictures."""
    kept = {part: {"good": 0, "defective": 0} for part in LISTS}
    for number, one in enumerate(order, 1):
        if not references.others(one):
            continue
        kept[one.list]["defective" if one.sample.solution.answer == "Yes" else "good"] += 1
        if _both_in(kept):
            if items is None or items >= number:
                return
            raise DataError(
                f"items={items} are too few: both lists need good and defective pictures, which "
                f"these data have from items={number} on. No teacher was asked."
            )
    reasons = Counter(why.reason for why in rejected)
    raise DataError(_too_little(kept, reasons, "No teacher was asked."))


def _both_in(kept: Mapping[str, Mapping[str, int]]) -> bool:
    return all(n for labels in kept.values() for n in labels.values())


def _too_little(
    kept: Mapping[str, Mapping[str, int]], rejected: Mapping[str, int], more: str
) -> str:
    why = ", ".join(f"{reason} {n:,}" for reason, n in rejected.items()) or "none"
    return (
        f"both lists need good and defective pictures; {_counted(kept)}. Left out: {why}. "
        "Defective pictures need masks and types, and every picture another good one of its "
        f"product in its list. {more}"
    )


def base_of(config: Config, folder: RunFolder) -> Path:
    """What paths of pictures start from."""
    roots = {getattr(part, "root", None) for part in config.data.members().values()}
    root = roots.pop() if len(roots) == 1 else None
    return Path(root).resolve() if root is not None else folder.path / DATASET


def _seen_ahead(plan: _Plan, done: int, threads: int) -> Iterator[Planned]:
    """What is to be written about, from number `done` on; threads look at the next pictures while
    one is written about."""
    todo = plan.order[done:]
    batches = [todo[at : at + AHEAD] for at in range(0, len(todo), AHEAD)]
    seen = [[one.sample for one in batch if isinstance(one, Candidate)] for batch in batches]
    with Ahead(plan.alike.described, threads) as ahead:
        for number, batch in enumerate(batches):
            ahead.take(seen[number], *seen[number + 1 : number + 2])
            yield from batch


def read_data(config: Config, photos: dict[str, Photo]) -> Dataset:
    """What a run would train on, and what would test it; fills `photos` with all that was read."""
    with cache.Kept() as kept:

        def look(sample: Sample, grid: Grid, rule: Rule, hashed: bool) -> Photo:
            photos[sample.id] = photo = mix.inspect(sample, grid, rule, hashed, kept)
            return photo

        return mix.load(
            config.data, as_grid(config.grid), config.grid.mask_rule, config.seed,
            frozenset({"train"}), config.benchmark, look=look,
        )  # fmt: skip


def _left_out(config: Config, dataset: Dataset, samples: Sequence[Sample]) -> dict[str, Rejection]:
    """Pictures that nothing can be written about, and those that are tested on or nearly are."""
    found = {sample.id: why for sample in samples if (why := unfit(sample)) is not None}
    for name, ids in dataset.leaks.items():
        of = name.removeprefix("validation.")
        kind = "test" if of == name else "validation"
        why = Rejection("leak", f"it nearly equals a {kind} picture of {of}")
        found |= dict.fromkeys(ids, why)
    if config.protocol == "zero_shot":
        tested = {s.product.casefold() for shown in dataset.test.values() for s in shown}
        found |= {
            sample.id: Rejection("test product", f"{sample.product} is tested on")
            for sample in samples
            if sample.product.casefold() in tested
        }
    return found


def _groups(
    config: Config, samples: Sequence[Sample], photos: Mapping[str, Photo]
) -> Sequence[int]:
    """The group of near-duplicates of every picture; drawn ones have none beside them."""
    hashed = [photo for sample in samples if (photo := photos[sample.id]).bits is not None]
    limits = [getattr(part, "near_duplicate_bits", 0) for part in config.data.members().values()]
    found = mix.groups_of(hashed, max(limits), mix.twins_of(hashed)).tolist() if hashed else []
    known = {photo.sample.id: group for photo, group in zip(hashed, found, strict=True)}
    return [known.get(sample.id, len(known) + i) for i, sample in enumerate(samples)]


# --- what is written -----------------------------------------------------------------------------


def rules(config: Config) -> filters.Rules:
    """What the settings of a build ask of a text."""
    stage = _settings(config)
    fewest, most = stage.words
    types = vocabulary(config.rewards.vocabulary or "default")
    return filters.Rules(tuple(stage.forbidden), fewest, most, types)


@dataclass(frozen=True)
class _Case:
    """A picture that is written about: its line so far, the texts that are wanted of it by arm (of
    those that cannot be written about, none), and what speaks against it."""

    about: Mapping[str, Any]
    wanted: Mapping[str, Asked]
    wrong: Sequence[Rejection]

    @property
    def asked(self) -> Sequence[Asked]:
        return tuple(self.wanted.values())


class _Writer:
    """Writes about one picture after the other, and knows what has been kept."""

    def __init__(self, config: Config, plan: _Plan, out: Path, teacher: Teacher) -> None:
        stage = _settings(config)
        self.seed, self.grid = config.seed, as_grid(config.grid)
        self.rule: Rule = config.grid.mask_rule
        self.plan, self.out, self.teacher = plan, out, teacher
        self.teacher_name, self.with_arms = stage.teacher.name, stage.arms
        self.rules = rules(config)
        self.types = self.rules.types
        self.alike = filters.Alike(stage.alike)

    def rows(self, planned: Iterable[Planned]) -> Iterator[dict[str, Any]]:
        """The line of each picture, in their order. The teacher may be some pictures ahead."""
        cases, ahead = tee(map(self._case, planned))
        drafts = self.teacher.write(case.asked for case in ahead)
        for case, drafted in zip(cases, drafts, strict=True):
            yield self._row(case, drafted)

    def recall(self, row: Mapping[str, Any]) -> None:
        """Take note of a line that an earlier process has written."""
        if not row["rejected"]:
            self.alike.add(row["id"], (row["product"], row["type"]), row["reasoning"])

    def _case(self, one: Planned) -> _Case:
        if not isinstance(one, Candidate):
            sample, why = one
            return _Case(self._about(sample), {}, [why])
        sample, about = one.sample, {**self._about(one.sample), "list": one.list}
        reference = self.plan.references.find(one)
        if reference is None:
            why = Rejection("no reference", "there is no other good picture of this product here")
            return _Case(about, {}, [why])
        found, grid = self._facts(sample, reference), str(self.grid)
        photo = self.plan.photos[sample.id]
        asked = Asked(sample, reference, found, grid, self._place(found, grid))
        about |= {
            "group": one.group,
            "camera": view_of(sample)[1],
            "reference": {"id": reference.id, "picture": self._path(reference)},
            "picture_sha256": photo.image_digest,
            "mask_sha256": photo.mask_digest,
            "location": asked.place,
            "label": sample.solution.type,
            "teacher": self.teacher_name,
            "writer": self.teacher.writer,
            "seed": self.seed,
            "facts": asdict(found),
        }
        arms = lists.arms(grid) if self.with_arms else ()
        return _Case(about, {MAIN: asked} | {arm: self._arm(asked, arm) for arm in arms}, [])

    def _about(self, sample: Sample) -> dict[str, Any]:
        return {"id": sample.id, "product": sample.product, "picture": self._path(sample)}

    def _row(self, case: _Case, drafted: Sequence[Draft | Rejection]) -> dict[str, Any]:
        wrong, texts = list(case.wrong), dict[str, str]()
        row = dict(case.about)
        for (arm, asked), draft in zip(case.wanted.items(), drafted, strict=True):
            if isinstance(draft, Rejection):
                found = [draft]
            else:
                texts[arm] = filters.target(draft, asked.place)
                found = list(
                    filters.rejections(asked.facts, asked.grid, draft, texts[arm], self.rules)
                )
                if arm == MAIN:
                    row |= {"type": draft.type, "description": draft.description,
                            "reasoning": draft.reasoning, "shown": draft.shown}  # fmt: skip
            wrong += [r if arm == MAIN else replace(r, reason=f"{r.reason} ({arm})") for r in found]
        if case.wanted and not wrong:
            twin = self.alike.find((row["product"], row["type"]), row["reasoning"])
            wrong += [] if twin is None else [twin]
        if MAIN in texts:
            row |= {"target": texts.pop(MAIN), "arms": texts}
        row["rejected"] = [asdict(why) for why in wrong]
        self.recall(row)
        return row

    def _facts(self, sample: Sample, reference: Sample) -> facts.Facts:
        picture, good = images.open_image(sample), images.open_image(reference)
        mask, kind = images.open_mask(sample), sample.solution.type
        if mask is None or kind is None:
            return facts.of_good(sample.product, picture, good)
        place = self.types.find(kind)
        named = (kind, None, None, kind)
        if place is not None:
            fine = place.kind or place.type_class or kind
            named = (kind, place.type_class, place.group, fine)
        return facts.of_defective(sample.product, picture, mask, good, named, self.rule)

    def _place(self, found: facts.Facts, grid: str) -> str | None:
        return None if found.defect is None else describe(found.defect.cells[grid], grid)

    def _arm(self, asked: Asked, arm: str) -> Asked:
        if arm == lists.COARSE:
            return replace(asked, coarse=True)
        return replace(asked, grid=arm, place=self._place(asked.facts, arm))

    def _path(self, sample: Sample) -> str:
        """What a list calls a picture: its file from `base` on, where it lies there. One without a
        file of its own is given one."""
        if isinstance(sample.image, Path):
            file = sample.image.resolve()
        else:
            file = self.out / PICTURES / f"{sample.id}.png"
            if not file.is_file():
                file.parent.mkdir(parents=True, exist_ok=True)
                _save(images.open_image(sample), file)
        base = self.plan.base
        return (file.relative_to(base) if file.is_relative_to(base) else file).as_posix()


def _save(picture: Image.Image, file: Path) -> None:
    """A picture is there whole, or not at all."""
    unfinished = file.with_suffix(".unfinished")
    picture.save(unfinished, format="PNG")
    unfinished.replace(file)


def _taken_up(drafts: Path, plan: _Plan, writer: _Writer) -> int:
    """How many pictures are done. MismatchError if they are not the first ones of the plan."""
    repair(drafts)
    done = 0
    for row in lists.rows(drafts) if drafts.is_file() else ():
        one = plan.order[done] if done < len(plan.order) else None
        sample = one.sample if isinstance(one, Candidate) else one and one[0]
        if sample is None or sample.id != row["id"]:
            raise MismatchError(
                f"{drafts}, line {done + 1}: it is about {row['id']}, where these data have "
                f"{sample.id if sample else 'no more pictures'}. Start a new run (without resume)."
            )
        writer.recall(row)
        done += 1
    return done
