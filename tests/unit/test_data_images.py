"""Pictures and masks are opened upright, in one geometry, and decoded once."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from iad_r1.data import images
from iad_r1.data.images import open_image, open_mask
from iad_r1.errors import DataError
from iad_r1.types import Sample, Solution

TURN_RIGHT = 6  # EXIF orientation: the stored picture is shown turned right by 90 degrees


def sample(image: Path | Image.Image, mask: Path | Image.Image | None = None) -> Sample:
    return Sample("a", "made up", "train", "bolt", image, Solution("Yes", "top left", "dent"), mask)


def marked(size: tuple[int, int], at: tuple[int, int], mode: str = "L") -> Image.Image:
    """A black picture of `size` with a white pixel `at` (x, y)."""
    picture = Image.new(mode, size)
    picture.putpixel(at, 255 if mode in ("L", "P") else (255,) * len(mode))
    return picture


def save_turned(picture: Image.Image, path: Path) -> Path:
    exif = Image.Exif()
    exif[images.EXIF_ORIENTATION] = TURN_RIGHT
    picture.save(path, exif=exif)
    return path


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "CMYK", "I;16"])
def test_a_picture_in_any_mode_is_rgb(mode, tmp_path):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.new(mode, (6, 4)).save(path)
    assert open_image(sample(path)).mode == "RGB"
    assert open_image(sample(path)).size == (6, 4)


def test_a_picture_in_memory_is_handed_out_as_it_is():
    picture = marked((6, 4), (1, 2), "RGB")
    assert open_image(sample(picture)).tobytes() == picture.tobytes()


def test_a_camera_turn_is_applied(tmp_path):
    path = save_turned(marked((6, 4), (0, 0)), tmp_path / "a.png")
    picture = open_image(sample(path))
    assert picture.size == (4, 6)
    assert picture.getpixel((3, 0)) == (255, 255, 255)


def test_a_mask_is_turned_with_its_picture(tmp_path):
    """Whether it was drawn on the picture as stored or as shown."""
    image = save_turned(marked((6, 4), (0, 0)), tmp_path / "a.png")
    marked((6, 4), (0, 0)).save(tmp_path / "stored.png")
    marked((4, 6), (3, 0)).save(tmp_path / "shown.png")
    for name in ("stored.png", "shown.png"):
        mask = open_mask(sample(image, tmp_path / name))
        assert mask is not None
        assert mask.shape == (6, 4)
        assert np.argwhere(mask).tolist() == [[0, 3]], name


def test_a_mask_of_another_size_is_refused(tmp_path):
    image = tmp_path / "a.png"
    marked((6, 4), (0, 0)).save(image)
    marked((5, 4), (0, 0)).save(tmp_path / "m.png")
    with pytest.raises(DataError, match=r"m\.png: this mask is 5x4 .* its image is 6x4"):
        open_mask(sample(image, tmp_path / "m.png"))


@pytest.mark.parametrize("mode", ["L", "1", "RGB", "RGBA", "LA", "P", "PA", "I;16"])
def test_a_mask_in_any_mode_marks_its_non_zero_pixels(mode):
    values = np.zeros((4, 6), np.uint8)
    values[1, 2] = 1  # the faintest mark
    if mode == "1":
        mask = Image.fromarray(values.astype(bool))
    elif mode in ("P", "PA"):
        mask = Image.fromarray(values).convert("L")
        mask = Image.frombytes("P", (6, 4), mask.tobytes())
        mask.putpalette([200, 200, 200, 10, 10, 10])  # colours say nothing
        mask = mask.convert("PA") if mode == "PA" else mask
    elif mode == "I;16":
        mask = Image.fromarray(values.astype(np.uint16))
    else:
        mask = Image.fromarray(values).convert(mode)
    assert mask.mode == mode
    found = open_mask(sample(Image.new("RGB", (6, 4)), mask))
    assert found is not None and found.dtype == np.bool_
    assert np.argwhere(found).tolist() == [[1, 2]]


def test_an_opaque_but_black_mask_is_empty():
    found = open_mask(sample(Image.new("RGB", (6, 4)), Image.new("RGBA", (6, 4), (0, 0, 0, 255))))
    assert found is not None and not found.any()


def test_a_sample_without_a_mask_has_none():
    assert open_mask(sample(Image.new("RGB", (6, 4)))) is None


@pytest.mark.parametrize(
    "content, message", [(None, "does not exist"), (b"no picture", "cannot be read")]
)
def test_a_missing_or_foreign_file_is_named(content, message, tmp_path):
    path = tmp_path / "lost.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=rf"lost\.png: this image {message}"):
        open_image(sample(path))
    with pytest.raises(DataError, match=rf"lost\.png: this mask {message}"):
        open_mask(sample(Image.new("RGB", (6, 4)), path))


def test_a_picture_that_breaks_off_is_refused(tmp_path):
    whole, cut = tmp_path / "whole.png", tmp_path / "cut.png"
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    Image.fromarray(noise).save(whole)
    cut.write_bytes(whole.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"cut\.png: this image cannot be read"):
        open_image(sample(cut))


def test_a_photograph_is_decoded_once_until_it_changes(tmp_path):
    path = tmp_path / "a.png"
    marked((6, 4), (0, 0)).save(path)
    first = open_image(sample(path))
    assert open_image(sample(path)) is first
    marked((6, 4), (5, 3)).save(path)
    os.utime(path, ns=(1, 1))
    assert open_image(sample(path)).getpixel((5, 3)) == (255, 255, 255)


def test_memory_holds_the_pictures_used_last_and_never_more_than_its_limit(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    for path in paths:
        Image.new("RGB", (10, 10)).save(path)
    memory = images._Remembered(limit=3 * 300)
    a, b = memory.get(paths[0]), memory.get(paths[1])
    memory.get(paths[2])
    assert memory.get(paths[0]) is a  # used again, so `b` is now the oldest
    memory.get(paths[3])
    assert memory.get(paths[0]) is a
    assert memory.size == 900 and len(memory.pictures) == 3
    assert memory.get(paths[1]) is not b


def test_a_picture_larger_than_the_memory_is_still_opened(tmp_path):
    Image.new("RGB", (10, 10)).save(tmp_path / "a.png")
    memory = images._Remembered(limit=10)
    assert memory.get(tmp_path / "a.png").size == (10, 10)
    assert memory.size == 0 and not memory.pictures
