"""COCO's instances, as pycocotools reads them and most tools write them.

    <root>/annotations/instances_<split>.json     or <root>/<split>/_annotations.coco.json, or any
    <root>/<split>/<file_name>                    names and places of one's own

A segmentation is polygons or run lengths; where it is empty, the box is the mask. A crowd
(`iscrowd`) is a region of defects like any other. Every picture that the file lists is known, with
or without annotations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from iad_r1.data import faults, folders
from iad_r1.data.exports.annotated import Annotated, Mark, box, numbers, only_split, polygon
from iad_r1.data.exports.tree import Tree
from iad_r1.errors import DataError

NAME = "COCO"
FILES = "a JSON file with images, annotations and categories"
_KEYS = (b'"images"', b'"annotations"', b'"categories"')


def recognise(tree: Tree) -> list[Path]:
    """JSON files that hold all three lists."""
    candidates = ((path, path.read_bytes()) for path in tree.first_of_each_folder(".json"))
    return [path for path, text in candidates if all(key in text for key in _KEYS)]


def annotated(tree: Tree, files: Sequence[Path]) -> Iterator[Annotated]:
    """The pictures of all files."""
    for file in files:
        with faults.of_one(str(file)):
            yield from _of_file(tree, file)


def _of_file(tree: Tree, file: Path) -> Iterator[Annotated]:
    content = folders.read_json(file)
    lists = {name: _entries(content, name, file) for name in ("images", "annotations")}
    names: dict[object, str] = {}
    for entry in _entries(content, "categories", file):
        if names.setdefault(entry["id"], str(entry["name"])) != str(entry["name"]):
            raise DataError(f"{file}: two categories have the id {entry['id']}. Export it again.")
    marks: dict[object, list[Mapping[str, Any]]] = {}
    for entry in lists["images"]:
        with faults.of_one(f"{file}, image {entry['id']}"):
            if entry["id"] in marks:
                raise DataError(f"{file}: two images have the id {entry['id']}. Export it again.")
            marks[entry["id"]] = []
    for entry in lists["annotations"]:
        with faults.of_one(f"{file}, annotation {entry['id']}"):
            if entry["image_id"] not in marks:
                raise DataError(
                    f"{file}, annotation {entry['id']}: no image has the id {entry['image_id']!r}. "
                    "Export it again."
                )
            marks[entry["image_id"]].append(entry)
    split = only_split(tree.splits_of(file), str(file))
    for entry in lists["images"]:
        where = f"{file}, image {entry['id']} ({entry['file_name']})"
        with faults.of_one(where):
            width, height = (int(v) for v in numbers((entry["width"], entry["height"]), where))
            image = tree.find(str(entry["file_name"]), file, where)
            size = width, height
            mark = partial(_mark, names=names, size=size, file=file)
            found = faults.every(mark, marks[entry["id"]])
            yield Annotated(image, found, size, split, where)


def _entries(content: Any, name: str, file: Path) -> list[Mapping[str, Any]]:
    """A list of the file whose entries have what is read. Raises DataError."""
    needed = {
        "images": ("id", "file_name", "width", "height"),
        "annotations": ("id", "image_id", "category_id"),
        "categories": ("id", "name"),
    }[name]
    entries = content.get(name) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise DataError(f"{file}: {name} is not a list. Export it again.")
    sound: list[Mapping[str, Any]] = []
    for index, entry in enumerate(entries):
        missing = [key for key in needed if not isinstance(entry, dict) or entry.get(key) is None]
        with faults.of_one():
            if missing:
                raise DataError(f"{file}, {name}[{index}] has no {' and no '.join(missing)}.")
            sound.append(entry)
    return sound


def _mark(
    entry: Mapping[str, Any], names: Mapping[object, str], size: tuple[int, int], file: Path
) -> Mark:
    where = f"{file}, annotation {entry['id']}"
    if entry["category_id"] not in names:
        raise DataError(
            f"{where}: category {entry['category_id']!r} is not in categories. Export it again."
        )
    kind, segmentation = names[entry["category_id"]], entry.get("segmentation")
    if isinstance(segmentation, dict):
        return Mark(kind, where, runs=(_runs(segmentation, size, where),))
    if segmentation:
        rings = (polygon(numbers(ring, where), where) for ring in segmentation)
        return Mark(kind, where, tuple(rings))
    if not entry.get("bbox"):
        raise DataError(f"{where} has neither a segmentation nor a bbox. Delete it, or mark it.")
    found = numbers(entry["bbox"], where)
    if len(found) != 4:
        raise DataError(f"{where}: bbox={found} is not x, y, width and height.")
    return Mark(kind, where, (box(found[0], found[1], found[2], found[3], where),))


def _runs(segmentation: Mapping[str, Any], size: tuple[int, int], where: str) -> bytes:
    """COCO's compressed run lengths, which cover the picture exactly. Raises DataError."""
    from iad_r1.data import shapes

    counts = segmentation.get("counts")
    lengths = _lengths(counts.encode()) if isinstance(counts, str) else numbers(counts or (), where)
    height_width = numbers(segmentation.get("size") or (), where)
    fits = height_width == [size[1], size[0]] and sum(lengths) == size[0] * size[1]
    if not fits or min(lengths) < 0:
        raise DataError(
            f"{where}: its run lengths cover {sum(lengths):g} pixels and are for (height, width) = "
            f"{height_width}, but the picture is {size[0]}x{size[1]}. Export it again."
        )
    return shapes.packed([int(length) for length in lengths], size)


def _lengths(counts: bytes) -> list[int]:
    """The run lengths that a compressed string holds: five bits a byte, the lowest first, from the
    fourth number on as a difference to the number before the last."""
    found: list[int] = []
    value = shift = 0
    for byte in counts:
        bits = byte - 48
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        found.append(value + (found[-2] if len(found) > 2 else 0))
        value = shift = 0
    return found
