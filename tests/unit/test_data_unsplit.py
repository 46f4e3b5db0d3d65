"""Folders that say what a picture is, and not whether it trains or tests."""

from __future__ import annotations

import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from iad_r1.data import EVERY, Part, mix
from iad_r1.data.readers import mix as mix_reader
from iad_r1.data.readers import photos
from iad_r1.errors import DataError
from iad_r1.grid import Grid
from iad_r1.types import Dataset, Question, Sample, Solution

GRID = Grid(3, 3)


def told(root: Path, **changes: Any) -> photos.Settings:
    values = {"split": None, "test_share": 0.25, "validation_share": 0.25,
              "near_duplicate_bits": 10, "drop_leaks": False, "format": None,
              "masks_inverted": None, "masks_drawn_on": None, "views": None,
              "masks_threshold": None, **changes}  # fmt: skip
    return photos.Settings(name="photos", root=str(root), **values)


def load(root: Path, required: frozenset[Part] = EVERY, seed: int = 0, **changes: Any) -> Dataset:
    return mix.load(told(root, **changes), GRID, "centroid_largest", seed, required)


def everything(dataset: Dataset) -> list[Sample]:
    return [*dataset.sft, *dataset.validation["seen"], *dataset.test["seen"]]


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(zlib.crc32(str(path.name + path.parent.name).encode()))
    Image.fromarray(noise.integers(0, 255, (24, 36, 3), np.uint8)).save(path)
    return path


def mask(path: Path) -> None:
    """Of a defect at the top left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.zeros((24, 36), np.uint8)
    values[2:6, 2:6] = 255
    Image.fromarray(values).save(path)


def plant(product: Path, n: int = 8, good: str = "ok", bad: str = "crack") -> list[Path]:
    """n good and n defective pictures; returns the defective ones."""
    for i in range(n):
        picture(product / good / f"g{i}.png")
    return [picture(product / bad / f"b{i}.png") for i in range(n)]


def test_a_quarter_of_every_product_and_label_tests_and_a_quarter_of_the_rest_validates(tmp_path):
    for product in ("bolt", "nut"):
        plant(tmp_path / product)
    dataset = load(tmp_path)
    for part, n in ((dataset.sft, 4), (dataset.validation["seen"], 2), (dataset.test["seen"], 2)):
        found = Counter((s.product, s.solution.answer) for s in part)
        assert found == dict.fromkeys(
            [(product, label) for product in ("bolt", "nut") for label in ("Yes", "No")], n
        )


def test_the_seed_draws_the_split_and_the_name_of_the_folder_does_not(tmp_path):
    plant(tmp_path / "first" / "bolt", 16)
    (tmp_path / "second").symlink_to(tmp_path / "first")
    tests = [
        {sample.id.partition("/")[2] for sample in load(tmp_path / name, seed=seed).test["seen"]}
        for name, seed in (("first", 0), ("second", 0), ("first", 1))
    ]
    assert tests[0] == tests[1] != tests[2]


def test_near_duplicates_stay_together(tmp_path):
    for image in plant(tmp_path / "bolt"):
        Image.open(image).save(image.with_name(f"again_{image.stem}.bmp"))
    dataset = load(tmp_path)
    parts = (dataset.sft, *dataset.validation.values(), *dataset.test.values())
    for part in parts:
        names = Counter(str(s.image)[-6:-4] for s in part if s.solution.answer == "Yes")
        assert set(names.values()) == {2}
    assert dataset.counts["leaks"] == 0


def test_the_same_pictures_test_whether_a_run_trains_on_the_others_or_not(tmp_path):
    plant(tmp_path / "bolt")
    settings = told(tmp_path)
    rule = "centroid_largest"
    alone = mix.load(settings, GRID, rule, 0, frozenset(), {"photos": settings})
    ids = {sample.id for sample in alone.test["photos"]}
    assert ids == {sample.id for sample in load(tmp_path).test["seen"]}


@pytest.mark.parametrize("inner", ["", "bolt"])
def test_a_single_product_may_lie_in_the_root(inner, tmp_path):
    plant(tmp_path / "bolt")
    found = everything(load(tmp_path / inner))
    assert len(found) == 16 and {s.product for s in found} == {"bolt"}


def test_pictures_in_folders_by_day_are_read(tmp_path):
    plant(tmp_path / "bolt", good="ok/monday", bad="ng/tuesday")
    answers = Counter(s.solution.answer for s in everything(load(tmp_path)))
    assert answers == {"Yes": 8, "No": 8}


@pytest.mark.parametrize(
    "place",
    ["mask/crack/{}.png", "masks/{}_mask.png", "ground_truth/{}.png", "gt/crack/{}_gt.png",
     "crack/masks/{}.png", "crack/{}_mask.png", "Annotations/crack/{}.png/0.png"],
)  # fmt: skip
def test_masks_are_found_wherever_tools_put_them(place, tmp_path):
    for image in plant(tmp_path / "bolt"):
        mask(tmp_path / "bolt" / place.format(image.stem))
    found = everything(load(tmp_path))
    assert len(found) == 16, "no mask is taken for a picture"
    assert {(s.solution.answer, s.solution.location) for s in found} == {
        ("Yes", "top left"), ("No", None)
    }  # fmt: skip


def test_masks_of_good_pictures_in_one_folder_with_the_others_are_not_theirs(tmp_path):
    for image in plant(tmp_path / "bolt"):
        same = picture(tmp_path / "bolt/ok" / image.name)
        mask(tmp_path / "bolt/masks" / same.name)
    answers = Counter((s.solution.answer, s.mask is None) for s in everything(load(tmp_path)))
    assert answers == {("Yes", False): 8, ("No", True): 16}


def test_a_split_is_drawn_anew_on_demand(tmp_path):
    """As in the layout of MVTec AD, defects may be in the test part alone."""
    plant(tmp_path / "bolt" / "test")
    plant(tmp_path / "bolt" / "train", good="good")
    for image in (tmp_path / "bolt" / "train" / "crack").iterdir():
        image.unlink()
    with pytest.raises(DataError, match=r"no defective.*data\.split=drawn"):
        load(tmp_path)
    dataset = load(tmp_path, split="drawn")
    for part in (dataset.sft, dataset.validation["seen"], dataset.test["seen"]):
        assert {sample.solution.answer for sample in part} == {"Yes", "No"}


def test_good_pictures_alone_test_and_refer_but_do_not_train(tmp_path):
    for i in range(8):
        picture(tmp_path / "bolt" / "ok" / f"{i}.png")
    dataset = load(tmp_path, frozenset(("test",)))
    assert {s.solution.answer for s in dataset.test["seen"]} == {"No"}
    assert all(sample.references for sample in dataset.test["seen"])
    with pytest.raises(DataError, match=r"All pictures .* are good\. They can be references.*"):
        load(tmp_path)
    with pytest.raises(DataError, match=r"The test part .* no good and no defective"):
        mix.check_part(dataset.sft, "test")


@pytest.mark.parametrize(
    ("name", "said"),
    [("bolt/crack/good/0.png", "its name says good, and that of the folder it lies in defective"),
     ("bolt/ok/ng/0.png", "its name says defective, and that of the folder it lies in good"),
     ("bolt/0.png", "Put it into one of them"),
     ("nut/crack/0.png", "nothing says which of its pictures are"),
     ("bolt/masks/nobody.png", "belongs to no picture"),
     ("bolt/crack/b0_mask.png", "are masks of one name|has two masks")],
)  # fmt: skip
def test_what_could_be_two_things_is_refused(name, said, tmp_path):
    plant(tmp_path / "bolt")
    mask(tmp_path / "bolt/masks/b0.png")
    load(tmp_path)
    picture(tmp_path / name)
    with pytest.raises(DataError, match=said):
        load(tmp_path)


def test_pictures_that_are_all_alike_cannot_be_split(tmp_path):
    first, *rest = plant(tmp_path / "bolt")
    for image in rest:
        image.write_bytes(first.read_bytes())
    with pytest.raises(DataError, match=r"cannot be kept apart.*data\.near_duplicate_bits"):
        load(tmp_path)


def test_good_pictures_alone_train_in_a_mix_with_others_that_have_defects(tmp_path):
    plant(tmp_path / "nut" / "nut")
    for part in ("bolt", "washer"):
        for i in range(8):
            picture(tmp_path / part / part / "ok" / f"{i}.png")

    def mixed(*names: str) -> Dataset:
        parts: dict[str, Any] = {name: told(tmp_path / name) for name in names}
        settings = mix_reader.Settings(name="mix", parts=parts, weights=dict.fromkeys(names, 1.0))
        return mix.load(settings, GRID, "centroid_largest", 0, frozenset(("train",)))

    mixture = mixed("bolt", "nut")
    assert Counter(s.product for s in mixture.sft)["bolt"] > 0
    letter = replace(
        mixture.sft[0], question=Question("Which?", {"A": "this"}), solution=Solution("A")
    )
    good = [s for s in mixture.sft if s.solution.answer == "No"]
    mix.check_part([letter], "train")
    with pytest.raises(DataError, match="All pictures"):
        mix.check_part([letter, *good], "train")
    with pytest.raises(DataError, match="All pictures of the mix are good"):
        mixed("bolt", "washer")
