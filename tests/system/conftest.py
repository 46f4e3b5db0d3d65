"""Whole runs through the command line, as a user starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest


class Finished(NamedTuple):
    """One run that ended: its folder, what it printed, and its summary."""

    folder: Path
    output: str
    summary: dict[str, Any]


@pytest.fixture
def iad(repository: Path, tmp_path: Path) -> Callable[..., Finished]:
    """`iad("stage=sft", ...)` runs `python run.py stage=sft ...` in a folder of its own."""

    def run(*overrides: str, name: str = "test") -> Finished:
        environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
        done = subprocess.run(
            [sys.executable, str(repository / "run.py"), f"name={name}", *overrides],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=3000,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        folder = max((tmp_path / "outputs" / name).iterdir())
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        return Finished(folder, done.stdout, summary)

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
