"""Which pictures a report shows, and how they are stored."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from iad_r1.errors import DataError
from iad_r1.report import gallery
from iad_r1.types import Mask, Sample, Solution


def sample(
    index: int,
    product: str = "cube",
    anomalous: bool = False,
    split: str = "seen",
    **fields: Any,
) -> Sample:
    solution = Solution("Yes" if anomalous else "No")
    picture = Image.new("RGB", (40, 20), (index % 256, 0, 0))
    return Sample(f"{split}/{product}/{index}", "made", split, product, picture, solution,
                  **fields)  # fmt: skip


def many(per_kind: int, products: tuple[str, ...] = ("cap", "cube", "tile")) -> list[Sample]:
    return [
        sample(2 * i + anomalous, product, bool(anomalous))
        for product in products
        for anomalous in (0, 1)
        for i in range(per_kind)
    ]


def test_products_and_labels_are_shown_in_turn():
    chosen = gallery.choose(many(10), 12)
    assert Counter((s.product, s.solution.answer) for s in chosen) == {
        (product, answer): 2 for product in ("cap", "cube", "tile") for answer in ("Yes", "No")
    }


def test_a_product_with_few_pictures_leaves_its_turns_to_the_others():
    chosen = gallery.choose([*many(10, ("cube",)), sample(0, "toy")], 8)
    assert Counter(s.product for s in chosen) == {"cube": 7, "toy": 1}


@settings(deadline=None, max_examples=40)  # a busy machine is not a failure
@given(st.randoms(use_true_random=False), st.integers(0, 30))
def test_the_choice_does_not_depend_on_the_order_of_the_samples(random, limit):
    samples = many(4)
    shuffled = random.sample(samples, len(samples))
    chosen = [s.id for s in gallery.choose(samples, limit)]
    assert chosen == [s.id for s in gallery.choose(shuffled, limit)]
    assert len(chosen) == len(set(chosen)) == min(limit, len(samples))


def test_more_pictures_begin_with_the_same_ones():
    ids = [s.id for s in gallery.choose(many(5), 20)]
    assert [s.id for s in gallery.choose(many(5), 7)] == ids[:7]


def test_what_is_saved_is_read_back_and_saving_again_changes_nothing(tmp_path):
    path = gallery.save(tmp_path, many(3), 6)
    rows, first = gallery.read(tmp_path), path.read_bytes()
    assert len(rows) == 6 and {row["split"] for row in rows} == {"seen"}
    assert all((tmp_path / row["image"]).is_file() and row["mask"] is None for row in rows)
    gallery.save(tmp_path, many(3)[::-1], 6)
    assert path.read_bytes() == first


def test_another_split_is_added_beside_the_first(tmp_path):
    gallery.save(tmp_path, many(3), 4)
    gallery.save(tmp_path, [sample(0, split="new"), sample(1, split="new")], 4)
    assert Counter(row["split"] for row in gallery.read(tmp_path)) == {"seen": 4, "new": 2}


def test_stored_names_do_not_tell_the_label(tmp_path):
    secret = Sample("part_defective_7", "made", "seen", "cube", Image.new("RGB", (8, 8)),
                    Solution("Yes"))  # fmt: skip
    gallery.save(tmp_path, [secret], 1)
    assert "defective" not in gallery.read(tmp_path)[0]["image"]


def test_large_pictures_are_stored_smaller_with_a_mask_of_the_same_size(tmp_path):
    big = np.zeros((600, 1200), dtype=np.uint8)
    big[300, 100:1100] = 7  # a scratch one pixel high, of an odd value
    picture = Sample("big", "made", "seen", "cube", Image.new("RGB", (1200, 600)),
                     Solution("Yes"), Image.fromarray(big))  # fmt: skip
    gallery.save(tmp_path, [picture], 1)
    row = gallery.read(tmp_path)[0]
    mask = np.asarray(Image.open(tmp_path / row["mask"]))
    assert Image.open(tmp_path / row["image"]).size == (384, 192) == mask.shape[::-1]
    assert set(np.unique(mask)) == {0, 255}
    rows, columns = np.nonzero(mask)
    assert set(rows) == {96}, "the scratch neither vanished nor moved"
    assert (columns.min(), columns.max()) == (32, 351)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA"])
def test_masks_of_every_kind_mark_what_is_not_zero(tmp_path, mode):
    mask = Image.new(mode, (40, 20))
    if mode in ("RGBA", "LA"):
        mask.putalpha(255)  # opaque black is not a defect
    white: dict[str, int | tuple[int, ...]] = {"P": 3, "RGB": (0, 0, 9), "RGBA": (9, 0, 0, 255),
                                               "LA": (9, 255)}  # fmt: skip
    mask.putpixel((5, 4), white.get(mode, 1))
    gallery.save(tmp_path, [sample(0, anomalous=True, mask=mask)], 1)
    stored = np.asarray(Image.open(tmp_path / gallery.read(tmp_path)[0]["mask"]))
    assert stored.sum() == 255 and stored[4, 5] == 255


def test_pictures_may_be_files(tmp_path):
    image, mask = tmp_path / "a.png", tmp_path / "m.png"
    Image.new("L", (16, 16), 90).save(image)
    Image.new("L", (16, 16), 255).save(mask)
    part = Sample("a", "made", "seen", "cube", image, Solution("Yes"), Mask((mask,)))
    gallery.save(tmp_path / "run", [part], 1)
    row = gallery.read(tmp_path / "run")[0]
    assert Image.open(tmp_path / "run" / row["image"]).mode == "RGB"


def test_a_photograph_taken_sideways_is_shown_upright_with_its_mask(tmp_path):
    """As the model sees it and as its place was named: the grid lies on the upright picture."""
    image, mask = tmp_path / "a.jpg", tmp_path / "m.png"
    stored = Image.new("RGB", (40, 20), "black")
    stored.paste("white", (0, 0, 20, 20))
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by 90 degrees clockwise: its left is shown on top
    stored.save(image, exif=turned)
    drawn = Image.new("L", (40, 20))
    drawn.paste(255, (0, 0, 20, 20))
    drawn.save(mask)
    gallery.save(tmp_path / "run", [Sample("a", "made", "seen", "cube", image, Solution("Yes"),
                                           Mask((mask,)))], 1)  # fmt: skip
    row = gallery.read(tmp_path / "run")[0]
    shown, marked = (Image.open(tmp_path / "run" / row[key]) for key in ("image", "mask"))
    assert shown.size == marked.size == (20, 40)
    bright = np.asarray(shown.convert("L")) > 128
    assert (bright == (np.asarray(marked) > 0)).mean() > 0.95 and bright[0, 10]


def test_no_gallery_is_no_pictures_and_a_broken_one_is_named(tmp_path: Path):
    assert gallery.read(tmp_path) == []
    (tmp_path / "gallery.jsonl").write_text(json.dumps({"id": "a"}) + "\n")
    with pytest.raises(DataError, match=r"gallery\.jsonl is broken"):
        gallery.read(tmp_path)
