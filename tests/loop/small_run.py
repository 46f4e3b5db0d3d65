"""A run that is small enough for a test: its settings, and what came of it."""

from __future__ import annotations

from unittest import mock

import torch

from iad_r1.learn.context import Context
from iad_r1.loops import grpo

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
]


def logged(context: Context) -> list[dict[str, float]]:
    """The metrics of each step of a training."""
    lines: list[dict[str, float]] = []
    with mock.patch.object(context, "log", lambda stage, step, values: lines.append(dict(values))):
        grpo.train(context)
    return lines


def weights(context: Context) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in context.model.parameters()]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
