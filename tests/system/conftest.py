"""Whole runs through the command line, as a user starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import forks
import pytest


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
    return Finished(folder, output, summary)


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
