"""`stage=expert_ad`: lists in the official formats that our own reader reads back as they were."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from iad_r1 import data
from iad_r1.command import compose
from iad_r1.errors import ConfigError, DataError, MismatchError
from iad_r1.expert import card, lists
from iad_r1.expert.choice import Candidate, References, candidates, spread
from iad_r1.grid import parse_cells
from iad_r1.loops import expert_ad
from iad_r1.settings.config import Config
from iad_r1.store.run_folder import RunFolder
from iad_r1.types import Sample, Solution

SIDE = 48
PRODUCTS = ("brass nut", "printed label")


def photographs(root: Path) -> Path:
    """Two products, each with 8 good and 8 defective training pictures, and two of each to test.
    One defective picture has no mask, one no type; one equals a test picture."""
    root.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    rows = ["image,mask,product,split,label,defect_type"]

    def add(name: str, product: str, split: str, kind: str, masked: bool, seed: int) -> None:
        values = np.random.default_rng(seed).integers(60, 200, (8, 8, 3), np.uint8)
        picture = np.asarray(Image.fromarray(values).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        picture = picture.copy()
        mask = np.zeros((SIDE, SIDE), np.uint8)
        top, left = rng.integers(0, SIDE - 10, 2)
        if kind:
            mask[top : top + 8, left : left + 10] = 255
            picture[mask > 0] = 20
        Image.fromarray(picture).save(root / f"{name}.png")
        if kind and masked:
            Image.fromarray(mask).save(root / f"{name}_mask.png")
        shown = f"{name}_mask.png" if kind and masked else ""
        label = 1 if kind else 0
        rows.append(f"{name}.png,{shown},{product},{split},{label},{kind or 'good'}")

    for p, product in enumerate(PRODUCTS):
        for split, n in (("train", 8), ("test", 2)):
            for i in range(n):
                seed = 1000 * p + 100 * (split == "test") + i
                add(f"{split}_good_{p}{i}", product, split, "", False, seed)
                kind = ("scratch", "stain")[i % 2]
                add(f"{split}_bad_{p}{i}", product, split, kind, True, seed + 50)
    add("no_mask", PRODUCTS[0], "train", "scratch", False, 9001)
    add("no_type", PRODUCTS[0], "train", "unspecified", True, 9002)
    add("leaked", PRODUCTS[1], "train", "", False, 1100)  # as test_good_10 was
    (root / "meta.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return root


def made(*more: str) -> Config:
    return compose.compose(["stage=expert_ad", "data=photos", "tracking=none", *more])


def build(config: Config, outputs: Path) -> Path:
    folder = RunFolder.create(outputs, "built")
    folder.write_json("config.json", config.model_dump(mode="json"))
    expert_ad.run(config, folder)
    return folder.path


def read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1]]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # ids hold the name of the folder, and decide what is in which list
    return photographs(tmp_path_factory.mktemp("made") / "photos0")


@pytest.fixture(scope="module")
def config(photos: Path) -> Config:
    return made(f"data.root={photos}", "stage.arms=true", "data.near_duplicate_bits=0")


@pytest.fixture(scope="module")
def run(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(config, tmp_path_factory.mktemp("outputs"))


@pytest.fixture(scope="module")
def out(run: Path) -> Path:
    return run / expert_ad.DATASET


def read_back(out: Path, photos: Path, shots: str = "") -> dict[str, Sequence[Sample]]:
    settings = [
        f"data.root={out}", f"data.images={photos}", f"data.sft=sft{shots}.json",
        f"data.rl=grpo{shots}.json", "stage.tasks=[sft,grpo]", "data=expert_ad",
    ]  # fmt: skip
    found = data.for_run(compose.compose(["backbone=qwen25vl_3b", "tracking=none", *settings]))
    return {"sft": found.sft, "grpo": found.rl}


@pytest.mark.parametrize("shots", [0, 1])
def test_what_is_built_is_read_back_as_the_same_samples_and_texts(out, photos, shots):
    items = {part: [r for r in lines(out / "items.jsonl") if r["list"] == part]
             for part in ("sft", "grpo")}  # fmt: skip
    found = read_back(out, photos, "_1shot" * shots)
    for part, samples in found.items():
        assert len(samples) == len(items[part]) > 4
        for sample, item in zip(samples, items[part], strict=True):
            defective = item["location"] is not None
            assert sample.image == photos / item["picture"]
            assert sample.product == item["product"]
            assert sample.question.text is None  # it asks in the prompt's own words
            assert sample.solution == (
                Solution("Yes", item["location"], item["type"]) if defective else Solution("No")
            )
            assert sample.target == (item["target"] if part == "sft" else None)
            assert sample.shots == shots
            if shots:
                assert sample.references[0].image == photos / item["reference"]["picture"]


def test_a_record_of_every_kind_is_as_iad_r1_writes_it(out):
    sft, grpo = read(out / "sft.json"), read(out / "grpo.json")
    good = next(row for row in sft if row["messages"][1]["content"].endswith("No</answer>"))
    bad = next(row for row in sft if row["messages"][1]["content"].endswith("Yes</answer>"))
    assert list(good) == ["images", "messages", "product"]
    assert isinstance(good["images"], str)
    assert [message["role"] for message in bad["messages"]] == ["user", "assistant"]
    asked = "<image>\nAre there any defects in the query image?"
    assert {row["messages"][0]["content"] for row in sft} == {asked}
    assert "</think><location>" in bad["messages"][1]["content"]
    assert "</location><type>" in bad["messages"][1]["content"]
    assert "</type><answer>Yes</answer>" in bad["messages"][1]["content"]
    assert list(grpo[0]) == ["id", "image", "problem", "solution", "product"]
    assert {row["problem"] for row in grpo} == {"Are there any defects in the query image?"}
    assert "<answer>No</answer>" in {row["solution"] for row in grpo}
    tags = {row["solution"].partition(">")[0] for row in grpo if "Yes" in row["solution"]}
    assert tags == {"<location"}
    shown = read(out / "sft_1shot.json")[0]
    assert len(shown["images"]) == 2
    assert shown["messages"][0]["content"].count("<image>") == 2
    assert len(read(out / "grpo_1shot.json")[0]["image"]) == 2


def test_every_place_agrees_with_the_mask_that_is_on_disk(out, photos):
    places = 0
    for item in lines(out / "items.jsonl"):
        if item["location"] is not None:
            mask = np.asarray(Image.open(photos / item["picture"].replace(".png", "_mask.png")))
            rows, cols = mask.nonzero()
            x, y = (cols.mean() + 0.5) / SIDE, (rows.mean() + 0.5) / SIDE
            assert parse_cells(item["location"], "3x3") == {int(y * 3) * 3 + int(x * 3)}
            places += 1
    assert places >= 8


def test_what_cannot_be_written_about_is_kept_with_its_reason(out):
    left_out = {Path(row["picture"]).stem: row["rejected"][0]
                for row in lines(out / "rejected.jsonl")}  # fmt: skip
    assert {name: why["reason"] for name, why in left_out.items()} == {
        "no_mask": "no mask", "no_type": "no type", "leaked": "leak",
    }  # fmt: skip
    assert left_out["leaked"]["found"] == "it nearly equals a test picture of seen"


def test_the_lists_share_no_picture_and_show_no_reference_of_the_other_or_of_the_test(out):
    shown: dict[str, set[str]] = {"sft": set(), "grpo": set()}
    for item in lines(out / "items.jsonl"):
        shown[item["list"]] |= {item["picture"], item["reference"]["picture"]}
        assert item["reference"]["picture"] != item["picture"]
        assert "_good_" in item["reference"]["picture"]
    assert shown["sft"].isdisjoint(shown["grpo"])
    assert not [name for names in shown.values() for name in names if name.startswith("test")]


def test_the_hubs_library_opens_every_list(out, tmp_path):
    from datasets import load_dataset

    card = (out / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "unknown"
    names = [found["config_name"] for found in front["configs"]]
    assert names == ["sft", "sft_1shot", "grpo", "grpo_1shot"]
    for found in front["configs"]:
        file = str(out / found["data_files"])
        opened = load_dataset("json", data_files=file, split="train", cache_dir=str(tmp_path))
        assert list(opened) == read(Path(file))
    shown = load_dataset(str(out), "grpo_1shot", split="train", cache_dir=str(tmp_path))
    assert list(shown) == read(out / "grpo_1shot.json")  # by the card, as from the hub


def test_the_card_and_llama_factorys_entry_say_what_is_there(out):
    info = read(out / "dataset_info.json")
    arms = ("coarse", "1x1", "2x2", "4x4", "5x5", "answers", 20, 40, 60, 80)
    assert set(info) == {
        f"expert_ad_sft{name}" for name in ("", "_1shot", *(f"_{a}" for a in arms))
    }
    assert {out / entry["file_name"] for entry in info.values()} == {
        *(out / "arms").glob("sft_*.json"), out / "sft.json", out / "sft_1shot.json",
    }  # fmt: skip
    for entry in info.values():
        assert entry["columns"].items() >= {"messages": "messages", "images": "images"}.items()
        assert set(entry["columns"]) <= set(read(out / entry["file_name"])[0])
    card = (out / "README.md").read_text(encoding="utf-8")
    for needed in ("| no mask | 1 |", "distinct-2", "Unknown: say it before"):
        assert needed in card


@pytest.mark.parametrize(
    ("total", "word"),
    [(0, "n<1K"), (999, "n<1K"), (1_000, "1K<n<10K"), (150_000, "100K<n<1M"),
     (1_000_000, "1M<n<10M"), (2 * 10**9, "1B<n<10B")],
)  # fmt: skip
def test_the_card_calls_a_size_as_the_hub_does(total, word):
    assert card.size(total) == word


def test_the_lines_are_read_once(run, tmp_path, monkeypatch):
    read: list[str] = []
    parse = json.loads

    def counted(line: str) -> Any:
        read.append(line)
        return parse(line)

    monkeypatch.setattr(lists.json, "loads", counted)
    drafts = run / expert_ad.DRAFTS
    lists.write(drafts, tmp_path / "again", [0, 1], "3x3", with_arms=True)
    assert len(read) == len(lines(drafts))


def test_a_picture_like_one_to_validate_with_is_said_to_be_that(config):
    found = data.for_run(config)
    photo = found.sft[0]
    leaked = replace(found, leaks={"validation.photos": frozenset({photo.id})})
    why = expert_ad._left_out(config, leaked, [photo])[photo.id]
    assert why.found == "it nearly equals a validation picture of photos"


def test_arms_hold_the_same_pictures_and_are_nested(out):
    whole = read(out / "sft.json")
    pictures = [row["images"] for row in whole]

    def answers(arm: str) -> list[str]:
        return [row["messages"][1]["content"] for row in read(out / "arms" / f"sft_{arm}.json")]

    for arm in ("answers", "coarse", "1x1", "2x2", "4x4", "5x5"):
        assert [row["images"] for row in read(out / "arms" / f"sft_{arm}.json")] == pictures
    assert set(answers("answers")) == {"<answer>Yes</answer>", "<answer>No</answer>"}
    assert not (out / "arms" / "sft_3x3.json").exists()
    assert any("<type>contamination</type>" in text for text in answers("coarse"))
    assert not any("<type>stain</type>" in text for text in answers("coarse"))
    assert any(re.search(r"<location>row \d of 5, column \d of 5<", t) for t in answers("5x5"))
    assert {"whole image"} == {text.partition("<location>")[2].partition("<")[0]
                               for text in answers("1x1") if "<location>" in text}  # fmt: skip
    sizes = []
    for share in (20, 40, 60, 80):
        part = read(out / "arms" / f"sft_{share}.json")
        assert part == whole[: len(part)]
        sizes.append(len(part))
    assert sizes == [round(len(whole) * share / 100) for share in (20, 40, 60, 80)]


def content(run: Path) -> Mapping[str, bytes]:
    return {
        file.relative_to(run).as_posix(): file.read_bytes()
        for file in sorted(run.rglob("*"))
        if file.is_file() and file.name not in ("manifest.json", ".lock", "summary.json")
    }


@pytest.mark.parametrize("share", [0.5, 1.0])  # a torn line; all of them, before the lists
def test_a_run_that_goes_on_ends_with_the_same_files(run, config, tmp_path, share):
    folder = RunFolder.create(tmp_path, "built")
    folder.write_json("config.json", config.model_dump(mode="json"))
    whole = (run / expert_ad.DRAFTS).read_text(encoding="utf-8")
    (folder.path / expert_ad.DRAFTS).write_text(whole[: int(share * len(whole))], encoding="utf-8")
    expert_ad.run(config, folder)
    assert content(folder.path) == content(run)


def test_a_run_does_not_go_on_with_other_pictures(run, config, tmp_path):
    folder = RunFolder.create(tmp_path, "built")
    rows = (run / expert_ad.DRAFTS).read_text(encoding="utf-8").splitlines(keepends=True)
    (folder.path / expert_ad.DRAFTS).write_text("".join(rows[1:3]), encoding="utf-8")
    with pytest.raises(MismatchError, match="line 1: it is about"):
        expert_ad.run(config, folder)


def test_pictures_that_are_in_no_file_are_given_one(tmp_path):
    sizes = [f"data.sizes.{part}={n}" for part, n in
             (("sft", 4), ("rl", 4), ("validation", 2), ("test", 2))]  # fmt: skip
    drawn = ["data=synthetic", "data.image_size=32", *sizes]
    built = build(compose.compose(["stage=expert_ad", "tracking=none", *drawn]), tmp_path)
    out = built / expert_ad.DATASET
    found = read_back(out, out, "_1shot")  # so few need references of their own
    assert (len(found["sft"]), len(found["grpo"])) == (4, 4)
    first = read(out / "sft.json")[0]
    with Image.open(out / first["images"]) as picture:
        assert picture.size == (32, 32)
    assert first["images"].startswith("pictures/synthetic/sft/")


# --- which pictures, without any -----------------------------------------------------------------


def sample(id: str, answer: str = "No", split: str = "train", product: str = "nut") -> Sample:
    solution = Solution("Yes", "center", "crack") if answer == "Yes" else Solution("No")
    return Sample(id, "made", split, product, Path(f"{id}.png"), solution)


def test_groups_and_views_of_one_object_are_in_one_list():
    views = [sample(f"audiojack_{n:04}_NG_BX_C{c}_2023", "Yes") for n in range(12) for c in (1, 2)]
    plain = [sample(f"p{i}") for i in range(24)]
    samples, groups = [*views, *plain], [*range(24), *(24 + i // 4 for i in range(24))]
    found, both = candidates(samples, groups, 0.5, seed=0)
    assert not both
    parts: dict[object, set[str]] = {}
    for one in found:
        name = one.sample.id
        key = name.partition("_NG")[0] if "_NG" in name else int(name[1:]) // 4
        parts.setdefault(key, set()).add(one.list)
    assert {len(lists) for lists in parts.values()} == {1}
    assert sum(one.list == "grpo" for one in found) == 24


def test_what_a_data_set_has_put_into_both_lists_stays_in_the_first():
    samples = [sample("a", split="sft"), sample("b", split="rl"), sample("c", split="rl")]
    found, both = candidates(samples, [0, 0, 1], 0.5, seed=0)
    assert [(one.sample.id, one.list) for one in found] == [("a", "sft"), ("c", "grpo")]
    assert both["b"].reason == "in both lists"


def test_every_beginning_of_the_order_holds_its_share_of_every_stratum_in_any_order_of_arrival():
    ones = [Candidate(sample(f"g{i}"), "sft", i) for i in range(60)]
    ones += [Candidate(sample(f"d{i}", "Yes"), "sft", 60 + i) for i in range(30)]
    order = spread(ones, seed=0)
    assert spread(reversed(ones), seed=0) == order
    assert spread(ones, seed=1) != order
    for n in (9, 30, 60):
        defective = sum(one.sample.solution.answer == "Yes" for one in order[:n])
        assert abs(defective - n / 3) <= 1


def test_a_reference_is_of_the_same_list_product_and_camera_and_of_another_group():
    names = ("nut_0001_OK_C1_a", "nut_0002_OK_C1_a", "nut_0003_OK_C2_a", "nut_0004_OK_C1_a")
    asked = Candidate(sample(names[0]), "sft", 0)
    good = [asked, Candidate(sample(names[1]), "sft", 0), Candidate(sample(names[2]), "sft", 2),
            Candidate(sample(names[3]), "grpo", 3)]  # fmt: skip
    offered: list[Sequence[Sample]] = []

    def first(_: Sample, others: Sequence[Sample], most: int) -> Sequence[Sample]:
        offered.append(others)
        return others[:most]

    assert References(good, {}, first).find(asked) is None
    fitting = replace(good[1], group=1)
    assert References([*good, fitting], {}, first).find(asked) == fitting.sample
    assert offered[-1] == [fitting.sample]
    given = sample("given")
    assert References(good, {asked.sample.id: (given,)}, first).find(asked) == given


# --- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("teacher=nobody", "teacher=nobody: there is no such option. teacher is one of: .*rules"),
        ("stage.words=[30,20]", "no text has that few"),
        ("stage.shots=[1,1]", "names a number twice"),
        ("grid.rows=4", "facts know grids from 1x1 to 5x5"),
    ],
)
def test_settings_that_cannot_work_are_refused(typed, message):
    with pytest.raises(ConfigError, match=message):
        compose.compose(["stage=expert_ad", typed])


def test_a_product_that_is_tested_on_is_left_out_of_zero_shot_training(photos, tmp_path):
    config = made(
        f"data.root={photos}", "protocol=zero_shot", "benchmark=photos",
        f"benchmark.photos.root={photos}", "data.near_duplicate_bits=0",
    )  # fmt: skip
    with pytest.raises(DataError, match=r"PA-SFT has 0 good and 0 defective.* test product 27"):
        build(config, tmp_path)


def test_lists_without_masks_hold_no_defects_and_are_refused(out, photos, tmp_path):
    settings = [
        f"data.root={out}",
        f"data.images={photos}",
        "data.sft=sft.json",
        "data.rl=grpo.json",
    ]
    config = compose.compose(["stage=expert_ad", "data=expert_ad", "tracking=none", *settings])
    with pytest.raises(DataError, match=r"PA-SFT has 6 good and 0 defective.* no mask 12"):
        build(config, tmp_path)
