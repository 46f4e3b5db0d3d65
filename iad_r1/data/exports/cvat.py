"""CVAT's "CVAT for images 1.1": all annotations of a task in XML.

    <root>/annotations.xml
    <root>/images/<subset>/<name>

Boxes (turned ones too), polygons, polylines, points, ellipses and masks have a place; tags say
something of the whole picture. Every picture of the task is listed, annotated or not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element

from iad_r1.data import faults
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
    turned,
)
from iad_r1.data.exports.tree import Tree, read_xml, splits
from iad_r1.errors import DataError

NAME = "CVAT"
FILES = "annotations.xml with an <image> for a picture"


def recognise(tree: Tree) -> list[Path]:
    """XML files that begin as CVAT's do, those of videos too."""
    found = tree.first_of_each_folder(".xml")
    return [path for path in found if b"<annotations" in path.read_bytes()[:4096]]


def annotated(tree: Tree, files: Sequence[Path]) -> Iterator[Annotated]:
    """The pictures of all files."""
    for file in files:
        with faults.of_one():
            root = read_xml(file)
            if root.find("track") is not None:
                raise DataError(f'{file} is of a video. Export the task as "CVAT for images 1.1".')
            for image in root.iter("image"):
                with faults.of_one():
                    yield _of_image(tree, file, image)


def _of_image(tree: Tree, file: Path, image: Element) -> Annotated:
    name = image.get("name", "")
    where = f"{file}, image {image.get('id')} ({name})"
    width, height = _numbers(image, ("width", "height"), where)
    size = int(width), int(height)

    def marked(numbered: tuple[int, Element]) -> Mark:
        n, shape = numbered
        kind = shape.get("label", "")
        here = f"{file}, image {image.get('id')}, {shape.tag} {n} ({kind})"
        return Mark(kind, here) if shape.tag == "tag" else _mark(shape, kind, size, here)

    marks = faults.every(marked, enumerate(image))
    subset = image.get("subset") or ""
    here = tree.at(file.parent / "images" / subset / name) or tree.find(name, file, where)
    said = splits(Path(subset)) or tree.splits_of(file)
    return Annotated(here, marks, size, only_split(said, where), where)


def _mark(shape: Element, kind: str, size: tuple[int, int], where: str) -> Mark:
    turn = numbers((shape.get("rotation") or 0,), where)[0]
    if shape.tag == "box":
        x, y, right, bottom = _numbers(shape, ("xtl", "ytl", "xbr", "ybr"), where)
        outline = box(x, y, right - x, bottom - y, where)
        return Mark(kind, where, (turned(outline, turn, (x + right) / 2, (y + bottom) / 2),))
    if shape.tag == "ellipse":
        x, y, across, down = _numbers(shape, ("cx", "cy", "rx", "ry"), where)
        return Mark(kind, where, (ellipse(x, y, across, down, turn),))
    if shape.tag == "mask":
        return Mark(kind, where, runs=(_mask(shape, size, where),))
    if shape.tag not in ("polygon", "polyline", "points"):
        raise DataError(f"{where}: <{shape.tag}> is not read. Draw it as a polygon, box or mask.")
    points = numbers(shape.get("points", "").replace(";", ",").split(","), where)
    if shape.tag == "polygon":
        return Mark(kind, where, (polygon(points, where),))
    if shape.tag == "polyline":
        return Mark(kind, where, (line(points, where),))
    pairs = (points[at : at + 2] for at in range(0, len(points), 2))
    return Mark(kind, where, tuple(line(pair, where) for pair in pairs))


def _mask(shape: Element, size: tuple[int, int], where: str) -> bytes:
    """Run lengths of a mask, which CVAT writes row by row in the box around it, sound first."""
    import numpy as np

    names = ("left", "top", "width", "height")
    left, top, width, height = (int(value) for value in _numbers(shape, names, where))
    runs = [int(value) for value in numbers(shape.get("rle", "").split(","), where)]
    if sum(runs) != width * height or min(runs) < 0:
        raise DataError(
            f"{where}: its run lengths cover {sum(runs)} pixels of {width}x{height}. Export it "
            "again."
        )
    pixels = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
    return region(pixels, left, top, size, where)


def _numbers(element: Element, names: Sequence[str], where: str) -> list[float]:
    return numbers([element.get(name) for name in names], where)
