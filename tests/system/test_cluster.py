"""Sweeps as jobs, of this machine and of a real SLURM: they end with the numbers of plain runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

AUDIT = ["stage=audit", "tracking=none"]
RIGHT = {
    "completion": "<think>Nothing unusual.</think><answer>No</answer>",
    "solution": "<answer>No</answer>",
}


def sweep(repository: Path, place: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    """`python run.py -m <settings>` in `place`."""
    return subprocess.run(
        [sys.executable, str(repository / "run.py"), "-m", *settings],
        cwd=place, capture_output=True, text=True, timeout=800,
    )  # fmt: skip


def jobs(place: Path) -> list[dict]:
    """What the jobs of the only sweep in `place` left for its table."""
    files = place.glob("outputs/sweeps/*/*/job.json")
    return sorted((json.loads(file.read_text()) for file in files), key=lambda job: job["number"])


def test_the_runs_of_a_sweep_are_jobs_of_this_machine_and_one_that_fails_is_reported(
    repository, tmp_path
):
    (tmp_path / "right.jsonl").write_text(json.dumps(RIGHT) + "\n")
    (tmp_path / "torn.jsonl").write_text('{"completion": 1')
    done = sweep(
        repository, tmp_path, "hydra/launcher=submitit_local", *AUDIT,
        "stage.completions=right.jsonl,torn.jsonl",
    )  # fmt: skip
    first, second = jobs(tmp_path)
    assert first["code"] == 0 and (Path(first["folder"]) / "audit.json").is_file(), done.stderr
    assert second["code"] == done.returncode == 2
    assert "error: run 1: it ended with exit code 2." in done.stderr
    assert "torn.jsonl" in done.stderr and "All that it printed: " in done.stderr
    assert "refused" in done.stdout


def test_all_jobs_are_sent_or_none(repository, tmp_path):
    (tmp_path / "right.jsonl").write_text(json.dumps(RIGHT) + "\n")
    done = sweep(
        repository, tmp_path, "hydra/launcher=submitit_local", *AUDIT,
        "stage.completions=right.jsonl", "grpo.kl_coef=0,-1",
    )  # fmt: skip
    assert done.returncode == 2
    assert "grpo.kl_coef=-1: " in done.stderr and "nothing was sent" in done.stderr
    assert not list(tmp_path.glob("outputs/audit*"))
