"""How far sampler and trainer are apart on the same tokens, and how far rounding may put them.

The mean and a high quantile are judged. The largest gap is only logged: it grows with the number
of tokens, and one token of a healthy bfloat16 run may be off by a large part of a nat. Where the
limits come from is in `docs/vllm.md`; `bench/sampler_gap.py` measures them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from iad_r1.processes import distributed
from iad_r1.settings.training import GapLimit

HIGH = 0.95  # the quantile that is judged


@dataclass(frozen=True)
class Limits:
    """The largest mean and the largest 95 % quantile of |sampler - trainer|, in nats."""

    mean: float
    high: float


LIMITS: Mapping[torch.dtype, Limits] = {
    torch.float32: Limits(mean=1e-5, high=1e-4),
    torch.bfloat16: Limits(mean=0.05, high=0.2),
}


def limits(asked: GapLimit, dtype: torch.dtype) -> Limits:
    """The limits of the settings, or those of the weights' precision where they name none."""
    default = LIMITS[dtype]
    return Limits(asked.mean or default.mean, asked.high or default.high)


@dataclass(frozen=True)
class Gap:
    """|sampler - trainer| over `tokens` tokens, in nats; all infinite if one is not a number."""

    tokens: int
    mean: float
    high: float
    largest: float

    @staticmethod
    def of(apart: Tensor) -> Gap:
        """From the gaps of this rank's tokens [n], of the tokens of all ranks together."""
        values = torch.cat(distributed.everyone(apart.detach().cpu().double().flatten()))
        if not len(values):
            return Gap(0, 0.0, 0.0, 0.0)
        if not values.isfinite().all():
            return Gap(len(values), math.inf, math.inf, math.inf)
        ordered = values.sort().values  # torch.quantile takes 16 million values at most
        high = ordered[math.ceil(HIGH * len(values)) - 1]
        return Gap(len(values), values.mean().item(), high.item(), ordered[-1].item())

    def within(self, limit: Limits) -> bool:
        return self.mean <= limit.mean and self.high <= limit.high

    def against(self, limit: Limits) -> str:
        """The figures beside their limits, for a message."""
        return (
            f"by {self.mean:.3g} nats on average (limit {limit.mean:g}) and {self.high:.3g} at the "
            f"{HIGH:.0%} quantile (limit {limit.high:g}) of {self.tokens} tokens, at most "
            f"{self.largest:.3g}"
        )
