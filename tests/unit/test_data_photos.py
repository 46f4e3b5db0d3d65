"""Folders of photographs: read as they are labelled, checked, and split without leaks."""

from __future__ import annotations

import csv
import io
import random
import shutil
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import sparse
from scipy.sparse import csgraph

from iad_r1.data import duplicates, images, mix
from iad_r1.data.folders import UNTYPED
from iad_r1.data.readers import photos, synthetic
from iad_r1.data.targets import chain_of_thought
from iad_r1.errors import DataError
from iad_r1.grid import Grid, cells_from_mask, parse_cells
from iad_r1.settings.base import CONF
from iad_r1.types import Dataset, Sample, Solution

GRID = Grid(3, 3)
GOOD_ONE = Solution("No")
COLUMNS: tuple[str, ...] = ("image", "mask", "product", "split", "label", "defect_type", "note")
SIZE = (36, 24)  # width, height
SYNTHETIC: dict[str, Any] = yaml.safe_load((CONF / "data" / "synthetic.yaml").read_text())
Rows = list[dict[str, str]]


def load(root: Path, seed: int = 0, **changes: Any) -> Dataset:
    values = {"split": None, "test_share": 0.3, "validation_share": 0.25,
              "near_duplicate_bits": 10, "drop_leaks": False,
              "masks_inverted": None, "masks_drawn_on": None, "views": None,
              "masks_threshold": None, "format": None}  # fmt: skip
    config = photos.Settings(name="photos", root=str(root), **{**values, **changes})
    return mix.load(config, GRID, "centroid_largest", seed)


def parts(dataset: Dataset) -> dict[str, tuple[Sample, ...]]:
    return {
        "train": dataset.sft,
        "validation": dataset.validation["seen"],
        "test": dataset.test["seen"],
    }


def picture(path: Path, seed: int) -> Path:
    """Noise of its own: two of them share about half of their hash bits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 255, (SIZE[1], SIZE[0], 3), np.uint8)
    Image.fromarray(values).save(path)
    return path


def mask(path: Path, row: int, col: int, size: tuple[int, int] = SIZE) -> Path:
    """A mask of one 4 x 4 defect in the middle of a cell of 3 x 3."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.zeros((size[1], size[0]), np.uint8)
    y, x = (2 * row + 1) * size[1] // 6, (2 * col + 1) * size[0] // 6
    values[y - 2 : y + 2, x - 2 : x + 2] = 255
    Image.fromarray(values).save(path)
    return path


def brighter(picture: Image.Image) -> Image.Image:
    return picture.point([min(255, int(v * 1.02) + 1) for v in range(256)] * 3)


def write_table(root: Path, rows: Rows) -> None:
    with (root / "meta.csv").open("w", encoding="utf-8", newline="") as lines:
        table = csv.writer(lines)
        table.writerow(COLUMNS)
        table.writerows([row[column] for column in COLUMNS] for row in rows)


def make_table(root: Path) -> Rows:
    """Two products with 8 good and 8 defective training pictures each, and 4 + 4 for the test.
    One in four defects has no mask, one in four no type."""
    rows, seed = [], 0
    for product in ("gear_wheel", "bolt"):
        for split, n in (("train", 8), ("test", 4)):
            for label in ("0", "1"):
                for i in range(n):
                    name = f"{product}_{split}_{label}_{i}"
                    seed += 1
                    picture(root / "images" / f"{name}.png", seed)
                    row = dict.fromkeys(COLUMNS, "")
                    row |= {"image": f"images/{name}.png", "product": product, "split": split}
                    row |= {"label": label, "defect_type": "good"}
                    if label == "1":
                        row["defect_type"] = "unspecified" if i % 4 == 1 else "deep_scratch"
                        if i % 4:
                            mask(root / "masks" / f"{name}.png", i % 3, i // 3 % 3)
                            row["mask"] = f"masks/{name}.png"
                    rows.append(row)
    write_table(root, rows)
    return rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("parts")
    make_table(root)
    return root


@pytest.fixture
def own(folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(folder, tmp_path / "parts"))


def rows_of(root: Path) -> Rows:
    with (root / "meta.csv").open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


# --- what is read ------------------------------------------------------------------------------


def test_every_row_is_in_just_one_part_and_its_label_is_the_column(folder):
    dataset = load(folder)
    labels = {f"{dataset.name}/{row['image']}": row["label"] for row in rows_of(folder)}
    found = [sample for part in parts(dataset).values() for sample in part]
    assert sorted(sample.id for sample in found) == sorted(labels)
    assert all((labels[s.id] == "1") == (s.solution.answer == "Yes") for s in found)
    assert dataset.rl == dataset.sft


def test_the_test_part_is_what_the_table_calls_test(folder):
    wanted = {row["image"] for row in rows_of(folder) if row["split"] == "test"}
    dataset = load(folder)
    assert {s.id.removeprefix("parts0/") for s in parts(dataset)["test"]} == wanted
    assert set(dataset.test) == set(dataset.validation) == {"seen"}


def test_places_are_the_words_of_the_mask(folder):
    for part in parts(load(folder)).values():
        for sample in part:
            found = images.open_mask(sample)
            if found is None:
                assert sample.solution.location is None
            else:
                place = sample.solution.location
                assert place and parse_cells(place, GRID) == cells_from_mask(found, GRID)


def test_types_are_words_and_an_unknown_one_is_none(folder):
    types = {s.solution.type for part in parts(load(folder)).values() for s in part}
    assert types == {"deep scratch", None}
    assert {s.product for s in load(folder).sft} == {"gear wheel", "bolt"}


def test_the_counts_add_up(folder):
    dataset = load(folder)
    counts = dataset.counts
    for name, part in parts(dataset).items():
        defects = [s for s in part if s.solution.answer == "Yes"]
        assert counts[f"{name}_normal"] == len(part) - len(defects)
        assert counts[f"{name}_anomalous"] == len(defects)
        assert counts[f"{name}_without_mask"] == sum(s.mask is None for s in defects)
        assert counts[f"{name}_untyped"] == sum(s.solution.type is None for s in defects)
    assert counts["read"] == sum(len(part) for part in parts(dataset).values()) == 48
    assert counts["test_without_mask"] == counts["test_untyped"] == 2
    assert counts["leaks"] == counts["near_duplicates"] == counts["leaks_dropped"] == 0


@pytest.mark.parametrize("seed", [0, 1])
def test_validation_holds_its_share_of_every_product_and_label(folder, seed):
    held = Counter((s.product, s.solution.answer) for s in parts(load(folder, seed))["validation"])
    assert held == {(p, a): 2 for p in ("gear wheel", "bolt") for a in ("Yes", "No")}


def test_the_same_seed_gives_the_same_data_set_and_another_one_another_split(folder):
    assert load(folder) == load(folder)
    first, second = load(folder), load(folder, seed=1)
    assert first.fingerprint != second.fingerprint
    assert {s.id for s in parts(first)["validation"]} != {s.id for s in parts(second)["validation"]}
    assert [s.id for s in parts(first)["test"]] == [s.id for s in parts(second)["test"]]


def test_the_fingerprint_follows_the_pictures_not_the_folder(own, folder):
    assert load(own).fingerprint == load(folder).fingerprint
    picture(own / "images" / "bolt_test_0_0.png", seed=999)
    assert load(own).fingerprint != load(folder).fingerprint


def test_references_are_other_good_training_pictures_of_the_product(folder):
    dataset = load(folder)
    training = {s.id for s in dataset.sft}
    for part in parts(dataset).values():
        for sample in part:
            assert 1 <= len(sample.references) <= 4
            assert len({r.id for r in sample.references}) == len(sample.references)
            for reference in sample.references:
                assert reference.id in training and reference.id != sample.id
                assert reference.product == sample.product
                assert reference.solution.answer == "No"


def test_a_picture_is_no_reference_of_itself_even_where_all_others_are_near_duplicates(own):
    rows = rows_of(own)
    good = [r for r in rows if (r["product"], r["split"], r["label"]) == ("bolt", "train", "0")]
    for row in good[1:]:
        with Image.open(own / good[0]["image"]) as first:
            brighter(first).save(own / row["image"])
    dataset = load(own)
    alike = [s for s in dataset.sft if s.product == "bolt" and s.solution.answer == "No"]
    assert len(alike) == len(good), "one group, so none of it can be kept apart"
    assert all(len(s.references) == 4 for s in alike)
    assert all(r.id != s.id for s in alike for r in s.references)


def test_a_prefix_of_the_test_part_holds_both_labels(folder):
    assert {s.solution.answer for s in parts(load(folder))["test"][:8]} == {"Yes", "No"}


def test_an_empty_mask_of_a_good_picture_is_no_mask(own):
    rows = rows_of(own)
    Image.new("L", SIZE).save(own / "masks" / "empty.png")
    rows[0]["mask"] = "masks/empty.png"
    write_table(own, rows)
    samples = [s for part in parts(load(own)).values() for s in part]
    (good,) = [s for s in samples if s.id.endswith(rows[0]["image"])]
    assert good.mask is None and good.solution.answer == "No"


def test_an_unquoted_comma_in_a_note_harms_nothing(own):
    before = load(own)
    lines = (own / "meta.csv").read_text().splitlines()
    lines[3] += "one, two, three"
    (own / "meta.csv").write_text("\n".join(lines))
    assert load(own) == before


# --- folders without a table -------------------------------------------------------------------


def make_layout(root: Path) -> None:
    for split, n in (("train", 6), ("test", 4)):
        for kind in ("good", "deep_scratch", "bad"):
            for i in range(n):
                seed = zlib.crc32(f"{split}/{kind}/{i}".encode())
                name = f"{split}{i}"
                picture(root / "bolt_m6" / split / kind / f"{name}.PNG", seed)
                if kind != "good" and i % 2 == 0:
                    suffix = "_mask" if i % 4 else ""
                    mask(root / "bolt_m6/ground_truth" / kind / f"{name}{suffix}.png", 2, 0)


@pytest.mark.parametrize("level", ["", "bolt_m6"])
def test_product_folders_are_read_without_a_table(level, tmp_path):
    """From above the products or from inside a single one."""
    make_layout(tmp_path)
    dataset = load(tmp_path / level)
    assert dataset.counts["read"] == 30
    for name, n in (("test", 4), ("validation", 2)):
        answers = Counter(s.solution.answer for s in parts(dataset)[name])
        assert answers == {"Yes": 2 * n if name == "test" else 3, "No": n}
    assert dataset.counts["test_without_mask"] == dataset.counts["test_untyped"] == 4
    assert {s.product for s in dataset.sft} == {"bolt m6"}
    everything = [s for part in parts(dataset).values() for s in part]
    assert {s.solution.location for s in everything} == {"bottom left", None}
    assert {s.solution.type for s in everything} == {"deep scratch", None}


def test_folders_with_only_good_training_pictures_say_what_is_needed(tmp_path):
    """The published layout of MVTec AD: nothing to learn a defect from."""
    make_layout(tmp_path)
    for kind in ("deep_scratch", "bad"):
        shutil.rmtree(tmp_path / "bolt_m6" / "train" / kind)
    for spare in tmp_path.glob("bolt_m6/ground_truth/*/train*"):
        spare.unlink()
    with pytest.raises(DataError, match=r"train part .* no defective pictures.*train/<defect>/"):
        load(tmp_path)


def test_two_pictures_cannot_share_a_mask(tmp_path):
    make_layout(tmp_path)
    picture(tmp_path / "bolt_m6/train/bad/test0.PNG", 77)
    with pytest.raises(DataError, match=r"its mask test0\.png belongs to .*bad/test0\.PNG already"):
        load(tmp_path)


def plant(root: Path, *kinds: str) -> dict[str, set[tuple[str, str | None]]]:
    """What pictures in folders of these names are taken for: answer and type by folder."""
    for split in ("train", "test"):
        for kind in kinds:
            for i in range(4):
                seed = zlib.crc32(f"{split}/{kind}/{i}".encode())
                picture(root / "bolt" / split / kind / f"{split}{i}.png", seed)
    found: dict[str, set[tuple[str, str | None]]] = {}
    for sample in photos.samples(root, None):
        folder = sample.id.split("/")[-2]
        found.setdefault(folder, set()).add((sample.solution.answer, sample.solution.type))
    return found


@pytest.mark.parametrize(
    ("kind", "answer", "named"),
    [
        ("OK", "No", None), ("normal", "No", None), ("good_2", "No", None), ("good-2", "No", None),
        ("ok_front", "No", None), ("front_ok", "No", None), ("i.O.", "No", None),
        ("n.i.O.", "Yes", None), ("abnormal", "Yes", None), ("ko", "Yes", None),
        ("NG", "Yes", None), ("nok", "Yes", None),
        ("not_good", "Yes", None), ("ng_2", "Yes", None), ("def_front", "Yes", None),
        ("defect_scratch", "Yes", "scratch"), ("faulty_imprint", "Yes", "faulty imprint"),
        ("broken_large", "Yes", "broken large"), ("no_thread", "Yes", "no thread"),
    ],
)  # fmt: skip
def test_a_folder_is_taken_for_what_its_name_says_to_a_person(kind, answer, named, tmp_path):
    assert plant(tmp_path, "ok_front", kind)[kind] == {(answer, named)}


@pytest.mark.parametrize("name", ["{stem}", "{stem}_mask", "{stem}_gt", "{stem}.PNG", "{stem}/000"])
def test_masks_are_found_by_the_names_that_tools_give_them(name, tmp_path):
    make_layout(tmp_path)
    masks = tmp_path / "bolt_m6" / "ground_truth"
    shutil.rmtree(masks)
    for image in tmp_path.glob("bolt_m6/*/deep_scratch/*.PNG"):
        mask(masks / "deep_scratch" / f"{name.format(stem=image.stem)}.png", 2, 0)
    counts = load(tmp_path).counts
    assert counts["test_without_mask"] == counts["test_anomalous"] - 4


def test_a_mask_that_belongs_to_no_picture_is_refused(tmp_path):
    make_layout(tmp_path)
    for mask_file in tmp_path.glob("bolt_m6/ground_truth/bad/*"):
        mask_file.rename(mask_file.with_name(f"m{mask_file.name}"))
    with pytest.raises(DataError, match=r"ground_truth/bad/mt\w+\.png: .*no picture, as \d others"):
        load(tmp_path)


def test_two_masks_of_one_picture_are_refused(tmp_path):
    make_layout(tmp_path)
    mask(tmp_path / "bolt_m6/ground_truth/bad/test0_gt.png", 0, 0)
    with pytest.raises(DataError, match=r"test0\.PNG has two masks"):
        load(tmp_path)


@pytest.mark.parametrize("suffix", ["jfif", "JPE", "bmp", "tiff", "webp", "pgm"])
def test_pictures_of_any_format_that_is_read_are_found(suffix, tmp_path):
    make_layout(tmp_path)
    values = np.random.default_rng(5).integers(0, 255, (24, 36), np.uint8)
    extra = tmp_path / "bolt_m6" / "test" / "bad" / f"more.{suffix}"
    Image.fromarray(values).save(extra, format="JPEG" if suffix in ("jfif", "JPE") else None)
    assert load(tmp_path).counts["read"] == 31


def test_pictures_of_a_format_that_is_not_read_are_named(tmp_path):
    make_layout(tmp_path)
    (tmp_path / "bolt_m6" / "test" / "bad" / "IMG_0001.HEIC").write_bytes(b"no matter")
    with pytest.raises(DataError, match=r"IMG_0001\.HEIC: pictures of this format are not read"):
        load(tmp_path)


# --- tables as spreadsheets and other tools write them -------------------------------------------


def retyped(own: Path, change: Callable[[str], str]) -> Dataset:
    before, file = load(own), own / "meta.csv"
    file.write_text(change(file.read_text(encoding="utf-8")), encoding="utf-8")
    after = load(own)
    assert after == before
    return after


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace(",", ";"),
        lambda text: text.replace(",", "\t"),
        lambda text: "\ufeff" + text.replace("\n", "\r\n"),
        lambda text: text.replace(",", ", ", len(COLUMNS) - 1),
        lambda text: text + ",,,,,,\n\n,,,,,,\n",
        lambda text: text.replace("mask,product,split,label", "Mask Path,category,Set,anomaly", 1),
        lambda text: text.replace("image", "Filename", 1).replace("defect_type", "specie_name", 1),
        lambda text: text.replace(",train,1,", ",Train,True,").replace(",test,0,", ",TEST,OK,"),
    ],
    ids=["semicolons", "tabs", "mark", "spaces", "empty-rows", "synonyms", "more", "cases"],
)  # fmt: skip
def test_a_table_says_the_same_however_it_is_typed(change, own):
    retyped(own, change)


def test_a_column_that_could_be_two_things_is_asked_for(own):
    file = own / "meta.csv"
    file.write_text(file.read_text().replace("mask,", "mask_path,gt,", 1))
    with pytest.raises(DataError, match=r"which column is the mask, mask_path or gt\?"):
        load(own)


def test_a_column_of_pictures_that_nobody_would_read_is_named(own):
    file = own / "meta.csv"
    file.write_text(file.read_text().replace("mask", "annotation", 1))
    with pytest.raises(DataError, match=r"line \d+: column 'annotation' names a picture"):
        load(own)


@pytest.mark.parametrize("word", ["n/a", "NaN", "None", "-", "?"])
def test_a_type_that_is_no_type_is_unknown(word, own):
    rows = rows_of(own)
    for row in rows:
        if row["label"] == "1":
            row["defect_type"] = word
    write_table(own, rows)
    assert {s.solution.type for part in parts(load(own)).values() for s in part} == {None}


def test_a_table_that_says_what_is_validation_is_followed(own):
    rows = rows_of(own)
    for row in rows:
        if row["split"] == "train" and row["image"].endswith(("_5.png", "_6.png")):
            row["split"] = "val"
    write_table(own, rows)
    kept = parts(load(own))["validation"]
    assert {s.id[-6:-4] for s in kept} == {"_5", "_6"} and len(kept) == 8


def test_masks_that_look_inverted_are_asked_about(own):
    for path in (own / "masks").iterdir():
        with Image.open(path) as mask_file:
            inverted = mask_file.point([255 - value for value in range(256)])
        inverted.save(path)
    with pytest.raises(DataError, match=r"marks 9\d\.\d% .*18 of 18 .*masks_inverted=true"):
        load(own)
    right, wrong = load(own, masks_inverted=True), load(own, masks_inverted=False)
    places = [{s.solution.location for s in d.sft} for d in (right, wrong)]
    assert len(places[0]) > 2 and places[1] == {"center", None}


# --- what is refused ---------------------------------------------------------------------------

Spoil = Callable[[Path, Rows], None]


def change(line: int, **values: str) -> Spoil:
    """Change a row of the table; `line` counts as an editor does, the header is 1."""
    return lambda root, rows: rows[line - 2].update(values)


def keep(test: Callable[[dict[str, str]], bool]) -> Spoil:
    def spoil(root: Path, rows: Rows) -> None:
        rows[:] = [row for row in rows if test(row)]

    return spoil


def overwrite(name: str, content: bytes) -> Spoil:
    return lambda root, rows: void((root / name).write_bytes(content))


def empty_mask(root: Path, rows: Rows) -> None:
    Image.new("L", SIZE).save(root / rows[9]["mask"])


def wide_mask(root: Path, rows: Rows) -> None:
    mask(root / rows[9]["mask"], 0, 0, size=(90, 24))


def marked_good(root: Path, rows: Rows) -> None:
    mask(root / "masks" / "extra.png", 0, 0)
    rows[0]["mask"] = "masks/extra.png"


def same_picture(root: Path, rows: Rows) -> None:
    shutil.copy(root / rows[0]["image"], root / rows[9]["image"])


def repeat(root: Path, rows: Rows) -> None:
    rows.append(dict(rows[4]))


def void(_: object) -> None:
    return None


REFUSED: dict[str, tuple[Spoil, str]] = {
    "missing image": (
        change(5, image="images/lost.png"),
        r"line 5: .*images/lost\.png: this image does not exist",
    ),
    "corrupt image": (
        overwrite("images/gear_wheel_train_0_2.png", b"\x89PNG but no more"),
        r"line 4: .*gear_wheel_train_0_2\.png: this image cannot be read",
    ),
    "missing mask": (
        change(11, mask="masks/lost.png"),
        r"line 11: .*masks/lost\.png: this mask does not exist",
    ),
    "mask of another size": (
        wide_mask,
        r"line 11: .*this mask is 90x24 pixels, but its image is 36x24",
    ),
    "empty mask": (empty_mask, r"line 11: .*this mask is empty, .* labelled defective"),
    "mask on a good picture": (
        marked_good,
        r"line 2: .*extra\.png: this mask marks a defect, .* labelled good",
    ),
    "unknown label": (change(7, label="2"), r"line 7: label='2' is unknown\. Use 0"),
    "unknown split": (
        change(7, split="holdout"),
        r"line 7: split='holdout' is unknown\. Use train, test or val",
    ),
    "no product": (change(7, product=" "), r"line 7: no value in column product"),
    "good but typed": (
        change(2, defect_type="scratch"),
        r"line 2: the label says good, but the defect type is 'scratch'",
    ),
    "defective but good": (
        change(12, defect_type="good"),
        r"line 12: the label says defective, but the defect type is 'good'",
    ),
    "a tag for a type": (
        change(12, defect_type="<type>"),
        r"line 12: the defect type '<type>' holds an angle bracket",
    ),
    "the same row twice": (
        repeat,
        r"line 50: gear_wheel_train_0_4\.png is listed already in .*line 6",
    ),
    "one picture under both labels": (
        same_picture,
        r"line 11: the same picture as in .*line 2, but with the other label",
    ),
    "no good test picture": (
        keep(lambda row: row["label"] == "1" or row["split"] == "train"),
        r"test part .* holds no good pictures.*split=test",
    ),
    "no defective training picture": (
        keep(lambda row: row["label"] == "0" or row["split"] == "test"),
        r"train part .* holds no defective pictures.*split=train",
    ),
    "no test part": (
        keep(lambda row: row["split"] == "train"),
        r"test part .* holds no good and no defective pictures",
    ),
    "one picture per label": (
        keep(lambda row: row["split"] == "test" or row["image"].endswith("bolt_train_0_0.png")
             or row["image"].endswith("bolt_train_1_0.png")),
        r"validation part .* no good and no defective pictures.*too few to keep some apart",
    ),
    "a product without good training pictures": (
        keep(lambda row: (row["product"], row["split"], row["label"]) != ("bolt", "train", "0")),
        r"'bolt' has no \(other\) good picture in its training part",
    ),
    "no rows": (keep(lambda row: False), r"meta\.csv has no rows"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_named_with_its_row(name, own):
    spoil, message = REFUSED[name]
    rows = rows_of(own)
    spoil(own, rows)
    write_table(own, rows)
    with pytest.raises(DataError, match=message):
        load(own)


def test_a_missing_column_is_named(own):
    text = (own / "meta.csv").read_text()
    (own / "meta.csv").write_text(text.replace("label", "is_bad", 1))
    with pytest.raises(DataError, match=r"meta\.csv has no column label; it has image, mask"):
        load(own)


def test_a_comma_that_shifts_a_column_we_read_is_refused(own):
    (own / "meta.csv").write_text(
        "image,product,split,label,defect_type\na.png,bolt,train,1,long, thin\n"
    )
    with pytest.raises(DataError, match=r"line 2: more values than columns"):
        load(own)


def test_a_table_in_another_encoding_is_refused(own):
    (own / "meta.csv").write_bytes(b"image,product,split,label\n\xff\xfe,b,train,1\n")
    with pytest.raises(DataError, match=r"meta\.csv is not a comma-separated UTF-8 table"):
        load(own)


def test_a_folder_that_is_none_of_this_says_what_is_expected(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing to see")
    with pytest.raises(
        DataError,
        match=r"neither meta\.csv nor an export .* <product>/train/good/",
    ):
        load(tmp_path)
    with pytest.raises(DataError, match=r"nowhere is not a folder"):
        load(tmp_path / "nowhere")


# --- near-duplicates ---------------------------------------------------------------------------


def test_near_duplicates_are_never_in_both_training_and_validation(own):
    """Every training picture gets a twin, saved anew a little brighter."""
    rows = rows_of(own)
    for row in [row for row in rows if row["split"] == "train"]:
        name = row["image"].replace(".png", "_again.jpg")
        with Image.open(own / row["image"]) as original:
            brighter(original).save(own / name, quality=95)
        rows.append({**row, "image": name, "mask": ""})
    write_table(own, rows)
    for seed in range(3):
        dataset = load(own, seed)
        assert dataset.counts["near_duplicates"] == 64
        where = {
            s.id.replace("_again.jpg", ".png") + str(index): name
            for name in ("train", "validation")
            for s in parts(dataset)[name]
            for index in [s.id.endswith("_again.jpg")]
        }
        twins = {key[: -len("False")] for key in where if key.endswith("False")}
        assert len(twins) == 32
        assert all(where[f"{twin}False"] == where[f"{twin}True"] for twin in twins)
        references = {s.id: [r.id for r in s.references] for s in dataset.sft}
        assert all(name.replace(".png", "_again.jpg") not in refs
                   for name, refs in references.items())  # fmt: skip


@pytest.mark.parametrize("drop", [False, True])
def test_training_pictures_that_recur_in_the_test_are_counted_and_dropped_on_demand(own, drop):
    leaked = ("bolt_train_0_3", "bolt_train_1_4")
    for name, test in zip(leaked, ("bolt_test_0_1", "bolt_test_1_2"), strict=True):
        shutil.copy(own / f"images/{name}.png", own / f"images/{test}.png")
    dataset = load(own, drop_leaks=drop)
    assert dataset.counts["leaks"] == 2
    assert dataset.counts["leaks_dropped"] == 2 * drop
    assert len(parts(dataset)["test"]) == 16
    trained = " ".join(s.id for name in ("train", "validation") for s in parts(dataset)[name])
    assert all((name in trained) != drop for name in leaked)


def test_a_picture_is_near_itself_brighter_and_smaller_but_not_near_another():
    values = np.random.default_rng(0).normal(size=(2, 12, 12))
    a, b = (
        Image.fromarray(np.clip(128 + 40 * v, 0, 255).astype(np.uint8)).resize((240, 180))
        for v in values
    )
    versions = [a, a.point([min(255, int(1.1 * v)) for v in range(256)]), a.resize((120, 90)), b]
    bits = np.stack([duplicates.described(picture)[0] for picture in versions])
    assert bits.shape == (4, duplicates.BITS)
    assert found_near(bits, bits, 10)[0] == [0, 1, 2]


def found_near(bits: np.ndarray, others: np.ndarray, limit: int) -> list[list[int]]:
    none = sparse.csr_array((len(bits), len(others)), dtype=bool)
    return [row.tolist() for row in duplicates.near(bits, others, limit, none)]


hashes = st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=9)


@given(hashes, hashes, st.integers(0, 12), st.data())
@settings(max_examples=40)
def test_near_counts_the_bits_that_differ_and_adds_twins(rows, columns, limit, drawn):
    bits, others = (
        np.repeat(np.array(some, bool), 43, axis=1)[:, : duplicates.BITS]
        for some in (rows, columns)
    )
    plain = (bits[:, None] != others[None]).sum(axis=2) <= 4 * limit
    assert found_near(bits, others, 4 * limit) == [np.flatnonzero(row).tolist() for row in plain]
    twins = np.array(drawn.draw(st.lists(st.booleans(), min_size=plain.size, max_size=plain.size)))
    twins = twins.reshape(plain.shape)
    found = duplicates.near(bits, others, 4 * limit, sparse.csr_array(twins))
    assert (np.array([np.isin(range(len(others)), row) for row in found]) == plain | twins).all()


@given(
    st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=14),
    st.integers(0, 2),
    st.lists(st.tuples(st.integers(0, 13), st.integers(0, 13)), max_size=4),
)
@settings(max_examples=100)
def test_groups_are_the_connected_components_of_all_pairs(rows, limit, couples):
    bits, n = np.repeat(np.array(rows, bool), 43, axis=1)[:, : duplicates.BITS], len(rows)
    twins = np.zeros((14, 14), bool)
    for one, other in couples:
        twins[one, other] = twins[other, one] = True
    twins = twins[:n, :n]
    plain = ((bits[:, None] != bits[None]).sum(axis=2) <= 43 * limit) | twins
    wanted = csgraph.connected_components(sparse.csr_array(plain), directed=False)[1]
    found = duplicates.groups(bits, 43 * limit, sparse.csr_array(twins))
    assert found.tolist() == wanted.tolist()


goods = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9), st.booleans()), max_size=12)


@given(goods, st.integers(0, 3), st.booleans())
@settings(max_examples=200)
def test_references_are_those_that_going_through_all_pictures_gives(rows, seed, grouped):
    """`rows` are the group, the file and whether it trains of every good picture."""
    samples = [
        Sample(f"d/{i}", "d", "train" if trains else "test", "lid", Path(f"{file}.png"), GOOD_ONE)
        for i, (_, file, trains) in enumerate(rows)
    ]
    groups = {s.id: row[0] for s, row in zip(samples, rows, strict=True)} if grouped else {}
    pools = mix._pools(samples, groups)
    for sample in samples:
        pool = [s for s in samples if s.split == "train"]
        others = [s for s in pool if s.id != sample.id and s.image != sample.image]
        group = groups.get(sample.id)
        fresh = others if group is None else [o for o in others if groups[o.id] != group] or others
        stream = random.Random(f"references/{seed}/{sample.id}")
        plain = stream.sample(fresh, min(mix.REFERENCES_PER_SAMPLE, len(fresh)))
        assert mix._referred(sample, pools, groups, seed, None).references == tuple(plain)


def plates(n: int, seed: int, shade: float = 0.0) -> list[Image.Image]:
    """Painted plates under a lamp that moves a little, with the noise of a sensor."""
    stream, x = np.random.default_rng(seed), np.linspace(-1, 1, 160)
    lamps = [shade * np.exp(-((x - stream.uniform(-0.5, 0.5)) ** 2) / 0.3) for _ in range(n)]
    values = [150 + lamp + stream.normal(0, 2, (120, 160)) for lamp in lamps]
    return [Image.fromarray(np.clip(v, 0, 255).astype(np.uint8)) for v in values]


def as_jpeg(picture: Image.Image, quality: int = 90) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return Image.open(file)


def grain_of(pictures: list[Image.Image]) -> np.ndarray:
    return np.stack([g for p in pictures if (g := duplicates.described(p)[1]) is not None])


@pytest.mark.parametrize("shade", [0.0, 4.0])
@pytest.mark.parametrize("quality", [95, 90, 80])
def test_plain_surfaces_saved_again_are_twins_and_different_parts_are_not(shade, quality):
    shown = plates(24, 0, shade)
    shown += [as_jpeg(picture, quality) for picture in shown[:4]]
    bits = np.stack([duplicates.described(picture)[0] for picture in shown])
    assert not any(found_near(bits[:24], bits[24:], 10))  # hashes see nothing
    found = duplicates.twins(grain_of(shown))
    pairs = sorted(zip(*(side.tolist() for side in found.nonzero()), strict=True))
    assert pairs == [*((i, 24 + i) for i in range(4)), *((24 + i, i) for i in range(4))]


def test_few_plain_surfaces_are_not_judged():
    shown = plates(duplicates.LEAST - 2, 0)
    assert not duplicates.twins(grain_of([*shown, as_jpeg(shown[0])])).nnz
    more = plates(1, 7)
    assert duplicates.twins(grain_of([*shown, *more, as_jpeg(shown[0])])).nnz == 2


def test_drawn_surfaces_are_never_twins():
    sizes = {**dict.fromkeys(SYNTHETIC["sizes"], 1), "sft": 150}
    world = synthetic.Settings(**{**SYNTHETIC, "sizes": sizes})
    found: dict[str, list[np.ndarray]] = {}
    for sample in mix.load(world, GRID, "centroid_largest", 0).sft:
        assert isinstance(sample.image, Image.Image)
        if (grain := duplicates.described(sample.image)[1]) is not None:
            found.setdefault(sample.product, []).append(grain)
    assert max(map(len, found.values())) >= duplicates.LEAST
    assert not any(duplicates.twins(np.stack(grain)).nnz for grain in found.values())


def test_twins_are_the_same_in_blocks(monkeypatch):
    shown = plates(20, 1)
    grain = grain_of([*shown, as_jpeg(shown[3])])
    whole = duplicates.twins(grain).toarray()
    monkeypatch.setattr(duplicates, "_CELLS", 63)
    assert (duplicates.twins(grain).toarray() == whole).all() and whole.sum() == 2


members = st.lists(
    st.tuples(st.integers(0, 20), st.sampled_from("ab"), st.booleans()), min_size=1, max_size=60
)


@given(members, st.floats(0.05, 0.5), st.integers(0, 9))
def test_validation_takes_whole_groups_and_never_more_than_its_share(rows, share, seed):
    groups = [group for group, _, _ in rows]
    strata = [(product, label) for _, product, label in rows]
    chosen = mix.carve(groups, strata, share, str(seed))
    apart = {g for g, c in zip(groups, chosen, strict=True) if c}
    assert not apart & {g for g, c in zip(groups, chosen, strict=True) if not c}
    for stratum, n in Counter(strata).items():
        taken = sum(c for s, c in zip(strata, chosen, strict=True) if s == stratum)
        assert taken <= max(n > 1, round(share * n))


# --- the photographs beside the project --------------------------------------------------------


@pytest.fixture(scope="module", params=["objects", "ballscrew"])
def real(request: pytest.FixtureRequest, shared: Path) -> tuple[Path, Dataset]:
    root = shared / "data" / "real" / request.param
    return root, load(root, validation_share=0.2)


def test_real_folders_load_with_every_row_counted(real):
    root, dataset = real
    rows = rows_of(root)
    assert dataset.counts["read"] == len(rows)
    held = {f"{dataset.name}/{row['image']}": row for row in rows}
    for name, part in parts(dataset).items():
        for sample in part:
            row = held.pop(sample.id)
            assert (sample.solution.answer == "Yes") == (row["label"] == "1")
            assert (row["split"] == "test") == (name == "test")
            assert (sample.solution.location is None) == (not row["mask"])
            if row["label"] == "1":
                kind = row["defect_type"].replace("_", " ")
                assert sample.solution.type == (None if kind in UNTYPED else kind)
    assert not held


def test_real_folders_have_few_leaks_and_a_balanced_validation_part(real):
    _, dataset = real
    counts = dataset.counts
    assert counts["leaks"] == {"objects": 32, "ballscrew": 0}[dataset.name]
    for label in ("normal", "anomalous"):
        trained = counts[f"train_{label}"] + counts[f"validation_{label}"]
        assert abs(counts[f"validation_{label}"] - 0.2 * trained) <= 3


def test_real_masks_fit_their_pictures_and_targets_never_hold_a_file_name(real):
    _, dataset = real
    for sample in dataset.sft[:60]:
        mask = images.open_mask(sample)
        if mask is not None:
            assert mask.shape == images.open_image(sample).size[::-1]
            assert mask.any()
        text = chain_of_thought(sample, 0).text
        assert Path(sample.id).stem not in text and "_" not in text
