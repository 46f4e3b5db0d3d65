"""The report's numbers, as plain rows. Pure: predictions in, dictionaries out."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from iad_r1.grid import Grid, parse_cells, words
from iad_r1.judge import averages
from iad_r1.judge.compare import paired_difference
from iad_r1.judge.outcomes import is_yes_no
from iad_r1.judge.places import box_scores, chance, place_scores
from iad_r1.judge.rates import METRICS, macro, per_product, summarise
from iad_r1.judge.scores import calibration, roc
from iad_r1.judge.thresholds import Rule, operating_points
from iad_r1.report import wording
from iad_r1.report.run_data import Evaluation, RunData
from iad_r1.types import Prediction

COMPARED = (
    "balanced_accuracy",
    "miss_rate",
    "overkill_rate",
    "location_accuracy",
    "type_accuracy",
    "well_formed",
)
COLLAPSED = (5.0, 95.0)  # percent answered "yes" below or above which a model has stopped judging
TOLERANCE = 1e-6  # percent by which summary.json may differ from what the predictions give
MANY_TYPES = 14  # columns of the type table; rarer answers are put together

Row = dict[str, Any]


def summaries(run: RunData) -> list[Row]:
    """One row per evaluation: stage, split, shots and everything `summarise` gives."""
    return [
        {
            "stage": item.stage,
            "split": item.split,
            "shots": item.shots,
            **summarise(item.predictions, run.seed),
        }
        for item in run.evaluations
    ]


def disagreements(rows: Sequence[Row], summary: Mapping[str, Any]) -> list[str]:
    """Where `summary.json` and the stored predictions do not say the same."""
    stored = {(r["stage"], r["split"], r["shots"]): r for r in summary.get("results") or []}
    found = []
    for row in rows:
        other = stored.get((row["stage"], row["split"], row["shots"]))
        for name in wording.headline(row):
            here, there = row[name], None if other is None else other.get(name)
            if other is None or here is there is None:
                continue
            if here is None or there is None or abs(here - there) > TOLERANCE:
                found.append(
                    f"{wording.METRIC_NAMES[name]} of {row['stage']} on {row['split']}, "
                    f"{row['shots']}-shot: summary.json says {there}, the predictions give {here}."
                )
    return found


# ----------------------------------------------------------------------- before and after


@dataclass(frozen=True)
class Pair:
    """Two evaluations on the images that both have judged."""

    before: Evaluation
    after: Evaluation

    @property
    def place(self) -> Row:
        split, shots = self.after.group
        return {"from": self.before.stage, "to": self.after.stage, "split": split, "shots": shots}


def pairs(run: RunData) -> Iterator[tuple[Evaluation, Evaluation]]:
    """What is compared: each stage of training with the one before it, or each of several runs with
    the first of them."""
    for group in run.groups().values():
        for after in group:
            if (before := run.before(after)) is not None:
                yield before, after


def common(before: Evaluation, after: Evaluation) -> Pair:
    """Both, without the images that the other has not judged."""
    ids = [{row.id for row in side.predictions} for side in (before, after)]
    if ids[0] == ids[1]:
        return Pair(before, after)
    both = ids[0] & ids[1]
    kept = (
        replace(side, predictions=tuple(row for row in side.predictions if row.id in both))
        for side in (before, after)
    )
    return Pair(*kept)


def unlike(run: RunData) -> Iterator[str]:
    """Where two that are compared did not judge the same images, in words, and what is compared
    with nothing because the first of several runs did not judge it."""
    first = [member.label for member in run.members[:1]]
    for (split, shots), group in run.groups().items():
        if first and len(group) > 1 and group[0].stage not in first:
            yield (
                f"{split}, {shots}-shot: {first[0]} did not judge it, so the other runs are not "
                "compared there."
            )
    for item in main_evaluations(run):
        patches = run.baselines.get(item.split)
        if patches is not None and not _same_images(patches, item):
            counts = [len(side.predictions) for side in (patches, item)]
            yield (
                f"{item.split}, {item.shots}-shot: nearest good patches and "
                f"{wording.model_name(item.stage)} judged different images ({counts[0]:,} and "
                f"{counts[1]:,}), so they are not compared."
            )
    for before, after in pairs(run):
        n = len(common(before, after).after.predictions)
        counts = len(before.predictions), len(after.predictions)
        if (n, n) != counts:
            names = [wording.model_name(side.stage) for side in (before, after)]
            said = f"compared on the {n:,} that both judged" if n else "so they are not compared"
            yield (
                f"{after.split}, {after.shots}-shot: {names[0]} and {names[1]} judged different "
                f"images ({counts[0]:,} and {counts[1]:,}); {said}."
            )


def comparisons(run: RunData) -> list[Row]:
    """Paired differences on the same images of all that is compared (`pairs`), for every metric of
    COMPARED. Places on different grids are not compared.

    Last the means over several benchmarks. Rows: {from, to, split, shots, metric, delta, ci95, n,
    n_changed, verdict}.
    """
    found = []
    for pair in itertools.starmap(common, pairs(run)):
        if pair.after.predictions:
            rows = compared(pair.before.predictions, pair.after.predictions, run.seed)
            found += [{**pair.place, **row} for row in rows]
    if run.members and run.grid is None:
        found = [row for row in found if row["metric"] != "location_accuracy"]
    means = averages.of_comparisons(found, run.benchmarks)
    return [*found, *({**row, "verdict": verdict(row["metric"], row)} for row in means)]


def reference_gain(run: RunData) -> list[Row]:
    """What reference pictures change for the last stage, or each run: k-shot against 0-shot, same
    images."""
    last = last_evaluations(run)
    zero = {(item.stage, item.split): item for item in last if item.shots == 0}
    found = []
    for item in last:
        if item.shots > 0 and (item.stage, item.split) in zero:
            place = {"from": "0-shot", "to": f"{item.shots}-shot", "split": item.split}
            place["stage"] = item.stage
            pair = common(zero[item.stage, item.split], item)
            rows = compared(pair.before.predictions, pair.after.predictions, run.seed)
            shown = {*wording.HEADLINE, *(row["metric"] for row in rows[:1])}  # the first leads
            found += [{**place, **row} for row in rows if row["metric"] in shown]
    return found


def compared(before: Sequence[Prediction], after: Sequence[Prediction], seed: int) -> list[Row]:
    """Paired differences of the same images, for every metric that is defined on them."""
    rows = []
    for metric in COMPARED if all(map(is_yes_no, before)) else wording.HEADLINE_OF_CHOICES:
        result = paired_difference(before, after, metric, seed)
        if result["delta"] is not None:
            rows.append({"metric": metric, **result, "verdict": verdict(metric, result)})
    return rows


def verdict(metric: str, result: Mapping[str, Any]) -> str:
    """ "better", "worse" or "not clear": whether the interval leaves out zero, and which way."""
    if not wording.clear(result):
        return "not clear"
    rises = result["delta"] > 0
    return "better" if rises == METRICS[metric].higher_is_better else "worse"


def against_patches(run: RunData) -> list[Row]:
    """The last stage beside nearest good patches on the same images: {split, shots, n, patches,
    model, change}; the first two are what `summarise` gives, `change` is the model's paired
    difference in balanced accuracy (overkill where all images are good, miss where none is)."""
    found = []
    for item in main_evaluations(run):
        patches = run.baselines.get(item.split)
        if patches is None or not _same_images(patches, item):
            continue  # `unlike` says so
        rows = [summarise(side.predictions, run.seed) for side in (patches, item)]
        place = {"from": patches.stage, "to": item.stage, "split": item.split, "shots": item.shots}
        metric = wording.headline(rows[0])[0]
        paired = paired_difference(patches.predictions, item.predictions, metric, run.seed)
        change = {**place, "metric": metric, **paired, "verdict": verdict(metric, paired)}
        found.append({**place, "patches": rows[0], "model": rows[1], "change": change})
    return found


def _same_images(one: Evaluation, other: Evaluation) -> bool:
    return {row.id for row in one.predictions} == {row.id for row in other.predictions}


def last_stage(run: RunData) -> str | None:
    """The most trained weights that were evaluated."""
    return max(run.stages, key=wording.stage_order, default=None)


def last_evaluations(run: RunData) -> list[Evaluation]:
    """The evaluations of the last stage, or of all of several runs; all splits and shots."""
    if run.members:
        return list(run.evaluations)
    return [item for item in run.evaluations if item.stage == last_stage(run)]


def main_evaluations(run: RunData) -> list[Evaluation]:
    """The last stage's evaluation of each split with the fewest reference pictures; of several
    runs, that of each."""
    chosen: dict[tuple[str, str], Evaluation] = {}
    for item in sorted(last_evaluations(run), key=lambda item: item.shots):
        chosen.setdefault((item.stage, item.split), item)
    return [item for item in last_evaluations(run) if chosen[item.stage, item.split] is item]


# ------------------------------------------------------------------------------- products


def products(run: RunData, evaluation: Evaluation) -> Row:
    """Rows per product, the worst first, with the change since the stage before; of several runs,
    over the first."""
    table = per_product(evaluation.predictions, run.seed)
    earlier = run.before(evaluation)
    rows = [
        {"product": name, **row, "change": _product_change(name, earlier, evaluation, run.seed)}
        for name, row in table.items()
    ]
    # of one kind of parts, accuracy is what balanced accuracy would be
    rows.sort(
        key=lambda row: (
            row["balanced_accuracy"] is None,
            row["accuracy"] if row["balanced_accuracy"] is None else row["balanced_accuracy"],
        )
    )
    return {
        "stage": evaluation.stage,
        "split": evaluation.split,
        "shots": evaluation.shots,
        "rows": rows,
        "before": earlier.stage if earlier else None,
        "macro": macro(table),
    }


def _product_change(
    product: str, before: Evaluation | None, after: Evaluation, seed: int
) -> Row | None:
    if before is None:
        return None
    pair = common(before, after)
    sides = [
        [p for p in side.predictions if p.product == product] for side in (pair.before, pair.after)
    ]
    return paired_difference(sides[0], sides[1], "balanced_accuracy", seed)


# --------------------------------------------------------------------------------- places


def places(evaluation: Evaluation, grid: Grid) -> Row | None:
    """Gold against named cells: counts, hits and what guessing would give. None without places.

    `confusion` is gold cell x named cell; a defect that was missed, or whose place could not be
    read or covers several cells, is counted in `missed` and `unplaced` instead.
    """
    rows = [p for p in evaluation.predictions if p.location_correct is not None]
    golds = [parse_cells(p.gold_location or "", grid) for p in rows]
    if not rows or not any(golds):
        return None
    n, hits = grid.cells, [0] * grid.cells
    said = np.zeros((n, n + 2), dtype=int)  # gold cell x named cell, none or several, missed
    for row, gold in zip(rows, golds, strict=True):
        if gold is None or len(gold) != 1:
            continue
        (cell,) = gold
        if row.answer != "yes":
            said[cell, n + 1] += 1
            continue
        named = parse_cells(row.location or "", grid) or ()
        said[cell, next(iter(named)) if len(named) == 1 else n] += 1
        hits[cell] += row.location_correct is True
    totals = said.sum(axis=1).tolist()
    return {
        "stage": evaluation.stage,
        "split": evaluation.split,
        "shots": evaluation.shots,
        "names": [words(cell, grid) for cell in range(n)],
        "gold": totals,
        "named": said[:, :n].sum(axis=0).tolist(),
        "hit_rate": [100 * hits[i] / totals[i] if totals[i] else None for i in range(n)],
        "confusion": said[:, :n].tolist(),
        "missed": said[:, n + 1].tolist(),
        "unplaced": said[:, n].tolist(),
        "several": sum(gold is not None and len(gold) > 1 for gold in golds),
        "chance": chance(golds, grid),
        "scores": place_scores(evaluation.predictions, grid),
    }


def boxes(evaluation: Evaluation) -> Row | None:
    """How the boxes and outlines of an evaluation agree with the masks; None where none were asked
    for."""
    found = box_scores(evaluation.predictions)
    place = {"stage": evaluation.stage, "split": evaluation.split, "shots": evaluation.shots}
    return None if found is None else {**place, **found}


def uniform_chance(run: RunData) -> float | None:
    """What a random cell scores, over all annotated defects of the run's evaluations."""
    if run.grid is None:
        return None
    golds = [
        parse_cells(p.gold_location or "", run.grid)
        for item in run.evaluations
        for p in item.predictions
        if p.location_correct is not None
    ]
    return chance(golds, run.grid)["uniform"]


# ------------------------------------------------------------------------------ reasoning


def reasoning(run: RunData) -> list[Row]:
    """How answers follow from their reasoning, of every evaluation that has some, as `summary.json`
    counts it: {stage, split, shots, and what `reasoning_scores` gives}."""
    counted = {
        (row["stage"], row["split"], row["shots"]): row.get("reasoning")
        for row in run.summary.get("results") or []
    }
    places = [(item.stage, item.split, item.shots) for item in run.evaluations]
    return [
        {"stage": place[0], "split": place[1], "shots": place[2], **found}
        for place in places
        if (found := counted.get(place))
    ]


# ---------------------------------------------------------------------------------- types


def types(evaluation: Evaluation) -> Row | None:
    """Gold type x named type, the most frequent names first. None without annotated types."""
    rows = [p for p in evaluation.predictions if p.type_correct is not None]
    if not rows:
        return None
    pairs = Counter((row.gold_type or "", _said_type(row)) for row in rows)
    totals = Counter(row.gold_type or "" for row in rows)
    right = Counter(r.gold_type or "" for r in rows if r.type_correct is True and r.answer == "yes")
    golds = sorted(totals)
    named = [name for name, _ in Counter(_said_type(row) for row in rows).most_common()]
    columns = sorted(named, key=lambda name: golds.index(name) if name in golds else len(golds))
    shown, rest = columns[:MANY_TYPES], columns[MANY_TYPES:]
    lines = [
        {
            "gold": gold,
            "counts": [pairs[gold, name] for name in shown],
            "rest": sum(pairs[gold, name] for name in rest),
            "right": right[gold],
            "n": totals[gold],
        }
        for gold in golds
    ]
    place = {"stage": evaluation.stage, "split": evaluation.split, "shots": evaluation.shots}
    return {**place, "columns": shown, "rest": len(rest), "rows": lines}


def _said_type(row: Prediction) -> str:
    if row.answer != "yes":
        return "(missed)"
    return (row.type or "").strip().lower() or "(none)"


# --------------------------------------------------------------------------------- scores


def scores(run: RunData, rows: Sequence[Row]) -> list[Row]:
    """The rows of the fewest shots with ROC and calibration, which is None where the scores are no
    probabilities; empty when no answer has a score."""
    found = []
    for item, row in zip(run.evaluations, rows, strict=True):
        fewest = min(other.shots for other in run.evaluations if other.split == item.split)
        curve = roc(item.predictions) if item.shots == fewest else None
        if curve is not None:
            found.append({**row, "roc": curve, "calibration": calibration(item.predictions)})
    return found


def thresholds(run: RunData) -> list[Row]:
    """What thresholds of the score cost, of the last stage or of each of several runs by its own
    limits: where each was chosen is in the row."""
    last = last_evaluations(run)
    asked = [(member.config, member.label) for member in run.members]
    found = []
    for config, label in asked or [(run.config, last_stage(run))]:
        limits: dict[Rule, float | None] = {
            "miss": (config.get("evaluate") or {}).get("at_miss"),
            "overkill": (config.get("evaluate") or {}).get("at_overkill"),
        }
        answers = {(i.stage, i.split, i.shots): i.predictions for i in last if i.stage == label}
        found += operating_points(answers, limits, run.seed)
    return found
