"""How far bfloat16 puts a healthy sampler from its trainer, and which faults the limits still see.

    python bench/sampler_gap.py --json FILE      depths 16, 24 and 36; minutes on two cores
    python bench/sampler_gap.py --quick          depth 16 alone

The model is a random Qwen2.5-VL twin made deep, with weights of standard size. Its last norm is
scaled up towards an entropy of 0.3 nats, as that of a trained policy, but the search ends before:
over 48 tokens it is about 1. transformers samples from it with a cache, token by token; the trainer
computes the same tokens in one packed forward. Both read the same weights, so all that is between
them is rounding. Then the trainer's side gets one fault at a time, each in sizes that halve:

    layer        noise on one matrix of the middle layer, as a share of its own size
    stale        noise on all weights of the language model, as after steps that were not sent
    temperature  another temperature, by that share
    completion   that share of the completions belongs to another picture's prompt

For each fault the table holds the smallest size of which, and of all larger ones, every step is
refused. A step here has 4 prompts of 6 completions of up to 48 tokens; a gate 8 completions of 16.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText

from bench import record
from iad_r1.backbones.backbone import Backbone, Prompt
from iad_r1.backbones.packing import completion_logprobs
from iad_r1.backbones.twins import build_twin
from iad_r1.rollouts.gap import LIMITS, Gap
from iad_r1.rollouts.hf import HfSampler
from iad_r1.rollouts.sampling import Sampling
from iad_r1.types import Completion, Conversation

ENTROPY = 0.3  # nats, of a trained policy
DEPTHS = (16, 24, 36)
PROMPTS, GROUP, TOKENS = 4, 6, 48  # of a step
GATE = (8, 16)  # completions and tokens of each, of a gate
DRAWS = 10_000  # gates drawn from the tokens of all steps
SIZES = [2.0**-k for k in range(9)]
Groups = list[list[Completion]]


def peaked_twin(
    folder: Path, depth: int, dtype: torch.dtype, seed: int = 0, gain: float = 1.0
) -> Backbone:
    """A random twin of `depth` layers whose last norm is scaled towards an entropy of 0.3 nats."""
    small = Backbone.load(build_twin("qwen25vl_7b", folder, seed))
    config = AutoConfig.from_pretrained(folder)
    text = config.get_text_config()
    text.num_hidden_layers, text.layer_types = depth, text.layer_types[:1] * depth
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config)
    model.generation_config = small.model.generation_config
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(gain)
    model.model.visual.requires_grad_(False)
    found = Backbone(model.to(dtype).eval(), small.processor)
    norm = model.model.language_model.norm.weight
    low, high = 0.1, 30.0
    asked = prompts(found, 2)
    for _ in range(10):
        with torch.no_grad():
            norm.fill_(math.sqrt(low * high))
        groups = draw(found, asked, Sampling(4, 16, 1.0), 99)
        said = trainer(found, asked, groups, entropy=True)
        flat = said.entropy[said.mask].mean().item() > ENTROPY
        low, high = (math.sqrt(low * high), high) if flat else (low, math.sqrt(low * high))
    return found


def prompts(backbone: Backbone, count: int) -> list[Prompt]:
    """Prompts of one noisy picture each."""
    asked = Conversation("{image}Is there any anomaly in the image?")
    found = []
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randint(0, 256, (64, 64, 3), generator=generator, dtype=torch.uint8)
        found.append(backbone.encode(asked, [Image.fromarray(noise.numpy())]))
    return found


def draw(backbone: Backbone, asked: Sequence[Prompt], sampling: Sampling, step: int) -> Groups:
    seeds = [(step, number) for number in range(len(asked))]
    return HfSampler(backbone, batch_size=64).generate(asked, sampling, seeds)


@torch.no_grad()
def trainer(
    backbone: Backbone,
    asked: Sequence[Prompt],
    groups: Groups,
    temperature: float = 1.0,
    entropy: bool = False,
) -> Any:
    return completion_logprobs(
        backbone.model,
        [prompt.inputs for prompt in asked],
        [[completion.tokens for completion in group] for group in groups],
        temperature=temperature,
        suppressed=backbone.placeholders,
        entropy=entropy,
    )


def apart(groups: Groups, said: Any) -> list[Tensor]:
    """|sampler - trainer| of each completion's tokens."""
    flat = [completion for group in groups for completion in group]
    return [
        (torch.tensor(one.logprobs) - row[: len(one.tokens)]).abs()
        for one, row in zip(flat, said.logprob, strict=True)
    ]


# --- faults of the trainer's side, each of some size ---------------------------------------------


@dataclass(frozen=True)
class Step:
    """A batch, drawn from the weights as they are."""

    backbone: Backbone
    asked: list[Prompt]
    groups: Groups

    def healthy(self) -> list[Tensor]:
        return apart(self.groups, trainer(self.backbone, self.asked, self.groups))

    def layer(self, size: float) -> list[Tensor]:
        layers = self.backbone.model.model.language_model.layers
        with moved([layers[len(layers) // 2].mlp.down_proj.weight], size):
            return self.healthy()

    def stale(self, size: float) -> list[Tensor]:
        weights = self.backbone.model.model.language_model.parameters()
        with moved([weight for weight in weights if weight.ndim == 2], size):
            return self.healthy()

    def temperature(self, size: float) -> list[Tensor]:
        return apart(self.groups, trainer(self.backbone, self.asked, self.groups, 1.0 + size))

    def completion(self, size: float) -> list[Tensor]:
        """The first completions are judged after another picture's prompt."""
        found, count = self.healthy(), math.ceil(size * PROMPTS * GROUP)
        others = [*self.asked[1:], self.asked[0]]
        wrong = apart(self.groups, trainer(self.backbone, others, self.groups))
        return [*wrong[:count], *found[count:]]


FAULTS = {
    "layer": Step.layer,
    "stale": Step.stale,
    "temperature": Step.temperature,
    "completion": Step.completion,
}


@contextmanager
def moved(weights: Sequence[Tensor], size: float) -> Iterator[None]:
    """Inside, the weights carry noise of that share of their own size."""
    saved = [weight.detach().clone() for weight in weights]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in weights:
            noise = torch.randn(weight.shape, generator=generator).to(weight)
            weight.add_(size * weight.float().std().to(weight) * noise)
    yield
    with torch.no_grad():
        for weight, kept in zip(weights, saved, strict=True):
            weight.copy_(kept)


# --- the table -----------------------------------------------------------------------------------


def measure(depth: int, steps: int, dtype: torch.dtype = torch.bfloat16) -> dict[str, Any]:
    """The figures of one depth."""
    with tempfile.TemporaryDirectory() as folder:
        backbone = peaked_twin(Path(folder), depth, dtype)
    asked, limit = prompts(backbone, PROMPTS), LIMITS[dtype]
    batches = [
        Step(backbone, asked, draw(backbone, asked, Sampling(GROUP, TOKENS, 1.0), number))
        for number in range(steps)
    ]
    healthy = [step.healthy() for step in batches]
    rows = [row for step in healthy for row in step]
    whole = torch.cat(rows)
    said = trainer(backbone, asked, batches[0].groups, entropy=True)
    found: dict[str, Any] = {
        "entropy": said.entropy[said.mask].mean().item(),
        "tokens": len(whole),
        "mean": whole.mean().item(),
        **{f"q{q}": whole.quantile(q / 100).item() for q in (90, 95, 99)},
        "max": whole.max().item(),
        "step_mean_most": max(Gap.of(torch.cat(step)).mean for step in healthy),
        "step_high_most": max(Gap.of(torch.cat(step)).high for step in healthy),
        "false_stops_step": share(not Gap.of(torch.cat(step)).within(limit) for step in healthy),
        "false_stops_gate": share(not gate.within(limit) for gate in gates(rows)),
    }
    for name, fault in FAULTS.items():
        caught = None
        for size in SIZES:
            if any(Gap.of(torch.cat(fault(step, size))).within(limit) for step in batches[:4]):
                break
            caught = size
        found[f"smallest_{name}"] = caught
    return found


def gates(rows: Sequence[Tensor]) -> Iterator[Gap]:
    """Gates drawn at random from the beginnings of completions."""
    completions, tokens = GATE
    generator = torch.Generator().manual_seed(0)
    for _ in range(DRAWS):
        chosen = torch.randint(len(rows), (completions,), generator=generator).tolist()
        yield Gap.of(torch.cat([rows[row][:tokens] for row in chosen]))


def share(truths: Any) -> float:
    listed = list(truths)
    return sum(listed) / len(listed)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="depth 16 alone")
    parser.add_argument("--steps", type=int, default=12, help="steps of each depth")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = {}
    for depth in DEPTHS[: 1 if options.quick else None]:
        found[f"bfloat16_{depth}"] = measure(depth, options.steps)
        sys.stdout.write(json.dumps({str(depth): found[f"bfloat16_{depth}"]}, indent=1) + "\n")
        sys.stdout.flush()
    if not options.quick:
        found["float32_24"] = measure(24, 2, torch.float32)
        sys.stdout.write(json.dumps({"float32": found["float32_24"]}, indent=1) + "\n")
    if options.json:
        # not a comparison with a peer: `ratio` is the limit on the mean over the largest mean
        most = max(row["step_mean_most"] for name, row in found.items() if "bfloat16" in name)
        record.write(options.json, LIMITS[torch.bfloat16].mean / most, found)


if __name__ == "__main__":
    main()
