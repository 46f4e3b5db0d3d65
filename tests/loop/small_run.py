"""A run that is small enough for a test: its settings, and what came of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch

from iad_r1.backbones import tiny
from iad_r1.backbones.backbone import Backbone
from iad_r1.command import compose
from iad_r1.data import mix
from iad_r1.errors import Terminated
from iad_r1.grid import as_grid
from iad_r1.learn.context import Context
from iad_r1.learn.saving import Saver
from iad_r1.loops import grpo
from iad_r1.loops.opening import corpus
from iad_r1.store.run_folder import RunFolder

SMALL = [
    "data.sizes.sft=24",
    "data.sizes.rl=12",
    "data.sizes.validation=8",
    "data.sizes.test=8",
    "rollout.max_tokens=12",
    "evaluate.max_tokens=12",
    "grpo.prompts_per_step=4",
    "grpo.group_size=4",
    "grpo.steps=2",
    "engine.ranks=1",
    "tracking=none",
    "store.reuse=false",
]


def small_context(place: Path, *overrides: str) -> Context:
    """A fresh tiny run in `place` with these settings on top."""
    config = compose.compose([*SMALL, *overrides])
    folder = RunFolder.create(place, config.name)
    dataset = mix.load(config.data, as_grid(config.grid), config.grid.mask_rule, config.seed)
    path = tiny.build(folder.checkpoint("base"), corpus(config, dataset), 400, 9216, seed=0)
    return Context(config, folder, None, dataset, Backbone.load(path), "base")


def logged(context: Context) -> list[dict[str, float]]:
    """The metrics of each step of a training."""
    lines: list[dict[str, float]] = []
    with mock.patch.object(context, "log", lambda stage, step, values: lines.append(dict(values))):
        grpo.train(context)
    return lines


def stopped(context: Context, after: int, train: Callable[[Context], None] = grpo.train) -> Context:
    """A training, asked to stop in the step `after`, as SIGTERM does; what goes on from there."""
    done = Saver.done

    def told(self: Saver, step: int, values: dict[str, float]) -> None:
        if step == after:
            self.asked_to_stop.append(15)
        done(self, step, values)

    with mock.patch.object(Saver, "done", told), pytest.raises(Terminated):
        train(context)
    again = copy.copy(context)
    again.backbone = Backbone.load(context.folder.checkpoint("base"))
    return again


def weights(context: Context) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in context.model.parameters()]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
