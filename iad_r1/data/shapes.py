"""The shapes of annotations, drawn: outlines and run lengths to a mask, through pycocotools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from iad_r1.types import Shapes

coco: Any = pycocotools.mask


def drawn(shapes: Shapes, size: tuple[int, int]) -> NDArray[np.bool_]:
    """[H, W] True where any of the shapes is, on a picture of this size (width, height).

    What lies beyond the picture is cut off. A shape too thin to hold the centre of a pixel marks
    those that its outline touches.
    """
    width, height = size
    runs = [{"size": [height, width], "counts": counts} for counts in shapes.runs]
    thin = Image.new("1", size)
    for outline in shapes.outlines:
        points = np.asarray(outline, np.float64).reshape(-1, 2)
        points = np.clip(points * (size if shapes.size is None else 1), 0, size)
        filled = coco.frPyObjects([points.ravel().tolist()], height, width)
        runs += filled
        if not coco.area(filled).any():
            touched = np.minimum(points, (width - 1, height - 1)).astype(int)
            ImageDraw.Draw(thin).line([*touched.ravel().tolist(), *touched[0].tolist()], fill=1)
    return coco.decode(coco.merge(runs)).astype(np.bool_) | np.asarray(thin)


def packed(lengths: Sequence[int], size: tuple[int, int]) -> bytes:
    """Run lengths, column by column, sound pixels first, as `Shapes` holds them. They cover a
    picture of this size (width, height) exactly."""
    runs = {"size": [size[1], size[0]], "counts": list(lengths)}
    return coco.frPyObjects(runs, size[1], size[0])["counts"]


def packed_at(pixels: NDArray[np.bool_], left: int, top: int, size: tuple[int, int]) -> bytes:
    """The run lengths of pixels [h, w] that lie there in a picture of this size."""
    found = np.zeros((size[1], size[0]), np.uint8, order="F")
    found[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return coco.encode(found)["counts"]


def area(runs: bytes) -> int:
    """How many pixels are marked."""
    return int(coco.area({"size": [1, 1], "counts": runs}))
