"""Tiny random twins of the five supported architectures, in the hub's own layout.

A twin has the class, processor, chat template and file layout of the real checkpoint, but two
layers and about half a million weights. Code that works on a twin works on the real one, so tests
and `weights=tiny` need no download. A twin knows nothing: its weights are random.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessorPil,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessorPil,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from iad_r1.errors import ConfigError

HIDDEN = 128
LAYERS = 2
VOCABULARY = 512
IMAGE_SIDE = 56  # pixels a fixed-size vision tower reads (LLaVA families): 4 x 4 patches
PATCH = 14
QWEN_PIXELS = {"shortest_edge": 28 * 28, "longest_edge": 112 * 112}
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
TAGS = [f"<{slash}{tag}>" for tag in ("think", "location", "type", "answer") for slash in ("", "/")]

QWEN_CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
QWEN_VISION = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]


def _chat_template(before: str, image: str, after: str, answer: str) -> str:
    """Text and pictures in reading order, which is how all five real templates render them."""
    return (
        "{% for message in messages %}" + before + "{% if message['content'] is string %}"
        "{{ message['content'] }}{% else %}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}" + image + "{% else %}{{ part['text'] }}{% endif %}"
        "{% endfor %}{% endif %}" + after + "{% endfor %}"
        "{% if add_generation_prompt %}" + answer + "{% endif %}"
    )


CHATML_TURN = ("<|im_start|>{{ message['role'] }}\n", "<|im_end|>\n", "<|im_start|>assistant\n")
QWEN_TEMPLATE = _chat_template(
    CHATML_TURN[0], "<|vision_start|><|image_pad|><|vision_end|>", *CHATML_TURN[1:]
)
ONEVISION_TEMPLATE = _chat_template(CHATML_TURN[0], "<image>\n", *CHATML_TURN[1:])
VICUNA_TEMPLATE = _chat_template("{{ message['role'] | upper }}: ", "<image>\n", " ", "ASSISTANT:")
LLAMA3_TEMPLATE = _chat_template(
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n",
    "<image>\n",
    "<|eot_id|>",
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
)


def build_twin(model_type: str, path: Path, seed: int = 0) -> Path:
    """Write the twin of `model_type` (a key of `TWINS`) to `path` and return `path`.

    The same seed writes the same weights. ConfigError if the architecture is not known.
    """
    if model_type not in TWINS:
        raise ConfigError(f"no tiny twin of {model_type!r}; there are {', '.join(TWINS)}.")
    twin = TWINS[model_type]
    tokenizer = _tokenizer(twin)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = twin.model(tokenizer)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    model.save_pretrained(path)
    _name_vision_tower_as_the_hub_does(Path(path) / "model.safetensors")
    twin.processor(tokenizer).save_pretrained(path)
    return Path(path)


def _name_vision_tower_as_the_hub_does(weights: Path) -> None:
    """`vision_tower.embeddings` -> `vision_tower.vision_model.embeddings`, as in every LLaVA
    checkpoint on the hub; vLLM reads only that. transformers reads both."""
    old, new = "vision_tower.", "vision_tower.vision_model."
    tensors = load_file(weights)
    renamed = {
        key.replace(old, new) if old in key and new not in key else key: value
        for key, value in tensors.items()
    }
    save_file(renamed, weights, metadata={"format": "pt"})


@dataclass(frozen=True)
class _Twin:
    special: tuple[str, ...]  # control and placeholder tokens
    end: str  # ends an answer
    pad: str
    template: str
    model: Callable[[PreTrainedTokenizerFast], PreTrainedModel]
    processor: Callable[[PreTrainedTokenizerFast], ProcessorMixin]


def _tokenizer(twin: _Twin) -> PreTrainedTokenizerFast:
    """Byte-level BPE of about 520 tokens: any text can be written."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(twin.special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken(tag, normalized=False, special=False) for tag in TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=twin.end,
        pad_token=twin.pad,
        padding_side="left",
        additional_special_tokens=[t for t in twin.special if t not in (twin.end, twin.pad)],
        chat_template=twin.template,
    )


def _text(tokenizer: PreTrainedTokenizerFast, **more: Any) -> dict[str, Any]:
    """The language model: grouped-query attention (4 heads on 2 key heads), as the real ones."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **more,
    }


# --------------------------------------------------------------------------- Qwen2-VL, Qwen2.5-VL


def _qwen_config(tokenizer: PreTrainedTokenizerFast, vision: Mapping[str, Any]) -> dict[str, Any]:
    token = tokenizer.convert_tokens_to_ids
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]}
    return {
        "vision_config": {"patch_size": PATCH, "spatial_merge_size": 2, **vision},
        "text_config": _text(tokenizer, rope_parameters=rope),
        "image_token_id": token("<|image_pad|>"),
        "video_token_id": token("<|video_pad|>"),
        "vision_start_token_id": token("<|vision_start|>"),
        "vision_end_token_id": token("<|vision_end|>"),
        "tie_word_embeddings": True,
    }


def _qwen2_vl(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    vision = {"depth": LAYERS, "embed_dim": 64, "hidden_size": HIDDEN, "num_heads": 2}
    return Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(**_qwen_config(tokenizer, {**vision, "mlp_ratio": 2}))
    )


def _qwen2_5_vl(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    vision = {
        "depth": LAYERS,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 2,
        "out_hidden_size": HIDDEN,
        "window_size": 56,  # smaller than the images, so windowed attention is exercised
        "fullatt_block_indexes": [1],
    }
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**_qwen_config(tokenizer, vision)))


def _qwen_processor(kind: Any) -> Callable[[PreTrainedTokenizerFast], ProcessorMixin]:
    return lambda tokenizer: kind(
        image_processor=Qwen2VLImageProcessorPil(patch_size=PATCH, size=dict(QWEN_PIXELS)),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(patch_size=PATCH),
        chat_template=tokenizer.chat_template,
    )


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


def _llava_config(tokenizer: PreTrainedTokenizerFast, tower: str, text: str) -> dict[str, Any]:
    clip = tower == "clip_vision_model"
    return {
        "vision_config": _tower(tower),
        "text_config": _text(tokenizer, model_type=text),
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
        "vision_feature_layer": -2 if clip else -1,
        "vision_feature_select_strategy": "default" if clip else "full",
        "tie_word_embeddings": not clip,
    }


def _llava(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    config = _llava_config(tokenizer, "clip_vision_model", "llama")
    return LlavaForConditionalGeneration(
        LlavaConfig(**config, image_seq_length=(IMAGE_SIDE // PATCH) ** 2)
    )


def _llava_next(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    config = _llava_config(tokenizer, "clip_vision_model", "llama")
    return LlavaNextForConditionalGeneration(
        LlavaNextConfig(**config, image_grid_pinpoints=PINPOINTS)
    )


def _llava_onevision(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    config = _llava_config(tokenizer, "siglip_vision_model", "qwen2")
    config["video_token_index"] = tokenizer.convert_tokens_to_ids("<video>")
    return LlavaOnevisionForConditionalGeneration(
        LlavaOnevisionConfig(
            **config,
            image_grid_pinpoints=PINPOINTS,
            vision_aspect_ratio="anyres_max_9",
        )
    )


_CLIP_PROCESSING = {"patch_size": PATCH, "vision_feature_select_strategy": "default"}
_SQUARE = {"height": IMAGE_SIDE, "width": IMAGE_SIDE}


def _llava_processor(tokenizer: PreTrainedTokenizerFast) -> ProcessorMixin:
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": IMAGE_SIDE}, crop_size=dict(_SQUARE)
        ),
        tokenizer=tokenizer,
        chat_template=tokenizer.chat_template,
        num_additional_image_tokens=1,  # the class token, which "default" then drops
        **_CLIP_PROCESSING,
    )


def _llava_next_processor(tokenizer: PreTrainedTokenizerFast) -> ProcessorMixin:
    return LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil(
            size={"shortest_edge": IMAGE_SIDE},
            crop_size=dict(_SQUARE),
            image_grid_pinpoints=PINPOINTS,
        ),
        tokenizer=tokenizer,
        chat_template=tokenizer.chat_template,
        num_additional_image_tokens=1,
        **_CLIP_PROCESSING,
    )


def _llava_onevision_processor(tokenizer: PreTrainedTokenizerFast) -> ProcessorMixin:
    return LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessorPil(
            size=dict(_SQUARE), image_grid_pinpoints=PINPOINTS
        ),
        tokenizer=tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(size=dict(_SQUARE)),
        num_image_tokens=(IMAGE_SIDE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        chat_template=tokenizer.chat_template,
    )


_QWEN = (tuple(QWEN_CONTROL + QWEN_VISION), "<|im_end|>", "<|endoftext|>", QWEN_TEMPLATE)
_VICUNA = (("<s>", "</s>", "<pad>", "<image>"), "</s>", "<pad>", VICUNA_TEMPLATE)
_LLAMA3 = (
    ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<pad>",
     "<image>"),
    "<|eot_id|>", "<pad>", LLAMA3_TEMPLATE,
)  # fmt: skip
_ONEVISION = (
    (*QWEN_CONTROL, "<image>", "<video>"), "<|im_end|>", "<|endoftext|>", ONEVISION_TEMPLATE
)  # fmt: skip

TWINS: Mapping[str, _Twin] = {
    "qwen2_vl": _Twin(*_QWEN, _qwen2_vl, _qwen_processor(Qwen2VLProcessor)),
    "qwen2_5_vl": _Twin(*_QWEN, _qwen2_5_vl, _qwen_processor(Qwen2_5_VLProcessor)),
    "llava": _Twin(*_VICUNA, _llava, _llava_processor),
    "llava_next": _Twin(*_LLAMA3, _llava_next, _llava_next_processor),
    "llava_onevision": _Twin(*_ONEVISION, _llava_onevision, _llava_onevision_processor),
}
