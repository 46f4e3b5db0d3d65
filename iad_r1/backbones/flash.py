"""A packed sequence through FlashAttention's kernels: no mask, no padding, no gathered keys.

The sequence is `[prompts ...][completions ...]`, as `packing.py` has it. Three parts are computed
by kernels that take the lengths of sequences:

- prompts, causal;
- completions on themselves, causal;
- completions on the prompt of their group, which they see whole.

The last two are merged by their log-sum-exp. With s = lse_own and c = lse_prompt,

    lse = log(exp(s) + exp(c)),   out = exp(s - lse) * out_own + exp(c - lse) * out_prompt

A kernel's backward pass recomputes the probabilities of its keys from the log-sum-exp it is given,
and needs the output for the sum of each query's gradients. Given the *merged* ones, each part
returns its exact share of the gradient of the whole attention (as in ring attention, Liu et al.
2023, arXiv:2310.01889).

Kernels are those of the package flash-attn, or PyTorch's own; on a CPU `Plain`, which does the same
in plain steps. None is trusted before it has agreed with SDPA (`kernel_for`).

Axes: n tokens, h query heads, k key heads (h is a multiple of k), d head size.
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from iad_r1.errors import ConfigError

Triple = tuple[Tensor, Tensor, Tensor]  # of queries, keys and values
# relative difference to SDPA in float32, of outputs and of gradients, that rounding explains
LIMITS = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Spans:
    """Sequences that lie one behind the other: those of the queries, and the keys of each.

    Attributes:
        causal: whether a query sees no key behind its own place.
        queries, keys: [sequences + 1] int32, first token of every sequence and the end of the last.
        longest_queries, longest_keys: tokens of the longest sequence.
    """

    queries: Tensor
    keys: Tensor
    longest_queries: int
    longest_keys: int
    causal: bool

    @staticmethod
    def build(
        queries: Sequence[int], keys: Sequence[int], device: torch.device, causal: bool
    ) -> Spans:
        """From the lengths of all sequences."""

        def bounds(lengths: Sequence[int]) -> Tensor:
            return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)

        return Spans(bounds(queries), bounds(keys), max(queries), max(keys), causal)


class Kernel(Protocol):
    """FlashAttention, forward and backward, without dropout."""

    name: str

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, spans: Spans, scale: float
    ) -> tuple[Tensor, Tensor]:
        """q [n, h, d], k and v [m, k, d] -> output [n, h, d] and log-sum-exp [h, n] f32, nats."""
        ...

    def backward(
        self, grad: Tensor, qkv: Triple, out: Tensor, lse: Tensor, spans: Spans, scale: float
    ) -> Triple:
        """Gradients of q, k and v. `out` and `lse` are what the queries got over all their keys, of
        which these may be a part."""
        ...


class FlashAttn:
    """The kernels of the package flash-attn, from version 2.7."""

    def __init__(self) -> None:
        self.operators = importlib.import_module("flash_attn.flash_attn_interface")
        self.name = f"flash-attn {importlib.import_module('flash_attn').__version__}"

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, spans: Spans, scale: float
    ) -> tuple[Tensor, Tensor]:
        out, lse, _, _ = self.operators._flash_attn_varlen_forward(
            q, k, v, *_arguments(spans), dropout_p=0.0, softmax_scale=scale, causal=spans.causal
        )
        return out, lse

    def backward(
        self, grad: Tensor, qkv: Triple, out: Tensor, lse: Tensor, spans: Spans, scale: float
    ) -> Triple:
        q, k, v = qkv
        into = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        self.operators._flash_attn_varlen_backward(
            grad, q, k, v, out, lse, *into, *_arguments(spans), dropout_p=0.0,
            softmax_scale=scale, causal=spans.causal, window_size_left=-1, window_size_right=-1,
            softcap=0.0, alibi_slopes=None,
            deterministic=torch.are_deterministic_algorithms_enabled(),
        )  # fmt: skip
        return into


class TorchFlash:
    """The kernels that PyTorch brings, those of `torch.nn.attention.varlen`."""

    name = f"PyTorch {torch.__version__}"

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, spans: Spans, scale: float
    ) -> tuple[Tensor, Tensor]:
        out, lse, *_ = torch.ops.aten._flash_attention_forward(
            q, k, v, *_arguments(spans), 0.0, spans.causal, False, scale=scale
        )
        return out, lse

    def backward(
        self, grad: Tensor, qkv: Triple, out: Tensor, lse: Tensor, spans: Spans, scale: float
    ) -> Triple:
        # the state of the random numbers, which dropout alone would need
        state, unused = torch.zeros(2, dtype=torch.uint64, device=out.device), out.new_empty(0)
        return torch.ops.aten._flash_attention_backward(
            grad, *qkv, out, lse, *_arguments(spans), 0.0, spans.causal, state, unused, scale=scale
        )


def _arguments(spans: Spans) -> tuple[Tensor, Tensor, int, int]:
    return spans.queries, spans.keys, spans.longest_queries, spans.longest_keys


class Plain:
    """The same arithmetic in plain steps, one sequence at a time, in float32."""

    name = "plain steps"

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, spans: Spans, scale: float
    ) -> tuple[Tensor, Tensor]:
        out = torch.zeros_like(q)
        lse = q.new_zeros(q.shape[1], q.shape[0], dtype=torch.float32)
        for own, seen in _sequences(spans):
            scores = _scores(q[own], k[seen], spans.causal, scale)
            lse[:, own] = scores.logsumexp(-1).flatten(0, 1)
            p = scores.softmax(-1)
            out[own] = torch.einsum("ksqj,jkd->qksd", p, v[seen].float()).flatten(1, 2).to(q.dtype)
        return out, lse

    def backward(
        self, grad: Tensor, qkv: Triple, out: Tensor, lse: Tensor, spans: Spans, scale: float
    ) -> Triple:
        q, k, v = qkv
        into = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        heads = (k.shape[1], -1)
        for own, seen in _sequences(spans):
            given = grad[own].float().unflatten(1, heads)
            whole = (grad[own].float() * out[own].float()).sum(-1).T.unflatten(0, heads)
            scores = _scores(q[own], k[seen], spans.causal, scale)
            p = torch.exp(scores - lse[:, own].unflatten(0, heads)[..., None])
            of_p = torch.einsum("qksd,jkd->ksqj", given, v[seen].float())
            of_scores = p * (of_p - whole[..., None]) * scale
            of_q = torch.einsum("ksqj,jkd->qksd", of_scores, k[seen].float())
            of_k = torch.einsum("ksqj,qksd->jkd", of_scores, q[own].float().unflatten(1, heads))
            of_v = torch.einsum("ksqj,qksd->jkd", p, given)
            for total, rows, part in zip(
                into, (own, seen, seen), (of_q.flatten(1, 2), of_k, of_v), strict=True
            ):
                total[rows] = part.to(total.dtype)
        return into


def _sequences(spans: Spans) -> list[tuple[slice, slice]]:
    """The queries of every sequence that has any, and their keys."""
    queries, keys = (pairwise(bounds.tolist()) for bounds in (spans.queries, spans.keys))
    return [
        (slice(*own), slice(*seen))
        for own, seen in zip(queries, keys, strict=True)
        if own[0] < own[1]
    ]


def _scores(q: Tensor, k: Tensor, causal: bool, scale: float) -> Tensor:
    """[k, h / k, queries, keys] f32"""
    grouped = q.float().unflatten(1, (k.shape[1], -1))
    scores = torch.einsum("qksd,jkd->ksqj", grouped, k.float()) * scale
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    return scores


# ------------------------------------------------------------------------- the packed sequence


@dataclass(frozen=True)
class FlashPrompt:
    """Where the prompts and completions of a packed sequence lie, for the attention layers.

    Attributes:
        n_prompt: tokens of all prompts.
        prompts: each prompt on itself.
        completions: each completion on itself; None if no completion token is fed.
        shared: the completions of each group, one behind the other, on their prompt.
    """

    n_prompt: int
    prompts: Spans
    completions: Spans | None
    shared: Spans
    longest: int
    kernel: Kernel

    @staticmethod
    def build(
        prompt_lengths: Tensor, lengths: Tensor, group_of: Tensor, kernel: Kernel
    ) -> FlashPrompt:
        """From the lengths of prompts [B] and completions as fed [N], group after group, and each
        one's prompt."""
        device = prompt_lengths.device
        prompts, fed = prompt_lengths.tolist(), lengths.tolist()
        of_group = [0] * len(prompts)
        for group, length in zip(group_of.tolist(), fed, strict=True):
            of_group[group] += length
        some = [length for length in fed if length]
        return FlashPrompt(
            n_prompt=sum(prompts),
            prompts=Spans.build(prompts, prompts, device, causal=True),
            completions=Spans.build(some, some, device, causal=True) if some else None,
            shared=Spans.build(of_group, prompts, device, causal=False),
            longest=max(prompts) + max(fed),
            kernel=kernel,
        )


class _Attend(torch.autograd.Function):
    """Attention of a packed sequence. q [n, h, d], k and v [n, k, d] -> [n, h, d]"""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, where: FlashPrompt, scale: float
    ) -> Tensor:
        kernel, n = where.kernel, where.n_prompt
        out, lse = kernel.forward(q[:n], k[:n], v[:n], where.prompts, scale)
        if where.completions is not None:
            own = kernel.forward(q[n:], k[n:], v[n:], where.completions, scale)
            shared = kernel.forward(q[n:], k[:n], v[:n], where.shared, scale)
            merged, merged_lse = _merged(own, shared)
            out, lse = torch.cat([out, merged]), torch.cat([lse, merged_lse], dim=1)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.where, ctx.scale = where, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, out, lse = ctx.saved_tensors
        where, n = ctx.where, ctx.where.n_prompt
        grad = grad.contiguous()

        def part(queries: slice, keys: slice, spans: Spans) -> Triple:
            qkv, own = (q[queries], k[keys], v[keys]), lse[:, queries].contiguous()
            return where.kernel.backward(grad[queries], qkv, out[queries], own, spans, ctx.scale)

        first, rest = slice(0, n), slice(n, None)
        of_q, of_k, of_v = part(first, first, where.prompts)
        if where.completions is not None:
            own_q, own_k, own_v = part(rest, rest, where.completions)
            shared_q, shared_k, shared_v = part(rest, first, where.shared)
            of_q = torch.cat([of_q, own_q + shared_q])
            of_k = torch.cat([of_k + shared_k, own_k])
            of_v = torch.cat([of_v + shared_v, own_v])
        return of_q, of_k, of_v, None, None


def _merged(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Attention over the keys of both, from output [n, h, d] and log-sum-exp [h, n] of each."""
    lse = torch.logaddexp(one[1], other[1])
    share = torch.exp(one[1] - lse).T[..., None]
    out = torch.lerp(other[0].float(), one[0].float(), share)
    return out.to(one[0].dtype), lse


def attend(
    query: Tensor, key: Tensor, value: Tensor, where: FlashPrompt, scale: float | None = None
) -> Tensor:
    """Attention of a packed sequence. query [n, h, d], key and value [n, k, d] -> [n, h, d]"""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return _Attend.apply(query.contiguous(), key.contiguous(), value.contiguous(), where, scale)


# -------------------------------------------------------------------------------- which kernel


@functools.cache
def kernel_for(
    heads: int, key_heads: int, size: int, dtype: torch.dtype, device: torch.device
) -> Kernel:
    """The first kernel of `device` that agrees with SDPA for such a layer, forward and backward.

    ConfigError, with what each of them did, if none does.
    """
    wrong = []
    for make in (FlashAttn, TorchFlash) if device.type == "cuda" else (Plain,):
        try:
            kernel = make()
            found = disagreement(kernel, heads, key_heads, size, dtype, device)
        except (ImportError, AttributeError, TypeError, ValueError, RuntimeError) as error:
            wrong.append(f"{make.__name__} fails: {str(error).strip().splitlines()[0]}")
        else:
            if found <= LIMITS[dtype]:
                return kernel
            wrong.append(f"{kernel.name} is {found:.2g} away from SDPA (limit {LIMITS[dtype]:g})")
    raise ConfigError(
        f"grpo.packing=group_flash finds no kernel for {heads} heads of {size}, {key_heads} of "
        f"them with keys, in {str(dtype).removeprefix('torch.')}: {'; '.join(wrong)}. Use "
        "grpo.packing=group, the same computation through SDPA."
    )


PROMPTS, GROUPS = (70, 33, 129), ((5, 0, 40), (0,), (64, 1))  # one has nothing fed after it


def disagreement(
    kernel: Kernel, heads: int, key_heads: int, size: int, dtype: torch.dtype, device: torch.device
) -> float:
    """Largest relative difference between `kernel` in `dtype` and SDPA in float32, of the output of
    a small random layer and of the gradients of its queries, keys and values."""
    fed = [length for group in GROUPS for length in group]
    group_of = [index for index, group in enumerate(GROUPS) for _ in group]
    n = sum(PROMPTS) + sum(fed)
    generator = torch.Generator().manual_seed(0)
    given = [
        torch.randn(n, rows, size, generator=generator).to(device, dtype)
        for rows in (heads, key_heads, key_heads, heads)
    ]
    where = FlashPrompt.build(
        *(torch.tensor(x, device=device) for x in (PROMPTS, fed, group_of)), kernel=kernel
    )
    mask = _mask(PROMPTS, fed, group_of).to(device)

    def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(
            *(x.transpose(0, 1)[None] for x in (q, k, v)), attn_mask=mask, enable_gqa=True
        )[0].transpose(0, 1)

    got = _with_gradients(lambda q, k, v: attend(q, k, v, where), given)
    expected = _with_gradients(sdpa, [x.float() for x in given])
    apart = [float((a.float() - b).norm() / b.norm()) for a, b in zip(got, expected, strict=True)]
    return math.inf if any(map(math.isnan, apart)) else max(apart)


@torch.enable_grad()
def _with_gradients(function: Any, given: Sequence[Tensor]) -> list[Tensor]:
    """The output for q, k and v, and their gradients against the last of `given`."""
    leaves = [x.detach().requires_grad_() for x in given[:3]]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, given[3])]


def _mask(prompts: Sequence[int], fed: Sequence[int], group_of: Sequence[int]) -> Tensor:
    """[n, n] bool: which keys each token sees."""
    segment = torch.repeat_interleave(torch.tensor([*prompts, *fed]))
    prompt = torch.tensor([*range(len(prompts)), *group_of])[segment]
    sees = (segment[:, None] == segment) | (prompt[:, None] == segment)
    return sees & torch.ones_like(sees).tril()
