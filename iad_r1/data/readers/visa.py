"""VisA: as published with its split table, or in MVTec AD's layout, with the level `1cls` or not.

    <root>/split_csv/1cls.csv        object, split, label (normal or anomaly), image, mask
    <root>/candle/image_anno.csv     image, label (the names of its defects), mask

    <root>/[1cls/]candle/{train/good,test/good,test/bad,ground_truth/bad}/

Only good pictures are in `train`, so it tests only. A picture with several kinds of defect has no
type here: which of them an answer should name is not said. The second layout names no types.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from iad_r1.data import folders
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
    root: Annotated[str, needed("folder of VisA, which holds split_csv/1cls.csv or candle/test/")]


def read(settings: Settings, seed: int) -> Iterator[Sample]:
    """All pictures, in the order of the table or of the names."""
    root = folders.there(settings.root, SOURCE)
    if (root / TABLE).is_file():
        return _table(root)
    return folders.layout(root / "1cls" if (root / "1cls").is_dir() else root, "visa")


def _table(root: Path) -> Iterator[Sample]:
    types: dict[str, dict[str, str]] = {}  # of a product: picture to the names of its defects
    for where, row in _rows(root / TABLE, ("object", "split", "label", "image", "mask")):
        product, image = row["object"], root / row["image"]
        if row["label"] not in LABELS or row["split"] not in folders.SPLITS:
            raise DataError(
                f"{where}: split={row['split']!r} label={row['label']!r}; the split must be one of "
                f"{', '.join(folders.SPLITS)}, the label one of {', '.join(LABELS)}."
            )
        if product not in types:
            types[product] = _types(root / product / "image_anno.csv")
        kind = types[product].get(row["image"], "")
        defective = LABELS[row["label"]]
        yield Sample(
            id=f"visa/{row['image']}",
            dataset="visa",
            split=row["split"],
            product=folders.words(product),
            image=image,
            solution=folders.solution(where, defective, kind if defective else ""),
            mask=Mask((root / row["mask"],)) if row["mask"] else None,
            where=where,
        )


def _types(file: Path) -> dict[str, str]:
    """The defect of every picture that has one kind of it."""
    if not file.is_file():
        return {}
    rows = _rows(file, ("image", "label"))
    return {row["image"]: row["label"] for _, row in rows if "," not in row["label"]}


def _rows(file: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        table = csv.DictReader(lines)
        missing = [column for column in columns if column not in (table.fieldnames or ())]
        if missing:
            raise DataError(f"{file} has no column {' or '.join(missing)}.")
        for row in table:
            values = {column: (row[column] or "").strip() for column in columns}
            yield f"{file}, line {table.line_num}", values
