"""DAGM 2007, drawn textures with weak labels: as Kaggle has it, or flattened without labels.

    <root>/Class1/[Class1/]{Train,Test}/0576.PNG
    <root>/Class1/[Class1/]{Train,Test}/Label/{Labels.txt,0576_label.PNG}

    <root>/Class1/{good,defect}/0001.PNG        the test half alone

Every label is an ellipse around the defect: places are right, areas are not. Defects have no types.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from iad_r1.data import faults, folders
from iad_r1.errors import DataError
from iad_r1.settings.data import Folder, needed
from iad_r1.types import Mask, Sample, Solution

SOURCE = (
    "DAGM 2007: kaggle.com/datasets/mhskjelvareid/dagm-2007-competition-dataset-optical-inspection "
    "or Zenodo 12750201 (check the licence there). Unpack it so that the folder holds Class1/ to "
    "Class10/."
)
FOLDERS = ("DAGM", "DAGM_KaggleUpload", "DAGM2007")
HALVES = {"Train": "train", "Test": "test"}


class Settings(Folder):
    """Where DAGM lies."""

    name: Literal["dagm"]
    root: Annotated[str, needed("folder of DAGM, which holds Class1/Test/ or Class1/good/", SOURCE)]


def read(settings: Settings, seed: int) -> Iterator[Sample]:
    """All pictures, class by class: Class2 before Class10."""
    root = folders.there(settings.root, SOURCE)
    classes = sorted(folders.children(root), key=lambda folder: (len(folder.name), folder.name))
    for folder in classes:
        inner = folder / folder.name if (folder / folder.name).is_dir() else folder
        if (inner / "Test").is_dir():
            for half, split in HALVES.items():
                yield from _labelled(root, folder.name, inner / half, split)
        else:
            masks = folders.Masks(folder / "ground_truth")
            yield from folders.kinds(root, "dagm", folder, folder, "test", masks)


def _labelled(root: Path, product: str, half: Path, split: str) -> Iterator[Sample]:
    """Defective is what has a label; the table, where there is one, has to say the same."""
    labels = {path.stem: path for path in folders.pictures(half / "Label")}
    table = _table(half / "Label" / "Labels.txt")
    for image in folders.pictures(half):
        label = labels.get(f"{image.stem}_label")
        with faults.of_one():
            said = table.get(image.stem)
            if said is not None and said != (label is not None):
                raise DataError(
                    f"{image}: Labels.txt says {'defective' if said else 'good'}, but it has "
                    f"{'a' if label else 'no'} label picture. Unpack the data set again."
                )
            yield Sample(
                id=f"dagm/{folders.relative(image, root)}",
                dataset="dagm",
                split=split,
                product=folders.words(product),
                image=image,
                solution=Solution("Yes" if label else "No"),
                mask=Mask((label,)) if label else None,
                where=str(image),
            )


def _table(file: Path) -> dict[str, bool]:
    """Name of a picture to whether it is defective. Rows are index, flag, picture, -, label."""
    if not file.is_file():
        return {}
    rows = (line.split("\t") for line in file.read_text(encoding="utf-8-sig").splitlines())
    return {Path(row[2]).stem: row[1].strip() == "1" for row in rows if len(row) > 2}
