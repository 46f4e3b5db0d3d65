"""Opening pictures and masks, in one geometry.

A picture is turned upright (its EXIF orientation is applied) and made RGB; a mask is turned with
it. Decoded photographs are remembered, so that repeated epochs do not decode them again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile

from iad_r1.errors import DataError
from iad_r1.types import Cut, Mask, Sample, Shapes

EXIF_ORIENTATION = 0x0112
# a warning of Pillow's from here on, a refusal at twice as many; 100 megapixels are usual
Image.MAX_IMAGE_PIXELS = 150_000_000
# pixels: a JPEG of more is decoded with sides of a half or quarter, wherever it is used. At least a
# quarter of these are left, more than any backbone is shown.
LARGE = 64_000_000
REMEMBERED_BYTES = 192 * 2**20  # 430 photographs of 448 x 336 pixels
KINDS_OF_DEFECT = 16  # that a mask may number, at most
several_pages: set[Path] = set()  # files that hold more pictures than the first, which is read
_sizes: dict[tuple[Path, int], tuple[int, int]] = {}  # noted, by path and time of change


def open_image(sample: Sample) -> Image.Image:
    """The picture of a sample, upright RGB. Read only: it may be handed out again.

    Raises DataError naming the file when it is missing or cannot be read.
    """
    if isinstance(sample.image, Image.Image):
        return sample.image.convert("RGB")
    if isinstance(sample.image, Cut):
        return _cut(_REMEMBERED.get(sample.image.file), sample.image)
    return _REMEMBERED.get(sample.image)


def _cut(picture: Image.Image, cut: Cut) -> Image.Image:
    with opened(cut.file, "image") as image:
        if smaller(image) > 1:
            raise DataError(
                f"{cut.file}: {cut.box} is a part of a JPEG of more than {LARGE:,} pixels, which "
                "is decoded smaller, so that part lies elsewhere. Cut the file up."
            )
    if cut.box[2] > picture.width or cut.box[3] > picture.height:
        raise DataError(
            f"{cut.file}: the part {cut.box} is not inside of the picture, which is read with "
            f"{picture.width}x{picture.height} pixels. Make the picture smaller, or cut it up."
        )
    return picture.crop(cut.box)


def size(sample: Sample) -> tuple[int, int]:
    """Width and height of what `open_image` gives, as noted or from the file's header. Raises
    DataError."""
    if isinstance(sample.image, Image.Image):
        return sample.image.size
    if isinstance(sample.image, Cut):
        left, top, right, bottom = sample.image.box
        return right - left, bottom - top
    if noted := _sizes.get((sample.image, _changed(sample.image))):
        return noted
    with opened(sample.image, "image") as image:
        times = smaller(image)
        width, height = -(-image.width // times), -(-image.height // times)  # rounded up
        return (height, width) if turn(image) >= 5 else (width, height)


def smaller(image: Image.Image) -> int:
    """By how much the sides of a picture are decoded smaller: 1, 2 or 4. Its header is asked."""
    times = 1
    while isinstance(image, JpegImageFile) and image.width * image.height > LARGE * times**2:
        times *= 2
    return times


def note_size(sample: Sample, found: Sequence[int]) -> None:
    """That `size` gives this of the picture in a file, for as long as that does not change."""
    if isinstance(sample.image, Path):
        width, height = found
        _sizes[sample.image, _changed(sample.image)] = width, height


def turn(image: Image.Image) -> int:
    """The EXIF orientation that the header of a file tells; 1: as it is."""
    # a PNG that names its turn behind its pixels would have to be decoded for it
    told = image.format != "PNG" or "exif" in image.info
    return image.getexif().get(EXIF_ORIENTATION, 1) if told else 1


def open_mask(sample: Sample) -> NDArray[np.bool_] | None:
    """True where the sample is defective, [H, W] in the geometry of `open_image`; None without
    a mask. Raises DataError when it cannot be read or does not fit the picture.
    """
    if isinstance(sample.image, Cut):
        whole = open_mask(replace(sample, image=sample.image.file))
        left, top, right, bottom = sample.image.box
        return None if whole is None else whole[top:bottom, left:right]
    if sample.mask is None:
        return None
    if isinstance(sample.mask, Image.Image):
        return defective(sample.mask)
    if isinstance(sample.image, Image.Image):
        if isinstance(sample.mask, Shapes):
            return _drawn(sample.mask, sample.image.size)
        found = [marked(file, sample.mask.threshold) for file in sample.mask.files]
        return np.logical_or.reduce(found)
    with opened(sample.image, "image") as image:
        if isinstance(sample.mask, Shapes):
            found = [_annotated(image, sample.image, sample.mask)]
        else:
            found = [_on(image, file, sample.mask) for file in sample.mask.files]
        return _reduced(np.logical_or.reduce(found), image)


def upright(path: Path) -> Image.Image:
    """The picture in a file, upright and RGB. Raises DataError."""
    return as_shown(read(path, "image"), path)


def as_shown(picture: Image.Image, path: Path | str) -> Image.Image:
    """A decoded picture, upright and RGB; `path` names it in a DataError."""
    return ImageOps.exif_transpose(eight_bits(picture, path)).convert("RGB")


def eight_bits(picture: Image.Image, path: Path | str) -> Image.Image:
    """A grey picture of more than 8 bits, scaled to 8: its values stand for 12 bits where none is
    above 4,095, else for 16; those with a point for 0 (black) to 1 (white). Other pictures are
    handed back. Raises DataError for other values.
    """
    if not picture.mode.startswith(("I", "F")):
        return picture
    values = np.asarray(picture)
    if lost := np.count_nonzero(~np.isfinite(values)):
        raise DataError(
            f"{path}: {lost:,} of its {values.size:,} values are no numbers or infinite. Save it "
            "with 8 or 16 bits per pixel."
        )
    low, high = values.min(), values.max()
    if low < 0 or high > (1 if picture.mode == "F" else 65535):
        raise DataError(
            f"{path}: its values lie between {low:g} and {high:g}, and what is black and white is "
            "not known. Save it with 8 or 16 bits per pixel, or with values between 0 and 1."
        )
    eight = np.rint(values * 255) if picture.mode == "F" else values >> (4 if high < 4096 else 8)
    grey = Image.fromarray(eight.astype(np.uint8))
    grey.getexif().update(picture.getexif())
    return grey


def marked(file: Path, threshold: float | None = None) -> NDArray[np.bool_]:
    """`defective` of a mask in a file. Raises DataError that names it."""
    try:
        return defective(read(file, "mask"), threshold)
    except ValueError as error:
        raise DataError(f"{file}: {error}") from None


def defective(mask: Image.Image, threshold: float | None = None) -> NDArray[np.bool_]:
    """[H, W]: True where any value of a mask is not zero, or is at least this share of white.

    In an indexed picture the index counts, not its colour (entry 0 is sound), unless its colours
    are black and white or there is a threshold. Transparency counts where nothing else tells pixels
    apart. Raises ValueError where values with a point need a threshold, or none reaches it.
    """
    if mask.mode in ("RGBA", "LA", "PA"):
        colours = mask.convert({"RGBA": "RGB", "LA": "L", "PA": "P"}[mask.mode])
        alpha = mask.getchannel("A")
        shape_in_alpha = _is_plain(colours) and not _is_plain(alpha)
        mask = alpha if shape_in_alpha else colours
    if mask.mode == "P":
        shown = np.asarray(mask.convert("RGB"))
        if set(np.unique(shown)) == {0, 255} and (shown == shown[..., :1]).all():
            mask = mask.convert("L")
        elif threshold is not None:
            mask = mask.convert("RGB")
    values = np.asarray(mask)
    if mask.mode == "F" and threshold is None and len(np.unique(values)) > 2:
        raise ValueError(
            "the values of this mask have a point, and from which on a pixel is defective is not "
            "known. Set data.masks_threshold=0.5, for example."
        )
    values = values != 0 if threshold is None else _reached(values, threshold)
    return values if values.ndim == 2 else np.logical_or.reduce(values, axis=2)


def _reached(values: NDArray[Any], threshold: float) -> NDArray[np.bool_]:
    """Where values are at least that share of white, which is 255, or 1 of those with a point; of
    those of more than 8 bits as for pictures."""
    white = 255 if values.dtype == np.uint8 else 4095 if values.max() < 4096 else 65535
    if values.dtype in (np.float32, np.bool_):
        white = 1
    found = values >= threshold * white
    if values.any() and not found.any():
        raise ValueError(
            f"the highest value of this mask is {values.max():g}, and none reaches {threshold:g} "
            f"of white ({white}). Lower masks_threshold, or set it to null: every value but 0 is "
            "defective."
        )
    return found


def is_soft(file: Path) -> bool:
    """Whether a mask has so many grey values that they stand for shares and not for kinds."""
    mask = read(file, "mask")
    return mask.mode == "L" and sum(count > 0 for count in mask.histogram()) > KINDS_OF_DEFECT


def _is_plain(picture: Image.Image) -> bool:
    values = np.asarray(picture)
    return bool((values == values[:1, :1]).all())


def _on(image: Image.Image, file: Path, mask: Mask) -> NDArray[np.bool_]:
    """A mask as it lies on the upright picture. Raises DataError unless it has the picture's size
    or a whole multiple or part of it, and where it cannot be known which way up it was drawn."""
    values = marked(file, mask.threshold) != mask.inverted
    orientation = image.getexif().get(EXIF_ORIENTATION, 1)
    width, height = image.size
    shown = (height, width) if orientation >= 5 else (width, height)
    found = {"shown": _scaled(values, shown)}
    if orientation > 1:
        stored = _scaled(values, image.size)
        found["stored"] = None if stored is None else _turned(stored, orientation)
    fitting = {way: on for way, on in found.items() if on is not None}
    if not fitting:
        raise DataError(
            f"{file}: this mask is {values.shape[1]}x{values.shape[0]} pixels, but its image is "
            f"{shown[0]}x{shown[1]}. A mask must have the size of its image, or a whole multiple "
            "or part of it."
        )
    return _meant(fitting, mask.drawn_on, str(file), orientation)


def _annotated(image: Image.Image, file: Path, marked: Shapes) -> NDArray[np.bool_]:
    """The shapes of an annotation as they lie on the upright picture. Raises DataError where it
    states another size than the picture has, or where `_meant` does."""
    orientation = image.getexif().get(EXIF_ORIENTATION, 1)
    width, height = image.size
    shown = (height, width) if orientation >= 5 else (width, height)
    fitting: dict[str, NDArray[np.bool_]] = {}
    if marked.size in (None, shown):
        fitting["shown"] = _drawn(marked, shown)
    if orientation > 1 and marked.size in (None, (width, height)):
        fitting["stored"] = _turned(_drawn(marked, (width, height)), orientation)
    if marked.size is not None and not fitting:
        raise DataError(
            f"{file}: the picture is {shown[0]}x{shown[1]} pixels, but its annotation is "
            f"for {marked.size[0]}x{marked.size[1]}. Export it again, with the pictures."
        )
    return _meant(fitting, marked.drawn_on, str(file), orientation)


def _drawn(marked: Shapes, size: tuple[int, int]) -> NDArray[np.bool_]:
    """The shapes of an annotation on a picture of this size (width, height)."""
    from iad_r1.data import shapes  # pycocotools: only where annotations are drawn

    return shapes.drawn(marked, size)


def _meant(
    fitting: Mapping[str, NDArray[np.bool_]],
    drawn_on: Literal["stored", "shown"] | None,
    what: str,
    orientation: int,
) -> NDArray[np.bool_]:
    """Of a mask read as drawn on the picture as stored and as shown, the one that is meant. Raises
    DataError where that is not known."""
    one, other = next(iter(fitting.values())), list(fitting.values())[-1]
    if one is other or np.array_equal(one, other):
        return one
    if drawn_on is None:
        raise DataError(
            f"{what}: its picture is turned when it is shown (EXIF orientation {orientation}), and "
            "the size of this mask does not tell which way up it was drawn. Set "
            "data.masks_drawn_on=stored (by a program that ignores the turn, as most in Python "
            "do) or data.masks_drawn_on=shown (by one that shows the picture)."
        )
    return fitting[drawn_on]


def shrunk(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    """A mask at this size (width, height), no larger than its own, so that no mark is lost."""
    grey = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(grey.resize(size, Image.Resampling.BOX)) > 0


def _scaled(values: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_] | None:
    """A mask [H, W] in this size (width, height): whole multiples are reduced so that no mark is
    lost. None where neither size is a whole multiple of the other."""
    (height, width), (wanted, high) = values.shape, size
    if (width, height) == size:
        return values
    if times := _times((width, height), size):
        return values.repeat(times, 0).repeat(times, 1)
    if times := _times(size, (width, height)):
        return np.logical_or.reduce(values.reshape(high, times, wanted, times), axis=(1, 3))
    return None


def _reduced(values: NDArray[np.bool_], image: Image.Image) -> NDArray[np.bool_]:
    """A mask on an upright picture that is decoded `smaller`, block by block of the stored one: no
    mark is lost."""
    times = smaller(image)
    if times == 1:
        return values
    orientation: int = image.getexif().get(EXIF_ORIENTATION, 1)
    stored = _turned(values, {6: 8, 8: 6}.get(orientation, orientation))  # turned back
    height, width = (-side % times for side in stored.shape)
    whole = np.pad(stored, ((0, height), (0, width)))
    blocks = whole.reshape(whole.shape[0] // times, times, whole.shape[1] // times, times)
    return _turned(np.logical_or.reduce(blocks, axis=(1, 3)), orientation)


def _times(small: tuple[int, int], large: tuple[int, int]) -> int:
    """How many times as large in both directions; 0: not a whole multiple."""
    times = large[0] // small[0]
    return times if large == (small[0] * times, small[1] * times) else 0


def _turned(values: NDArray[np.bool_], orientation: int) -> NDArray[np.bool_]:
    if orientation == 1:
        return values
    picture = Image.fromarray(values.astype(np.uint8))
    picture.getexif()[EXIF_ORIENTATION] = orientation
    return np.asarray(ImageOps.exif_transpose(picture), np.bool_)


def opened(path: Path, what: str) -> Image.Image:
    """The header of a picture file, its pixels not yet decoded. Raises DataError."""
    try:
        return Image.open(path)
    except FileNotFoundError:
        raise DataError(f"{path}: this {what} does not exist.") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _unreadable(path, what, error) from error


def read(path: Path, what: str) -> Image.Image:
    """A picture file decoded to its end, so that a broken one is noticed here; an "image" as much
    smaller as `smaller` says. Raises DataError."""
    with opened(path, what) as picture:
        try:
            if what == "image" and (times := smaller(picture)) > 1:
                picture.draft(None, (picture.width // times, picture.height // times))
            if getattr(picture, "is_animated", False):
                several_pages.add(path)
            picture.load()
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise _unreadable(path, what, error) from error
        return picture


def _unreadable(path: Path, what: str, error: Exception) -> DataError:
    if isinstance(error, Image.DecompressionBombError):
        return DataError(
            f"{path}: this {what} has more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels. Make "
            "it smaller, or cut it into several."
        )
    return DataError(
        f"{path}: this {what} cannot be read ({error}). "
        "Replace the file or take it out of the data set."
    )


class _Remembered:
    """Upright pictures by path and time of change, the least recently used forgotten first. A
    picture that several threads ask for at once is decoded by one of them."""

    def __init__(self, limit: int) -> None:
        self.limit, self.size, self.lock = limit, 0, Lock()
        self.pictures: OrderedDict[tuple[Path, int], Image.Image] = OrderedDict()
        self.decoding: dict[tuple[Path, int], Future[Image.Image]] = {}

    def get(self, path: Path) -> Image.Image:
        key = (path, _changed(path))
        with self.lock:
            if key in self.pictures:
                self.pictures.move_to_end(key)
                return self.pictures[key]
            mine, decoding = key not in self.decoding, self.decoding.setdefault(key, Future())
        if mine:
            self._decode(key, decoding)
        return decoding.result()

    def _decode(self, key: tuple[Path, int], decoding: Future[Image.Image]) -> None:
        try:
            picture = upright(key[0])
        except BaseException as error:  # whatever it is, those who wait for the picture get it too
            with self.lock:
                del self.decoding[key]
            decoding.set_exception(error)
            return
        with self.lock:
            del self.decoding[key]
            self.pictures[key] = picture
            self.size += _bytes(picture)
            while self.size > self.limit:
                self.size -= _bytes(self.pictures.popitem(last=False)[1])
        decoding.set_result(picture)


def _bytes(picture: Image.Image) -> int:
    return 3 * picture.width * picture.height


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        raise DataError(f"{path}: this image does not exist.") from None


_REMEMBERED = _Remembered(REMEMBERED_BYTES)
