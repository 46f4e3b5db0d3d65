"""Pascal VOC: a file of XML for every picture, as labelImg, CVAT and Roboflow write it.

    <root>/Annotations/a.xml                 or beside the picture
    <root>/JPEGImages/a.jpg
    <root>/ImageSets/Main/train.txt          or val, test, or ImageSets/Segmentation/
    <root>/SegmentationClass/a.png           the mask, for <segmented>1</segmented>

Corners are taken as they stand, as these tools write them: the first pixel is 0. A file without
objects is a good picture.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element

from iad_r1.data import faults, folders
from iad_r1.data.exports.annotated import (
    Annotated,
    Mark,
    box,
    numbers,
    only_split,
    polygon,
)
from iad_r1.data.exports.tree import Tree, read_lines, read_xml
from iad_r1.errors import DataError

NAME = "Pascal VOC"
FILES = "an XML file with an <annotation> for a picture"
_MASKS = "SegmentationClass"
_OURS = re.compile(rb"<annotation[\s>]")


def recognise(tree: Tree) -> list[Path]:
    """One XML file of each folder that has such, or more."""
    return [path for path in tree.first_of_each_folder(".xml") if _is_ours(path)]


def annotated(tree: Tree, files: Sequence[Path]) -> Iterator[Annotated]:
    """The pictures that have a file."""
    listed = _listed(tree)
    for file in filter(_is_ours, tree.of(".xml")):
        with faults.of_one():
            said = (listed.get((folder, file.stem), set()) for folder in file.parents)
            yield _of_file(tree, file, set().union(*said))


def _is_ours(file: Path) -> bool:
    with file.open("rb") as start:
        return _OURS.search(start.read(4096)) is not None


def _of_file(tree: Tree, file: Path, listed: set[str]) -> Annotated:
    root, where = read_xml(file), str(file)
    image = tree.paired(_text(root, "filename"), file, where)
    sides = numbers([_text(root, f"size/{side}") for side in ("width", "height")], where)
    if min(sides) < 1:
        raise DataError(f"{where}: its size is {sides[0]:g}x{sides[1]:g}. Export it again.")
    marks = faults.every(lambda of: _mark(of[1], of[0], file), enumerate(root.iter("object")))
    mask = None
    # a mask in which sound parts are drawn as well does not show the defects
    if marks and _text(root, "segmented") == "1" and all(map(_is_defect, marks)):
        mask = tree.mask_of(file, _MASKS)
    split = only_split(listed | tree.splits_of(file), where)
    return Annotated(image, marks, (int(sides[0]), int(sides[1])), split, where, mask)


def _is_defect(mark: Mark) -> bool:
    return not folders.is_good(mark.kind)


def _mark(thing: Element, n: int, file: Path) -> Mark:
    kind = _text(thing, "name")
    where = f"{file}, object {n} ({kind})"
    corners = thing.find("polygon")
    if corners is not None:
        found = sorted(corners, key=lambda e: (int(re.sub(r"\D", "", e.tag) or 0), e.tag))
        return Mark(kind, where, (polygon(numbers([e.text for e in found], where), where),))
    names = ("xmin", "ymin", "xmax", "ymax")
    x, y, right, bottom = numbers([_text(thing, f"bndbox/{name}") for name in names], where)
    return Mark(kind, where, (box(x, y, right - x, bottom - y, where),))


def _listed(tree: Tree) -> dict[tuple[Path, str], set[str]]:
    """The splits in which pictures are, by the folder that holds ImageSets/ and their name."""
    found: dict[tuple[Path, str], set[str]] = {}
    for file in tree.of(".txt"):
        split = folders.SPLIT_NAMES.get(file.stem.lower())
        if split and file.parent.parent.name == "ImageSets":
            for line in read_lines(file):
                if name := line.partition(" ")[0]:
                    key = (file.parent.parent.parent, Path(name).name)
                    found.setdefault(key, set()).add(split)
    return found


def _text(element: Element, path: str) -> str:
    return (element.findtext(path) or "").strip()
