"""The run folder always has the numbers; a tracker is a mirror that can fail without harm."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from iad_r1.errors import MismatchError
from iad_r1.settings.tracking import NoTracking, WandbTracking
from iad_r1.store import metrics, tracking
from iad_r1.store.products import Product
from iad_r1.store.trackers import evaluated, mirror, result_columns, trained
from iad_r1.store.trackers.wandb import artifact, has_login, resolve_mode, run_id
from iad_r1.store.tracking import Tracker

REPO = Path(__file__).resolve().parents[2]


def jpeg(color: str) -> bytes:
    """A small picture, as rollouts hold them."""
    data = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(data, format="JPEG")
    return data.getvalue()


RED = jpeg("red")
WANDB_YAML = yaml.safe_load((REPO / "conf/tracking/wandb.yaml").read_text())


def tracking_settings(**changes: Any) -> WandbTracking:
    return WandbTracking(**{**WANDB_YAML, **changes})


@pytest.fixture(autouse=True)
def no_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Whoever runs these tests, their own wandb login stays out of it."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-such-netrc"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staged"))
    yield


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def disabled(folder: Path) -> Tracker:
    return Tracker(NoTracking(name="none"), folder, {})


# ------------------------------------------------------------------------ metrics.jsonl


def test_each_step_is_one_line_readable_while_the_run_goes_on(tmp_path):
    with disabled(tmp_path / "run") as tracker:
        tracker.log("sft", 0, {"loss": 2.5, "lr": 1e-3})
        assert lines(tmp_path / "run") == [{"stage": "sft", "step": 0, "loss": 2.5, "lr": 1e-3}]
        tracker.log("grpo", 0, {"reward": float(np.float32(0.5)), "groups": 32})
    assert lines(tmp_path / "run")[1] == {"stage": "grpo", "step": 0, "reward": 0.5, "groups": 32}


def strict(text: str) -> dict[str, Any]:
    """JSON as the standard has it: NaN and Infinity are errors."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


@settings(deadline=None, max_examples=40)  # a busy machine is not a failure
@given(st.dictionaries(st.text("abc", min_size=1), st.floats(), max_size=4))
def test_every_line_is_strict_json_whatever_the_numbers(tmp_path_factory, scalars):
    folder = tmp_path_factory.mktemp("run")
    with disabled(folder) as tracker:
        tracker.log("sft", 1, scalars)
    line = strict((folder / "metrics.jsonl").read_text())
    for name, value in scalars.items():
        if math.isfinite(value):
            assert line[name] == value
        else:
            assert line[name] is None and line["not_finite"][name] == str(value)


def test_what_is_not_one_number_is_refused_by_name(tmp_path):
    with disabled(tmp_path) as tracker:
        with pytest.raises(MismatchError, match="'reward'"):
            tracker.log("grpo", 0, {"reward": "high"})  # pyright: ignore[reportArgumentType]
        with pytest.raises(MismatchError, match=r"reserved.*step"):
            tracker.log("grpo", 0, {"step": 3})
    assert lines(tmp_path) == []


def test_a_line_torn_by_a_killed_run_is_cut_off_before_appending(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"stage": "sft", "step": 0}\n{"stage": "sf')
    with disabled(tmp_path) as tracker:
        tracker.log("sft", 1, {"loss": 1.0})
    assert [line["step"] for line in lines(tmp_path)] == [0, 1]


def test_logging_outside_the_context_says_what_to_do(tmp_path):
    with pytest.raises(MismatchError, match="with Tracker"):
        disabled(tmp_path).log("sft", 0, {})


# ------------------------------------------------------------------------------ rollouts


def test_rollouts_come_back_as_they_were_with_their_pictures(tmp_path):
    rows = [
        {"prompt": "Is it defective?", "completion": "<answer>Yes</answer>", "total": 0.5,
         "parts": {"accuracy": 1.0, "format": 0.0}, "thumbnail": RED},
        {"prompt": "Is it defective?", "completion": "", "total": 0.0,
         "parts": {"accuracy": 0.0, "format": 0.0}, "thumbnail": None},
    ]  # fmt: skip
    with disabled(tmp_path) as tracker:
        path = tracker.rollouts("grpo", 120, rows)
    assert path == tmp_path / "rollouts" / "grpo-00120.parquet"
    yes, empty = pandas.read_parquet(path).to_dict("records")
    assert (yes["completion"], empty["completion"]) == ("<answer>Yes</answer>", "")
    assert yes["parts"] == {"accuracy": 1.0, "format": 0.0}
    assert yes["thumbnail"] == RED and empty["thumbnail"] is None
    assert [file.name for file in path.parent.iterdir()] == [path.name]


# --------------------------------------------------------------------------------- wandb


def wandb_bytes(folder: Path, expected: bytes) -> bytes:
    """The offline run's own file, once it holds `expected`: wandb-core flushes it on its own."""
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    deadline = time.monotonic() + 120
    while expected not in path.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.05)
    return path.read_bytes()


RESULT = {
    "stage": "sft", "dataset": "d", "split": "new", "shots": 0, "n": 3, "balanced_accuracy": 87.5,
    "ci95": {"balanced_accuracy": [1.0, 2.0]},
}  # fmt: skip


def small_run(tracker: Tracker, folder: Path) -> None:
    """Two stages, with everything that a tracker is told."""
    weights = folder / "model.bin"
    weights.write_bytes(b"weights")
    for stage in ("sft", "grpo"):
        tracker.log(stage, 0, {"loss": 0.5, "seconds_step": 2.0, "odd": math.nan})
        rows = [{"completion": f"text {i}", "thumbnail": RED} for i in range(5)]
        tracker.rollouts(stage, 0, rows)
    tracker.evaluation([RESULT])
    of = Product("dataset", "data-d", texts={"data.json": "{}"})
    tracker.made(lambda: of)
    tracker.made(lambda: Product("model", "weights-sft", {"m.bin": weights}, of=("data-d",)))
    tracker.finish({"seconds": {"sft": 1.5}})


@pytest.mark.slow
def test_offline_wandb_mirrors_steps_tables_artifacts_and_summary_inside_the_run_folder(
    tmp_path, capfd
):
    folder = tmp_path / "tiny" / "2026-01-01"
    settings = tracking_settings(mode="auto", rollout_rows=2, group="a sweep")
    with Tracker(settings, folder, {"seed": 17, "stage": {"name": "pipeline"}}) as tracker:
        small_run(tracker, folder)
    data = wandb_bytes(folder, b"system/total/sft")
    for expected in (
        b"train/sft/loss", b"system/grpo/seconds_step", b"other/sft/odd", b"grpo/step", b"seed",
        b"eval/new/0shot/balanced_accuracy", b"eval/tested/0shot/balanced_accuracy", b"87.5",
        b"a sweep", b"pipeline", run_id(folder).encode(), b"weights-sft", b"made_from",
    ):  # fmt: skip
        assert expected in data, expected
    files = folder.glob("wandb/offline-run-*/files/media/table/**/*.json")
    tables = {path.name.partition("_")[0]: json.loads(path.read_text()) for path in files}
    shown = tables["completions"]
    assert shown["columns"] == ["completion", "thumbnail"], "bounded by rollout_rows"
    assert [text for text, _ in shown["data"]] == ["text 0", "text 1"]
    staged = [path.read_bytes() for path in (tmp_path / "staged").rglob("*") if path.is_file()]
    assert any(data.startswith(b"\x89PNG") for data in staged), (
        "the table that is uploaded has pictures"
    )
    assert tables["results"]["columns"][-3:] == [
        "balanced_accuracy", "balanced_accuracy_low", "balanced_accuracy_high",
    ]  # fmt: skip
    assert tables["results"]["data"] == [["sft", "d", "new", 0.0, 3.0, 87.5, 1.0, 2.0]]
    assert len(lines(folder)) == 2
    out, err = capfd.readouterr()
    assert out == err == "", "an offline run prints nothing of its own"


@pytest.mark.parametrize(("limit", "refers"), [(1.0, False), (1e-6, True)])
def test_files_above_the_limit_are_referred_to_and_neither_read_nor_copied(tmp_path, limit, refers):
    file = tmp_path / "model.bin"
    file.write_bytes(b"weights")
    made = artifact(Product("model", "w", {"a/model.bin": file}, of=("data-d",)), limit)
    entry = made.manifest.entries["a/model.bin"]
    assert (entry.ref == file.as_uri()) is refers
    assert entry.local_path is None if refers else entry.local_path == str(file)
    assert made.metadata["made_from"] == ["data-d"]


ONLINE_SCRIPT = """
import sys, yaml
from pathlib import Path
from iad_r1.store.tracking import Tracker
from iad_r1.settings.tracking import WandbTracking
values = {**yaml.safe_load(Path("conf/tracking/wandb.yaml").read_text()), "init_timeout": 1.0}
with Tracker(WandbTracking(**{**values, "mode": sys.argv[2]}), Path(sys.argv[1]), {}) as tracker:
    tracker.log("sft", 0, {"loss": 0.5})
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "key", "said"),
    [
        ("auto", "0" * 40, "wandb could not go online"),  # nobody answers at the server
        ("online", "short", "wandb could not go online"),  # a key that wandb itself refuses
        ("online", "", "there is no wandb login"),
    ],
)
def test_no_way_online_costs_one_sentence_and_the_run_goes_on_offline(
    tmp_path, monkeypatch, mode, key, said
):
    """In a process of its own: wandb keeps its server and login for a process's lifetime."""
    monkeypatch.delenv("WANDB_SERVICE", raising=False)  # that of this process
    environ = {**os.environ, "WANDB_BASE_URL": "http://127.0.0.1:9", "PYTHONPATH": str(REPO)}
    run = subprocess.run(
        [sys.executable, "-c", ONLINE_SCRIPT, str(tmp_path), mode],
        env={**environ, **({"WANDB_API_KEY": key} if key else {})},
        cwd=REPO, capture_output=True, text=True, timeout=240, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout == "" and len(run.stderr.splitlines()) == 1 and said in run.stderr
    assert b"train/sft/loss" in wandb_bytes(tmp_path, b"sft/loss") and len(lines(tmp_path)) == 1


def test_an_environment_that_wandb_refuses_costs_one_sentence(tmp_path):
    environ = {**os.environ, "WANDB_BASE_URL": "not a url", "PYTHONPATH": str(REPO)}
    environ.pop("WANDB_MODE", None)
    run = subprocess.run(
        [sys.executable, "-c", ONLINE_SCRIPT, str(tmp_path), "auto"],
        env=environ, cwd=REPO, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout == "" and len(run.stderr.splitlines()) == 1
    assert "wandb stopped" in run.stderr and len(lines(tmp_path)) == 1


def test_a_failing_run_is_recorded_as_failed_and_its_error_is_not_swallowed(tmp_path):
    with pytest.raises(ZeroDivisionError), Tracker(tracking_settings(), tmp_path, {}) as tracker:
        tracker.log("sft", 0, {"loss": 1 / 0})
    assert lines(tmp_path) == [] and wandb_bytes(tmp_path, b"")


def test_a_run_that_goes_on_has_the_same_id_and_another_run_another(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    first = run_id(tmp_path / "a")
    assert run_id(tmp_path / "a") == first != run_id(tmp_path / "b")


# ------------------------------------------------------------------------- it fails or hangs


class Broken:
    """A backend that raises or hangs at whatever it is asked."""

    def __init__(self, act: Any) -> None:
        self.act = act

    def __getattr__(self, name: str) -> Any:
        return lambda *_: self.act()


def fail(error: type[Exception]) -> Any:
    def act() -> None:
        raise error("the service is gone")

    return act


@pytest.mark.parametrize("error", [OSError, TypeError])
@pytest.mark.parametrize("when", ["open", "log"])
def test_a_tracker_that_fails_costs_one_sentence(tmp_path, capfd, monkeypatch, error, when):
    def open_(*_: object) -> Any:
        return fail(error)() if when == "open" else Broken(fail(error))

    monkeypatch.setattr(tracking, "_open_backend", open_)
    with Tracker(tracking_settings(), tmp_path, {}) as tracker:
        small_run(tracker, tmp_path)
    assert len(lines(tmp_path)) == 2
    err = capfd.readouterr().err
    assert err.count("wandb stopped (the service is gone)") == len(err.splitlines()) == 1


@pytest.mark.parametrize("when", ["open", "log"])
def test_a_tracker_that_hangs_costs_its_timeouts_and_one_sentence(
    tmp_path, capfd, monkeypatch, when
):
    hang = threading.Event().wait

    def open_(*_: object) -> Any:
        return hang() if when == "open" else Broken(hang)

    monkeypatch.setattr(tracking, "_open_backend", open_)
    monkeypatch.setattr(mirror, "SLACK", 0.05)
    begun = time.monotonic()
    settings = tracking_settings(init_timeout=0.1, finish_timeout=0.1)
    with Tracker(settings, tmp_path, {}) as tracker:
        small_run(tracker, tmp_path)
    assert time.monotonic() - begun < 30 and len(lines(tmp_path)) == 2
    err = capfd.readouterr().err
    assert "wandb did not" in err and len(err.splitlines()) == 1


def test_a_tracker_that_falls_behind_is_given_up_before_memory_fills(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(tracking, "_open_backend", lambda *_: Broken(threading.Event().wait))
    monkeypatch.setattr(mirror, "PENDING", 4)
    with Tracker(tracking_settings(finish_timeout=0.1), tmp_path, {}) as tracker:
        for step in range(20):
            tracker.log("sft", step, {"loss": 1.0})
    assert len(lines(tmp_path)) == 20
    assert "wandb hangs: it is 4 messages behind" in capfd.readouterr().err


def test_a_burst_is_waited_for_and_nothing_of_it_is_lost(tmp_path, capfd, monkeypatch):
    seen: list[Any] = []

    class Slow(Broken):
        def log(self, stage: str, step: int, values: Any) -> None:
            time.sleep(0.001)
            seen.append(step)

    monkeypatch.setattr(tracking, "_open_backend", lambda *_: Slow(lambda: None))
    monkeypatch.setattr(mirror, "PENDING", 4)
    with Tracker(tracking_settings(), tmp_path, {}) as tracker:
        for step in range(100):
            tracker.log("sft", step, {"loss": 1.0})
    assert seen == list(range(100)) and capfd.readouterr().err == ""


# ------------------------------------------------------------------------------- what is shown


def test_every_metric_has_one_name_one_section_and_says_what_it_is():
    names = [metric.name for metric in metrics.METRICS]
    assert len(set(names)) == len(names)
    assert {metric.section for metric in metrics.METRICS} == set(metrics.SECTIONS)
    assert all(metric.says for metric in metrics.METRICS)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("loss", "train/grpo/loss"),
        ("reward_std", "reward/grpo/reward_std"),
        ("reward_my_own_normal", "reward/grpo/reward_my_own_normal"),
        ("yes_rate", "rollout/grpo/yes_rate"),
        ("accuracy", "other/grpo/accuracy"),  # of an evaluation, not of a step
        ("what", "other/grpo/what"),
    ],
)
def test_a_number_is_shown_in_its_section(name, key):
    assert metrics.key("grpo", name) == key
    assert (metrics.listed(key) is None) == key.startswith("other")


def test_an_evaluation_is_shown_by_split_and_as_the_mean_over_tested_splits():
    rows = [
        {"stage": "sft", "split": "a", "shots": 0, "accuracy": 1.0},
        {"stage": "grpo", "split": "a", "shots": 0, "accuracy": 50.0, "auroc": 60.0},
        {"stage": "grpo", "split": "b", "shots": 0, "accuracy": 100.0, "auroc": None},
        {"stage": "grpo", "split": "validation_a", "shots": 0, "accuracy": 0.0},
    ]
    assert dict(evaluated(rows)) == {
        "eval/a/0shot/accuracy": 50.0,
        "eval/a/0shot/auroc": 60.0,
        "eval/b/0shot/accuracy": 100.0,
        "eval/validation_a/0shot/accuracy": 0.0,
        "eval/tested/0shot/accuracy": 75.0,
    }
    assert [trained(stage) for stage in ("base", "pretrain", "sft", "grpo")] == [0, 1, 2, 3]
    assert "auroc" not in result_columns(rows[2])


# --------------------------------------------------------------------------------- modes


SERVER = "https://wandb.example.org"


@pytest.mark.parametrize(
    ("mode", "environ", "expected"),
    [
        ("auto", {}, "offline"),
        ("auto", {"WANDB_API_KEY": "k"}, "online"),
        ("auto", {"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, "offline"),
        ("auto", {"WANDB_MODE": "disabled"}, "disabled"),
        ("online", {"WANDB_API_KEY": "k"}, "online"),
        ("online", {}, "offline"),
        ("offline", {"WANDB_API_KEY": "k"}, "offline"),
        ("disabled", {"WANDB_API_KEY": "k"}, "disabled"),
    ],
)
def test_online_only_where_a_login_exists(mode, environ, expected):
    assert resolve_mode(mode, {"NETRC": "/nowhere", **environ}, SERVER) == expected


def test_a_netrc_login_counts_for_its_host_only(tmp_path):
    path = tmp_path / "netrc"
    path.write_text("machine wandb.example.org login user password secret\n")
    assert has_login({"NETRC": str(path)}, SERVER)
    assert not has_login({"NETRC": str(path)}, "https://elsewhere.example.org")
    path.write_text("not a netrc file {")
    assert not has_login({"NETRC": str(path)}, SERVER)


def test_logins_of_wandbs_older_host_count_at_its_default_server(tmp_path):
    import wandb

    path = tmp_path / "netrc"
    path.write_text("machine api.wandb.ai login user password secret\n")
    assert has_login({"NETRC": str(path)}, wandb.Settings().base_url)


# -------------------------------------------------------------------------------- config


def test_an_unknown_mode_or_setting_is_refused():
    with pytest.raises(ValidationError, match="mode"):
        tracking_settings(mode="cloud")
    with pytest.raises(ValidationError, match="api_key"):
        tracking_settings(api_key="secret")


def test_the_config_loads_neither_wandb_nor_pandas_nor_torch():
    script = (
        "import sys, iad_r1.settings.tracking, iad_r1.store.tracking;"
        "print([name for name in ('wandb', 'pandas', 'torch', 'numpy') if name in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=REPO, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(REPO)}, check=True,
    )  # fmt: skip
    assert run.stdout.strip() == "[]"


def test_numbers_keep_their_kind():
    assert tracking._number("n", 3) == 3 and isinstance(tracking._number("n", 3), int)
    assert isinstance(tracking._number("n", 3.0), float)
