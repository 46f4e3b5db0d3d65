"""Pictures in folders by product, part and defect, as MVTec AD has them, before any is opened:

    <root>/<product>/{train,validation,test}/{good,<defect>}/<picture>
    <root>/<product>/ground_truth/<defect>/<picture's name>[_mask].png
    <root>/<product>/ground_truth/<defect>/<picture's name>/*.png    several masks, taken together

or without parts, as a camera or anomalib's `Folder` has them:

    <root>/[<product>/]{good,<defect>}/[<folder>/]<picture>
    <root>/[<product>/]masks/[<defect>/]<picture's name>[_mask].png

Hidden files and folders are left alone. Every other mask must belong to a picture.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from iad_r1.data import faults
from iad_r1.errors import DataError
from iad_r1.types import Mask, Sample, Solution

SPLITS = ("train", "validation", "test")
UNSPLIT = ""  # where nothing says whether a picture trains or tests; see `mix`
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
# what folders of masks are called
MASKS = frozenset(
    ("annotation", "annotations", "ground truth", "groundtruth", "gt", "label", "labels", "mask",
     "masks", "segmentation", "segmentations")
)  # fmt: skip
# what systems put beside the files of a disk or archive
SYSTEM = frozenset(("$RECYCLE.BIN", "System Volume Information", "__MACOSX", "lost+found"))
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
        parts = {product / name: split for name, split in splits.items()}
        if not any(part.is_dir() for part in parts):
            continue
        masks = Masks(product / "ground_truth")
        for part, split in parts.items():
            yield from kinds(root, dataset, product, part, split, masks)
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


def unsplit(root: Path, dataset: str) -> Iterator[Sample]:
    """The samples of products whose folders say what a picture is, and not whether it trains or
    tests: `root` is a product if one of its folders says good, else its folders are.

    Pictures may lie in further folders. Raises DataError for pictures in no folder of a kind, and
    for a folder that says another label than the one it lies in.
    """
    root = root.resolve()
    products = [folder for folder in children(root) if _says_good(folder)]
    for folder in children(root) if products else ():
        if folder not in products and below(folder):
            raise DataError(
                f"{folder}: none of its folders is called good, as in {products[0]}, so nothing "
                f"says which of its pictures are. Sort them into folders such as {folder / 'good'}."
            )
    for product in products or ([root] if _says_good(root) else []):
        stray = pictures(product)
        if stray:
            raise DataError(
                f"{stray[0]} lies beside the folders that say what a picture is, as "
                f"{len(stray) - 1} others. Put it into one of them, such as {product / 'good'}."
            )
        found = [folder for folder in children(product) if _holds_masks(folder)]
        if len(found) > 1:
            raise DataError(
                f"{product}: which folder holds the masks, {' or '.join(f.name for f in found)}? "
                "Keep one."
            )
        masks = Masks(found[0] if found else product / "masks")
        yield from kinds(root, dataset, product, product, UNSPLIT, masks)
        with faults.of_one():
            masks.check(spare=False)


def _says_good(product: Path) -> bool:
    """Whether there is a folder of good pictures in this one."""
    return any(is_good(kind.name) and below(kind) for kind in children(product))


def _holds_masks(folder: Path) -> bool:
    return words(folder.name).lower() in MASKS


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
    images = below(folder)
    if not images:
        return
    beside = _beside(images)
    masks.take(folder.name, sorted(beside))
    for inner in filter(_holds_masks, children(folder)):
        masks.add(folder.name, inner)
    with faults.of_one():  # whatever is wrong here concerns all of them
        truth = solution(str(images[0]), defective, kind)
        shown, names = words(product.name), _Relative(root)
        for image in images if not beside else [i for i in images if i not in beside]:
            with faults.of_one():
                yield Sample(
                    id=f"{dataset}/{names[image.parent]}/{image.name}",
                    dataset=dataset,
                    split=split,
                    product=shown,
                    image=image,
                    solution=truth,
                    mask=masks.of(folder.name, image, defective),
                    where=str(image),
                )


class _Relative(dict[Path, str]):
    """How folders are named in an id; a folder of many pictures is asked once."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root

    def __missing__(self, folder: Path) -> str:
        self[folder] = relative(folder, self.root)
        return self[folder]


class Masks:
    """The masks of a product, in a folder per kind of defect, or all in one; each belongs to one
    picture."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kinds: dict[str, dict[str, Path]] = {}
        self.folders: set[Path] = set()  # masks that are folders of several
        for kind in children(folder):
            self.add(kind.name, kind)
        self.take("", pictures(folder))
        self.used: set[Path] = set()

    def add(self, kind: str, folder: Path) -> None:
        """The masks in a folder, of a kind of defect."""
        several = children(folder)
        self.folders.update(several)
        self.take(kind, [*several, *pictures(folder)])

    def take(self, kind: str, masks: Iterable[Path]) -> None:
        """More masks of a kind of defect; those of kind "" are of any. Raises DataError where two
        are called alike."""
        named = self.kinds.setdefault(kind, {})
        for mask in masks:
            first = named.setdefault(mask.name if mask in self.folders else mask.stem, mask)
            if first != mask:
                raise DataError(f"{mask} and {first} are masks of one name. Keep one.")

    def of(self, kind: str, image: Path, defective: bool = True) -> Mask | None:
        """The mask of a picture, by its name; what lies among the masks of any kind is no mask of a
        good picture. Raises DataError where there are two."""
        names = [f"{name}{suffix}" for name in (image.stem, image.name) for suffix in SUFFIXES]
        here, of_any = self.kinds.get(kind, {}), self.kinds[""]
        found = [here[name] for name in names if name in here]
        others = [of_any[name] for name in names if name in of_any]
        self.used.update(others)
        if defective:
            found += others
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
        for names in self.kinds.values():
            left = [path for path in names.values() if path not in self.used]
            if left and not (spare and len(left) < len(names)):
                others = f", as {len(left) - 1} others in {left[0].parent}" if left[1:] else ""
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


def read_json(file: Path, source: str = "") -> Any:
    """What a JSON file says. Raises DataError; where the file is missing, with where to get it."""
    if not file.is_file():
        raise DataError(f"{file} is not there. {source}".rstrip())
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise DataError(f"{file} is not JSON: {error}.") from None


def mapping(value: Any, where: str) -> dict[str, Any]:
    """A JSON object. Raises DataError for anything else."""
    if not isinstance(value, dict):
        raise DataError(f"{where}: an object with keys was expected, not {str(value)[:60]!r}.")
    return value


def wrong(error: ValidationError) -> str:
    """The first thing that is wrong with an item of a list."""
    said = error.errors()[0]
    return f"{'.'.join(map(str, said['loc']))}: {said['msg'].lower()}."


@contextmanager
def readable() -> Iterator[None]:
    """Inside, a folder or file that cannot be looked into raises DataError. It is never left out,
    for nobody would miss what lies there."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{error.filename or 'The folder'} cannot be looked into ({error.strerror or error}). "
            "Make it readable, or take it out of the folder."
        ) from None


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is none of the user's."""
    return name.startswith(".") or name in SYSTEM


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


def below(folder: Path) -> list[Path]:
    """The pictures in a folder of a kind and in its folders, but those of masks. Raises DataError
    for a folder that says another label than the one it lies in."""
    found = pictures(folder)
    for inner in children(folder):
        if _holds_masks(inner):
            continue
        if is_good(inner.name) and not is_good(folder.name):
            raise DataError(_contradicts(inner, "good", "defective"))
        if words(inner.name).lower() in DEFECTIVE and is_good(folder.name):
            raise DataError(_contradicts(inner, "defective", "good"))
        found += below(inner)
    return found


def _contradicts(folder: Path, says: str, other: str) -> str:
    return (
        f"{folder}: its name says {says}, and that of the folder it lies in {other}. Move or "
        "rename one of them."
    )


def _beside(images: Sequence[Path]) -> set[Path]:
    """Masks that lie beside their pictures, called like them with a word behind."""
    named = [image for image in images if image.stem.endswith(SUFFIXES[1:])]
    there = {(image.parent, image.stem) for image in images} if named else ()
    return {
        image
        for image in named
        for suffix in SUFFIXES[1:]
        if image.stem.endswith(suffix) and (image.parent, image.stem.removesuffix(suffix)) in there
    }


def raised(error: OSError) -> None:
    """For `os.walk`, which leaves out what it cannot look into."""
    raise error


def children(parent: Path) -> list[Path]:
    """The folders in a folder, by name."""
    return [parent / entry.name for entry in _visible(parent) if entry.is_dir()]


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, by name; it knows what is a folder without asking the disk again."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        found = [entry for entry in entries if not is_hidden(entry.name)]
    return sorted(found, key=lambda entry: entry.name)
