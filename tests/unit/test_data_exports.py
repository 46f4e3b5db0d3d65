"""Exports of annotation tools: each is read as the tool means it, or refused in one sentence."""

from __future__ import annotations

import base64
import io
import itertools
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

from iad_r1.data import exports, faults, images, mix, shapes
from iad_r1.data.folders import UNSPLIT
from iad_r1.data.readers import photos
from iad_r1.errors import DataError
from iad_r1.grid import Grid, cells_from_mask, describe
from iad_r1.types import Sample, Shapes, Solution

SIZE = (60, 40)  # width, height
VALUES = {"split": None, "test_share": 0.3, "validation_share": 0.25,
          "near_duplicate_bits": 10, "drop_leaks": False,
          "masks_inverted": None, "masks_drawn_on": None, "masks_threshold": None,
          "views": None, "format": None}  # fmt: skip
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


def write_voc(root: Path, parts: Sequence[Part]) -> None:
    """`Annotations/`, `JPEGImages/` and `ImageSets/Main/<split>.txt`."""
    for part in parts:
        things = "".join(
            f"<object><name>{box.kind}</name><pose>Unspecified</pose><truncated>0</truncated>"
            f"<difficult>0</difficult><bndbox><xmin>{box.x}</xmin><ymin>{box.y}</ymin>"
            f"<xmax>{box.x + box.width}</xmax><ymax>{box.y + box.height}</ymax></bndbox></object>"
            for box in part.boxes
        )
        empty(root / "JPEGImages" / part.name)
        write(
            root / "Annotations" / Path(part.name).with_suffix(".xml"),
            f"<annotation><folder>JPEGImages</folder><filename>{part.name}</filename>"
            f"<path>C:\\shots\\{part.name}</path><source><database>Unknown</database></source>"
            f"<size><width>{SIZE[0]}</width><height>{SIZE[1]}</height><depth>3</depth></size>"
            f"<segmented>0</segmented>{things}</annotation>",
        )
    for split in dict.fromkeys(part.split for part in parts):
        names = [f"{Path(part.name).stem}\n" for part in parts if part.split == split]
        write(root / "ImageSets" / "Main" / f"{split}.txt", "".join(names))


def labelme(name: str, *marks: Json, **changes: Any) -> Json:
    return {
        "version": "5.4.1", "flags": {},
        "shapes": [{"group_id": None, "description": "", "flags": {}, "mask": None, **mark}
                   for mark in marks],
        "imagePath": name, "imageData": None, "imageHeight": SIZE[1], "imageWidth": SIZE[0],
        **changes,
    }  # fmt: skip


def write_labelme(root: Path, parts: Sequence[Part]) -> None:
    """A file beside every picture."""
    for part in parts:
        marks = [
            {"label": box.kind, "shape_type": "rectangle",
             "points": [[box.x + box.width, box.y], [box.x, box.y + box.height]]}
            for box in part.boxes
        ]  # fmt: skip
        image = empty(root / part.split / part.name)
        write(image.with_suffix(".json"), labelme(part.name, *marks))


def task(number: int, name: str, *results: Json, **changes: Any) -> Json:
    done = {"id": number, "completed_by": 1, "result": list(results), "was_cancelled": False,
            "ground_truth": False, "lead_time": 3.2, "prediction": {}}  # fmt: skip
    return {"id": number, "annotations": [done], "file_upload": name, "drafts": [],
            "predictions": [], "data": {"image": f"/data/upload/1/{name}"}, "meta": {},
            "project": 1, **changes}  # fmt: skip


def region(value: Json, number: int = 0, kind: str = "rectanglelabels", **changes: Any) -> Json:
    return {"original_width": SIZE[0], "original_height": SIZE[1], "image_rotation": 0,
            "value": value, "id": f"r{number}", "from_name": "label", "to_name": "image",
            "type": kind, "origin": "manual", **changes}  # fmt: skip


def hundredths(box: Box) -> dict[str, Any]:
    return {"x": 100 * box.x / SIZE[0], "y": 100 * box.y / SIZE[1], "rotation": 0,
            "width": 100 * box.width / SIZE[0], "height": 100 * box.height / SIZE[1]}  # fmt: skip


def write_label_studio(root: Path, parts: Sequence[Part]) -> None:
    """A file of tasks per split; pictures as they were before their upload."""
    for split in dict.fromkeys(part.split for part in parts):
        tasks = []
        for n, part in enumerate(part for part in parts if part.split == split):
            empty(root / split / part.name)
            marks = [
                region({**hundredths(box), "rectanglelabels": [box.kind]}, k)
                for k, box in enumerate(part.boxes)
            ]
            tasks.append(task(n, f"3f1e2d4c-{part.name}", *marks))
        write(root / f"project-1-{split}.json", tasks)


def cvat(name: str, inner: str = "", subset: str = "default", number: int = 0) -> str:
    width, height = SIZE
    return (
        f'<image id="{number}" name="{name}" subset="{subset}" task_id="1" width="{width}" '
        f'height="{height}">{inner}</image>'
    )


def cvat_file(*pictures: str) -> str:
    labels = "".join(f"<label><name>{kind}</name><type>any</type></label>" for kind in KINDS)
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version><meta><job>'
        f"<id>1</id><labels>{labels}</labels></job></meta>{''.join(pictures)}</annotations>"
    )


def write_cvat(root: Path, parts: Sequence[Part]) -> None:
    """`annotations.xml` and `images/<subset>/`."""
    pictures, subsets = [], {"train": "Train", "val": "Validation", "test": "Test"}
    for n, part in enumerate(parts):
        boxes = "".join(
            f'<box label="{box.kind}" source="manual" occluded="0" xtl="{box.x:.2f}" '
            f'ytl="{box.y:.2f}" xbr="{box.x + box.width:.2f}" ybr="{box.y + box.height:.2f}" '
            'z_order="0"><attribute name="deep">true</attribute></box>'
            for box in part.boxes
        )
        empty(root / "images" / subsets[part.split] / part.name)
        pictures.append(cvat(part.name, boxes, subsets[part.split], n))
    write(root / "annotations.xml", cvat_file(*pictures))


WRITERS: dict[str, Callable[[Path, Sequence[Part]], None]] = {
    "coco": write_coco,
    "yolo": write_yolo,
    "voc": write_voc,
    "labelme": write_labelme,
    "label_studio": write_label_studio,
    "cvat": write_cvat,
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


@settings(max_examples=10, deadline=None)
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


@settings(max_examples=20, deadline=None)
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


def test_two_categories_of_one_number_are_refused(one, root):
    file = one()
    content = json.loads(file.read_text())
    content["categories"].append({**content["categories"][0], "name": "another"})
    write(file, content)
    with pytest.raises(DataError, match=r"two categories have the id 1"):
        read(root)


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
    for named in ("C:\\shots\\b.png", "/elsewhere/shots/b.png", "./b.png", "shots/b.png"):
        file = one(images={"file_name": named})
        assert [sample.image for sample in read(root)] == [root / "train" / "b.png"], named
    (root / "shots").mkdir()
    with pytest.raises(DataError, match=r"'shots/b\.png' is not below"):
        read(root)
    file.unlink()
    one(images={"file_name": "/elsewhere/b.png"}).rename(root / "instances_train.json")
    empty(root / "other" / "train" / "b.png")
    with pytest.raises(DataError, match=r"may be .*b\.png or .*b\.png. Name it by its path"):
        read(root)


def test_the_split_of_a_file_and_of_a_folder_must_agree(one, root):
    one().rename(root / "instances_test.json")
    with pytest.raises(DataError, match=r"it says test of its split, but .* for train"):
        read(root)


def test_what_tests_is_said_of_every_picture_or_of_none(one, root):
    one().rename(root / "labels.json")
    (root / "train").rename(root / "pictures")
    (sample,) = read(root)
    assert sample.split == UNSPLIT
    more = json.loads((root / "labels.json").read_text())
    more["images"].append({**more["images"][0], "id": 99, "file_name": "train/other.png"})
    (root / "labels.json").write_text(json.dumps(more))
    empty(root / "train" / "other.png")
    with pytest.raises(DataError, match=r"1 of 2 in .* into folders train/, val/ and test/"):
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

    def load():
        return mix.load(config(root), Grid(3, 3), "centroid_largest", 0)

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


def test_a_class_of_yolo_keeps_its_number_behind_an_empty_line(labelled, root):
    labelled("2 0.5 0.5 0.1 0.1")
    (root / "data.yaml").unlink()
    (root / "classes.txt").write_text("scratch\n\ndent\n")
    (sample,) = read(root)
    assert sample.solution.type == "dent"
    (root / "classes.txt").write_bytes("Kratzer\n\nDelle ä\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"classes\.txt is not UTF-8"):
        read(root)


def test_a_label_of_yolo_may_be_called_like_a_split(labelled, root):
    labelled("0 0.5 0.5 0.1 0.1").rename(root / "train" / "labels" / "test.txt")
    (root / "train" / "images" / "b.jpg").rename(root / "train" / "images" / "test.jpg")
    (sample,) = read(root)
    assert sample.split == "train" and sample.solution.type == "scratch"


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


# --- XML: Pascal VOC and CVAT --------------------------------------------------------------------

DISC = np.hypot(*np.meshgrid(np.arange(60) + 0.5 - 30, np.arange(40) + 0.5 - 20)) < 10


def alone(root: Path) -> Sample:
    (sample,) = read(root)
    return sample


def difference(sample: Sample, wanted: NDArray[np.bool_]) -> int:
    """In how many pixels a mask differs."""
    return int((marked(sample) != wanted).sum())


@pytest.fixture
def voc(root: Path) -> Callable[..., Path]:
    """Writes the XML of one picture, with changes to its text."""

    def written(*changes: tuple[str, str]) -> Path:
        write_voc(root, [Part("train", "b.png", (SCRATCH,))])
        file = root / "Annotations" / "b.xml"
        for old, new in changes:
            assert old in file.read_text()
            write(file, file.read_text().replace(old, new))
        return file

    return written


BOMB = '<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;&x;&x;">]>'


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<annotation>", f"{BOMB}<annotation>", r"defines entities, .* export it again"),
        (
            "<annotation>",
            '<!DOCTYPE a [<!ENTITY x SYSTEM "/etc/passwd">]><annotation>',
            r"entities",
        ),
        ("</annotation>", "", r"is not XML: no element found"),
        ("<xmin>2</xmin>", "<xmin></xmin>", r"object 0 \(deep_scratch\): .* not all numbers"),
        ("<xmax>8</xmax>", "<xmax>99</xmax>", r"object 0 .*: x=99 lies outside of the picture"),
        ("<ymax>7</ymax>", "<ymax>2</ymax>", r"object 0 .*: a box of 6 x -1 covers nothing"),
        ("<width>60</width>", "<width>0</width>", r"its size is 0x40"),
        ("<width>60</width>", "", r"not all numbers"),
    ],
)
def test_an_object_of_voc_that_is_wrong_is_named_with_its_file(voc, root, old, new, message):
    file = voc((old, new))
    with pytest.raises(DataError, match=message) as caught:
        read(root)
    assert str(caught.value).startswith(str(file))


def test_a_file_of_voc_is_paired_by_what_it_names_or_is_called(voc, root):
    voc(("<filename>b.png<", "<filename>0017.jpg<"))
    assert alone(root).image == root / "JPEGImages" / "b.png"
    empty(root / "JPEGImages" / "0017.jpg")
    with pytest.raises(DataError, match=r"it names .*0017\.jpg, but is called like .*b\.png"):
        read(root)


def test_the_name_of_a_single_picture_says_no_split(root):
    for write_as in (write_voc, write_labelme):
        folder = root / write_as.__name__
        write_as(folder, [Part("train", "test_3.png")])
        assert alone(folder).split == "train"


def test_pictures_of_one_name_are_told_apart_by_the_folders_of_their_annotations(root):
    for product, split in (("bolt", "train"), ("nut", "test")):
        write_voc(root / product, [Part(split, "b.png")])
    assert [(s.product, s.split) for s in read(root)] == [("bolt", "train"), ("nut", "test")]


def test_polygons_of_voc_are_drawn(voc, root):
    corners = "".join(
        f"<x{n}>{x}</x{n}><y{n}>{y}</y{n}>"
        for n, (x, y) in enumerate([(10, 5), (30, 5), (30, 25), (10, 25)], 1)
    )
    voc(("<bndbox>", f"<polygon>{corners}</polygon><bndbox>"))
    assert difference(alone(root), Box("", 10, 5, 20, 20).pixels()) == 0


def test_the_mask_of_a_segmented_picture_of_voc_is_used_unless_it_shows_sound_parts(voc, root):
    mask = empty(root / "SegmentationClass" / "b.png")
    Image.fromarray(DISC.astype(np.uint8)).save(mask)
    segmented = ("<segmented>0", "<segmented>1")
    picture(root / "JPEGImages" / "b.png")
    voc(segmented)
    found = images.open_mask(alone(root))
    assert found is not None and np.array_equal(found, DISC)
    voc(
        segmented,
        (
            "</annotation>",
            "<object><name>good</name><bndbox><xmin>0</xmin><ymin>0</ymin>"
            "<xmax>60</xmax><ymax>40</ymax></bndbox></object></annotation>",
        ),
    )
    assert difference(alone(root), SCRATCH.pixels()) == 0


@pytest.fixture
def drawn(root: Path) -> Callable[[str], Path]:
    """Writes a CVAT file of one picture with this inside."""

    def written(inner: str, name: str = "b.png") -> Path:
        empty(root / "images" / "Train" / "b.png")
        return write(root / "annotations.xml", cvat_file(cvat(name, inner, "Train")))

    return written


def test_all_shapes_of_cvat_are_drawn(drawn, root):
    square = Box("", 10, 5, 20, 20)
    drawn('<polygon label="dent" points="10.00,5.00;30.00,5.00;30.00,25.00;10.00,25.00"/>')
    assert difference(alone(root), square.pixels()) == 0
    drawn('<box label="dent" xtl="10" ytl="10" xbr="30" ybr="20" rotation="90.0"/>')
    assert difference(alone(root), Box("", 15, 5, 10, 20).pixels()) == 0
    drawn('<box label="dent" xtl="10" ytl="18" xbr="50" ybr="22" rotation="45.0"/>')
    clockwise = marked(alone(root))
    assert clockwise[30, 40] and clockwise[10, 20] and not (clockwise[10, 40] or clockwise[30, 20])
    drawn('<ellipse label="dent" cx="30" cy="20" rx="10" ry="10" z_order="0"/>')
    assert difference(alone(root), DISC) < 20
    part = DISC[10:30, 20:40]
    flat = np.concatenate([[0], part.ravel(), [2]])
    edges = np.flatnonzero(np.diff(flat))
    runs = np.diff([0, *edges, part.size] if not part[0, 0] else [0, 0, *edges, part.size])
    rle = ", ".join(str(n) for n in runs if n)
    drawn(f'<mask label="dent" rle="{rle}" left="20" top="10" width="20" height="20"/>')
    assert difference(alone(root), DISC) == 0
    drawn('<polyline label="dent" points="10.2,5.5;30.9,5.5;30.9,25.1"/>')
    line = np.zeros_like(DISC)
    line[5, 10:31] = line[5:26, 30] = True
    assert difference(alone(root), line) == 0
    drawn('<points label="dent" points="3.5,4.5;59.9,39.9"/>')
    assert np.argwhere(marked(alone(root))).tolist() == [[4, 3], [39, 59]]


def test_tags_of_cvat_say_good_and_defective_without_a_place(drawn, root):
    drawn('<tag label="good" source="manual"></tag>')
    assert alone(root).solution == Solution("No")
    drawn('<tag label="dent" source="manual"></tag>')
    assert (alone(root).solution, alone(root).mask) == (Solution("Yes", None, "dent"), None)
    drawn('<tag label="good"/><box label="dent" xtl="1" ytl="1" xbr="3" ybr="2"/>')
    with pytest.raises(DataError, match=r"tag 0 \(good\) says 'good', but .*box 1 .* marks 'dent'"):
        read(root)


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        ('<cuboid label="dent" xtl1="1"/>', r"cuboid 0 \(dent\): <cuboid> is not read"),
        ('<polygon label="dent" points="1,2;3,4"/>', r"polygon 0 .*: a polygon of 2 points"),
        ('<polyline label="dent" points="1,2,3"/>', r"polyline 0 .*: a line of 1\.5 points"),
        ('<polygon label="dent" points=""/>', r"polygon 0 .* not all numbers"),
        ('<box label="dent" xtl="1" ytl="1" xbr="3"/>', r"box 0 .* not all numbers"),
        ('<box label="dent" xtl="1" ytl="1" xbr="3" ybr="3" rotation="x"/>', r"not all numbers"),
        ('<mask label="dent" rle="1, 2" left="0" top="0" width="3" height="3"/>', r"cover 3 pixel"),
        (
            '<mask label="dent" rle="1, 8" left="58" top="0" width="3" height="3"/>',
            r"not inside of",
        ),
    ],
)
def test_a_shape_of_cvat_that_is_wrong_is_named(drawn, root, inner, message):
    file = drawn(inner)
    with pytest.raises(DataError, match=message) as caught:
        read(root)
    assert str(caught.value).startswith(f"{file}, image 0")


def test_pictures_of_one_name_in_two_subsets_of_cvat_are_told_apart(drawn, root):
    drawn("")
    empty(root / "images" / "Test" / "b.png")
    write(root / "annotations.xml", cvat_file(*(cvat("b.png", "", s) for s in ("Train", "Test"))))
    assert [sample.split for sample in read(root)] == ["test", "train"]


def test_videos_of_cvat_are_refused_with_the_export_to_choose(drawn, root):
    file = drawn("")
    write(
        file, "<annotations><version>1.1</version><track id='0' label='dent'></track></annotations>"
    )
    with pytest.raises(DataError, match=r'Export the task as "CVAT for images 1\.1"'):
        read(root)


# --- LabelMe -------------------------------------------------------------------------------------


@pytest.fixture
def opened(root: Path) -> Callable[..., Path]:
    """Writes the LabelMe file of one picture."""

    def written(*marks: Json, **changes: Any) -> Path:
        empty(root / "train" / "b.png")
        content = labelme("b.png", *({"label": "dent", **mark} for mark in marks), **changes)
        return write(root / "train" / "b.json", content)

    return written


def test_all_shapes_of_labelme_are_drawn(opened, root):
    square = Box("", 10, 5, 20, 20)
    opened({"shape_type": "polygon", "points": [[10, 5], [30, 5], [30, 25], [10, 25]]})
    assert difference(alone(root), square.pixels()) == 0
    opened({"shape_type": "circle", "points": [[30, 20], [36, 28]]})
    assert difference(alone(root), DISC) < 20
    opened({"shape_type": "linestrip", "points": [[10.5, 5.5], [30.5, 5.5]]})
    assert np.argwhere(marked(alone(root))).tolist() == [[5, x] for x in range(10, 31)]
    opened({"shape_type": "point", "points": [[10.5, 5.5]]})
    assert np.argwhere(marked(alone(root))).tolist() == [[5, 10]]
    text = io.BytesIO()
    Image.fromarray(DISC[10:31, 20:41]).save(text, "PNG")
    mask = base64.b64encode(text.getvalue()).decode()
    opened({"shape_type": "mask", "points": [[20, 10], [40, 30]], "mask": mask})
    assert difference(alone(root), DISC) == 0


def test_flags_of_a_picture_of_labelme_are_read(opened, root):
    opened(flags={"good": True, "dent": False})
    assert alone(root).solution == Solution("No")
    opened(flags={"good": False, "dent": True})
    assert alone(root).solution == Solution("Yes", None, "dent")


def test_pictures_of_labelme_may_lie_elsewhere_and_embedded_ones_are_named(opened, root):
    empty(root / "images" / "shot.png")
    (root / "train").mkdir(parents=True)
    write(root / "train" / "c.json", labelme("..\\images\\shot.png"))
    assert alone(root).image == root / "images" / "shot.png"
    (root / "images" / "shot.png").unlink()
    write(root / "train" / "c.json", labelme("..\\images\\shot.png", imageData="aGk="))
    empty(root / "train" / "spare.png")
    with pytest.raises(DataError, match=r"c\.json: the picture .* labelme_export_json writes it"):
        read(root)


@pytest.mark.parametrize(
    ("mark", "changes", "message"),
    [
        (
            {"shape_type": "polygon", "points": [[1, 1], [2, 2]]},
            {},
            r"shape 0 \(dent\): a polygon of",
        ),
        ({"shape_type": "rectangle", "points": []}, {}, r"shape 0 .*points=\[\] are not points"),
        ({"shape_type": "cuboid", "points": [[1, 1]]}, {}, r"the kind 'cuboid' with 1 points"),
        (
            {"shape_type": "mask", "points": [[1, 1]], "mask": "eHg="},
            {},
            r"its mask cannot be read",
        ),
        ({"points": [[1, 1], [9, 9], [1, 99]]}, {}, r"shape 0 .*: y=99 lies outside"),
        (
            {"points": [[1, 1], [9, 9], [1, 9]]},
            {"imageWidth": None},
            r"b\.json: .* not all numbers",
        ),
        ({"points": [[1, 1], [9, 9], [1, 9]]}, {"shapes": {}}, r"b\.json: shapes is no list"),
    ],
)
def test_a_shape_of_labelme_that_is_wrong_is_named(opened, root, mark, changes, message):
    file = opened(mark, **changes)
    with pytest.raises(DataError, match=message) as caught:
        read(root)
    assert str(caught.value).startswith(str(file))


# --- Label Studio --------------------------------------------------------------------------------


@pytest.fixture
def tasks(root: Path) -> Callable[..., Path]:
    """Writes an export of one task."""

    def written(*results: Json, **changes: Any) -> Path:
        empty(root / "train" / "b.png")
        return write(root / "export.json", [task(7, "3f1e2d4c-b.png", *results, **changes)])

    return written


def packed(values: NDArray[np.uint8]) -> list[int]:
    """A brush as Label Studio packs it: runs of one value, and values that stand alone."""
    bits = [f"{len(values):032b}", f"{7:05b}", *(f"{n - 1:04b}" for n in (2, 4, 8, 16))]
    edges = [0, *(np.flatnonzero(np.diff(values)) + 1), len(values)]
    for start, end in itertools.pairwise(edges):
        while start < end:
            count = min(end - start, 2**16)
            which = next(k for k, n in enumerate((2, 4, 8, 16)) if count <= 2**n)
            single = count < 3
            bits.append(f"{0 if single else 1}{which:02b}{count - 1:0{(2, 4, 8, 16)[which]}b}")
            bits += [f"{values[start]:08b}"] * (count if single else 1)
            start += count
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return [int(text[at : at + 8], 2) for at in range(0, len(text), 8)]


def test_all_regions_of_label_studio_are_drawn(tasks, root):
    points = [[100 * x / 60, 100 * y / 40] for x, y in ((10, 5), (30, 5), (30, 25), (10, 25))]
    polygon = {"points": points, "closed": True, "polygonlabels": ["dent"]}
    tasks(region(polygon, kind="polygonlabels"))
    assert difference(alone(root), Box("", 10, 5, 20, 20).pixels()) == 0
    turned = {**hundredths(Box("", 30, 5, 20, 10)), "rotation": 90, "rectanglelabels": ["dent"]}
    tasks(region(turned))
    assert difference(alone(root), Box("", 20, 5, 10, 20).pixels()) == 0
    ellipse = {"x": 50, "y": 50, "radiusX": 1000 / 60, "radiusY": 25, "rotation": 0}
    tasks(region({**ellipse, "ellipselabels": ["dent"]}, kind="ellipselabels"))
    assert difference(alone(root), DISC) < 20
    colours = np.zeros((40, 60, 4), np.uint8)
    colours[DISC] = (255, 13, 7, 255)
    brush = {"format": "rle", "rle": packed(colours.ravel()), "brushlabels": ["dent"]}
    tasks(region(brush, kind="brushlabels"))
    assert difference(alone(root), DISC) == 0
    assert alone(root).solution.type == "dent"


def test_choices_of_label_studio_are_for_the_picture_or_for_a_region(tasks, root):
    choice = {"type": "choices", "value": {"choices": ["good"]}, "id": "c", "from_name": "verdict"}
    tasks(choice)
    assert alone(root).solution == Solution("No")
    tasks({**choice, "value": {"choices": ["defective"]}})
    assert alone(root).solution == Solution("Yes", None, None)
    spot = region(hundredths(DENT), kind="rectangle")
    of_region = region({**hundredths(DENT), "choices": ["dent"]}, kind="choices")
    tasks(spot, of_region, {**choice, "value": {"choices": ["defective"]}})
    assert alone(root).solution == Solution("Yes", None, "dent")
    assert difference(alone(root), DENT.pixels()) == 0


def test_a_task_that_nobody_has_done_is_not_known_and_an_empty_one_is_good(tasks, root):
    tasks()
    assert alone(root).solution == Solution("No")
    tasks(annotations=[{**task(0, "")["annotations"][0], "was_cancelled": True}])
    empty(root / "train" / "good" / "c.png")
    assert "1 left out that it does not know" in config(root).announce()
    assert [sample.image for sample in read(root)] == [root / "train" / "good" / "c.png"]


def test_pictures_of_label_studio_are_found_by_path_address_and_upload(tasks, root):
    for image in ("/data/local-files/?d=shots%2Ftrain%2Fb.png", "s3://bucket/shots/b.png",
                  "https://host/shots/b.png?sig=1", "/data/upload/1/b.png"):  # fmt: skip
        tasks(data={"image": image, "note": "b"})
        assert alone(root).image == root / "train" / "b.png", image
    tasks(data={"image": "/data/upload/1/z.png"})
    with pytest.raises(DataError, match=r"task 7: the picture .*z\.png' is not below"):
        read(root)
    tasks(data={"left": "a.png", "right": "b.png"})
    with pytest.raises(DataError, match=r"task 7: its data names 2 pictures"):
        read(root)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (
            region({"x": 1, "y": 1, "width": 0, "height": 3, "rectanglelabels": ["a"]}),
            r"covers noth",
        ),
        (
            region({"x": 1, "y": 1, "width": 300, "height": 3, "labels": ["a"]}),
            r"x=180.6 lies outsi",
        ),
        (region({"x": "?", "y": 1, "width": 3, "height": 3, "labels": ["a"]}), r"not all numbers"),
        (region({"points": [[1, 1], [2, 2]], "polygonlabels": ["a"]}), r"a polygon of 2 points"),
        (region({"vertices": [], "vectorlabels": ["a"]}), r"a vector is not read"),
        (
            region({"rle": [0, 0, 0], "format": "rle", "brushlabels": ["a"]}),
            r"its brush is not tha",
        ),
        (
            region({"rle": packed(np.zeros(16, np.uint8)), "brushlabels": ["a"]}),
            r"its brush is not",
        ),
        (region({"x": 1, "y": 1, "width": 3, "height": 3}, image_rotation=90), r"was turned while"),
        (region({"x": 1, "y": 1, "width": 3, "height": 3}, original_width=None), r"are missing"),
    ],
)
def test_a_region_of_label_studio_that_is_wrong_is_named(tasks, root, result, message):
    file = tasks(result)
    with pytest.raises(DataError, match=message) as caught:
        read(root)
    assert str(caught.value).startswith(f"{file}, task 7")


def test_annotations_that_compete_and_other_exports_of_label_studio_are_refused(tasks, root):
    one, other = (task(n, "")["annotations"][0] for n in (1, 2))
    tasks(annotations=[one, other])
    with pytest.raises(DataError, match=r"task 7: 2 annotations\. Mark one as ground truth"):
        read(root)
    tasks(annotations=[one, {**other, "ground_truth": True}])
    assert alone(root).solution == Solution("No")
    write(root / "export.json", [{"image": "b.png", "id": 1, "annotator": 1, "annotation_id": 1}])
    with pytest.raises(DataError, match=r"export\.json: a task has no annotations. .* JSON-MIN"):
        read(root)


def test_every_shape_that_cannot_be_right_is_told_and_hides_no_other(form, root):
    """Several of one picture, too; pictures without such a shape are read."""
    left, right = Box("dent", -30, 3, 6, 4), Box("deep_scratch", 80, 3, 6, 4)
    wrong = Part("test", "f.png", (left, DENT, right))
    WRITERS[form](root, [*PARTS[:5], wrong, Part("train", "g.png", (right,))])
    with faults.gathered() as told:
        read(root)
    assert len(told) == 3 and all("lies outside of the picture" in str(error) for error in told)
    assert sum(" x=-" in str(error) for error in told) == 1
    with pytest.raises(DataError, match="lies outside"):
        read(root)


def test_every_entry_of_an_export_that_cannot_be_right_is_told(root):
    write_coco(root, PARTS)
    for split in ("train", "val"):
        file = root / "annotations" / f"instances_{split}2017.json"
        content = json.loads(file.read_text())
        first = content["annotations"][0]
        content["annotations"] += [{**first, "id": 7, "image_id": 99}, {**first, "id": None}]
        content["annotations"] += [{**first, "id": n, "category_id": 99} for n in (8, 9)]
        file.write_text(json.dumps(content))
    with faults.gathered() as told:
        read(root)
    says = " ".join(map(str, told))
    assert len(told) == 8 and says.count("category 99") == 4 and says.count("has no id") == 2
    assert says.count("no image has the id 99") == 2
