"""Views of photographs: what is moved moves with its mask, and what is drawn is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from iad_r1.data import images, mix, views
from iad_r1.data.drawn import world
from iad_r1.data.drawn.defects import DEFECT_TYPES
from iad_r1.data.readers import photos
from iad_r1.errors import DataError
from iad_r1.grid import Grid, cells_from_mask, describe
from iad_r1.settings.data import Views
from iad_r1.types import Dataset, Sample, Solution

GRID = Grid(3, 3)
SIZE = (96, 64)
MARK = (250, 0, 0)  # the colour of the defects of these photographs; nothing else is red


def sample(name: str, defective: bool, masked: bool = True) -> Sample:
    """Grey noise, and of a defective one a red square at the top left."""
    values = np.random.default_rng(len(name)).integers(90, 160, (SIZE[1], SIZE[0], 3), np.uint8)
    mask = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    if defective:
        values[8:18, 10:22], mask[8:18, 10:22] = MARK, 255
    return Sample(
        id=name,
        dataset="d",
        split="train",
        product="p",
        image=Image.fromarray(values),
        solution=Solution("Yes", "top left" if masked else None, "spot")
        if defective
        else Solution("No"),
        mask=Image.fromarray(mask) if defective and masked else None,
    )


GOOD, BAD = sample("good", False), sample("bad one", True)


def drawn(samples: list[Sample], count: int, share: float = 0.0, part: str = "sft") -> list[Sample]:
    settings = Views(sft=1, rl=1, drawn_defects=share, pixels=96 * 64)
    return list(views.Viewer(settings, GRID, "centroid_largest", 0).draw(samples, part, count))


def test_the_mask_of_a_view_lies_where_the_defect_is_seen_and_names_its_place() -> None:
    places = set()
    for view in drawn([GOOD, BAD], 40)[1::2]:
        seen, mask = np.asarray(images.open_image(view)).astype(int), images.open_mask(view)
        assert mask is not None
        red = (seen[..., 0] - seen[..., 1]) > 125
        assert (red & mask).sum() / (red | mask).sum() > 0.8
        assert view.solution.location == describe(cells_from_mask(mask, GRID), GRID)
        assert view.solution.type == "spot"
        places.add(view.solution.location)
    assert {"top left", "top right", "bottom left", "bottom right"} <= places


def test_good_and_defective_views_alternate_and_none_is_like_another() -> None:
    found = drawn([GOOD, BAD], 20)
    assert [view.solution.answer for view in found] == ["No", "Yes"] * 10
    assert len({view.id for view in found}) == 20
    assert len({images.open_image(view).tobytes() for view in found}) == 20
    assert all(images.open_mask(view) is None for view in found[::2])


def test_pa_sft_and_sc_grpo_are_given_views_of_their_own() -> None:
    sft, rl = drawn([GOOD, BAD], 10), drawn([GOOD, BAD], 10, part="rl")
    shown = [{images.open_image(view).tobytes() for view in part} for part in (sft, rl)]
    assert not shown[0] & shown[1]
    again = {images.open_image(view).tobytes() for view in drawn([GOOD, BAD], 10)}
    assert again == shown[0]


def test_a_defect_without_a_mask_has_no_place_in_any_view() -> None:
    for view in drawn([GOOD, sample("unmasked", True, masked=False)], 10)[1::2]:
        assert view.solution == Solution("Yes", None, "spot")


def test_where_all_photographs_are_good_every_defect_is_a_drawn_one() -> None:
    for view in drawn([GOOD], 12)[1::2]:
        mask = images.open_mask(view)
        assert mask is not None
        assert view.solution.type in DEFECT_TYPES
        assert view.solution.location == describe(cells_from_mask(mask, GRID), GRID)


def test_a_drawn_defect_changes_a_photograph_where_its_mask_says_and_nowhere_else() -> None:
    photograph = np.asarray(images.open_image(GOOD))
    for k in range(20):
        damaged, kind = world.damaged(np.random.default_rng(k), photograph)
        difference = np.abs(damaged.image.astype(int) - photograph).max(axis=2)
        assert kind in DEFECT_TYPES
        assert damaged.mask.any()
        assert (difference[damaged.mask] >= world.CHANGE_ON_PHOTOGRAPHS).all()
        assert (difference[~damaged.mask] == 0).all()


@pytest.mark.parametrize("size", [(1, 50), (2, 50), (11, 11)])
def test_a_photograph_without_room_for_a_defect_is_refused_by_name(size) -> None:
    sliver = replace(GOOD, image=Image.new("RGB", size), where="sliver.png")
    with pytest.raises(DataError, match=r"sliver\.png: a picture of .* is too small to draw"):
        list(drawn([sliver], 4))
    noise = np.random.default_rng(0).integers(0, 255, (world.SMALLEST_SQUARE, 60, 3), np.uint8)
    assert all(world.damaged(np.random.default_rng(k), noise)[0].mask.any() for k in range(40))


def test_the_reference_of_a_view_is_mirrored_as_the_view_is() -> None:
    """Left and right, top and bottom differ: where it is dark tells how a picture was mirrored."""
    values = np.full((SIZE[1], SIZE[0], 3), 200, np.uint8)
    values[:32, :48] = 20
    corner = Sample("corner", "d", "train", "p", Image.fromarray(values), Solution("No"))
    query = Sample(
        "q", "d", "train", "p", Image.fromarray(values), Solution("No"), references=(corner,)
    )
    ways = set()
    for view in drawn([query], 24)[::2]:
        dark = [
            np.asarray(images.open_image(each))[..., 0] < 100 for each in (view, view.references[0])
        ]
        corners = [tuple(each[y, x] for y in (16, 48) for x in (24, 72)) for each in dark]
        assert corners[0] == corners[1]
        ways.add(corners[0])
    assert len(ways) == 4


def test_views_take_the_place_of_training_photographs_alone(tmp_path: Path) -> None:
    def load(shown: Views | None) -> Dataset:
        settings = photos.Settings(
            name="photos", root=str(tmp_path), format=None, split=None, test_share=0.3,
            validation_share=0.25, near_duplicate_bits=10, drop_leaks=False, masks_inverted=None,
            masks_drawn_on=None, masks_threshold=None, views=shown,
        )  # fmt: skip
        return mix.load(settings, GRID, "centroid_largest", 0)

    for part, count in (("train", 8), ("test", 2)):
        for kind in ("good", "dent"):
            folder = tmp_path / "p" / part / kind
            folder.mkdir(parents=True)
            for k in range(count):
                seed = [k, ord(part[0]), ord(kind[0])]
                noise = np.random.default_rng(seed).integers(0, 255, (*SIZE[::-1], 3), np.uint8)
                Image.fromarray(noise).save(folder / f"{k}.png")
    plain, shown = load(None), load(Views(sft=6, rl=4, drawn_defects=0.5, pixels=64 * 64))
    assert (len(shown.sft), len(shown.rl)) == (6, 4)
    assert shown.counts["views_sft"] == 6
    assert (shown.validation, shown.test) == (plain.validation, plain.test)
    known = {one.id for one in plain.sft}
    assert all(view.id.rpartition("/sft/")[0] in known for view in shown.sft)
    assert all(images.open_image(view).width <= 78 for view in shown.sft)


@pytest.mark.parametrize("masked", [True, False])
def test_a_view_keeps_half_of_its_defect_in_sight(masked: bool) -> None:
    """A defect at the edge would leave the picture: such a view is drawn again."""
    values = np.full((64, 64, 3), 120, np.uint8)
    values[:, :3] = MARK
    mask = np.zeros((64, 64), np.uint8)
    mask[:, :3] = 255
    edge = Sample(
        "edge", "d", "train", "p", Image.fromarray(values), Solution("Yes", None, "spot"),
        mask=Image.fromarray(mask) if masked else None,
    )  # fmt: skip
    shares = [
        float((np.asarray(images.open_image(view))[..., 1] < 60).mean()) * 64 / 3
        for view in drawn([GOOD, edge], 60)[1::2]
    ]
    assert (min(shares) > 0.4) == masked
