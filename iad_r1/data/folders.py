"""Pictures in folders by product, part and defect, as MVTec AD has them, before any is opened:

    <root>/<product>/{train,validation,test}/{good,<defect>}/<picture>
    <root>/<product>/ground_truth/<defect>/<picture's name>[_mask].png
    <root>/<product>/ground_truth/<defect>/<picture's name>/*.png    several masks, taken together

Hidden files and folders are left alone. Every other mask must belong to a picture.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from iad_r1.data import faults
from iad_r1.errors import DataError
from iad_r1.types import Mask, Sample, Solution

SPLITS = ("train", "validation", "test")
SPLIT_NAMES = {**{split: split for split in SPLITS}, "val": "validation", "valid": "validation"}
PICTURES = frozenset(
    (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".gif",
     ".pgm", ".ppm", ".pbm", ".pnm", ".jp2", ".tga", ".avif")
)  # fmt: skip
UNOPENED = frozenset(
    (".heic", ".heif", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".psd", ".exr", ".svg")
)
GOOD = frozenset(("good", "normal", "ok", "okay", "pass", "passed", "io", "i.o."))
# words that say only that there is a defect
DEFECTIVE = frozenset(
    ("abnormal", "anomalies", "anomalous", "anomaly", "bad", "def", "defect", "defective",
     "defects", "fail", "failed", "faulty", "ko", "n.i.o.", "ng", "nio", "no good", "nok",
     "not good", "not ok", "reject", "rejected")
)  # fmt: skip
# words that say nothing of a type
UNTYPED = DEFECTIVE | {"", "-", "?", "n.a.", "n/a", "na", "nan", "none", "null", "unknown",
                       "unspecified"}  # fmt: skip
# what tools add to the name of a picture to name its mask
SUFFIXES = ("", "_mask", "_gt", "_label", "_seg", "_segmentation", "_annotation", "_rgb_mask",
            "_rbg_mask")  # fmt: skip
NEGATIONS = frozenset(("not", "no", "non"))
# before the name of a type or a view: "defect_scratch", "def_front"
PREFIXES = frozenset(("def", "defect", "defects", "ko", "ng", "nio", "nok"))


def layout(
    root: Path,
    dataset: str,
    spare_masks: bool = True,
    splits: Mapping[str, str] = MappingProxyType(SPLIT_NAMES),
) -> Iterator[Sample]:
    """The samples below `root`, or in it where it is a single product, in the order of the names:
    the same on every machine. `splits` maps the folders that are looked for to splits.

    Raises DataError where a kind of defect has masks that belong to none of its pictures, or, if
    not `spare_masks`, where one mask does.
    """
    is_product = any((root / name).is_dir() for name in splits)
    for product in [root.resolve()] if is_product else children(root):
        masks = Masks(product / "ground_truth")
        for name, split in splits.items():
            yield from kinds(root, dataset, product, product / name, split, masks)
        with faults.of_one():
            masks.check(spare_masks)


def kinds(
    root: Path, dataset: str, product: Path, folder: Path, split: str, masks: Masks
) -> Iterator[Sample]:
    """The samples in a folder that holds a folder for every kind of them."""
    found = [kind for kind in children(folder) if kind.name != masks.folder.name]
    views = {view for kind in found if (view := _view(kind.name))}
    for kind in found:
        yield from _of_kind(root, dataset, product, split, kind, views, masks)


def there(root: str, source: str) -> Path:
    """The folder of a data set. Raises DataError that says where to get it."""
    if not Path(root).is_dir():
        raise DataError(f"{root} is not a folder. {source}")
    return Path(root)


def _of_kind(
    root: Path,
    dataset: str,
    product: Path,
    split: str,
    folder: Path,
    views: set[str],
    masks: Masks,
) -> Iterator[Sample]:
    defective = not is_good(folder.name)
    kind = kind_of(folder.name, views) if defective else ""
    found = pictures(folder)
    if not found:
        return
    with faults.of_one():  # whatever is wrong here concerns all of them
        truth = solution(str(found[0]), defective, kind)
        below, shown = relative(folder, root), words(product.name)
        for image in found:
            with faults.of_one():
                yield Sample(
                    id=f"{dataset}/{below}/{image.name}",
                    dataset=dataset,
                    split=split,
                    product=shown,
                    image=image,
                    solution=truth,
                    mask=masks.of(folder.name, image),
                    where=str(image),
                )


class Masks:
    """The masks of a product, in a folder per kind of defect; each belongs to one picture."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kinds: dict[str, dict[str, Path]] = {}
        self.folders: set[Path] = set()  # masks that are folders of several
        for kind in children(folder):
            several = children(kind)
            self.folders.update(several)
            named = {path.name: path for path in several}
            self.kinds[kind.name] = named | {path.stem: path for path in pictures(kind)}
        self.used: set[Path] = set()

    def of(self, kind: str, image: Path) -> Mask | None:
        """The mask of a picture, by its name. Raises DataError where there are two."""
        here = self.kinds.get(kind, {})
        names = [f"{name}{suffix}" for name in (image.stem, image.name) for suffix in SUFFIXES]
        found = [here[name] for name in names if name in here]
        if len(found) > 1:
            raise DataError(
                f"{image} has two masks, {found[0]} and {found[1]}. Keep one, or put both into a "
                f"folder {found[0].parent / image.stem} if they are to be taken together."
            )
        self.used.update(found)
        if not found:
            return None
        return Mask(tuple(pictures(found[0])) if found[0] in self.folders else (found[0],))

    def check(self, spare: bool) -> None:
        """Raises DataError for a mask without a picture; where there may be `spare` ones, only if
        a whole kind of defect has no other."""
        for kind, names in self.kinds.items():
            left = [path for path in names.values() if path not in self.used]
            if left and not (spare and len(left) < len(names)):
                others = f", as {len(left) - 1} others in {kind}/" if left[1:] else ""
                raise DataError(
                    f"{left[0]}: this mask belongs to no picture{others}. A mask is called like "
                    f"its picture, with nothing or {', '.join(filter(None, SUFFIXES))} behind the "
                    "name, or lies in a folder of that name. Rename the masks, or take them out."
                )


def is_good(name: str) -> bool:
    """Whether a folder or label of this name holds sound parts: "good", "OK", "good_2", "ok_front",
    but not "not_good"."""
    tokens = words(name).lower().replace("-", " ").split()
    return bool({*tokens[:1], *tokens[-1:]} & GOOD) and not NEGATIONS & set(tokens)


def kind_of(name: str, views: Iterable[str] = ()) -> str:
    """The type that the name of a folder of defects says, in words: "" where it says none. Behind
    a word like "def" stands a type ("defect_scratch"), unless it is a number or one of `views`,
    which good parts have too ("def_front" beside "ok_front")."""
    kind = words(name)
    first, _, rest = kind.replace("-", " ").partition(" ")
    if first.lower() in UNTYPED and (rest.isdigit() or rest.lower() in views):
        return ""
    return rest if first.lower() in PREFIXES and rest else kind


def _view(name: str) -> str:
    """What a folder of good parts says beside "good"."""
    tokens = words(name).lower().replace("-", " ").split()
    return " ".join(token for token in tokens if token not in GOOD) if is_good(name) else ""


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


def read_json(file: Path) -> Any:
    """What a JSON file says. Raises DataError."""
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise DataError(f"{file} is not JSON: {error}.") from None


def pictures(folder: Path) -> list[Path]:
    """The pictures in a folder, by name. Raises DataError for one of a format that is not read."""
    found: list[Path] = []
    for entry in _visible(folder):
        extension = os.path.splitext(entry.name)[1].lower()
        if extension in UNOPENED:
            with faults.of_one():
                raise DataError(
                    f"{entry.path}: pictures of this format are not read. Save them as PNG or JPEG."
                )
        if extension in PICTURES:
            found.append(folder / entry.name)
    return found


def children(parent: Path) -> list[Path]:
    """The folders in a folder, by name."""
    return [parent / entry.name for entry in _visible(parent) if entry.is_dir()]


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, by name; it knows what is a folder without asking the disk again."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        found = [e for e in entries if not e.name.startswith(".") and e.name != "__MACOSX"]
    return sorted(found, key=lambda entry: entry.name)
