"""What is drawn over a picture: the defect's outline and grid cells, as SVG in pixel units.

Drawn beside the picture, never into it: the stored picture stays what the model saw.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from iad_r1.grid import Grid

Rectangle = tuple[float, float, float, float]  # x, y, width, height in pixels


def data_uri(jpeg: bytes) -> str:
    """A JPEG picture as text that a page can embed."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")


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
