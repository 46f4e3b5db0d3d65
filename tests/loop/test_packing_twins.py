"""The twins are the hub's checkpoints in small: same classes, files, names, behaviour."""

from __future__ import annotations

import json
from pathlib import Path

import packing_cases as cases
import pytest
import torch
from safetensors.torch import load_file

from iad_r1.backbones.families import FAMILIES
from iad_r1.backbones.tokenizer import TAGS
from iad_r1.backbones.twins import TWINS, build_twin
from iad_r1.errors import ConfigError

# first letters of the weights in the hub's checkpoints (Qwen2.5-VL-3B, llava-1.5-7b-hf, ...)
HUB_NAMES = {
    "qwen2_vl": ("visual.blocks.0.attn.qkv.weight", "model.embed_tokens.weight"),
    "qwen2_5_vl": ("visual.blocks.0.attn.qkv.weight", "model.embed_tokens.weight"),
    "llava": ("vision_tower.vision_model.embeddings", "language_model.model.embed_tokens.weight"),
    "llava_next": ("vision_tower.vision_model.embeddings", "image_newline"),
    "llava_onevision": ("vision_tower.vision_model.embeddings", "image_newline"),
    "internvl": ("vision_tower.encoder.layer.0", "language_model.model.embed_tokens.weight"),
}


def test_there_is_a_twin_of_every_family_that_is_known() -> None:
    assert set(TWINS) == set(FAMILIES)
    with pytest.raises(ConfigError, match=r"no tiny twin of 'gpt2'; there are .*llava_next"):
        build_twin("gpt2", Path("unused"))


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_the_same_seed_writes_the_same_weights_and_leaves_the_callers_stream_alone(
    family: str, tmp_path: Path
) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, two, other = (
        load_file(build_twin(family, tmp_path / str(i), seed) / "model.safetensors")
        for i, seed in enumerate((3, 3, 4))
    )
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_it_reads_back_through_the_auto_classes_with_every_weight_in_place(family: str) -> None:
    folder = cases.twin_folder(family)
    assert json.loads((folder / "config.json").read_text())["model_type"] == family
    model = cases._loaded(family)
    stored = sum(
        t.double().square().sum() for t in load_file(folder / "model.safetensors").values()
    )
    tied = model.config.tie_word_embeddings or model.config.get_text_config().tie_word_embeddings
    held: float = sum(
        (p.detach() / (3 if p.dim() > 1 else 1))
        .double()
        .square()
        .sum()
        .item()  # `cases` triples the matrices
        for name, p in model.named_parameters()
        if not (tied and name == "lm_head.weight")
    )
    assert float(held) == pytest.approx(float(stored), rel=1e-6)
    assert sum(p.numel() for p in model.parameters()) < 1_000_000


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_it_answers_a_chat_with_a_picture_in_groups(family: str) -> None:
    processor, model = cases.processor(family), cases.model(family)
    inputs = cases.prompt(family)
    banned = processor.tokenizer.convert_tokens_to_ids(
        [t for t in ("<image>", "<video>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>",
                     "<IMG_CONTEXT>")
         if t in processor.tokenizer.get_vocab()]
    )  # fmt: skip
    torch.manual_seed(0)
    drawn = model.generate(
        **inputs, num_return_sequences=4, do_sample=True, max_new_tokens=5, suppress_tokens=banned
    )
    assert drawn.shape[0] == 4
    text = "<think>a scratch</think><answer>Yes</answer>"
    tokens = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert set(processor.tokenizer.convert_tokens_to_ids(TAGS[:2])) <= set(tokens)
    assert processor.tokenizer.decode(tokens, skip_special_tokens=True) == text


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_weights_carry_the_hubs_names_so_that_vllm_can_read_them(family: str) -> None:
    names = list(load_file(cases.twin_folder(family) / "model.safetensors"))
    for wanted in HUB_NAMES[family]:
        assert any(name.startswith(wanted) for name in names), (wanted, names[:3], names[-3:])
