"""A sweep says at its end what failed, and goes on where it was stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from iad_r1.command import compose, launch
from iad_r1.settings.config import Config
from iad_r1.store import keys
from iad_r1.store.run_folder import RunFolder


def job(number: int, code: int, folder: Path | None = None, problem: str | None = None) -> Any:
    typed = ["stage=sft", f"seed={number}", "sft.phases.0.steps=3"]
    return {"number": number, "overrides": typed, "code": code, "problem": problem,
            "folder": None if folder is None else str(folder)}  # fmt: skip


def test_each_failed_run_is_said_with_its_error_and_its_command(tmp_path):
    failed, killed = (RunFolder.create(tmp_path, name) for name in ("failed", "killed"))
    failed.update_manifest(status="failed")
    (failed.path / "error.txt").write_text(
        "Traceback ...\n  File x\nValueError: three is no four\n"
    )
    killed.update_manifest(status="running")
    (killed.path / "error.txt").write_text("of an earlier attempt")
    jobs = [
        job(0, 0),
        job(1, 1, failed.path),
        job(2, 2, problem="seed=x is no number."),
        job(3, 137, killed.path),
    ]
    said = "\n".join(launch.failures(jobs))
    assert "run 0" not in said
    assert f"run 1: ValueError: three is no four (in full: {failed.path / 'error.txt'})" in said
    assert "run 2: seed=x is no number." in said
    assert "run 3: it ended with exit code 137" in said and "earlier attempt" not in said
    for number in (1, 2, 3):
        assert f"python run.py stage=sft seed={number} sft.phases.0.steps=3" in said


@pytest.fixture
def begun(tmp_path: Path) -> tuple[Config, RunFolder]:
    """The settings of a run, and one of these that was killed in PA-SFT."""
    config = compose.compose(["stage=sft", "tracking=none"])
    folder = RunFolder.create(tmp_path, config.name)
    folder.write_json("config.json", config.model_dump(mode="json"))
    facts = {"code": keys.code_of("sft"), "libraries": keys.versions()}
    folder.update_manifest(
        status="running",
        store={"pretrain": {"key": "a", "kept": True},
               "sft": {"key": "b", "kept": False, "facts": facts}},
    )  # fmt: skip
    return config, folder


def test_a_sweep_that_is_typed_again_goes_on_with_what_has_not_ended(begun, tmp_path):
    config, folder = begun
    assert launch.taken_up(config, tmp_path).resume == str(folder.path)
    other = config.model_copy(update={"seed": 3})
    assert launch.taken_up(other, tmp_path).resume is None
    folder.update_manifest(status="finished")
    assert launch.taken_up(config, tmp_path).resume is None


def test_what_other_code_has_begun_begins_anew(begun, tmp_path, monkeypatch):
    config, folder = begun
    monkeypatch.setattr(keys, "code_of", lambda stage: f"another {stage}")
    assert launch.taken_up(config, tmp_path).resume is None
    note = folder.read_json("manifest.json")["store"]["pretrain"]
    folder.update_manifest(store={"pretrain": note})  # what has ended counts by its own key
    assert launch.taken_up(config, tmp_path).resume == str(folder.path)


def test_a_run_that_somebody_works_on_is_left_to_them(begun, tmp_path, monkeypatch):
    config, _ = begun
    monkeypatch.setattr(RunFolder, "is_running", lambda self: True)
    assert launch.taken_up(config, tmp_path).resume is None
