"""Small folders on which readers of photographs fail: each is read as a person reads it, or it is
refused in one sentence that names the file and what to do."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from iad_r1.command import compose
from iad_r1.data import EVERY, mix
from iad_r1.errors import DataError
from iad_r1.grid import as_grid
from iad_r1.types import Dataset

# of a folder: how many good pictures, and places and types of the defective ones
RIGHT_SIDE: dict[str | None, int] = {"top right": 3, "middle right": 2, "bottom right": 1}
TOP_LEFT: dict[str | None, int] = {"top left": 6}
READ: dict[str, tuple[int, dict[str | None, int], str | None]] = {
    "casting-ok-front": (6, {None: 6}, None),
    "csv-header-spaces": (6, RIGHT_SIDE, "scratch"),
    "csv-mask-path-column": (6, RIGHT_SIDE, "scratch"),
    "csv-semicolon": (6, RIGHT_SIDE, "scratch"),
    "csv-trailing-empty-rows": (6, RIGHT_SIDE, "scratch"),
    "csv-type-na": (6, RIGHT_SIDE, None),
    "ext-jfif": (6, RIGHT_SIDE, "scratch"),
    "good-second-folder": (12, {None: 6}, "scratch"),
    "gray16-darkfield": (6, RIGHT_SIDE, "scratch"),
    "gray16-full": (6, RIGHT_SIDE, "scratch"),
    "hidden-folder-ipynb": (6, RIGHT_SIDE, "scratch"),
    "kind-abnormal": (6, {None: 6}, None),
    "kind-ko": (6, {None: 6}, None),
    "mask-alpha-only": (6, TOP_LEFT, "scratch"),
    "mask-png8-palette": (6, TOP_LEFT, "scratch"),
    "masks-btad-double-suffix": (6, RIGHT_SIDE, None),
    "masks-loco-nested": (6, TOP_LEFT, "logical anomalies"),
    "masks-unmatched-gt": (6, RIGHT_SIDE, "scratch"),
}
REFUSED = {
    "exif-180": (r"1_0\.png: .*EXIF orientation 3", "data.masks_drawn_on=stored", "bottom right"),
    "exif-square": (r"1_0\.png: .*EXIF orientation 6", "data.masks_drawn_on=stored", "top right"),
    "mask-inverted": (r"1_0\.png: .* 6 of 6 masks", "data.masks_inverted=true", "top left"),
}  # fmt: skip


def loaded(shared: Path, name: str, *options: str) -> Dataset:
    folder = shared / "cases" / name
    if not folder.is_dir():
        pytest.skip("the case is not here")
    config = compose.compose(
        ["stage=sft", "backbone=qwen25vl_3b", "data=photos", "data.validation_share=0.25",
         "tracking=none", f"data.root={folder}", *options]
    )  # fmt: skip
    return mix.load(config.data, as_grid(config.grid), config.grid.mask_rule, 0, EVERY)


def read(shared: Path, name: str, *options: str) -> Counter[tuple[str, str | None, str | None]]:
    dataset = loaded(shared, name, *options)
    parts = (dataset.sft, dataset.validation["seen"], dataset.test["seen"])
    found = [sample.solution for part in parts for sample in part]
    return Counter((truth.answer, truth.location, truth.type) for truth in found)


@pytest.mark.parametrize("name", READ)
def test_a_folder_is_read_as_a_person_reads_it(name, shared):
    good, places, kind = READ[name]
    wanted = Counter({("Yes", place, kind): n for place, n in places.items()})
    assert read(shared, name) == wanted + Counter({("No", None, None): good})


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_known_is_asked_with_the_option_that_says_it(name, shared):
    message, option, place = REFUSED[name]
    with pytest.raises(DataError, match=message) as caught:
        read(shared, name)
    assert option in str(caught.value)
    assert {where for answer, where, _ in read(shared, name, option) if answer == "Yes"} == {place}


@pytest.mark.parametrize("drop", [False, True])
def test_plain_surfaces_saved_again_for_the_test_are_leaks(drop, shared):
    dataset = loaded(shared, "leak-plain-surface", f"data.drop_leaks={drop}".lower())
    assert dataset.counts["leaks"] == 3 and dataset.counts["leaks_dropped"] == 3 * drop


def test_a_strip_beside_other_pictures_is_read(shared):
    assert read(shared, "strip-train").total() > 0
