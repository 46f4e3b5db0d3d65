"""Run folders: never shared, never half-written, and honest about what they hold."""

from __future__ import annotations

import json
import math
import multiprocessing
import subprocess
import threading
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime
from pathlib import Path

import pytest

from iad_r1.errors import ConfigError, WeightsError
from iad_r1.store.manifest import manifest
from iad_r1.store.run_folder import RunFolder, recent_runs, write_json, write_text
from iad_r1.store.starts import find_start

NOW = datetime(2026, 1, 2, 3, 4, 5)


def make_run(path: Path, *stages: str) -> Path:
    """A run folder with a checkpoint of each of `stages`."""
    for stage in stages:
        (path / "checkpoints" / stage).mkdir(parents=True)
        (path / "checkpoints" / stage / "config.json").write_text("{}")
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text("{}")
    return path


def create(outputs: Path) -> Path:
    return RunFolder.create(outputs, "study", NOW).path


# --- creation ------------------------------------------------------------------------------------


def test_a_folder_is_named_by_run_and_second_and_is_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = RunFolder.create(Path("outputs"), "study", NOW)
    assert folder.path == tmp_path / "outputs" / "study" / "2026-01-02_03-04-05"
    assert folder.path.is_dir()


def test_runs_that_start_in_the_same_second_never_share_a_folder(tmp_path):
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("fork")) as pool:
        made = list(pool.map(create, [tmp_path] * 40))
    assert len(set(made)) == 40
    assert all(path.is_dir() for path in made)


def test_folders_of_one_second_sort_after_those_of_earlier_seconds(tmp_path):
    first, second = create(tmp_path), create(tmp_path)
    later = RunFolder.create(tmp_path, "study", datetime(2026, 1, 2, 3, 4, 6)).path
    assert sorted([later.name, second.name, first.name]) == [first.name, second.name, later.name]


# --- writing -------------------------------------------------------------------------------------


def test_a_value_that_cannot_be_written_leaves_the_old_file_and_nothing_else(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_json("summary.json", {"n": 1})
    for value in ({"n": math.nan}, {"n": object()}):
        with pytest.raises((ValueError, TypeError)):
            folder.write_json("summary.json", value)
    assert folder.read_json("summary.json") == {"n": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_a_failed_rename_leaves_no_temporary_file(tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "inside").touch()
    with pytest.raises(OSError):
        write_text(tmp_path / "taken", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_reader_sees_the_old_file_or_the_new_one_and_never_a_part(tmp_path):
    file = tmp_path / "summary.json"
    write_json(file, {"rows": [0] * 5000})
    seen: set[int] = set()
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
            assert len(rows) == 5000 and len(set(rows)) == 1
            seen.add(rows[0])

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(1, 60):
            write_json(file, {"rows": [number] * 5000})
    finally:
        stop.set()
        reader.join()
    assert len(seen) > 1, "the reader never saw a change, so this proves nothing"


def test_written_files_are_as_readable_as_any_other(tmp_path):
    (tmp_path / "plain").touch()
    write_json(tmp_path / "ours.json", {})
    assert (tmp_path / "ours.json").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_updating_a_file_keeps_what_others_wrote_into_it(tmp_path):
    folder = RunFolder(tmp_path)
    folder.update_manifest(code={"commit": "abc"})
    folder.update_manifest(data={"fingerprint": "f"})
    assert folder.read_json("manifest.json") == {
        "code": {"commit": "abc"}, "data": {"fingerprint": "f"},
    }  # fmt: skip


def test_seconds_of_a_phase_add_up(tmp_path):
    folder = RunFolder(tmp_path)
    folder.update_summary(results=[{"n": 1}])
    folder.add_seconds("evaluate", 1.5)
    folder.add_seconds("sft", 4.0)
    folder.add_seconds("evaluate", 2.0)
    assert folder.summary() == {"results": [{"n": 1}], "seconds": {"evaluate": 3.5, "sft": 4.0}}


def test_paths_are_written_as_text_and_other_letters_as_themselves(tmp_path):
    file = write_json(tmp_path / "a.json", {"path": tmp_path, "name": "Ø 3×3"})
    assert json.loads(file.read_text(encoding="utf-8")) == {"path": str(tmp_path), "name": "Ø 3×3"}
    assert "Ø 3×3" in file.read_text(encoding="utf-8")


# --- starting from an earlier run ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("stages", "chosen"),
    [
        (("pretrain",), "pretrain"),
        (("pretrain", "sft"), "sft"),
        (("grpo", "pretrain", "sft"), "grpo"),
    ],
)
def test_a_run_is_continued_from_its_most_trained_checkpoint(stages, chosen, tmp_path):
    start = find_start(make_run(tmp_path / "run", *stages))
    assert (start.stage, start.path) == (chosen, tmp_path / "run" / "checkpoints" / chosen)
    assert start.run.path == tmp_path / "run"


def test_one_checkpoint_of_a_run_can_be_chosen(tmp_path):
    make_run(tmp_path / "run", "sft", "grpo")
    start = find_start(tmp_path / "run" / "checkpoints" / "sft")
    assert (start.stage, start.run.path) == ("sft", tmp_path / "run")


def test_an_adapter_is_a_checkpoint_and_an_unfinished_one_is_not(tmp_path):
    make_run(tmp_path / "run", "pretrain")
    (tmp_path / "run" / "checkpoints" / "sft").mkdir()
    (tmp_path / "run" / "checkpoints" / "sft" / "adapter_config.json").touch()
    (tmp_path / "run" / "checkpoints" / "grpo").mkdir()
    assert find_start(tmp_path / "run").stage == "sft"


def test_a_folder_that_is_no_run_is_refused_with_the_latest_runs(tmp_path):
    outputs = tmp_path / "outputs"
    latest = make_run(outputs / "b" / "2026-01-03_00-00-00", "sft")
    make_run(outputs / "a" / "2026-01-02_00-00-00", "grpo")
    (outputs / "a" / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"holds no config\.json") as caught:
        find_start(outputs / "a" / "empty")
    assert str(latest) in str(caught.value)
    with pytest.raises(ConfigError, match="there is no run folder"):
        find_start(outputs / "a" / "nowhere")


def test_a_run_without_weights_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="saved no weights"):
        find_start(make_run(tmp_path / "run"))


def test_recent_runs_are_newest_first_and_only_those_with_the_stages_asked_for(tmp_path):
    old = make_run(tmp_path / "z" / "2026-01-01_00-00-00", "sft")
    new = make_run(tmp_path / "a" / "2026-01-02_00-00-00", "grpo", "sft")
    make_run(tmp_path / "a" / "2026-01-03_00-00-00", "pretrain")
    make_run(tmp_path / "a" / "2026-01-04_00-00-00")
    assert recent_runs(tmp_path, ("sft", "grpo")) == [new, old]
    assert recent_runs(tmp_path, ("sft",), limit=1) == [new]
    assert recent_runs(tmp_path / "nowhere") == []


# --- what ran where ------------------------------------------------------------------------------


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    done = subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout.strip()


def test_the_manifest_knows_the_revision_and_whether_it_was_changed(tmp_path):
    assert manifest(tmp_path)["code"] == {"commit": None, "dirty": None}
    git(tmp_path, "init", "-q")
    (tmp_path / "a.py").write_text("a = 1\n")
    git(tmp_path, "add", "a.py")
    git(tmp_path, "commit", "-qm", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert manifest(tmp_path)["code"] == {"commit": commit, "dirty": False}
    (tmp_path / "a.py").write_text("a = 2\n")
    assert manifest(tmp_path)["code"] == {"commit": commit, "dirty": True}


def test_the_manifest_knows_versions_and_hardware(tmp_path, repository):
    found = manifest(repository)
    assert found["packages"]["torch"] and found["packages"]["transformers"]
    assert found["hardware"]["cores"] >= 1 and found["hardware"]["cpu"]
    write_json(tmp_path / "manifest.json", found)
