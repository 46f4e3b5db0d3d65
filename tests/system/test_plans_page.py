"""The pages that are computed, docs/plans.md and the tables of docs/scale.md, are what the code
computes now."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("program", ["bench/plans.py", "bench/costs.py"])
def test_the_whole_page_is_what_the_code_computes_now(repository: Path, program: str) -> None:
    done = subprocess.run(
        [sys.executable, program, "--check"],
        cwd=repository,
        env={**os.environ, "PYTHONPATH": str(repository)},
        check=False,
    )
    assert done.returncode == 0, f"run `python {program}`"
