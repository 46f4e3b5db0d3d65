"""The SC-GRPO objective on log-probabilities: pure torch, no model, no IO.

Axes: B completions (rows), T tokens (padded), N tokens without padding, V vocabulary, H hidden.
Log-probs are in nats. `mask` is True on completion tokens, end of turn included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from operator import add
from typing import Any, Literal, Self

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

KlKind = Literal["k1", "k2", "k3"]
Aggregation = Literal["sequence_mean", "token_mean", "fixed_length"]
ImportanceLevel = Literal["off", "token", "sequence"]
ImportanceMode = Literal["truncate", "mask"]
Head = Callable[[Tensor], Tensor]


def token_logprobs(
    hidden: Tensor,
    head: Tensor | Head,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    chunk: int,
    entropy: bool = True,
) -> tuple[Tensor, Tensor]:
    """Log-prob of each target and the entropy of its distribution, `chunk` tokens at a time.

    hidden   [N, H]  states that predict the targets
    head     the output layer: a module (so that LoRA and ZeRO hooks run), or its weight [V, H]
    targets  [N]     token ids
    returns  ([N] f32 with gradient, [N] f32 without; zeros when entropy=False)

    At most [chunk, V] float32 values live at any time: chunks are computed again in the backward
    pass instead of being kept. With N <= chunk nothing is computed twice.
    """
    project = head if callable(head) else _weight_head(head)

    def part(states: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        return _chunk_logprobs(project(states), ids, temperature, entropy)

    if hidden.shape[0] <= chunk:
        return part(hidden, targets)
    parts = []
    for states, ids in zip(hidden.split(chunk), targets.split(chunk), strict=True):
        if torch.is_grad_enabled():
            parts.append(checkpoint(part, states, ids, use_reentrant=False))
        else:
            parts.append(part(states, ids))
    logps, entropies = zip(*parts, strict=True)
    return torch.cat(logps), torch.cat(entropies)


def _weight_head(weight: Tensor) -> Head:
    return lambda states: F.linear(states, weight)


def _chunk_logprobs(
    logits: Tensor, ids: Tensor, temperature: float, entropy: bool
) -> tuple[Tensor, Tensor]:
    """[n, V] logits to ([n], [n]) in float32, whatever the type of the logits."""
    logps = torch.log_softmax(logits.float() / temperature, 1)
    chosen = logps.gather(1, ids[:, None]).squeeze(1)
    if not entropy:
        return chosen, torch.zeros_like(chosen)
    with torch.no_grad():
        # special tokens masked to -inf contribute 0, not NaN
        spread = -torch.xlogy(probs := logps.exp(), probs).sum(1)
    return chosen, spread


def kl_per_token(logp: Tensor, ref_logp: Tensor, kind: KlKind) -> Tensor:
    """Estimators of KL(policy || reference) per token (Schulman, "Approximating KL divergence").

    With d = ref_logp - logp: k1 = -d (unbiased, signed), k2 = d^2 / 2, k3 = exp(d) - d - 1
    (unbiased, never negative; GRPO's and IAD-R1's choice). As a loss, k1 has a gradient that is
    zero in expectation, so it holds the policy to nothing.
    """
    d = ref_logp - logp
    if kind == "k1":
        return -d
    if kind == "k2":
        return d.square() / 2
    if kind == "k3":
        return torch.expm1(d) - d
    raise ValueError(f"unknown KL estimator {kind!r}")


JOIN: Mapping[str, Callable[[Any, Any], Any]] = {"_min": min, "_max": max}


@dataclass(frozen=True)
class _Joinable:
    """Statistics of a part; `+` joins parts without bias: `*_min` and `*_max` are the extremes of
    both, every other field is a sum."""

    def __add__(self, other: Self) -> Self:
        return type(self)(
            **{
                field.name: JOIN.get(field.name[-4:], add)(
                    getattr(self, field.name), getattr(other, field.name)
                )
                for field in fields(self)
            }
        )

    def cpu(self) -> Self:
        """In main memory, so that ranks can tell each other."""
        held = {field.name: getattr(self, field.name) for field in fields(self)}
        return type(self)(**{k: v.cpu() if isinstance(v, Tensor) else v for k, v in held.items()})


@dataclass(frozen=True)
class LossStats(_Joinable):
    """Of the tokens of one micro-batch.

    Every field is a 0-d float32 tensor without gradient; `scalars` divides by the token count.
    """

    tokens: Tensor
    clipped_low: Tensor
    clipped_high: Tensor
    ratio_sum: Tensor
    ratio_min: Tensor
    ratio_max: Tensor
    kl_sum: Tensor
    entropy_sum: Tensor

    def scalars(self) -> dict[str, float]:
        """What is logged each step: fractions and means per unmasked token."""
        count = max(float(self.tokens), 1.0)
        return {
            "clip_fraction_low": float(self.clipped_low) / count,
            "clip_fraction_high": float(self.clipped_high) / count,
            "ratio_min": float(self.ratio_min),
            "ratio_mean": float(self.ratio_sum) / count,
            "ratio_max": float(self.ratio_max),
            "kl": float(self.kl_sum) / count,
            "entropy": float(self.entropy_sum) / count,
        }


def policy_loss(
    logp: Tensor,
    old_logp: Tensor | None,
    ref_logp: Tensor | None,
    advantage: Tensor,
    mask: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    kl_coef: float,
    n_sequences: int,
    n_tokens: int,
    kl_kind: KlKind = "k3",
    aggregation: Aggregation = "sequence_mean",
    max_tokens: int | None = None,
    importance: Tensor | None = None,
    entropy: Tensor | None = None,
) -> tuple[Tensor, LossStats]:
    """Clipped policy-gradient loss plus a KL penalty toward the reference (IAD-R1 Eq. 11).

    Per token, with r = exp(logp - old_logp):

        -w * min(r * A, clip(r, 1 - clip_low, 1 + clip_high) * A) + kl_coef * KL(logp, ref_logp)

    logp        [B, T] f32   log-prob of the sampled token; carries the gradient
    old_logp    [B, T] f32   the same when it was sampled; None = `logp` itself, so r is exactly 1
    ref_logp    [B, T] f32   the same under the reference; None if and only if kl_coef == 0
    advantage   [B]    f32   one per completion
    mask        [B, T] bool  True on the tokens that count
    importance  [B, T] or [B, 1] f32  w, sampler/trainer correction; None = 1
    entropy     [B, T] f32   only for the statistics

    aggregation divides by counts over the *whole* optimiser step (all ranks and micro-batches),
    so the gradient does not depend on how the step was split; sum the losses of the parts:

        sequence_mean  sum_i (1/|o_i|) sum_t / n_sequences        the papers' (GRPO, IAD-R1)
        token_mean     sum_i sum_t / n_tokens                     DAPO
        fixed_length   sum_i sum_t / (n_sequences * max_tokens)   Dr. GRPO
    """
    if (ref_logp is None) != (kl_coef == 0):
        raise ValueError("a reference is needed if and only if kl_coef is not 0")
    old_logp = logp.detach() if old_logp is None else old_logp
    # padding may hold anything; a zero difference keeps exp() and its gradient finite there
    ratio = torch.exp((logp - old_logp).masked_fill(~mask, 0.0))
    gain = advantage[:, None].to(ratio)
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    per_token = -torch.minimum(ratio * gain, clipped * gain)
    if importance is not None:
        per_token = per_token * importance
    kl = torch.zeros_like(ratio)
    if ref_logp is not None:
        kl = kl_per_token(logp.masked_fill(~mask, 0.0), ref_logp.masked_fill(~mask, 0.0), kl_kind)
        per_token = per_token + kl_coef * kl
    loss = _aggregate(per_token, mask, aggregation, n_sequences, n_tokens, max_tokens)
    low = (ratio < 1 - clip_low) & (gain < 0)
    high = (ratio > 1 + clip_high) & (gain > 0)
    return loss, _stats(mask, ratio.detach(), low, high, kl.detach(), entropy)


def _aggregate(
    per_token: Tensor,
    mask: Tensor,
    kind: Aggregation,
    n_sequences: int,
    n_tokens: int,
    max_tokens: int | None,
) -> Tensor:
    # where, not a product: a NaN in the padding must not reach the sum
    rows = torch.where(mask, per_token, 0.0).sum(1)
    if kind == "sequence_mean":
        return (rows / mask.sum(1).clamp(min=1)).sum() / n_sequences
    if kind == "token_mean":
        return rows.sum() / n_tokens
    if kind == "fixed_length":
        if not max_tokens:
            raise ValueError("aggregation fixed_length needs max_tokens, the completion limit")
        return rows.sum() / (n_sequences * max_tokens)
    raise ValueError(f"unknown aggregation {kind!r}")


def _stats(
    mask: Tensor, ratio: Tensor, low: Tensor, high: Tensor, kl: Tensor, entropy: Tensor | None
) -> LossStats:
    def total(values: Tensor) -> Tensor:
        return torch.where(mask, values.float(), 0.0).sum()

    return LossStats(
        tokens=mask.float().sum(),
        clipped_low=total(low),
        clipped_high=total(high),
        ratio_sum=total(ratio),
        ratio_min=torch.where(mask, ratio, torch.inf).min(),
        ratio_max=torch.where(mask, ratio, -torch.inf).max(),
        kl_sum=total(kl),
        entropy_sum=total(torch.zeros_like(ratio) if entropy is None else entropy.detach()),
    )


@dataclass(frozen=True)
class ImportanceStats(_Joinable):
    """The raw mismatch of sampler and trainer, before any cap.

    `gap_*`: |trainer - sampler| of the `tokens`, nats. `ratio_*`: the `weights` raw ratios, one per
    token or per sequence, of which `capped` were above the cap.
    """

    tokens: int
    gap_sum: float
    gap_max: float
    weights: int
    ratio_sum: float
    ratio_min: float
    ratio_max: float
    capped: int

    def scalars(self) -> dict[str, float]:
        """What is logged each step; empty if no token counted."""
        if not self.tokens:
            return {}
        return {
            "sampler_gap_mean": self.gap_sum / self.tokens,
            "sampler_gap_max": self.gap_max,
            "importance_min": self.ratio_min,
            "importance_mean": self.ratio_sum / self.weights,
            "importance_max": self.ratio_max,
            "importance_capped": self.capped / self.weights,
        }


def importance_weights(
    trainer_logp: Tensor,
    sampler_logp: Tensor,
    mask: Tensor,
    *,
    level: ImportanceLevel,
    mode: ImportanceMode,
    cap: float,
) -> tuple[Tensor, ImportanceStats]:
    """Correction for completions that another policy drew than the one that is trained: vLLM's
    kernels, or a sampler cut off by top-p or top-k. No gradient.

    Per token, or per sequence with the log-ratios summed: rho = exp(trainer - sampler).
    truncate: min(rho, cap) (IMPALA; "TIS"); mask: rho where rho <= cap, else 0: the token or
    sequence is dropped from the policy term, and still counts where the loss is averaged.
    level off: every weight is 1, and the statistics are those of tokens.

    trainer_logp, sampler_logp, mask [B, T] -> weights [B, T] (off, token) or [B, 1] (sequence), and
    the statistics of the *raw* ratio.
    """
    delta = (trainer_logp - sampler_logp).detach().float().masked_fill(~mask, 0.0)
    whole = level == "sequence"
    raw = torch.exp(delta.sum(1, keepdim=True) if whole else delta)
    weighing = mask.any(1) if whole else mask
    stats = _importance_stats(delta[mask].abs(), raw[weighing], cap)
    if level == "off":
        return torch.ones_like(raw), stats
    if mode == "truncate":
        return raw.clamp(max=cap), stats
    if mode == "mask":
        return torch.where(raw <= cap, raw, 0.0), stats
    raise ValueError(f"unknown importance mode {mode!r}")


def _importance_stats(gap: Tensor, raw: Tensor, cap: float) -> ImportanceStats:
    """From the gaps of the tokens that count [n] and the ratios that weigh them [m]."""
    if not len(gap):
        return ImportanceStats(0, 0.0, 0.0, 0, 0.0, math.inf, 0.0, 0)
    return ImportanceStats(
        tokens=len(gap),
        gap_sum=gap.sum().item(),
        gap_max=gap.max().item(),
        weights=len(raw),
        ratio_sum=raw.sum().item(),
        ratio_min=raw.min().item(),
        ratio_max=raw.max().item(),
        capped=int((raw > cap).sum()),
    )
