"""Pictures and masks are opened upright, in one geometry, and decoded once."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from iad_r1.data import folders, images
from iad_r1.data.images import open_image, open_mask
from iad_r1.errors import DataError
from iad_r1.types import Cut, Mask, Sample, Shapes, Solution

TURN_RIGHT = 6  # EXIF orientation: the stored picture is shown turned right by 90 degrees


def sample(image: Path | Image.Image, mask: Path | Image.Image | None = None, **how: Any) -> Sample:
    shown = Mask((mask,), **how) if isinstance(mask, Path) else mask
    return Sample(
        "a", "made up", "train", "bolt", image, Solution("Yes", "top left", "dent"), shown
    )


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


# --- masks as tools write them -------------------------------------------------------------------


def marks(mask: Image.Image) -> list[list[int]]:
    found = open_mask(sample(Image.new("RGB", mask.size), mask))
    assert found is not None
    return np.argwhere(found).tolist()


def test_a_black_and_white_mask_saved_with_a_palette_is_read_by_its_colours():
    """Of such a file entry 0 may be white."""
    mask = Image.new("P", (6, 4), 1)
    mask.putpalette([255, 255, 255, 0, 0, 0])
    mask.putpixel((2, 1), 0)
    assert marks(mask) == [[1, 2]]


MARK = np.pad(np.ones((1, 1), np.uint8), ((1, 2), (2, 3)))  # [4, 6]


def palette(colours: list[int]) -> Image.Image:
    mask = Image.frombytes("P", (6, 4), MARK.tobytes())
    mask.putpalette(colours)
    return mask


@pytest.mark.parametrize(
    "mask",
    [
        Image.fromarray(MARK),
        Image.fromarray(MARK * 255),
        Image.fromarray(MARK * 7),
        Image.fromarray(np.stack([MARK * 0, MARK * 0, MARK * 130], axis=-1)),
        palette([0, 0, 0, 0, 90, 0]),
        Image.fromarray(MARK.astype(np.float32)),
    ],
    ids=["0 and 1", "0 and 255", "an index", "a colour", "a palette of colours", "with a point"],
)
def test_masks_of_every_convention_mark_the_same_pixel(mask, tmp_path):
    file = tmp_path / ("m.tif" if mask.mode == "F" else "m.png")
    mask.save(file)
    found = open_mask(sample(Image.new("RGB", (6, 4)), file))
    assert found is not None and np.argwhere(found).tolist() == [[1, 2]]


SOFT = np.array([[0, 20, 120], [130, 200, 255]])


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize(
    ("values", "mode"),
    [(SOFT, "L"), (SOFT, "P"), (SOFT, "RGB"), (SOFT * 257, "I;16"), (SOFT * 4095 // 255, "I;16"),
     (SOFT / 255, "F")],
)  # fmt: skip
def test_a_soft_mask_is_read_from_a_share_of_white_on_that_can_be_set(
    values, mode, inverted, tmp_path
):
    kind = {"I;16": np.uint16, "F": np.float32}.get(mode, np.uint8)
    mask = Image.fromarray(values.astype(kind))
    if mode in ("P", "RGB"):
        mask = mask.convert("RGB") if mode == "RGB" else mask.quantize(8)
    mask.save(tmp_path / "m.tif")
    Image.new("RGB", (3, 2)).save(tmp_path / "a.png")
    for threshold in (0.05, 0.5, 1.0):
        found = open_mask(
            sample(tmp_path / "a.png", tmp_path / "m.tif", threshold=threshold, inverted=inverted)
        )
        assert found is not None and ((threshold * 255 <= SOFT) == (found != inverted)).all()


def test_without_a_threshold_every_value_but_zero_is_defective_and_shares_are_refused(tmp_path):
    Image.new("RGB", (3, 2)).save(tmp_path / "a.png")
    Image.fromarray(SOFT.astype(np.uint8)).save(tmp_path / "m.png")
    found = open_mask(sample(tmp_path / "a.png", tmp_path / "m.png"))
    assert found is not None and (found == (SOFT > 0)).all()
    Image.fromarray((SOFT / 255).astype(np.float32)).save(tmp_path / "m.tif")
    with pytest.raises(DataError, match=r"m\.tif: .*masks_threshold=0\.5"):
        open_mask(sample(tmp_path / "a.png", tmp_path / "m.tif"))


def test_a_threshold_that_empties_a_mask_is_refused(tmp_path):
    """As of masks of 0 and 1; an empty mask stays one."""
    Image.new("RGB", (6, 4)).save(tmp_path / "a.png")
    for name, values in (("m", MARK), ("empty", MARK * 0)):
        Image.fromarray(values).save(tmp_path / f"{name}.png")
    with pytest.raises(DataError, match=r"m\.png: the highest value of this mask is 1, .*null"):
        open_mask(sample(tmp_path / "a.png", tmp_path / "m.png", threshold=0.5))
    found = open_mask(sample(tmp_path / "a.png", tmp_path / "empty.png", threshold=0.5))
    assert found is not None and not found.any()


def test_a_shape_that_is_drawn_in_transparency_alone_is_the_mask():
    mask = Image.new("RGBA", (6, 4), (255, 255, 255, 0))
    mask.putpixel((2, 1), (255, 255, 255, 255))
    assert marks(mask) == [[1, 2]]


def test_masks_in_several_files_are_taken_together(tmp_path):
    image = tmp_path / "a.png"
    Image.new("RGB", (6, 4)).save(image)
    for i in range(2):
        marked((6, 4), (i, 0)).save(tmp_path / f"{i}.png")
    both = Sample(
        "a", "made up", "train", "bolt", image, Solution("Yes"),
        Mask((tmp_path / "0.png", tmp_path / "1.png")),
    )  # fmt: skip
    found = open_mask(both)
    assert found is not None and np.argwhere(found).tolist() == [[0, 0], [0, 1]]


@pytest.mark.parametrize("times", [2, 3])
def test_a_mask_of_a_whole_multiple_or_part_of_the_size_keeps_its_marks(times, tmp_path):
    Image.new("RGB", (6 * times, 4 * times)).save(tmp_path / "large.png")
    Image.new("RGB", (6, 4)).save(tmp_path / "small.png")
    marked((6, 4), (2, 1)).save(tmp_path / "small_mask.png")
    marked((6 * times, 4 * times), (2 * times, times)).save(tmp_path / "large_mask.png")
    grown = open_mask(sample(tmp_path / "large.png", tmp_path / "small_mask.png"))
    shrunk = open_mask(sample(tmp_path / "small.png", tmp_path / "large_mask.png"))
    assert grown is not None and shrunk is not None
    assert np.argwhere(shrunk).tolist() == [[1, 2]]  # the thinnest mark is not lost
    assert grown.sum() == times**2 and grown[times, 2 * times]


def test_black_marks_the_defect_of_an_inverted_mask(tmp_path):
    Image.new("RGB", (6, 4)).save(tmp_path / "a.png")
    mask = Image.new("L", (6, 4), 255)
    mask.putpixel((2, 1), 0)
    mask.save(tmp_path / "m.png")
    found = open_mask(sample(tmp_path / "a.png", tmp_path / "m.png", inverted=True))
    assert found is not None and np.argwhere(found).tolist() == [[1, 2]]


@pytest.mark.parametrize("orientation", [2, 3, 4, 5, 6, 7, 8])
def test_a_mask_of_a_turned_picture_is_refused_where_its_size_does_not_tell(orientation, tmp_path):
    exif = Image.Exif()
    exif[images.EXIF_ORIENTATION] = orientation
    image = tmp_path / "a.png"
    marked((4, 4), (1, 0)).save(image, exif=exif)
    shown = images.upright(image)
    marked((4, 4), (1, 0)).save(tmp_path / "stored.png")
    shown.convert("L").save(tmp_path / "shown.png")
    for way in ("stored", "shown"):
        with pytest.raises(DataError, match=rf"{way}\.png: .*orientation {orientation}.*drawn_on="):
            open_mask(sample(image, tmp_path / f"{way}.png"))
        found = open_mask(sample(image, tmp_path / f"{way}.png", drawn_on=way))
        assert found is not None and (found == (np.asarray(shown)[..., 0] > 0)).all()


# --- pictures of more than 8 bits ----------------------------------------------------------------


@pytest.mark.parametrize(("top", "shift"), [(4095, 4), (65535, 8), (900, 4)])
def test_sixteen_bits_are_scaled_to_eight_by_a_rule_that_does_not_stretch(top, shift, tmp_path):
    values = np.linspace(0, top, 24).astype(np.uint16).reshape(4, 6)
    for suffix in (".png", ".tif"):
        path = tmp_path / f"a{suffix}"
        Image.fromarray(values).save(path)
        found = np.asarray(open_image(sample(path)))
        assert (found == (values >> shift)[..., None]).all()


def test_a_turn_is_applied_to_sixteen_bits_too(tmp_path):
    values = np.zeros((4, 6), np.uint16)
    values[0, 0] = 65535
    exif = Image.Exif()
    exif[images.EXIF_ORIENTATION] = TURN_RIGHT
    Image.fromarray(values).save(tmp_path / "a.png", exif=exif)
    assert open_image(sample(tmp_path / "a.png")).getpixel((3, 0)) == (255, 255, 255)


def test_values_with_a_point_are_black_at_0_and_white_at_1(tmp_path):
    values = np.linspace(0, 1, 24, dtype=np.float32).reshape(4, 6)
    Image.fromarray(values).save(tmp_path / "a.tif")
    Image.fromarray(values / 4).save(tmp_path / "dark.tif")
    found = [np.asarray(open_image(sample(tmp_path / f"{name}.tif"))) for name in ("a", "dark")]
    assert (found[0] == np.rint(values * 255)[..., None]).all()
    assert (found[1] == np.rint(values / 4 * 255)[..., None]).all()  # nothing is stretched


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(-1, 2, "lie between -1 and 2"), (0, 255, "lie between 0 and 255"),
     (0, np.inf, "1 of its 24 values are no numbers"), (np.nan, 1, "1 of its 24 values are no")],
)  # fmt: skip
def test_values_without_a_known_black_and_white_are_refused(low, high, said, tmp_path):
    values = np.full((4, 6), 0.5, np.float32)
    values[0, :2] = low, high
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=rf"a\.tif: (its values )?{said}"):
        open_image(sample(tmp_path / "a.tif"))


# --- pictures as cameras and programs write them -------------------------------------------------


def test_of_a_file_with_several_pages_the_first_is_read_and_it_is_noted(tmp_path):
    first, second = marked((6, 4), (1, 2), "RGB"), marked((9, 9), (0, 0), "RGB")
    first.save(tmp_path / "pages.tif", save_all=True, append_images=[second])
    first.save(tmp_path / "one.tif")
    images.several_pages.clear()
    for name in ("pages.tif", "one.tif"):
        assert open_image(sample(tmp_path / name)).tobytes() == first.tobytes()
    assert images.several_pages == {tmp_path / "pages.tif"}


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_cmyk_has_the_colours_that_were_saved(suffix, tmp_path):
    """Also in JPEG, where Adobe's programs write it inverted."""
    colours = Image.new("RGB", (16, 16), (200, 30, 60))
    colours.convert("CMYK").save(tmp_path / f"a{suffix}")
    found = np.asarray(open_image(sample(tmp_path / f"a{suffix}")), int)
    assert np.abs(found - (200, 30, 60)).max() <= 6


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize(("pixels", "times"), [(83 * 61, 1), (83 * 61 - 1, 2), (1265, 4)])
def test_a_very_large_jpeg_is_decoded_smaller_and_its_mask_with_it(
    pixels, times, mode, tmp_path, monkeypatch
):
    """Block by block of the stored picture, whichever way it is turned; no mark is lost."""
    monkeypatch.setattr(images, "LARGE", pixels)
    exif = Image.Exif()
    exif[images.EXIF_ORIENTATION] = TURN_RIGHT
    turn = Image.Transpose.ROTATE_270
    smooth = Image.linear_gradient("L").resize((83, 61)).convert("RGB")
    smooth.convert(mode).save(tmp_path / "a.jpg", exif=exif, quality=95)
    marks = Image.fromarray(np.uint8(255) * (np.random.default_rng(0).random((61, 83)) > 0.97))
    marks.save(tmp_path / "m.png")
    of = sample(tmp_path / "a.jpg", tmp_path / "m.png", drawn_on="stored")
    shown, mask = open_image(of), open_mask(of)
    assert mask is not None and shown.size == images.size(of) == mask.shape[::-1]
    assert (mask == (np.asarray(marks.reduce(times).transpose(turn)) > 0)).all()
    true = np.asarray(smooth.reduce(times).transpose(turn), int)
    assert np.abs(np.asarray(shown, int) - true).mean() < 4
    corner = (81.0, 59.0, 83.0, 59.0, 83.0, 61.0, 81.0, 61.0)
    outline = open_mask(replace(of, mask=Shapes((corner,), size=(83, 61))))
    assert outline is not None and outline.shape == mask.shape and outline[-1, 0]
    part = replace(of, image=Cut(tmp_path / "a.jpg", (0, 0, 61, 20)))
    if times > 1:
        within = replace(of, image=Cut(tmp_path / "a.jpg", (0, 0, 10, 10)))
        for cut in (part, within):
            with pytest.raises(DataError, match=r"a\.jpg: .* is a part of a JPEG of more than"):
                open_image(cut)
    else:
        assert open_image(part).size == (61, 20)


def test_other_formats_than_jpeg_cannot_be_decoded_smaller(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "LARGE", 100)
    marked((83, 61), (0, 0)).save(tmp_path / "a.png")
    assert images.size(sample(tmp_path / "a.png")) == (83, 61)
    assert open_image(sample(tmp_path / "a.png")).size == (83, 61)


def test_a_hundred_megapixels_are_read_without_a_warning(tmp_path, recwarn):
    Image.new("1", (10_000, 10_000), 1).save(tmp_path / "a.png")
    with images.opened(tmp_path / "a.png", "image") as picture:
        assert picture.size == images.size(sample(tmp_path / "a.png")) == (10_000, 10_000)
    assert not recwarn.list


def test_more_pixels_than_memory_is_meant_for_are_refused_by_name(tmp_path, monkeypatch):
    assert Image.MAX_IMAGE_PIXELS == 150_000_000
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600)
    Image.new("1", (40, 40), 1).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: this image has more than 1,200 pixels"):
        open_image(sample(tmp_path / "a.png"))


@pytest.mark.parametrize("name", ["a.BMP", "a.WebP", "a.b.JPG", "a.TIFF"])
def test_extensions_in_any_case_and_with_points_in_the_name_are_read(name, tmp_path):
    folder = tmp_path / "bolt" / "train" / "good"
    folder.mkdir(parents=True)
    Image.new("RGB", (6, 4)).save(folder / name)
    for litter in ("Thumbs.db", "._a.png", "desktop.ini"):
        (folder / litter).write_bytes(b"no picture")
    (tmp_path / "__MACOSX" / "bolt").mkdir(parents=True)
    assert [path.name for path in folders.pictures(folder)] == [name]
    assert [path.name for path in folders.children(tmp_path)] == ["bolt"]
    assert open_image(sample(folder / name)).size == (6, 4)
