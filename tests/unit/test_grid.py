"""Cells, words and masks mean the same place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from iad_r1.errors import ConfigError, DataError
from iad_r1.grid import (
    Grid,
    as_grid,
    cells_from_mask,
    describe,
    location_score,
    parse_cells,
    words,
)
from iad_r1.settings.grid import GridConfig

GRIDS = st.builds(Grid, st.integers(1, 8), st.integers(1, 8))
EVERY_GRID = [Grid(rows, cols) for rows in range(1, 9) for cols in range(1, 9)]
THREE = Grid(3, 3)


def cells(*numbers: int) -> frozenset[int]:
    return frozenset(numbers)


# --- grids ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rows", "cols"), [("3x3", 3, 3), (" 2 X 5 ", 2, 5), ("99*1", 99, 1)]
)
def test_a_grid_is_written_rows_x_columns(text: str, rows: int, cols: int) -> None:
    assert Grid.parse(text) == Grid(rows, cols)
    assert Grid.parse(text).cells == rows * cols


@pytest.mark.parametrize(
    "text", ["", "3", "0x3", "3x0", "3x", "x3", "100x3", "3x3x3", "-1x3", "axb", "1٣x3"]
)
def test_anything_else_is_refused_with_what_to_type(text: str) -> None:
    with pytest.raises(ConfigError, match=r"Try grid=3x3"):
        Grid.parse(text)


@pytest.mark.parametrize(("rows", "cols"), [(0, 1), (1, 0), (100, 1), (1, 100)])
def test_a_grid_has_1_to_99_rows_and_columns(rows: int, cols: int) -> None:
    assert Grid(99, 1).cells == Grid(1, 99).cells == 99
    with pytest.raises(ConfigError, match=rf"grid={rows}x{cols}"):
        Grid(rows, cols)


@pytest.mark.parametrize(
    ("x", "y", "cell"), [(0, 0, 0), (1.0, 0, 4), (0, 1.0, 5), (1.0, 1.0, 9), (0.59, 0.49, 2)]
)
def test_the_border_of_the_image_belongs_to_its_cells(x: float, y: float, cell: int) -> None:
    assert Grid(2, 5).cell_at(x, y) == cell


def test_a_grid_can_be_named_in_three_ways() -> None:
    config = GridConfig(
        name="2x4", rows=2, cols=4, mask_rule="centroid_largest", neighbour_credit=0.0
    )
    assert as_grid("2x4") == as_grid(Grid(2, 4)) == as_grid(config) == Grid(2, 4)
    assert str(Grid(2, 4)) == "2x4"


@pytest.mark.parametrize(
    "change",
    [
        {"rows": 0},
        {"cols": 0},
        {"rows": 100},
        {"cols": 100},
        {"mask_rule": "mean"},
        {"neighbour_credit": 1.0},
        {"more": 1},
    ],
)
def test_a_grid_section_with_a_wrong_value_is_refused(change: dict) -> None:
    right = {
        "name": "x",
        "rows": 3,
        "cols": 3,
        "mask_rule": "multi",
        "neighbour_credit": 0.5,
    }
    assert GridConfig.model_validate(right).rows == 3
    with pytest.raises(ValidationError):
        GridConfig.model_validate(right | change)


# --- cell to words and back -------------------------------------------------------------------


def test_the_words_of_the_papers_grid() -> None:
    assert [words(cell, "3x3") for cell in range(9)] == [
        *("top left", "top center", "top right"),
        *("middle left", "center", "middle right"),
        *("bottom left", "bottom center", "bottom right"),
    ]


@pytest.mark.parametrize(
    ("grid", "cell", "expected"),
    [
        ("1x1", 0, "whole image"),
        ("2x2", 2, "bottom left"),
        ("1x3", 1, "center"),
        ("3x1", 1, "middle"),
        ("1x2", 0, "left"),
        ("2x1", 1, "bottom"),
        ("2x3", 4, "bottom center"),
        ("3x2", 3, "middle right"),
        ("4x4", 6, "row 2 of 4, column 3 of 4"),
        ("3x4", 0, "row 1 of 3, column 1 of 4"),
        ("5x2", 9, "row 5 of 5, column 2 of 2"),
    ],
)
def test_words_of_other_grids(grid: str, cell: int, expected: str) -> None:
    assert words(cell, grid) == expected


@pytest.mark.parametrize("cell", [-1, 9])
def test_a_cell_outside_the_grid_has_no_words(cell: int) -> None:
    with pytest.raises(ConfigError, match=f"cell {cell} .* 3x3 .* 0 to 8"):
        words(cell, "3x3")


@pytest.mark.parametrize("grid", EVERY_GRID, ids=str)
def test_words_of_every_cell_lead_back_to_it(grid: Grid) -> None:
    for cell in range(grid.cells):
        assert parse_cells(words(cell, grid), grid) == {cell}


def test_no_two_cells_share_their_words() -> None:
    for grid in EVERY_GRID:
        assert len({words(cell, grid) for cell in range(grid.cells)}) == grid.cells


@given(GRIDS, st.data())
def test_a_description_of_several_cells_leads_back_to_them(grid: Grid, data: st.DataObject) -> None:
    chosen = data.draw(st.sets(st.integers(0, grid.cells - 1), min_size=1))
    assert parse_cells(describe(chosen, grid), grid) == chosen
    assert parse_cells(describe(chosen, grid).upper(), grid) == chosen


def test_a_description_is_in_reading_order_and_names_no_cell_twice() -> None:
    assert describe([8, 0, 8], "3x3") == "top left, bottom right"
    assert describe([], "3x3") == ""


# --- words to cells ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("top left", cells(0)),
        ("TOP-LEFT", cells(0)),
        ("upper-left corner", cells(0)),
        ("topleft", cells(0)),
        ("left bottom", cells(6)),
        ("lower right", cells(8)),
        ("bottommost, rightmost", cells(8)),
        ("top", cells(1)),
        ("near the top edge", cells(1)),
        ("left side", cells(3)),
        ("right", cells(5)),
        ("bottom", cells(7)),
        ("center", cells(4)),
        ("centre", cells(4)),
        ("the middle", cells(4)),
        ("central area", cells(4)),
        ("middle center", cells(4)),
        ("top middle", cells(1)),
        ("mid left", cells(3)),
        ("center right", cells(5)),
        ("right, upper part", cells(2)),
        ("in the bottom right quadrant", cells(8)),
        ("second row, third column", cells(5)),
        ("column 1, row 3", cells(6)),
        ("row 3", cells(7)),
        ("3rd row 1st column", cells(6)),
        ("row 1 of 3, column 2 of 3", cells(1)),
        ("row 1 of 3 left", cells(0)),
        ("row 1 of the image", cells(1)),
        ("row 1 of", cells(1)),
        ("top left and bottom right", cells(0, 8)),
        ("top left, center", cells(0, 4)),
        ("center, top left", cells(0, 4)),
        ("top left center", cells(0, 4)),
        ("along the left and right edges", cells(3, 5)),
        ("left right", cells(3, 5)),
        ("left, center", cells(3)),
        ("2nd row, 3rd column", cells(5)),
        ("top and bottom", cells(1, 7)),
        ("top or left", cells(1, 3)),
        ("top left bottom right", cells(0, 8)),
        ("top; left", cells(1, 3)),
        ("top/left", cells(0)),
        ("top left/top right", cells(0, 2)),
        ("right at the top", cells(1)),
        ("it is right in the center", cells(4)),
        ("on the right in the middle", cells(5)),
        ("top right in the corner", cells(2)),
        ("upper left and right", cells(0, 2)),
        ("lower left & right corners", cells(6, 8)),
        ("upper and lower left", cells(0, 6)),
        ("upper left and the right", cells(0, 5)),
        ("top and the bottom left", cells(1, 6)),
        ("both top left & top right", cells(0, 2)),
        ("top plus left", cells(1, 3)),
        ("a scratch on the top left of the part", cells(0)),
        ("the whole image", frozenset(range(9))),
        ("everywhere", frozenset(range(9))),
        ("the entire left side", cells(3)),
    ],
)
def test_words_name_cells_of_the_papers_grid(text: str, expected: frozenset[int]) -> None:
    assert parse_cells(text, "3x3") == expected
    assert parse_cells(text.upper(), "3x3") == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "unknown", "scratch", "corner", "edge", "somewhere", "on the surface", "<top>s"),
        *("copyright", "upright", "stop", "slower", "follower", "lefty", "topping", "stopleft"),
        *("not at the top", "no defect in the center", "isn't left", "none", "without a center"),
        *("neither left", "never top", "outside the center", "except the top"),
        *(
            "row 1 of 4",
            "column 1 of 2",
            "row 4",
            "row 0",
            "column 9 of 9",
            "row 1 of 4, column 1 of 4",
            "row 999",
            "row 1234",
        ),
        *("1000th row, left", "row 1000, top left", "100th column"),
        *("ninth row", "row", "row x", "1", "2 of 3", "of"),
    ],
)
def test_text_that_names_no_place_is_unparsed_and_never_the_center(text: str) -> None:
    expected = parse_cells("top", "3x3") if text == "<top>s" else None
    assert parse_cells(text, "3x3") == expected


@pytest.mark.parametrize(
    ("grid", "text", "expected"),
    [
        ("2x2", "top", cells(0, 1)),
        ("2x2", "left", cells(0, 2)),
        ("2x2", "center", cells(0, 1, 2, 3)),
        ("4x4", "top left", cells(0)),
        ("4x4", "bottom", cells(13, 14)),
        ("4x4", "center", cells(5, 6, 9, 10)),
        ("5x5", "center", cells(12)),
        ("5x5", "right", cells(14)),
        ("1x3", "top", None),
        ("1x3", "top left", cells(0)),
        ("1x3", "middle", cells(1)),
        ("1x3", "left, center", cells(0, 1)),
        ("3x1", "top, middle", cells(0, 1)),
        ("2x3", "left, center", cells(0, 3)),
        ("3x2", "top, middle", cells(0, 1)),
        ("3x1", "left", None),
        ("3x1", "bottom left", cells(2)),
        ("1x1", "top left", cells(0)),
        ("1x1", "center", cells(0)),
        ("1x1", "whole image", cells(0)),
        ("1x1", "scratch", None),
        ("8x8", "eighth row, eighth column", cells(63)),
    ],
)
def test_words_name_cells_of_other_grids(
    grid: str, text: str, expected: frozenset[int] | None
) -> None:
    assert parse_cells(text, grid) == expected


@given(st.text(max_size=60), GRIDS)
def test_any_text_parses_to_cells_of_the_grid_or_to_none(text: str, grid: Grid) -> None:
    found = parse_cells(text, grid)
    assert found is None or (found and found <= set(range(grid.cells)))


def test_long_text_is_read_like_short_text() -> None:
    assert parse_cells("a scratch " * 100 + "at the top left", "3x3") == {0}
    assert parse_cells("x" * 200_000, "3x3") is None
    assert parse_cells("row " + "9" * 200_000, "3x3") is None


def test_the_largest_grid_reads_its_last_row() -> None:
    assert parse_cells(words(98, "99x1"), "99x1") == {98}
    assert parse_cells("row 100 of 99", "99x1") is None


# --- masks ------------------------------------------------------------------------------------


def mask(*boxes: tuple[int, int, int, int], size: tuple[int, int] = (90, 90)) -> np.ndarray:
    """A mask [H, W] with rectangles (top, left, bottom, right), the last two outside."""
    drawn = np.zeros(size, dtype=np.uint8)
    for top, left, bottom, right in boxes:
        drawn[top:bottom, left:right] = 255
    return drawn


BIG_TOP_LEFT = (0, 0, 20, 20)
SMALL_BOTTOM_RIGHT = (80, 80, 90, 90)
THIN_MIDDLE = (44, 2, 46, 6)
TINY_TOP_RIGHT = (1, 88, 2, 89)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("centroid_largest", cells(0)),
        ("centroid_all", cells(0)),
        ("max_overlap", cells(0)),
        ("multi", cells(0, 8, 3)),
    ],
)
def test_each_rule_reads_the_same_mask_in_its_own_way(rule, expected: frozenset[int]) -> None:
    drawn = mask(BIG_TOP_LEFT, SMALL_BOTTOM_RIGHT, THIN_MIDDLE, TINY_TOP_RIGHT)
    assert cells_from_mask(drawn, "3x3", rule) == expected


def test_the_centroid_of_all_lies_between_two_equal_defects() -> None:
    drawn = mask((0, 0, 10, 10), (80, 80, 90, 90))
    assert cells_from_mask(drawn, THREE, "centroid_all") == {4}
    assert cells_from_mask(drawn, THREE, "centroid_largest") == {0}, "the first in reading order"
    assert cells_from_mask(drawn, THREE, "max_overlap") == {0}, "the first among equals"
    assert cells_from_mask(drawn, THREE, "multi") == {0, 8}


def test_overlap_and_centroid_differ_on_an_uneven_defect() -> None:
    drawn = mask((0, 0, 29, 29), (0, 29, 2, 90))  # a block, and a thin arm to the right
    assert cells_from_mask(drawn, THREE, "max_overlap") == {0}
    assert cells_from_mask(mask((0, 20, 2, 90)), THREE, "centroid_largest") == {1}


def test_pixels_that_touch_at_a_corner_are_one_component() -> None:
    diagonal = np.eye(90)
    assert cells_from_mask(diagonal, THREE, "multi") == {4}


def test_among_many_components_the_largest_come_first_then_reading_order() -> None:
    drawn = np.zeros((90, 90))
    drawn[1::4, 1::4] = 1  # 23 x 23 single pixels
    drawn[5, 5], drawn[5, 45:47], drawn[85, 85:87] = 1, 1, 1  # two of two pixels
    assert cells_from_mask(drawn, THREE, "multi") == {0, 1, 8}
    assert cells_from_mask(drawn, THREE, "centroid_largest") == {1}


def test_an_empty_mask_is_in_no_cell() -> None:
    assert cells_from_mask(np.zeros((5, 5)), THREE) == frozenset()


@pytest.mark.parametrize("value", [1, 255, 0.2, -1, True])
def test_any_value_but_zero_is_defective(value: float) -> None:
    drawn = np.zeros((9, 9))
    drawn[8, 0] = value
    assert cells_from_mask(drawn, THREE) == {6}


@pytest.mark.parametrize("rule", ["centroid_largest", "centroid_all", "max_overlap", "multi"])
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 8),
    st.integers(1, 8),
    st.data(),
)
def test_a_single_pixel_lies_in_the_cell_of_its_centre(
    rule, height: int, width: int, rows: int, cols: int, data: st.DataObject
) -> None:
    row, col = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    drawn = np.zeros((height, width), dtype=bool)
    drawn[row, col] = True
    expected = ((2 * row + 1) * rows // (2 * height)) * cols + (2 * col + 1) * cols // (2 * width)
    assert cells_from_mask(drawn, Grid(rows, cols), rule) == {expected}


@pytest.mark.parametrize("shape", [(9,), (3, 3, 3)])
def test_a_mask_that_is_no_picture_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="shape"):
        cells_from_mask(np.ones(shape), THREE)


def test_an_unknown_rule_is_refused_with_the_known_ones() -> None:
    rule: Any = "mean"  # as it comes from a user's own code, where nobody checks types
    with pytest.raises(ConfigError, match="centroid_largest, centroid_all, max_overlap, multi"):
        cells_from_mask(np.ones((3, 3)), THREE, rule)


# --- scores -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("predicted", "actual", "expected"),
    [
        ("upper left corner", "top left", 1.0),
        ("bottom right and top left", "top left, bottom right", 1.0),
        ("top left", "top left, bottom right", 0.0),
        ("top left, center", "top left", 0.0),
        ("whole image", "center", 0.0),
        ("", "center", 0.0),
        ("scratch", "center", 0.0),
        ("scratch", "scratch", 0.0),
        ("copyright", "middle right", 0.0),
        ("top left", "bottom left", 0.0),
        ("top center", "top left", 0.0),
    ],
)
def test_a_place_counts_when_it_is_the_place(predicted: str, actual: str, expected: float) -> None:
    assert location_score(predicted, actual) == expected


@pytest.mark.parametrize(
    ("predicted", "actual", "expected"),
    [
        ("top left", "top left", 1.0),
        ("top center", "top left", 0.3),
        ("center", "top left", 0.3),
        ("top right", "top left", 0.0),
        ("bottom left", "top left", 0.0),
        ("middle right", "middle left", 0.0),
        ("whole image", "center", 0.0),
        ("top center, center", "top left", 0.0),
        ("top center", "top left, top right", 0.3),
        ("top left", "top left, bottom right", 0.0),
        ("top left, center", "top left, bottom right", 0.3),
        ("nowhere", "top left", 0.0),
    ],
)
def test_neighbour_credit_is_for_cells_that_touch(
    predicted: str, actual: str, expected: float
) -> None:
    assert location_score(predicted, actual, "3x3", neighbour_credit=0.3) == expected


@given(GRIDS, st.data())
def test_neighbours_are_the_cells_a_king_could_move_to(grid: Grid, data: st.DataObject) -> None:
    one, other = (data.draw(st.integers(0, grid.cells - 1)) for _ in range(2))
    (row, col), (other_row, other_col) = divmod(one, grid.cols), divmod(other, grid.cols)
    near = abs(row - other_row) <= 1 and abs(col - other_col) <= 1
    expected = 1.0 if one == other else 0.5 if near else 0.0
    score = location_score(words(one, grid), words(other, grid), grid, neighbour_credit=0.5)
    assert score == expected


@pytest.mark.parametrize(
    ("predicted", "actual"),
    [
        ("nothing that is a place", "center"),
        ("copyright", "right"),
        ("slower", "bottom"),
        ("stop", "top"),
        ("left and right", "left"),
    ],
)
def test_faults_of_the_released_matcher_are_kept_and_are_not_ours(
    predicted: str, actual: str
) -> None:
    assert location_score(predicted, actual, "3x3", released=True) == 1.0
    assert location_score(predicted, actual, "3x3") == 0.0


def test_the_released_matcher_tells_nine_regions_apart() -> None:
    regions = [
        ["top left", "UPPER LEFT", "left of the top, bottom right"],
        ["top", "upper edge", "stop", "top, lower"],
        ["top right", "upright at the top", "upper bright spot"],
        ["left", "middle left", "left and right"],
        ["center", "nowhere", ""],
        ["right", "copyright"],
        ["bottom left", "lower left"],
        ["bottom", "slower", "at the lower edge"],
        ["bottom right", "lower right"],
    ]
    for at, texts in enumerate(regions):
        for other_at, others in enumerate(regions):
            for said in texts:
                for true in others:
                    score = location_score(said, true, released=True)
                    assert score == float(at == other_at), (said, true)


def test_the_released_matcher_knows_only_its_own_grid() -> None:
    assert location_score("Top LEFT", "upper left", released=True) == 1.0
    assert location_score("top", "bottom", released=True) == 0.0
    with pytest.raises(ConfigError, match="only 3x3, not 4x4"):
        location_score("top", "top", "4x4", released=True)
