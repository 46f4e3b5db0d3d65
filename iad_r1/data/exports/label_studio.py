"""Label Studio's export "JSON": one file of all tasks.

Rectangles, ellipses and polygons are in hundredths of the picture, brushes in run lengths of Label
Studio's own. Choices say something of the whole picture, or name a region that has no label. A task
that was submitted without a mark is a good picture; one that nobody annotated is not known.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

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
    turned,
)
from iad_r1.data.exports.tree import Tree
from iad_r1.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NAME = "Label Studio"
FILES = "a JSON file of tasks with annotations and data"
_KEYS = (b'"annotations"', b'"result"', b'"data"')
_SHORT = (b'"annotation_id"', b'"annotator"')  # JSON-MIN
_UPLOADED = re.compile(r"[0-9a-f]{8}-")  # stands before the name of a picture

Result = Mapping[str, Any]


def recognise(tree: Tree) -> list[Path]:
    """JSON files that hold a list of tasks."""
    candidates = ((path, path.read_bytes()) for path in tree.first_of_each_folder(".json"))
    return [
        path
        for path, text in candidates
        if text[:64].lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"[")
        and any(all(key in text for key in keys) for keys in (_KEYS, _SHORT))
    ]


def annotated(tree: Tree, files: Sequence[Path]) -> Iterator[Annotated]:
    """The pictures of all tasks that somebody has annotated."""
    for file in files:
        for task in folders.read_json(file):
            if not isinstance(task, dict) or not isinstance(task.get("annotations"), list):
                raise DataError(
                    f'{file}: a task has no annotations. Export it as "JSON", not as JSON-MIN.'
                )
            where = f"{file}, task {task.get('id')}"
            with faults.of_one(where):
                results = _results(task, where)
                if results is not None:
                    yield _of_task(tree, file, task, results, where)


def _results(task: Mapping[str, Any], where: str) -> list[Result] | None:
    """What the one valid annotation of a task says; None where there is none."""
    valid = [found for found in task["annotations"] if not found.get("was_cancelled")]
    chosen = [found for found in valid if found.get("ground_truth")] or valid
    if len(chosen) > 1:
        raise DataError(
            f"{where}: {len(chosen)} annotations. Mark one as ground truth, or delete the others."
        )
    return list(chosen[0].get("result") or []) if chosen else None


def _of_task(
    tree: Tree, file: Path, task: Mapping[str, Any], results: Sequence[Result], where: str
) -> Annotated:
    regions: dict[object, list[Result]] = {}
    for n, result in enumerate(results):
        if isinstance(result.get("value"), dict):
            regions.setdefault(result.get("id", n), []).append(result)
    sizes = {size for result in results if (size := _size(result, where))}
    if len(sizes) > 1:
        raise DataError(f"{where}: its regions are of pictures of different sizes, {sizes}.")
    size = next(iter(sizes), None)
    found = faults.every(lambda key: list(_marks(regions[key], f"{where}, region {key}")), regions)
    marks = [mark for of_one in found for mark in of_one]
    split = only_split(tree.splits_of(file), where)
    return Annotated(_image(tree, file, task, where), marks, size, split, where)


def _image(tree: Tree, file: Path, task: Mapping[str, Any], where: str) -> Path:
    """The picture of a task, by a path or address in its data."""
    values = [value for value in (task.get("data") or {}).values() if isinstance(value, str)]
    paths = [unquote(re.sub(r"^.*\?d=|\?.*$", "", value)) for value in values]
    named = [path for path in paths if Path(path).suffix.lower() in folders.PICTURES]
    if len(named) != 1:
        raise DataError(f"{where}: its data names {len(named)} pictures, {values}; not one.")
    try:
        return tree.find(named[0], file, where)
    except DataError:
        folder, slash, name = named[0].rpartition("/")
        if not _UPLOADED.match(name):
            raise
        return tree.find(folder + slash + _UPLOADED.sub("", name, count=1), file, where)


def _size(result: Result, where: str) -> tuple[int, int] | None:
    if result.get("image_rotation"):
        raise DataError(
            f"{where}: the picture was turned while it was annotated, so where its regions lie is "
            "not known. Annotate it unturned."
        )
    if result.get("original_width") is None:
        return None
    width, height = numbers((result["original_width"], result.get("original_height")), where)
    return int(width), int(height)


def _marks(results: Sequence[Result], where: str) -> Iterator[Mark]:
    """What the results of one region say, which has one place, or none."""
    names: list[str] = []
    for result in results:
        value = result["value"]
        for key in (key for key in value if key.endswith("labels") or key == "choices"):
            names += map(str, value[key])
    placed = next(
        (r for r in results if {"x", "points", "rle", "vertices"} & set(r["value"])), None
    )
    if placed is None:
        yield from (Mark(name, where) for name in names)
        return
    typed = [name for name in names if folders.kind_of(name).lower() not in folders.UNTYPED]
    kind = (typed or names or [""])[0]
    where = f"{where} ({kind})"
    size = _size(placed, where)
    if size is None:
        raise DataError(f"{where}: original_width and original_height are missing. Export again.")
    value = placed["value"]
    if "rle" in value:
        yield Mark(kind, where, runs=(_brush(value["rle"], size, where),))
    else:
        yield Mark(kind, where, (_outline(value, size, where),))


def _outline(value: Mapping[str, Any], size: tuple[int, int], where: str) -> tuple[float, ...]:
    across, down = size[0] / 100, size[1] / 100
    turn = numbers((value.get("rotation") or 0,), where)[0]
    if "vertices" in value:
        raise DataError(f"{where}: a vector is not read. Draw it as a polygon or with the brush.")
    if "points" in value:
        flat = numbers([v for point in value["points"] for v in point], where)
        return polygon([v * (down if n % 2 else across) for n, v in enumerate(flat)], where)
    names = (
        ("x", "y", "radiusX", "radiusY") if "radiusX" in value else ("x", "y", "width", "height")
    )
    x, y, width, height = numbers([value.get(name, 0) for name in names], where)
    x, y, width, height = x * across, y * down, width * across, height * down
    if "radiusX" in value:
        return ellipse(x, y, width, height, turn)
    if "height" not in value:  # a point
        return line((x, y), where)
    return turned(box(x, y, width, height, where), turn, x, y)


def _brush(rle: Any, size: tuple[int, int], where: str) -> bytes:
    width, height = size
    try:
        values = _unpacked(bytes(rle), 4 * width * height)
        opaque = values.reshape(height, width, 4)[..., 3] > 0
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{where}: its brush is not that of a picture of {width}x{height} ({error}). Export it "
            "again."
        ) from None
    return region(opaque, 0, 0, size, where)


def _unpacked(packed: bytes, wanted: int) -> NDArray[np.uint8]:
    """The bytes that a brush's run lengths stand for: red, green, blue and opacity of each pixel.

    A stream of bits: 32 for the number of values, 5 for the bits of a value less one, four times 4
    for the bits of a length less one. Then, again and again: 1 for whether one value is repeated, 2
    for which of the four, the length less one, and the value or values. Raises ValueError for
    another number of values than is `wanted`.
    """
    import numpy as np

    bits, at = "".join(f"{byte:08b}" for byte in packed), 0

    def number(length: int) -> int:
        nonlocal at
        at += length
        if at > len(bits):
            raise ValueError("it ends too early")
        return int(bits[at - length : at], 2)

    total, word = number(32), number(5) + 1
    lengths = [number(4) + 1 for _ in range(4)]
    if (total, word) != (wanted, 8):
        raise ValueError(f"{total} values of {word} bits")
    found = bytearray()
    while len(found) < total:
        repeated, which = number(1), number(2)
        count = number(lengths[which]) + 1
        found += bytes([number(8)]) * count if repeated else number(8 * count).to_bytes(count)
    return np.frombuffer(found[:total], np.uint8)
