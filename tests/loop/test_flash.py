"""No kernel of FlashAttention is trusted before it agrees with SDPA. No GPU runs these tests."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import packing_cases as cases
import pytest
import torch
from torch import Tensor

from iad_r1.backbones import flash, packing
from iad_r1.backbones.flash import LIMITS, FlashAttn, Plain, Spans, TorchFlash, disagreement
from iad_r1.backbones.packing import choose_packing
from iad_r1.errors import ConfigError

CPU = torch.device("cpu")
LAYERS = [(4, 4, 32), (6, 2, 16), (14, 2, 64)]  # query heads, key heads, size


class Unmerged(Plain):
    """Its backward pass takes output and log-sum-exp of its own keys, as without merging."""

    def backward(self, grad, qkv, out, lse, spans, scale):
        out, lse = self.forward(*qkv, spans, scale)
        return super().backward(grad, qkv, out, lse, spans, scale)


class LooksAhead(Plain):
    def forward(self, q, k, v, spans, scale):
        return super().forward(q, k, v, replace(spans, causal=False), scale)


class LeavesKeysOfUnusedPromptsUnwritten(Plain):
    def backward(self, grad, qkv, out, lse, spans, scale):
        found = super().backward(grad, qkv, out, lse, spans, scale)
        bounds = spans.queries.tolist()
        for index, keys in enumerate(spans.keys.tolist()[:-1]):
            if bounds[index] == bounds[index + 1]:
                found[1][keys] = torch.nan
        return found


class AveragesHeads(Plain):
    """Gradients of a key that several query heads read are a mean instead of a sum."""

    def backward(self, grad, qkv, out, lse, spans, scale):
        found = super().backward(grad, qkv, out, lse, spans, scale)
        readers = qkv[0].shape[1] // qkv[1].shape[1]
        return found[0], found[1] / readers, found[2]


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("layer", LAYERS)
def test_the_parts_merged_are_the_whole_attention_forward_and_backward(
    layer: tuple[int, int, int], dtype: torch.dtype
) -> None:
    assert disagreement(Plain(), *layer, dtype, CPU) < LIMITS[dtype] / 4


@pytest.mark.parametrize(
    "fault", [Unmerged, LooksAhead, LeavesKeysOfUnusedPromptsUnwritten, AveragesHeads]
)
def test_a_faulty_kernel_is_found_out_in_bfloat16(fault: type[Plain]) -> None:
    assert not disagreement(fault(), 6, 2, 16, torch.bfloat16, CPU) < 3 * LIMITS[torch.bfloat16]


def test_a_kernel_that_fails_the_check_is_refused_or_left_aside_for_sdpa(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = cases.model("qwen2_vl")
    flash.kernel_for.cache_clear()
    assert choose_packing("auto", model) == ("group", "SDPA")  # a CPU keeps its numbers
    assert choose_packing("group_flash", model) == ("group_flash", Plain.name)
    assert choose_packing("off", model)[0] == "off"
    monkeypatch.setattr(packing, "_device", lambda model: torch.device("cuda"))
    assert choose_packing("auto", model) == ("group_flash", Plain.name)
    flash.kernel_for.cache_clear()
    monkeypatch.setattr(flash, "Plain", Unmerged)
    chosen, why = choose_packing("auto", model)
    assert chosen == "group" and "away from SDPA (limit 1e-05)" in why
    with pytest.raises(ConfigError, match=r"finds no kernel for .* Use grpo.packing=group,"):
        choose_packing("group_flash", model)
    flash.kernel_for.cache_clear()


def test_a_model_that_drops_attention_is_refused() -> None:
    where = torch.tensor([7]), torch.tensor([3]), torch.tensor([0])
    layout = flash.FlashPrompt.build(*where, kernel=Plain())
    x = torch.randn(1, 1, 10, 8)
    with pytest.raises(ConfigError, match=r"attention_dropout.*grpo.packing=group\."):
        packing.shared_prompt_attention(torch.nn.Module(), x, x, x, None, layout, dropout=0.1)


def test_pytorchs_operators_take_what_they_are_given() -> None:
    """On the meta device, which checks arguments and shapes and computes nothing."""
    q, k = (torch.empty(9, h, 64, dtype=torch.bfloat16, device="meta") for h in (4, 2))
    spans = Spans.build([4, 5], [4, 5], torch.device("meta"), causal=True)
    kernel = TorchFlash()
    out, lse = kernel.forward(q, k, k, spans, 0.5)
    assert out.shape == q.shape and lse.shape == (4, 9) and lse.dtype == torch.float32
    found = kernel.backward(out, (q, k, k), out, lse, spans, 0.5)
    assert [x.shape for x in found] == [q.shape, k.shape, k.shape]


def published(kernel: Plain) -> Any:
    """Doubles of flash-attn's two functions, with the arguments that versions 2.7 and 2.8 have."""

    def forward(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, softmax_scale,
        causal, window_size_left=-1, window_size_right=-1, softcap=0.0, alibi_slopes=None,
        return_softmax=False, block_table=None, leftpad_k=None, seqused_k=None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        assert dropout_p == softcap == 0 and (window_size_left, window_size_right) == (-1, -1)
        spans = Spans(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal)
        out, lse = kernel.forward(q, k, v, spans, softmax_scale)
        return out, lse, q.new_empty(0), torch.empty(2)

    def backward(
        dout, q, k, v, out, softmax_lse, dq, dk, dv, cu_seqlens_q, cu_seqlens_k, max_seqlen_q,
        max_seqlen_k, dropout_p, softmax_scale, causal, window_size_left, window_size_right,
        softcap, alibi_slopes, deterministic, rng_state=None,
    ) -> Tensor:  # fmt: skip
        assert dropout_p == softcap == 0 and (window_size_left, window_size_right) == (-1, -1)
        spans = Spans(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal)
        found = kernel.backward(dout, (q, k, v), out, softmax_lse, spans, softmax_scale)
        for into, values in zip((dq, dk, dv), found, strict=True):
            into.copy_(values)
        return softmax_lse

    return SimpleNamespace(_flash_attn_varlen_forward=forward, _flash_attn_varlen_backward=backward)


def test_flash_attn_is_called_as_its_published_versions_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(__version__="2.8.3"))
    monkeypatch.setitem(sys.modules, "flash_attn.flash_attn_interface", published(Plain()))
    assert FlashAttn().name == "flash-attn 2.8.3"
    assert disagreement(FlashAttn(), 6, 2, 16, torch.bfloat16, CPU) < LIMITS[torch.bfloat16]
