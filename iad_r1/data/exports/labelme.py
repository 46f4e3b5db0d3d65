"""LabelMe's files, one beside every picture that somebody has opened.

    <root>/<split>/a.png
    <root>/<split>/a.json

A file without shapes is a good picture. The image's flags say something of the whole picture. The
picture that a file embeds is not read.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from iad_r1.data import faults, folders
from iad_r1.data.exports.annotated import (
    Annotated,
    Mark,
    box,
    ellipse,
    line,
    numbers,
    only_split,
    polygon,
    region,
)
from iad_r1.data.exports.tree import Tree
from iad_r1.errors import DataError

NAME = "LabelMe"
FILES = "a JSON file with shapes and imagePath for a picture"
_KEYS = (b'"shapes"', b'"imagePath"')


def recognise(tree: Tree) -> list[Path]:
    """One JSON file of each folder that has such."""
    return [path for path in tree.first_of_each_folder(".json") if _is_ours(path)]


def annotated(tree: Tree, files: Sequence[Path]) -> Iterator[Annotated]:
    """The pictures that have a file."""
    for file in filter(_is_ours, tree.of(".json")):
        with faults.of_one(str(file)):
            yield _of_file(tree, file, folders.read_json(file))


def _is_ours(file: Path) -> bool:
    text = file.read_bytes()
    return all(key in text for key in _KEYS)


def _of_file(tree: Tree, file: Path, content: Any) -> Annotated:
    shapes = content.get("shapes") if isinstance(content, dict) else None
    if not isinstance(shapes, list) or not all(isinstance(shape, dict) for shape in shapes):
        raise DataError(f"{file}: shapes is no list of shapes. Save it again in LabelMe.")
    sides = numbers((content.get("imageWidth"), content.get("imageHeight")), str(file))
    size = (int(sides[0]), int(sides[1]))
    try:
        image = tree.paired(str(content["imagePath"]), file, str(file))
    except DataError as error:
        inside = " It is embedded in the file: labelme_export_json writes it out."
        raise DataError(f"{error}{inside if content.get('imageData') else ''}") from None
    marks = faults.every(lambda of: _mark(of[1], size, f"{file}, shape {of[0]}"), enumerate(shapes))
    flags = [name for name, on in (content.get("flags") or {}).items() if on]
    marks += [Mark(flag, f"{file}, flag {flag}") for flag in flags]
    split = only_split(tree.splits_of(file), str(file))
    return Annotated(image, marks, size, split, str(file))


def _mark(shape: Mapping[str, Any], size: tuple[int, int], where: str) -> Mark:
    kind, form = str(shape.get("label") or ""), shape.get("shape_type") or "polygon"
    where = f"{where} ({kind})"
    points = [numbers(point, where) for point in shape.get("points") or ()]
    if not points or any(len(point) != 2 for point in points):
        raise DataError(f"{where}: points={shape.get('points')} are not points. Delete the shape.")
    if form == "mask":
        return Mark(kind, where, runs=(_mask(shape, points, size, where),))
    flat = [value for point in points for value in point]
    if form == "rectangle" and len(points) == 2:
        (x, right), (y, bottom) = sorted(flat[::2]), sorted(flat[1::2])
        return Mark(kind, where, (box(x, y, right - x, bottom - y, where),))
    if form == "circle" and len(points) == 2:
        radius = math.dist(points[0], points[1])
        return Mark(kind, where, (ellipse(flat[0], flat[1], radius, radius),))
    if form in ("polygon", "rectangle", "rotation"):
        return Mark(kind, where, (polygon(flat, where),))
    if form in ("line", "linestrip"):
        return Mark(kind, where, (line(flat, where),))
    if form in ("point", "points"):
        return Mark(kind, where, tuple(line(point, where) for point in points))
    raise DataError(
        f"{where}: a shape of the kind {form!r} with {len(points)} points is not read. Draw it as "
        "a polygon or rectangle."
    )


def _mask(
    shape: Mapping[str, Any], points: Sequence[Sequence[float]], size: tuple[int, int], where: str
) -> bytes:
    """Run lengths of a mask that is embedded as a picture, whose first pixel is at points[0]."""
    import numpy as np
    from PIL import Image

    try:
        with Image.open(io.BytesIO(base64.b64decode(shape["mask"]))) as picture:
            pixels = np.asarray(picture.convert("L")) != 0
    except (KeyError, TypeError, OSError, binascii.Error) as error:
        raise DataError(f"{where}: its mask cannot be read ({error}). Draw it again.") from None
    return region(pixels, round(points[0][0]), round(points[0][1]), size, where)
