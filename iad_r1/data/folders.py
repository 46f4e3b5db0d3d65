"""Pictures in folders by product, part and defect, as MVTec AD has them, before any is opened:

    <root>/<product>/{train,test}/{good,<defect>}/<picture>
    <root>/<product>/ground_truth/<defect>/<picture's name>[_mask].png

Hidden files and folders are left alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from iad_r1.errors import DataError
from iad_r1.types import Sample, Solution

SPLITS = ("train", "test")
PICTURES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"))
GOOD = frozenset(("good", "normal", "ok"))
# words that say only that there is a defect, not which
UNTYPED = frozenset(
    ("", "unspecified", "unknown", "none", "bad", "ng", "defect", "defective", "anomaly",
     "anomalous")
)  # fmt: skip


def layout(root: Path, dataset: str) -> Iterator[Sample]:
    """The samples below `root`, or in it where it is a single product, in the order of the names:
    the same on every machine."""
    is_product = any((root / split).is_dir() for split in SPLITS)
    for product in [root.resolve()] if is_product else _folders(root):
        for split in SPLITS:
            for kind in _folders(product / split):
                yield from _of_kind(root, dataset, product, split, kind)


def _of_kind(root: Path, dataset: str, product: Path, split: str, folder: Path) -> Iterator[Sample]:
    defective = folder.name.lower() not in GOOD
    masks = {path.stem: path for path in _pictures(product / "ground_truth" / folder.name)}
    for image in _pictures(folder):
        mask = masks.get(image.stem, masks.get(f"{image.stem}_mask")) if defective else None
        yield Sample(
            id=f"{dataset}/{relative(image, root)}",
            dataset=dataset,
            split=split,
            product=words(product.name),
            image=image,
            solution=solution(str(image), defective, folder.name if defective else ""),
            mask=mask,
            where=str(image),
        )


def solution(where: str, defective: bool, name: str) -> Solution:
    """The label and, in words, the type of a defect; its place is in the mask. Raises DataError
    where label and type disagree."""
    kind = words(name).lower()
    if (kind in GOOD) if defective else (kind not in GOOD | UNTYPED):
        raise DataError(
            f"{where}: the label says {'defective' if defective else 'good'}, but the defect type "
            f"is {name!r}. Correct one of them."
        )
    if "<" in kind or ">" in kind:
        raise DataError(f"{where}: the defect type {name!r} holds an angle bracket.")
    if not defective:
        return Solution("No")
    return Solution("Yes", None, kind if kind not in UNTYPED else None)


def words(name: str) -> str:
    """A name from a folder or table as people write it: "missing_leg" is "missing leg"."""
    return " ".join(name.replace("_", " ").split())


def relative(path: Path, root: Path) -> str:
    """A path as it is named in an id: wherever the data set lies."""
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def _folders(parent: Path) -> list[Path]:
    return [path for path in _visible(parent) if path.is_dir()]


def _pictures(folder: Path) -> list[Path]:
    return [path for path in _visible(folder) if path.suffix.lower() in PICTURES]


def _visible(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
