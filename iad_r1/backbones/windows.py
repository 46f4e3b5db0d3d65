"""Attention of Qwen's vision towers: all windows of one size in one call.

These towers attend within segments of one long sequence: the pictures, and in most layers of
Qwen2.5-VL windows of 112 x 112 pixels. transformers calls SDPA once for every segment, and asks the
GPU for the segments' lengths at every layer: 1,012 calls for a picture of 672 x 672 in 32 layers.
Here segments of equal length are the rows of one batch, so a layer makes as many calls as there are
lengths (windows at a picture's right and lower border are smaller), and lengths are read once per
batch of pictures. A segment's arithmetic is that of its own call.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

# transformers hands over the whole sequence, with its segments, where the name says "flash"
ATTENTION = "segments_as_for_flash"


@dataclass(frozen=True)
class Segments:
    """The segments of a sequence of n tokens, sorted by their length.

    Attributes:
        groups: how many segments there are of which length.
        order: [n] the sequence's tokens as they lie in the groups; None: they lie so already.
        back: [n] the inverse of `order`.
    """

    groups: tuple[tuple[int, int], ...]
    order: Tensor | None
    back: Tensor | None

    @staticmethod
    def build(bounds: Tensor) -> Segments:
        """From the first token of every segment and the end of the last, [segments + 1]."""
        ends = bounds.tolist()
        starts: dict[int, list[int]] = defaultdict(list)
        for start, end in pairwise(ends):
            starts[end - start].append(start)
        groups = tuple((len(found), length) for length, found in starts.items())
        if len(groups) == 1:
            return Segments(groups, None, None)
        order = torch.cat(
            [
                (torch.tensor(found)[:, None] + torch.arange(length)).flatten()
                for length, found in starts.items()
            ]
        )
        return Segments(groups, order.to(bounds.device), order.argsort().to(bounds.device))


# Every layer of a forward is given the same tensor of bounds, in the backward pass too.
_known: Any = WeakTensorKeyDictionary()


def segments_of(bounds: Tensor) -> Segments:
    """`Segments.build`, once for every tensor."""
    if bounds not in _known:
        _known[bounds] = Segments.build(bounds)
    return _known[bounds]


class _Reorder(torch.autograd.Function):
    """x[order]. `index_select` alone would add row by row in its backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (back,) = ctx.saved_tensors
        return grad.index_select(0, back), None, None


def attend_within_segments(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    cu_seq_lens_q: Tensor,
    scaling: float,
    dropout: float = 0.0,
    **_unused: Any,
) -> tuple[Tensor, None]:
    """transformers' SDPA attention of every segment. [1, heads, n, d] each -> [1, n, heads, d]"""
    segments = segments_of(cu_seq_lens_q)
    order, back = segments.order, segments.back
    flat = [x[0].transpose(0, 1) for x in (query, key, value)]
    if order is not None:
        flat = [_Reorder.apply(x, order, back) for x in flat]
    sizes = [count * length for count, length in segments.groups]
    outputs = []
    for (count, length), *parts in zip(
        segments.groups, *(x.split(sizes) for x in flat), strict=True
    ):
        q, k, v = (x.unflatten(0, (count, length)).transpose(1, 2) for x in parts)
        out, _ = sdpa_attention_forward(
            module, q, k, v, None, dropout=dropout, scaling=scaling, is_causal=False
        )
        outputs.append(out.flatten(0, 1))
    if order is None:
        return outputs[0][None], None
    return _Reorder.apply(torch.cat(outputs), back, order)[None], None


def use_batched_windows(tower: nn.Module) -> None:
    """Let the layers of a Qwen vision tower attend as described above."""
    config: Any = tower.config
    config._attn_implementation = ATTENTION


AttentionInterface.register(ATTENTION, attend_within_segments)
