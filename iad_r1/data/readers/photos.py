"""A user's own photographs: a folder with a table, the export of an annotation tool
(`data/exports/`), or pictures sorted into folders (`data/folders.py`).

`<root>/meta.csv` has the columns image, product, split and label, and if known mask and
defect_type; `NAMES` lists what else they may be called. Commas, semicolons or tabs stand between
values. What is true of a picture comes from its label and mask, never from its name.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from iad_r1.data import exports, faults, folders
from iad_r1.data.folders import DEFECTIVE, GOOD, PICTURES, SPLIT_NAMES, UNSPLIT
from iad_r1.errors import DataError
from iad_r1.settings.data import DrawnSplit, Folder, OwnMasks, needed
from iad_r1.types import Mask, Sample, Shapes

TABLES = ("meta.csv", "meta.tsv")
REQUIRED = ("image", "product", "split", "label")
OPTIONAL = ("mask", "defect_type")
# other names of the columns, in any case, with spaces, dashes or underscores between words
NAMES = {
    "image": ("image_path", "img_path", "img", "image_file", "file", "file_name", "filename",
              "filepath", "file_path", "path"),
    "product": ("category", "cls_name", "object", "part", "item"),
    "split": ("set", "subset", "phase"),
    "label": ("anomaly", "is_anomaly", "anomalous", "defective", "is_defective"),
    "mask": ("mask_path", "mask_file", "ground_truth", "gt", "gt_path"),
    "defect_type": ("defect", "defect_kind", "type", "kind", "specie_name", "anomaly_type",
                    "defect_class"),
}  # fmt: skip
LABELS = {
    **dict.fromkeys(("0", "0.0", "no", "false", *GOOD), False),
    **dict.fromkeys(("1", "1.0", "yes", "true", *DEFECTIVE), True),
}


class Settings(DrawnSplit, OwnMasks, Folder):
    """A folder of photographs. Such sets are small: `train` serves PA-SFT and SC-GRPO alike."""

    name: Literal["photos"]
    root: Annotated[
        str,
        needed(
            "folder that holds meta.csv, an export of annotations, <product>/train/good/ and so "
            "on, or good/ and <defect>/"
        ),
    ]
    # null: found out
    format: (
        Literal["table", "folders", "coco", "yolo", "voc", "labelme", "label_studio", "cvat"] | None
    )

    def announce(self) -> str:
        """Which folder, what it was taken for, and the option that says otherwise."""
        if not Path(self.root).is_dir():
            return super().announce()
        opened = _open(Path(self.root), self.format)
        if self.split == "drawn" or any(s.split == UNSPLIT for s in opened.samples):
            opened = replace(opened, said=f"{opened.said}, {self.test_share:.0%} drawn to test")
        if self.format is not None:
            return f"{super().announce()}, {opened.said}"
        return f"{super().announce()}, taken for {opened.said}; format=... reads it otherwise"


def read(settings: Settings, seed: int) -> Iterator[Sample]:
    """The pictures of a folder. Raises DataError naming the row or file that is wrong."""
    for sample in samples(Path(settings.root), settings.format):
        mask = sample.mask
        if isinstance(mask, Mask):
            inverted, threshold = settings.masks_inverted or False, settings.masks_threshold
            mask = replace(mask, inverted=inverted, threshold=threshold)
        if isinstance(mask, Mask | Shapes):
            mask = replace(mask, drawn_on=settings.masks_drawn_on)
        yield replace(sample, mask=mask)


def samples(root: Path, form: str | None) -> Iterator[Sample]:
    """The pictures of a folder, masks as they are; `form` as in `Settings`. Raises DataError."""
    if not root.is_dir():
        raise DataError(f"{root} is not a folder.")
    yield from _open(root, form).samples


def _open(root: Path, form: str | None) -> exports.Reading:
    """What is in a folder. Raises DataError."""
    dataset = root.resolve().name
    table = next((root / name for name in TABLES if (root / name).is_file()), None)
    if form == "table" or (form is None and table):
        if table is None:
            raise DataError(f"{root} holds no {' and no '.join(TABLES)}.")
        rows = list(_table(table, dataset))
        if not rows:
            raise DataError(f"{table} has no rows.")
        return exports.Reading(rows, f"a table ({table.name})")
    export = exports.find(root, form) if form != "folders" else None
    found = export.read(dataset) if export else None
    if found is None:
        found = exports.Reading(list(folders.layout(root, dataset, False)), "pictures in folders")
    if not found.samples:
        rows = list(folders.unsplit(root, dataset))
        found = exports.Reading(rows, "pictures in folders by label")
    if not found.samples:
        raise DataError(
            f"{root} holds neither {TABLES[0]} nor an export of annotations nor pictures in "
            "<product>/train/good/, <product>/train/<defect>/ and <product>/test/..., nor in "
            "good/ and <defect>/ alone. Set its "
            f"root to the folder that does, or write {TABLES[0]} with the columns "
            f"{', '.join(REQUIRED + OPTIONAL)}."
        )
    _check_splits(root, found.samples)
    return found


def _check_splits(root: Path, found: Sequence[Sample]) -> None:
    """What tests is said of every picture, or of none."""
    without = [sample for sample in found if sample.split == UNSPLIT]
    if without and len(without) < len(found):
        raise DataError(
            f"{without[0].where}: nothing says whether this picture is for training or for the "
            f"test, as of {len(without)} of {len(found)} in {root}. Put all into folders train/, "
            "val/ and test/, or name the files of annotations after them (instances_train.json)."
        )


def _table(table: Path, dataset: str) -> Iterator[Sample]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as lines:
            header = lines.readline()
            lines.seek(0)
            reader = csv.DictReader(lines, strict=True, delimiter=max(",;\t", key=header.count))
            columns = _columns(table, list(reader.fieldnames or ()))
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


def _columns(table: Path, header: list[str]) -> dict[str, str]:
    """What each column that we read is called here. Raises DataError."""
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
    missing = [column for column in REQUIRED if column not in found]
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
