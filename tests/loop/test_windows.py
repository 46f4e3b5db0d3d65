"""Qwen's vision towers with all windows of one size in one call, and with their first layer as one
matrix product, equal transformers' own."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import packing_cases as cases
import pytest
import torch
from torch import Tensor

from iad_r1.backbones import patches, windows
from iad_r1.backbones.backbone import Backbone
from iad_r1.backbones.packing import vision_features

EXACT = 1e-5  # relative, float32
TOWERS = ["qwen2_vl", "qwen2_5_vl"]


def pictures(family: str) -> list[dict]:
    """Four pictures in two prompts: two of one size, none a whole number of windows."""
    return [cases.prompt(family, 3, seed=1), cases.prompt(family, 1, seed=2)]


def features(model: Any, prompts: list[dict]) -> Tensor:
    return torch.cat([part for part in vision_features(model, prompts) if part is not None])


def gradient(model: Any, prompts: list[dict]) -> Tensor:
    def mixed() -> Tensor:
        found = features(model, prompts)
        return (found * cases.mixture(tuple(found.shape))).sum()

    return cases.gradient(model, mixed)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", TOWERS)
def test_features_and_gradients_of_pictures_of_mixed_sizes_are_transformers_own(
    family: str, checkpointing: bool
) -> None:
    model, prompts = cases.model(family), pictures(family)
    expected, true_gradient = features(model, prompts), gradient(model, prompts)
    windows.use_batched_windows(model.model.visual)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    assert cases.relative(features(model, prompts), expected) < EXACT
    assert cases.relative(gradient(model, prompts), true_gradient) < EXACT


@pytest.mark.parametrize("family", TOWERS)
def test_the_first_layer_as_a_product_is_the_convolution_of_transformers(family: str) -> None:
    model, prompts = cases.model(family), pictures(family)
    expected, true_gradient = features(model, prompts), gradient(model, prompts)
    names = set(model.state_dict())
    patches.use_patch_product(model.model.visual)
    convolve = patches.nn.Conv3d.forward
    with mock.patch.object(patches.nn.Conv3d, "forward", autospec=True, side_effect=convolve) as no:
        assert cases.relative(features(model, prompts), expected) < EXACT
        assert cases.relative(gradient(model, prompts), true_gradient) < EXACT
    assert no.call_count == 0 and set(model.state_dict()) == names


def test_a_convolution_over_more_than_one_patch_stays_one() -> None:
    layer = torch.nn.Conv3d(3, 4, (2, 2, 2), stride=(2, 2, 2))
    video = torch.randn(1, 3, 4, 2, 2)
    expected = layer(video)
    patches.use_patch_product(torch.nn.Sequential(layer))
    assert isinstance(layer, patches.PatchProduct) and torch.equal(layer(video), expected)


def test_a_layer_makes_a_call_for_each_size_of_window_and_sizes_are_read_once_per_batch() -> None:
    family = "qwen2_5_vl"
    model = Backbone(cases.model(family), cases.processor(family)).model
    prompts = pictures(family)
    attend, build = windows.sdpa_attention_forward, windows.Segments.build
    with (
        mock.patch.object(windows, "sdpa_attention_forward", side_effect=attend) as calls,
        mock.patch.object(windows.Segments, "build", side_effect=build) as reads,
        torch.no_grad(),
    ):
        features(model, prompts)
    found = [build(call.args[0]).groups for call in reads.call_args_list]
    assert len(found) == 2  # windows, and whole pictures
    for groups in found:
        lengths = [length for _, length in groups]
        assert len(set(lengths)) == len(lengths) > 1
        assert sum(count for count, _ in groups) > len(groups)
    full = set(model.config.vision_config.fullatt_block_indexes)
    depth = model.config.vision_config.depth
    windowed, whole = sorted(found, key=lambda groups: -sum(count for count, _ in groups))
    expected = (depth - len(full)) * len(windowed) + len(full) * len(whole)
    assert calls.call_count == expected


def test_a_saved_model_does_not_remember_how_its_windows_were_batched(tmp_path: Path) -> None:
    backbone = Backbone(cases.model("qwen2_5_vl"), cases.processor("qwen2_5_vl"))
    assert backbone.model.model.visual.config._attn_implementation == windows.ATTENTION
    backbone.save(tmp_path / "saved")
    assert windows.ATTENTION not in (tmp_path / "saved/config.json").read_text(encoding="utf-8")
