"""How far sampler and trainer are apart on the same tokens, and how far rounding may put them.

The mean and a high quantile are judged. The largest gap is only logged: it grows with the number
of tokens, and one token of a healthy bfloat16 run may be off by a large part of a nat. Rounding
changes the final states by a share of their size, so logits by that share of their spread over the
vocabulary: where that is wide, the limits are. Where they come from is in `docs/vllm.md`;
`bench/sampler_gap.py` measures them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from iad_r1.backbones.packing import unwrap
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
    torch.bfloat16: Limits(mean=0.05, high=0.25),
}
SPREAD = 4.0  # nats, the spread of logits up to which these hold; above, they grow with it


def limits(asked: GapLimit, model: nn.Module) -> Limits:
    """The limits of the settings, or those for the model's precision and logits where they name
    none. Its last norm and output layer have to be whole on this rank."""
    bare = unwrap(model)
    default, wider = LIMITS[bare.dtype], max(1.0, logit_spread(bare) / SPREAD)
    return Limits(asked.mean or wider * default.mean, asked.high or wider * default.high)


@torch.no_grad()
def logit_spread(bare: Any) -> float:
    """About the standard deviation of a token's logits over the vocabulary, in nats, as two weights
    tell it: the length of the normalised states times the size of a weight of the output layer."""
    states, head = bare.model.language_model.norm.weight, bare.get_output_embeddings().weight
    lengths = [torch.linalg.vector_norm(part, dtype=torch.float32) for part in (states, head)]
    return (lengths[0] * lengths[1]).item() / math.sqrt(head.numel())


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
