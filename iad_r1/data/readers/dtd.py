"""DTD-Synthetic, textures with painted defects: in the layout of MVTec AD.

    <root>/Woven_001/{train/good,test/good,test/bad}/000.png
    <root>/Woven_001/ground_truth/bad/000_mask.png

The good test pictures of Woven_068 are called mesh_000.png and so on: whether they show that
texture is not known. Defects have no types. Aota et al., WACV 2023.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from iad_r1.data import folders
from iad_r1.settings.data import Folder, needed
from iad_r1.types import Sample

SOURCE = (
    "DTD-Synthetic: the authors' Google Drive folder 10OyPzvI3H6llCZBxKxFlKWt1Pw1tkMK1 (licence "
    "not stated; DTD itself is for research). Unpack it so that the folder holds Blotchy_099/ and "
    "so on."
)
FOLDERS = ("DTD-Synthetic", "DTD")


class Settings(Folder):
    """Where DTD-Synthetic lies."""

    name: Literal["dtd"]
    root: Annotated[
        str, needed("folder of DTD-Synthetic, which holds Woven_001/test/good/ and so on", SOURCE)
    ]


def read(settings: Settings, seed: int) -> Iterator[Sample]:
    """All pictures, texture by texture."""
    return folders.layout(folders.there(settings.root, SOURCE), "dtd")
