"""A table with a row for every picture: what its columns may be called, and what a row says.

    meta.csv or meta.tsv    columns image, product, split, label and, if known, mask and defect_type

Commas, semicolons or tabs stand between values. What is true of a picture comes from its label and
mask, never from its name; but names tell what a spreadsheet has made a number or a date of.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from iad_r1.data import faults, folders, spreadsheets
from iad_r1.data.folders import DEFECTIVE, GOOD, PICTURES, SPLIT_NAMES, UNOPENED
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


def read(table: Path, dataset: str) -> tuple[list[Sample], list[str]]:
    """The pictures of a table, and what there is to say of how it was read. Raises DataError naming
    the row that is wrong."""
    rows = list(_rows(table))
    said = [text for column in ("product", "defect_type") for text in _restored(rows, column)]
    folder = _Folder(table.parent)
    found: list[Sample] = []
    for where, value in rows:
        with faults.of_one():
            found.append(_row(table, dataset, where, value, folder))
    return found, said


def _rows(table: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Where a row is, and its values by our names of the columns."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as lines:
            header = lines.readline()
            lines.seek(0)
            reader = csv.DictReader(lines, strict=True, delimiter=max(",;\t", key=header.count))
            columns = columns_of(table, list(reader.fieldnames or ()))
            last_is_read = list(reader.fieldnames or ())[-1] in columns.values()
            for values in reader:
                where = f"{table}, line {reader.line_num}"
                with faults.of_one():
                    # an unquoted comma in a last column that nobody reads ("note") harms nothing
                    if values.pop(None, None) and last_is_read:
                        raise DataError(
                            f"{where}: more values than columns. Quote values that hold a "
                            f"{reader.reader.dialect.delimiter!r}."
                        )
                    if any((value or "").strip() for value in values.values()):
                        _check_unread(where, values, columns)
                        yield where, {n: (values[own] or "").strip() for n, own in columns.items()}
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table} is not a comma-separated UTF-8 table ({error}).") from error


def _restored(rows: Sequence[tuple[str, dict[str, str]]], column: str) -> Iterator[str]:
    """Put back what a spreadsheet has changed, where a folder in the path of a picture is called as
    it was: in the same row, or else in all others of that value. Says what was put back; raises
    DataError for a date, and where it may be two."""
    told: dict[str, set[str]] = {}
    own = [_told(value, column) for _, value in rows]
    for (_, value), names in zip(rows, own, strict=True):
        told.setdefault(value.get(column, ""), set()).update(names)
    changed: Counter[tuple[str, str]] = Counter()
    for (where, value), names in zip(rows, own, strict=True):
        shown = value.get(column, "")
        found = names or told[shown]
        if len(found) > 1 or (not found and spreadsheets.is_date(shown)):
            may_be = f"may be {' or '.join(sorted(found))}" if found else "is a date"
            with faults.of_one():
                raise DataError(
                    f"{where}: {column}={shown!r} {may_be}: a spreadsheet has changed what was "
                    "typed, and no folder in the path of the picture says what that was. Make the "
                    "cells of this column text, and type it again."
                )
        elif found and shown not in found:
            (value[column],) = found
            changed[shown, value[column]] += 1
    for (shown, name), n in changed.items():
        yield f"{column} {shown!r} read as {name!r} in {n} rows, as their folders are called"


def _told(value: Mapping[str, str], column: str) -> set[str]:
    """What the folders of a row's picture say that a value was before a spreadsheet changed it."""
    shown, (*above, _) = value.get(column, ""), ("", *Path(_slashed(value["image"])).parts)
    return {shown} if shown in above else set(spreadsheets.meant(shown, above))


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


def _row(
    table: Path, dataset: str, where: str, value: Mapping[str, str], folder: _Folder
) -> Sample:
    faults.every(lambda column: _check_value(where, column, value[column]), REQUIRED)
    split, label = (value[column].lower() for column in ("split", "label"))
    image, mask = folder.file(value["image"], where, "image"), value.get("mask")
    return Sample(
        id=f"{dataset}/{folders.relative(image, table.parent)}",
        dataset=dataset,
        split=SPLIT_NAMES[split],
        product=folders.words(value["product"]),
        image=image,
        solution=folders.solution(where, LABELS[label], value.get("defect_type", "")),
        mask=Mask((folder.file(mask, where, "mask"),)) if mask else None,
        where=where,
    )


class _Folder:
    """The files that a table names."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.names: dict[Path, dict[str, list[Path]]] = {}  # pictures of a folder by their stems

    def file(self, value: str, where: str, column: str) -> Path:
        """The file of a value. One that does not end as pictures do is looked for: its end was left
        out, or a spreadsheet has changed it. Raises DataError unless one file may be meant."""
        path = self.root / _slashed(value)
        if path.suffix.lower() in PICTURES | UNOPENED or path.is_file():
            return path
        folder, shown = path.parent, path.name
        if spreadsheets.is_date(value):
            folder, shown = self.root, value  # 1/2/2026 is no path
        if folder not in self.names:
            stems = self.names.setdefault(folder, {})
            for picture in folders.pictures(folder):
                stems.setdefault(picture.stem, []).append(picture)
        stems = self.names[folder]
        alike = [shown] if shown in stems else spreadsheets.meant(shown, stems)
        found = [picture for stem in alike for picture in stems[stem]]
        if len(found) != 1:
            may_be = f"may be {' or '.join(p.name for p in found[:3])}" if found else "names none"
            raise DataError(
                f"{where}: {column}={value!r} {may_be} of the pictures in {folder}. Write the "
                "name of the file with its end (.png), as text: a spreadsheet makes numbers and "
                "dates of the rest."
            )
        return found[0]


def _slashed(value: str) -> str:
    return value.replace("\\", "/")


def _check_value(where: str, column: str, value: str) -> None:
    if not value:
        raise DataError(f"{where}: no value in column {column}.")
    if column == "split" and value.lower() not in SPLIT_NAMES:
        raise DataError(f"{where}: split={value!r} is unknown. Use train, test or validation.")
    if column == "label" and value.lower() not in LABELS:
        raise DataError(f"{where}: label={value!r} is unknown. Use 0 (good) or 1 (defective).")
