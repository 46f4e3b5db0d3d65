"""Prompts, settings and the measure of the vLLM tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from iad_r1.backbones.backbone import Backbone, Prompt
from iad_r1.backbones.packing import completion_logprobs
from iad_r1.settings.rollout import Parity
from iad_r1.settings.training import GapLimit
from iad_r1.types import Completion, Conversation

SETTINGS = {
    "name": "vllm",
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "max_tokens": 12,
    "batch_size": 8,
    "max_num_seqs": 16,
    "max_model_len": 512,
    "max_images": 2,
    "memory": 0.05,
    "kv_cache_gib": 0.125,
    "eager": True,
    "sleep": True,
    "patience": 120.0,
    "parity": Parity(every=1, probes=2, tokens=8),
}
SMALL = [
    "rollout=vllm",
    "rollout.kv_cache_gib=0.125",
    "rollout.max_model_len=512",
    "rollout.max_num_seqs=16",
    "rollout.eager=true",
    "rollout.max_tokens=8",
    "rollout.parity.every=2",
    "rollout.parity.probes=2",
    "rollout.parity.tokens=4",
]  # the same for a run
# As long as a block of vLLM's cache on a CPU (128 tokens), so that prompts are cached at all.
LONG = " ".join(["Look at the picture, describe the surface, then decide."] * 12)


def picture(seed: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    noise = torch.randint(
        0, 256, (*size[::-1], 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )
    return Image.fromarray(noise.numpy())


def prompts(backbone: Backbone, words: str = "") -> list[Prompt]:
    """A prompt with one picture and one with two of different sizes."""
    one = Conversation("{image}Are there any defects?" + words)
    two = Conversation("{image}A normal sample. {image}Any defects in this one?" + words)
    return [
        backbone.encode(one, [backbone.fit(picture(0))], "one picture"),
        backbone.encode(
            two, [backbone.fit(picture(8)), backbone.fit(picture(9, (90, 50)))], "two pictures"
        ),
    ]


def seeds(asked: list[Prompt], seed: int = 0) -> list[tuple[int, int]]:
    return [(seed, number) for number in range(len(asked))]


def move(backbone: Backbone, seed: int, by: float = 0.05) -> None:
    """Change every weight that learns, as an optimiser step would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in backbone.model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(by * noise.to(parameter.dtype))


@contextmanager
def gated(engine: Any, backbone: Backbone, path: Path) -> Iterator[Any]:
    """A gate whose prompts and pictures the engine has cached; afterwards, with the weights as they
    were before, it has to be green again."""
    from iad_r1.rollouts.parity import Gate

    saved = {name: value.clone() for name, value in backbone.model.state_dict().items()}
    found = Gate(
        engine,
        backbone,
        prompts(backbone, LONG),
        SETTINGS["parity"],
        GapLimit(mean=None, high=None),
        temperature=1.0,
        packing="group",
        path=path,
    )
    found.gap()
    yield found
    backbone.model.load_state_dict(saved)
    engine.sync()
    found.check("after", 1)


def leave_out(monkeypatch: pytest.MonkeyPatch, module: Any, part: str) -> None:
    """Have an engine's module not send the weights whose names hold `part`."""
    weights = module.hub_weights
    monkeypatch.setattr(
        module,
        "hub_weights",
        lambda model: (pair for pair in weights(model) if part not in pair[0]),
    )


def gap(
    backbone: Backbone,
    asked: list[Prompt],
    groups: list[list[Completion]],
    temperature: float = 1.0,
) -> float:
    """Largest difference between what sampler and trainer say of a token, in nats."""
    with torch.no_grad():
        trainer = completion_logprobs(
            backbone.model,
            [prompt.inputs for prompt in asked],
            [[completion.tokens for completion in group] for group in groups],
            temperature=temperature,
            suppressed=backbone.placeholders,
        )
    flat = [completion for group in groups for completion in group]
    return max(
        (torch.tensor(c.logprobs) - trainer.logprob[row, : len(c.tokens)]).abs().max().item()
        for row, c in enumerate(flat)
    )
