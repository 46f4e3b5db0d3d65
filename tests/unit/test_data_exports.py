"""Exports of annotation tools: each is read as the tool means it, or refused in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from iad_r1.data import exports, images, mix, shapes
from iad_r1.data.readers import photos
from iad_r1.errors import DataError
from iad_r1.grid import Grid, cells_from_mask, describe
from iad_r1.types import Sample, Shapes, Solution

SIZE = (60, 40)  # width, height
VALUES = {"validation_share": 0.25, "near_duplicate_bits": 10, "drop_leaks": False,
          "masks_inverted": None, "masks_drawn_on": None, "format": None}  # fmt: skip
Json = Any


@dataclass(frozen=True)
class Box:
    """A rectangle that somebody has drawn, in pixels."""

    kind: str
    x: int
    y: int
    width: int
    height: int

    def pixels(self) -> NDArray[np.bool_]:
        found = np.zeros((SIZE[1], SIZE[0]), np.bool_)
        found[self.y : self.y + self.height, self.x : self.x + self.width] = True
        return found


@dataclass(frozen=True)
class Part:
    """A picture with what is marked in it."""

    split: str  # as tools spell it: train, val, test
    name: str
    boxes: tuple[Box, ...] = ()


SCRATCH, DENT = Box("deep_scratch", 2, 3, 6, 4), Box("dent", 40, 30, 9, 8)
PARTS = (
    Part("train", "a.png"),
    Part("train", "b.png", (SCRATCH,)),
    Part("val", "c.png"),
    Part("val", "d.png", (DENT,)),
    Part("test", "e.png"),
    Part("test", "f.png", (SCRATCH, DENT)),
)


KINDS = ("deep_scratch", "dent")


def config(root: Path, **changes: Any) -> photos.Settings:
    return photos.Settings(name="photos", root=str(root), **{**VALUES, **changes})


def read(root: Path, **changes: Any) -> list[Sample]:
    return list(photos.read(config(root, **changes), seed=0))


def empty(path: Path) -> Path:
    """A file where a picture should be: whoever opens it notices."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def picture(path: Path, seed: int = 0, size: tuple[int, int] = SIZE, turn: int = 1) -> Path:
    """Noise, which its camera may have turned."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
    exif = Image.Exif()
    exif[images.EXIF_ORIENTATION] = turn
    Image.fromarray(noise).save(path, exif=exif)
    return path


def write(path: Path, content: Json) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text, encoding="utf-8")
    return path


# --- as the tools write them ---------------------------------------------------------------------


def coco(parts: Sequence[Part], split: str) -> Json:
    """Instances of one split, boxes as polygons of four corners."""
    chosen = [part for part in parts if part.split == split]
    pictures = [
        {"id": i, "file_name": part.name, "width": SIZE[0], "height": SIZE[1],
         "license": 0, "flickr_url": "", "coco_url": "", "date_captured": 0}
        for i, part in enumerate(chosen, 1)
    ]  # fmt: skip
    boxes = [(i, box) for i, part in enumerate(chosen, 1) for box in part.boxes]
    marks = [
        {"id": n, "image_id": i, "category_id": KINDS.index(box.kind) + 1,
         "segmentation": [corners(box)], "area": box.width * box.height,
         "bbox": [box.x, box.y, box.width, box.height], "iscrowd": 0,
         "attributes": {"occluded": False}}
        for n, (i, box) in enumerate(boxes, 1)
    ]  # fmt: skip
    names = [{"id": i, "name": kind, "supercategory": ""} for i, kind in enumerate(KINDS, 1)]
    return {
        "licenses": [{"name": "", "id": 0, "url": ""}],
        "info": {"contributor": "", "description": "", "url": "", "version": "", "year": ""},
        "categories": names,
        "images": pictures,
        "annotations": marks,
    }


def corners(box: Box) -> list[float]:
    left, top, right, bottom = box.x, box.y, box.x + box.width, box.y + box.height
    return [float(value) for value in (left, top, right, top, right, bottom, left, bottom)]


def write_coco(root: Path, parts: Sequence[Part]) -> None:
    """`annotations/instances_<split>2017.json` and `<split>2017/`."""
    for split in dict.fromkeys(part.split for part in parts):
        write(root / "annotations" / f"instances_{split}2017.json", coco(parts, split))
    for part in parts:
        empty(root / f"{part.split}2017" / part.name)


def yolo(box: Box) -> str:
    """A line of a label: centre, width and height as shares."""
    x, y = (box.x + box.width / 2) / SIZE[0], (box.y + box.height / 2) / SIZE[1]
    values = (x, y, box.width / SIZE[0], box.height / SIZE[1])
    return " ".join([str(KINDS.index(box.kind)), *(f"{value:.6f}" for value in values)]) + "\n"


def write_yolo(root: Path, parts: Sequence[Part]) -> None:
    """`images/<split>/`, `labels/<split>/` and data.yaml; a good picture has no label, or an empty
    one."""
    names = "".join(f"  {i}: {kind}\n" for i, kind in enumerate(KINDS))
    write(root / "data.yaml", f"path: .\ntrain: images/train\nval: images/val\nnames:\n{names}")
    for part in parts:
        empty(root / "images" / part.split / part.name)
        if part.boxes or part.split == "val":
            label = root / "labels" / part.split / Path(part.name).with_suffix(".txt")
            write(label, "".join(map(yolo, part.boxes)))


WRITERS: dict[str, Callable[[Path, Sequence[Part]], None]] = {
    "coco": write_coco,
    "yolo": write_yolo,
}


def marked(sample: Sample) -> NDArray[np.bool_]:
    """The mask of a sample, whose picture need not be there."""
    assert isinstance(sample.mask, Shapes)
    return shapes.drawn(sample.mask, SIZE)


@pytest.fixture(params=WRITERS)
def form(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "gear_wheel"


def test_every_format_can_be_asked_for():
    options = get_args(get_args(photos.Settings.model_fields["format"].annotation)[0])
    assert set(options) == {"table", "folders", *exports.FORMATS}


def test_an_export_is_read_as_its_tool_means_it_without_opening_a_picture(form, root):
    WRITERS[form](root, PARTS)
    found = {sample.image.name: sample for sample in read(root) if isinstance(sample.image, Path)}
    assert sorted(found) == [part.name for part in PARTS]
    assert [found[name].split for name in sorted(found)] == (
        ["train"] * 2 + ["validation"] * 2 + ["test"] * 2
    )
    assert {sample.product for sample in found.values()} == {"gear wheel"}
    assert {name: s.solution for name, s in found.items()} == {
        "a.png": Solution("No"), "b.png": Solution("Yes", None, "deep scratch"),
        "c.png": Solution("No"), "d.png": Solution("Yes", None, "dent"),
        "e.png": Solution("No"), "f.png": Solution("Yes", None, "dent"),
    }  # fmt: skip
    for part in PARTS:
        if part.boxes:
            drawn = np.logical_or.reduce([box.pixels() for box in part.boxes])
            assert np.array_equal(marked(found[part.name]), drawn), part.name
        else:
            assert found[part.name].mask is None
    assert all(Path(s.where.partition(",")[0]).is_file() for s in found.values())


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_a_drawn_rectangle_is_at_the_same_place_in_every_format(tmp_path_factory, data):
    width, height = (data.draw(st.integers(1, side)) for side in SIZE)
    x, y = (data.draw(st.integers(0, s - n)) for s, n in zip(SIZE, (width, height), strict=True))
    box = Box("dent", x, y, width, height)
    part = Part("train", "a.png", (box,))
    places = {}
    for form, write_as in WRITERS.items():
        folder = tmp_path_factory.mktemp(form)
        write_as(folder, [part])
        (sample,) = read(folder)
        places[form] = describe(cells_from_mask(marked(sample), Grid(3, 3)), "3x3")
    assert set(places.values()) == {describe(cells_from_mask(box.pixels(), Grid(3, 3)), "3x3")}


# --- the door ------------------------------------------------------------------------------------


def test_the_plan_says_what_a_folder_was_taken_for_and_how_to_overrule_it(form, root):
    WRITERS[form](root, PARTS)
    empty(root / "others" / "spare.png")
    said = config(root).announce()
    assert f"photos in {root}, taken for {exports.FORMATS[form].NAME} (" in said
    assert "6 pictures, 3 of them without an annotation, which are good" in said
    assert "1 left out that it does not know" in said
    assert "format=... reads it otherwise" in said
    assert "format=" not in config(root, format=form).announce()
    (root / "meta.csv").write_text("image,product,split,label\nothers/spare.png,cube,test,0\n")
    assert "taken for a table (meta.csv)" in config(root).announce()
    assert len(read(root)) == 1 and len(read(root, format=form)) == 6


def test_a_folder_that_is_not_there_is_announced_all_the_same(tmp_path):
    assert config(tmp_path / "nowhere").announce() == f"photos in {tmp_path / 'nowhere'}"


def test_a_picture_without_annotation_in_a_folder_of_good_parts_is_good(form, root):
    WRITERS[form](root, PARTS)
    empty(root / "train" / "good_2" / "spare.png")
    found = {sample.id: sample for sample in read(root)}
    assert len(found) == 7
    assert found["gear_wheel/train/good_2/spare.png"].solution == Solution("No")


def test_what_was_asked_for_and_is_not_there_is_refused(root):
    empty(root / "train" / "good" / "a.png")
    for form, export in exports.FORMATS.items():
        with pytest.raises(DataError, match=f"no annotations of {export.NAME}"):
            read(root, format=form)
    with pytest.raises(DataError, match=r"no meta\.csv and no meta\.tsv"):
        read(root, format="table")
    assert len(read(root, format="folders")) == 1


# --- COCO ----------------------------------------------------------------------------------------


@pytest.fixture
def one(root: Path) -> Callable[..., Path]:
    """Writes a COCO file of one defect in one picture, with changes to its entries."""

    def written(**changes: dict[str, Any]) -> Path:
        content = coco([Part("train", "b.png", (SCRATCH,))], "train")
        for name, values in changes.items():
            content[name][0].update(values)
        empty(root / "train" / "b.png")
        return write(root / "train" / "_annotations.coco.json", content)

    return written


def runs(drawn: NDArray[np.bool_]) -> Json:
    found: Any = coco_mask.encode(np.asfortranarray(drawn.astype(np.uint8)))
    return {"size": found["size"], "counts": found["counts"].decode()}


def lengths(drawn: NDArray[np.bool_]) -> list[int]:
    flat = drawn.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    found = np.diff([0, *edges, flat.size]).tolist()
    return [0, *found] if flat[0] else found


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.01, 0.99))
def test_run_lengths_are_read_compressed_and_plain(tmp_path_factory, seed, share):
    drawn = np.random.default_rng(seed).random((SIZE[1], SIZE[0])) < share
    drawn[0, 0] |= not drawn.any()
    content = coco([Part("train", "b.png", (SCRATCH,))], "train")
    root = tmp_path_factory.mktemp("runs")
    empty(root / "train" / "b.png")
    plain = {"size": [SIZE[1], SIZE[0]], "counts": lengths(drawn)}
    for segmentation in (runs(drawn), plain):
        content["annotations"][0].update(segmentation=segmentation, iscrowd=1)
        write(root / "train" / "instances.json", content)
        (sample,) = read(root)
        assert np.array_equal(marked(sample), drawn)


def test_a_box_stands_for_an_empty_segmentation(one, root):
    for segmentation in ([], None):
        one(annotations={"segmentation": segmentation})
        assert np.array_equal(marked(read(root)[0]), SCRATCH.pixels())


@pytest.mark.parametrize(
    "thin", [[5.0, 4.0, 5.0, 20.0, 5.1, 20.0], [5.0, 4.0, 5.0, 20.0, 5.0, 4.0]]
)
def test_a_shape_too_thin_for_a_pixel_marks_what_it_touches(one, root, thin):
    one(annotations={"segmentation": [thin]})
    drawn = marked(read(root)[0])
    assert drawn[4:20, 5].all() and drawn.sum() <= 2 * 17


def test_a_shape_that_rounding_put_beyond_the_picture_is_cut_off(one, root):
    one(annotations={"segmentation": [[-1.0, 0, 61.5, 0, 61.5, 40.4, -1.0, 40.4]]})
    assert marked(read(root)[0]).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotations": {"category_id": 9}}, r"annotation 1: category 9 is not in categories"),
        ({"annotations": {"image_id": 7}}, r"annotation 1: no image has the id 7"),
        ({"annotations": {"image_id": None}}, r"annotations\[0\] has no image_id"),
        ({"annotations": {"segmentation": [[1, 1, 5, 5]]}}, r"annotation 1: a polygon of 2 p"),
        (
            {"annotations": {"segmentation": [[1, 1, 5, 5, "x", 2]]}},
            r"annotation 1: .* not all num",
        ),
        ({"annotations": {"segmentation": [1, 1, 5, 5, 1, 9]}}, r"annotation 1: .* not all n"),
        ({"annotations": {"segmentation": [[0, 0, 90, 0, 90, 9]]}}, r"annotation 1: x=90 lies out"),
        ({"annotations": {"segmentation": [], "bbox": []}}, r"neither a segmentation nor a bbox"),
        ({"annotations": {"segmentation": [], "bbox": [1, 2, 3]}}, r"is not x, y, width and heig"),
        ({"annotations": {"segmentation": [], "bbox": [3, 3, 0, 4]}}, r"a box of 0 x 4 covers not"),
        ({"annotations": {"segmentation": {"size": [40, 60], "counts": [5, 5]}}}, r"cover 10 pix"),
        ({"annotations": {"segmentation": {"size": [60, 40], "counts": [2400]}}}, r"is 60x40"),
        ({"annotations": {"segmentation": {"size": [40, 60], "counts": "zz"}}}, r"run lengths"),
        ({"images": {"file_name": "z.png"}}, r"image 1 \(z\.png\): the picture 'z\.png' is not "),
        ({"images": {"width": None}}, r"images\[0\] has no width"),
        ({"categories": {"name": "<b>"}}, r"holds an angle bracket"),
    ],
)
def test_an_entry_that_is_wrong_is_named_with_its_file(one, root, changes, message):
    file = one(**changes)
    with pytest.raises(DataError, match=message) as caught:
        read(root)
    assert str(caught.value).startswith(str(file))


def test_a_file_that_is_broken_is_named(one, root):
    file = one()
    file.write_text(file.read_text()[:-5])
    with pytest.raises(DataError, match=r"_annotations\.coco\.json is not JSON"):
        read(root)


@pytest.mark.parametrize("turn", [3, 6])
def test_a_shape_lies_on_the_picture_as_its_size_tells_or_the_run_asks(root, turn):
    stored = picture(root / "a.png", size=SIZE, turn=turn)
    marks = Shapes((tuple(corners(SCRATCH)),), size=SIZE)
    sample = Sample("a", "s", "train", "p", stored, Solution("Yes"), marks)
    turned = {3: np.rot90(SCRATCH.pixels(), 2), 6: np.rot90(SCRATCH.pixels(), -1)}[turn]
    if turn == 3:
        with pytest.raises(DataError, match=r"a\.png: .*EXIF orientation 3.*masks_drawn_on=store"):
            images.open_mask(sample)
        shown = images.open_mask(replace(sample, mask=replace(marks, drawn_on="shown")))
        assert shown is not None and np.array_equal(shown, SCRATCH.pixels())
        sample = replace(sample, mask=replace(marks, drawn_on="stored"))
    found = images.open_mask(sample)
    assert found is not None and np.array_equal(found, turned)
    with pytest.raises(DataError, match=r"but its annotation is for 61x40"):
        images.open_mask(replace(sample, mask=replace(marks, size=(61, 40))))


def test_which_way_up_shapes_were_drawn_is_asked_where_they_are_read(one, root):
    one()
    (sample,) = read(root, masks_drawn_on="stored")
    assert isinstance(sample.mask, Shapes) and sample.mask.drawn_on == "stored"


def test_pictures_are_found_from_the_machine_that_named_them(one, root):
    for named in ("C:\\shots\\b.png", "/home/me/shots/b.png", "./b.png", "shots/b.png"):
        file = one(images={"file_name": named})
        assert [sample.image for sample in read(root)] == [root / "train" / "b.png"], named
    (root / "shots").mkdir()
    with pytest.raises(DataError, match=r"'shots/b\.png' is not below"):
        read(root)
    file.unlink()
    one(images={"file_name": "/home/me/b.png"}).rename(root / "instances_train.json")
    empty(root / "other" / "train" / "b.png")
    with pytest.raises(DataError, match=r"may be .*b\.png or .*b\.png. Name it by its path"):
        read(root)


def test_the_split_of_a_file_and_of_a_folder_must_agree(one, root):
    one().rename(root / "instances_test.json")
    with pytest.raises(DataError, match=r"it says test of its split, but .* for train"):
        read(root)


def test_pictures_that_nothing_divides_are_refused_with_what_would(one, root):
    one().rename(root / "labels.json")
    (root / "train").rename(root / "pictures")
    with pytest.raises(DataError, match=r"1 of 1 in .* into folders train/, val/ and test/"):
        read(root)


def test_products_are_named_by_folders_that_say_one(tmp_path):
    root = tmp_path / "line 3"
    for name in ("bottle_cap/images/b.png", "images/dent/c.png", "images/ok/d.png"):
        empty(root / "train" / name)
        content = coco([Part("train", name, (DENT,))], "train")
        write(root / f"train_{Path(name).stem}.json", content)
    assert [s.product for s in read(root)] == ["bottle cap", "line 3", "line 3"]


def test_a_category_named_as_good_parts_are_is_no_defect(one, root):
    one(categories={"name": "OK"})
    (sample,) = read(root)
    assert sample.solution == Solution("No") and sample.mask is None


def test_a_category_that_says_no_type_gives_none(one, root):
    one(categories={"name": "defect"})
    assert read(root)[0].solution == Solution("Yes", None, None)


def test_a_run_reads_an_export_and_knows_it_by_its_numbers(root):
    parts = [
        Part(split, f"{split}_{kind}_{i}.png", (SCRATCH,) if kind else ())
        for split in ("train", "val", "test") for kind in (0, 1) for i in range(3)
    ]  # fmt: skip
    write_coco(root, parts)
    for seed, part in enumerate(parts):
        picture(root / f"{part.split}2017" / part.name, seed)
    load = lambda: mix.load(config(root), Grid(3, 3), "centroid_largest", 0)  # noqa: E731
    before = load()
    assert {s.solution.location for s in before.sft} == {None, "top left"}
    assert before.counts["test_anomalous"] == 3 and load().fingerprint == before.fingerprint
    file = root / "annotations" / "instances_test2017.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["segmentation"][0][0] += 0.5
    write(file, content)
    assert load().fingerprint != before.fingerprint


def test_several_formats_in_one_folder_are_refused_with_the_option_that_decides(root):
    for write_as in (write_coco, write_yolo):
        write_as(root, PARTS)
    with pytest.raises(DataError, match=r"COCO \(.*instances_.*json\) and YOLO \(.*data\.yaml\)"):
        read(root)
    with pytest.raises(DataError, match=r"data\.format=coco or data\.format=yolo"):
        config(root).announce()
    assert len(read(root, format="yolo")) == 6


# --- YOLO ----------------------------------------------------------------------------------------


@pytest.fixture
def labelled(root: Path) -> Callable[..., Path]:
    """Writes the label of one picture, as Roboflow lays them out."""

    def written(line: str, names: str = "nc: 2\nnames: ['scratch', 'dent']\n") -> Path:
        empty(root / "train" / "images" / "b.jpg")
        write(root / "data.yaml", f"train: ../train/images\nval: ../valid/images\n{names}")
        return write(root / "train" / "labels" / "b.txt", line)

    return written


def test_polygons_and_turned_boxes_of_yolo_are_drawn(labelled, root):
    labelled("1 0.1 0.25 0.5 0.25 0.5 0.5 0.1 0.5\r\n0 0.9 0.9 0.1 0.1\n")
    (sample,) = read(root)
    wanted = np.zeros((SIZE[1], SIZE[0]), np.bool_)
    wanted[10:20, 6:30] = wanted[34:38, 51:57] = True
    assert np.array_equal(marked(sample), wanted)
    assert sample.solution.type == "dent" and sample.split == "train"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 0.5 0.5 0.1 0.1", r"line 1: class 2 has no name; there are 2"),
        ("\n0 0.5 0.5 0.1 0.1 0.93", r"line 2: 6 values. .* confidence"),
        ("0 0.5 0.5 x 0.1", r"line 1: .* not all numbers"),
        ("0 0.5 0.5", r"line 1: a polygon of 1 points"),
        ("0 30 20 6 4", r"line 1: x=27 lies outside of the picture \(shares between 0 and 1\)"),
        ("0 0.5 0.5 0 0.1", r"line 1: a box of 0 x 0.1 covers nothing"),
    ],
)
def test_a_label_of_yolo_that_is_wrong_is_named_with_its_line(labelled, root, line, message):
    labelled("0 0.5 0.5 0.1 0.1").rename(root / "train" / "labels" / "a.txt")
    empty(root / "train" / "images" / "a.jpg")
    file = labelled(line)
    with pytest.raises(DataError, match=message) as caught:
        read(root)
    assert str(caught.value).startswith(str(file))


def test_classes_of_yolo_need_names(labelled, root):
    labelled("0 0.5 0.5 0.1 0.1", "names: [scratch]\nkpt_shape: [4, 2]\n")
    with pytest.raises(DataError, match=r"data\.yaml: these are labels of poses"):
        read(root)
    labelled("0 0.5 0.5 0.1 0.1", "names: scratch\n")
    with pytest.raises(DataError, match=r"data\.yaml: names is neither"):
        read(root)
    (root / "classes.txt").write_text("scratch\n")
    labelled("0 0.5 0.5 0.1 0.1", "names: [dent]\n")
    with pytest.raises(DataError, match=r"data\.yaml and .*classes\.txt name the classes differe"):
        read(root)
    (root / "classes.txt").unlink()
    (root / "data.yaml").unlink()
    with pytest.raises(DataError, match=r"b\.txt: nothing names the classes of these labels"):
        read(root)


def test_pictures_of_a_folder_without_labels_are_not_known_to_be_good(labelled, root):
    labelled("0 0.5 0.5 0.1 0.1")
    empty(root / "train" / "images" / "good.jpg")
    empty(root / "test" / "images" / "unknown.jpg")
    found = [s.image.name for s in read(root) if isinstance(s.image, Path)]
    assert found == ["b.jpg", "good.jpg"]


def test_the_splits_of_yolo_come_from_its_lists_where_folders_say_none(root):
    """As CVAT writes them, and as data.yaml names folders."""
    for name, split in (("a", "train"), ("b", "valid")):
        empty(root / "obj_train_data" / f"{name}.png")
        write(root / "obj_train_data" / f"{name}.txt", "0 0.5 0.5 0.1 0.1\n")
        write(root / f"{split}.txt", f"data/obj_train_data/{name}.png\n")
    write(root / "obj.names", "scratch\n")
    write(root / "obj.data", "classes = 1\ntrain = data/train.txt\nnames = data/obj.names\n")
    assert [s.split for s in read(root)] == ["train", "validation"]
    assert {s.product for s in read(root)} == {"gear wheel"}
    write(root / "valid.txt", "data/obj_train_data/z.png\n")
    with pytest.raises(DataError, match=r"valid\.txt, line 1: the picture 'data/obj_train_data/z"):
        read(root)
    for name in ("train.txt", "valid.txt", "obj.names"):
        (root / name).unlink()
    write(root / "set.yaml", "test: ./obj_train_data\nnames: [scratch]\n")
    assert {s.split for s in read(root)} == {"test"}
