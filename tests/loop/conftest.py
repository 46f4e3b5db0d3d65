"""A run small enough for a test: the tiny model, two dozen drawn pictures, no tracker."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from small_run import small_context

from iad_r1.learn.context import Context


@pytest.fixture
def make_context(tmp_path: Path) -> Callable[..., Context]:
    """`make_context("grpo.kl_coef=0", ...)`: a fresh tiny run with these settings on top."""
    return partial(small_context, tmp_path)
