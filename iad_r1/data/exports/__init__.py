"""Exports of annotation tools: one module per format, found by what lies in a folder.

A format says which files it is made of (`recognise`) and what they mark (`annotated`). What is true
of all formats is in `annotated.py`: what a defect is, splits, products, limits. No picture is
opened: an annotation becomes a mask when the mask is asked for (`data/shapes.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from iad_r1.data.exports import coco, cvat, huggingface, label_studio, labelme, voc, yolo
from iad_r1.data.exports.annotated import Annotated, Reading, reading
from iad_r1.data.exports.tree import Tree
from iad_r1.errors import DataError


class Format(Protocol):
    """A module of this package."""

    @property
    def NAME(self) -> str:
        """As its makers write it."""
        ...

    @property
    def FILES(self) -> str:
        """What it is made of, for an error message."""
        ...

    def recognise(self, tree: Tree) -> Sequence[Path]:
        """The files that are annotations of this format; none where it is another."""
        ...

    def annotated(self, tree: Tree, files: Sequence[Path]) -> Iterator[Annotated]:
        """The pictures that the files know of. Raises DataError naming file and entry."""
        ...


FORMATS: dict[str, Format] = {
    "coco": coco,
    "yolo": yolo,
    "voc": voc,
    "labelme": labelme,
    "label_studio": label_studio,
    "cvat": cvat,
    "huggingface": huggingface,
}


@dataclass(frozen=True)
class Export:
    """Annotations of one format that lie in a folder."""

    tree: Tree
    format: Format
    files: Sequence[Path]

    def read(self, dataset: str) -> Reading:
        """All its pictures. Raises DataError."""
        named = [path.relative_to(self.tree.root).as_posix() for path in self.files[:1]]
        more = f" and {len(self.files) - 1} more" if self.files[1:] else ""
        source = f"{self.format.NAME} ({named[0]}{more})"
        return reading(
            self.tree, dataset, source, list(self.format.annotated(self.tree, self.files))
        )


def find(root: Path, wanted: str | None) -> Export | None:
    """The export in a folder: of the format that is `wanted`, or else of the only one there is.
    Raises DataError where there are several, or not what is wanted."""
    tree = Tree(root)
    formats = FORMATS if wanted is None else {wanted: FORMATS[wanted]}
    found = {key: files for key, form in formats.items() if (files := form.recognise(tree))}
    if len(found) > 1:
        named = " and ".join(f"{FORMATS[key].NAME} ({files[0]})" for key, files in found.items())
        options = " or ".join(f"data.format={key}" for key in found)
        raise DataError(
            f"{root} holds annotations of several formats: {named}. Say which are to be read: "
            f"{options} (of a benchmark: benchmark.photos.format)."
        )
    if wanted and not found:
        form = FORMATS[wanted]
        raise DataError(f"{root} holds no annotations of {form.NAME}: {form.FILES}.")
    return next((Export(tree, FORMATS[key], files) for key, files in found.items()), None)
