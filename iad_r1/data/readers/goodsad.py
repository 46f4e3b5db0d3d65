"""GoodsAD, goods in shops: in the layout of MVTec AD, with JPEG pictures.

    <root>/cigarette_box/{train/good,test/good,test/opened}/000000.jpg
    <root>/cigarette_box/ground_truth/opened/000000.png

Pictures are 3000 x 3000 pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from iad_r1.data import folders
from iad_r1.settings.data import Folder, needed
from iad_r1.types import Sample

SOURCE = (
    "GoodsAD: github.com/jianzhang96/GoodsAD links to it (licence not stated). Unpack it so that "
    "the folder holds cigarette_box/, drink_bottle/, drink_can/, food_bottle/, food_box/ and "
    "food_package/."
)
FOLDERS = ("GoodsAD", "MMAD/GoodsAD")


class Settings(Folder):
    """Where GoodsAD lies."""

    name: Literal["goodsad"]
    root: Annotated[
        str, needed("folder of GoodsAD, which holds cigarette_box/test/good/ and so on", SOURCE)
    ]


def read(settings: Settings, seed: int) -> Iterator[Sample]:
    """All pictures, category by category."""
    return folders.layout(folders.there(settings.root, SOURCE), "goodsad")
