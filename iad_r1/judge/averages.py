"""The unweighted mean over the benchmarks of a run, as the papers average balanced accuracy.

Each benchmark counts once, however many images it has. They hold different images, so that their
errors are independent: the interval of the mean follows from theirs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from iad_r1.judge.intervals import newcombe
from iad_r1.judge.rates import METRICS
from iad_r1.judge.scores import CALIBRATED, RANKED

AVERAGED = (*METRICS, *RANKED, *CALIBRATED, "gold_yes_rate")

Row = Mapping[str, Any]


def of_results(rows: Sequence[Row], splits: Collection[str]) -> list[dict[str, Any]]:
    """For each stage and number of shots, the mean over the rows of `splits`; none of a single one.

    A row is what `summarise` gives, with its stage, split and shots. A metric that one of the
    splits does not define is None. `of` lists the splits.
    """
    return [
        {
            **place,
            "dataset": "average",
            "of": [row["split"] for row in found],
            "n": sum(row["n"] for row in found),
            **{name: _mean([row[name] for row in found]) for name in AVERAGED},
            "ci95": {
                name: newcombe([row[name] for row in found], [row["ci95"][name] for row in found])
                for name in AVERAGED
                if all(row[name] is not None and name in row["ci95"] for row in found)
            },
        }
        for place, found in _grouped(rows, splits, ("stage", "shots"))
    ]


def of_comparisons(rows: Sequence[Row], splits: Collection[str]) -> list[dict[str, Any]]:
    """The same of paired differences, for each pair of stages, number of shots and metric."""
    return [
        {
            **place,
            "delta": _mean([row["delta"] for row in found]),
            "ci95": newcombe([row["delta"] for row in found], [row["ci95"] for row in found])
            if all(row["delta"] is not None for row in found)
            else None,
            "n": sum(row["n"] for row in found),
            "n_changed": sum(row["n_changed"] for row in found),
        }
        for place, found in _grouped(rows, splits, ("from", "to", "shots", "metric"))
    ]


def _grouped(
    rows: Sequence[Row], splits: Collection[str], names: Sequence[str]
) -> list[tuple[dict[str, Any], list[Row]]]:
    """The rows of `splits` that agree in `names`, with what they agree in and the mean's split; no
    mean over a part of the splits."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row["split"] in splits:
            groups.setdefault(tuple(row[name] for name in names), []).append(row)
    there: dict[int, set[str]] = {}  # by number of shots: some benchmarks have no references
    for row in chain.from_iterable(groups.values()):
        there.setdefault(row["shots"], set()).add(row["split"])
    return [
        ({**dict(zip(names, values, strict=True)), "split": f"average of {len(found)}"}, found)
        for values, found in groups.items()
        if len(found) == len(there[found[0]["shots"]]) > 1
    ]


def _mean(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if len(defined) == len(values) else None
