"""Every benchmark in miniature, laid out as it is on disk, odd corners included."""

from __future__ import annotations

import csv
import json
import math
import os
import random
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import test_data_exports as exports
from hypothesis import given
from hypothesis import strategies as st
from miniatures import (
    anomaly_r1,
    dagm,
    dagm_flat,
    ds_mvtec,
    dtd,
    expert_ad,
    goodsad,
    industrial_test,
    like_mvtec,
    listed,
    mmad,
    mpdd,
    mvtec_ad2,
    mvtec_loco,
    picture,
    real_iad,
    sdd,
    sdd_originals,
    visa,
)
from PIL import Image

from iad_r1 import data
from iad_r1.command import compose
from iad_r1.data import images
from iad_r1.errors import ConfigError, DataError
from iad_r1.settings.config import Config
from iad_r1.settings.data import ReaderSettings, reader
from iad_r1.types import Mask, Sample, Solution

ANY = "electrical commutators"
# of a benchmark: how it is laid out, and how often each product, answer, place and type is tested
MARKED = "top right"
LAYOUTS: dict[str, tuple[str, Callable[[Path], None], dict[tuple[str, str, Any, Any], int]]] = {
    "mpdd": ("mpdd", mpdd, {
        ("bracket brown", "Yes", MARKED, "bend and parts mismatch"): 2,
        ("tubes", "Yes", MARKED, None): 2,
        ("bracket brown", "No", None, None): 2, ("tubes", "No", None, None): 2,
    }),
    "dtd": ("dtd", dtd, {
        ("Woven 001", "Yes", MARKED, None): 2, ("Woven 001", "No", None, None): 2,
        ("Woven 068", "Yes", MARKED, None): 2, ("Woven 068", "No", None, None): 2,
    }),
    "goodsad": ("goodsad", goodsad, {
        ("drink can", "Yes", MARKED, "surface damage"): 2, ("drink can", "No", None, None): 2,
    }),
    "mvtec_loco": ("mvtec_loco", mvtec_loco, {
        ("pushpins", "Yes", MARKED, "logical anomalies"): 2, ("pushpins", "No", None, None): 2,
    }),
    "mvtec_ad2": ("mvtec_ad2", mvtec_ad2, {
        ("can", "Yes", MARKED, None): 2, ("can", "No", None, None): 2,
    }),
    "dagm": ("dagm", dagm, {
        ("Class2", "Yes", MARKED, None): 2, ("Class2", "No", None, None): 2,
        ("Class10", "Yes", MARKED, None): 2, ("Class10", "No", None, None): 2,
    }),
    "dagm, test half alone": ("dagm", dagm_flat, {
        ("Class1", "Yes", None, None): 2, ("Class1", "No", None, None): 2,
    }),
    "sdd": ("sdd", sdd, {
        (ANY, "Yes", MARKED, None): 2, (ANY, "No", None, None): 2,
    }),
    "mvtec in MMAD": ("mvtec", ds_mvtec, {
        ("bottle", "Yes", MARKED, "broken"): 2, ("bottle", "No", None, None): 2,
        ("grid", "Yes", MARKED, "broken"): 2, ("grid", "No", None, None): 2,
    }),
    "visa, rearranged": ("visa", visa, {
        ("candle", "Yes", MARKED, None): 2, ("candle", "No", None, None): 2,
        ("pcb1", "Yes", MARKED, None): 2, ("pcb1", "No", None, None): 2,
    }),
    "real_iad": ("real_iad", real_iad, {
        ("toy brick", "Yes", MARKED, "scratch"): 2, ("toy brick", "No", None, None): 2,
    }),
}  # fmt: skip


@cache
def composed(benchmark: str, *more: str) -> Config:
    return compose.compose(
        ["stage=evaluate", "backbone=qwen25vl_3b", "tracking=none", f"benchmark={benchmark}",
         f"benchmark.{benchmark}.root=x", *more]
    )  # fmt: skip


def made(benchmark: str, root: Path, *more: str) -> Config:
    config = composed(benchmark, *more)
    there = config.benchmark[benchmark].model_copy(update={"root": str(root)})
    return config.model_copy(update={"benchmark": {benchmark: there}})


def settings_of(name: str, root: Path) -> ReaderSettings:
    """The settings of a reader as shipped, but for where it lies."""
    if name not in TRAINING:
        lists = [f"benchmark.{name}.lists={root}/lists"] if name == "industrial_test" else []
        return made(name, root, *lists).benchmark[name]
    chosen = ["backbone=qwen25vl_3b", "stage.tasks=[sft]", f"data={name}", f"data.root={root}"]
    return compose.compose(chosen).data


def asked(config: Config) -> list[Sample]:
    return [sample for part in data.for_run(config).test.values() for sample in part]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_benchmark_is_read_in_its_layout(layout, tmp_path):
    name, lay_out, wanted = LAYOUTS[layout]
    lay_out(tmp_path / "set")
    found = asked(made(name, tmp_path / "set"))
    truths = [(s.product, s.solution) for s in found]
    assert Counter((p, t.answer, t.location, t.type) for p, t in truths) == wanted
    assert len({sample.id for sample in found}) == len(found)
    for sample in found:
        references = 0 if layout == "dagm, test half alone" else 2 + (name == "real_iad")
        assert len(sample.references) == references, sample.id
        assert all(r.solution.answer == "No" for r in sample.references)
        assert {r.product for r in sample.references} <= {sample.product}


class Shuffled:
    """What `os.scandir` gives, in another order."""

    def __init__(self, entries: Any, stream: random.Random) -> None:
        with entries:
            found = list(entries)
        stream.shuffle(found)
        self.entries = iter(found)

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        return next(self.entries)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        pass


TRAINING = {"expert_ad": expert_ad, "anomaly_r1": anomaly_r1}
TREES = {
    **{layout: (name, lay_out) for layout, (name, lay_out, _) in LAYOUTS.items()},
    "sdd as published": ("sdd", sdd_originals),
    "mmad": ("mmad", mmad),
    **{name: (name, lay_out) for name, lay_out in TRAINING.items()},
    "photos": ("photos", mpdd),
    "industrial_test": ("industrial_test", industrial_test),
    **{
        form: ("photos", partial(getattr(exports, f"write_{form}"), parts=exports.PARTS))
        for form in ("coco", "yolo", "voc", "labelme", "label_studio", "cvat")
    },
}


@pytest.mark.parametrize("layout", TREES)
def test_any_order_of_files_on_disk_gives_the_same_samples_in_the_same_order(layout, tmp_path):
    name, lay_out = TREES[layout]
    lay_out(tmp_path / "set")
    settings = settings_of(name, tmp_path / "set")
    before = list(reader(name).read(settings, 0))
    listed, scanned = os.listdir, os.scandir

    @hypothesis.settings(max_examples=5, database=None)
    @given(st.randoms(use_true_random=False))
    def unchanged(stream: random.Random) -> None:
        def shuffled(path: Any = ".") -> list[str]:
            names = listed(path)
            stream.shuffle(names)
            return names

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "listdir", shuffled)
            patch.setattr(os, "scandir", lambda path=".": Shuffled(scanned(path), stream))
            assert list(reader(name).read(settings, 0)) == before

    unchanged()


@pytest.mark.parametrize("name", sorted({name for name, _, _ in LAYOUTS.values()}))
def test_where_a_benchmark_is_obtained_is_said_if_it_is_not_there(name, tmp_path):
    with pytest.raises(DataError, match="nowhere is not a folder") as caught:
        asked(made(name, tmp_path / "nowhere"))
    source = vars(reader(name))["SOURCE"]
    assert source in str(caught.value)
    assert "Unpack it so that the folder holds" in source and (
        "CC BY" in source or "licen" in source
    )
    (tmp_path / "another").mkdir()  # a folder that holds nothing of it
    with pytest.raises(DataError) as caught:
        asked(made(name, tmp_path / "another"))
    assert source in str(caught.value)
    with pytest.raises(ConfigError) as refused:
        compose.compose([f"benchmark={name}"])
    assert source in str(refused.value)


def test_the_metal_nuts_among_the_pills_are_left_out_on_demand(tmp_path):
    for i in range(26):
        picture(tmp_path / "pill" / "image" / "good" / f"{i:03}.png")
    picture(tmp_path / "pill" / "image" / "crack" / "000.png")
    found = {
        variant: asked(made("mvtec", tmp_path, f"benchmark.mvtec.variant={variant}"))
        for variant in ("published", "fixed")
    }
    assert [len(samples) for samples in found.values()] == [27, 6]
    kept = {Path(s.id).name for s in found["fixed"] if s.solution.answer == "No"}
    assert kept == {f"{i:03}.png" for i in range(21, 26)}
    # a copy that was mended already is as it is
    for i in range(21):
        (tmp_path / "pill" / "image" / "good" / f"{i:03}.png").unlink()
    assert len(asked(made("mvtec", tmp_path, "benchmark.mvtec.variant=fixed"))) == 6


def test_a_label_that_its_table_denies_is_refused(tmp_path):
    dagm(tmp_path)
    (tmp_path / "Class2" / "Test" / "Label" / "0003_label.PNG").unlink()
    with pytest.raises(DataError, match=r"0003\.PNG: Labels\.txt says defective, but it has no"):
        asked(made("dagm", tmp_path))


def test_a_list_that_says_too_little_is_named(tmp_path):
    real_iad(tmp_path)
    file = tmp_path / "realiad_jsons" / "realiad_jsons" / "toy_brick.json"
    rows = json.loads(file.read_text())
    rows["test"][2]["anomaly_class"] = "XX"
    file.write_text(json.dumps(rows))
    with pytest.raises(DataError, match=r"toy_brick\.json, test 2: anomaly_class='XX'"):
        asked(made("real_iad", tmp_path))
    del rows["test"][2]["anomaly_class"]
    file.write_text(json.dumps(rows))
    with pytest.raises(DataError, match=r"toy_brick\.json, test 2 has no anomaly_class"):
        asked(made("real_iad", tmp_path))


def test_the_original_kolektor_pictures_are_cut_in_three(tmp_path):
    sdd_originals(tmp_path)
    dataset = data.for_run(made("sdd", tmp_path))
    found = {sample.id: sample for sample in dataset.test["sdd_ours"]}
    defective = {id: s.solution.location for id, s in found.items() if s.solution.answer == "Yes"}
    assert defective == {
        "sdd/kos01_Part0_1": "middle left",
        "sdd/kos02_Part1_0": "bottom right", "sdd/kos02_Part1_1": "top right",
        "sdd/kos02_Part3_2": "bottom right",
    }  # fmt: skip
    assert len(found) == 4 + 5  # a quarter of the 20 good parts
    for sample in found.values():
        height = 11 if sample.id.endswith("_2") else 10
        shown, marked = images.open_image(sample), images.open_mask(sample)
        assert shown.size == images.size(sample) == (24, height)
        assert marked is None or marked.shape == (height, 24)
        assert len(sample.references) == 4 and not {r.id for r in sample.references} & set(found)
    whole = Image.open(tmp_path / "kos02" / "Part1.jpg").convert("RGB")
    for k in range(2):
        part = np.asarray(images.open_image(found[f"sdd/kos02_Part1_{k}"]))
        assert np.array_equal(part, np.asarray(whole)[10 * k : 10 * k + 10])


def test_the_good_parts_that_test_are_those_of_the_released_script_in_the_order_of_names(tmp_path):
    sdd_originals(tmp_path)
    parts = list(reader("sdd").read(settings_of("sdd", tmp_path), 0))
    good = sorted(part.id for part in parts if part.solution.answer == "No")
    # what train_test_split(test_size=0.25, random_state=42) does to a list
    drawn = np.random.RandomState(42).permutation(len(good))[: math.ceil(len(good) / 4)]
    tested = {p.id for p in parts if p.split == "test.ours" and p.solution.answer == "No"}
    assert tested == {good[i] for i in drawn}
    assert parts == list(reader("sdd").read(settings_of("sdd", tmp_path), 1))


def test_a_kolektor_picture_without_its_label_is_named(tmp_path):
    sdd_originals(tmp_path)
    (tmp_path / "kos01" / "Part2_label.bmp").unlink()
    with pytest.raises(DataError, match=r"kos01/Part2\.jpg: its label Part2_label\.bmp is n"):
        asked(made("sdd", tmp_path))
    (tmp_path / "kos01").rename(tmp_path / "test")
    with pytest.raises(DataError, match="no pictures"):
        asked(made("sdd", tmp_path))


# --- odd corners ---------------------------------------------------------------------------------


def test_the_masks_of_grid_are_found_under_their_misspelt_name(tmp_path):
    ds_mvtec(tmp_path / "set")
    shutil.rmtree(tmp_path / "set" / "grid" / "mask")
    found = [s for s in asked(made("mvtec", tmp_path / "set")) if s.product == "grid"]
    masked = {file.parts[-3] for s in found if isinstance(s.mask, Mask) for file in s.mask.files}
    assert masked == {"rbg_mask"}
    assert Counter(s.solution.location for s in found) == {MARKED: 2, None: 2}


@pytest.mark.parametrize("name", ["mpdd", "mvtec", "visa", "goodsad"])
def test_good_in_a_path_says_nothing_of_a_picture(name, tmp_path):
    root = tmp_path / "good" / "set"
    like_mvtec(root / "good_parts", "scratch")
    found = asked(made(name, root))
    assert Counter((s.product, s.solution.answer) for s in found) == {
        ("good parts", "Yes"): 2, ("good parts", "No"): 2,
    }  # fmt: skip


@pytest.mark.parametrize("size", ["256", "512", "raw"])
def test_real_iad_is_read_in_the_size_that_is_asked(size, tmp_path):
    real_iad(tmp_path)
    with pytest.raises(DataError, match=rf"realiad_{size} is not there; .* holds realiad_1024"):
        asked(made("real_iad", tmp_path, f"benchmark.real_iad.size='{size}'"))
    (tmp_path / "realiad_1024").rename(tmp_path / f"realiad_{size}")
    assert len(asked(made("real_iad", tmp_path, f"benchmark.real_iad.size='{size}'"))) == 4


def test_a_view_that_does_not_show_the_defect_of_its_object_is_good(tmp_path):
    real_iad(tmp_path)
    labels = {
        s.id.partition("toy_brick/")[2]: s.solution for s in asked(made("real_iad", tmp_path))
    }
    assert labels.pop("NG/HS/S0123/toy_brick_0123_NG_HS_C1_20231027.jpg") == Solution("No")
    assert labels.pop("OK/S0009/toy_brick_0009_OK_C2_20231027.jpg") == Solution("No")
    assert set(labels.values()) == {Solution("Yes", MARKED, "scratch")} and len(labels) == 2


# --- the test set of the papers -------------------------------------------------------------------


def papers(root: Path, lists: Path, *more: str) -> Config:
    options = ["stage=evaluate", "backbone=qwen25vl_3b", "tracking=none"]
    chosen = ["benchmark=industrial_test", f"benchmark.industrial_test.root={root}"]
    return compose.compose([*options, *chosen, f"benchmark.industrial_test.lists={lists}", *more])


def test_the_lists_of_the_papers_say_what_is_true(tmp_path):
    shown = [f"DTD/Woven_001/template/{i:03}.png" for i in range(2)]
    rows = [
        ("DTD/Woven_001/test/bad/001.png", "A", shown),
        ("DTD/Woven_001/test/good/000.png", "B", shown),
        ("DTD/Woven_001/test/good/001.png", "A", shown),  # the list counts, not the folder
    ]
    listed(tmp_path / "lists", "DTD", rows)
    listed(tmp_path / "lists", "SDD", [("SDD/test/good/kos01_Part0_0.png", "B", [])])
    for path in [*(row[0] for row in rows), *shown, "SDD/test/good/kos01_Part0_0.png"]:
        picture(tmp_path / path)
    dataset = data.for_run(papers(tmp_path, tmp_path / "lists"))
    parts = {name: list(part) for name, part in dataset.test.items()}
    assert list(parts) == ["industrial_test_DTD", "industrial_test_SDD"]
    (kos,) = parts["industrial_test_SDD"]
    assert (kos.solution.answer, kos.product, kos.references) == ("No", "SDD", ())
    woven = parts["industrial_test_DTD"]
    assert [s.solution.answer for s in woven] == ["Yes", "No", "Yes"]
    assert {s.product for s in woven} == {"Woven 001"}
    assert [[r.id.partition("/")[2] for r in s.references] for s in woven] == [shown] * 3
    similar = papers(tmp_path, tmp_path / "lists", "benchmark.industrial_test.templates=similar")
    assert {len(s.references) for s in data.for_run(similar).test["industrial_test_DTD"]} == {1}
    first = data.for_run(papers(tmp_path, tmp_path / "lists", "evaluate.limit=1")).test
    assert {name: part[0] for name, part in first.items()} == {
        name: part[0] for name, part in parts.items()
    }, "the first of each list, not of all"
    assert [len(part) for part in first.values()] == [1, 1]


def test_a_question_that_is_not_the_papers_is_refused(tmp_path):
    listed(tmp_path, "DTD", [("DTD/a/test/bad/001.png", "C", [])])
    with pytest.raises(
        DataError, match=r"test_DTD_format\.json, DTD/a/test/bad/001\.png: expected"
    ):
        data.for_run(papers(tmp_path, tmp_path))


def test_the_lists_give_the_published_counts(tmp_path, shared):
    """Read from lists as the papers have them, of which only the paths and answers are at hand."""
    manifest = shared / "data" / "iadr1_test_manifest.csv"
    if not manifest.is_file():
        pytest.skip("the lists are not here")
    by_set: dict[str, list[tuple[str, str, list[str]]]] = defaultdict(list)
    with manifest.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            first = row["first_random_template"]
            answer = "A" if row["anomalous"] == "1" else "B"
            by_set[row["dataset"]].append((row["image_path"], answer, [first] if first else []))
    for name, rows in by_set.items():
        listed(tmp_path, name, rows)
    settings = papers(tmp_path, tmp_path).benchmark["industrial_test"]
    found = list(reader("industrial_test").read(settings, 0))
    assert [s.id.partition("/")[2] for s in found] == [
        path for name in sorted(by_set) for path, _, _ in by_set[name]
    ]
    counts = Counter((s.split, s.solution.answer) for s in found)
    assert counts == {
        ("test.DAGM", "No"): 6996, ("test.DAGM", "Yes"): 1054, ("test.DTD", "No"): 357,
        ("test.DTD", "Yes"): 947, ("test.MPDD", "No"): 176, ("test.MPDD", "Yes"): 282,
        ("test.SDD", "No"): 286, ("test.SDD", "Yes"): 54,
    }  # fmt: skip


def test_the_lists_and_counts_of_the_papers_come_from_a_tree_too(tmp_path, shared):
    """The readers of DAGM, DTD-Synthetic, MPDD and KolektorSDD on the files that the lists name."""
    manifest = shared / "data" / "iadr1_test_manifest.csv"
    if not manifest.is_file():
        pytest.skip("the lists are not here")
    with manifest.open(encoding="utf-8", newline="") as file:
        wanted = {row["image_path"]: row["anomalous"] == "1" for row in csv.DictReader(file)}
    for folder in {(tmp_path / path).parent for path in wanted}:
        folder.mkdir(parents=True)
    for path in wanted:
        (tmp_path / path).touch()  # a reader names pictures, and opens none
    chosen = compose.compose(
        ["stage=evaluate", "backbone=qwen25vl_3b", "benchmark=[dagm,dtd,mpdd,sdd]",
         f"benchmark.root={tmp_path}"]
    ).benchmark  # fmt: skip
    found = [sample for s in chosen.values() for sample in reader(s.name).read(s, 0)]
    answers = {str(Path(str(s.image)).relative_to(tmp_path)): s.solution.answer for s in found}
    assert answers == {path: "Yes" if bad else "No" for path, bad in wanted.items()}
    counts = Counter((s.dataset, s.product, s.solution.answer) for s in found)
    published = shared / "data" / "iadr1_test_counts.csv"
    with published.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == "test json"]
    for row in rows:
        name = row["dataset"].partition("-")[0].lower()
        total = row["class"] == "TOTAL" or name == "sdd"
        product = None if total else row["class"].replace("_", " ")
        for answer, column in (("No", "normal"), ("Yes", "anomalous")):
            got = sum(
                n for (of, what, said), n in counts.items()
                if (of, said) == (name, answer) and product in (None, what)
            )  # fmt: skip
            assert got == int(row[column]), row
    assert len(rows) == 33
