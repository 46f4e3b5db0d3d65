"""Predicting, without a model: which pictures, which verdict, which threshold, what is recorded."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from miniatures import refuse_to_list
from PIL import Image

import iad_r1
from iad_r1 import stages
from iad_r1.command import compose
from iad_r1.data.arrivals import arrivals, landing, listed
from iad_r1.errors import ConfigError, DataError
from iad_r1.grid import Grid
from iad_r1.judge.predictions import append
from iad_r1.judge.verdicts import Record, Verdict, judged, unreadable, verdict
from iad_r1.loops.operating_point import described, threshold
from iad_r1.report import inspected
from iad_r1.settings.backbone import HubBackbone
from iad_r1.settings.base import CONF
from iad_r1.settings.config import Config
from iad_r1.settings.rollout import VllmRollout
from iad_r1.store.run_folder import write_json
from iad_r1.types import Prediction

GRID = Grid(3, 3)
VLLM = yaml.safe_load((CONF / "rollout" / "vllm.yaml").read_text(encoding="utf-8"))
YES = "<think>a dent</think><location>top left</location><type>dent</type><answer>Yes</answer>"
NO = "<think>clean</think><answer>No</answer>"


def answer(id: str, gold: str = "no", p_yes: float | None = 0.5, text: str = NO) -> Prediction:
    word = {YES: "yes", NO: "no"}.get(text, "invalid")
    place, kind = ("top left", "dent") if text == YES else (None, None)
    return Prediction(
        id, "photos", "validation_seen", "part", 0, gold, None, None, text, "ok", word, place, kind,
        None, None, p_yes, 5, "stop",
    )  # fmt: skip


def picture(path: Path, value: int = 90) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), (value, value, value)).save(path)
    return path


# --- which pictures ------------------------------------------------------------------------------


def test_files_folders_and_globs_name_pictures_once_and_in_order(tmp_path):
    for name in ("b.png", "a.JPG", "deep/c.png", ".hidden/d.png", "part[1].png"):
        picture(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    named = ["a.JPG", "b.png", "deep/c.png", "part[1].png"]
    assert listed(str(tmp_path)) == [tmp_path / name for name in named]
    assert listed(f"{tmp_path}/*.png") == [tmp_path / "b.png", tmp_path / "part[1].png"]
    several = [f"{tmp_path}/part[1].png", f"{tmp_path}/deep", f"{tmp_path}/**/c.png"]
    assert listed(several) == [tmp_path / "part[1].png", tmp_path / "deep" / "c.png"]
    with pytest.raises(DataError, match=r"nothing\*\.png: this leads to no picture"):
        listed([str(tmp_path / "b.png"), f"{tmp_path}/nothing*.png"])


def test_links_to_folders_are_followed_once_and_what_cannot_be_looked_into_is_named(
    tmp_path, monkeypatch
):
    picture(tmp_path / "far" / "a.png")
    for name in ("watched", "watched/lost+found"):
        (tmp_path / name).mkdir()
    (tmp_path / "watched" / "link").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "back").symlink_to(tmp_path / "watched")
    watched = str(tmp_path / "watched")
    assert listed(watched) == [tmp_path / "watched" / "link" / "a.png"]
    refuse_to_list(monkeypatch, "lost+found")
    assert len(listed(watched)) == 1
    refuse_to_list(monkeypatch, "link")
    with pytest.raises(DataError, match=r"link cannot be looked into \(Permission denied\)"):
        listed(watched)


def test_what_lands_is_handed_out_once_it_rests_oldest_first_and_again_when_it_is_written_again(
    tmp_path,
):
    known: set[Any] = set()
    turns = iter(range(9))

    def meanwhile(_seconds: float) -> None:
        turn = next(turns)
        if turn == 1:
            os.utime(picture(tmp_path / "late.png"), (200, 200))
            os.utime(picture(tmp_path / "z-early.png"), (100, 100))
        if turn == 2:  # it grows between two looks
            with (tmp_path / "late.png").open("ab") as file:
                file.write(b"more")
            os.utime(tmp_path / "late.png", (300, 300))
        if turn == 6:
            os.utime(picture(tmp_path / "first.png", 10), (400, 400))

    os.utime(picture(tmp_path / "first.png"), (50, 50))
    handed = []
    for ready in islice(landing(tmp_path, known.__contains__, 1.0, 0.0, meanwhile), 4):
        handed.append([one.path.name for one in ready])
        known |= {one.key for one in ready}
    assert handed == [["first.png"], ["z-early.png"], ["late.png"], ["first.png"]]
    with pytest.raises(RuntimeError):  # after a restart there is nothing to do: it looks on
        next(landing(tmp_path, known.__contains__, 1.0, 0.0, meanwhile))


def test_a_folder_that_cannot_be_reached_is_looked_at_again(tmp_path, capsys):
    folder, turns = tmp_path / "drive", iter(range(9))

    def meanwhile(_seconds: float) -> None:
        if next(turns) == 1:
            picture(folder / "a.png")

    [[found]] = islice(landing(folder, lambda _: False, 1.0, 0.0, meanwhile), 1)
    assert found.path == folder / "a.png"
    assert capsys.readouterr().out.count("cannot be looked into") == 1


# --- verdicts ------------------------------------------------------------------------------------


def test_the_models_word_decides_unless_there_is_a_threshold():
    yes, no = answer("a", p_yes=0.6, text=YES), answer("b", p_yes=0.4)
    found = [verdict(one, GRID, None, 0.1) for one in (yes, no)]
    assert [v.verdict for v in found] == ["defective", "good"]
    assert (found[0].place, found[0].cells, found[0].type) == ("top left", (0,), "dent")
    assert (found[0].reasoning, found[1].reasoning) == ("a dent", "clean")
    strict = [verdict(one, GRID, 0.7, 0.1) for one in (yes, no)]
    assert [v.verdict for v in strict] == ["good", "good"]
    assert strict[0].place is None and strict[0].cells == ()  # a good part has no place
    assert verdict(no, GRID, 0.4, 0.1).verdict == "defective"  # from it on
    garbage = answer("c", p_yes=None, text="hm")
    assert verdict(garbage, GRID, 0.0, 0.1).verdict == "no valid answer"


def test_a_record_goes_on_after_a_kill_and_the_table_says_the_same(tmp_path):
    found = verdict(answer("/a.png", text=YES), GRID, None, 0.123456)
    first = Record(tmp_path)
    first.add(judged(found, "marked/1.jpg", bytes=1, modified=2))
    first.add(unreadable(Path("/b.png"), "b.png: cannot be read", bytes=0, modified=0))
    with first.lines.open("a") as file:
        file.write('{"picture": "/c.png", "verd')
    first.table.write_text("torn")
    again = Record(tmp_path)
    assert again.rows == first.rows and again.lines.read_text().count("\n") == 2
    again.add(judged(replace(found, picture="/c.png"), None, bytes=1, modified=2))
    assert Record(tmp_path).rows == again.rows
    rows = list(csv.DictReader(again.table.open(encoding="utf-8")))
    assert [row["picture"] for row in rows] == ["/a.png", "/b.png", "/c.png"]
    assert (rows[0]["cells"], rows[0]["seconds"], rows[0]["type"]) == ("0", "0.1235", "dent")
    assert rows[1]["verdict"] == "unreadable" and rows[1]["error"] == "b.png: cannot be read"
    assert [again.count(word) for word in ("defective", "unreadable", "good")] == [2, 1, 0]
    again.lines.write_text('{"verdict": "good"}\n')
    with pytest.raises(DataError, match=r"predictions\.jsonl, line 1: not a verdict"):
        Record(tmp_path)


@pytest.mark.parametrize("kind", ["no place", "a place", "a long one"])
def test_a_line_fits_into_80_columns_and_a_log_is_told_everything(kind):
    place = {"no place": None, "a place": "top left"}.get(kind, "row 2 of 5, column 4 of 5")
    word = "good" if place is None else "defective"
    type = None if place is None else "structural damage of the housing"
    found = Verdict("x", word, 0.734, place, (), type, None, 12.345, "")
    name = "2026-11-27/line 3/camera left/part_000123.png"
    short = inspected.line(found, " 123", name, 80)
    assert len(short) == 80 and short.endswith("12.35 s")
    assert "0.73" in short and "000123.png" in short
    assert ("DEFECTIVE" in short) == (word == "defective")
    low = inspected.line(replace(found, p_yes=4.9e-05), " 123", name, 80)
    assert len(low) == 80 and "5e-05" in low
    whole = inspected.line(found, " 123", name, None)
    assert name in whole and (type or "") in whole


def test_a_marked_picture_is_a_copy_with_the_place_outlined_below_it_the_verdict():
    pixels = np.full((300, 600, 3), 128, np.uint8)
    shown = Image.fromarray(pixels)
    found = verdict(answer("part.png", text=YES), GRID, None, 0.1)
    marked = inspected.marked(shown, found, GRID)
    assert (np.asarray(shown) == 128).all() and marked.size == (600, 384)
    drawn = (np.asarray(marked)[:300] != 128).any(2)
    assert drawn[:100, :200].any() and not drawn[102:].any() and not drawn[:, 202:].any()
    good = inspected.marked(shown, verdict(answer("part.png"), GRID, None, 0.1), GRID)
    assert (np.asarray(good)[:300] == 128).all()
    strip = inspected.marked(Image.new("RGB", (4000, 20)), found, GRID)
    assert strip.size == (1024, 89) and inspected.marked(Image.new("L", (9, 9)), found, GRID)


# --- settings, from the run ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with settings of its own, weights, and validation predictions: of 20 defects one
    is scored 0.1 and the others from 0.30 on, of 20 good ones two are above that."""
    folder = tmp_path_factory.mktemp("run") / "outputs" / "mine" / "2026-01-02_03-04-05"
    made = compose.compose(
        ["stage=sft", "grid=2x2", "evaluate.prompt=base_test", "evaluate.max_tokens=33"]
    )
    write_json(folder / "config.json", made.model_dump(mode="json"))
    write_json(folder / "checkpoints" / "sft" / "config.json", {"model_type": "qwen2_5_vl"})
    rows = [answer(f"d{n}", "yes", 0.1 if n == 0 else 0.29 + n / 100) for n in range(20)]
    rows += [answer(f"g{n}", "no", 0.9 if n < 2 else 0.05) for n in range(20)]
    (folder / "predictions").mkdir()
    append(folder / "predictions" / "sft.validation_seen.0shot.jsonl", rows)
    return folder


@pytest.fixture(scope="module")
def config(run: Path) -> Config:
    """What that run is asked with."""
    return predict(run)


def predict(init: Any, *settings: str) -> Config:
    return compose.compose(["stage=predict", f"init={init}", *settings])


def told(config: Config, **stage: Any) -> Config:
    """The same with other settings of the stage."""
    return config.model_copy(update={"stage": config.stage.model_copy(update=stage)})


def test_the_settings_are_those_of_the_run_but_for_what_is_typed(run, config):
    assert (config.grid.rows, config.evaluate.prompt) == (2, "base_test")
    assert (config.evaluate.max_tokens, config.init) == (33, str(run))
    other = predict(run / "checkpoints" / "sft", "grid=5x5", "evaluate.max_tokens=44")
    assert (other.grid.rows, other.evaluate.max_tokens) == (5, 44)
    assert other.evaluate.prompt == "base_test"
    with pytest.raises(ConfigError, match="the settings are those of that run"):
        predict(run, "recipe=paper", "backbone=qwen25vl_3b")


def test_a_hub_id_brings_the_published_settings_of_its_backbone():
    made = predict("Qwen/Qwen2.5-VL-3B-Instruct")
    assert made.backbone.name == "qwen25vl_3b" and made.engine.precision == "bfloat16"
    assert made.evaluate.max_tokens == 512  # of conf/recipe/paper.yaml
    tuned = predict("someone/IAD-R1-3B", "backbone=qwen25vl_3b")
    assert isinstance(tuned.backbone, HubBackbone)
    assert tuned.backbone.path == "someone/IAD-R1-3B"
    with pytest.raises(ConfigError, match=r"no run folder here\. Known hub ids are .*Qwen2\.5-VL"):
        predict("someone/IAD-R1-3B")


def test_the_threshold_of_a_miss_rate_is_that_of_the_runs_validation_pictures(config):
    value, said = described(told(config, miss_rate=5.0), 0)
    assert value == 0.30
    assert said.split("\n") == [
        "which gave on validation pictures a",
        "miss rate 5.0 % [0.9, 23.6] of 20",
        "overkill rate 10.0 % [2.8, 30.1] of 20",
    ]
    assert threshold(told(config, miss_rate=4.9), 0) == 0.1
    assert threshold(told(config, threshold=0.25), 0) == 0.25
    assert threshold(config, 0) is None


def test_a_threshold_is_chosen_beside_questions_with_options_and_in_older_runs(run, tmp_path):
    mine = tmp_path / "mine"
    shutil.copytree(run, mine)
    choice = replace(answer("q", "A"), answer="A", gold_option="a dent", p_yes=None)
    append(mine / "predictions" / "sft.validation_asked.0shot.jsonl", [choice])
    earlier = json.loads((mine / "config.json").read_text())
    del earlier["evaluate"]["samples"], earlier["evaluate"]["temperature"]
    del earlier["location_format"]
    write_json(mine / "config.json", earlier)
    assert threshold(predict(mine, "miss_rate=5"), 0) == 0.30


def test_a_program_that_would_not_show_the_references_is_refused(run, tmp_path):
    with pytest.raises(ConfigError, match="references with each picture"):
        iad_r1.Inspector(run, f"references={tmp_path}")


def test_a_miss_rate_that_nothing_can_promise_is_refused(run, config, tmp_path):
    mine = tmp_path / "mine"
    shutil.copytree(run, mine)
    file = mine / "predictions" / "sft.validation_seen.0shot.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    asked = told(config, miss_rate=5.0).model_copy(update={"init": str(mine)})

    def refused(config: Config, shots: int = 0) -> str:
        with pytest.raises((ConfigError, DataError)) as caught:
            threshold(config, shots)
        return str(caught.value)

    assert "has none. Run `python run.py stage=evaluate" in refused(asked, shots=1)
    several = config.evaluate.model_copy(update={"samples": 8})
    said = refused(asked.model_copy(update={"evaluate": several}))
    assert "evaluate.samples=1, now 8; evaluate.temperature=None, now" in said
    boxes = refused(asked.model_copy(update={"location_format": "box"}))
    assert "otherwise (location_format=words, now box)" in boxes
    hotter = config.evaluate.model_copy(update={"temperature": 1.9})  # greedy answers have none
    assert threshold(asked.model_copy(update={"evaluate": hotter}), 0) == 0.30
    longer = config.evaluate.model_copy(update={"max_tokens": 44})
    said = refused(asked.model_copy(update={"evaluate": longer}))
    assert "evaluate.max_tokens=33, now 44" in said
    assert "has judged with other weights" in refused(told(asked, validation=str(run)))
    for row in rows[:3]:
        row.update(p_yes=None)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "3 of the defects in the validation" in refused(asked)
    assert threshold(told(asked, miss_rate=15.0), 0) == pytest.approx(0.32)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows[20:]))
    assert "none is defective" in refused(asked)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"images": "{photos}", "threshold": 0.3, "miss_rate": 2.0}, "Give one of them"),
        ({"images": ["{photos}", "{photos}"], "watch": True}, "Give one folder"),
        ({"images": "{photos}", "watch": True, "fail_on_defect": True}, "ends with Ctrl-C"),
        ({"images": "{photos}", "validation": "{photos}"}, "Add miss_rate=5"),
        ({"images": "{photos}/a.png", "watch": True}, "is no folder"),
        ({}, "needs pictures: images="),
        ({"images": "{photos}/*.tif"}, "leads to no picture"),
        ({"images": "{photos}", "references": "{photos}/good*"}, "leads to no picture"),
        ({"images": "{photos}/.."}, "they would be judged in turn"),
        ({"images": "{photos}", "references": "{photos}", "miss_rate": 5.0}, "with 1 reference"),
    ],
)
def test_what_cannot_be_judged_is_refused_before_anything_loads(config, tmp_path, settings, said):
    photos = picture(tmp_path / "photos" / "a.png").parent
    stage = stages.find("predict")
    given = json.loads(json.dumps(settings).replace("{photos}", str(photos)))
    with pytest.raises((ConfigError, DataError), match=said):
        asked = told(config, **given)
        for problem in stage.problems(asked):
            raise ConfigError(problem)
        stage.check_inputs(asked)
        stage.check_weights(asked, tmp_path / "outputs")


def test_weights_and_room_for_references_are_asked_for(config, tmp_path):
    stage = stages.find("predict")
    [said] = stage.problems(config.model_copy(update={"init": None}))
    assert "needs weights to judge with" in said
    small = VllmRollout.model_validate({**VLLM, "max_images": 1})
    asked = told(config, images=str(tmp_path), references=str(tmp_path))
    [said] = stage.problems(asked.model_copy(update={"rollout": small}))
    assert "Use rollout.max_images=2" in said
    assert not list(stage.problems(config.model_copy(update={"rollout": small})))


def test_references_that_nobody_would_show_are_refused(config, tmp_path):
    asked = told(config, images=str(tmp_path), references=str(tmp_path))
    alone = asked.evaluate.model_copy(update={"shots": [0]})
    [said] = stages.find("predict").problems(asked.model_copy(update={"evaluate": alone}))
    assert said.startswith("references with evaluate.shots=[0]: none of them would be shown")


def test_a_picture_that_went_away_counts_as_one_that_cannot_be_read(tmp_path):
    [gone] = arrivals([tmp_path / "gone.png"])
    assert (gone.bytes, gone.whole) == (0, True)


def test_importing_the_package_is_cheap(repository):
    code = "import sys, iad_r1; sys.exit(any(m in sys.modules for m in ('torch', 'hydra', 'PIL')))"
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, check=False)
    assert done.returncode == 0
    misspelt = "Inspecter"
    with pytest.raises(AttributeError, match=misspelt):
        getattr(iad_r1, misspelt)
