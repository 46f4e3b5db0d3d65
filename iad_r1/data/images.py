"""Opening pictures and masks, in one geometry.

A picture is turned upright (its EXIF orientation is applied) and made RGB; a mask is turned with
it. Decoded photographs are remembered, so that repeated epochs do not decode them again.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from iad_r1.errors import DataError
from iad_r1.types import Sample

EXIF_ORIENTATION = 0x0112
REMEMBERED_BYTES = 192 * 2**20  # 430 photographs of 448 x 336 pixels


def open_image(sample: Sample) -> Image.Image:
    """The picture of a sample, upright RGB. Read only: it may be handed out again.

    Raises DataError naming the file when it is missing or cannot be read.
    """
    if isinstance(sample.image, Image.Image):
        return sample.image.convert("RGB")
    return _REMEMBERED.get(sample.image)


def open_mask(sample: Sample) -> NDArray[np.bool_] | None:
    """True where the sample is defective, [H, W] in the geometry of `open_image`; None without
    a mask. Raises DataError when it cannot be read or does not fit the picture.
    """
    if sample.mask is None:
        return None
    if isinstance(sample.mask, Image.Image):
        return defective(sample.mask)
    if isinstance(sample.image, Image.Image):
        return defective(read(sample.mask, "mask"))
    with opened(sample.image, "image") as image:
        return defective(turned(read(sample.mask, "mask"), image, sample.mask))


def upright(path: Path) -> Image.Image:
    """The picture in a file, upright and RGB. Raises DataError."""
    return ImageOps.exif_transpose(read(path, "image")).convert("RGB")


def defective(mask: Image.Image) -> NDArray[np.bool_]:
    """[H, W]: True where any value of a mask is not zero, transparency left out. In an indexed
    picture the index counts, not its colour: entry 0 is sound."""
    if mask.mode in ("RGBA", "LA", "PA"):
        mask = mask.convert({"RGBA": "RGB", "LA": "L", "PA": "P"}[mask.mode])
    values = np.asarray(mask) != 0
    return values if values.ndim == 2 else np.logical_or.reduce(values, axis=2)


def turned(mask: Image.Image, image: Image.Image, name: Path) -> Image.Image:
    """A mask as it lies on the upright picture, whether it was drawn on the picture as stored or
    as shown. Raises DataError unless it has the picture's size one way or the other."""
    orientation = image.getexif().get(EXIF_ORIENTATION, 1)
    shown = image.size[::-1] if orientation >= 5 else image.size
    if mask.size == shown:
        return mask
    if mask.size == image.size:
        copy = mask.copy()
        copy.getexif()[EXIF_ORIENTATION] = orientation
        return ImageOps.exif_transpose(copy)
    raise DataError(
        f"{name}: this mask is {mask.width}x{mask.height} pixels, but its image is "
        f"{shown[0]}x{shown[1]}. A mask must have the size of its image."
    )


def opened(path: Path, what: str) -> Image.Image:
    """The header of a picture file, its pixels not yet decoded. Raises DataError."""
    try:
        return Image.open(path)
    except FileNotFoundError:
        raise DataError(f"{path}: this {what} does not exist.") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _unreadable(path, what, error) from error


def read(path: Path, what: str) -> Image.Image:
    """A picture file decoded in full, so that a broken one is noticed here. Raises DataError."""
    with opened(path, what) as picture:
        try:
            picture.load()
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise _unreadable(path, what, error) from error
        return picture


def _unreadable(path: Path, what: str, error: Exception) -> DataError:
    return DataError(
        f"{path}: this {what} cannot be read ({error}). "
        "Replace the file or take it out of the data set."
    )


class _Remembered:
    """Upright pictures by path and time of change, the least recently used forgotten first."""

    def __init__(self, limit: int) -> None:
        self.limit, self.size = limit, 0
        self.pictures: OrderedDict[tuple[Path, int], Image.Image] = OrderedDict()

    def get(self, path: Path) -> Image.Image:
        key = (path, _changed(path))
        picture = self.pictures.pop(key, None)
        if picture is None:
            picture = upright(path)
            self.size += _bytes(picture)
        self.pictures[key] = picture
        while self.size > self.limit:
            self.size -= _bytes(self.pictures.popitem(last=False)[1])
        return picture


def _bytes(picture: Image.Image) -> int:
    return 3 * picture.width * picture.height


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        raise DataError(f"{path}: this image does not exist.") from None


_REMEMBERED = _Remembered(REMEMBERED_BYTES)
