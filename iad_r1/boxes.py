"""Places as boxes, points and outlines: how models write them, and in which coordinates.

A box is (left, top, right, bottom) and an outline (x0, y0, x1, y1, ...), in pixels whose corners
are whole numbers. Nothing here raises on any text, and reading takes time linear in its length.

What is written for a defect (`location_format`) is the JSON of Qwen's grounding:

    box        {"bbox_2d": [x0, y0, x1, y1]}
    box+mask   {"bbox_2d": [x0, y0, x1, y1], "polygon_2d": [x0, y0, x1, y1, ...]}
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, TypeVar

from iad_r1.grid import Grid

LocationFormat = Literal["words", "box", "box+mask"]
FrameName = Literal["thousandths", "shown"]
Number = int | float | Fraction
Side = TypeVar("Side", int, float)
Box = tuple[Number, Number, Number, Number]
Numbers = tuple[Number, ...]


@dataclass(frozen=True)
class Marks:
    """What a text marks, in reading order: boxes, points and outlines."""

    boxes: tuple[Box, ...] = ()
    points: tuple[tuple[Number, Number], ...] = ()
    outlines: tuple[Numbers, ...] = ()

    @property
    def box(self) -> Box | None:
        """The box around all boxes; of a text that has none, around its outlines."""
        corners = self.boxes or tuple(map(around, self.outlines))
        return around([side for corner in corners for side in corner]) if corners else None

    @property
    def point(self) -> tuple[Number, Number] | None:
        """The one place that it points at: its first point, else the middle of its box."""
        if self.points or self.box is None:
            return self.points[0] if self.points else None
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2


def around(outline: Sequence[Number]) -> Box:
    """The box around an outline."""
    return min(outline[::2]), min(outline[1::2]), max(outline[::2]), max(outline[1::2])


def corners(left: Side, top: Side, right: Side, bottom: Side) -> tuple[Side, ...]:
    """The outline of a box, clockwise from the left top."""
    return left, top, right, top, right, bottom, left, bottom


def iou(one: Box, other: Box) -> float:
    """Intersection over union of two boxes."""
    left, top = max(one[0], other[0]), max(one[1], other[1])
    right, bottom = min(one[2], other[2]), min(one[3], other[3])
    shared = max(right - left, 0) * max(bottom - top, 0)
    return float(shared / (_area(one) + _area(other) - shared))


def _area(box: Box) -> Number:
    return (box[2] - box[0]) * (box[3] - box[1])


# --- coordinates -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frame:
    """The coordinates that a model writes of a picture, and those of the picture itself.

    name     thousandths: 0 to 1000 of its width and height; shown: pixels of the picture in the
             size that the processor makes of it
    size     width and height of the picture in them
    picture  the same in pixels of the picture
    """

    name: FrameName
    size: tuple[int, int]
    picture: tuple[int, int]

    def box(self, box: Sequence[int]) -> tuple[int, ...]:
        """A box of the picture as a model writes it, rounded outwards: it keeps all that it holds,
        and an area."""
        scaled = self._scaled(box, self.picture, self.size)
        return tuple(int(v // 1) if i < 2 else int(-(-v // 1)) for i, v in enumerate(scaled))

    def outline(self, outline: Sequence[int]) -> tuple[int, ...]:
        """Corners of an outline as a model writes them, each to the nearest number."""
        return tuple(map(round, self._scaled(outline, self.picture, self.size)))

    def pixels(self, marks: Marks) -> Marks:
        """What a model has written, in pixels of the picture, exactly; what lies beyond the picture
        is cut off, and a box without an area is none."""
        turned = [[self._back(one) for one in kind] for kind in (marks.boxes, marks.outlines)]
        boxes = tuple((b[0], b[1], b[2], b[3]) for b in turned[0])
        points = tuple((p[0], p[1]) for p in map(self._back, marks.points))
        return Marks(tuple(filter(_has_area, boxes)), points, tuple(turned[1]))

    def _back(self, numbers: Sequence[Number]) -> Numbers:
        scaled = self._scaled(numbers, self.size, self.picture)
        return tuple(max(Fraction(), min(v, self.picture[i % 2])) for i, v in enumerate(scaled))

    @staticmethod
    def _scaled(
        numbers: Sequence[Number], of: tuple[int, int], to: tuple[int, int]
    ) -> list[Fraction]:
        return [Fraction(v) * to[i % 2] / of[i % 2] for i, v in enumerate(numbers)]


def _has_area(box: Box) -> bool:
    return box[0] < box[2] and box[1] < box[3]


# --- reading -----------------------------------------------------------------------------------

_KEYED = r'(?:"(bbox_2d|point_2d|polygon_2d)"\s*:\s*)?'
_LIST = re.compile(_KEYED + r"\[([\d\s.,+-]*)\]|\(([\d\s.,+-]*)\)\s*,\s*\(([\d\s.,+-]*)\)")
_NUMBER = re.compile(r"\s*([+-]?\d{1,6}(?:\.\d{1,6})?)\s*")


def read_marks(text: str) -> Marks:
    """What a text marks, in the coordinates that it is written in.

    Read are Qwen2.5-VL's `"bbox_2d": [x0, y0, x1, y1]` and `"point_2d": [x, y]`, `"polygon_2d":
    [x0, y0, ...]`, four numbers in brackets as AnomalyR1 and InternVL write a box, and Qwen2-VL's
    `(x0,y0),(x1,y1)`. A box without an area is none, and neither is a list of other lengths.
    """
    boxes: list[Box] = []
    points: list[tuple[Number, Number]] = []
    outlines: list[Numbers] = []
    for key, listed, first, second in _LIST.findall(text):
        numbers = _numbers(listed or f"{first},{second}")
        match (key or "bbox_2d", numbers):
            case ("bbox_2d", [left, top, right, bottom]) if left < right and top < bottom:
                boxes.append((left, top, right, bottom))
            case ("point_2d", [x, y]):
                points.append((x, y))
            case ("polygon_2d", [_, _, _, _, _, _, *_]) if len(numbers) % 2 == 0:
                outlines.append(tuple(numbers))
    return Marks(tuple(boxes), tuple(points), tuple(outlines))


def _numbers(listed: str) -> list[Fraction]:
    """Numbers between commas; none at all where something else stands there."""
    found = [_NUMBER.fullmatch(part) for part in listed.split(",")]
    return [Fraction(match[1]) for match in found if match] if all(found) else []


# --- writing -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where a picture is defective, for who writes no words.

    outline  the outermost corners of its mask, in pixels; None: not annotated
    """

    format: LocationFormat
    frame: Frame
    outline: tuple[int, ...] | None

    @property
    def text(self) -> str | None:
        """As it is written; None where it is not annotated."""
        return None if self.outline is None else self._written(self.outline)

    def of_cell(self, cell: int, grid: Grid) -> str:
        """A cell of a grid as it would be written."""
        (row, col), (width, height) = divmod(cell, grid.cols), self.frame.picture
        left, right = (width * c // grid.cols for c in (col, col + 1))
        top, bottom = (height * r // grid.rows for r in (row, row + 1))
        return self._written(corners(left, top, right, bottom))

    def _written(self, outline: tuple[int, ...]) -> str:
        left, top, right, bottom = map(int, around(outline))
        said = {"bbox_2d": self.frame.box((left, top, right, bottom))}
        if self.format == "box+mask":
            said["polygon_2d"] = self.frame.outline(outline)
        return json.dumps(said)


def longest_place(format: LocationFormat) -> Place:
    """A place whose text is as long as any: eight corners of four digits."""
    size = (9999, 9999)
    return Place(format, Frame("shown", size, size), (9998, 9998, *[9999] * 14))
