"""Answers from a file, judged as an evaluation judges its own."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from iad_r1 import report
from iad_r1.data import Part, cache, mix
from iad_r1.data.readers.mmad import MERGED
from iad_r1.errors import DataError
from iad_r1.grid import as_grid
from iad_r1.judge import averages, predictions, thresholds
from iad_r1.judge.answers import Answer, read
from iad_r1.judge.grade import grade
from iad_r1.judge.outcomes import is_yes_no
from iad_r1.loops.results import more, open_grader, result_of, splits, tested
from iad_r1.report import gallery, terminal
from iad_r1.schema import INVALID, Status
from iad_r1.settings.config import Config
from iad_r1.settings.data import ReaderSettings
from iad_r1.settings.score import ScoreSettings
from iad_r1.store.run_folder import RunFolder
from iad_r1.types import Completion, Cut, Dataset, Prediction, Sample, StopReason

STAGE = "scored"  # in the place of the weights that answered
SHOWN = 3  # rows or pictures that a message names


def run(config: Config, folder: RunFolder) -> None:
    """Match, grade, and write what an evaluation writes. Files are replaced whole, so that a run
    that was killed is begun again and loses and repeats nothing."""
    stage = config.stage
    assert isinstance(stage, ScoreSettings)
    rows = read(Path(str(stage.predictions)))
    dataset = open_data(config, folder)
    asked = splits(config, dataset)
    matched = match(rows, asked, roots(config))
    counts = check(matched, stage)
    shots = next((row.shots for row in rows if row.shots is not None), stage.shots)
    answers = {
        (STAGE, split, shots): list(_graded(config, split, samples, matched, shots))
        for split, samples in asked.items()
    }
    answers = {place: found for place, found in answers.items() if found}
    answers, threshold = decided(answers, stage)
    for place, found in answers.items():
        predictions.write(folder.predictions(*place), found)
    gallery.save(folder.path, list(chain.from_iterable(asked.values())))
    results = [result_of(config, *place, found) for place, found in answers.items()]
    answered = {split for _, split, _ in answers} & set(tested(config, dataset))
    folder.update_summary(
        results=[*results, *averages.of_results(results, answered)],
        comparisons=[],
        scored={"file": stage.predictions, **counts, "threshold": threshold},
        **more(config.evaluate, answers, config.seed),
    )
    report.build(folder.path)
    print("\n".join(_said(counts, threshold)), flush=True)
    terminal.print_summary(folder.summary(), folder.path)


def sources(config: Config) -> Mapping[str, ReaderSettings]:
    """What the answers are about: the benchmarks, else `data`."""
    if config.benchmark:
        return {f"benchmark.{name}": found for name, found in config.benchmark.items()}
    return {f"data{key}": found for key, found in config.data.members().items()}


def roots(config: Config) -> list[str]:
    """The folders of the data sets."""
    found = (getattr(settings, "root", None) for settings in sources(config).values())
    return [root for root in found if root is not None]


def open_data(config: Config, folder: RunFolder) -> Dataset:
    """The benchmarks, else the splits of `data`, noted in the manifest."""
    required: set[Part] = set(config.evaluate.splits)
    if config.benchmark:
        required -= {"test"}
    with cache.Kept() as kept:
        found = mix.load(
            config.data, as_grid(config.grid), config.grid.mask_rule, config.seed,
            frozenset(required), config.benchmark, config.evaluate.limit,
            lambda *asked: mix.inspect(*asked, kept=kept),
        )  # fmt: skip
    folder.update_manifest(
        data={"name": found.name, "fingerprint": found.fingerprint,
              "fingerprints": dict(found.fingerprints), "counts": dict(found.counts)}
    )  # fmt: skip
    return found


# --- which picture a row is about ----------------------------------------------------------------


@dataclass(frozen=True)
class Matched:
    """Rows by the sample they are about; those that are about none, and samples without one."""

    answers: Mapping[str, Answer]  # by the sample's id
    extra: Sequence[Answer]
    missing: Sequence[Sample]


def match(
    rows: Sequence[Answer], splits: Mapping[str, Sequence[Sample]], roots: Iterable[str]
) -> Matched:
    """Which row is about which sample: by its id, or by its file.

    A path of a row fits a file if one ends with the other, the file seen from the root of its data
    set: never by the name of the file alone where others are called so. Raises DataError if a row
    fits several pictures, a picture has several rows, or a question is not the one of the data.
    """
    samples = list(chain.from_iterable(splits.values()))
    by_id = {sample.id: sample for sample in samples}
    files = _Files(samples, [Path(root) for root in roots])
    found: dict[str, Answer] = {}
    extra: list[Answer] = []
    asked: dict[Path, list[Answer]] = {}
    for row in rows:
        sample = by_id.get(row.picture)
        file = None if sample else files.find(row)
        here = [sample] if sample else files.samples.get(file, []) if file else []
        if not here:
            extra.append(row)
        elif file and here[0].question.options is not None:
            asked.setdefault(file, []).append(row)
        elif len(here) > 1:
            raise DataError(
                f"{row.where}: {row.picture} is the file of {len(here)} samples, such as "
                f"{here[0].id}. Name them by their ids."
            )
        else:
            _add(found, here[0], row)
    for file, of_file in asked.items():
        _questions(found, files.samples[file], of_file)
    return Matched(found, extra, [s for s in samples if s.id not in found])


class _Files:
    """The files of samples, to be found by what others call them."""

    def __init__(self, samples: Sequence[Sample], roots: Sequence[Path]) -> None:
        self.samples: dict[Path, list[Sample]] = {}
        for sample in samples:
            image = sample.image.file if isinstance(sample.image, Cut) else sample.image
            if isinstance(image, Path):
                self.samples.setdefault(image, []).append(sample)
        self.by_name: dict[str, list[tuple[Path, tuple[str, ...]]]] = {}
        for file in self.samples:
            root = next((root for root in roots if file.is_relative_to(root)), file.parent)
            below = file.relative_to(root).parts
            self.by_name.setdefault(file.name, []).append((file, below))

    def find(self, row: Answer) -> Path | None:
        parts = Path(os.path.normpath(row.picture.replace("\\", "/"))).parts
        named = self.by_name.get(parts[-1], []) if parts else []
        fits = [
            file
            for file, below in named
            if parts[-len(below) :] == below or file.parts[-len(parts) :] == parts
        ]
        if len(fits) > 1:
            raise DataError(
                f"{row.where}: {row.picture} may be {fits[0]} or {fits[1]}. Give paths from the "
                "root of the data set on."
            )
        return fits[0] if fits else None


def _add(found: dict[str, Answer], sample: Sample, row: Answer) -> None:
    if sample.id in found:
        raise DataError(
            f"{row.where} and {found[sample.id].where} are both about {sample.id}. Give every "
            "picture one row."
        )
    if row.defective is not None and sample.question.options is None:
        ours = sample.solution.answer == "Yes"
        if ours != row.defective:
            raise DataError(
                f"{row.where} says that {row.picture} is {'good' if ours else 'defective'}, the "
                f"data ({sample.where or sample.id}) that it is "
                f"{'defective' if ours else 'good'}. Give both the same version of the labels."
            )
    found[sample.id] = row


def _questions(found: dict[str, Answer], samples: Sequence[Sample], rows: Sequence[Answer]) -> None:
    """The rows about one picture of MMAD, in the order of its questions."""
    if len(rows) != len(samples):
        raise DataError(
            f"{rows[0].where}: {len(rows)} answers about {rows[0].picture}, which has "
            f"{len(samples)} questions. MMAD's scripts write all of a picture, or none."
        )
    for sample, row in zip(samples, rows, strict=True):
        options, asked = sample.question.options or {}, row.asked or {}
        kind = asked.get("type")
        if kind is not None and MERGED.get(kind, kind) != sample.question.subtask:
            raise DataError(
                f"{row.where} answers a question of {kind}, where the data ask one of "
                f"{sample.question.subtask} ({sample.where})."
            )
        shown = asked.get("options") or options
        right = shown.get(str(asked.get("right", sample.solution.answer)))
        if right is None or _plain(right) != _plain(options[sample.solution.answer]):
            raise DataError(
                f"{row.where}: the right answer is {right!r} there and "
                f"{options[sample.solution.answer]!r} in the data ({sample.where}). Give both the "
                "same version of MMAD."
            )
        said = row.text
        if asked.get("whole") and dict(shown) != dict(options):
            raise DataError(
                f"{row.where}: its options have other letters than those of the data "
                f"({sample.where}). Use the order and the seed of the run that has written it, "
                "e.g. benchmark.mmad.order=drawn."
            )
        if said is not None and said in shown:  # the options may have been put into another order
            letters = [k for k, text in options.items() if _plain(text) == _plain(shown[said])]
            said = letters[0] if len(letters) == 1 else said
        _add(found, sample, replace(row, text=said))


def _plain(text: str) -> str:
    return text.strip().rstrip(".").casefold()


def check(matched: Matched, stage: ScoreSettings) -> dict[str, int]:
    """How many rows and pictures found each other. DataError if some did not and that is not
    allowed, or nothing did."""
    counts = {"matched": len(matched.answers), "extra": len(matched.extra),
              "missing": len(matched.missing)}  # fmt: skip
    if not matched.answers:
        raise DataError(
            f"none of {len(matched.extra):,} rows of {stage.predictions} is about a picture of the "
            f"data, such as {matched.extra[0].picture}; the data have {matched.missing[0].id}."
        )
    if matched.extra and stage.extra == "refuse":
        names = ", ".join(row.picture for row in matched.extra[:SHOWN])
        raise DataError(
            f"{len(matched.extra):,} rows of {stage.predictions} are about no picture of the data, "
            f"such as {names}. Leave them out: stage.extra=left_out."
        )
    if matched.missing and stage.missing == "refuse":
        names = ", ".join(sample.id for sample in matched.missing[:SHOWN])
        raise DataError(
            f"{len(matched.missing):,} pictures have no row in {stage.predictions}, such as "
            f"{names}. Count them as unreadable (stage.missing=wrong), or leave them out "
            "(stage.missing=left_out)."
        )
    return counts


# --- grading -------------------------------------------------------------------------------------


def _graded(
    config: Config, split: str, samples: Sequence[Sample], matched: Matched, shots: int
) -> Iterable[Prediction]:
    grader, stage = open_grader(config), config.stage
    assert isinstance(stage, ScoreSettings)
    for sample in samples:
        row = matched.answers.get(sample.id)
        if row is None and stage.missing != "wrong":
            continue
        row = row or Answer("", sample.id, text="")
        stop = StopReason.LENGTH if row.stop == StopReason.LENGTH else StopReason.STOP
        said = Completion(row.text or "", (), (), stop)
        found = grade(grader, sample, said, split=split, shots=shots, p_yes=row.p_yes)
        yield replace(found, score=row.score, n_tokens=row.n_tokens)


def decided(
    answers: Mapping[thresholds.Place, Sequence[Prediction]], stage: ScoreSettings
) -> tuple[dict[thresholds.Place, list[Prediction]], dict[str, Any] | None]:
    """Where rows hold scores and no answers, the answers that a threshold gives, and what that is:
    the one of the settings, or one chosen by their rule on validation pictures; else an oracle.

    Raises DataError if some rows hold an answer and others a score alone.
    """
    rows = [row for found in answers.values() for row in found]
    silent = [row for row in rows if not row.completion and _score(row) is not None]
    if not silent:
        if stage.threshold is not None:
            raise DataError(
                f"threshold={stage.threshold:g} makes answers of scores, and the rows of "
                f"{stage.predictions} hold answers. Leave threshold out."
            )
        return {place: list(found) for place, found in answers.items()}, None
    if len(silent) < len(rows):
        raise DataError(
            f"{len(silent):,} of {len(rows):,} pictures have a score and no answer, the others no "
            "score or an answer too. Give all of them the same, and leave out pictures without a "
            "score (stage.missing=left_out)."
        )
    if not all(map(is_yes_no, rows)):
        raise DataError("a score says nothing of a question with options. Give answers.")
    chosen: dict[str, Any] = {"value": stage.threshold, "oracle": False, "chosen_on": "settings"}
    if stage.threshold is None:
        validation = [r for (_, s, _), f in answers.items() for r in f
                      if s.startswith(thresholds.VALIDATION)]  # fmt: skip
        limit = {"f1": None, "miss": stage.at_miss, "overkill": stage.at_overkill}[stage.rule]
        found = thresholds.choose(validation or rows, stage.rule, limit)
        chosen = {"value": found.value, "oracle": not validation, "rule": stage.rule,
                  "chosen_on": "validation" if validation else "the test pictures"}  # fmt: skip
    return {
        place: [_called(row, chosen["value"]) for row in found] for place, found in answers.items()
    }, chosen


def _score(row: Prediction) -> float | None:
    return row.score if row.p_yes is None else row.p_yes


def _called(row: Prediction, threshold: float) -> Prediction:
    score = _score(row)
    answer = INVALID if score is None else "yes" if score >= threshold else "no"
    # it was asked for neither a form nor a place nor a type
    return replace(
        row, answer=answer, status=str(Status.OK), location_correct=None, type_correct=None
    )


def _said(counts: Mapping[str, int], threshold: Mapping[str, Any] | None) -> Iterable[str]:
    yield (
        f"{counts['matched']:,} rows are about a picture of the data; {counts['extra']:,} about "
        f"none; {counts['missing']:,} pictures have no row"
    )
    if threshold is not None:
        oracle = ": an oracle, the best case and no promise" if threshold["oracle"] else ""
        yield (
            f"called defective from a score of {threshold['value']:.6g} on, chosen on "
            f"{threshold['chosen_on']}{oracle}"
        )
