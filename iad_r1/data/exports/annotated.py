"""From what an export says of its pictures to samples: the rules that all formats share.

A category is a type of defect, unless it is named as good parts are. A picture in which no defect
is marked is good. Several defects are one mask, and the largest that says a type gives it. The
product is the first folder of the picture's path that says one, else the export's own folder.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iad_r1.data import faults, folders
from iad_r1.data.exports.tree import Tree, splits
from iad_r1.errors import DataError
from iad_r1.types import Mask, Sample, Shapes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BEYOND = 0.01  # of the picture's side, by which a shape may leave it: what rounding does
BEYOND_PIXELS = 2.0
CORNERS = 64  # of the polygon that stands for a circle or an ellipse
# folders that tools make, which are named after no product
TOOLS = frozenset(
    ("annotations", "data", "dataset", "datasets", "default", "frames", "images", "image", "img",
     "imgs", "jpegimages", "obj train data", "photos", "pictures", "upload")
)  # fmt: skip


@dataclass(frozen=True)
class Mark:
    """One thing that is marked in a picture: its category, and where it is. One without a place
    says something of the whole picture."""

    kind: str
    where: str
    outlines: tuple[tuple[float, ...], ...] = ()  # as of `Shapes`
    runs: tuple[bytes, ...] = ()

    @property
    def placed(self) -> bool:
        """Whether it says where it is."""
        return bool(self.outlines or self.runs)

    def area(self) -> float:
        """What it covers, in the units of its numbers."""
        total = sum(map(_area, self.outlines))
        if self.runs:
            from iad_r1.data import shapes  # numpy: not before there is something to count

            total += sum(map(shapes.area, self.runs))
        return float(total)


@dataclass(frozen=True)
class Annotated:
    """What an export says of one picture.

    `size` is its (width, height); None where places are shares of it. `split` is "" where the
    export says none. `mask` is a file that marks the defects better than the marks do. `listed` is
    where the picture lies in its data set, where that is no file below the root, and `product` what
    it shows, where the export says it. `overruled` is another split, after which its file is named.
    """

    image: Path
    marks: Sequence[Mark]
    size: tuple[int, int] | None
    split: str
    where: str
    mask: Path | None = None
    listed: Path | None = None
    product: str = ""
    overruled: str = ""

    @property
    def place(self) -> Path:
        """The path that says something of it."""
        return self.listed or self.image


@dataclass(frozen=True)
class Reading:
    """The samples of an export, and what there is to say of them. The split of a sample is "" where
    nothing says one."""

    samples: Sequence[Sample]
    said: str


def reading(tree: Tree, dataset: str, source: str, found: Sequence[Annotated]) -> Reading:
    """The samples of all pictures that an export knows, and of those it does not know that lie in
    a folder named as good parts are; by path. Raises DataError."""
    listed = {picture.image for picture in found}
    listed |= {picture.mask for picture in found if picture.mask}
    unknown = [path for path in tree.pictures if path not in listed]
    good = [p for p in unknown if folders.is_good(p.parent.name)]
    found = [*found, *(Annotated(path, (), None, "", str(path)) for path in good)]
    kinds = {folders.words(m.kind).lower() for picture in found for m in picture.marks}
    product = cache(lambda folder: _product(tree, folder, kinds))
    samples: list[Sample] = []
    for picture in found:
        with faults.of_one():
            shown = picture.product or product(picture.place.parent)
            samples.append(_sample(tree, dataset, shown, picture))
    without = sum(not picture.marks for picture in found)
    said = [f"{source}: {len(found)} pictures"]
    if without:
        said.append(f"{without} of them without an annotation, which are good")
    if inside := [picture for picture in found if picture.listed]:
        said.append(f"{len(inside)} of them unpacked to {inside[0].image.parents[1]}")
    if overruled := [picture for picture in found if picture.overruled]:
        said.append(
            f"{len(overruled)} of them in the split that their row says, and not in "
            f"{overruled[0].overruled}, after which their table is named"
        )
    if left := len(unknown) - len(good):
        said.append(f"{left} left out that it does not know")
    return Reading(sorted(samples, key=lambda sample: sample.id), ", ".join(said))


def _sample(tree: Tree, dataset: str, product: str, picture: Annotated) -> Sample:
    defects = [mark for mark in picture.marks if not folders.is_good(mark.kind)]
    said_good = [m for m in picture.marks if folders.is_good(m.kind) and not m.placed]
    if defects and said_good:
        raise DataError(
            f"{said_good[0].where} says {said_good[0].kind!r}, but {defects[0].where} marks "
            f"{defects[0].kind!r}. Correct one of them."
        )
    named = [mark for mark in defects if folders.kind_of(mark.kind).lower() not in folders.UNTYPED]
    largest = max(named or defects, key=Mark.area, default=None)
    kind = folders.kind_of(largest.kind) if largest else ""
    where = largest.where if largest else picture.where
    return Sample(
        id=f"{dataset}/{folders.relative(picture.place, tree.root)}",
        dataset=dataset,
        split=_split(tree, picture),
        product=product,
        image=picture.image,
        solution=folders.solution(where, bool(defects), kind),
        mask=_mask(picture, defects),
        where=picture.where,
    )


def _mask(picture: Annotated, defects: Sequence[Mark]) -> Mask | Shapes | None:
    outlines = [(outline, mark.where) for mark in defects for outline in mark.outlines]
    faults.every(lambda of: _check_inside(of[0], picture.size, of[1]), outlines)
    if picture.mask:
        return Mask((picture.mask,))
    if not any(mark.placed for mark in defects):
        return None
    return Shapes(
        tuple(outline for mark in defects for outline in mark.outlines),
        tuple(runs for mark in defects for runs in mark.runs),
        picture.size,
    )


def _check_inside(outline: Sequence[float], size: tuple[int, int] | None, where: str) -> None:
    for axis, side in enumerate(size or (1, 1)):
        over = max(BEYOND * side, BEYOND_PIXELS if size else 0)
        for value in outline[axis::2]:
            if not -over <= value <= side + over:
                sides = "shares between 0 and 1" if size is None else f"{size[0]}x{size[1]} pixels"
                raise DataError(
                    f"{where}: {'xy'[axis]}={value:g} lies outside of the picture ({sides}). "
                    "Correct it, or annotate that picture anew."
                )


def _split(tree: Tree, picture: Annotated) -> str:
    shown = tree.splits_in(picture.place.parent)
    found = {picture.split} - {""} | shown
    if len(found) > 1:
        raise DataError(
            f"{picture.where}: it says {picture.split or 'nothing'} of its split, but its picture "
            f"{picture.place} lies in a folder for {' and '.join(sorted(shown))}. Correct one of "
            "them."
        )
    return next(iter(found), "")


def _product(tree: Tree, folder: Path, kinds: set[str]) -> str:
    for part in tree.relative(folder).parts:
        name = folders.words(part).lower()
        said = name in TOOLS or name in kinds or name in folders.DEFECTIVE
        if not (said or splits(Path(part)) or folders.is_good(part)):
            return folders.words(part)
    return tree.name


def only_split(said: Iterable[str], where: str) -> str:
    """The split that a file says, "" for none. Raises DataError for two."""
    found = sorted(set(said))
    if found[1:]:
        raise DataError(f"{where} is named after two splits, {' and '.join(found)}. Rename it.")
    return found[0] if found else ""


# --- shapes --------------------------------------------------------------------------------------


def box(x: float, y: float, width: float, height: float, where: str) -> tuple[float, ...]:
    """The outline of a box by its top left corner. Raises DataError for one without an area."""
    if not (width > 0 and height > 0):
        raise DataError(f"{where}: a box of {width:g} x {height:g} covers nothing. Correct it.")
    return (x, y, x + width, y, x + width, y + height, x, y + height)


def polygon(values: Sequence[float], where: str) -> tuple[float, ...]:
    """The outline of a polygon x0, y0, x1, y1, ... Raises DataError for less than three points."""
    if len(values) < 6 or len(values) % 2:
        raise DataError(
            f"{where}: a polygon of {len(values) / 2:g} points has no inside. Correct it, or "
            "delete it."
        )
    return tuple(values)


def line(values: Sequence[float], where: str) -> tuple[float, ...]:
    """The outline of a line x0, y0, x1, y1, ... or a point: the pixels that it touches. Raises
    DataError for half a point."""
    if not values or len(values) % 2:
        raise DataError(f"{where}: a line of {len(values) / 2:g} points is none. Delete it.")
    points = list(zip(values[::2], values[1::2], strict=True))
    there_and_back = [*points, *points[-2::-1], points[0], points[0]]
    return tuple(value for point in there_and_back for value in point)


def ellipse(
    x: float, y: float, across: float, down: float, degrees: float = 0.0
) -> tuple[float, ...]:
    """The outline of an ellipse by its centre and radii."""
    steps = (2 * math.pi * corner / CORNERS for corner in range(CORNERS))
    found = (v for step in steps for v in (x + across * math.cos(step), y + down * math.sin(step)))
    return turned(tuple(found), degrees, x, y)


def turned(outline: tuple[float, ...], degrees: float, x: float, y: float) -> tuple[float, ...]:
    """An outline turned clockwise about a point."""
    if not degrees:
        return outline
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return tuple(_turned(outline, cos, sin, x, y))


def region(
    pixels: NDArray[np.bool_], left: int, top: int, size: tuple[int, int], where: str
) -> bytes:
    """The run lengths of pixels [h, w] in a picture, the first of them at `left` and `top`. Raises
    DataError where they do not fit."""
    from iad_r1.data import shapes

    height, width = pixels.shape
    if left < 0 or top < 0 or left + width > size[0] or top + height > size[1]:
        raise DataError(
            f"{where}: a mask of {width}x{height} pixels at {left}, {top} is not inside of the "
            f"picture ({size[0]}x{size[1]} pixels). Export it again."
        )
    return shapes.packed_at(pixels, left, top, size)


def _turned(
    outline: Sequence[float], cos: float, sin: float, x: float, y: float
) -> Iterator[float]:
    for right, below in zip(outline[::2], outline[1::2], strict=True):
        yield x + (right - x) * cos - (below - y) * sin
        yield y + (right - x) * sin + (below - y) * cos


def _area(outline: Sequence[float]) -> float:
    xs, ys = outline[::2], outline[1::2]
    corners = zip(xs, ys, (*xs[1:], xs[0]), (*ys[1:], ys[0]), strict=True)
    return abs(sum(x * after_y - after_x * y for x, y, after_x, after_y in corners)) / 2


def numbers(values: Iterable[Any], where: str) -> list[float]:
    """Values as numbers. Raises DataError for one that is none."""
    try:
        found = [float(value) for value in values]
    except (TypeError, ValueError):
        found = [math.nan]
    if not all(map(math.isfinite, found)):
        raise DataError(f"{where}: {values!r} are not all numbers. Export it again.")
    return found
