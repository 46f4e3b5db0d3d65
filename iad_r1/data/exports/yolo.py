"""YOLO's labels, for detection (boxes, also turned ones) and segmentation (polygons).

    <root>/data.yaml                               with `names`; or classes.txt, obj.names
    <root>/images/<split>/a.png                    or <split>/images/a.png
    <root>/labels/<split>/a.txt                    or <split>/labels/a.txt, or beside the picture

A line is a class and numbers that are shares of the picture: centre, width and height, or a
polygon's corners. A picture without a label file is good, where others of its folder have one.
Splits are named by folders, else by `train`, `val` and `test` of data.yaml or lists (train.txt).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from iad_r1.data import faults
from iad_r1.data.exports.annotated import Annotated, Mark, box, numbers, only_split, polygon
from iad_r1.data.exports.tree import Tree, read_lines
from iad_r1.data.folders import SPLIT_NAMES
from iad_r1.errors import DataError

NAME = "YOLO"
FILES = "data.yaml (or classes.txt, obj.names) and a .txt for a picture, beside it or in labels/"
_LISTS = ("classes.txt", "obj.names")  # a name per line

Names = Mapping[int, str]


def recognise(tree: Tree) -> list[Path]:
    """The files that name the classes, if there are labels; without them the first label."""
    there = set(tree.of(".txt"))
    pictures = tree.pictures if there else []
    labels = (label for image in pictures if (label := _label(tree, image)) in there)
    first = next((label for label in labels if _is_label(label)), None)
    if first is None:
        return []
    described = tree.of(".yaml", ".yml")
    named = [path for path in described if b"names:" in path.read_bytes()]
    named += [path for path in (*tree.of(".names"), *there) if path.name in _LISTS]
    return sorted(named) or [first]


def annotated(tree: Tree, files: Sequence[Path]) -> Iterator[Annotated]:
    """The pictures that have labels, or whose folder has."""
    there = set(tree.of(".txt"))
    names = _all_names(files)
    listed = _listed(tree, files)
    folders = {label.parent for image in tree.pictures if (label := _label(tree, image)) in there}
    for image in tree.pictures:
        label = _label(tree, image)
        if label.parent not in folders:
            continue
        with faults.of_one():
            marks = _marks(label, names) if label in there else []
            shown = tree.splits_in(image.parent)
            split = "" if shown else only_split(listed.get(image, ()), str(image))
            yield Annotated(image, marks, None, split, str(label if label in there else image))


def _label(tree: Tree, image: Path) -> Path:
    """Where the label of a picture is: in labels/ instead of the last images/, or beside it."""
    parts = list(tree.relative(image).with_suffix(".txt").parts)
    if "images" not in parts[:-1]:
        return image.with_suffix(".txt")
    last = len(parts) - 2 - parts[-2::-1].index("images")
    return tree.root.joinpath(*parts[:last], "labels", *parts[last + 1 :])


def _is_label(path: Path) -> bool:
    words = path.read_text(encoding="utf-8-sig", errors="replace").split()
    try:
        return len([float(word) for word in words[:5]]) == 5
    except ValueError:
        return False


def _marks(label: Path, names: Mapping[Path, Names]) -> list[Mark]:
    lines = [(number, line) for number, line in enumerate(read_lines(label), 1) if line]
    known = _names_of(label, names) if lines else {}
    return faults.every(lambda line: _mark(line[1], known, f"{label}, line {line[0]}"), lines)


def _mark(line: str, known: Names, where: str) -> Mark:
    index, *values = numbers(line.split(), where)
    if index not in known:
        raise DataError(
            f"{where}: class {index:g} has no name; there are {len(known)}, counted from 0. "
            "Add it to the names, or correct the label."
        )
    if len(values) == 4:
        x, y, width, height = values
        outline = box(x - width / 2, y - height / 2, width, height, where)
    elif len(values) % 2:
        raise DataError(
            f"{where}: {len(values) + 1} values. A class stands before 4 numbers of a box or "
            "the x and y of every corner; predictions with a confidence are no labels."
        )
    else:
        outline = polygon(values, where)
    return Mark(known[int(index)], where, (outline,))


# --- what data.yaml says -------------------------------------------------------------------------


def _all_names(files: Sequence[Path]) -> dict[Path, Names]:
    """The names of the classes, by the folder for which they are said."""
    found: dict[Path, tuple[Path, Names]] = {}
    for file in files:
        names = _names(file)
        other, said = found.setdefault(file.parent, (file, names))
        if said != names:
            raise DataError(f"{file} and {other} name the classes differently. Keep one of them.")
    return {folder: names for folder, (_, names) in found.items()}


def _names(file: Path) -> Names:
    if file.name in _LISTS:
        return {index: name for index, name in enumerate(read_lines(file)) if name}
    if file.suffix == ".txt":
        raise DataError(
            f"{file}: nothing names the classes of these labels. Put data.yaml or classes.txt, "
            "with a name per line, beside the folders."
        )
    content = _yaml(file)
    names = content.get("names")
    if "kpt_shape" in content:
        raise DataError(f"{file}: these are labels of poses (kpt_shape), which mark no defect.")
    if isinstance(names, list):
        return {index: str(name) for index, name in enumerate(names)}
    if isinstance(names, dict) and all(isinstance(index, int) for index in names):
        return {index: str(name) for index, name in names.items()}
    raise DataError(f"{file}: names is neither a list nor numbers with a name each.")


def _names_of(label: Path, names: Mapping[Path, Names]) -> Names:
    """The names that are said nearest above a label; else the only ones there are."""
    above = [folder for folder in label.parents if folder in names]
    if not above and len(names) > 1:
        raise DataError(
            f"{label}: the classes are named in {' and in '.join(map(str, names))}, none of which "
            "is above this label. Put data.yaml above the folders that it is for."
        )
    return names[above[0] if above else next(iter(names))]


def _listed(tree: Tree, files: Sequence[Path]) -> dict[Path, set[str]]:
    """The splits in which pictures are by data.yaml and by lists."""
    found: dict[Path, set[str]] = {}
    for file in tree.of(".txt"):
        split = SPLIT_NAMES.get(file.stem.lower())
        if split and "labels" not in tree.relative(file).parts:
            for number, line in enumerate(read_lines(file), 1):
                with faults.of_one():
                    if line:
                        image = tree.find(line, file, f"{file}, line {number}")
                        found.setdefault(image, set()).add(split)
    for file in files:
        if file.suffix.lower() in (".yaml", ".yml"):
            for folder, split in _folders(_yaml(file)):
                for image in tree.pictures:
                    if _lies_in(tree.relative(image).parts[:-1], folder):
                        found.setdefault(image, set()).add(split)
    return found


def _folders(content: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Folders that data.yaml gives a split, as parts of a path."""
    for name, split in SPLIT_NAMES.items():
        said = content.get(name) or []
        for path in [said] if isinstance(said, str) else said:
            parts = tuple(p for p in str(path).replace("\\", "/").split("/") if p.strip("."))
            if parts and not parts[-1].endswith(".txt"):
                yield parts, split


def _lies_in(parts: Sequence[str], folder: Sequence[str]) -> bool:
    return any(tuple(parts[at : at + len(folder)]) == folder for at in range(len(parts)))


def _yaml(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{file} is not YAML: {error}.") from None
    return content if isinstance(content, dict) else {}
