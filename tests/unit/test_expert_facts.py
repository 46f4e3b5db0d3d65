"""Facts of a picture, on masks and colours that were worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from iad_r1.expert.facts import Defect, colour_name, lab, of_defective, of_good, shape

GRAY = (119, 119, 119)  # L* 50
NAMED = ("scratched", "scratch", "surface", "scratch")


def plain(colour: tuple[int, int, int] = GRAY, size: tuple[int, int] = (100, 100)) -> Image.Image:
    return Image.new("RGB", size, colour)


def marked(*boxes: tuple[int, int, int, int], size: tuple[int, int] = (100, 100)) -> NDArray:
    """[H, W] of a picture (width, height): True in boxes of left, top, width and height."""
    mask = np.zeros((size[1], size[0]), np.bool_)
    for left, top, width, height in boxes:
        mask[top : top + height, left : left + width] = True
    return mask


def painted(
    mask: NDArray, colour: tuple[int, int, int], ground: tuple[int, int, int] = GRAY
) -> Image.Image:
    values = np.full((*mask.shape, 3), ground, np.uint8)
    values[mask] = colour
    return Image.fromarray(values)


def defect(
    mask: NDArray, picture: Image.Image | None = None, good: Image.Image | None = None
) -> Defect:
    shown = picture or plain(size=mask.shape[::-1])
    found = of_defective("nut", shown, mask, good or plain(), NAMED, "centroid_largest").defect
    assert found is not None
    return found


def test_a_defect_lies_in_a_cell_of_every_grid_and_touches_others():
    # x from 62 to 72, y from 10 to 20: its centroid is at 67 and 15 percent
    found = defect(marked((62, 10, 10, 10)))
    assert found.cells == {"1x1": (0,), "2x2": (1,), "3x3": (2,), "4x4": (2,), "5x5": (3,)}
    # of three columns the second ends at 66.7, of five the fourth begins at 60; of five rows the
    # first ends at 20
    assert found.touched == {"1x1": (0,), "2x2": (1,), "3x3": (1, 2), "4x4": (2,), "5x5": (3,)}


def test_its_extent_is_counted_in_pixels_and_as_a_share():
    found = defect(marked((20, 30, 40, 5)))
    assert (found.pixels, found.share) == (200, 0.02)
    assert found.box == (20, 30, 40, 5)
    assert not found.at_border
    assert defect(marked((20, 95, 40, 5))).at_border


@pytest.mark.parametrize(
    ("part", "elongation", "angle"),
    [
        (marked((20, 30, 40, 10)), 4.0, 0.0),
        (marked((20, 30, 10, 40)), 4.0, 90.0),
        (marked((20, 30, 15, 15)), 1.0, None),
        (marked((50, 50, 1, 1)), 1.0, None),
        # along a diagonal the variance is n * n / 6, across it that of a pixel alone
        (np.eye(30, dtype=np.bool_), np.sqrt((899 / 6 + 1 / 12) / (1 / 12)), 45.0),
    ],
)
def test_how_long_and_how_turned_it_is(part, elongation, angle):
    found = shape(part)
    assert found[0] == pytest.approx(elongation)
    if angle is not None:
        assert found[1] == pytest.approx(angle, abs=1e-6)


def test_a_full_shape_fills_its_ellipse_and_a_frame_does_not():
    # of a square of side a the moments are a * a / 12, and the ellipse is pi / 3 of it
    assert shape(marked((20, 30, 30, 30)))[2] == pytest.approx(3 / np.pi)
    frame = marked((20, 30, 30, 30)) & ~marked((22, 32, 26, 26))
    assert shape(frame)[2] < 0.25


def test_parts_are_counted_without_crumbs_and_the_largest_tells_the_shape():
    crumb, second, largest = (5, 5, 2, 2), (40, 40, 10, 10), (60, 60, 25, 5)
    found = defect(marked(crumb, second, largest))
    assert found.parts == 2  # 4 pixels are less than a twentieth of 125
    assert found.elongation == pytest.approx(5.0)
    assert found.cells["3x3"] == (5,)


@pytest.mark.parametrize(
    ("rgb", "expected"),
    [
        ((255, 255, 255), (100.0, 0.0, 0.0)),
        (GRAY, (50.03, 0.0, 0.0)),
        ((255, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 0, 255), (32.30, 79.19, -107.86)),
    ],
)
def test_colours_are_cielab_as_published(rgb, expected):
    assert lab(np.array(rgb, np.uint8)) == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((10, 10, 10), "black"), ((119, 119, 119), "gray"), ((250, 250, 250), "white"),
        ((200, 30, 30), "red"), ((60, 90, 200), "blue"), ((30, 120, 40), "green"),
        ((120, 75, 30), "brown"), ((60, 35, 10), "dark brown"), ((200, 165, 120), "tan"),
        ((235, 215, 30), "light yellow"),
    ],
)  # fmt: skip
def test_colours_have_the_names_that_people_give_them(rgb, name):
    assert colour_name(lab(np.array(rgb, np.uint8))) == name


def test_a_dark_defect_is_darker_than_what_surrounds_it():
    mask = marked((40, 40, 20, 20))
    found = defect(mask, painted(mask, (48, 48, 48)))
    assert found.lighter == pytest.approx(19.87 - 50.03, abs=0.05)  # L* of (48, 48, 48) and of gray
    assert (found.redder, found.yellower) == pytest.approx((0.0, 0.0), abs=0.05)
    assert (found.colour, found.colour_around) == ("black", "gray")


def test_a_color_is_unseen_only_if_the_good_picture_shows_it_nowhere():
    mask = marked((40, 40, 20, 20))
    picture = painted(mask, (200, 30, 30))
    assert defect(mask, picture).unseen == 1.0
    assert defect(mask, picture).unseen_around == 0.0
    elsewhere = painted(marked((0, 0, 15, 15)), (200, 30, 30))  # not where the defect is
    assert defect(mask, picture, elsewhere).unseen == 0.0


def test_another_light_is_unseen_around_the_defect_too():
    mask = marked((40, 40, 20, 20))
    found = defect(mask, painted(mask, (200, 30, 30), ground=(235, 235, 235)))
    assert found.unseen == found.unseen_around == 1.0


def test_the_color_that_is_named_is_one_that_is_there():
    # half red and half green: the median of every channel is a brown that is nowhere
    mask = marked((40, 40, 20, 20))
    values = np.asarray(painted(mask, (200, 30, 30))).copy()
    values[40:60, 40:49] = (30, 120, 40)
    assert defect(mask, Image.fromarray(values)).colour == "red"


def test_how_much_of_a_picture_has_its_main_color_and_how_far_that_of_the_good_one_is():
    picture = painted(marked((0, 0, 100, 40)), (200, 30, 30))
    found = of_good("nut", picture, plain((48, 48, 48)))
    assert found.colour == "gray"
    assert found.colour_share == pytest.approx(0.6, abs=0.01)
    assert found.colour_change == pytest.approx(50.03 - 19.87, abs=0.05)


def test_a_defect_that_fills_the_picture_has_nothing_around_it():
    found = defect(marked((0, 0, 100, 100)))
    assert found.share == 1.0
    assert (found.lighter, found.redder, found.colour_around) == (None, None, None)


def test_a_good_picture_is_described_beside_another_one():
    found = of_good("nut", plain(GRAY), plain((48, 48, 48)))
    assert found.defect is None
    assert (found.colour, found.colour_share, found.size) == ("gray", 1.0, (100, 100))
    assert found.lightness == pytest.approx(50.03, abs=0.05)
    assert found.lighter_than_good == pytest.approx(50.03 - 19.87, abs=0.05)
    assert found.spread == pytest.approx(0.0, abs=1e-3)
