"""MVTec AD 2: its public test part. The private parts have no labels and are not read.

    <root>/can/{train/good,validation/good,test_public/good,test_public/bad}/000_regular.png
    <root>/can/test_public/ground_truth/bad/000_regular_mask.png

Defects have no types.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from iad_r1.data import folders
from iad_r1.settings.data import Folder, needed
from iad_r1.types import Sample

SOURCE = (
    "MVTec AD 2: mvtec.com/company/research/datasets/mvtec-ad-2 (CC BY-NC-SA 4.0). Unpack it so "
    "that the folder holds can/, fabric/, fruit_jelly/ and so on."
)
FOLDERS = ("mvtec_ad_2", "MVTec-AD2")
SPLITS = {"train": "train", "validation": "validation", "test_public": "test"}


class Settings(Folder):
    """Where MVTec AD 2 lies."""

    name: Literal["mvtec_ad2"]
    root: Annotated[
        str, needed("folder of MVTec AD 2, which holds can/test_public/ and so on", SOURCE)
    ]


def read(settings: Settings, seed: int) -> Iterator[Sample]:
    """All pictures that have labels, category by category."""
    root = folders.there(settings.root, SOURCE)
    for product in folders.children(root):
        masks = folders.Masks(product / "test_public" / "ground_truth")
        for name, split in SPLITS.items():
            yield from folders.kinds(root, "mvtec_ad2", product, product / name, split, masks)
        masks.check(spare=True)
