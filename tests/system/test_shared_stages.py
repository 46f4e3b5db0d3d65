"""Sweeps whose runs share pre-training and PA-SFT: each is trained once, whoever comes first, and
however often a sweep is killed."""

from __future__ import annotations

import json
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import forks
import pandas
import pytest
from test_resume import SHORT, TIMED

from iad_r1 import report
from iad_r1.store import keys
from iad_r1.store.manifest import taken
from iad_r1.store.run_folder import RunFolder
from iad_r1.store.shared import Store

SWEEP = [
    "-m",
    *SHORT,
    "rewards=sc_grpo,answer_only",
    "name=run",
    "data.sizes.sft=64",
    "data.sizes.rl=16",
    "pretrain.images=16",
    "pretrain.batch_size=4",
    "grpo.steps=4",
    "evaluate.shots=[0]",
    "stage.tasks=[pretrain,sft,evaluate,grpo,evaluate]",
    "store.reuse=true",
]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def sweep(place: Path) -> Any:
    place.mkdir(exist_ok=True)
    return forks.start_run(SWEEP, place, place / f"log-{len(list(place.glob('log-*')))}.txt")


def said(place: Path) -> str:
    return "\n".join(file.read_text() for file in sorted(place.glob("log-*.txt")))


def finished(place: Path) -> Iterator[tuple[str, RunFolder]]:
    """The runs in a folder that have ended well, by their rewards."""
    for file in sorted((place / "outputs" / "run").glob("*/manifest.json")):
        run = RunFolder(file.parent)
        if run.read_json("manifest.json")["status"] == "finished":
            yield run.read_json("config.json")["rewards"]["name"], run


def left(run: RunFolder) -> dict[str, Any]:
    """All that a run leaves and a later one may read, less what time it took."""
    rows = map(json.loads, (run.path / "metrics.jsonl").read_text().splitlines())
    lines = [{k: v for k, v in row.items() if not k.startswith(TIMED)} for row in rows]
    answers = {file.name: file.read_bytes() for file in (run.path / "predictions").glob("*")}
    tables = {
        file.name: repr(pandas.read_parquet(file).to_dict())
        for file in (run.path / "rollouts").glob("*.parquet")
    }
    weights = {s: keys.weights(run.checkpoint(s)) for s in ("pretrain", "sft", "grpo")}
    return {"lines": lines, **answers, **tables, **weights, "results": run.summary()["results"]}


def trained(place: Path) -> Counter[str]:
    """How many finished runs have carried out a stage themselves, by its key."""
    found: Counter[str] = Counter()
    for _, run in finished(place):
        notes = run.read_json("manifest.json")["store"]
        found.update(n["key"] for n in notes.values() if "taken" not in n)
    return found


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What each run of a sweep leaves that nothing disturbs, by its rewards."""
    place = tmp_path_factory.mktemp("calm")
    process = sweep(place)
    process.join()
    assert process.exitcode == 0, said(place)[-3000:]
    found = {rewards: left(run) for rewards, run in finished(place)}
    assert found.keys() == {"sc_grpo", "answer_only"}
    assert found["sc_grpo"]["sft"] == found["answer_only"]["sft"]
    assert found["sc_grpo"]["grpo"] != found["answer_only"]["grpo"]
    assert said(place).count("PA-SFT: taken from") >= 1
    return found


def test_two_sweeps_that_start_together_train_what_they_share_once(calm, tmp_path):
    both = [sweep(tmp_path), None]
    time.sleep(0.05)
    both[1] = sweep(tmp_path)
    for process in both:
        process.join()
        assert process.exitcode == 0, said(tmp_path)[-3000:]
    runs = list(finished(tmp_path))
    assert Counter(rewards for rewards, _ in runs) == {"sc_grpo": 2, "answer_only": 2}
    for rewards, run in runs:
        assert left(run) == calm[rewards]
    assert set(trained(tmp_path).values()) == {1}  # whoever needs it, each was made once
    assert "waiting" in said(tmp_path)
    took = next(run for _, run in runs if any(taken(run.read_json("manifest.json"))))
    report.build(took.path)
    page = (took.path / "report.html").read_text(encoding="utf-8")
    assert all(line in page for line in taken(took.read_json("manifest.json")))


def test_a_sweep_that_is_killed_ten_times_goes_on_to_the_same_results(calm, tmp_path):
    """At instants spread over what it takes, each in the stage that it has come to by then."""
    luck = random.Random(0)
    for _ in range(10):
        process = sweep(tmp_path)
        before = steps(tmp_path)
        while process.exitcode is None and steps(tmp_path) < before + 5:
            time.sleep(0.002)
        time.sleep(luck.uniform(0, 0.2))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, said(tmp_path)[-3000:]
    process = sweep(tmp_path)
    process.join()
    assert process.exitcode == 0, said(tmp_path)[-3000:]
    runs = list(finished(tmp_path))
    assert {rewards for rewards, _ in runs} == {"sc_grpo", "answer_only"}
    for rewards, run in runs:
        assert left(run) == calm[rewards]
    assert "goes on after step" in said(tmp_path)
    kept = Store(tmp_path / "outputs")
    assert all(kept.sound(key)[1] is None for key, _, _ in kept.entries())


def steps(place: Path) -> int:
    """Of all runs, the lines of metrics and of answers."""
    found = 0
    for name in ("metrics.jsonl", "predictions/[!.]*"):
        for file in place.glob(f"outputs/run/*/{name}"):
            found += file.read_bytes().count(b"\n")
    return found
