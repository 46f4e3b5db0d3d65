"""`models=[...]`: what each entry stands for, and that one which fails does not lose the others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from iad_r1 import report
from iad_r1.command import compose, launch
from iad_r1.errors import ConfigError, TrainingError, WeightsError
from iad_r1.judge import predictions
from iad_r1.report import terminal, wording
from iad_r1.settings.config import Config
from iad_r1.stages import find
from iad_r1.store import models
from iad_r1.store.models import parts
from iad_r1.store.run_folder import RunFolder
from iad_r1.types import Prediction

TYPED = ["stage=evaluate", "tracking=none"]


@pytest.fixture(scope="module")
def config() -> Config:
    return compose.compose(TYPED)


@pytest.fixture
def trained(tmp_path: Path, config: Config) -> Any:
    """`trained("name")`: an earlier run that saved weights of the tiny backbone."""

    def make(name: str) -> str:
        run = RunFolder.create(tmp_path / "outputs", name)
        run.write_json("config.json", config.model_dump(mode="json"))
        run.checkpoint("sft").mkdir(parents=True)
        (run.checkpoint("sft") / "config.json").write_text("{}")
        return str(run.path)

    return make


def one_answer(text: str) -> Prediction:
    return Prediction(
        id="0", dataset="made", split="seen", product="part", shots=0, gold_answer="yes",
        gold_location=None, gold_type=None, completion=text, status="ok", answer="yes",
        location=None, type=None, location_correct=None, type_correct=None, p_yes=None,
        n_tokens=1, stop="stop",
    )  # fmt: skip


def test_no_model_is_called_as_a_stage_is(config, tmp_path):
    """Its answers would be read as those of the stage, or of nearest good patches."""
    assert set(models.STAGES) == set(wording.STAGE_NAMES)
    asked = compose.compose([*TYPED, "backbone=api", "backbone.model=one"])
    assert list(parts(asked, ["grpo", "patchcore", "model-grpo", "mine"])) == [
        "model-grpo", "model-patchcore", "model-grpo-2", "mine"
    ]  # fmt: skip


def test_each_model_has_its_own_weights_and_the_settings_of_the_command(config, trained):
    run = trained("photos-v1.2")
    found = parts(
        config, [run, f"{run}/checkpoints/sft", "qwen25vl_3b", "Qwen/Qwen2-VL-2B-Instruct"]
    )
    assert list(found) == ["photos-v1-2_sft", "photos-v1-2_sft-2", "qwen25vl_3b", "qwen2vl_2b"]
    first, _, published, by_id = found.values()
    assert (first.init, first.backbone.name) == (run, "tiny")
    assert (published.init, published.backbone.source) == (None, "hub")
    assert getattr(by_id.backbone, "path", None) == "Qwen/Qwen2-VL-2B-Instruct"
    for part in found.values():
        assert part.evaluate == config.evaluate and part.data == config.data
        assert part.tasks() == ["evaluate"] and getattr(part.stage, "models", None) == []
    assert [part.patchcore.beside for part in found.values()] == ["photographs", *["never"] * 3]


def test_another_version_of_a_backbone_needs_to_be_told_of_which(config):
    with pytest.raises(
        ConfigError, match=r"models: me/mine: this is no run folder.*backbone=<one of"
    ):
        parts(config, ["me/mine"])
    told = compose.compose([*TYPED, "backbone=qwen25vl_3b"])
    [(label, found)] = parts(told, ["me/mine-1.0"]).items()
    assert (label, found.backbone.name) == ("mine-1-0", "qwen25vl_3b")
    assert getattr(found.backbone, "path", None) == "me/mine-1.0"
    asked = compose.compose([*TYPED, "backbone=api", "backbone.model=one"])
    [(label, found)] = parts(asked, ["two"]).items()
    assert (label, found.backbone.source) == ("two", "api")
    assert getattr(found.backbone, "model", None) == "two"


@pytest.mark.parametrize(
    ("typed", "said"),
    [("models=[a,a]", "name each model once"), ("models=[a] init=b", "add it to models instead"),
     ("models=[a,b] engine=zero2 engine.hosts=2", "Use engine.hosts=1")],
)  # fmt: skip
def test_what_contradicts_is_refused(typed, said):
    with pytest.raises(ConfigError, match=said):
        compose.compose([*TYPED, *typed.split()])


def test_weights_that_are_not_here_are_said_before_anything_starts(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "carry_out", lambda *_: pytest.fail("something was started"))
    missing = compose.compose(
        [*TYPED, "backbone=qwen2vl_2b", f"models=[{trained('a')},/no/folder]"]
    )
    with pytest.raises(WeightsError, match="/no/folder"):
        launch.run(missing, tmp_path / "outputs")


def test_models_are_evaluated_in_turn_and_one_that_fails_is_tried_again(
    trained, tmp_path, monkeypatch
):
    """Processes are planted: each leaves what an evaluation leaves."""
    monkeypatch.setattr(report, "build", lambda folder: folder)
    monkeypatch.setattr(terminal, "print_summary", lambda *_: None)
    names = [trained(name) for name in "abc"]
    config = compose.compose([*TYPED, f"models=[{','.join(names)}]", "resume=auto"])
    asked: list[str] = []
    broken = {"b_sft"}

    def process(command: Sequence[str], offline: bool, saves: bool) -> int:
        run = RunFolder(Path(command[-1]))
        if run.path.parent.name != "models":
            asked.append("joined")
            find("evaluate").run(config, run)
            return 0
        asked.append(run.path.name)
        if run.path.name in broken:
            (run.path / "error.txt").write_text("Traceback\nMemoryError: too large\n")
            return 1
        (run.path / "predictions").mkdir()
        for stage in ("grpo", "patchcore"):
            said = one_answer(run.path.name if stage == "grpo" else "good patches")
            predictions.append(run.predictions(stage, "seen", 0), [said])
        (run.path / "figures" / "samples").mkdir(parents=True)
        (run.path / "gallery.jsonl").write_text("")
        rows, patches = ([{"stage": s, "split": "seen", "n": 3}] for s in ("grpo", "patchcore"))
        run.update_summary(results=rows, baselines=patches, seconds={"evaluate": 2.0})
        run.update_manifest(status="finished", data={"name": "synthetic"})
        return 0

    monkeypatch.setattr(launch, "carry_out", process)
    with pytest.raises(
        TrainingError, match=r"1 of 3 models.*b_sft: MemoryError: too large.*resume"
    ):
        launch.run(config, tmp_path / "outputs")
    assert asked == ["a_sft", "b_sft", "c_sft", "joined"]
    broken.clear()
    folder, code = launch.run(config, tmp_path / "outputs")
    assert asked[4:] == ["b_sft", "joined"] and code == 0 and folder is not None
    assert [row["stage"] for row in folder.summary()["results"]] == ["a_sft", "b_sft", "c_sft"]
    assert [row["stage"] for row in folder.summary()["baselines"]] == ["patchcore"]
    files = {file.name: next(iter(predictions.read_predictions(file).values())).completion
             for file in (folder.path / "predictions").iterdir()}  # fmt: skip
    answers = {f"{n}_sft.seen.0shot.jsonl": f"{n}_sft" for n in "abc"}
    assert files == {**answers, "patchcore.seen.0shot.jsonl": "good patches"}
    one = RunFolder(folder.path / "models" / "a_sft")
    assert one.read_json("config.json")["init"] == names[0]
    assert one.outputs == folder.outputs == tmp_path / "outputs"
