"""Place as a box: how far the box that is named and that of the defect overlap."""

from __future__ import annotations

from iad_r1.boxes import iou, read_marks
from iad_r1.errors import DataError
from iad_r1.rewards.case import Case


def score(case: Case) -> float | None:
    """0.0 to 1.0: intersection over union of the box around all that is named in the location tag
    with the box of the solution, both in the coordinates that the model writes.

    None (not applicable, pays nothing) for a normal image and where the true place is unknown.
    Naming several boxes does not help: the box around them counts. Raises DataError if the true
    place is no box.
    """
    if case.solution.location is None:
        return None
    true = read_marks(case.solution.location).box
    if true is None:
        raise DataError(
            f"the solution's location {case.solution.location!r} is no box. Use "
            "location_format=box, or a reward set for places in words."
        )
    said = read_marks(case.parsed.location or "").box
    return 0.0 if said is None else iou(said, true)


vars(score)["places"] = ("box", "box+mask")  # checked by `load`, before a completion is scored
