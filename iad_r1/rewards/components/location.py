"""Location accuracy (Eq. 4): the cells named are the cells of the defect."""

from __future__ import annotations

from iad_r1.errors import DataError
from iad_r1.grid import location_score, parse_cells
from iad_r1.rewards.case import Case


def score(case: Case) -> float | None:
    """1.0 for the true cells, the grid's neighbour credit next to them, else 0.0.

    None (not applicable, pays nothing) for a normal image and where the true place is unknown,
    as for a photograph without a mask. Raises DataError if the true place is not on this grid.
    """
    true = case.solution.location
    if true is None:
        return None
    if parse_cells(true, case.grid) is None:
        raise DataError(
            f"the solution's location {true!r} names no cell of a {case.grid} grid. "
            "Choose the grid the data set was annotated with, e.g. grid=3x3."
        )
    said = case.parsed.location
    if said is None:
        return 0.0
    return location_score(said, true, case.grid, neighbour_credit=case.neighbour_credit)


vars(score)["places"] = ("words",)  # checked by `load`, before a completion is scored
