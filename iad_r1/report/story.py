"""What was found, in sentences, and how sure it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from iad_r1.judge import averages
from iad_r1.judge.compare import paired_difference
from iad_r1.judge.rates import METRICS
from iad_r1.report import tables, wording
from iad_r1.report.run_data import Evaluation, RunData

Row = Mapping[str, Any]
TILES = {
    "balanced_accuracy": "balanced accuracy",
    "miss_rate": "defective parts missed",
    "overkill_rate": "good parts rejected",
    "location_accuracy": "defects found and placed",
}
LEADING = ("balanced_accuracy", "location_accuracy")
_PERCENT = wording.PERCENT
GUESSING = 50.0  # balanced accuracy of one answer for all pictures, in percent


def verdict(rows: Sequence[Row]) -> str:
    """The whole in one sentence, of rows of the same weights: how often they err on each split, and
    whether that is better than guessing."""
    name = wording.model_name(rows[0]["stage"])
    parts = [f"on {wording.split_name(row['split'])} {_errors(row)}" for row in rows]
    return f"{name[:1].upper()}{name[1:]}: {'; '.join(parts)}."


def ranking(run: RunData, rows: Sequence[Row]) -> str | None:
    """The whole of several runs in one sentence: which is best on each split, and whether its
    difference to the next one is clear."""
    parts = []
    for split, shots in dict.fromkeys((row["split"], row["shots"]) for row in rows):
        here = [row for row in rows if (row["split"], row["shots"]) == (split, shots)]
        metric = wording.headline(here[0])[0]
        sign = -1 if METRICS[metric].higher_is_better else 1
        defined = [row for row in here if row[metric] is not None]
        if len(defined) > 1:
            best, other = sorted(defined, key=lambda row: sign * row[metric])[:2]
            if best[metric] == other[metric]:
                parts.append(
                    f"on {wording.split_name(split)} {best['stage']} and {other['stage']} have the "
                    f"same {wording.METRIC_NAMES[metric]}, {best[metric]:.1f}{_PERCENT}"
                )
                continue
            sides = [f"{row['stage']} {row[metric]:.1f}{_PERCENT}" for row in (best, other)]
            parts.append(
                f"on {wording.split_name(split)} the best {wording.METRIC_NAMES[metric]} is that "
                f"of {sides[0]}, next is {sides[1]}{_told_apart(run, best, other, metric)}"
            )
    return f"{len(run.members)} runs: {'; '.join(parts)}." if parts else None


def _told_apart(run: RunData, best: Row, other: Row, metric: str) -> str:
    """Whether the same images tell two runs apart, of one split or of the mean over several."""
    groups, changes = run.groups(), []
    for split in best.get("of", [best["split"]]):
        found = {item.stage: item for item in groups[split, best["shots"]]}
        pair = tables.common(found[other["stage"]], found[best["stage"]])
        if not pair.after.predictions:
            return ", of other images"
        sides = pair.before.predictions, pair.after.predictions
        change = {**pair.place, "metric": metric, **paired_difference(*sides, metric, run.seed)}
        changes.append({**change, "judged": len(sides[0])})
    n = sum(change["judged"] for change in changes)
    (change,) = averages.of_comparisons(changes, best.get("of", [])) or changes
    if n < max(best["n"], other["n"]):
        said = tables.verdict(metric, change)
        ahead = "not clearly better" if said == "not clear" else said
        return f"; they judged different images, and on the {n:,} of both it is {ahead}"
    return ", and that is clear" if wording.clear(change) else ", which may be chance"


def warnings(
    rows: Sequence[Row], changes: Sequence[Row], main: Sequence[Evaluation]
) -> Iterator[str]:
    """What to know of several runs: how each differs from the first, and which hardly look at the
    picture. `rows` may hold means over benchmarks."""
    few = {(item.split, item.shots) for item in main}
    few |= {(row["split"], row["shots"]) for row in rows if "of" in row}
    for row in wording.leading(changes, rows):
        if (row["split"], row["shots"]) in few:
            yield wording.differs(row)
    for row in rows:
        for said in _collapse(row):
            yield f"{row['stage']}, {row['split']}, {row['shots']}-shot: {said}"


def _errors(row: Row) -> str:
    if row["invalid_rate"] == 100:
        return "no answer can be read"
    if row["balanced_accuracy"] is not None:
        missed, rejected = (f"{row[name]:.1f}{_PERCENT}" for name in ("miss_rate", "overkill_rate"))
        return (
            f"{missed} of the defective parts are missed and {rejected} of the good ones rejected "
            f"(balanced accuracy {_bounded(row, 'balanced_accuracy')}), {_beside_guessing(row)}"
        )
    if row["gold_yes_rate"] is None:
        return f"{_bounded(row, 'accuracy')} of the questions are answered rightly"
    if row["gold_yes_rate"] == 0:
        return f"{_bounded(row, 'overkill_rate')} of the good parts are rejected"
    return f"{_bounded(row, 'miss_rate')} of the defective parts are missed"


def _bounded(row: Row, metric: str) -> str:
    bounds = row["ci95"].get(metric)
    said = f", 95{_PERCENT} interval {wording.span(bounds)}" if bounds else ""
    return f"{row[metric]:.1f}{_PERCENT}{said}"


def _beside_guessing(row: Row) -> str:
    low, high = row["ci95"].get("balanced_accuracy") or (GUESSING, GUESSING)
    if low <= GUESSING <= high:
        return "which cannot be told from guessing"
    return f"{'better' if low > GUESSING else 'worse'} than guessing"


def findings(
    run: RunData, rows: Sequence[Row], changes: Sequence[Row], against: Sequence[Row] = ()
) -> Iterator[Row]:
    """What an inspection engineer wants to know first, per split: {title, tiles, sentences}."""
    for item in tables.main_evaluations(run):
        row = next(r for r in rows if _place(r) == (item.stage, item.split, item.shots))
        last = [c for c in changes if (c["to"], c["split"], c["shots"]) == _place(row)]
        title = wording.split_name(item.split)
        yield {
            "title": f"{title[:1].upper()}{title[1:]}",
            "detail": f"{item.shots}-shot, {row['n']:,} images",
            "tiles": list(_tiles(run, item, rows)),
            "sentences": [
                *_undefined(row),
                *_location(run, item, row),
                *_collapse(row),
                *(change_sentence(c) for c in last if c["metric"] in LEADING),
                *(change_sentence(a["change"]) for a in against if a["split"] == item.split),
            ],
        }


def _place(row: Row) -> tuple[str, str, int]:
    return row["stage"], row["split"], row["shots"]


def _tiles(run: RunData, item: Evaluation, rows: Sequence[Row]) -> Iterator[Row]:
    """The numbers to read first, each with the stage before where there is one."""
    before = run.before(item)
    stages = [before.stage, item.stage] if before else [item.stage]
    found = [next(r for r in rows if _place(r) == (stage, *item.group)) for stage in stages]
    for metric, label in TILES.items():
        if found[-1][metric] is not None:
            yield {
                "label": label,
                "value": found[-1][metric],
                "bounds": found[-1]["ci95"].get(metric),
                "before": found[0][metric] if len(found) == 2 else None,
                "stage": wording.stage_name(stages[-1]),
                "earlier": wording.stage_name(stages[0]),
            }


def _undefined(row: Row) -> Iterator[str]:
    if row["balanced_accuracy"] is None and row["gold_yes_rate"] is not None:
        only = "normal" if row["n_anomalous"] == 0 else "defective"
        yield f"Only {only} parts were tested, so balanced accuracy is undefined."


def _location(run: RunData, item: Evaluation, row: Row) -> Iterator[str]:
    found = tables.places(item, run.grid) if run.grid is not None else None
    if found is not None and row["location_accuracy"] is not None:
        yield (
            f"The place is known for {row['n_located']:,} of its defects. Naming a cell at random "
            f"would be right for {found['chance']['uniform']:.1f}{_PERCENT} of them, always naming "
            f"{found['chance']['best_cell']} for {found['chance']['best_constant']:.1f}{_PERCENT}."
        )


def _collapse(row: Row) -> Iterator[str]:
    low, high = tables.COLLAPSED
    said, gold = row["yes_rate"], row["gold_yes_rate"]
    if said is not None and (said < low <= gold or said > high >= gold):
        yield (
            f"Warning: it answers yes to {said:.1f}{_PERCENT} of these images, while "
            f"{gold:.1f}{_PERCENT} are defective. It hardly looks at the picture."
        )


def change_sentence(row: Row) -> str:
    """One paired difference in words; says so when the interval includes zero."""
    start = (
        f"{wording.model_name(row['to'])} changes {wording.METRIC_NAMES[row['metric']]} by "
        f"{wording.points(row['delta'])} points over {wording.model_name(row['from'])} "
        f"(95{_PERCENT} interval {wording.span(row['ci95'])})"
    )
    if row["n_changed"] == 0:
        return f"{start}: no image is judged differently."
    if not wording.clear(row):
        return f"{start}. The interval includes zero: these images cannot tell it from no change."
    return f"{start}: {row['verdict']}."
