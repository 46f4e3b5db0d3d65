"""Boxes and outlines against the mask of a defect."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iad_r1 import schema
from iad_r1.boxes import Frame, Number, around, corners, iou, read_marks
from iad_r1.data.shapes import drawn
from iad_r1.types import Marked, Shapes

# Where the outermost corner of a mask is looked for, clockwise from the right: eight corners
_DIRECTIONS = ((1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1))


def outline(mask: NDArray[np.bool_] | None) -> tuple[int, ...] | None:
    """The outermost corners (x0, y0, ...) of all that a mask [H, W] marks, at most eight, in pixels
    whose corners are whole numbers; None where nothing is marked. It is convex, and the box around
    it that around the mask."""
    if mask is None or not mask.any():
        return None
    rows = np.flatnonzero(mask.any(1))
    left = mask[rows].argmax(1)
    right = mask.shape[1] - mask[rows, ::-1].argmax(1)
    x = np.concatenate((left, left, right, right))
    y = np.concatenate((rows, rows + 1, rows, rows + 1))
    farthest = [int(np.argmax(dx * x + dy * y)) for dx, dy in _DIRECTIONS]
    corners = dict.fromkeys((int(x[at]), int(y[at])) for at in farthest)
    return tuple(number for corner in corners for number in corner)


def marked(completion: str, frame: Frame, mask: NDArray[np.bool_] | None) -> Marked:
    """What a completion marks on a picture, and how it agrees with the mask [H, W] of the defect;
    None: there is none, or it is not known.

    Its location tag is read; of a text without any tag, all of it.
    """
    tagged = schema.TAG.search(completion) is not None
    said = schema.parse(completion).location or "" if tagged else completion
    found = frame.pixels(read_marks(said))
    box, point = found.box, None if found.point is None else _floats(found.point)
    boxes, outlines = tuple(map(_floats, found.boxes)), tuple(map(_floats, found.outlines))
    true = outline(mask)
    agreement: dict[str, Any] = dict.fromkeys(("gold_box", "iou", "pointed", "pixel_f1"))
    if mask is not None and true is not None:
        gold = around(true)
        agreement = {
            "gold_box": tuple(map(int, gold)),
            "iou": 0.0 if box is None else iou(box, gold),
            "pointed": point is not None and _holds(mask, point),
            "pixel_f1": pixel_f1(_drawn(outlines or boxes, frame.picture), mask),
        }
    return Marked(frame.name, frame.size, frame.picture, boxes, outlines, point, **agreement)


def pixel_f1(said: NDArray[np.bool_], true: NDArray[np.bool_]) -> float:
    """F1 of pixels: twice those that both mark, over those that each marks."""
    marks = int(said.sum()) + int(true.sum())
    return 2 * int((said & true).sum()) / marks if marks else 0.0


def _floats(numbers: Sequence[Number]) -> tuple[float, ...]:
    return tuple(map(float, numbers))


def _drawn(regions: Sequence[Sequence[float]], size: tuple[int, int]) -> NDArray[np.bool_]:
    """[H, W] What boxes or outlines mark on a picture of this size (width, height)."""
    outlines = tuple(corners(*one) if len(one) == 4 else tuple(one) for one in regions)
    if not outlines:
        return np.zeros((size[1], size[0]), np.bool_)
    return drawn(Shapes(outlines, size=size), size)


def _holds(mask: NDArray[np.bool_], point: Sequence[float]) -> bool:
    height, width = mask.shape
    return bool(mask[min(int(point[1]), height - 1), min(int(point[0]), width - 1)])
