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
from collections.abc import Mapping

import torch
from tokenizers import AddedToken, models
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)
from transformers import initialization as init

from iad_r1.backbones import processors, published
from iad_r1.backbones.tokenizer import finish, train_pieces
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
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            model.initialize_weights()
    model.tie_weights()
    model.generation_config = GenerationConfig(**published.read(name)["generation"])
    return model.eval()


def model_config(name: str) -> PretrainedConfig:
    """The transformers configuration of a published backbone."""
    values = dict(published.read(name)["config"])
    return AutoConfig.for_model(values.pop("model_type"), **values)


def build_processor(name: str) -> ProcessorMixin:
    """The processor of a published backbone: true image arithmetic, a small tokenizer."""
    about = published.read(name)
    tokenizer = build_tokenizer(name)
    return processors.build_processor(about["config"]["model_type"], about["processor"], tokenizer)


def build_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE in a vocabulary of the true size, special tokens at their true ids."""
    about = published.read(name)
    spec, config = about["tokenizer"], about["config"]
    size = config.get("text_config", config)["vocab_size"]
    tokenizer = train_pieces(CORPUS, PIECES)
    state = json.loads(tokenizer.to_str())["model"]
    pieces = sorted(state["vocab"], key=state["vocab"].__getitem__)
    merges = [(first, second) for first, second in state["merges"]]
    tokenizer.model = models.BPE(vocab=_places(pieces, spec["special"], size), merges=merges)
    # in the vocabulary already, so they keep their ids
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in spec["special"]])
    dialect, named = BACKBONES[name].dialect, spec.get("named", {})
    return finish(tokenizer, dialect, spec["eos"], spec["pad"], named)


def _places(pieces: list[str], special: Mapping[str, int], size: int) -> dict[str, int]:
    """Every id below `size`: special tokens where they belong, then pieces, then unused ones."""
    words = {index: word for word, index in special.items()}
    waiting = iter(pieces)
    for index in range(size):
        if index not in words:
            words[index] = next(waiting, f"<|unused_{index}|>")
    return {word: index for index, word in words.items()}
