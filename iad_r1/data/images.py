"""Opening pictures and masks, in one geometry.

A picture is turned upright (its EXIF orientation is applied) and made RGB. With a `size` it is
then resized to `size` x `size` pixels *without* keeping its aspect ratio: each axis is scaled as
a whole, so a cell of the location grid stays the same cell and nothing is cut off or padded.
Without a `size` it keeps its own pixels. A mask goes through the same steps.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from iad_r1.errors import DataError
from iad_r1.types import Sample

EXIF_ORIENTATION = 0x0112


def open_image(sample: Sample, size: int | None = None) -> Image.Image:
    """The picture of a sample, upright RGB; `size` pixels square when given.

    Raises DataError naming the sample and the file when it is missing or cannot be read.
    """
    return _resized(ImageOps.exif_transpose(_read(sample, sample.image, "image")), size)


def open_mask(sample: Sample, size: int | None = None) -> NDArray[np.bool_] | None:
    """True where the sample is defective, [H, W] in the geometry of `open_image`; None without
    a mask.

    A mask drawn on the picture as stored, before its EXIF turn, is turned with it; one drawn on
    the upright picture is left alone. When resized, a pixel is defective if any part of it is,
    so a small defect never vanishes. Raises DataError when it cannot be read or does not fit.
    """
    if sample.mask is None:
        return None
    mask = _read(sample, sample.mask, "mask")
    if isinstance(sample.image, Path):
        mask = _turned(sample, mask, _read(sample, sample.image, "image", decode=False))
    values = np.asarray(mask.convert("RGB")).max(axis=2) > 0
    if size is None:
        return values
    shrunk = Image.fromarray(values.astype(np.float32)).resize((size, size), Image.Resampling.BOX)
    return np.asarray(shrunk) > 0


def _read(sample: Sample, source: Path | Image.Image, what: str, decode: bool = True) -> Image.Image:
    """A picture that is decoded in full, so that a broken file is noticed here."""
    if isinstance(source, Image.Image):
        return source
    try:
        with Image.open(source) as image:
            if decode:
                image.load()
            else:
                image.getexif()
            return image
    except FileNotFoundError:
        raise DataError(f"sample {sample.id}: its {what} {source} does not exist.") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"sample {sample.id}: its {what} {source} cannot be read ({error}). "
            "Replace the file or remove it from the data set."
        ) from error


def _resized(image: Image.Image, size: int | None) -> Image.Image:
    image = image.convert("RGB")
    if size is None or image.size == (size, size):
        return image
    return image.resize((size, size), Image.Resampling.BICUBIC)


def _turned(sample: Sample, mask: Image.Image, image: Image.Image) -> Image.Image:
    """The mask as it lies on the upright picture."""
    orientation = image.getexif().get(EXIF_ORIENTATION, 1)
    upright = image.size[::-1] if orientation >= 5 else image.size
    if mask.size == upright:
        return mask
    if mask.size == image.size:
        turned = mask.copy()
        turned.getexif()[EXIF_ORIENTATION] = orientation
        return ImageOps.exif_transpose(turned)
    raise DataError(
        f"sample {sample.id}: its mask {sample.mask} is {mask.width}x{mask.height} pixels, but "
        f"the image is {upright[0]}x{upright[1]}. A mask must have the size of its image."
    )
