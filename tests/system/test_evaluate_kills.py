"""An evaluation that is killed and started again is that of a calm run, and pays nothing twice."""

from __future__ import annotations

import threading
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import forks
import pytest
from services import Service, body, served

from iad_r1.store.run_folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
TYPED = [
    "stage=evaluate", "backbone=api", "backbone.model=m", "tracking=none", "resume=auto",
    "stage.tasks=[evaluate]", "data.sizes.test=4", "data.sizes.sft=8", "data.sizes.rl=4",
    "evaluate.shots=[0,1]", "backbone.concurrency=1", "backbone.dollars_in=1",
    "backbone.dollars_out=1",
]  # fmt: skip
QUESTIONS = 2 * 2 * 4  # splits, shots, pictures


def started(service: Service, place: Path) -> ForkServerProcess:
    place.mkdir(exist_ok=True)
    return forks.start_run([*TYPED, f"backbone.base_url={service.url}"], place, place / "log.txt")


def finished(service: Service, place: Path) -> RunFolder:
    process = started(service, place)
    process.join()
    assert process.exitcode == 0, (place / "log.txt").read_text()[-3000:]
    [folder] = (place / "outputs").glob("*/*-*")
    return RunFolder(folder)


def test_killed_three_times_it_loses_and_repeats_nothing(tmp_path):
    with served() as service:
        reached, held = threading.Event(), threading.Event()
        kills = iter((3, 9, 14))  # as the question of that number comes
        stop = next(kills)

        def answer(n: int, asked: dict[str, Any]) -> tuple[int, bytes]:
            if n == stop:
                reached.set()
                held.wait(60)
            word = ("Yes", "No")[hash(str(asked["messages"])) % 2]
            refused = "No." if hash(str(asked["messages"])) % 5 == 0 else None
            return 200, body(f"<think>a</think><answer>{word}</answer>", refusal=refused)

        service.answer = answer
        for _ in range(3):
            process = started(service, tmp_path / "killed")
            assert reached.wait(120), (tmp_path / "killed" / "log.txt").read_text()[-3000:]
            process.kill()
            process.join()
            reached.clear()
            stop = next(kills, -1)
        held.set()
        killed = finished(service, tmp_path / "killed")
        assert len(service.asked) == QUESTIONS + 3
        calm = finished(service, tmp_path / "calm")
    wanted = {file.name: file.read_bytes() for file in (calm.path / "predictions").iterdir()}
    assert sum(text.count(b"\n") for text in wanted.values()) == QUESTIONS
    found = {file.name: file.read_bytes() for file in (killed.path / "predictions").iterdir()}
    assert found == wanted
    for name in ("results", "thresholds", "asked"):
        assert killed.summary()[name] == calm.summary()[name]
    assert calm.summary()["asked"]["replies"] == QUESTIONS
