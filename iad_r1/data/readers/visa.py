"""VisA: as published with its split table, or in MVTec AD's layout, with the level `1cls` or not.

    <root>/split_csv/1cls.csv        object, split, label (normal or anomaly), image, mask
    <root>/candle/image_anno.csv     image, label (the names of its defects), mask

    <root>/[1cls/]candle/{train/good,test/good,test/bad,ground_truth/bad}/

Only good pictures are in `train`, so it tests only. The second layout names no types.

Which of several kinds of defect in a picture an answer should name is not said. With `types=single`
such a picture has no type. With `types=largest` it has that of the kind that covers most pixels:
the values of a mask are numbers of kinds, and what each stands for is learned from the pictures
whose kinds are known but for one. For this the masks are opened.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal

from iad_r1.data import faults, folders
from iad_r1.errors import DataError
from iad_r1.settings.data import Folder, needed
from iad_r1.types import Mask, Sample

SOURCE = (
    "VisA: VisA_20220922.tar of amazon-science/spot-diff (CC BY 4.0); rearranged, it is part of "
    "jiang-cc/MMAD on the hub. Unpack it so that the folder holds split_csv/1cls.csv, or "
    "candle/test/ and so on."
)
FOLDERS = ("VisA", "MMAD/VisA", "VisA_pytorch", "VisA_20220922")
TABLE = "split_csv/1cls.csv"
LABELS = {"normal": False, "anomaly": True}


class Settings(Folder):
    """Where VisA lies."""

    name: Literal["visa"]
    root: Annotated[
        str, needed("folder of VisA, which holds split_csv/1cls.csv or candle/test/", SOURCE)
    ]
    types: Literal["single", "largest"]  # of a picture with several kinds of defect: none, or one


def read(settings: Settings, seed: int) -> Iterator[Sample]:
    """All pictures, in the order of the table or of the names."""
    root = folders.there(settings.root, SOURCE)
    if (root / TABLE).is_file():
        return _table(root, settings.types == "largest")
    return folders.layout(root / "1cls" if (root / "1cls").is_dir() else root, "visa")


def _table(root: Path, largest: bool) -> Iterator[Sample]:
    types: dict[str, dict[str, str]] = {}  # of a product: picture to its kind of defect
    for where, row in _rows(root / TABLE, ("object", "split", "label", "image", "mask")):
        with faults.of_one():
            product = row["object"]
            if product not in types:
                types[product] = _types(root, root / product / "image_anno.csv", largest)
            yield _sample(root, where, row, types[product].get(row["image"], ""))


def _sample(root: Path, where: str, row: dict[str, str], kind: str) -> Sample:
    if row["label"] not in LABELS or row["split"] not in folders.SPLITS:
        raise DataError(
            f"{where}: split={row['split']!r} label={row['label']!r}; the split must be one of "
            f"{', '.join(folders.SPLITS)}, the label one of {', '.join(LABELS)}."
        )
    defective = LABELS[row["label"]]
    return Sample(
        id=f"visa/{row['image']}",
        dataset="visa",
        split=row["split"],
        product=folders.words(row["object"]),
        image=root / row["image"],
        solution=folders.solution(where, defective, kind if defective else ""),
        mask=Mask((root / row["mask"],)) if row["mask"] else None,
        where=where,
    )


def _types(root: Path, file: Path, largest: bool) -> dict[str, str]:
    """The defect of every picture that has one kind of it; and where the `largest` counts, that of
    the others, as far as the numbers in their masks are understood."""
    if not file.is_file():
        return {}
    columns = ("image", "label", "mask") if largest else ("image", "label")
    rows = [row for _, row in _rows(file, columns)]
    kinds = {row["image"]: frozenset(map(str.strip, row["label"].split(","))) for row in rows}
    found = {image: name for image, (name, *more) in kinds.items() if not more}
    if not largest or len(found) == len(kinds):
        return found
    areas: dict[str, dict[int, int]] = {}
    for row in rows:
        with faults.of_one():
            areas[row["image"]] = _areas(root / row["mask"]) if row["mask"] else {}
    named = learned((kinds[image], frozenset(areas[image])) for image in areas)
    for image in kinds.keys() - found.keys():
        if covered := areas.get(image):
            found[image] = named.get(max(covered, key=covered.__getitem__), "")
    return found


def _areas(mask: Path) -> dict[int, int]:
    """How many pixels each kind of defect covers, by its number."""
    import numpy as np

    from iad_r1.data import images

    picture = images.read(mask, "mask")
    if picture.mode not in ("L", "P"):
        raise DataError(f"{mask}: its mode is {picture.mode}; numbers of defects were expected.")
    pixels = np.bincount(np.asarray(picture).ravel())
    return {number: int(n) for number, n in enumerate(pixels) if number and n}


def learned(pictures: Iterable[tuple[frozenset[str], frozenset[int]]]) -> dict[int, str]:
    """What the numbers in the masks of a product stand for, from the kinds that each picture shows
    and the numbers in its mask. A picture tells where all but one of both are known. A number for
    which two pictures disagree, and a name that two numbers ask for, are never known."""
    seen, named = list(pictures), dict[int, str]()
    while True:
        told: defaultdict[int, set[str]] = defaultdict(set)
        for kinds, numbers in seen:
            names, left = kinds - set(named.values()), numbers - named.keys()
            if len(names) == len(left) == 1:
                told[next(iter(left))] |= names
        agreed = {number: next(iter(names)) for number, names in told.items() if len(names) == 1}
        asked = list(agreed.values())
        new = {number: name for number, name in agreed.items() if asked.count(name) == 1}
        if not new:
            return named
        named |= new


def _rows(file: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        table = csv.DictReader(lines)
        missing = [column for column in columns if column not in (table.fieldnames or ())]
        if missing:
            raise DataError(f"{file} has no column {' or '.join(missing)}.")
        for row in table:
            values = {column: (row[column] or "").strip() for column in columns}
            yield f"{file}, line {table.line_num}", values
