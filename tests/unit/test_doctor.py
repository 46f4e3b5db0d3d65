"""`stage=doctor` finds every fault that was planted, names the file, and says whether to start."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import miniatures
import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console

from iad_r1 import data, stages
from iad_r1.backbones import published as backbones
from iad_r1.command import compose
from iad_r1.data import checkup, faults, images, published
from iad_r1.data.mix import TRAINED, Photo
from iad_r1.data.readers import mvtec
from iad_r1.errors import DataError
from iad_r1.grid import Grid
from iad_r1.planner import widths
from iad_r1.stages import doctor
from iad_r1.store.run_folder import RunFolder
from iad_r1.types import Cut, Question, Sample, Solution

COLUMNS = ("image", "mask", "product", "split", "label", "defect_type")
SIZE = (36, 24)  # width, height
KEYS = ["ok", "pictures", "good", "defective", "kinds", "masks", "skipped", "places", "leaks",
        "near_duplicates", "problems", "classes", "costs"]  # fmt: skip


def picture(path: Path, seed: int, **how: Any) -> Path:
    """Noise of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 255, (SIZE[1], SIZE[0], 3), np.uint8)
    Image.fromarray(values).save(path, **how)
    return path


def mask(path: Path, size: tuple[int, int] = SIZE, marked: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.zeros((size[1], size[0]), np.uint8)
    values[1 : 1 + marked, 1 : 1 + marked] = 255
    Image.fromarray(values).save(path)
    return path


def row(image: str, label: str, split: str, mask: str = "", kind: str = "") -> dict[str, str]:
    return dict(zip(COLUMNS, (image, mask, "bolt", split, label, kind), strict=True))


def write(root: Path, rows: list[dict[str, Any]]) -> None:
    with (root / "meta.csv").open("w", encoding="utf-8", newline="") as lines:
        table = csv.DictWriter(lines, [*COLUMNS])
        table.writeheader()
        table.writerows(rows)


def told(found: dict[str, Any], kind: str) -> list[str]:
    return [problem["say"] for problem in found["problems"] if problem["kind"] == kind]


def sound(root: Path) -> list[dict[str, str]]:
    """Good and defective pictures for every part of a run."""
    rows = []
    for seed, (split, label) in enumerate(
        [(split, label) for split, n in (("train", 6), ("test", 3)) for label in "01"
         for _ in range(n)]
    ):  # fmt: skip
        name = f"{split}_{label}_{seed}.png"
        picture(root / "images" / name, seed)
        rows.append(row(f"images/{name}", label, split))
        if label == "1":
            mask(root / "masks" / name)
            rows[-1] |= {"mask": f"masks/{name}", "defect_type": "scratch"}
    write(root, rows)
    return rows


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sound")
    sound(root)
    return root


def examined(folder: Path, *options: str) -> tuple[dict[str, Any], str]:
    """The content of `doctor.json`, and what was printed."""
    config = compose.compose(["stage=doctor", "tracking=none", *options])
    console = Console(file=io.StringIO(), width=80)
    run = RunFolder.create(folder, "doctor")
    found = doctor.carry_out(config, run, console)
    assert json.loads((run.path / "doctor.json").read_text()) == found
    assert isinstance(console.file, io.StringIO)
    return found, console.file.getvalue()


def photos(root: Path, out: Path, *options: str) -> tuple[dict[str, Any], str]:
    return examined(out, "data=photos", f"data.root={root}", *options)


def test_a_sound_folder_may_train_and_is_counted(clean, tmp_path):
    (clean / ".DS_Store").write_bytes(b"of another system")
    (clean / "notes.txt").write_text("taken on a Monday")
    found, text = photos(clean, tmp_path)
    assert list(found) == KEYS
    assert found["ok"] and not found["problems"]
    assert (found["pictures"], found["good"], found["defective"]) == (18, 9, 9)
    assert found["kinds"] == {"scratch": 9} and found["places"] == {"top left": 9}
    assert found["masks"] == {"used": 9, "unmatched": 0, "suspect": 0}
    assert found["skipped"] == {"hidden": 1, "not a picture": 1}  # not the table
    assert "A run on this data may start." in text


def test_every_planted_fault_is_found_with_its_file_and_none_hides_another(tmp_path):
    root = tmp_path / "parts"
    rows = sound(root)
    here, planted = root / "images", []

    def plant(kind: str, name: str, *table: dict[str, str]) -> None:
        planted.append((kind, str(root / name)))
        rows.extend(table)

    plant("missing", "images/gone.png", row("images/gone.png", "0", "train"))
    (here / "half.png").write_bytes(picture(here / "whole.png", 90).read_bytes()[:700])
    (here / "whole.png").unlink()
    plant("unreadable", "images/half.png", row("images/half.png", "0", "train"))
    (here / "words.jpg").write_text("no picture")
    plant("unreadable", "images/words.jpg", row("images/words.jpg", "0", "train"))
    for seed, (kind, size, marked, label) in enumerate(
        [("mask_size", (30, 24), 4, "1"), ("mask_empty", SIZE, 0, "1"), ("mask_on_good", SIZE, 4,
          "0"), ("mask_large", SIZE, 23, "1")], 100
    ):  # fmt: skip
        picture(here / f"{kind}.png", seed)
        mask(root / "masks" / f"{kind}.png", size, marked)
        table = row(f"images/{kind}.png", label, "train", f"masks/{kind}.png")
        plant(kind, f"masks/{kind}.png", table)
    turned = Image.Exif()
    turned[0x0112] = 3
    picture(here / "turned.png", 110, exif=turned)
    mask(root / "masks" / "turned.png")
    plant("mask_turn", "masks/turned.png", row("images/turned.png", "1", "train",
          "masks/turned.png"))  # fmt: skip
    picture(here / "no_mask.png", 111)
    plant("missing", "masks/never_drawn.png", row("images/no_mask.png", "1", "train",
          "masks/never_drawn.png"))  # fmt: skip
    picture(here / "defect" / "fine.png", 112)
    plant("label", "images/defect/fine.png", row("images/defect/fine.png", "0", "train"))
    shutil.copy(here / "train_0_0.png", here / "copy.png")
    plant("duplicate", "images/copy.png", row("images/copy.png", "0", "train"))
    shutil.copy(here / "train_0_1.png", here / "other.png")
    plant("contradiction", "images/other.png", row("images/other.png", "1", "train"))
    Image.open(here / "test_0_12.png").resize((72, 48)).save(here / "leak.png")
    plant("leak", "images/leak.png", row("images/leak.png", "0", "train"))
    plant("listed_twice", "images/train_0_2.png", row("images/train_0_2.png", "0", "train"))
    grey = np.random.default_rng(7).integers(0, 65535, (24, 36), np.uint16)
    Image.fromarray(grey).save(here / "deep.png")
    plant("reading", "images/deep.png", row("images/deep.png", "0", "train"))
    plant("layout", "meta.csv", row("images/deep.png", "perhaps", "train"))
    plant("layout", "meta.csv", row("images/deep.png", "0", "sometimes"))
    write(root, rows)
    mask(root / "masks" / "left_over.png")

    found, text = photos(root, tmp_path, "stage.shown=50")
    told = Counter((problem["kind"], problem["file"]) for problem in found["problems"])
    told[("reading", str(here / "turned.png"))] = 0  # it is told beside its mask's
    assert not Counter(planted) - told
    assert +told == Counter(planted)
    assert not found["ok"]
    assert found["masks"] == {"used": 14, "unmatched": 1, "suspect": 5}
    assert found["leaks"] == 1
    for problem in found["problems"]:
        assert problem["stops"] == (problem["kind"] in checkup.STOPPING)
        assert problem["say"].endswith(".") and Path(problem["file"]).name in problem["say"]
    whole = " ".join(text.split())
    assert all(Path(file).name in whole for _, file in planted)
    assert "No run on this data can start" in whole and str(root) not in whole


def test_a_folder_that_lacks_defects_to_train_on_tests_only(tmp_path):
    root = tmp_path / "mvtec" / "bottle"
    for i, kind in enumerate(("train/good", "test/good", "test/cut") * 3):
        picture(root / kind / f"{i:03}.png", i)
    found, text = photos(root.parent, tmp_path)
    (problem,) = found["problems"]
    assert problem["kind"] == "parts" and not found["ok"]
    assert "The train part of the folder holds no defective pictures." in " ".join(text.split())
    tested = ["benchmark=mvtec", f"benchmark.mvtec.root={root.parent}"]
    assert examined(tmp_path, *tested)[0]["ok"]


def test_too_few_pictures_for_validation_are_said_before_a_run_does(tmp_path):
    root = tmp_path / "parts"
    rows = sound(root)
    kept = [r for r in rows if r["split"] == "test" or r["image"] in {
        "images/train_0_0.png", "images/train_1_6.png"}]  # fmt: skip
    write(root, kept)
    found, _ = photos(root, tmp_path)
    assert [problem["kind"] for problem in found["problems"]] == ["parts"]
    assert "validation" in found["problems"][0]["say"]


def test_masks_without_a_picture_and_formats_that_are_not_read_are_each_named(tmp_path):
    root = tmp_path / "bolt"
    for i in range(4):
        for kind in ("train/good", "train/dent", "test/good", "test/dent"):
            picture(root / kind / f"{i}.png", 10 * i + len(kind))
    for name in ("0_mask", "7_mask"):
        mask(root / "ground_truth" / "dent" / f"{name}.png")
    for name in ("a.heic", "b.heic"):
        (root / "train" / "good" / name).write_bytes(b"of a telephone")
    found, _ = photos(root, tmp_path)
    layout = [Path(p["file"]).name for p in found["problems"] if p["kind"] == "layout"]
    assert layout == ["7_mask.png", "a.heic", "b.heic"]
    assert found["masks"]["unmatched"] == 1 and found["skipped"]["format not read"] == 2


def test_a_folder_that_cannot_be_looked_into_is_not_left_out_in_silence(tmp_path, monkeypatch):
    root = tmp_path / "plates"
    for seed in range(40):
        split, kind = ("train", "test")[seed % 2], ("good", "cut")[seed // 2 % 2]
        picture(root / "plate" / split / kind / f"{seed}.png", seed)
    (root / "lost+found").mkdir()
    miniatures.refuse_to_list(monkeypatch, "lost+found")
    assert photos(root, tmp_path)[0]["ok"]
    miniatures.refuse_to_list(monkeypatch, "cut")
    found, _ = photos(root, tmp_path)
    assert not found["ok"] and "cut cannot be looked into" in told(found, "layout")[0]
    with pytest.raises(DataError, match="cut cannot be looked into"):
        data.for_run(compose.compose(["stage=sft", "tracking=none", "data=photos",
                                      f"data.root={root}"]))  # fmt: skip


def test_what_is_left_alone_is_named_by_where_it_lies_below_the_root(tmp_path):
    root = tmp_path / "thumbnails" / "masks" / "parts"
    sound(root)
    picture(root / "images" / "unlisted.png", 90)
    mask(root / "Ground Truth" / "left_over.png")
    found, _ = photos(root, tmp_path)
    assert found["skipped"] == {"mask without picture": 1, "not listed": 1}


def test_the_same_file_twice_is_named_where_a_part_of_it_is_the_picture(tmp_path):
    file = picture(tmp_path / "a.png", 1)
    copy = Path(shutil.copy(file, tmp_path / "b.png"))
    source = checkup.Source("benchmark.d", mvtec.Settings(name="mvtec", root=str(tmp_path),
                            variant="fixed"))  # fmt: skip
    for path in (file, copy):
        sample = Sample(path.name, "d", "test", "bolt", Cut(path, (0, 0, 9, 9)), Solution("No"))
        source.looks.append(checkup.Look(sample, None, None))
    checkup.opened(source, Grid(3, 3), "centroid_largest", 1, lambda: None)
    checkup.compared(source, checkup.distinct(source))
    (problem,) = [p for p in source.problems if p.kind == "duplicate"]
    assert {problem.file, problem.beside} == {str(file), str(copy)}
    assert "Cut(" not in problem.say


def test_a_root_that_is_missing_is_answered_with_where_to_get_the_set(tmp_path):
    found, text = examined(tmp_path, "benchmark=mpdd", f"benchmark.mpdd.root={tmp_path}/mpdd")
    (problem,) = found["problems"]
    assert not found["ok"] and problem["kind"] == "layout"
    assert "github.com/stepanje/MPDD" in problem["say"] and "CC BY-NC-SA 4.0" in problem["say"]
    assert "bracket_black/" in " ".join(text.split())


def test_the_drawn_world_has_no_files_and_is_sound(tmp_path):
    sizes = [f"data.sizes.{part}=24" for part in ("sft", "rl", "validation", "test")]
    found, _ = examined(tmp_path, "data=synthetic", "data.image_size=48", *sizes)
    assert found["ok"] and found["pictures"] == 6 * 24 and found["skipped"] == {}


def test_names_that_look_like_markup_are_printed_as_they_are(tmp_path):
    root = tmp_path / "parts"
    rows = [*sound(root), row("images/[red]a.png", "0", "train")]
    write(root, rows)
    assert "[red]a.png" in "".join(photos(root, tmp_path)[1].split())


def test_the_exit_code_says_whether_a_run_may_start_and_no_torch_is_loaded_for_it(
    clean, tmp_path, repository
):
    root = Path(shutil.copytree(clean, tmp_path / "broken"))
    (root / "images" / "train_0_0.png").unlink()
    with (root / "meta.csv").open("a", encoding="utf-8") as table:
        table.write("images/train_0_1.png,,bolt,train,perhaps,\n")
    options = ["stage=doctor", "tracking=none", "data=photos", f"data.root={root}"]
    command = [sys.executable, str(repository / "run.py"), *options]
    environment = {**os.environ, "PYTHONPATH": str(repository), "PYTHONPROFILEIMPORTTIME": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    assert done.returncode == doctor.UNFIT == 1
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "numpy" in loaded and not loaded & {"torch", "transformers", "matplotlib"}
    (file,) = tmp_path.rglob("doctor.json")
    found = json.loads(file.read_text())
    assert [problem["kind"] for problem in found["problems"]] == ["layout", "missing"]
    assert json.loads((file.parent / "manifest.json").read_text())["status"] == "finished"
    sane = compose.compose([*options[:-1], f"data.root={clean}"])
    assert stages.find("doctor").run(sane, RunFolder.create(tmp_path, "sane")) == 0


def test_outside_of_the_doctor_the_first_fault_ends_the_reading():
    with pytest.raises(DataError, match="first"), faults.of_one():
        raise DataError("first")
    with faults.gathered() as found:
        for name in ("first", "second"):
            with faults.of_one():
                raise DataError(name)
        raise DataError("the end")
    assert [str(error) for error in found] == ["first", "second", "the end"]


# --- what is worth knowing -----------------------------------------------------------------------


def test_the_line_that_is_named_places_a_type_in_the_vocabulary(tmp_path, repository):
    root = tmp_path / "parts"
    rows = sound(root)
    rows[-1]["defect_type"] = "deep scratch"
    rows[-2]["defect_type"] = "wobble"
    write(root, rows)
    found, _ = photos(root, tmp_path)
    assert found["ok"] and len(told(found, "type")) == 2
    (say,) = (say for say in told(found, "type") if "deep scratch" in say)
    line, *where = re.findall(r'"(.+?)" under groups > (.+?) > classes > (.+?) > types', say)[0]
    own = yaml.safe_load((repository / "iad_r1/rewards/vocabularies/default.yaml").read_text())
    own["groups"][where[0]]["classes"][where[1]]["types"] |= yaml.safe_load(line)
    own["groups"]["structural"]["classes"]["damage"]["types"] |= {"wobble": []}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(own))
    again, _ = photos(root, tmp_path, f"rewards.vocabulary={tmp_path}/own.yaml")
    assert not told(again, "type")


def test_counts_are_held_against_the_published_ones(tmp_path, monkeypatch):
    root = tmp_path / "mpdd"
    for i, kind in enumerate(("bracket_black/test/good", "bracket_black/test/hole",
                              "tubes/test/good", "tubes/test/anomalous")):  # fmt: skip
        picture(root / kind / "000.png", i)
    options = ["benchmark=mpdd", f"benchmark.mpdd.root={root}"]
    found, _ = examined(tmp_path, *options)
    assert found["ok"]
    says = " ".join(told(found, "count"))
    assert "bracket black: 1 good and 1 defective here, published are 32 good and 47" in says
    assert "connector: 0 good and 0 defective here, published are 30 good and 14" in says
    two = {"": (2, 2), "bracket black": (1, 1), "tubes": (1, 1)}
    monkeypatch.setattr(published, "variants", lambda name: {"in miniature": two})
    assert not told(examined(tmp_path, *options)[0], "count")


def test_the_published_counts_are_those_of_the_papers_lists(shared):
    names = {"DAGM": "dagm", "DTD-Synthetic": "dtd", "MPDD": "mpdd", "SDD": "sdd",
             "MVTec-AD(DS-MVTec)": "mvtec", "VisA": "visa"}  # fmt: skip
    seen = 0
    with (shared / "data" / "iadr1_test_counts.csv").open(newline="") as lines:
        for line in csv.DictReader(lines):
            name, product = names[line["dataset"]], line["class"].replace("_", " ")
            if (name, product) == ("sdd", "electrical commutators"):
                continue  # its only class: the total
            product = "" if product == "TOTAL" else product
            counts = int(line["normal"]), int(line["anomalous"])
            assert counts in [known.get(product) for known in published.variants(name).values()]
            seen += 1
    assert seen == 34
    for name in names.values():
        for known in published.variants(name).values():
            classes = [counts for product, counts in known.items() if product]
            if classes:
                assert tuple(map(sum, zip(*classes, strict=True))) == known[""]


def test_a_model_sees_a_picture_as_its_processor_scales_it():
    qwen, clip, tilings, intern = (
        widths.widths_of(backbones.read(name)["config"])
        for name in ("qwen25vl_3b", "llava15_7b", "llava_ov_05b", "internvl25_4b")
    )
    assert widths.shown(qwen, 448, 448, None) == widths.Shown(256, 448**2, 256)
    limited = widths.shown(qwen, 2000, 1000, 480_000)
    assert 0.9 * 480_000 < limited.pixels <= 480_000 and limited.fine == limited.pixels / 28**2
    assert widths.shown(clip, 336, 672, None) == widths.Shown(576, 336 * 672, 24 * 48, 0.5)
    enlarged = widths.shown(tilings, 300, 200, None)
    assert enlarged.pixels == pytest.approx(384 * 256) and enlarged.fine < enlarged.tokens
    assert widths.shown(intern, 896, 448, None) == widths.Shown(3 * 256, 2 * 448**2, 2 * 256)
    assert widths.shown_tiny(448, 448, 9216) == widths.Shown(9, 96**2, 9)


def test_defects_that_a_model_cannot_see_are_named_with_what_is_left_of_them(tmp_path):
    root = tmp_path / "parts"
    rows = sound(root)
    large = Image.fromarray(np.random.default_rng(5).integers(0, 255, (480, 720, 3), np.uint8))
    large.save(root / "images" / "large.png")
    mask(root / "masks" / "large.png", (720, 480), marked=12)
    rows.append(row("images/large.png", "1", "train", "masks/large.png", "scratch"))
    write(root, rows)
    found, text = photos(root, tmp_path)
    (say,) = told(found, "small_defect")
    # 144 of 720 x 480 pixels, in a picture of 3 x 2 tokens of 32 x 32
    assert f"{144 / 345600 * 6144:.1f} pixels and {144 / 345600 * 6:.3f} tokens" in say
    assert "images/large.png" in say and "tiny (SC-GRPO)" in say
    assert found["costs"]["tiny (SC-GRPO)"]["too_small"] == 1
    assert found["costs"]["qwen25vl_3b"]["too_small"] == 0  # 16 pixels are just enough
    assert found["costs"]["qwen25vl_3b"]["tokens"] == [6, 6, 26 * 17]
    assert found["costs"]["llava15_7b"]["cut_off"] == pytest.approx(1 / 3, abs=0.01)
    assert "qwen2vl_2b" in text and "too small to be seen" in " ".join(text.split())


def test_a_split_that_will_be_drawn_is_no_problem(tmp_path):
    for label in ("ok", "ng"):
        for i in range(8):
            picture(tmp_path / "parts" / label / f"{i}.png", 2 * i + (label == "ok"))
    found, text = photos(tmp_path / "parts", tmp_path)
    assert found["ok"] and "may start" in text and not told(found, "parts")


def test_a_product_that_shows_its_label_by_what_it_is_is_named(tmp_path):
    root = tmp_path / "parts"
    rows = sound(root)
    for seed in range(60, 65):
        picture(root / "images" / f"nut_{seed}.png", seed)
        rows.append(row(f"images/nut_{seed}.png", "0", "train") | {"product": "nut"})
    write(root, rows)
    found, _ = photos(root, tmp_path)
    (say,) = told(found, "balance")
    assert found["ok"] and "nut has no defective pictures in train" in say


# --- the page, and between data sets -------------------------------------------------------------


def test_the_page_shows_the_pictures_and_no_name_of_a_file_is_taken_for_markup(tmp_path):
    root = tmp_path / "parts"
    rows = sound(root)
    shutil.copy(root / "images" / "train_0_0.png", root / "images" / "<b>&copy.png")
    mask(root / "masks" / "<i>.png", (30, 24))
    picture(root / "images" / "off.png", 80)
    rows += [
        row("images/<b>&copy.png", "0", "train", kind="")
        | {"product": "<script>alert(1)</script>"},
        row("images/off.png", "1", "train", "masks/<i>.png", "'\"wobble"),
        row("images/<gone>.png", "0", "train"),
    ]
    write(root, rows)
    photos(root, tmp_path)
    (file,) = tmp_path.rglob("doctor.html")
    html = file.read_text(encoding="utf-8")
    for name in ("<b>&copy", "<i>.png", "<script>alert", "<gone>", "'\"wobble"):
        assert name not in html
    for name in ("&lt;b&gt;&amp;copy.png", "&lt;i&gt;.png", "&lt;script&gt;", "&lt;gone&gt;"):
        assert name in html
    # a copy beside its original, a mask beside its picture, and a picture of an unknown type
    assert html.count("data:image/jpeg;base64,") == 5
    assert "No run on this data can start: 2 problems to mend." in html
    assert "http" not in html and len(html) < 100_000


@pytest.mark.slow
def test_the_page_opens_in_a_browser_and_runs_no_script_that_a_name_holds(tmp_path, browser_page):
    script = "<script>document.title='taken'</script>"
    root = tmp_path / "parts"
    rows = sound(root)
    called = script.replace("/", "")  # a file cannot hold that
    shutil.copy(root / "images" / "train_0_0.png", root / "images" / f"{called}.png")
    mask(root / "masks" / "off.png", (30, 24))
    picture(root / "images" / "off.png", 80)
    long = "a" * 200
    rows += [
        row(f"images/{called}.png", "0", "train"),
        row("images/off.png", "1", "train", "masks/off.png", "wobble") | {"product": script},
        row("images/gone.png", "0", "train") | {"product": long},
    ]
    write(root, rows)
    photos(root, tmp_path)
    (file,) = tmp_path.rglob("doctor.html")
    for width in (1280, 390):
        for scheme in ("light", "dark"):
            browser_page.emulate_media(color_scheme=scheme)
            browser_page.set_viewport_size({"width": width, "height": 800})
            browser_page.goto(file.as_uri())
            assert browser_page.title().startswith("doctor-")
            assert not browser_page.query_selector("script")
            assert browser_page.evaluate("document.documentElement.scrollWidth") == width
            broken = "[...document.images].filter(i => !i.naturalWidth).length"
            assert not browser_page.evaluate(broken) and browser_page.query_selector("img")
    assert browser_page.get_by_role("cell", name=script, exact=True).count() == 1
    assert browser_page.locator(".card", has_text=f"{called}.png").count()


def test_training_pictures_that_a_benchmark_tests_are_leaks(clean, tmp_path):
    root = tmp_path / "mvtec" / "bolt"
    for i, kind in enumerate(("test/good", "test/cut")):
        picture(root / kind / "000.png", 90 + i)
    shutil.copy(clean / "images" / "train_0_3.png", root / "test" / "good" / "001.png")
    found, _ = photos(clean, tmp_path, "benchmark=mvtec", f"benchmark.mvtec.root={root.parent}")
    (say,) = told(found, "leak")
    assert found["leaks"] == 1 and "train_0_3.png" in say and "test/good/001.png" in say
    assert {row["source"] for row in found["classes"]} == {"data", "benchmark.mvtec"}


def test_training_pictures_that_another_part_keeps_apart_are_leaks_as_a_run_counts_them(tmp_path):
    root = miniatures.expert_ad(tmp_path / "Expert-AD").parent
    plates = root / "plates" / "plate"
    for seed in range(30):
        split, kind = ("train", "validation", "test")[seed // 10], ("good", "cut")[seed % 2]
        picture(plates / split / kind / f"{seed}.png", seed)
    clips = sorted((root / "Expert-AD").rglob("audiojack_*_NG*.jpg"))[:2]
    shutil.copy(plates / "test" / "cut" / "21.png", clips[0])
    shutil.copy(plates / "validation" / "cut" / "11.png", clips[1])
    parts = ["data=mix", "data/parts=[expert_ad,photos]", f"benchmark.root={root}",
             f"data.parts.photos.root={root}/plates"]  # fmt: skip
    found, _ = examined(tmp_path, *parts)
    assert [problem["file"] for problem in found["problems"] if problem["kind"] == "leak"] == [
        str(clip) for clip in clips
    ]
    assert "the test picture" in told(found, "leak")[0]
    assert "the validation picture" in told(found, "leak")[1]
    config = compose.compose(["stage=pipeline", "backbone=qwen25vl_3b", "tracking=none", *parts])
    counts = data.for_run(config).counts
    assert counts["expert_ad.leaks"] == found["leaks"] == 2
    assert counts["expert_ad.leaks.photos"] == counts["expert_ad.leaks.validation.photos"] == 1


def test_what_nearly_equals_what_is_that_of_comparing_all_with_all(tmp_path):
    rng = np.random.default_rng(5)
    scenes = rng.random((12, 256)) < 0.5
    bits = scenes[rng.integers(0, 12, 60)] ^ (rng.random((60, 256)) < 0.012)  # 3 of 256 differ
    parts = [("train", "test", "validation")[i] for i in rng.integers(0, 3, 60)]
    seen = [
        Photo(Sample(str(i), "d", part, "bolt", tmp_path / f"{i:02}.png", Solution("No")), hashed,
              None, None)
        for i, (part, hashed) in enumerate(zip(parts, bits, strict=True))
    ]  # fmt: skip
    differ = (bits[:, None] ^ bits[None]).sum(axis=2)
    alike = differ <= checkup.NEAR_BITS
    assert 60 < alike.sum() < 60 * 60 and ((differ > 0) & alike).any()
    settings = mvtec.Settings(name="mvtec", root=str(tmp_path), variant="fixed")
    source, own = checkup.Source("data", settings), seen[:40]
    source.looks = [checkup.Look(photo.sample, photo, SIZE) for photo in own]
    kept = [i for i, part in enumerate(parts) if part not in TRAINED]
    checkup.compared(source, own, [seen[i] for i in kept if i >= 40])
    expected = {
        str(seen[i].sample.image): str(seen[min(j for j in kept if alike[i, j])].sample.image)
        for i in range(40)
        if parts[i] in TRAINED and any(alike[i, j] for j in kept)
    }
    assert {p.file: p.beside for p in source.problems if p.kind == "leak"} == expected
    assert source.leaks == len(expected) > 5
    assert source.near_duplicates == sum(alike[i, :40].sum() > 1 for i in range(40)) > 5


def test_a_picture_that_several_questions_ask_about_is_opened_and_counted_once(tmp_path):
    file = tmp_path / "a.png"
    Image.fromarray(np.full((24, 36), 40_000, np.uint16)).save(file)
    asked = [
        Sample(f"d/{i}", "d", "test", "bolt", file, Solution(letter),
               question=Question("?", {"A": "yes", "B": "no"}))
        for i, letter in enumerate("ABA")
    ]  # fmt: skip
    source = checkup.Source("benchmark.d", mvtec.Settings(name="mvtec", root=str(tmp_path),
                            variant="fixed"))  # fmt: skip
    source.looks = [checkup.Look(sample, None, None) for sample in asked]
    opened: list[None] = []
    checkup.opened(source, Grid(3, 3), "centroid_largest", 2, lambda: opened.append(None))
    assert len(opened) == len(checkup.to_open(source)) == 1
    assert [look.photo.sample.id for look in source.looks if look.photo] == ["d/0", "d/1", "d/2"]
    checkup.compared(source, checkup.distinct(source))
    assert not [p for p in source.problems if p.kind == "duplicate"] and not source.near_duplicates
    assert checkup.content([source], {})["pictures"] == 1
    (problem,) = [p for p in source.problems if p.kind == "reading"]
    assert "other" not in problem.say


def test_a_question_of_anomaly_detection_says_whether_its_picture_is_defective(tmp_path):
    root = miniatures.mmad(tmp_path / "mmad")
    found, _ = examined(tmp_path, "benchmark=mmad", f"benchmark.mmad.root={root}")
    assert (found["pictures"], found["good"], found["defective"]) == (8, 4, 4)
    assert [(row["good"], row["defective"]) for row in found["classes"]] == [(1, 1)] * 4


def test_the_letters_of_two_questions_about_equal_pictures_contradict_nothing(tmp_path):
    root = miniatures.anomaly_r1(tmp_path / "r1")
    folder = root / "few-shot-dataset/VisA/candle/test/bad"
    shutil.copy(folder / "train0.JPG", folder / "train1.JPG")
    found, _ = examined(tmp_path, "data=anomaly_r1", f"data.root={root}")
    assert found["ok"] and len(told(found, "duplicate")) == 1
    assert "Take one of them out" in told(found, "duplicate")[0]


def test_a_part_without_defects_may_train_where_another_part_has_some(tmp_path):
    for i in range(24):
        picture(tmp_path / "lids" / "good" / f"{i}.png", i)
    root = f"root={tmp_path}/lids"
    sizes = [f"data.parts.synthetic.sizes.{part}=8" for part in ("sft", "rl", "validation", "test")]
    both = ["data=mix", "data/parts=[synthetic,photos]", f"data.parts.photos.{root}", *sizes]
    found, _ = examined(tmp_path, *both)
    assert found["ok"], told(found, "parts")
    assert not examined(tmp_path, "data=photos", f"data.{root}")[0]["ok"]


CASES = {"mask-inverted": "masks_inverted", "leak-plain-surface": "leak"}


@pytest.mark.parametrize("name", CASES)
def test_what_is_wrong_with_a_folder_is_said(name, shared, tmp_path):
    folder = shared / "cases" / name
    if not folder.is_dir():
        pytest.skip("the case is not here")
    found, _ = photos(folder, tmp_path)
    kinds = Counter(problem["kind"] for problem in found["problems"])
    assert kinds[CASES[name]] and found["ok"] == (CASES[name] not in checkup.STOPPING)


def test_real_photographs_pass(shared, tmp_path):
    folder = shared / "data" / "real" / "ballscrew"
    if not folder.is_dir():
        pytest.skip("the photographs are not here")
    found, _ = photos(folder, tmp_path)
    assert found["ok"] and found["skipped"] == {"not a picture": 2}
    assert (found["pictures"], found["masks"]["used"], found["leaks"]) == (288, 139, 0)


def test_soft_masks_floating_point_and_very_large_jpegs_are_named_with_how_they_are_read(
    tmp_path, monkeypatch
):
    root = tmp_path / "parts"
    rows = sound(root)
    soft = np.zeros((24, 36), np.uint8)
    soft[2:20, 2:20] = np.arange(18)[:, None] + 1
    Image.fromarray(soft).save(next(root / r["mask"] for r in rows if r["mask"]))
    point = np.random.default_rng(9).random((24, 36), np.float32)
    Image.fromarray(point).save(root / "images" / "point.tif")
    picture(root / "images" / "large.jpg", 91)
    monkeypatch.setattr(images, "LARGE", 36 * 24 - 1)
    rows += [row(f"images/{name}", "0", "train") for name in ("point.tif", "large.jpg")]
    write(root, rows)
    found, _ = photos(root, tmp_path)
    assert found["ok"]
    says = " ".join(told(found, "reading"))
    assert "point.tif has values with a point" in says and "large.jpg has more than" in says
    assert "a mask of many grey values" in says
    threshold = "data.masks_threshold=0.01"
    assert "many grey" not in " ".join(told(photos(root, tmp_path, threshold)[0], "reading"))
