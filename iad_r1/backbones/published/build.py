"""Published backbones built at their true size with random weights (`weights=random`).

For measuring speed and memory where no checkpoint can be downloaded. Classes, widths, vocabulary
size, special tokens with their ids, chat template and the arithmetic of image tokens are the
published ones. Two things are not: the weights, which know nothing, and the words of the
tokenizer. It is a byte-level BPE of some 500 pieces; the rest of the true vocabulary is there as
`<|unused_id|>`, so that any id a random model samples can be decoded. A text is therefore about
twice as many tokens long as with the true tokenizer; an image is exactly as long.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    CLIPImageProcessorPil,
    GenerationConfig,
    GotOcr2ImageProcessorPil,
    InternVLProcessor,
    InternVLVideoProcessor,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaOnevisionImageProcessorPil,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    LlavaProcessor,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)
from transformers import initialization as init

from iad_r1.backbones import published
from iad_r1.backbones.twins import BACKBONES, CORPUS

PIECES = 512  # of the byte-level BPE


def build_random(
    name: str,
    dtype: torch.dtype = torch.bfloat16,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> PreTrainedModel:
    """The backbone `name` at its true size, weights drawn as transformers initialises them.

    Weights are allocated once, in `dtype` and on `device`, and drawn there; the same seed on the
    same kind of device draws the same weights. `device="meta"` allocates and draws nothing.
    ConfigError if the backbone is not described (`published.names()`).
    """
    device = torch.device(device)
    config = model_config(name)
    with device, init.no_init_weights():
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    if device.type != "meta":
        with _seeded(seed, device):
            model.initialize_weights()
    model.tie_weights()
    model.generation_config = GenerationConfig(**published.read(name)["generation"])
    return model.eval()


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, random numbers start from `seed`; outside, they go on as if nothing had happened."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def model_config(name: str) -> PretrainedConfig:
    """The transformers configuration of a published backbone."""
    values = dict(published.read(name)["config"])
    return AutoConfig.for_model(values.pop("model_type"), **values)


def build_processor(name: str) -> ProcessorMixin:
    """The processor of a published backbone: true image arithmetic, a small tokenizer."""
    about = published.read(name)
    values = dict(about["processor"])
    build = PROCESSORS[values.pop("kind")]
    return build(about, values, build_tokenizer(name))


def save_random(name: str, path: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Write the random backbone with its processor to a folder in Hugging Face layout."""
    build_random(name, dtype).save_pretrained(path)
    build_processor(name).save_pretrained(path)
    return path


# --------------------------------------------------------------------------- tokenizer


def build_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE in a vocabulary of the true size, special tokens at their true ids."""
    about = published.read(name)
    spec, config = about["tokenizer"], about["config"]
    size = config.get("text_config", config)["vocab_size"]
    vocabulary, merges = _pieces()
    tokenizer = Tokenizer(models.BPE(vocab=_places(vocabulary, spec["special"], size),
                                     merges=merges))  # fmt: skip
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    # in the vocabulary already, so they keep their ids
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in spec["special"]])
    dialect = BACKBONES[name].dialect
    if dialect.begin is not None:
        tokenizer.post_processor = TemplateProcessing(
            single=f"{dialect.begin} $A",
            special_tokens=[(dialect.begin, spec["special"][dialect.begin])],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=spec["eos"],
        pad_token=spec["pad"],
        padding_side="left",
        chat_template=dialect.template,
        extra_special_tokens=spec.get("named", {}),
        **({"bos_token": dialect.begin} if dialect.begin else {}),
    )


def _pieces() -> tuple[list[str], list[tuple[str, str]]]:
    """Pieces and merges of a BPE trained on sentences about defects; any text can be written."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=PIECES,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    state = json.loads(tokenizer.to_str())["model"]
    return sorted(state["vocab"], key=state["vocab"].__getitem__), [
        (first, second) for first, second in state["merges"]
    ]


def _places(pieces: list[str], special: Mapping[str, int], size: int) -> dict[str, int]:
    """Every id below `size`: special tokens where they belong, then pieces, then unused ones."""
    words = {index: word for word, index in special.items()}
    waiting = iter(pieces)
    for index in range(size):
        if index not in words:
            words[index] = next(waiting, f"<|unused_{index}|>")
    return {word: index for index, word in words.items()}


# --------------------------------------------------------------------------- processors

About = Mapping[str, Any]


def _qwen(about: About, values: dict, tokenizer: PreTrainedTokenizerFast) -> ProcessorMixin:
    kind = Qwen2VLProcessor if about["config"]["model_type"] == "qwen2_vl" else Qwen2_5_VLProcessor
    size = {
        "shortest_edge": values.pop("min_pixels"),
        "longest_edge": values.pop("max_pixels"),
    }
    return kind(
        image_processor=Qwen2VLImageProcessorPil(size=size, **values),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(patch_size=values["patch_size"]),
        chat_template=tokenizer.chat_template,
    )


def _clip(kind: Any, pictures: Any) -> Callable[..., ProcessorMixin]:
    def build(about: About, values: dict, tokenizer: PreTrainedTokenizerFast) -> ProcessorMixin:
        counting = {
            key: values.pop(key)
            for key in ("patch_size", "vision_feature_select_strategy",
                        "num_additional_image_tokens")
        }  # fmt: skip
        return kind(
            image_processor=pictures(**values),
            tokenizer=tokenizer,
            chat_template=tokenizer.chat_template,
            **counting,
        )

    return build


def _onevision(about: About, values: dict, tokenizer: PreTrainedTokenizerFast) -> ProcessorMixin:
    counting = {
        key: values.pop(key)
        for key in ("num_image_tokens", "vision_feature_select_strategy", "vision_aspect_ratio")
    }
    return LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessorPil(**values),
        tokenizer=tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(size=values["size"]),
        chat_template=tokenizer.chat_template,
        **counting,
    )


def _internvl(about: About, values: dict, tokenizer: PreTrainedTokenizerFast) -> ProcessorMixin:
    per_tile = values.pop("image_seq_length")
    return InternVLProcessor(
        image_processor=GotOcr2ImageProcessorPil(**values),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(size=values["size"]),
        image_seq_length=per_tile,
        chat_template=tokenizer.chat_template,
    )


PROCESSORS: Mapping[str, Callable[[About, dict, PreTrainedTokenizerFast], ProcessorMixin]] = {
    "qwen": _qwen,
    "llava": _clip(LlavaProcessor, CLIPImageProcessorPil),
    "llava_next": _clip(LlavaNextProcessor, LlavaNextImageProcessorPil),
    "llava_onevision": _onevision,
    "internvl": _internvl,
}
