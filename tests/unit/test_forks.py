"""The process that tests fork has imported what it should have: a name that it does not find, it
passes over without a word, and every fork would import for itself."""

from __future__ import annotations

import sys
from pathlib import Path

import forks
import pytest


def say_what_is_there(file: Path) -> None:
    file.write_text("\n".join(sys.modules), encoding="utf-8")


@pytest.mark.slow
def test_a_fork_finds_the_trainers_imported(tmp_path):
    process = forks.start(say_what_is_there, tmp_path / "modules")
    process.join(timeout=240)
    assert process.exitcode == 0
    there = (tmp_path / "modules").read_text(encoding="utf-8").splitlines()
    assert {*forks.IMPORTED, "torch", "transformers", "iad_r1.loops.grpo"} <= set(there)
