"""KolektorSDD, electrical commutators, each picture cut in three: as compiled for the papers, or as
published.

    <root>/{train/good,test/good,test/defect}/kos01_Part0_0.png     compiled
    <root>/ground_truth/defect/kos01_Part5_1_mask.png

    <root>/kos01/{Part0.jpg,Part0_label.bmp}, ...                   as published

Pictures as published are cut as they were for the papers: at a third and two thirds of their
height, rounded down. A part is defective if its label marks a pixel of it. All defective parts
test, and a quarter of the good ones, drawn at random as the released script does, but from the
parts in the order of their names. The script took them in the order in which a disk listed them.
So which good parts the papers tested cannot be recomputed, and this choice is called `ours`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

from iad_r1.data import faults, folders
from iad_r1.errors import DataError
from iad_r1.settings.data import Folder, needed
from iad_r1.types import Cut, Mask, Sample, Solution

SOURCE = (
    "KolektorSDD: go.vicos.si/kolektorsdd (CC BY-NC-SA 4.0). Unpack it so that the folder holds "
    "kos01/ to kos50/; compiled, it is SDD/ in yanhui01/Industrial_test on the hub, which holds "
    "test/good/ and test/defect/."
)
FOLDERS = ("SDD", "KolektorSDD")
PRODUCT = "electrical commutators"
PARTS = 3
TEST_SHARE, TEST_SEED = 0.25, 42  # of the good parts, in the released script


class Settings(Folder):
    """Where KolektorSDD lies."""

    name: Literal["sdd"]
    root: Annotated[str, needed("folder of KolektorSDD, which holds test/good/ or kos01/", SOURCE)]


def read(settings: Settings, seed: int) -> Iterator[Sample]:
    """All parts of pictures. The choice is one, whatever the seed."""
    root = folders.there(settings.root, SOURCE)
    if (root / "test").is_dir():
        for sample in folders.layout(root, "sdd"):
            yield replace(sample, product=PRODUCT)
        return
    parts = [part for item in folders.children(root) for part in _parts(root, item)]
    if not parts:
        raise DataError(f"{root} holds neither test/ nor kos01/Part0.jpg. {SOURCE}")
    yield from _split(parts)


def _parts(root: Path, item: Path) -> Iterator[Sample]:
    for image in folders.pictures(item):
        if not image.stem.endswith("_label"):
            with faults.of_one():
                yield from _cuts(item, image)


def _cuts(item: Path, image: Path) -> Iterator[Sample]:
    from iad_r1.data import images

    label = image.with_name(f"{image.stem}_label.bmp")
    if not label.is_file():
        raise DataError(f"{image}: its label {label.name} is not there. {SOURCE}")
    marked = images.marked(label)
    height, width = marked.shape
    edges = [height * k // PARTS for k in range(PARTS + 1)]
    for k, (top, bottom) in enumerate(pairwise(edges)):
        defective = marked[top:bottom].any()
        yield Sample(
            id=f"sdd/{item.name}_{image.stem}_{k}",
            dataset="sdd",
            split="test.ours",
            product=PRODUCT,
            image=Cut(image, (0, top, width, bottom)),
            solution=Solution("Yes" if defective else "No"),
            mask=Mask((label,)) if defective else None,
            where=f"{image}, part {k} of 0 to {PARTS - 1}",
        )


def _split(parts: list[Sample]) -> Iterator[Sample]:
    """All parts; the good ones that do not test are in `train`, as references."""
    from sklearn.model_selection import train_test_split

    good = sorted(part.id for part in parts if part.solution.answer == "No")
    if len(good) < 2:
        raise DataError(f"KolektorSDD needs good parts to test on and others to refer to. {SOURCE}")
    shown, _ = train_test_split(good, test_size=TEST_SHARE, random_state=TEST_SEED)
    references = set(shown)
    for part in parts:
        yield replace(part, split="train") if part.id in references else part
