"""The runs of a study: which there are, and which of them ended well."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from iad_r1.store.run_folder import RunFolder
from iad_r1.store.starts import ended_well


def runs(outputs: Path, study: str, arm: str, scale: str, seed: int) -> Iterator[RunFolder]:
    """The runs of an arm with this seed, the newest first, however they ended."""
    for file in sorted((outputs / study).glob("*/config.json"), reverse=True):
        run = RunFolder(file.parent)
        config = run.read_json("config.json")
        of = {"name": study, "arm": arm, "scale": scale}
        if config.get("study") == of and config.get("seed") == seed:
            yield run


def finished(outputs: Path, study: str, arm: str, scale: str, seed: int) -> RunFolder | None:
    """The newest of them that ended well."""
    return next((r for r in runs(outputs, study, arm, scale, seed) if ended_well(r)), None)


def command(study: str, arm: str, scale: str, seed: int) -> str:
    """What is typed to carry out one of them."""
    return f"python run.py study={study} scale={scale} study.arm={arm} seed={seed}"
