"""The report in sentences: what was found, how sure it is, and what it does not show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from iad_r1.report import tables, wording
from iad_r1.report.run_data import Evaluation, RunData

Row = Mapping[str, Any]


def findings(run: RunData, rows: Sequence[Row], changes: Sequence[Row]) -> Iterator[str]:
    """What an inspection engineer wants to know first, one sentence or two per item."""
    for item in tables.main_evaluations(run):
        row = next(r for r in rows if _place(r) == (item.stage, item.split, item.shots))
        yield _verdicts(row)
        yield from _location(run, item, row)
        yield from _collapse(row)
        yield from _last_change(changes, item)


def _place(row: Row) -> tuple[str, str, int]:
    return row["stage"], row["split"], row["shots"]


def _verdicts(row: Row) -> str:
    where = f"{_capital(wording.split_name(row['split']))} ({row['shots']}-shot, n = {row['n']:,})"
    stage = wording.stage_name(row["stage"])
    if row["balanced_accuracy"] is None:
        only = "normal" if row["n_anomalous"] == 0 else "defective"
        return f"{where}: only {only} parts were tested {stage}, so balanced accuracy is undefined."
    bounds = row["ci95"]["balanced_accuracy"]
    return (
        f"{where}: {stage}, the model misses {row['miss_rate']:.1f} of 100 defective parts and "
        f"wrongly rejects {row['overkill_rate']:.1f} of 100 good ones. Balanced accuracy is "
        f"{row['balanced_accuracy']:.1f} % (95 % interval {_range(bounds)}; 50 % is guessing)."
    )


def _location(run: RunData, item: Evaluation, row: Row) -> Iterator[str]:
    if row["location_accuracy"] is None or run.grid is None:
        return
    found = tables.places(item, run.grid)
    guess = (
        f" Guessing a cell at random gives {found['chance']['uniform']:.1f} %, and always naming "
        f"{found['chance']['best_cell']} {found['chance']['best_constant']:.1f} %."
        if found
        else ""
    )
    yield (
        f"It finds the defect and names its place for {row['location_accuracy']:.1f} % of the "
        f"{row['n_located']:,} defects whose place is known "
        f"(95 % interval {_range(row['ci95']['location_accuracy'])}).{guess}"
    )


def _collapse(row: Row) -> Iterator[str]:
    low, high = tables.COLLAPSED
    if row["yes_rate"] is not None and not low <= row["yes_rate"] <= high:
        yield (
            f"Warning: it answers yes to {row['yes_rate']:.1f} % of these images, while "
            f"{row['gold_yes_rate']:.1f} % are defective. It hardly looks at the picture."
        )


def _last_change(changes: Sequence[Row], item: Evaluation) -> Iterator[str]:
    for metric in ("balanced_accuracy", "location_accuracy"):
        for row in changes:
            place = (row["to"], row["split"], row["shots"], row["metric"])
            if place == (item.stage, item.split, item.shots, metric):
                yield change_sentence(row)


def change_sentence(row: Row) -> str:
    """One paired difference in words; says so when the interval includes zero."""
    start = (
        f"From {wording.stage_name(row['from'])} to {wording.stage_name(row['to'])}, "
        f"{wording.METRIC_NAMES[row['metric']]} changes by {wording.points(row['delta'])} points "
        f"(95 % interval {_range(row['ci95'])}, same {row['n']:,} images)"
    )
    if row["n_changed"] == 0:
        return f"{start}: no image is judged differently."
    if not wording.clear(row):
        return f"{start}. The interval includes zero: these images cannot tell it from no change."
    return f"{start}: {row['verdict']}."


def _range(bounds: Sequence[float]) -> str:
    return " to ".join(wording.signless(bound) for bound in bounds)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def caveats(run: RunData) -> Iterator[str]:
    """What the numbers do and do not show. Applies to every report."""
    yield (
        "Intervals cover which images happened to be tested. They do not cover how training would "
        "turn out with another seed: this is one run with seed "
        f"{run.config.get('seed', 'unknown')}. Repeat it with other seeds before believing a "
        "small difference."
    )
    yield (
        "Many differences are shown. Even if training changed nothing, about 1 interval in 20 "
        "would leave out zero."
    )
    yield (
        "An answer that cannot be read counts as wrong. Location and type are judged on defective "
        "images only, and a missed defect counts as wrong there too."
    )
    yield from _data_caveats(run)
    for item in tables.main_evaluations(run):
        if len({p.product for p in item.predictions}) < 5:
            yield (
                f"{_capital(wording.split_name(item.split))} holds only "
                f"{len({p.product for p in item.predictions})} products: nothing follows for "
                "products that were not tested."
            )


def _data_caveats(run: RunData) -> Iterator[str]:
    data = (run.config.get("data") or {}).get("name")
    backbone = run.config.get("backbone") or {}
    if data == "synthetic":
        yield (
            "The images are drawn by a program, with half of them defective. The numbers compare "
            "training methods; they say nothing about real parts."
        )
    if backbone.get("source") == "built":
        yield (
            "The model is tiny and built for this project, its vision tower pre-trained on drawn "
            "defects. Published models differ in size, in what they know and in how they fail."
        )
    if (run.config.get("evaluate") or {}).get("limit"):
        yield (
            f"Only the first {run.config['evaluate']['limit']:,} images of each split were tested "
            "(evaluate.limit)."
        )
    if "validation" in ((run.config.get("evaluate") or {}).get("splits") or []):
        yield "Validation images were tested. Choices made on them make their numbers look better."
