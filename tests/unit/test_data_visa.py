"""VisA as published with its split table, and rearranged as MMAD and others have it."""

from __future__ import annotations

import csv
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from iad_r1 import data
from iad_r1.command import compose
from iad_r1.data.readers import visa
from iad_r1.errors import DataError
from iad_r1.types import Sample

TYPES = (
    "chunk of wax missing",
    "weird candle wick",
    "foreign particals on candle,weird candle wick",
)


def picture(path: Path, mask: int | None = None) -> None:
    """Noise of its own, or a mask of this index at the top left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(zlib.crc32(str(path.parts[-3:]).encode())).integers(
        0, 255, (24, 30, 3), np.uint8
    )
    if mask is not None:
        values = np.zeros((24, 30), np.uint8)
        values[1:6, 2:7] = mask
    Image.fromarray(values).save(path)


def write(path: Path, rows: list[tuple[str, ...]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """One product of the tar: upper-case pictures, masks that hold the index of the defect."""
    root = tmp_path / "VisA"
    split: list[tuple[str, ...]] = [("object", "split", "label", "image", "mask")]
    notes: list[tuple[str, ...]] = [("image", "label", "mask")]
    for i in range(6):
        image = f"candle/Data/Images/Normal/{i:04}.JPG"
        picture(root / image)
        split.append(("candle", "train" if i < 4 else "test", "normal", image, ""))
        notes.append((image, "normal", ""))
    for i, kind in enumerate(TYPES):
        image, mask = (
            f"candle/Data/Images/Anomaly/{i:03}.JPG",
            f"candle/Data/Masks/Anomaly/{i:03}.png",
        )
        picture(root / image)
        picture(root / mask, mask=i + 1)
        split.append(("candle", "test", "anomaly", image, mask))
        notes.append((image, kind, mask))
    write(root / "split_csv" / "1cls.csv", split)
    write(root / "candle" / "image_anno.csv", notes)
    return root


def read(root: Path, types: str = "single") -> dict[str, Sample]:
    """The test pictures by file name."""
    chosen = ["stage=evaluate", "backbone=qwen25vl_3b", "benchmark=visa", "tracking=none"]
    options = [f"benchmark.visa.root={root}", f"benchmark.visa.types={types}"]
    config = compose.compose([*chosen, *options])
    return {sample.id.rpartition("/")[2]: sample for sample in data.for_run(config).test["visa"]}


def test_the_published_layout_has_places_and_the_types_of_its_table(published):
    found = read(published)
    assert Counter(sample.solution.answer for sample in found.values()) == {"Yes": 3, "No": 2}
    assert [found[f"{i:03}.JPG"].solution.type for i in range(3)] == [*TYPES[:2], None]
    for sample in found.values():
        defective = sample.solution.answer == "Yes"
        assert sample.solution.location == ("top left" if defective else None)
        assert {r.id for r in sample.references} == {
            f"visa/candle/Data/Images/Normal/{i:04}.JPG" for i in range(4)
        }


def two_kinds(path: Path, large: int, small: int) -> None:
    """A mask in which one kind of defect covers more pixels than the other."""
    values = np.zeros((24, 30), np.uint8)
    values[1:6, 2:7], values[20:22, 20:22] = large, small
    Image.fromarray(values).save(path)


@pytest.mark.parametrize(("large", "small", "kind"), [(3, 2, TYPES[2].split(",")[0]),
                                                      (2, 3, TYPES[1])])  # fmt: skip
def test_of_several_kinds_the_largest_is_the_type_where_that_is_asked_for(
    large, small, kind, published
):
    """3 stands for what no picture shows alone: it is what is left beside the known 2."""
    two_kinds(published / "candle" / "Data" / "Masks" / "Anomaly" / "002.png", large, small)
    found = read(published, "largest")
    assert [found[f"{i:03}.JPG"].solution.type for i in range(3)] == [*TYPES[:2], kind]
    assert found["002.JPG"].solution.location == "top left"
    assert read(published)["002.JPG"].solution.type is None


def test_what_a_number_in_a_mask_stands_for_is_learned_or_left_open():
    a, b, c, d = "burnt", "scratch", "missing", "other"

    def learned(*pictures: tuple[set[str], set[int]]) -> dict[int, str]:
        return visa.learned((frozenset(kinds), frozenset(ids)) for kinds, ids in pictures)

    chain = [({b, c, d}, {2, 3, 4}), ({a}, {1}), ({a, b}, {1, 2}), ({b, c}, {2, 3})]
    assert learned(*chain) == learned(*reversed(chain)) == {1: a, 2: b, 3: c, 4: d}
    assert learned(({a, b}, {1, 2})) == {}  # which is which?
    assert learned(({a}, {1}), ({b}, {1}), ({c}, {3})) == {3: c}  # they disagree
    assert learned(({a}, {1}), ({a}, {2})) == {}  # two numbers for one name
    assert learned(({a}, {255}), ({b}, {255})) == {}  # binarised


def test_without_numbers_in_the_masks_pictures_of_several_kinds_keep_no_type(published):
    for i in range(3):
        picture(published / "candle" / "Data" / "Masks" / "Anomaly" / f"{i:03}.png", mask=255)
    found = read(published, "largest")
    assert [found[f"{i:03}.JPG"].solution.type for i in range(3)] == [*TYPES[:2], None]
    Image.new("RGB", (30, 24)).save(published / "candle" / "Data" / "Masks" / "Anomaly" / "001.png")
    with pytest.raises(DataError, match=r"001\.png: its mode is RGB"):
        read(published, "largest")


@pytest.mark.parametrize("level", ["1cls", "."])
def test_the_rearranged_layout_is_read_with_and_without_its_level(level, tmp_path):
    base = tmp_path / "VisA_pytorch" / level / "candle"
    for i in range(5):
        picture(base / "train" / "good" / f"{i:04}.JPG")
    picture(base / "test" / "good" / "0007.JPG")
    picture(base / "test" / "bad" / "000.JPG")
    picture(base / "ground_truth" / "bad" / "000.png", mask=255)
    found = read(tmp_path / "VisA_pytorch")
    assert found["0007.JPG"].solution.answer == "No"
    bad = found["000.JPG"].solution
    assert (bad.answer, bad.location, bad.type) == ("Yes", "top left", None)
    assert found["000.JPG"].product == "candle" and len(found["000.JPG"].references) == 4


def test_a_wrong_table_is_named(published):
    table = published / "split_csv" / "1cls.csv"
    rows = table.read_text(encoding="utf-8")
    table.write_text(rows.replace(",anomaly,", ",odd,", 1), encoding="utf-8")
    with pytest.raises(DataError, match=r"1cls\.csv, line 8: .*label='odd'.*normal, anomaly"):
        read(published)
    table.write_text(rows.replace("label", "lable", 1), encoding="utf-8")
    with pytest.raises(DataError, match=r"1cls\.csv has no column label"):
        read(published)
