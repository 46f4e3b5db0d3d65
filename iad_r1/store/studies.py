"""The runs of a study."""

from __future__ import annotations

from pathlib import Path

from iad_r1.store.run_folder import RunFolder
from iad_r1.store.starts import ended_well


def finished(outputs: Path, study: str, arm: str, scale: str, seed: int) -> RunFolder | None:
    """The newest run of an arm with this seed that ended well."""
    of = {"name": study, "arm": arm, "scale": scale}
    for file in sorted((outputs / study).glob("*/config.json"), reverse=True):
        run = RunFolder(file.parent)
        config = run.read_json("config.json")
        if config.get("study") == of and config.get("seed") == seed and ended_well(run):
            return run
    return None


def command(study: str, arm: str, scale: str, seed: int) -> str:
    """What is typed to carry one out."""
    return f"python run.py study={study} scale={scale} study.arm={arm} seed={seed}"
