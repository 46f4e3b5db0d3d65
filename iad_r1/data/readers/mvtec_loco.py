"""MVTec LOCO AD: structural and logical anomalies, several masks to a picture.

    <root>/breakfast_box/{train/good,validation/good}/000.png
    <root>/breakfast_box/test/{good,logical_anomalies,structural_anomalies}/000.png
    <root>/breakfast_box/ground_truth/logical_anomalies/000/000.png

The masks of a picture are taken together.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from iad_r1.data import folders
from iad_r1.settings.data import Folder, needed
from iad_r1.types import Sample

SOURCE = (
    "MVTec LOCO AD: mvtec.com/company/research/datasets/mvtec-loco (CC BY-NC-SA 4.0). Unpack it so "
    "that the folder holds breakfast_box/, juice_bottle/, pushpins/ and so on."
)
FOLDERS = ("mvtec_loco_anomaly_detection", "MVTec-LOCO", "MMAD/MVTec-LOCO")


class Settings(Folder):
    """Where MVTec LOCO AD lies."""

    name: Literal["mvtec_loco"]
    root: Annotated[
        str,
        needed("folder of MVTec LOCO AD, which holds breakfast_box/test/good/ and so on", SOURCE),
    ]


def read(settings: Settings, seed: int) -> Iterator[Sample]:
    """All pictures, category by category."""
    return folders.layout(folders.there(settings.root, SOURCE), "mvtec_loco")
