"""Checkpoint folders: whole or not there, found again, and thrown away when newer ones exist.

A folder is written under a temporary name, flushed to disk and renamed, so one with its proper
name is complete, whenever the process was killed. Temporary ones are recognised by their name.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

PARTIAL = ".partial-"  # first letters of a folder that is being written
STATE = "state.json"  # in the checkpoint of an unfinished stage


@contextmanager
def write_folder(path: Path) -> Iterator[Path]:
    """A fresh folder to write into; it takes the name `path` when the block ends without error.

    An older `path` is replaced. A process that is killed inside leaves only the temporary folder,
    which the next call for the same path removes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / f"{PARTIAL}{path.name}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        flush(partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if path.exists():  # two renames: a kill between them leaves no `path`, never half of one
        old = path.parent / f"{PARTIAL}old-{path.name}"
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
        partial.rename(path)
        shutil.rmtree(old)
    else:
        partial.rename(path)
    _flush(path.parent)


def flush(folder: Path) -> None:
    """Have the disk hold every file below `folder`, and the folders' entries."""
    for place, _, files in os.walk(folder):
        for name in files:
            _flush(Path(place) / name)
        _flush(Path(place))


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# --- checkpoints of a stage that has not ended -------------------------------------------------


@dataclass(frozen=True)
class Unfinished:
    """The checkpoint of a stage after `step` optimiser steps, in its leg number `leg`."""

    path: Path
    stage: str
    step: int

    @property
    def state(self) -> dict[str, Any]:
        """What was kept beside weights and optimiser."""
        return json.loads((self.path / STATE).read_text(encoding="utf-8"))


def unfinished_path(checkpoints: Path, stage: str, step: int) -> Path:
    """Where a stage's checkpoint after `step` steps is kept."""
    return checkpoints / f"{stage}-step-{step:06d}"


def unfinished(checkpoints: Path, stage: str) -> list[Unfinished]:
    """The whole checkpoints of a stage, oldest first. Half-written ones do not count."""
    pattern = re.compile(re.escape(stage) + r"-step-(\d+)")
    found = [
        Unfinished(path, stage, int(match[1]))
        for path in checkpoints.glob(f"{stage}-step-*")
        if (match := pattern.fullmatch(path.name)) and (path / STATE).is_file()
    ]
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def retire(checkpoints: Path, stage: str, keep: int, best: int | None) -> None:
    """Remove all but the `keep` newest checkpoints of a stage and the one at step `best`; what a
    killed process left half-written goes too."""
    found = unfinished(checkpoints, stage)
    for old in found[: max(len(found) - keep, 0)]:
        if old.step != best:
            shutil.rmtree(old.path)
    for partial in checkpoints.glob(f"{PARTIAL}*{stage}-step-*"):
        shutil.rmtree(partial, ignore_errors=True)


# --- random numbers ----------------------------------------------------------------------------


def random_state() -> dict[str, Any]:
    """The state of every global stream of random numbers in this process."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # libraries may draw from it
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Take the streams up where `random_state` found them."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
