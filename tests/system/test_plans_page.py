"""The whole of docs/plans.md is what the code computes now."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def test_the_whole_page_of_plans_is_what_the_code_computes_now(repository: Path) -> None:
    done = subprocess.run(
        [sys.executable, "bench/plans.py", "--check"],
        cwd=repository,
        env={**os.environ, "PYTHONPATH": str(repository)},
        check=False,
    )
    assert done.returncode == 0, "run `python bench/plans.py`"
