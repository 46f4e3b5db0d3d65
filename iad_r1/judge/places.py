"""Where defects were said to be, against where they are, and what guessing would give.

Percentages run 0-100. A rate over all defective pictures counts a missed defect as not placed; one
over those that were called defective asks for the place alone (`_detected`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from iad_r1.boxes import iou
from iad_r1.grid import Grid, distance, parse_cells, words
from iad_r1.judge.intervals import wilson
from iad_r1.judge.rates import location_chance
from iad_r1.types import Marked, Prediction

Cells = frozenset[int]


def place_scores(predictions: Sequence[Prediction], grid: Grid) -> dict[str, Any] | None:
    """How well the defects whose place is annotated were placed; None where there are none.

    hit       the cells that are named are those of the solution (`location_correct`)
    touch     every cell that is named holds a part of the defect; None of older predictions
    distance  cells from the one that is named to the nearest true one, mean over the defects that
              were detected and placed; several named cells count with their mean
    unread    detected, but no cell is named
    chance    hit and touch of guessers that do not look (`rates.location_chance`)
    """
    rows = [row for row in predictions if row.location_correct is not None]
    if not rows:
        return None
    detected = [row.answer == "yes" for row in rows]
    named = [parse_cells(row.location or "", grid) or Cells() for row in rows]
    golds = [parse_cells(row.gold_location or "", grid) for row in rows]
    touched = [
        None if row.gold_cells is None else parse_cells(row.gold_cells, grid) for row in rows
    ]
    moves = [
        float(np.mean([min(distance(cell, other, grid) for other in gold) for cell in said]))
        for said, gold, found in zip(named, golds, detected, strict=True)
        if found and said and gold
    ]
    result: dict[str, Any] = {
        "n": len(rows),
        "n_detected": sum(detected),
        "unread": sum(found and not said for found, said in zip(detected, named, strict=True)),
        "distance": float(np.mean(moves)) if moves else None,
        "chance": {"hit": chance(golds, grid)},
        "ci95": {},
    }
    right = {"hit": [row.location_correct is True for row in rows]}
    if None not in touched:
        right["touch"] = [bool(said) and said <= (true or Cells())
                          for said, true in zip(named, touched, strict=True)]  # fmt: skip
        result["chance"]["touch"] = chance(touched, grid, several=True)
    for name, hits in right.items():
        found = sum(hit and saw for hit, saw in zip(hits, detected, strict=True))
        for key, n in ((name, len(rows)), (f"{name}_detected", sum(detected))):
            result[key] = 100 * found / n if n else None
            result["ci95"][key] = wilson(found, n)
    return result


def chance(golds: Sequence[Cells | None], grid: Grid, several: bool = False) -> dict[str, Any]:
    """What guessers of one cell score against these gold places. A guesser cannot name several
    cells, so that it is wrong where there are `several`, unless any of them counts as right.

    All cells of a grid are equally large: a random one is one in proportion to its area.
    """
    cells = [words(cell, grid) for cell in range(grid.cells)]
    accepted = [
        {words(cell, grid) for cell in gold or ()}
        if several or len(gold or ()) == 1
        else set[str]()
        for gold in golds
    ]
    center = cells[grid.cells // 2] if grid.rows % 2 and grid.cols % 2 else None
    return location_chance(accepted, cells, center)


def box_scores(predictions: Sequence[Prediction]) -> dict[str, Any] | None:
    """How well the defects that have a mask were marked in numbers; None where none were asked for.

    iou       mean intersection over union of the box around all that is named with the box around
              all that the mask marks
    hit_30, hit_50  share of them with at least 0.3 and 0.5
    pointed   share whose point, or else the middle of the box, lies on the mask (pointing game)
    pixel_f1  mean F1 of the pixels of all outlines, or else of all boxes, with the mask
    unread    called defective, but without a box, a point or an outline
    chance    iou of guessers that do not look: the whole picture, its middle (half of each side)

    Percentages. Nothing is named of a defect that is missed: it counts as 0, unless only those
    called defective are asked for (`_detected`).
    """
    rows = [
        row for row in predictions if row.marked is not None and row.marked.gold_box is not None
    ]
    if not rows:
        return None
    detected = [row.answer == "yes" for row in rows]
    found = [row.marked for row in rows if row.marked is not None]
    ious = [marked.iou or 0.0 for marked in found]
    values: dict[str, list[float]] = {
        "iou": ious,
        "hit_30": [float(value >= 0.3) for value in ious],
        "hit_50": [float(value >= 0.5) for value in ious],
        "pointed": [float(marked.pointed is True) for marked in found],
        "pixel_f1": [marked.pixel_f1 or 0.0 for marked in found],
    }
    nothing = [marked.point is None for marked in found]
    result: dict[str, Any] = {
        "n": len(rows),
        "n_detected": sum(detected),
        "unread": sum(saw and none for saw, none in zip(detected, nothing, strict=True)),
        "frames": sorted({marked.frame for marked in found}),
    }
    for name, of in values.items():
        seen = [value for value, saw in zip(of, detected, strict=True) if saw]
        result[name] = 100 * sum(seen) / len(rows)
        result[f"{name}_detected"] = 100 * float(np.mean(seen)) if seen else None
    guesses = {"whole": (0.0, 1.0), "middle": (0.25, 0.75)}
    result["chance"] = {
        name: 100 * float(np.mean([_guessed(marked, *share) for marked in found]))
        for name, share in guesses.items()
    }
    return result


def _guessed(marked: Marked, low: float, high: float) -> float:
    """IoU of the box between these shares of both sides."""
    left, top, right, bottom = marked.gold_box or (0, 0, 1, 1)
    width, height = marked.picture
    box = (low * width, low * height, high * width, high * height)
    return iou(box, (left, top, right, bottom))
