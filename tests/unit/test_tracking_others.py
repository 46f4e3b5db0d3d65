"""TensorBoard and MLflow beside the record, read back with their own libraries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from test_tracking import RED

from iad_r1.errors import ConfigError
from iad_r1.settings.tracking import MlflowTracking, TensorboardTracking
from iad_r1.store import tracking
from iad_r1.store.products import Product
from iad_r1.store.trackers.tensorboard import markdown
from iad_r1.store.tracking import Tracker

REPO = Path(__file__).resolve().parents[2]
RESULT = {
    "stage": "sft", "dataset": "d", "split": "new", "shots": 0, "n": 3, "balanced_accuracy": 87.5,
    "ci95": {"balanced_accuracy": [1.0, 2.0]},
}  # fmt: skip


def shipped(name: str) -> dict[str, Any]:
    return yaml.safe_load((REPO / f"conf/tracking/{name}.yaml").read_text())


def small_run(tracker: Tracker, folder: Path) -> None:
    """Everything that a tracker is told."""
    weights = folder / "model.bin"
    weights.write_bytes(b"weights")
    for step, loss in enumerate((0.5, float("nan"), 0.25)):
        tracker.log("sft", step, {"loss": loss})
    tracker.log("grpo", 0, {"reward": 2.0})
    tracker.rollouts("grpo", 0, [{"completion": "<answer>a|b", "thumbnail": RED}] * 3)
    tracker.evaluation([RESULT])
    tracker.made(lambda: Product("model", "weights-sft", {"m.bin": weights}, of=("data-d",)))
    tracker.finish({"seconds": {"sft": 1.5}})


def test_a_tracker_that_is_not_installed_is_refused_with_what_to_type(monkeypatch):
    settings = TensorboardTracking(**shipped("tensorboard"))
    tracking.check(settings)
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install "iad_r1\[tensorboard\]"'):
        tracking.check(settings)


def test_cells_of_a_table_stay_cells():
    rows = [{"a": "x|y\n<b>", "n": 0.25}, {"a": None, "m": 1}]
    assert markdown(rows) == (
        "| a | n | m |\n| --- | --- | --- |\n| x&#124;y<br>&lt;b> | 0.25 |  |\n|  |  | 1 |"
    )


def test_tensorboard_has_scalars_texts_and_pictures(tmp_path, capfd):
    accumulate = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    settings = TensorboardTracking(**{**shipped("tensorboard"), "rollout_rows": 2})
    with Tracker(settings, tmp_path, {"seed": 17}) as tracker:
        small_run(tracker, tmp_path)

    def series(name: str) -> Any:
        return accumulate.EventAccumulator(str(tmp_path / "tensorboard" / name)).Reload()

    steps = [(event.step, event.value) for event in series("sft").Scalars("train/sft/loss")]
    assert [step for step, _ in steps] == [0, 1, 2] and steps[2][1] == 0.25
    said = series("grpo")
    assert said.Scalars("reward/grpo/reward")[0].value == 2.0
    (table,) = said.Tensors("rollout/grpo/completions/text_summary")
    text = table.tensor_proto.string_val[0].decode()
    assert text.count("&lt;answer>a&#124;b") == 2, "bounded by rollout_rows"
    (picture,) = said.Images("rollout/grpo/completions/pictures")
    assert (picture.width, picture.height) == (8, 8), "the same picture is shown once"
    (event,) = series("eval").Scalars("eval/tested/0shot/balanced_accuracy")
    assert (event.step, event.value) == (2, 87.5)
    about = series("run")
    assert about.Scalars("system/total/sft")[0].value == 1.5
    assert {"config/text_summary", "made/weights-sft/text_summary"} <= set(about.Tags()["tensors"])
    assert capfd.readouterr().err == ""


def test_steps_that_are_taken_again_replace_those_in_tensorboard(tmp_path):
    accumulate = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    settings = TensorboardTracking(**shipped("tensorboard"))
    for first, loss in ((0, 1.0), (2, 5.0)):  # the second goes on from step 2
        with Tracker(settings, tmp_path, {}) as tracker:
            tracker.rewind("sft", first)
            for step in range(first, 4):
                tracker.log("sft", step, {"loss": loss})
    found = accumulate.EventAccumulator(str(tmp_path / "tensorboard" / "sft")).Reload()
    steps = [(event.step, event.value) for event in found.Scalars("train/sft/loss")]
    assert steps == [(0, 1.0), (1, 1.0), (2, 5.0), (3, 5.0)]


def test_mlflow_has_numbers_tables_pictures_settings_and_what_was_made(tmp_path, monkeypatch):
    client_of = pytest.importorskip("mlflow.tracking").MlflowClient
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    folder = tmp_path / "outputs" / "tiny" / "now"
    settings = MlflowTracking(**{**shipped("mlflow"), "rollout_rows": 2, "group": "a sweep"})
    config = {"stage": {"name": "pipeline"}, "seed": 17, "long": "x" * 1000}
    for goes_on in (False, True):
        with Tracker(settings, folder, config) as tracker:
            if goes_on:
                tracker.log("sft", 3, {"loss": 0.125})
                tracker.finish({})
            else:
                small_run(tracker, folder)
    client = client_of(tracking_uri=(tmp_path / "outputs" / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("iad_r1")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.info.run_name == "tiny-now"
    assert run.data.tags["group"] == "a sweep" and run.data.tags["stage"] == "pipeline"
    assert run.data.params == {"stage.name": "pipeline", "seed": "17"}
    history = client.get_metric_history(run.info.run_id, "train/sft/loss")
    assert {m.step: m.value for m in history if m.step != 1} == {0: 0.5, 2: 0.25, 3: 0.125}
    assert run.data.metrics["eval/tested/0shot/balanced_accuracy"] == 87.5
    assert run.data.metrics["system/total/sft"] == 1.5

    def kept(file: str) -> Path:
        return Path(client.download_artifacts(run.info.run_id, file))

    assert len(json.loads(kept("rollouts/grpo-00000.json").read_text())["data"]) == 2
    assert Image.open(kept("rollouts/grpo-00000.png")).size == (8, 8)
    assert json.loads(kept("eval/results.json").read_text())["data"][0][-3:] == [87.5, 1.0, 2.0]
    assert kept("model/weights-sft/model.bin").read_bytes() == b"weights"
    about = json.loads(kept("model/weights-sft/about.json").read_text())
    assert about["made_from"] == ["data-d"] and about["paths"] == {}


def test_mlflow_that_cannot_be_reached_costs_one_sentence(tmp_path, monkeypatch, capfd):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    settings = MlflowTracking(**{**shipped("mlflow"), "uri": "http://127.0.0.1:9"})
    with Tracker(settings, tmp_path, {}) as tracker:
        small_run(tracker, tmp_path)
    assert capfd.readouterr().err.count("mlflow stopped") == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4
