"""Whole runs through the command line, as a user starts them."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import forks
import pytest

from iad_r1.backbones import tiny
from iad_r1.command import compose
from iad_r1.data import mix
from iad_r1.grid import as_grid
from iad_r1.loops.opening import corpus
from iad_r1.store import metrics
from iad_r1.store.run_folder import RunFolder
from iad_r1.types import Sample


class Finished(NamedTuple):
    """One run that ended: its folder, what it printed, and its summary."""

    folder: Path
    output: str
    summary: dict[str, Any]


@pytest.fixture(scope="session")
def iad(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Finished]:
    """`iad("stage=sft", ...)` runs `python run.py stage=sft ...` in `place`, or in a folder of its
    own."""

    def run(*overrides: str, name: str = "test", place: Path | None = None) -> Finished:
        place = place or tmp_path_factory.mktemp(name)
        environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
        done = subprocess.run(
            [sys.executable, str(repository / "run.py"), f"name={name}", *overrides],
            cwd=place,
            env=environment,
            capture_output=True,
            text=True,
            timeout=3000,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return finished(place, name, done.stdout)

    return run


@pytest.fixture(scope="session")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Finished]:
    """The same without the start of two Pythons, for runs whose command line is tested elsewhere;
    with one rank."""

    def run(*overrides: str, name: str = "test") -> Finished:
        place = tmp_path_factory.mktemp(name)
        log = place / "output.txt"
        process = forks.start_run([f"name={name}", *overrides], place, log)
        process.join()
        output = log.read_text(encoding="utf-8")
        assert process.exitcode == 0, output[-6000:]
        return finished(place, name, output)

    return run


def finished(place: Path, name: str, output: str) -> Finished:
    """What a run of this name, the only one in `place`, left."""
    (folder,) = (place / "outputs" / name).iterdir()
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert unlisted(folder) == set(), "logged, and not in iad_r1/store/metrics.py"
    return Finished(folder, output, summary)


def unlisted(folder: Path) -> set[str]:
    """Numbers that a run has logged and `iad_r1/store/metrics.py` does not name."""
    file = folder / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    names = {name for line in lines for name in json.loads(line)}
    return {name for name in names - {"stage", "step", "not_finite"} if not metrics.find(name)}


class TinyRun(NamedTuple):
    """A run that has weights, what was typed for it, and its test pictures."""

    folder: Path
    typed: list[str]
    pictures: list[Sample]


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """With tiny random weights, which write up to 40 tokens."""
    sizes = [f"data.sizes.{part}=8" for part in ("sft", "rl", "validation", "test")]
    typed = [*sizes, "evaluate.max_tokens=40"]
    config = compose.compose(typed)
    folder = RunFolder.create(tmp_path_factory.mktemp("run"), "before")
    folder.write_json("config.json", config.model_dump(mode="json"))
    dataset = mix.load(config.data, as_grid(config.grid), config.grid.mask_rule, config.seed)
    tiny.build(folder.checkpoint("sft"), corpus(config, dataset), 400, 9216, seed=0)
    pictures = [sample for split in dataset.test.values() for sample in split]
    return TinyRun(folder.path, typed, pictures)


@pytest.fixture
def killed() -> Callable[..., int]:
    """`killed(typed, place, lines, 4, 9)`: the exit code of a run that was killed with SIGKILL at a
    random instant after `lines(place)` had 4 lines and again 9, and gone on with."""

    def run(typed: list[str], place: Path, lines: Callable[[Path], list[str]], *after: int) -> int:
        place.mkdir()
        luck = random.Random(place.name)
        for share in after:
            process = forks.start_run([*typed, "resume=auto"], place, place / "log.txt")
            while process.exitcode is None and len(lines(place)) < share:
                time.sleep(0.002)
            time.sleep(luck.uniform(0, 0.1))
            process.kill()
            process.join()
            assert process.exitcode == -9, (place / "log.txt").read_text()
        process = forks.start_run([*typed, "resume=auto"], place, place / "log.txt")
        process.join()
        assert process.exitcode is not None
        return process.exitcode

    return run


@pytest.fixture
def value() -> Callable[..., float]:
    """`value(summary, "sft", "seen", "balanced_accuracy", shots=0)`: one number of `results`."""

    def find(summary: dict[str, Any], stage: str, split: str, metric: str, shots: int = 0) -> float:
        rows = [
            row
            for row in summary["results"]
            if (row["stage"], row["split"], row["shots"]) == (stage, split, shots)
        ]
        assert len(rows) == 1, f"{len(rows)} rows of {stage} {split} {shots}-shot"
        return rows[0][metric]

    return find
