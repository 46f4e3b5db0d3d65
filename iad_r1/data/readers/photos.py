"""A user's own photographs: a folder with a table, the export of an annotation tool
(`data/exports/`), or pictures sorted into folders (`data/folders.py`).

The table is `<root>/meta.csv` (`data/tables.py`). What is true of a picture comes from its label
and mask, never from its name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from iad_r1.data import exports, folders, tables
from iad_r1.data.folders import UNSPLIT
from iad_r1.data.tables import OPTIONAL, REQUIRED, TABLES
from iad_r1.errors import DataError
from iad_r1.settings.data import DrawnSplit, Folder, OwnMasks, needed
from iad_r1.types import Mask, Sample, Shapes


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
        Literal[
            "table", "folders", "coco", "yolo", "voc", "labelme", "label_studio", "cvat",
            "huggingface",
        ]
        | None
    )  # fmt: skip

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


@folders.readable()
def _open(root: Path, form: str | None) -> exports.Reading:
    """What is in a folder. Raises DataError."""
    dataset = root.resolve().name
    table = next((root / name for name in TABLES if (root / name).is_file()), None)
    if form == "table" or (form is None and table):
        if table is None:
            raise DataError(f"{root} holds no {' and no '.join(TABLES)}.")
        rows, said = tables.read(table, dataset)
        if not rows:
            raise DataError(f"{table} has no rows.")
        return exports.Reading(rows, ", ".join((f"a table ({table.name})", *said)))
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
