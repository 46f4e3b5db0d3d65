"""What is drawn over a picture: the defect's outline and grid cells, as SVG in pixel units.

Drawn beside the picture, never into it: the stored picture stays what the model saw.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from iad_r1.grid import Grid

if TYPE_CHECKING:
    from PIL.Image import Image

Rectangle = tuple[float, float, float, float]  # x, y, width, height in pixels
HEAT_COLOUR, HEAT_STRENGTH = "#ff3d00", 170  # of 255
HEAT_SEEN = (0.75, 1.25)  # where it begins to colour a picture, and colours it most; 1: threshold


def data_uri(picture: bytes, kind: str = "jpeg") -> str:
    """A picture as text that a page can embed."""
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode('ascii')}"


def heat_layer(heat: NDArray[np.floating]) -> Image:
    """A heat map [rows, columns] as a small picture to be laid over a large one: a colour, and how
    opaque it is."""
    from PIL import Image

    low, high = HEAT_SEEN
    opaque = ((heat - low) / (high - low)).clip(0, 1) * HEAT_STRENGTH
    layer = Image.new("RGB", heat.shape[::-1], HEAT_COLOUR)
    layer.putalpha(Image.fromarray(opaque.astype(np.uint8)))
    return layer


def size(path: Path) -> tuple[int, int]:
    """(width, height) of a picture in pixels."""
    from PIL import Image

    with Image.open(path) as picture:
        return picture.size


def outline(mask: NDArray[np.generic]) -> str:
    """The border of a mask [H, W] (non-zero is inside) as an SVG path; "" for an empty mask.

    Padded by a pixel all round, so a defect that touches the edge is closed there too.
    """
    from contourpy import contour_generator

    inside = np.pad((mask != 0).astype(np.float64), 1)
    lines = contour_generator(z=inside).lines(0.5)
    # Index i of the padded array is the pixel whose centre lies at i - 0.5.
    steps = (" ".join(f"{x:.1f},{y:.1f}" for x, y in np.asarray(line) - 0.5) for line in lines)
    return "".join(f"M{line}Z" for line in steps)


def mask_outline(path: Path) -> str:
    """`outline` of a mask file."""
    from PIL import Image

    with Image.open(path) as picture:
        return outline(np.asarray(picture))


def rectangles(cells: Iterable[int], grid: Grid, width: int, height: int) -> list[Rectangle]:
    """Where cells lie on a picture of `width` x `height` pixels."""
    wide, high = width / grid.cols, height / grid.rows
    return [
        (round(col * wide, 2), round(row * high, 2), round(wide, 2), round(high, 2))
        for row, col in (divmod(cell, grid.cols) for cell in sorted(cells))
    ]
