"""Rewards of a group to advantages: the papers' equation and its three common variants.

IAD-R1 Eq. 6 (= GRPO, DeepSeekMath Eq. 3): A_i = (r_i - mean(r)) / std(r) within the group of G
completions of one prompt. The equation does not say which standard deviation; the released
code and TRL use the *sample* one (division by G - 1) plus eps = 1e-4, and so do we. Against the
population value this only scales every advantage by sqrt((G - 1) / G).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from iad_r1.errors import TrainingError

AdvantageKind = Literal["group_std", "no_std", "leave_one_out", "batch_std"]


def is_degenerate(group: Sequence[float]) -> bool:
    """Whether every completion of the group earned the same, so it carries no policy signal."""
    return max(group) == min(group)


def advantages(
    rewards: Sequence[Sequence[float]], kind: AdvantageKind = "group_std", eps: float = 1e-4
) -> list[list[float]]:
    """The advantage of every completion, in the order of `rewards` (groups may differ in size).

    group_std      (r - mean) / (std + eps), both of the group      IAD-R1 Eq. 6
    no_std         r - mean                                         Dr. GRPO
    leave_one_out  r - mean of the *other* completions              RLOO
    batch_std      (r - group mean) / (std of all rewards + eps)    REINFORCE++

    A degenerate group gets exact zeros. TrainingError names the group that is empty, holds a
    NaN or an infinity, or (leave_one_out) has a single completion.
    """
    _check(rewards, kind)
    if kind == "leave_one_out":
        return [[d * len(g) / (len(g) - 1) for d in _centred(g)] for g in rewards]
    if kind == "no_std":
        return [_centred(g) for g in rewards]
    if kind == "batch_std":
        scale = _sample_std([r for group in rewards for r in group]) + eps
        return [_divided(_centred(g), scale) for g in rewards]
    if kind == "group_std":
        return [_divided(_centred(g), _sample_std(g) + eps) for g in rewards]
    raise ValueError(f"unknown kind of advantage {kind!r}")


def _check(rewards: Sequence[Sequence[float]], kind: AdvantageKind) -> None:
    for index, group in enumerate(rewards):
        if not group:
            raise TrainingError(f"group {index} of the batch has no completion, so no advantage")
        for position, reward in enumerate(group):
            if not math.isfinite(reward):
                raise TrainingError(
                    f"group {index}, completion {position}: the reward is {reward}. A reward must "
                    "be a finite number; check the reward parts of this sample."
                )
        if kind == "leave_one_out" and len(group) == 1:
            raise TrainingError(
                f"group {index} has one completion, so leave_one_out has no other to compare "
                "with. Use at least 2 completions per prompt."
            )


def _centred(group: Sequence[float]) -> list[float]:
    """r - mean; exact zeros when all are equal, which rounding alone would not give."""
    if is_degenerate(group):
        return [0.0] * len(group)
    mean = math.fsum(group) / len(group)
    return [r - mean for r in group]


def _divided(values: list[float], scale: float) -> list[float]:
    """Zeros stay zeros whatever the scale, which is 0 if nothing differs and eps is 0."""
    return [v / scale if v else 0.0 for v in values]


def _sample_std(values: Sequence[float]) -> float:
    """0 for a single value."""
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / max(len(values) - 1, 1))
