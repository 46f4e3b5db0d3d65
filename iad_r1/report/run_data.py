"""A run folder read back: everything the report is made of, checked once."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iad_r1.errors import DataError
from iad_r1.grid import Grid
from iad_r1.judge.outcomes import is_yes_no
from iad_r1.judge.predictions import read_predictions
from iad_r1.report import gallery, several, wording
from iad_r1.report.several import Member
from iad_r1.types import Prediction

_FILE = re.compile(r"(?P<stage>[^.]+)\.(?P<split>.+)\.(?P<shots>\d+)shot\.jsonl")
UNFINISHED = ("failed", "stopped", "refused")  # manifest.json says how a run ended


@dataclass(frozen=True)
class Evaluation:
    """The answers of one set of weights to one split, at one number of reference images."""

    stage: str
    split: str
    shots: int
    predictions: tuple[Prediction, ...]

    @property
    def group(self) -> tuple[str, int]:
        """What stages are compared within: the same images, asked the same way."""
        return self.split, self.shots


@dataclass(frozen=True)
class RunData:
    """One run folder. `missing` says in plain sentences what it does not hold.

    Where `members` were put together, their labels stand for stages, and `config` holds the
    sections that they share.
    """

    folder: Path
    config: Mapping[str, Any]
    manifest: Mapping[str, Any]
    summary: Mapping[str, Any]
    steps: tuple[Mapping[str, Any], ...]  # metrics.jsonl; the last line of a repeated step counts
    evaluations: tuple[Evaluation, ...]  # by split and shots, then in the order of training
    baselines: Mapping[str, Evaluation]  # by split, of nearest good patches beside a model
    pictures: tuple[Mapping[str, Any], ...]  # gallery.jsonl, those whose file exists, and `heat`
    missing: tuple[str, ...] = field(default=())
    members: tuple[Member, ...] = field(default=())  # several runs, by their labels

    @property
    def seed(self) -> int:
        """The run's seed, which also seeds the resampling of its intervals."""
        return int(self.config.get("seed", 0))

    @property
    def grid(self) -> Grid | None:
        """The grid that places are named on; None if the configuration has none."""
        section = self.config.get("grid") or {}
        return Grid(section["rows"], section["cols"]) if {"rows", "cols"} <= set(section) else None

    @property
    def benchmarks(self) -> list[str]:
        """The splits of benchmarks that are averaged: a multiple choice only with others."""
        if not self.config.get("benchmark"):
            return []
        tests = {e.split: e for e in self.evaluations if not wording.is_validation(e.split)}
        verdicts = [split for split, e in tests.items() if is_yes_no(e.predictions[0])]
        return verdicts or list(tests)

    @property
    def stages(self) -> list[str]:
        """All that has answered, in the order of training; of several runs as they were named,
        whichever of them judged the first split."""
        found = dict.fromkeys(item.stage for item in self.evaluations)
        labels = [member.label for member in self.members]
        return sorted(found, key=lambda stage: _stage_order(stage, labels))

    def before(self, item: Evaluation) -> Evaluation | None:
        """What an evaluation is compared with: the same of the stage of training before it, or of
        the first of several runs. None where that is itself, or did not judge this split."""
        group = self.groups()[item.group]
        if self.members:
            at = self.members[0].label
            return next((o for o in group if o.stage == at and item.stage != at), None)
        trained = [other for other in group if other.stage in wording.STAGES]
        place = trained.index(item) if item in trained else 0
        return trained[place - 1] if place else None

    def groups(self) -> dict[tuple[str, int], list[Evaluation]]:
        """Evaluations by (split, shots), each in the order of training."""
        found: dict[tuple[str, int], list[Evaluation]] = {}
        for evaluation in self.evaluations:
            found.setdefault(evaluation.group, []).append(evaluation)
        return found


def load(folder: Path) -> RunData:
    """Read a run folder. Raises DataError naming the file and line that cannot be read."""
    if not (folder / "config.json").is_file():
        raise DataError(
            f"{folder} is not a run folder: it holds no config.json. "
            "Give one as init=outputs/<name>/<timestamp>."
        )
    members = several.read(folder)
    labels = [member.label for member in members]
    found = sorted(_evaluations(folder), key=lambda item: _order(item, labels))
    models = [item for item in found if item.stage != wording.PATCHCORE]
    evaluations = models or found
    logged = steps(folder / "metrics.jsonl")
    if not evaluations and not logged:
        raise DataError(
            f"{folder} holds neither predictions/*.jsonl nor metrics.jsonl: there is nothing to "
            "report. Train or evaluate first, e.g. python run.py stage=evaluate init=<run folder>."
        )
    rows = gallery.read(folder)
    pictures = [
        {**row, "heat": gallery.heat_of(folder, row)}
        for row in rows
        if (folder / row["image"]).is_file()
    ]
    manifest = _json(folder / "manifest.json")
    trained = bool(logged) or bool(members)  # models that were only evaluated have no curves
    known = bool(manifest) or bool(members)  # each of them has its own
    missing = _missing(bool(evaluations), trained, known, manifest, len(rows), len(pictures))
    return RunData(
        folder=folder,
        config=several.shared(members) if members else _json(folder / "config.json"),
        manifest=manifest,
        summary=_json(folder / "summary.json"),
        steps=tuple(logged),
        evaluations=tuple(evaluations),
        baselines={i.split: i for i in found if models and i.stage == wording.PATCHCORE},
        pictures=tuple(pictures),
        missing=tuple(missing),
        members=members,
    )


def _missing(
    evaluated: bool,
    trained: bool,
    known: bool,
    manifest: Mapping[str, Any],
    listed: int,
    found: int,
) -> Iterator[str]:
    if manifest.get("status") in UNFINISHED:
        yield f"This run did not finish ({manifest['status']}): the report shows what it left."
    if not evaluated:
        yield "No predictions are stored here: this run was not evaluated."
    if not trained:
        yield "metrics.jsonl is missing or empty: there are no training curves."
    if not known:
        yield "manifest.json is missing: code version and hardware are not recorded."
    if not listed:
        yield "gallery.jsonl is missing: there are no pictures to show."
    if found < listed:
        yield f"{listed - found} of {listed} pictures named in gallery.jsonl are gone."


def _order(evaluation: Evaluation, labels: Sequence[str]) -> tuple[Any, ...]:
    # "seen" before "new": the easier claim first, as in every table of the project.
    known = [*wording.SPLIT_NAMES, *(wording.VALIDATION + name for name in wording.SPLIT_NAMES)]
    place = known.index(evaluation.split) if evaluation.split in known else len(known)
    stage = _stage_order(evaluation.stage, labels)
    return place, evaluation.split, evaluation.shots, *stage


def _stage_order(stage: str, labels: Sequence[str]) -> tuple[int, str]:
    return labels.index(stage) if stage in labels else wording.stage_order(stage), stage


def _evaluations(folder: Path) -> Iterator[Evaluation]:
    for path in sorted((folder / "predictions").glob("*.jsonl")):
        match = _FILE.fullmatch(path.name)
        if match is None:
            raise DataError(
                f"{path} is not named <stage>.<split>.<shots>shot.jsonl. Rename or remove it."
            )
        rows = tuple(read_predictions(path).values())
        if rows:
            yield Evaluation(match["stage"], match["split"], int(match["shots"]), rows)


def steps(path: Path) -> list[Mapping[str, Any]]:
    """Lines of metrics.jsonl in order; a step that a resumed run took again counts once."""
    latest: dict[tuple[str | None, str, int], Mapping[str, Any]] = {}
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: not JSON ({error}).") from error
        if not isinstance(row, Mapping) or not {"stage", "step"} <= set(row):
            raise DataError(f"{path}, line {number}: has no stage and step.")
        latest[row.get("run"), row["stage"], row["step"]] = row
    return sorted(
        latest.values(), key=lambda line: (wording.stage_order(line["stage"]), line["step"])
    )


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}).") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds a {type(content).__name__}, not an object.")
    return content
