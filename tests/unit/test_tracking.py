"""The run folder always has the numbers; wandb is a mirror that can fail without harm."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
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
from iad_r1.settings.tracking import TrackingConfig
from iad_r1.store import tracking
from iad_r1.store.tracking import Tracker, has_login, resolve_mode

REPO = Path(__file__).resolve().parents[2]
WANDB_YAML = yaml.safe_load((REPO / "conf/tracking/wandb.yaml").read_text())


def tracking_settings(**changes: Any) -> TrackingConfig:
    return TrackingConfig(**{**WANDB_YAML, **changes})


@pytest.fixture(autouse=True)
def no_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Whoever runs these tests, their own wandb login stays out of it."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-such-netrc"))
    yield


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def disabled(folder: Path) -> Tracker:
    return Tracker(tracking_settings(mode="disabled"), folder, {})


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


def test_rollouts_come_back_as_they_were_with_pictures_as_jpeg(tmp_path):
    rows = [
        {"prompt": "Is it defective?", "completion": "<answer>Yes</answer>", "total": 0.5,
         "parts": {"accuracy": 1.0, "format": 0.0}, "thumbnail": Image.new("RGB", (8, 8), "red")},
        {"prompt": "Is it defective?", "completion": "", "total": 0.0,
         "parts": {"accuracy": 0.0, "format": 0.0}, "thumbnail": None},
    ]  # fmt: skip
    with disabled(tmp_path) as tracker:
        path = tracker.rollouts("grpo", 120, rows)
    assert path == tmp_path / "rollouts" / "grpo-00120.parquet"
    yes, empty = pandas.read_parquet(path).to_dict("records")
    assert (yes["completion"], empty["completion"]) == ("<answer>Yes</answer>", "")
    assert yes["parts"] == {"accuracy": 1.0, "format": 0.0}
    assert yes["thumbnail"].startswith(b"\xff\xd8") and empty["thumbnail"] is None
    assert [file.name for file in path.parent.iterdir()] == [path.name]


# --------------------------------------------------------------------------------- wandb


def wandb_bytes(folder: Path, expected: bytes) -> bytes:
    """The offline run's own file, once it holds `expected`: wandb-core flushes it on its own."""
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    deadline = time.monotonic() + 120
    while expected not in path.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.05)
    return path.read_bytes()


@pytest.mark.slow
def test_offline_wandb_mirrors_steps_tables_and_summary_inside_the_run_folder(tmp_path, capfd):
    folder = tmp_path / "tiny" / "2026-01-01"
    with Tracker(tracking_settings(mode="auto", rollout_rows=2), folder, {"seed": 17}) as tracker:
        tracker.log("sft", 0, {"loss": 0.5, "odd": math.nan})
        tracker.rollouts("sft", 0, [{"completion": f"text {i}"} for i in range(5)])
        tracker.evaluation([{"stage": "sft", "n": 3, "ci95": {"miss_rate": [1.0, 2.0]}}])
        tracker.finish({"results": [{"stage": "sft", "balanced_accuracy": 87.5}]})
    data = wandb_bytes(folder, b"balanced_accuracy")
    for expected in (b"sft/loss", b"sft/step", b"results/0/balanced_accuracy", b"87.5", b"seed"):
        assert expected in data, expected
    files = folder.glob("wandb/offline-run-*/files/media/table/*/*.json")
    tables = {path.parent.name: json.loads(path.read_text()) for path in files}
    assert tables["sft"]["data"] == [["text 0"], ["text 1"]], "bounded by rollout_rows"
    assert tables["evaluation"]["data"] == [["sft", 3, '{"miss_rate": [1.0, 2.0]}']]
    assert len(lines(folder)) == 1
    out, err = capfd.readouterr()
    assert out == err == "", "an offline run prints nothing of its own"


ONLINE_SCRIPT = """
import sys, yaml
from pathlib import Path
from iad_r1.store.tracking import Tracker
from iad_r1.settings.tracking import TrackingConfig
values = {**yaml.safe_load(Path("conf/tracking/wandb.yaml").read_text()), "init_timeout": 1.0}
with Tracker(TrackingConfig(**{**values, "mode": sys.argv[2]}), Path(sys.argv[1]), {}) as tracker:
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
def test_no_way_online_costs_one_sentence_and_the_run_goes_on_offline(tmp_path, mode, key, said):
    """In a process of its own: wandb keeps its server and login for a process's lifetime."""
    environ = {**os.environ, "WANDB_BASE_URL": "http://127.0.0.1:9", "PYTHONPATH": str(REPO)}
    run = subprocess.run(
        [sys.executable, "-c", ONLINE_SCRIPT, str(tmp_path), mode],
        env={**environ, **({"WANDB_API_KEY": key} if key else {})},
        cwd=REPO, capture_output=True, text=True, timeout=240, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout == "" and len(run.stderr.splitlines()) == 1 and said in run.stderr
    assert b"sft/loss" in wandb_bytes(tmp_path, b"sft/loss") and len(lines(tmp_path)) == 1


def test_an_environment_that_wandb_refuses_costs_one_sentence(tmp_path):
    environ = {**os.environ, "WANDB_BASE_URL": "not a url", "PYTHONPATH": str(REPO)}
    environ.pop("WANDB_MODE", None)
    run = subprocess.run(
        [sys.executable, "-c", ONLINE_SCRIPT, str(tmp_path), "auto"],
        env=environ, cwd=REPO, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout == "" and len(run.stderr.splitlines()) == 1
    assert "wandb could not start" in run.stderr and len(lines(tmp_path)) == 1


def test_a_failing_run_is_recorded_as_failed_and_its_error_is_not_swallowed(tmp_path):
    with pytest.raises(ZeroDivisionError), Tracker(tracking_settings(), tmp_path, {}) as tracker:
        tracker.log("sft", 0, {"loss": 1 / 0})
    assert lines(tmp_path) == [] and wandb_bytes(tmp_path, b"")


@pytest.mark.parametrize("error", [OSError, TypeError])
def test_wandb_dying_mid_run_does_not_stop_the_record(tmp_path, capfd, monkeypatch, error):
    with Tracker(tracking_settings(), tmp_path, {}) as tracker:
        run = tracker._run
        assert run is not None

        def broken(*_: object, **__: object) -> None:
            raise error("the service is gone")

        monkeypatch.setattr(run, "log", broken)
        tracker.log("sft", 0, {"loss": 1.0})
        tracker.log("sft", 1, {"loss": 0.5})
        run.finish()
    assert [line["step"] for line in lines(tmp_path)] == [0, 1]
    assert capfd.readouterr().err.count("wandb stopped (the service is gone)") == 1


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


def test_both_shipped_files_make_a_valid_config():
    none = yaml.safe_load((REPO / "conf/tracking/none.yaml").read_text())
    assert none.pop("defaults") == ["wandb", "_self_"]
    assert tracking_settings(**none).mode == "disabled"


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
