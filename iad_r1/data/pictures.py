"""Opening pictures and masks. Decoded photographs are remembered, up to a limit."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from iad_r1.errors import DataError

LONGEST_EDGE = 1024  # pixels; larger photographs are remembered reduced to this
REMEMBERED = 256  # decoded photographs; at most 256 * 1024 * 1024 * 3 B = 768 MiB


def image(source: Path | Image.Image) -> Image.Image:
    """A picture, upright and in RGB; photographs keep their shape but lose what exceeds
    `LONGEST_EDGE`. Treat it as read-only: it may be handed out again.

    Raises DataError if the file is missing or is no picture.
    """
    if isinstance(source, Image.Image):
        return source.convert("RGB")
    return _remembered(source, _changed(source))


def mask(source: Path | Image.Image) -> NDArray[np.bool_]:
    """[H, W] bool, True where a mask is not zero in any channel (alpha left out)."""
    if isinstance(source, Image.Image):
        return _defective(source)
    try:
        with Image.open(source) as picture:
            return _defective(picture)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, ValueError) as error:
        raise _unreadable("mask", source, error) from error


def decode(path: Path) -> Image.Image:
    """The picture in a file at full size, upright and in RGB. Raises DataError."""
    try:
        with Image.open(path) as picture:
            return ImageOps.exif_transpose(picture).convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, ValueError) as error:
        raise _unreadable("image", path, error) from error


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError as error:
        raise _unreadable("image", path, error) from error


@lru_cache(maxsize=REMEMBERED)
def _remembered(path: Path, changed: int) -> Image.Image:
    """`changed` is the file's time stamp: an edited file is read again."""
    picture = decode(path)
    picture.thumbnail((LONGEST_EDGE, LONGEST_EDGE), Image.Resampling.LANCZOS)
    return picture


def _defective(picture: Image.Image) -> NDArray[np.bool_]:
    upright = ImageOps.exif_transpose(picture)
    if upright.mode in ("P", "PA"):  # an indexed mask: entry 0 is the background
        return np.asarray(upright.convert("P") if upright.mode == "PA" else upright) != 0
    if upright.mode in ("RGBA", "LA"):
        upright = upright.convert("RGB")
    values = np.asarray(upright)
    return values.any(axis=2) if values.ndim == 3 else values != 0


def _unreadable(what: str, path: Path, error: Exception) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path}: this {what} does not exist.")
    return DataError(f"{path}: this {what} cannot be read ({error}).")
