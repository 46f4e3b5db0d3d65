"""Processors of the families, built from the arithmetic of their pictures without a checkpoint.

Their pictures go through the classes that `AutoProcessor` would take: torchvision's, or Pillow's
where torchvision is not installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import (
    CLIPImageProcessor,
    GotOcr2ImageProcessor,
    InternVLProcessor,
    InternVLVideoProcessor,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)


@dataclass(frozen=True)
class _Classes:
    """What a family's processor is made of.

    Attributes:
        own: settings of the processor itself; all others are those of its pictures.
        shared: settings of pictures that its video processor shares.
    """

    processor: Any
    pictures: Any
    video: Any = None
    own: tuple[str, ...] = ()
    shared: tuple[str, ...] = ("size",)


_PATCHES = ("patch_size", "temporal_patch_size", "merge_size")
_CLIP = ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens")
_CLASSES: Mapping[str, _Classes] = {
    "qwen2_vl": _Classes(
        Qwen2VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor, shared=_PATCHES
    ),
    "qwen2_5_vl": _Classes(
        Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor, shared=_PATCHES
    ),
    "llava": _Classes(LlavaProcessor, CLIPImageProcessor, own=_CLIP),
    "llava_next": _Classes(LlavaNextProcessor, LlavaNextImageProcessor, own=_CLIP),
    "llava_onevision": _Classes(
        LlavaOnevisionProcessor,
        LlavaOnevisionImageProcessor,
        LlavaOnevisionVideoProcessor,
        own=("num_image_tokens", "vision_feature_select_strategy", "vision_aspect_ratio"),
    ),
    "internvl": _Classes(
        InternVLProcessor,
        GotOcr2ImageProcessor,
        InternVLVideoProcessor,
        own=("image_seq_length",),
    ),
}


def build_processor(
    model_type: str, settings: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast
) -> ProcessorMixin:
    """The processor of a family around a tokenizer.

    Args:
        settings: as in a checkpoint's `preprocessor_config.json`.
    """
    classes, pictures = _CLASSES[model_type], dict(settings)
    parts = {key: pictures.pop(key) for key in classes.own}
    if "min_pixels" in pictures:
        limits = {"shortest_edge": pictures.pop("min_pixels")}
        pictures["size"] = {**limits, "longest_edge": pictures.pop("max_pixels")}
    if classes.video is not None:
        shared = {key: pictures[key] for key in classes.shared if key in pictures}
        parts["video_processor"] = classes.video(**shared)
    return classes.processor(
        image_processor=classes.pictures(**pictures),
        tokenizer=tokenizer,
        chat_template=tokenizer.chat_template,
        **parts,
    )
