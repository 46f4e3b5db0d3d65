"""Twins, prompts and completions for the proofs about the packed forward, and a naive oracle."""

from __future__ import annotations

import copy
import functools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.attention import flex_attention
from transformers import AutoModelForImageTextToText, AutoProcessor

from iad_r1.backbones.packing import Completions, ModelInputs
from iad_r1.backbones.twins import TWINS, build_twin

FAMILIES = list(TWINS)
Groups = list[list[list[int]]]


@functools.cache
def twin_folder(family: str) -> Path:
    return build_twin(family, Path(tempfile.mkdtemp(prefix="twin-")) / family, seed=0)


@functools.cache
def processor(family: str) -> Any:
    return AutoProcessor.from_pretrained(twin_folder(family))


@functools.cache
def _loaded(family: str) -> Any:
    """Weights three times their initial size: attention that is nearly uniform hides faults."""
    model = AutoModelForImageTextToText.from_pretrained(twin_folder(family), dtype=torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(3)
    return model


def model(family: str) -> Any:
    """A fresh copy of the family's twin, in float32."""
    return copy.deepcopy(_loaded(family))


def prompt(family: str, images: int = 1, words: str = "Is there a defect?", seed: int = 0) -> dict:
    """One conversation with pictures of different sizes, as the family's processor returns it."""
    rng = np.random.default_rng(seed)
    pictures = [
        Image.fromarray(rng.integers(0, 255, (60 + 30 * i, 100 - 20 * i, 3), dtype=np.uint8))
        for i in range(images)
    ]
    content = [{"type": "image"}] * images + [{"type": "text", "text": words}]
    text = processor(family).apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    return dict(processor(family)(text=[text], images=pictures or None, return_tensors="pt"))


def completions(family: str, lengths: list[list[int]], seed: int = 0) -> Groups:
    """Random tokens, none of them a control or placeholder token."""
    tokenizer = processor(family).tokenizer
    rng = np.random.default_rng(seed)
    low, high = 10, len(tokenizer)
    return [[rng.integers(low, high, n).tolist() for n in group] for group in lengths]


def two_groups(family: str, size: int) -> tuple[list[dict], Groups]:
    """A group with one picture and one with two, `size` completions of ragged length each."""
    rng = np.random.default_rng(size)
    prompts = [prompt(family, 1, seed=1), prompt(family, 2, "Compare, then answer.", seed=2)]
    return prompts, completions(family, rng.integers(1, 14, (2, size)).tolist(), seed=size)


@contextmanager
def flex_on_cpu() -> Iterator[None]:
    """Inside, FlexAttention runs uncompiled: the same mask in dense steps, no GPU kernel. It can be
    differentiated then, but PyTorch forbids that on a CPU before it knows."""
    with (
        mock.patch.object(flex_attention, "_validate_device"),
        torch.compiler.set_stance("force_eager"),
    ):
        yield


# ------------------------------------------------------------------------------------ the oracle


def plain_logprobs(model: Any, inputs: ModelInputs, tokens: list[int]) -> Tensor:
    """Log-probs of one completion by the model's own forward: no code of iad_r1 involved."""
    extended = dict(inputs)
    answer = torch.tensor([tokens])
    extended["input_ids"] = torch.cat([inputs["input_ids"], answer], -1)
    extended["attention_mask"] = torch.ones_like(extended["input_ids"])
    if "mm_token_type_ids" in extended:
        types = extended["mm_token_type_ids"]
        extended["mm_token_type_ids"] = torch.cat([types, torch.zeros_like(answer)], -1)
    model.model.rope_deltas = None
    logits = model(**extended, use_cache=False).logits[0, -len(tokens) - 1 : -1]
    return torch.log_softmax(logits.float(), -1).gather(-1, answer.T)[:, 0]


def plain_table(model: Any, prompts: list[dict], groups: Completions) -> list[Tensor]:
    """`plain_logprobs` of every completion of every group, in order."""
    return [
        plain_logprobs(model, inputs, list(tokens))
        for inputs, group in zip(prompts, groups, strict=True)
        for tokens in group
    ]


def gradient(model: Any, objective: Callable[[], Tensor]) -> Tensor:
    """All parameters' gradient of a scalar as one vector (zeros where a weight is unused)."""
    model.zero_grad(set_to_none=True)
    objective().backward()
    return torch.cat(
        [
            (torch.zeros_like(p) if p.grad is None else p.grad).flatten()
            for p in model.parameters()
            if p.requires_grad
        ]
    )


def relative(got: Tensor, expected: Tensor) -> float:
    """|got - expected| / |expected|, both as vectors."""
    return float((got - expected).detach().norm() / expected.detach().norm())


def mixture(shape: tuple[int, ...]) -> Tensor:
    """Fixed random weights, so that a scalar of all log-probs has no symmetry to hide behind."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))
