"""Every benchmark in miniature, laid out as it is on disk, odd corners included."""

from __future__ import annotations

import csv
import json
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from iad_r1 import data
from iad_r1.command import compose
from iad_r1.errors import DataError
from iad_r1.settings.config import Config
from iad_r1.settings.data import reader
from iad_r1.types import Sample

SIZE = 24


def picture(path: Path) -> Path:
    """Noise of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(zlib.crc32("/".join(path.parts[-4:]).encode()))
    Image.fromarray(noise.integers(0, 255, (SIZE, SIZE, 3), np.uint8)).save(path)
    return path


def mask(path: Path, value: int | tuple[int, int, int] = 255) -> Path:
    """A mark at the top right."""
    path.parent.mkdir(parents=True, exist_ok=True)
    marked = Image.new("L" if isinstance(value, int) else "RGB", (SIZE, SIZE))
    marked.paste(value, (18, 1, 22, 5))
    marked.save(path)
    return path


def like_mvtec(folder: Path, kind: str, suffix: str = ".png", masks: str = "{}_mask.png") -> None:
    """Two good pictures to train on, two of each kind to test on."""
    for i in range(2):
        picture(folder / "train" / "good" / f"{i:03}{suffix}")
        picture(folder / "test" / "good" / f"{i:03}{suffix}")
        picture(folder / "test" / kind / f"{i:03}{suffix}")
        mask(folder / "ground_truth" / kind / masks.format(f"{i:03}"))


def mpdd(root: Path) -> None:
    like_mvtec(root / "bracket_brown", "bend_and_parts_mismatch")
    like_mvtec(root / "tubes", "anomalous", masks="{}.png")


def dtd(root: Path) -> None:
    like_mvtec(root / "Woven_001", "bad")
    like_mvtec(root / "Woven_068", "bad")
    for path in (root / "Woven_068" / "test" / "good").iterdir():
        path.rename(path.with_name(f"mesh_{path.name}"))
    picture(root / "Woven_001" / "template" / "000.png")


def goodsad(root: Path) -> None:
    like_mvtec(root / "drink_can", "surface_damage", ".jpg", "{}.png")


def mvtec_loco(root: Path) -> None:
    like_mvtec(root / "pushpins", "logical_anomalies", masks="{}/000.png")
    mask(root / "pushpins" / "ground_truth" / "logical_anomalies" / "000" / "001.png")
    picture(root / "pushpins" / "validation" / "good" / "000.png")
    (root / "pushpins" / "defects_config.json").write_text("[]")


def mvtec_ad2(root: Path) -> None:
    for i in range(2):
        for part in ("train/good", "validation/good", "test_public/good", "test_public/bad"):
            picture(root / "can" / part / f"{i:03}_regular.png")
        mask(root / "can/test_public/ground_truth/bad" / f"{i:03}_regular_mask.png")
        picture(root / "can" / "test_private" / f"{i:03}_regular.png")


def dagm(root: Path) -> None:
    for folder in (root / "Class2", root / "Class10" / "Class10"):
        for half, first in (("Test", 1), ("Train", 576)):
            rows = ["1"]
            for i in range(first, first + 4):
                picture(folder / half / f"{i:04}.PNG")
                flagged = i % 2
                if flagged:
                    mask(folder / half / "Label" / f"{i:04}_label.PNG")
                rows.append(
                    f"{i}\t{flagged}\t{i:04}.PNG\t0\t{i:04}_label.PNG" + "\t" * (1 - flagged)
                )
            (folder / half / "Label" / "Labels.txt").write_text("\n".join(rows))


def dagm_flat(root: Path) -> None:
    for i in range(2):
        for kind in ("good", "defect"):
            picture(root / "Class1" / kind / f"{i:04}.PNG")


def sdd(root: Path) -> None:
    like_mvtec(root, "defect")


def ds_mvtec(root: Path) -> None:
    for category, colour in (("bottle", "rgb_mask"), ("grid", "rbg_mask")):
        for i in range(2):
            for kind in ("good", "broken"):
                picture(root / category / "image" / kind / f"{i:03}.png").with_suffix(
                    ".txt"
                ).write_text("a caption")
            mask(root / category / "mask" / "broken" / f"{i:03}_mask.png", 3)
            mask(root / category / colour / "broken" / f"{i:03}_{colour}.png", (0, 40, 0))
            picture(root.parent / "MVTec-AD" / category / "train" / "good" / f"{i:03}.png")


def real_iad(root: Path) -> None:
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    folder = root / "realiad_1024" / "toy_brick"

    def add(split: str, path: str, kind: str, masked: str | None) -> None:
        picture(folder / path)
        named = mask(folder / masked).relative_to(folder).as_posix() if masked else None
        rows[split].append(
            {"category": "toy_brick", "anomaly_class": kind, "image_path": path, "mask_path": named}
        )

    for i in range(3):
        add("train", f"OK/S000{i}/toy_brick_000{i}_OK_C1_20231027.jpg", "OK", None)
    add("test", "OK/S0009/toy_brick_0009_OK_C2_20231027.jpg", "OK", None)
    # a view that does not show the defect of its object
    add("test", "NG/HS/S0123/toy_brick_0123_NG_HS_C1_20231027.jpg", "OK", None)
    for view in (2, 3):
        stem = f"NG/HS/S0123/toy_brick_0123_NG_HS_C{view}_20231027"
        add("test", f"{stem}.jpg", "HS", f"{stem}.png")
    rows["test"][-1]["mask_path"] = "not/where/it/says.png"  # then the one beside the picture
    lists = root / "realiad_jsons" / "realiad_jsons"
    lists.mkdir(parents=True)
    (lists / "toy_brick.json").write_text(json.dumps({"meta": {"prefix": ""}, **rows}))


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
    "real_iad": ("real_iad", real_iad, {
        ("toy brick", "Yes", MARKED, "scratch"): 2, ("toy brick", "No", None, None): 2,
    }),
}  # fmt: skip


def made(benchmark: str, root: Path, *more: str) -> Config:
    return compose.compose(
        ["stage=evaluate", "backbone=qwen25vl_3b", "tracking=none", f"benchmark={benchmark}",
         f"benchmark.{benchmark}.root={root}", *more]
    )  # fmt: skip


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


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_order_of_files_on_disk_changes_nothing(layout, tmp_path, monkeypatch):
    name, lay_out, _ = LAYOUTS[layout]
    lay_out(tmp_path / "set")
    config = made(name, tmp_path / "set")
    before = data.for_run(config)
    listed, globbed = Path.iterdir, Path.glob
    monkeypatch.setattr(Path, "iterdir", lambda path: reversed(list(listed(path))))
    monkeypatch.setattr(Path, "glob", lambda path, find: reversed(list(globbed(path, find))))
    assert data.for_run(config) == before


@pytest.mark.parametrize("name", sorted({name for name, _, _ in LAYOUTS.values()}))
def test_where_a_benchmark_is_obtained_is_said_if_it_is_not_there(name, tmp_path):
    with pytest.raises(DataError, match="nowhere is not a folder") as caught:
        asked(made(name, tmp_path / "nowhere"))
    assert vars(reader(name))["SOURCE"] in str(caught.value)


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


def test_the_original_kolektor_pictures_are_told_from_the_compiled_ones(tmp_path):
    picture(tmp_path / "kos01" / "Part0.jpg")
    with pytest.raises(DataError, match=r"holds no test/\. It must be compiled, cut in three"):
        asked(made("sdd", tmp_path))


# --- the test set of the papers -------------------------------------------------------------------


def listed(root: Path, name: str, rows: list[tuple[str, str, list[str]]]) -> None:
    content = {
        path: {
            "image_path": path,
            "conversation": [
                {"Question": "Are there any defects in the query image?", "Answer": answer,
                 "Options": {"A": "Yes.", "B": "No."}, "type": "Anomaly Detection"}
            ],
            "similar_templates": shown[:1],
            "random_templates": shown,
        }
        for path, answer, shown in rows
    }  # fmt: skip
    root.mkdir(parents=True, exist_ok=True)
    (root / f"test_{name}_format.json").write_text(json.dumps(content))


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
