"""Tiny random twins of every backbone, in the hub's own layout.

A twin has the classes, processor, control tokens, chat template and file layout of the real
checkpoint, but two layers and about half a million weights. Code that works on a twin works on the
real one, so tests and `weights=tiny` need no download. A twin knows nothing: its weights are
random, and its vocabulary has some 520 tokens, so token ids are not the real ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from iad_r1.backbones.dialects import (
    INTERNVL,
    MISTRAL,
    ONEVISION,
    QWEN,
    VICUNA,
    YI,
    Dialect,
)
from iad_r1.backbones.processors import build_processor
from iad_r1.backbones.tokenizer import train_tokenizer
from iad_r1.errors import ConfigError

HIDDEN = 128
LAYERS = 2
VOCABULARY = 512
IMAGE_SIDE = 56  # pixels a fixed-size vision tower reads (LLaVA, InternVL): 4 x 4 patches
PATCH = 14
PINPOINTS = [[56, 112], [112, 56], [112, 112]]

CORPUS = (
    "You are a quality inspector. Look at the picture and decide whether the product is defective.",
    "Compare it with the normal reference of the same product. Describe what you see step by step.",
    "<think>The surface is smooth and even; no scratch, hole, crack or stain is visible.</think>",
    "<think>There is a dark scratch near the top left corner of the part.</think>",
    "<location>top left</location><type>scratch</type><answer>Yes</answer>",
    "<location>bottom right</location><type>contamination</type><answer>Yes</answer>",
    "<location>center</location><type>broken edge</type><answer>Yes</answer><answer>No</answer>",
    "Is there any anomaly in the image? Answer with Yes or No inside the answer tags.",
)


# --------------------------------------------------------------------------- building


@dataclass(frozen=True)
class Twin:
    """What the twin of one checkpoint shares with it.

    Attributes:
        model_type: of the checkpoint's `config.json`.
        text: `model_type` of its language model.
        tied: whether the output layer is the embedding.
        key_heads: of 4 attention heads.
    """

    model_type: str
    text: str
    dialect: Dialect
    tied: bool
    key_heads: int = 2


BACKBONES: Mapping[str, Twin] = {
    "qwen2vl_2b": Twin("qwen2_vl", "qwen2_vl_text", QWEN, tied=True),
    "qwen25vl_3b": Twin("qwen2_5_vl", "qwen2_5_vl_text", QWEN, tied=True),
    "qwen25vl_7b": Twin("qwen2_5_vl", "qwen2_5_vl_text", QWEN, tied=False),
    "qwen25vl_72b": Twin("qwen2_5_vl", "qwen2_5_vl_text", QWEN, tied=False),
    "llava15_7b": Twin("llava", "llama", VICUNA, tied=False, key_heads=4),
    "llava15_13b": Twin("llava", "llama", VICUNA, tied=False, key_heads=4),
    "llava16_8b": Twin("llava_next", "mistral", MISTRAL, tied=False),
    "llava16_34b": Twin("llava_next", "llama", YI, tied=False),
    "llava_ov_05b": Twin("llava_onevision", "qwen2", ONEVISION, tied=True),
    "llava_ov_7b": Twin("llava_onevision", "qwen2", ONEVISION, tied=False),
    "internvl25_4b": Twin("internvl", "qwen2", INTERNVL, tied=False),
}
"""By the name of a backbone in `conf/backbone/`."""

TWINS: Mapping[str, Twin] = {twin.model_type: twin for twin in reversed(BACKBONES.values())}
"""The first one of each architecture, by `model_type`."""


def build_twin(name: str, path: Path, seed: int = 0) -> Path:
    """Write the twin of a backbone, or of an architecture (`TWINS`), to `path`; returns `path`.

    The same seed writes the same weights. ConfigError if the name is neither.
    """
    twin = BACKBONES.get(name) or TWINS.get(name)
    if twin is None:
        raise ConfigError(
            f"no tiny twin of {name!r}; there are {', '.join((*BACKBONES, *TWINS))}. A new one is "
            "added in iad_r1/backbones/twins.py."
        )
    tokenizer = train_tokenizer(twin.dialect, CORPUS, VOCABULARY)
    config = AutoConfig.for_model(twin.model_type, **_CONFIGS[twin.model_type](twin, tokenizer))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config)
    model.generation_config = _generation(twin.dialect, tokenizer)
    model.save_pretrained(path)
    _name_vision_tower_as_the_hub_does(Path(path) / "model.safetensors", model)
    settings = _PROCESSING[twin.model_type]
    build_processor(twin.model_type, settings, tokenizer).save_pretrained(path)
    return Path(path)


def _generation(dialect: Dialect, tokenizer: PreTrainedTokenizerFast) -> GenerationConfig:
    ends = [tokenizer.get_vocab()[token] for token in dialect.ends]
    return GenerationConfig(
        eos_token_id=ends if len(ends) > 1 else ends[0],
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        do_sample=False,
    )


def _name_vision_tower_as_the_hub_does(weights: Path, model: PreTrainedModel) -> None:
    """`vision_tower.embeddings` -> `vision_tower.vision_model.embeddings`, as in every LLaVA
    checkpoint on the hub; vLLM reads only that. transformers reads both, and a model that was read
    from the hub's names is saved with them."""
    if not model.config.model_type.startswith("llava"):
        return
    old, new = "vision_tower.", "vision_tower.vision_model."
    tensors = load_file(weights)
    renamed = {
        key.replace(old, new) if old in key and new not in key else key: value
        for key, value in tensors.items()
    }
    save_file(renamed, weights, metadata={"format": "pt"})


def _text(twin: Twin, tokenizer: PreTrainedTokenizerFast, **more: Any) -> dict[str, Any]:
    """The language model."""
    settings = {
        "model_type": twin.text,
        "vocab_size": len(tokenizer),
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": twin.key_heads,
        "max_position_embeddings": 4096,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": twin.tied,
        **more,
    }
    return {**settings, "sliding_window": None} if twin.text == "mistral" else settings


# --------------------------------------------------------------------------- Qwen2-VL, Qwen2.5-VL

QWEN2_VISION = {"depth": LAYERS, "embed_dim": 64, "hidden_size": HIDDEN, "num_heads": 2,
                "mlp_ratio": 2}  # fmt: skip
QWEN25_VISION = {
    "depth": LAYERS,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_heads": 2,
    "out_hidden_size": HIDDEN,
    "window_size": 56,  # smaller than the images, so windowed attention is exercised
    "fullatt_block_indexes": [1],
}


def _qwen_config(vision: Mapping[str, Any]) -> Callable[..., dict[str, Any]]:
    def build(twin: Twin, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
        token = tokenizer.convert_tokens_to_ids
        rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]}
        return {
            "vision_config": {"patch_size": PATCH, "spatial_merge_size": 2, **vision},
            "text_config": _text(twin, tokenizer, rope_parameters=rope),
            "image_token_id": token("<|image_pad|>"),
            "video_token_id": token("<|video_pad|>"),
            "vision_start_token_id": token("<|vision_start|>"),
            "vision_end_token_id": token("<|vision_end|>"),
            "tie_word_embeddings": twin.tied,
        }

    return build


# --------------------------------------------------------------------------- the LLaVA families


def _tower(kind: str) -> dict[str, Any]:
    return {
        "model_type": kind,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": LAYERS + 1,  # the last but one is read, as in the real models
        "num_attention_heads": 2,
        "image_size": IMAGE_SIDE,
        "patch_size": PATCH,
        **({"projection_dim": 64} if kind == "clip_vision_model" else {"vision_use_head": False}),
    }


def _llava_config(tower: str, **more: Any) -> Callable[..., dict[str, Any]]:
    clip = tower == "clip_vision_model"

    def build(twin: Twin, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
        video = {"video_token_index": tokenizer.convert_tokens_to_ids("<video>")}
        return {
            "vision_config": _tower(tower),
            "text_config": _text(twin, tokenizer),
            "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
            "vision_feature_layer": -2 if clip else -1,
            "vision_feature_select_strategy": "default" if clip else "full",
            "tie_word_embeddings": twin.tied,
            **({} if clip else video),
            **more,
        }

    return build


# --------------------------------------------------------------------------- InternVL


def _internvl_config(twin: Twin, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "vision_config": {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 2,
            "attention_bias": True,
            "image_size": [IMAGE_SIDE, IMAGE_SIDE],
            "patch_size": [PATCH, PATCH],
        },
        "text_config": _text(twin, tokenizer),
        "image_token_id": tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        "image_seq_length": (IMAGE_SIDE // PATCH // 2) ** 2,
        "tie_word_embeddings": twin.tied,
    }


_CONFIGS: Mapping[str, Callable[[Twin, PreTrainedTokenizerFast], dict[str, Any]]] = {
    "qwen2_vl": _qwen_config(QWEN2_VISION),
    "qwen2_5_vl": _qwen_config(QWEN25_VISION),
    "llava": _llava_config("clip_vision_model", image_seq_length=(IMAGE_SIDE // PATCH) ** 2),
    "llava_next": _llava_config("clip_vision_model", image_grid_pinpoints=PINPOINTS),
    "llava_onevision": _llava_config(
        "siglip_vision_model", image_grid_pinpoints=PINPOINTS, vision_aspect_ratio="anyres_max_9"
    ),
    "internvl": _internvl_config,
}
_SQUARE = {"height": IMAGE_SIDE, "width": IMAGE_SIDE}
_QWEN = {"min_pixels": 28 * 28, "max_pixels": 112 * 112, "patch_size": PATCH}
_CLIP = {
    "size": {"shortest_edge": IMAGE_SIDE},
    "crop_size": _SQUARE,
    "patch_size": PATCH,
    "vision_feature_select_strategy": "default",
    "num_additional_image_tokens": 1,  # the class token, which "default" then drops
}
_PROCESSING: Mapping[str, Mapping[str, Any]] = {
    "qwen2_vl": _QWEN,
    "qwen2_5_vl": _QWEN,
    "llava": _CLIP,
    "llava_next": {**_CLIP, "image_grid_pinpoints": PINPOINTS},
    "llava_onevision": {
        "size": _SQUARE,
        "image_grid_pinpoints": PINPOINTS,
        "num_image_tokens": (IMAGE_SIDE // PATCH) ** 2,
        "vision_feature_select_strategy": "full",
        "vision_aspect_ratio": "anyres_max_9",
    },
    "internvl": {
        "size": _SQUARE,
        "crop_to_patches": True,
        "max_patches": 4,
        "image_seq_length": (IMAGE_SIDE // PATCH // 2) ** 2,
    },
}
