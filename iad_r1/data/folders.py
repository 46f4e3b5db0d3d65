"""What a folder of photographs says about itself, one row per picture, before any is opened.

Either `<root>/meta.csv` with the columns image, product, split and label, and if known mask and
defect_type; or the layout of MVTec AD, with defects in `train` too:

    <root>/<product>/{train,test}/{good,<defect>}/<picture>
    <root>/<product>/ground_truth/<defect>/<picture's name>[_mask].png
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from iad_r1.errors import DataError

TABLE = "meta.csv"
REQUIRED = ("image", "product", "split", "label")
OPTIONAL = ("mask", "defect_type")
SPLITS = ("train", "test")
PICTURES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"))
GOOD = frozenset(("good", "normal", "ok"))
LABELS = {
    **dict.fromkeys(("0", "no", *GOOD), False),
    **dict.fromkeys(("1", "yes", "bad", "ng", "defective", "anomalous", "anomaly"), True),
}
# words that say only that there is a defect, not which
UNTYPED = frozenset(
    ("", "unspecified", "unknown", "none", "bad", "ng", "defect", "defective", "anomaly",
     "anomalous")
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One picture as its folder describes it. `where` names the row for an error message."""

    where: str
    image: Path
    mask: Path | None
    product: str
    split: str  # train or test
    defective: bool
    type: str | None  # None: sound, or not annotated


def read(root: Path) -> list[Row]:
    """All rows of a folder. Raises DataError naming the row or file that is wrong."""
    if not root.is_dir():
        raise DataError(f"data.root={root} is not a folder.")
    table = root / TABLE
    rows = list(_table(table) if table.is_file() else _layout(root))
    if not rows and table.is_file():
        raise DataError(f"{table} has no rows.")
    if not rows:
        raise DataError(
            f"data.root={root} holds neither {TABLE} nor pictures in <product>/train/good/, "
            "<product>/train/<defect>/ and <product>/test/... . Set data.root to the folder that "
            f"does, or write {TABLE} with the columns {', '.join(REQUIRED + OPTIONAL)}."
        )
    _check_unique(rows)
    return rows


def words(name: str) -> str:
    """A name from a folder or table as people write it: "missing_leg" is "missing leg"."""
    return " ".join(name.replace("_", " ").split())


# --- meta.csv ----------------------------------------------------------------------------------


def _table(table: Path) -> Iterator[Row]:
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
                yield _row(table, f"{table}, line {reader.line_num}", values, columns)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table} is not a comma-separated UTF-8 table ({error}).") from error


def _row(table: Path, where: str, values: dict, columns: list[str]) -> Row:
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
    defective = LABELS[value["label"].lower()]
    return Row(
        where=where,
        image=_path(table.parent, value["image"]),
        mask=_path(table.parent, value["mask"]) if value["mask"] else None,
        product=words(value["product"]),
        split=value["split"],
        defective=defective,
        type=_type(where, value["defect_type"], defective),
    )


def _path(root: Path, value: str) -> Path:
    return root / value.replace("\\", "/")


def _type(where: str, name: str, defective: bool) -> str | None:
    """The defect type in words, or None. Raises DataError where label and type disagree."""
    kind = words(name).lower()
    if (kind in GOOD) if defective else (kind not in GOOD | UNTYPED):
        raise DataError(
            f"{where}: the label says {'defective' if defective else 'good'}, but the defect type "
            f"is {name!r}. Correct one of them."
        )
    if "<" in kind or ">" in kind:
        raise DataError(f"{where}: the defect type {name!r} holds an angle bracket.")
    return kind if defective and kind not in UNTYPED else None


# --- folders -----------------------------------------------------------------------------------


def _layout(root: Path) -> Iterator[Row]:
    """Rows in the order of the names, the same on every machine."""
    is_product = any((root / split).is_dir() for split in SPLITS)
    for product in [root.resolve()] if is_product else _folders(root):
        for split in SPLITS:
            for kind in _folders(product / split):
                yield from _of_kind(product, split, kind)


def _of_kind(product: Path, split: str, folder: Path) -> Iterator[Row]:
    defective = folder.name.lower() not in GOOD
    masks = {path.stem: path for path in _pictures(product / "ground_truth" / folder.name)}
    for image in _pictures(folder):
        yield Row(
            where=str(image),
            image=image,
            mask=masks.get(image.stem, masks.get(f"{image.stem}_mask")) if defective else None,
            product=words(product.name),
            split=split,
            defective=defective,
            type=_type(str(image), folder.name, True) if defective else None,
        )


def _folders(parent: Path) -> list[Path]:
    if not parent.is_dir():
        return []
    return sorted(path for path in parent.iterdir() if path.is_dir())


def _pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES)


# --- checks ------------------------------------------------------------------------------------


def _check_unique(rows: Iterable[Row]) -> None:
    """No picture twice, and no mask for two pictures."""
    images: dict[Path, Row] = {}
    masks: dict[Path, Row] = {}
    for row in rows:
        first = images.setdefault(row.image.resolve(), row)
        if first is not row:
            raise DataError(f"{row.where}: {row.image.name} is listed already in {first.where}.")
        if row.mask is None:
            continue
        first = masks.setdefault(row.mask.resolve(), row)
        if first is not row:
            raise DataError(
                f"{row.where}: its mask {row.mask.name} belongs to {first.where} already. "
                "Give every defective picture a mask of its own, and pictures different names."
            )
