"""MMAD's table: accuracy by set and subtask, right, and as the released script counts.

Here every question counts, and one whose answer cannot be read is wrong (`strict`) or, beside that,
left out (`lenient`). A picture is defective if the right answer to its question of anomaly
detection is "Yes". A set has the mean of its subtasks, the whole the mean of its sets.

The released script (`caculate_accuracy_mmad`) reads answers loosely (`mmad_compat`) and has faults
that `released` keeps: an answer that is no letter A to E is taken out of the list that is gone
through, so that the next question is skipped as well and neither is counted; a picture is good if
its path holds "good"; a subtask without a question is 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iad_r1.judge.intervals import Interval, percentiles
from iad_r1.schema import INVALID
from iad_r1.types import Prediction

DETECTION = "Anomaly Detection"
SUBTASKS = (
    DETECTION,
    "Defect Classification",
    "Defect Localization",
    "Defect Description",
    "Defect Analysis",
    "Object Classification",
    "Object Analysis",
)
NORMAL, ANOMALOUS = f"{DETECTION}, normal", f"{DETECTION}, anomalous"
# the halves of anomaly detection are averaged, so each is a column
COLUMNS = (NORMAL, ANOMALOUS, *SUBTASKS[1:])
AVERAGE = "Average"  # of the sets, as MMAD's own tables call it
RELEASED_LETTERS = frozenset("ABCDE")

Place = tuple[str, str, int]  # stage, split, shots
Rates = Mapping[str, float | None]  # percent by subtask


def of_answers(answers: Mapping[Place, Sequence[Prediction]], seed: int) -> list[dict[str, Any]]:
    """A table for every stage and number of shots that has answered questions of MMAD."""
    asked: dict[tuple[str, int], list[Prediction]] = {}
    for (stage, _, shots), rows in answers.items():
        asked.setdefault((stage, shots), []).extend(r for r in rows if r.subtask in SUBTASKS)
    return [
        {"stage": stage, "shots": shots, **table(rows, seed)}
        for (stage, shots), rows in asked.items()
        if rows
    ]


def table(rows: Sequence[Prediction], seed: int, resamples: int = 1000) -> dict[str, Any]:
    """{choices, sets: {set: {n, invalid, cells, strict, lenient}}, average, strict, lenient,
    released, ci95, intervals}.

    `cells` counts {n, right, invalid} by column; `strict` and `lenient` of a set are percentages
    by subtask, with their "average". `choices` says what has answered: "logprob", the likeliest
    letter, or "text". `ci95` is of the strict average, over pictures: questions
    about one picture are drawn together; `intervals` are the same of every set and subtask, and of
    the means over sets under AVERAGE. `released` is {sets, average} as the script gives them.
    """
    sets = list(dict.fromkeys(row.dataset for row in rows))
    found: dict[str, Any] = {}
    for name in sets:
        cells = _cells(row for row in rows if row.dataset == name)
        found[name] = {
            "n": sum(cell["n"] for cell in cells.values()),
            "invalid": sum(cell["invalid"] for cell in cells.values()),
            "cells": cells,
            **{
                kind: _rates({key: _share(cell, kind) for key, cell in cells.items()})
                for kind in ("strict", "lenient")
            },
        }
    intervals = _intervals(rows, sets, seed, resamples)
    return {
        "choices": "text" if all(row.letters is None for row in rows) else "logprob",
        "sets": found,
        "average": {
            name: _mean([found[s]["strict"].get(name) for s in sets])
            for name in (*SUBTASKS, "average")
        },
        **{
            kind: _mean([found[name][kind]["average"] for name in sets])
            for kind in ("strict", "lenient")
        },
        "released": released(rows),
        "ci95": intervals.get(AVERAGE, {}).get("average"),
        "intervals": intervals,
    }


def image_of(row: Prediction) -> str:
    """The path of the picture that a question is about, as mmad.json has it."""
    return row.id.removeprefix("mmad/").rpartition("#")[0]


def _column(row: Prediction) -> str:
    if row.subtask != DETECTION:
        return row.subtask
    return ANOMALOUS if says_defective(row.gold_option) else NORMAL


def says_defective(option: str | None) -> bool:
    """Whether the right option of a question of anomaly detection says that there is a defect."""
    return (option or "").strip(" .").casefold() == "yes"


def _cells(rows: Iterable[Prediction]) -> dict[str, dict[str, int]]:
    cells: dict[str, dict[str, int]] = {}
    for row in rows:
        cell = cells.setdefault(_column(row), {"n": 0, "right": 0, "invalid": 0})
        cell["n"] += 1
        cell["right"] += row.answer == row.gold_answer
        cell["invalid"] += row.answer == INVALID
    return {column: cells[column] for column in COLUMNS if column in cells}


def _share(cell: Mapping[str, int], kind: str) -> float | None:
    n = cell["n"] - (cell["invalid"] if kind == "lenient" else 0)
    return 100 * cell["right"] / n if n else None


def _rates(columns: Rates) -> dict[str, float | None]:
    """By subtask: the halves of anomaly detection averaged; and the mean of what is defined."""
    rates = {name: columns[name] for name in SUBTASKS[1:] if name in columns}
    halves = [columns[name] for name in (NORMAL, ANOMALOUS) if name in columns]
    if halves:
        rates = {DETECTION: _mean(halves) if len(halves) == 2 else None, **rates}
    return {**rates, "average": _mean(list(rates.values()))}


def _mean(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


def _intervals(
    rows: Sequence[Prediction], sets: Sequence[str], seed: int, resamples: int
) -> dict[str, dict[str, Interval | None]]:
    """Of the strict rates, by set and subtask, and of their means under AVERAGE: pictures are drawn
    within each set, with all their questions."""
    rng = np.random.default_rng(seed)
    drawn_rates: dict[str, NDArray[np.float64]] = {}  # [resamples, subtasks and their mean]
    for name in sets:
        here = [row for row in rows if row.dataset == name]
        images = {image: i for i, image in enumerate(dict.fromkeys(map(image_of, here)))}
        counts = np.zeros((2, len(images), len(COLUMNS)))  # right, asked
        for row in here:
            place = images[image_of(row)], COLUMNS.index(_column(row))
            counts[0][place] += row.answer == row.gold_answer
            counts[1][place] += 1
        drawn = rng.multinomial(len(images), np.full(len(images), 1 / len(images)), resamples)
        right, asked = (drawn @ part for part in counts)  # [resamples, columns]
        with np.errstate(invalid="ignore"):
            rates = right / asked
        detection = rates[:, :2].mean(axis=1, keepdims=True)  # undefined unless both halves are
        both = np.concatenate([detection, rates[:, 2:]], axis=1)
        drawn_rates[name] = np.concatenate([both, _mean_of_known(both, 1)[:, None]], axis=1)
    found = {name: _bounds(rates) for name, rates in drawn_rates.items()}
    known = [rates for rates in drawn_rates.values() if not np.isnan(rates).all()]
    if known:
        whole = np.stack(known)  # [sets, resamples, ...]
        means = _mean_of_known(whole[..., :-1], 0)
        found[AVERAGE] = _bounds(np.concatenate([means, whole[..., -1:].mean(axis=0)], axis=1))
    return found


def _mean_of_known(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """The mean of what is no NaN; NaN where nothing is."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):  # a draw of few pictures may leave nothing
        return np.where(known, values, 0).sum(axis=axis) / known.sum(axis=axis)


def _bounds(rates: NDArray[np.float64]) -> dict[str, Interval | None]:
    """Of the columns of [resamples, subtasks and their mean], in percent."""
    columns = zip((*SUBTASKS, "average"), rates.T, strict=True)
    known = ((name, column[~np.isnan(column)]) for name, column in columns)
    return {name: percentiles(100 * column) if column.size else None for name, column in known}


def released(rows: Sequence[Prediction]) -> dict[str, Any]:
    """{sets: {set: percentages by subtask, with "average"}, average}, as the released script counts
    the answers in this order."""
    found: dict[str, dict[str, float]] = {}
    for name, shares in released_shares(rows).items():
        rates = {task: shares[task] for task in SUBTASKS if task in shares}
        found[name] = {**rates, "average": float(np.mean(list(rates.values())))}
    whole = float(np.mean([row["average"] for row in found.values()])) if found else None
    return {"sets": found, "average": whole}


def released_shares(rows: Sequence[Prediction]) -> dict[str, dict[str, float]]:
    """By set, what the released script makes of the answers in this order: percentages by subtask,
    and of anomaly detection "Recall", "Precision", "F1", "Overkill" and "Miss"."""
    counts = _released_counts(rows)
    asked = {row.subtask for row in rows}
    found: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(row.dataset for row in rows):
        rates = {task: _percent(*counts[name, task]) for task in SUBTASKS[1:] if task in asked}
        if DETECTION in asked:
            (kept, good), (caught, bad) = counts[name, NORMAL], counts[name, ANOMALOUS]
            normal, recall = _percent(kept, good), _percent(caught, bad)
            precision = _percent(caught, caught + good - kept)
            both = recall + precision
            rates |= {
                DETECTION: (normal + recall) / 2,
                "Recall": recall,
                "Precision": precision,
                "F1": 2 * recall * precision / both if both else 0.0,
                "Overkill": 100 - normal,
                "Miss": 100 - recall,
            }
        found[name] = rates
    return found


def _percent(right: int, asked: int) -> float:
    return 100 * right / asked if asked else 0.0


def _released_counts(rows: Sequence[Prediction]) -> dict[tuple[str, str], list[int]]:
    """[right, asked] by set and column."""
    sets = dict.fromkeys(row.dataset for row in rows)
    counts = {(name, column): [0, 0] for name in sets for column in COLUMNS}
    skipped = False
    for row in rows:
        if skipped:  # it has moved to the place of the one that was taken out
            skipped = False
            continue
        said = row.released_answer or INVALID
        if row.gold_answer not in RELEASED_LETTERS or said not in RELEASED_LETTERS:
            skipped = True
            continue
        column = row.subtask
        if column == DETECTION:
            column = NORMAL if "good" in image_of(row) else ANOMALOUS
        counts[row.dataset, column][0] += row.gold_answer == said
        counts[row.dataset, column][1] += 1
    return counts
