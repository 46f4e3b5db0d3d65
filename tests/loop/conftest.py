"""A run small enough for a test: the tiny model, two dozen drawn pictures, no tracker."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from small_run import SMALL

from iad_r1.backbones import tiny
from iad_r1.backbones.backbone import Backbone
from iad_r1.command import compose
from iad_r1.data import mix
from iad_r1.grid import as_grid
from iad_r1.learn.context import Context
from iad_r1.loops.opening import corpus
from iad_r1.store.run_folder import RunFolder


@pytest.fixture
def make_context(tmp_path: Path) -> Callable[..., Context]:
    """`make_context("grpo.kl_coef=0", ...)`: a fresh tiny run with these settings on top."""

    def make(*overrides: str) -> Context:
        config = compose.compose([*SMALL, *overrides])
        folder = RunFolder.create(tmp_path, config.name)
        dataset = mix.load(config.data, as_grid(config.grid), config.grid.mask_rule, config.seed)
        path = tiny.build(folder.checkpoint("base"), corpus(config, dataset), 400, 9216, seed=0)
        return Context(config, folder, None, dataset, Backbone.load(path), "base")

    return make
