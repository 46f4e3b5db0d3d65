"""A user's own photographs: a folder with a table, or sorted into folders (`data/folders.py`).

`<root>/meta.csv` has the columns image, product, split and label, and if known mask and
defect_type. What is true of a picture comes from its label and mask, never from its name.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from iad_r1.data import folders
from iad_r1.data.folders import GOOD, SPLITS
from iad_r1.errors import DataError
from iad_r1.settings.data import Folder, TrainingSplit, needed
from iad_r1.types import Sample

TABLE = "meta.csv"
REQUIRED = ("image", "product", "split", "label")
OPTIONAL = ("mask", "defect_type")
LABELS = {
    **dict.fromkeys(("0", "no", *GOOD), False),
    **dict.fromkeys(("1", "yes", "bad", "ng", "defective", "anomalous", "anomaly"), True),
}


class Settings(TrainingSplit, Folder):
    """A folder of photographs. Such sets are small: `train` serves PA-SFT and SC-GRPO alike."""

    name: Literal["photos"]
    root: Annotated[
        str,
        needed("folder that holds meta.csv, or <product>/train/good/ and <product>/test/<defect>/"),
    ]


def read(settings: Settings, seed: int) -> Iterator[Sample]:
    """The pictures of a folder."""
    return samples(Path(settings.root))


def samples(root: Path) -> Iterator[Sample]:
    """The pictures of a folder. Raises DataError naming the row or file that is wrong."""
    if not root.is_dir():
        raise DataError(f"{root} is not a folder.")
    table, dataset = root / TABLE, root.resolve().name
    is_table = table.is_file()
    rows = list(_table(table, dataset) if is_table else folders.layout(root, dataset))
    if not rows and is_table:
        raise DataError(f"{table} has no rows.")
    if not rows:
        raise DataError(
            f"{root} holds neither {TABLE} nor pictures in <product>/train/good/, "
            "<product>/train/<defect>/ and <product>/test/... . Set its root to the folder that "
            f"does, or write {TABLE} with the columns {', '.join(REQUIRED + OPTIONAL)}."
        )
    yield from rows


def _table(table: Path, dataset: str) -> Iterator[Sample]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines, strict=True)
            columns = list(reader.fieldnames or ())
            missing = [column for column in REQUIRED if column not in columns]
            if missing:
                raise DataError(
                    f"{table} has no column {' or '.join(missing)}; it has {', '.join(columns)}."
                )
            for values in reader:
                yield _row(table, dataset, f"{table}, line {reader.line_num}", values, columns)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table} is not a comma-separated UTF-8 table ({error}).") from error


def _row(table: Path, dataset: str, where: str, values: dict, columns: list[str]) -> Sample:
    # an unquoted comma in a last column that nobody reads ("note") harms nothing
    if values.get(None) and columns[-1] in REQUIRED + OPTIONAL:
        raise DataError(f"{where}: more values than columns. Quote values that hold a comma.")
    value = {column: (values.get(column) or "").strip() for column in REQUIRED + OPTIONAL}
    for column in REQUIRED:
        if not value[column]:
            raise DataError(f"{where}: no value in column {column}.")
    if value["split"] not in SPLITS:
        raise DataError(f"{where}: split={value['split']!r} is unknown. Use {' or '.join(SPLITS)}.")
    if value["label"].lower() not in LABELS:
        raise DataError(
            f"{where}: label={value['label']!r} is unknown. Use 0 (good) or 1 (defective)."
        )
    image = _path(table.parent, value["image"])
    return Sample(
        id=f"{dataset}/{folders.relative(image, table.parent)}",
        dataset=dataset,
        split=value["split"],
        product=folders.words(value["product"]),
        image=image,
        solution=folders.solution(where, LABELS[value["label"].lower()], value["defect_type"]),
        mask=_path(table.parent, value["mask"]) if value["mask"] else None,
        where=where,
    )


def _path(root: Path, value: str) -> Path:
    return root / value.replace("\\", "/")
