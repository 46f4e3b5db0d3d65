"""Where defects were said to be, against where they are, and what guessing would give.

Percentages run 0-100. A rate over all defective pictures counts a missed defect as not placed; one
over those that were called defective asks for the place alone (`_detected`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from iad_r1.grid import Grid, distance, parse_cells, words
from iad_r1.judge.intervals import wilson
from iad_r1.judge.rates import location_chance
from iad_r1.types import Prediction

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
