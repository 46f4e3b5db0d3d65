"""Qwen2.5-VL's vision tower: all windows of one size in one call, beside transformers' one each.

    python bench/windows.py --quick              one picture of 672 x 672, under 45 s
    python bench/windows.py --json FILE          also several pictures, borders, and Qwen2-VL

Random weights, float32, one CPU thread. `ratio` is transformers' processor time divided by ours,
forward and backward, for the tower of Qwen2.5-VL in all its 32 layers and 112 x 112 windows, but 64
wide instead of 1,280. A CPU gains nothing, for a call costs it little beside the arithmetic. What
costs a GPU is told by the counts: `calls` of SDPA in one forward, and `reads`, for each of which
the GPU has to finish what it was given. `attention_at_true_width` is the attention of one layer of
windows alone, 16 heads of 80. `difference` is the largest between features.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from grpo_step import environment
from rollout import arguments, report
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
)
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel

from iad_r1.backbones.windows import use_batched_windows

PATCH = 14
WHOLE, BORDERS, WIDE = (672, 672), (700, 700), (448, 1008)  # height, width in pixels


def tower_of_qwen25(width: int = 64, heads: int = 2, depth: int = 32) -> Any:
    """The published tower's depth, windows and layers of full attention."""
    return Qwen2_5_VisionTransformerPretrainedModel._from_config(
        Qwen2_5_VLVisionConfig(
            depth=depth,
            hidden_size=width,
            intermediate_size=width * 2,
            num_heads=heads,
            out_hidden_size=width,
            window_size=112,
            fullatt_block_indexes=[7, 15, 23, 31],
        )
    )


def tower_of_qwen2() -> Any:
    return Qwen2VisionTransformerPretrainedModel._from_config(
        Qwen2VLVisionConfig(depth=32, embed_dim=64, hidden_size=64, num_heads=2, mlp_ratio=2)
    )


def pictures(sizes: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Patches of noise, and the grid of every picture."""
    grid = torch.tensor([[1, height // PATCH, width // PATCH] for height, width in sizes])
    patches = int(grid.prod(-1).sum())
    return torch.randn(patches, 3 * 2 * PATCH * PATCH, generator=torch.manual_seed(0)), grid


def seconds(run: Callable[[], object], repeats: int) -> float:
    """Median processor time; the first run is not counted."""
    run()
    found = []
    for _ in range(repeats):
        began = time.process_time()
        run()
        found.append(time.process_time() - began)
    return statistics.median(found)


class Counts(TorchFunctionMode):
    """How often SDPA is called, and how often a tensor is read into Python."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = self.reads = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += func is torch.nn.functional.scaled_dot_product_attention
        self.reads += func in (Tensor.tolist, Tensor.item)
        return func(*args, **(kwargs or {}))


def counts(run: Callable[[], object]) -> dict[str, int]:
    with Counts() as found:
        run()
    return {"calls": found.calls, "reads": found.reads}


def compare(tower: Any, sizes: Sequence[tuple[int, int]], repeats: int) -> dict[str, Any]:
    """Both ways over the same pictures."""
    torch.manual_seed(0)
    ours = copy.deepcopy(tower)
    use_batched_windows(ours)
    patches, grid = pictures(sizes)

    def forward(model: Any) -> Tensor:
        return model(patches, grid_thw=grid).pooler_output

    with torch.no_grad():
        difference = float((forward(tower) - forward(ours)).abs().max())
        looking = [seconds(lambda m=m: forward(m), repeats) for m in (tower, ours)]
        counted = [counts(lambda m=m: forward(m)) for m in (tower, ours)]
    learning = [seconds(lambda m=m: forward(m).sum().backward(), repeats) for m in (tower, ours)]
    return {
        "ratio": round(learning[0] / learning[1], 2),
        "forward_ratio": round(looking[0] / looking[1], 2),
        "transformers": {"cpu_seconds": round(learning[0], 3), **counted[0]},
        "ours": {"cpu_seconds": round(learning[1], 3), **counted[1]},
        "difference": difference,
    }


def attention_at_true_width(repeats: int) -> dict[str, Any]:
    """One layer of windows without what surrounds it: queries, keys and values are given."""
    tower = tower_of_qwen25(1280, 16, depth=1)
    ours = copy.deepcopy(tower)
    use_batched_windows(ours)
    tokens = (WHOLE[0] // PATCH) ** 2
    bounds = torch.arange(0, tokens + 1, 64, dtype=torch.int32)
    states = torch.randn(tokens, 1280)
    turns = torch.ones(tokens, 80), torch.zeros(tokens, 80)

    def attend(model: Any) -> None:
        attention = model.blocks[0].attn
        attention.qkv = Given()
        attention.proj = torch.nn.Identity()
        attention(
            states, cu_seqlens=bounds, max_seqlen=64, position_embeddings=turns
        ).sum().backward()

    spent = [seconds(lambda model=model: attend(model), repeats) for model in (tower, ours)]
    return {"ratio": round(spent[0] / spent[1], 2), "ours_cpu_seconds": round(spent[1], 4)}


class Given(torch.nn.Module):
    """In place of the projection: the same numbers as queries, keys and values."""

    def forward(self, states: Tensor) -> Tensor:
        return states.repeat(1, 3).requires_grad_()


def main() -> None:
    options = arguments(__doc__)
    about = environment(options.threads)
    repeats = 2 if options.quick else 5
    found: dict[str, Any] = {
        "one_picture": compare(tower_of_qwen25(), [WHOLE], repeats),
        "attention_at_true_width": attention_at_true_width(repeats),
    }
    if not options.quick:
        found["two_with_borders"] = compare(tower_of_qwen25(), [BORDERS] * 2, repeats)
        found["three_sizes"] = compare(tower_of_qwen25(), [WHOLE, BORDERS, WIDE], repeats)
        found["four_pictures_of_qwen2_vl"] = compare(tower_of_qwen2(), [WHOLE] * 4, repeats)
    report({"ratio": found["one_picture"]["ratio"], **found}, options, about)


if __name__ == "__main__":
    main()
