"""A table with a row for every picture: what its columns may be called, and what a row says.

    meta.csv or meta.tsv    columns image, product, split, label and, if known, mask and defect_type

Commas, semicolons or tabs stand between values. What is true of a picture comes from its label and
mask, never from its name.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from iad_r1.data import faults, folders
from iad_r1.data.folders import DEFECTIVE, GOOD, PICTURES, SPLIT_NAMES
from iad_r1.errors import DataError
from iad_r1.types import Mask, Sample

TABLES = ("meta.csv", "meta.tsv")
REQUIRED = ("image", "product", "split", "label")
OPTIONAL = ("mask", "defect_type")
# other names of the columns, in any case, with spaces, dashes or underscores between words
NAMES = {
    "image": ("image_path", "img_path", "img", "image_file", "file", "file_name", "filename",
              "filepath", "file_path", "path"),
    "product": ("category", "cls_name", "object", "part", "item"),
    "split": ("set", "subset", "phase"),
    "label": ("labels", "target", "anomaly", "is_anomaly", "anomalous", "defective",
              "is_defective"),
    "mask": ("mask_path", "mask_file", "ground_truth", "gt", "gt_path", "gt_mask",
             "segmentation_mask"),
    "defect_type": ("defect", "defect_kind", "type", "kind", "specie_name", "anomaly_type",
                    "defect_class"),
}  # fmt: skip
LABELS = {
    **dict.fromkeys(("0", "0.0", "no", "false", *GOOD), False),
    **dict.fromkeys(("1", "1.0", "yes", "true", *DEFECTIVE), True),
}


def read(table: Path, dataset: str) -> Iterator[Sample]:
    """The pictures of a table. Raises DataError naming the row that is wrong."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as lines:
            header = lines.readline()
            lines.seek(0)
            reader = csv.DictReader(lines, strict=True, delimiter=max(",;\t", key=header.count))
            columns = columns_of(table, list(reader.fieldnames or ()))
            last_is_read = list(reader.fieldnames or ())[-1] in columns.values()
            for values in reader:
                where = f"{table}, line {reader.line_num}"
                # an unquoted comma in a last column that nobody reads ("note") harms nothing
                if values.pop(None, None) and last_is_read:
                    raise DataError(
                        f"{where}: more values than columns. Quote values that hold a "
                        f"{reader.reader.dialect.delimiter!r}."
                    )
                if any((value or "").strip() for value in values.values()):
                    found = {name: (values[own] or "").strip() for name, own in columns.items()}
                    _check_unread(where, values, columns)
                    with faults.of_one():
                        yield _row(table, dataset, where, found)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table} is not a comma-separated UTF-8 table ({error}).") from error


def columns_of(
    table: Path, header: Sequence[str], required: Sequence[str] = REQUIRED
) -> dict[str, str]:
    """What each column that we read is called here. Raises DataError where one of those that are
    `required` is not there, or may be two."""
    spelled: dict[str, list[str]] = {}
    for column in header:
        spelled.setdefault(column.strip().lower().replace(" ", "_").replace("-", "_"), []).append(
            column
        )
    found: dict[str, str] = {}
    for name in REQUIRED + OPTIONAL:
        alike = spelled.get(name) or [c for other in NAMES[name] for c in spelled.get(other, ())]
        if len(alike) > 1:
            raise DataError(
                f"{table}: which column is the {name}, {' or '.join(alike)}? Call it {name}."
            )
        if alike:
            found[name] = alike[0]
    missing = [column for column in required if column not in found]
    if missing:
        raise DataError(
            f"{table} has no column {' or '.join(missing)}; it has {', '.join(header)}."
        )
    return found


def _check_unread(where: str, values: dict[str, str], columns: dict[str, str]) -> None:
    """A column that looks like the masks and is not read is not passed over in silence."""
    if "mask" in columns:
        return
    for column in set(values) - set(columns.values()):
        if Path(values[column] or "").suffix.lower() in PICTURES:
            raise DataError(
                f"{where}: column {column!r} names a picture and would not be read. Call it mask "
                "if these are masks; if not, add an empty column mask."
            )


def _row(table: Path, dataset: str, where: str, value: dict[str, str]) -> Sample:
    for column in REQUIRED:
        if not value[column]:
            raise DataError(f"{where}: no value in column {column}.")
    split, label = (value[column].lower() for column in ("split", "label"))
    if split not in SPLIT_NAMES:
        raise DataError(
            f"{where}: split={value['split']!r} is unknown. Use train, test or validation."
        )
    if label not in LABELS:
        raise DataError(
            f"{where}: label={value['label']!r} is unknown. Use 0 (good) or 1 (defective)."
        )
    image, mask = _path(table.parent, value["image"]), value.get("mask")
    return Sample(
        id=f"{dataset}/{folders.relative(image, table.parent)}",
        dataset=dataset,
        split=SPLIT_NAMES[split],
        product=folders.words(value["product"]),
        image=image,
        solution=folders.solution(where, LABELS[label], value.get("defect_type", "")),
        mask=Mask((_path(table.parent, mask),)) if mask else None,
        where=where,
    )


def _path(root: Path, value: str) -> Path:
    return root / value.replace("\\", "/")
