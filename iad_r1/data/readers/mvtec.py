"""MVTec AD as published: good pictures in `train`, good and defective ones in `test`.

    <root>/bottle/{train/good,test/good,test/broken_large}/000.png
    <root>/bottle/ground_truth/broken_large/000_mask.png

Nothing in it teaches a defect, so it tests only; `train` holds the references.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from iad_r1.data import folders
from iad_r1.settings.data import Folder, needed
from iad_r1.types import Sample


class Settings(Folder):
    """Where MVTec AD lies."""

    name: Literal["mvtec"]
    root: Annotated[str, needed("folder of MVTec AD, which holds bottle/test/good/ and so on")]


def read(settings: Settings, seed: int) -> Iterator[Sample]:
    """All pictures, category by category."""
    return folders.layout(Path(settings.root), "mvtec")
