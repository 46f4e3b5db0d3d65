"""KolektorSDD, electrical commutators, each picture cut in three: as compiled for the papers.

    <root>/{train/good,test/good,test/defect}/kos01_Part0_0.png
    <root>/ground_truth/defect/kos01_Part5_1_mask.png

Which of the good parts test cannot be recomputed from the original pictures: the released script
shuffled them in the order in which a disk listed them. So the compiled folder is read, and the
original one (kos01/Part0.jpg) is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Literal

from iad_r1.data import folders
from iad_r1.errors import DataError
from iad_r1.settings.data import Folder, needed
from iad_r1.types import Sample

SOURCE = (
    "KolektorSDD: go.vicos.si/kolektorsdd (CC BY-NC-SA 4.0); compiled, it is SDD/ in "
    "yanhui01/Industrial_test on the hub. The folder holds test/good/ and test/defect/."
)
FOLDERS = ("SDD", "KolektorSDD")
PRODUCT = "electrical commutators"


class Settings(Folder):
    """Where the compiled set lies."""

    name: Literal["sdd"]
    root: Annotated[str, needed("folder of the compiled KolektorSDD, which holds test/good/")]


def read(settings: Settings, seed: int) -> Iterator[Sample]:
    """All parts of pictures."""
    root = folders.there(settings.root, SOURCE)
    if not (root / "test").is_dir():
        raise DataError(f"{root} holds no test/. It must be compiled, cut in three. {SOURCE}")
    for sample in folders.layout(root, "sdd"):
        yield replace(sample, product=PRODUCT)
