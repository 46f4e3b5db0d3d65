"""MPDD, painted metal parts: in the layout of MVTec AD.

    <root>/bracket_black/{train/good,test/good,test/hole}/000.png
    <root>/bracket_black/ground_truth/hole/000_mask.png

The folder `tubes/test/anomalous` says no type. Jezek et al., ICUMT 2021.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from iad_r1.data import folders
from iad_r1.settings.data import Folder, needed
from iad_r1.types import Sample

SOURCE = (
    "MPDD: github.com/stepanje/MPDD links to it (CC BY-NC-SA 4.0). Unpack it so that the folder "
    "holds bracket_black/, bracket_brown/, bracket_white/, connector/, metal_plate/ and tubes/."
)
FOLDERS = ("MPDD",)


class Settings(Folder):
    """Where MPDD lies."""

    name: Literal["mpdd"]
    root: Annotated[
        str, needed("folder of MPDD, which holds bracket_black/test/good/ and so on", SOURCE)
    ]


def read(settings: Settings, seed: int) -> Iterator[Sample]:
    """All pictures, category by category."""
    return folders.layout(folders.there(settings.root, SOURCE), "mpdd")
