"""Results that runs share: what makes their key, and how they lie on disk."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from iad_r1.command import compose
from iad_r1.data import lists
from iad_r1.data.cache import Kept
from iad_r1.errors import ConfigError
from iad_r1.stages import store as stage
from iad_r1.store import checkpoints, keys, shared
from iad_r1.store.run_folder import RunFolder
from iad_r1.store.shared import Store
from iad_r1.types import Cut, Mask, Question, Sample, Solution

STAGES: list[keys.Stage] = ["pretrain", "sft", "grpo", "evaluate"]
ABOUT = {"stage": "sft", "run": "/runs/a", "seconds": 3.0}


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    return compose.compose(["tracking=none"]).model_dump(mode="json")


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def changed(values: Mapping[str, Any], path: str) -> dict[str, Any]:
    """With another value in one place."""
    name, _, rest = path.partition(".")
    return {**values, name: changed(values[name], rest) if rest else [values[name], "changed"]}


# --- keys ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_every_setting_that_reaches_a_stage_changes_its_key(plain, stage):
    def key(config: Mapping[str, Any]) -> str:
        return keys.key(stage, {"settings": keys.settings_of(stage, config)})

    reaching = set(leaves(keys.settings_of(stage, plain)))
    moved = {path for path in leaves(plain) if key(changed(plain, path)) != key(plain)}
    assert moved == reaching
    assert {"seed", "engine.ranks", "engine.threads", "backbone.name"} <= moved
    own = {"evaluate": "evaluate.max_tokens"}.get(stage, f"{stage}.learning_rate")
    assert own in moved
    assert not moved & {"name", "resume", "tracking.mode", "checkpoint.keep", "store.reuse"}


def test_what_is_left_out_is_named_as_it_is_spelled(plain):
    names = {path for path in leaves(plain)}
    known = {".".join(p.split(".")[:n]) for p in names for n in (1, 2)} | {"rollout.servers"}
    assert not {*keys.FREE, *(name for of in keys.OTHERS.values() for name in of)} - known
    files = [file.relative_to(keys.PACKAGE).as_posix() for file in keys.PACKAGE.rglob("*")]
    for place in {*keys.OUTSIDE, *(name for of in keys.UNUSED.values() for name in of)}:
        assert any(file.startswith(place) for file in files), place
    for loops in keys.LOOPS.values():
        assert all((keys.PACKAGE / "loops" / name).is_file() for name in loops)


def test_stages_share_what_they_share_and_not_more(plain):
    def made(*overrides: str) -> dict[str, str]:
        config = compose.compose(["tracking=none", *overrides]).model_dump(mode="json")
        return {s: keys.key(s, {"settings": keys.settings_of(s, config)}) for s in STAGES}

    def same(one: dict[str, str], other: dict[str, str]) -> list[str]:
        return [stage for stage in STAGES if one[stage] == other[stage]]

    own = made()
    rewarded = made("rewards=answer_only", "grpo.steps=3", "name=other")
    assert same(own, rewarded) == ["pretrain", "sft", "evaluate"]  # no vocabulary: graded alike
    assert same(own, made("grid=4x4")) == ["pretrain"]


def test_the_code_of_a_stage_is_what_it_runs_through(tmp_path, monkeypatch):
    package = tmp_path / "iad_r1"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(keys.PACKAGE, package, ignore=ignored)
    monkeypatch.setattr(keys, "PACKAGE", package)

    def codes() -> dict[str, str]:
        keys.code_of.cache_clear()
        return {stage: keys.code_of(stage) for stage in STAGES}

    for file, stages in {
        "learn/optim.py": STAGES,
        "loops/grpo.py": ["grpo"],
        "loops/sft.py": ["pretrain", "sft"],
        "rewards/vocabularies/default.yaml": ["grpo", "evaluate"],
        "report/page.py": [],
    }.items():
        before = codes()
        (package / file).write_text((package / file).read_text() + "\n")
        after = codes()
        assert [stage for stage in STAGES if after[stage] != before[stage]] == stages, file
    keys.code_of.cache_clear()


def test_files_that_settings_name_count_by_their_content(tmp_path, monkeypatch):
    words = tmp_path / "types.yaml"
    words.write_text("a")
    (tmp_path / "my_rewards_of_store").mkdir()
    (tmp_path / "my_rewards_of_store" / "one.py").write_text("def score(case): return 1.0")
    monkeypatch.syspath_prepend(str(tmp_path))
    function = {"function": "my_rewards_of_store.one:score"}
    config = {"rewards": {"vocabulary": str(words), "components": {"mine": function}}}
    code = tmp_path / "my_rewards_of_store" / "one.py"
    for file, stages in ((words, ["grpo", "evaluate"]), (code, ["grpo"])):
        before = {stage: keys.users_code(stage, config) for stage in STAGES}
        file.write_text(file.read_text() + "\n")
        after = {stage: keys.users_code(stage, config) for stage in STAGES}
        assert [stage for stage in STAGES if after[stage] != before[stage]] == stages


def test_weights_are_known_by_their_content_whatever_their_card_says(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    before = keys.weights(tmp_path)
    (tmp_path / "README.md").write_text("trained on a Monday")
    (tmp_path / ".partial").write_text("")
    assert keys.weights(tmp_path) == before
    (tmp_path / "model.safetensors").write_bytes(b"weighty")
    assert keys.weights(tmp_path) != before


# --- lists of samples ----------------------------------------------------------------------------


def picture(shade: int) -> Image.Image:
    return Image.fromarray(np.full((4, 4, 3), shade, np.uint8))


def sample(**values: Any) -> Sample:
    own = {"id": "1", "dataset": "d", "split": "train", "product": "p", "image": picture(1),
           "solution": Solution("No"), **values}  # fmt: skip
    return Sample(**own)


def fingerprint(*samples: Sample) -> str:
    with Kept() as kept:
        return lists.fingerprint({"learned": samples}, kept)


def test_whatever_can_be_seen_of_a_list_changes_its_fingerprint(tmp_path):
    files = [tmp_path / f"{shade}.png" for shade in (1, 2)]
    for shade, file in enumerate(files):
        picture(shade).save(file)
    base = sample()
    bad = sample(solution=Solution("Yes"))
    marked = replace(bad, mask=Mask((files[0],)))
    others = [
        base, bad, marked,
        replace(base, id="2"),
        replace(base, product="q"),
        replace(base, image=picture(2)),
        replace(base, image=files[0]),
        replace(base, image=files[1]),
        replace(base, image=Cut(files[0], (0, 0, 2, 2))),
        replace(base, image=Cut(files[0], (0, 0, 2, 3))),
        replace(base, references=(sample(),)),
        replace(base, references=(sample(image=picture(2)),)),
        replace(base, question=Question("why?")),
        replace(base, question=Question(options={"A": "a", "B": "b"}), solution=Solution("A")),
        replace(base, target="<answer>No</answer>"),
        replace(base, shots=1),
        replace(bad, solution=Solution("Yes", "top left")),
        replace(bad, solution=Solution("Yes", None, "scratch")),
        replace(bad, mask=picture(1)),
        replace(marked, mask=Mask((files[1],))),
        replace(marked, mask=Mask((files[0],), inverted=True)),
    ]  # fmt: skip
    prints = [fingerprint(one) for one in others]
    assert len(set(prints)) == len(prints)
    assert fingerprint(base, bad) != fingerprint(bad, base)
    assert fingerprint(replace(base, where="line 3")) == fingerprint(base)
    shutil.move(files[0], tmp_path / "moved.png")
    assert fingerprint(replace(base, image=tmp_path / "moved.png")) == prints[6]


# --- on disk -------------------------------------------------------------------------------------


@pytest.fixture
def made(tmp_path: Path) -> dict[str, Path | str]:
    """What a stage left in its run folder."""
    (tmp_path / "run").mkdir()
    file = tmp_path / "run" / "model.safetensors"
    file.write_bytes(b"0123456789")
    return {"checkpoint/model.safetensors": file, "metrics.jsonl": '{"step": 0}\n'}


def test_a_result_is_found_as_it_was_kept_and_its_files_take_room_once(tmp_path, made):
    store = Store(tmp_path / "outputs")
    assert store.sound("key") == (None, None)
    store.publish("key", made, ABOUT)
    found, damage = store.sound("key")
    assert found is not None and damage is None
    assert found.about["run"] == "/runs/a" and found.bytes == 22
    kept = found.files("checkpoint")["model.safetensors"]
    assert kept.read_bytes() == b"0123456789"
    assert os.path.samefile(kept, tmp_path / "run" / "model.safetensors")


@pytest.mark.parametrize("damage", ["missing", "shorter", "changed", "entry", "entry of nothing"])
def test_a_damaged_result_is_noticed_and_can_be_replaced(tmp_path, made, damage):
    store = Store(tmp_path / "outputs")
    file = store.publish("key", made, ABOUT).files()["checkpoint/model.safetensors"]
    entry = store.path / "key" / shared.ENTRY
    if damage == "missing":
        file.unlink()
    elif damage == "entry":
        entry.write_text(entry.read_text()[:-9])
    elif damage == "entry of nothing":
        entry.write_text("{}")
    else:
        file.write_bytes({"shorter": b"012345678", "changed": b"0123456780"}[damage])
    found, said = store.sound("key")
    assert found is None and said
    assert damage not in ("missing", "shorter", "changed") or "model.safetensors" in said
    (tmp_path / "run" / "model.safetensors").write_bytes(b"0123456789")
    store.publish("key", made, ABOUT)
    assert store.sound("key")[1] is None


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.EMLINK])
def test_where_there_are_no_hard_links_files_are_copied(tmp_path, made, monkeypatch, number):
    def refuse(*_: object) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(os, "link", refuse)
    found = Store(tmp_path / "outputs").publish("key", made, ABOUT)
    kept = found.files("checkpoint")["model.safetensors"]
    assert kept.read_bytes() == b"0123456789"
    assert not os.path.samefile(kept, tmp_path / "run" / "model.safetensors")


def test_a_full_disk_leaves_nothing_half_kept(tmp_path, made, monkeypatch):
    store = Store(tmp_path / "outputs")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shared, "write_json", full)
    with pytest.raises(OSError):
        store.publish("key", made, ABOUT)
    assert store.sound("key") == (None, None)
    assert not list(store.path.glob(f"{checkpoints.PARTIAL}*"))


def hold(outputs: Path, ready: Any, end: Any) -> None:
    lock = Store(outputs).lock("key")
    assert lock.tried()
    lock.say("run a")
    ready.set()
    end.wait(30)


def test_a_lock_goes_with_its_process_and_says_who_holds_it(tmp_path, made):
    spawned = multiprocessing.get_context("fork")
    ready, end = spawned.Event(), spawned.Event()
    process = spawned.Process(target=hold, args=(tmp_path, ready, end))
    process.start()
    assert ready.wait(30)
    store = Store(tmp_path)
    store.publish("key", made, ABOUT)
    lock = store.lock("key")
    assert not lock.tried() and lock.said() == "run a"
    assert not store.remove("key") and store.entry("key") is not None
    process.kill()
    process.join()
    deadline = time.monotonic() + 10
    while not lock.tried():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert lock.said() == ""
    lock.close()
    assert store.remove("key") and store.entry("key") is None


def test_what_lies_there_is_listed_damaged_or_not(tmp_path, made):
    store = Store(tmp_path)
    assert list(store.entries()) == []
    store.publish("a", made, ABOUT)
    store.publish("b", made, ABOUT)
    (store.path / "b" / shared.ENTRY).write_text("{")
    (store.path / f"{checkpoints.PARTIAL}c").mkdir()
    (_, whole, none), (key, nothing, damage) = store.entries()
    assert whole is not None and whole.key == "a" and none is None
    assert key == "b" and nothing is None and damage
    assert json.loads((store.path / "a" / shared.ENTRY).read_text())["key"] == "a"


# --- stage=store ---------------------------------------------------------------------------------


@pytest.fixture
def outputs(tmp_path: Path, made: Mapping[str, Path | str]) -> Path:
    """Three results, one of which is damaged, and a run that took one."""
    store = Store(tmp_path / "outputs")
    store.publish("aaaa", made, ABOUT)
    store.publish("bbbb", {"answers": "yes"}, {**ABOUT, "stage": "evaluate", "seconds": 1.0})
    store.publish("cccc", made, ABOUT)
    (store.path / "cccc" / shared.ENTRY).write_text("{}")
    note = {"sft": {"key": "aaaa", "kept": True, "taken": {"run": "/runs/a", "seconds": 3.0}}}
    for name in ("b", "c"):
        RunFolder.create(tmp_path / "outputs", name).update_manifest(store=note)
    return tmp_path / "outputs"


def test_the_list_says_what_each_result_is_and_what_it_saved(outputs, capsys):
    rows = {row.key: row for row in stage.listed(Store(outputs))}
    assert rows["aaaa"].taken == 2 and rows["aaaa"].saved == 6.0
    assert rows["aaaa"].bytes == 22 and rows["aaaa"].alone == 12  # the metrics; weights are linked
    assert rows["bbbb"].stage == "evaluate" and rows["bbbb"].taken == 0
    assert rows["cccc"].damage is not None
    stage.show(list(rows.values()))
    said = capsys.readouterr().out
    assert "damaged" in said and "runs/a" in said and "spared 6.0 s" in " ".join(said.split())


@pytest.mark.parametrize(
    ("named", "days", "found"),
    [
        ([], None, []),
        (["all"], None, ["aaaa", "bbbb", "cccc"]),
        (["sft"], None, ["aaaa"]),
        (["cccc", "evaluate"], None, ["bbbb", "cccc"]),
        (["all"], 1.0, []),
    ],
)
def test_what_is_removed_is_named_by_key_or_stage_or_all(outputs, named, days, found):
    rows = list(stage.listed(Store(outputs)))
    assert sorted(row.key for row in stage.chosen(rows, named, days)) == found


def test_a_name_that_is_none_is_refused(outputs):
    with pytest.raises(ConfigError, match="dddd"):
        stage.chosen(list(stage.listed(Store(outputs))), ["dddd"], None)
    with pytest.raises(ConfigError, match="older_than"):
        compose.compose(["stage=store", "older_than=3"])
    with pytest.raises(ConfigError, match="name=store"):
        compose.compose(["name=store"])


def test_a_run_keeps_what_is_removed_from_the_store(outputs, made):
    config = compose.compose(["stage=store", "remove=[all]", "tracking=none"])
    stage.Stage().run(config, RunFolder.create(outputs, "stored"))
    assert list(Store(outputs).entries()) == []
    assert Path(made["checkpoint/model.safetensors"]).read_bytes() == b"0123456789"
