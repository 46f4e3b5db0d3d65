"""Data sets of the Hugging Face hub on a disk: tables with pictures in them, and `imagefolder`."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from miniatures import mask, picture
from PIL import Image
from pyarrow import parquet

from iad_r1.data import images, mix
from iad_r1.data.readers import photos
from iad_r1.errors import DataError
from iad_r1.grid import Grid
from iad_r1.types import Dataset, Mask, Sample

SIZE = 24
FILE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
CLASSES = ["good", "deep_scratch", "dent"]
Row = dict[str, Any]


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IAD_CACHE", str(tmp_path / "kept"))
    return tmp_path / "kept"


def told(root: Path, **changes: Any) -> photos.Settings:
    values = {"split": None, "test_share": 0.3, "validation_share": 0.3, "format": None,
              "near_duplicate_bits": 10, "drop_leaks": False, "masks_inverted": None,
              "masks_drawn_on": None, "masks_threshold": None, "views": None,
              **changes}  # fmt: skip
    return photos.Settings(name="photos", root=str(root), **values)


def read(root: Path, **changes: Any) -> list[Sample]:
    return list(photos.read(told(root, **changes), seed=0))


def load(root: Path, **changes: Any) -> Dataset:
    return mix.load(told(root, **changes), Grid(3, 3), "multi", 0)


def content(seed: int, kind: str = "PNG") -> Row:
    noise = np.random.default_rng(seed).integers(0, 255, (SIZE, SIZE, 3), np.uint8)
    return as_cell(Image.fromarray(noise), kind)


def as_cell(shown: Image.Image, kind: str = "PNG") -> Row:
    file = io.BytesIO()
    shown.save(file, kind)
    return {"bytes": file.getvalue(), "path": None}


def marked(x: int) -> Row:
    shown = Image.new("L", (SIZE, SIZE))
    shown.paste(255, (x, 1, x + 4, 5))
    return as_cell(shown)


def rows(start: int) -> list[Row]:
    """Four good and four defective pictures; the masks are at the top right."""
    good = [{"image": content(start + i), "label": 0, "mask": None} for i in range(4)]
    bad = [{"image": content(start + 4 + i, "JPEG"), "label": 1 + i % 2, "mask": marked(18)}
           for i in range(4)]  # fmt: skip
    return [*good, *bad]


def table(some: Sequence[Row], classes: list[str] | None = CLASSES, **kinds: Any) -> pa.Table:
    known = {"image": FILE, "mask": FILE, "label": pa.int64(), **kinds}
    names = list(some[0])
    columns = [
        pa.array([row[name] for row in some], known.get(name, pa.string())) for name in names
    ]
    features = {"label": {"names": classes, "_type": "ClassLabel"}} if classes else {}
    said = json.dumps({"info": {"features": features}})
    return pa.table(columns, names).replace_schema_metadata({"huggingface": said})


def as_arrow(some: pa.Table, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(file), "wb") as out, pa.ipc.new_stream(out, some.schema) as stream:
        stream.write_table(some, max_chunksize=3)


def as_parquet(some: pa.Table, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(some, file, row_group_size=3)


LAYOUTS = {
    "save_to_disk": (as_arrow, "{}/data-00000-of-00001.arrow"),
    "load_dataset": (as_arrow, "default/0.0.0/1f2e/lids-{}.arrow"),
    "the hub": (as_parquet, "data/{}-00000-of-00001.parquet"),
}


def plant(root: Path, layout: str = "the hub") -> Path:
    write, name = LAYOUTS[layout]
    for at, part in enumerate(("train", "test")):
        write(table(rows(20 * at)), root / name.format(part))
    return root


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pictures_and_masks_inside_of_tables_are_read_as_they_are_labelled(layout, tmp_path, kept):
    root = plant(tmp_path / "lids", layout)
    (root / "train").mkdir(exist_ok=True)
    as_arrow(table(rows(60)), root / "train" / "cache-1f2e.arrow")  # what `map` leaves behind
    dataset = load(root)
    everything = [*dataset.sft, *dataset.validation["seen"], *dataset.test["seen"]]
    assert len(everything) == 16 and len(dataset.test["seen"]) == 8
    assert {s.product for s in everything} == {"lids"}
    for sample in everything:
        truth = sample.solution
        assert isinstance(sample.image, Path) and sample.image.is_relative_to(kept)
        if truth.answer == "Yes":
            assert truth.location == "top right" and truth.type in ("deep scratch", "dent")
            assert sample.image.suffix == ".jpeg"
    found = {s.id.split("-")[-2]: images.open_image(s) for s in read(root) if s.split == "test"}
    for n in range(4):
        wanted = Image.open(io.BytesIO(content(20 + n)["bytes"]))
        assert [at for at, shown in found.items() if shown.tobytes() == wanted.tobytes()] == [
            f"000000{n}"
        ]


def test_what_is_read_depends_on_the_content_alone(tmp_path, kept):
    first = load(plant(tmp_path / "a" / "lids"))
    assert load(plant(tmp_path / "b" / "lids")).fingerprint == first.fingerprint
    folders = list((kept / "unpacked").iterdir())
    assert len(folders) == 2, "a table each, unpacked once"
    ids = {s.id for s in read(tmp_path / "a" / "lids")}
    assert ids == {s.id for s in read(tmp_path / "b" / "lids")}
    assert "lids/data/test-00000-of-00001-0000000-0.png" in ids


def test_the_plan_says_what_it_was_taken_for_and_where_pictures_were_unpacked(tmp_path, kept):
    said = told(plant(tmp_path / "lids")).announce()
    assert "taken for Hugging Face (data/test-00000-of-00001.parquet and 1 more): 16 pic" in said
    assert f"16 of them unpacked to {kept / 'unpacked'}" in said


def test_a_table_that_changes_is_unpacked_anew_and_one_that_was_deleted_again(tmp_path, kept):
    root = plant(tmp_path / "lids")
    before = load(root).fingerprint
    shutil.rmtree(kept / "unpacked")
    assert load(root).fingerprint == before
    as_parquet(table(rows(90)), root / "data" / "train-00000-of-00001.parquet")
    assert load(root).fingerprint != before


def test_an_interrupted_unpacking_leaves_nothing_that_is_believed(tmp_path, monkeypatch):
    root, whole = plant(tmp_path / "lids"), Path.write_bytes
    written = []

    def breaks(path: Path, content: bytes) -> int:
        written.append(path)
        if len(written) == 4:
            raise KeyboardInterrupt
        return whole(path, content)

    monkeypatch.setattr(Path, "write_bytes", breaks)
    with pytest.raises(KeyboardInterrupt):
        read(root)
    monkeypatch.undo()
    monkeypatch.setenv("IAD_CACHE", str(tmp_path / "kept"))
    assert len(read(root)) == 16


def test_where_pictures_cannot_be_unpacked_one_sentence_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("IAD_CACHE", "/proc/nothing/here")
    with pytest.raises(DataError, match=r"00001\.parquet cannot be unpacked to /proc.* IAD_CACHE"):
        read(plant(tmp_path / "lids"))


def test_columns_by_other_names_products_splits_and_labels_of_zero_and_one(tmp_path):
    some = [
        {"img": content(i), "category": "bolt", "anomaly": i % 2 > 0, "phase": split,
         "defect": "dent" if i % 2 else None, "ground_truth": marked(1) if i % 2 else None}
        for split in ("train", "val", "test") for i in range(4)
    ]  # fmt: skip
    kinds = {"img": FILE, "ground_truth": FILE, "anomaly": pa.bool_()}
    as_parquet(table(some, None, **kinds), tmp_path / "anything.parquet")
    found = read(tmp_path)
    assert {s.product for s in found} == {"bolt"}
    assert {s.split for s in found} == {"train", "validation", "test"}
    assert {s.solution.type for s in found if isinstance(s.mask, Mask)} == {"dent"}
    assert sum(s.solution.answer == "No" for s in found) == 6


@pytest.mark.parametrize(
    ("change", "say"),
    [
        ({"image": None}, r"t\.parquet, row 2: it has no picture"),
        ({"label": -1}, r"t\.parquet, row 2: nothing says whether its picture is good"),
        ({"split": "holdout"}, r"row 2: split='holdout' is unknown"),
        ({"defect_type": "dent"}, r"row 2 says 'good', but .*row 2 marks 'dent'"),
        ({"image": {"bytes": None, "path": "a.png"}}, r"row 2, image: the picture is not in the t"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(change, say, tmp_path):
    some = [{**row, "split": "train", "defect_type": None} for row in rows(0)]
    some[2] |= change
    as_parquet(table(some), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=say):
        read(tmp_path)


def test_a_row_that_says_another_split_than_its_tables_name_is_read_as_it_says_and_told(tmp_path):
    some = [{**row, "split": ("train", "test")[i % 2]} for i, row in enumerate(rows(0))]
    as_parquet(table(some), tmp_path / "train-00000-of-00001.parquet")
    assert Counter(sample.split for sample in read(tmp_path)) == {"train": 4, "test": 4}
    said = told(tmp_path).announce()
    assert "4 of them in the split that their row says, and not in train" in said


def test_classes_none_of_which_says_good_are_not_taken_for_defects(tmp_path):
    as_parquet(table(rows(0), ["bolt", "nut", "washer"]), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"its labels \(bolt, nut, washer\) would be types of def"):
        read(tmp_path)


def test_a_mask_that_marks_a_good_picture_is_refused(tmp_path):
    some = [*rows(0), *rows(20)]
    some[0]["mask"] = marked(3)
    as_parquet(table(some), tmp_path / "train.parquet")
    with pytest.raises(DataError, match="marks a defect, but its picture is labelled good"):
        load(tmp_path, split="drawn")


def test_a_broken_table_is_named(tmp_path):
    plant(tmp_path)
    file = tmp_path / "data" / "train-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"train-00000-of-00001\.parquet cannot be read \("):
        read(tmp_path)


# --- imagefolder ---------------------------------------------------------------------------------


def test_imagefolder_by_label_is_read(tmp_path):
    for part in ("train", "test"):
        for label in ("good", "dent"):
            for i in range(4):
                picture(tmp_path / "lids" / part / label / f"{i}.png")
    dataset = load(tmp_path / "lids")
    assert len(dataset.test["seen"]) == 8
    assert {s.solution.type for s in dataset.sft} == {None, "dent"}


def metadata(kind: str, folder: Path, some: list[dict[str, str]]) -> None:
    if kind == "parquet":
        parquet.write_table(pa.Table.from_pylist(some), folder / "metadata.parquet")
        return
    with (folder / f"metadata.{kind}").open("w", newline="", encoding="utf-8") as out:
        if kind == "jsonl":
            out.writelines(json.dumps(row) + "\n" for row in some)
        else:
            lines = csv.DictWriter(out, list(some[0]))
            lines.writeheader()
            lines.writerows(some)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("labelled", ["by column", "by folder"])
def test_imagefolder_with_metadata_is_read(kind, labelled, tmp_path):
    root = tmp_path / "lids"
    for part in ("train", "test"):
        listed = []
        for label in ("good", "dent"):
            for i in range(4):
                name = f"{label}/{i}.png" if labelled == "by folder" else f"{label}_{i}.png"
                picture(root / part / name)
                listed.append({"file_name": name, "mask": ""})
                if labelled == "by column":
                    listed[-1]["label"] = label
                if label == "dent":
                    mask(root / part / "masks" / f"{i}.png")
                    listed[-1]["mask"] = f"masks/{i}.png"
        metadata(kind, root / part, listed)
    picture(root / "train" / "unlisted.png")
    dataset = load(root)
    assert len(dataset.test["seen"]) == 8
    assert {(s.solution.answer, s.solution.location, s.solution.type) for s in dataset.sft} == {
        ("No", None, None), ("Yes", "top right", "dent"),
    }  # fmt: skip
    said = told(root).announce()
    assert "16 pictures" in said and "1 left out that it does not know" in said


def test_lines_of_json_may_lack_what_does_not_concern_their_picture(tmp_path):
    listed = []
    for i in range(2):
        picture(tmp_path / f"{i}.png")
        listed.append({"file_name": f"{i}.png", "label": i, "split": "train"})
    mask(tmp_path / "masks" / "1.png")
    listed[1] |= {"mask": "masks/1.png", "defect_type": "dent"}
    metadata("jsonl", tmp_path, listed)
    good, bad = read(tmp_path)
    assert (good.mask, bad.solution.type) == (None, "dent")
    assert isinstance(bad.mask, Mask)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("metadata.csv", "file_name,camera,label\n0.png,left, top,good\n", "row 0: more values"),
        ("metadata.jsonl", '["file_name", "label"]\n', "line 1: an object with keys"),
    ],
)
def test_rows_that_cannot_be_read_as_they_stand_are_refused(name, text, said, tmp_path):
    picture(tmp_path / "0.png")
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=said):
        read(tmp_path)


def test_metadata_that_names_no_files_is_no_list_of_pictures(tmp_path):
    for part in ("train", "test"):
        for label in ("good", "dent"):
            picture(tmp_path / part / label / "0.png")
    (tmp_path / "metadata.csv").write_text("camera,lens\na,b\n")
    assert len(read(tmp_path)) == 4


@pytest.mark.slow
def test_what_the_library_itself_writes_is_read(tmp_path):
    import datasets

    said = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES),
         "mask": datasets.Image()}
    )  # fmt: skip
    parts = {
        part: datasets.Dataset.from_dict(
            {name: [row[name] for row in rows(start)] for name in said}, features=said
        )
        for part, start in (("train", 0), ("test", 20))
    }
    for part, one in parts.items():
        one.save_to_disk(tmp_path / "saved" / "lids" / part)
        one.to_parquet(tmp_path / "hub" / "lids" / f"{part}-00000-of-00001.parquet")
    folder = tmp_path / "folder" / "lids"
    for part in parts:
        for label in ("good", "dent"):
            for i in range(4):
                picture(folder / part / label / f"{i}.png")
    cached = tmp_path / "cached"
    datasets.load_dataset("imagefolder", data_dir=str(folder), cache_dir=str(cached))
    prints = {load(tmp_path / way / "lids").fingerprint for way in ("saved", "hub")}
    assert len(prints) == 1, "the same pictures, labels and masks"
    assert load(cached).counts["read"] == load(folder).counts["read"] == 16
