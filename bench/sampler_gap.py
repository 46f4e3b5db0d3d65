"""How far bfloat16 puts a healthy sampler from its trainer, and which faults the limits still see.

    python bench/sampler_gap.py --json FILE      three kinds of twins, 16, 24 and 36 layers deep; a
                                                 quarter of an hour on a free core
    python bench/sampler_gap.py --quick          the first kind at depth 16 alone; 45 seconds

The models are Qwen2.5-VL twins made deep. transformers samples from them with a cache, token by
token; the trainer computes the same tokens in one packed forward. Both read the same weights, so
all that is between them is rounding. A trained policy is peaked: every twin has an entropy of 0.3
nats, by the scale of its last norm. How much rounding that scale enlarges depends on what is below:

    random   weights of standard size (0.02), small for a narrow model
    strong   weights of size 1/sqrt(width): a layer changes the states as much as in a real model
    trained  strong ones, then trained on sentences that begin with their picture's own word

Then the trainer's side gets one fault at a time, each in sizes that halve:

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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText

from bench import record
from iad_r1.backbones.backbone import Backbone, Prompt
from iad_r1.backbones.packing import Logprobs, completion_logprobs, vision_features
from iad_r1.backbones.twins import build_twin
from iad_r1.rollouts.gap import Gap, Limits, limits, logit_spread
from iad_r1.rollouts.hf import HfSampler
from iad_r1.rollouts.sampling import Sampling
from iad_r1.settings.training import GapLimit
from iad_r1.types import Completion, Conversation

ENTROPY, NEAR, SEARCH = 0.3, 0.1, 16  # nats; how near in relation; scales tried
SEARCHED = -1  # the step whose completions are searched with
KINDS = ("random", "strong", "trained")
DEPTHS = (16, 24, 36)
PROMPTS, GROUP, TOKENS = 4, 6, 48  # of a step
FAULTY = 3  # steps that faults are planted in
GATE = (8, 16)  # completions and tokens of each, of a gate
DRAWS = 10_000  # gates drawn from the tokens of all steps
SIZES = [2.0**-k for k in range(9)]
LESSONS, ROWS, WORDS, RATE = 120, 4, 32, 3e-3  # of a trained twin
Groups = list[list[Completion]]


# --- twins ---------------------------------------------------------------------------------------


def peaked_twin(
    folder: Path,
    depth: int,
    dtype: torch.dtype,
    kind: str = "random",
    device: str | torch.device = "cpu",
) -> Backbone:
    """A twin of `depth` layers whose completions have an entropy of 0.3 nats.

    RuntimeError if no scale of its last norm brings that about.
    """
    small = Backbone.load(build_twin("qwen25vl_7b", folder))
    config = AutoConfig.from_pretrained(folder)
    text = config.get_text_config()
    text.num_hidden_layers, text.layer_types = depth, text.layer_types[:1] * depth
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config)
    model.generation_config = small.model.generation_config
    found = Backbone(model.eval(), small.processor)
    if kind != "random":
        strengthen(found)
    if kind == "trained":
        teach(found)
    model.to(device, dtype)
    sharpen(found)
    return found


@torch.no_grad()
def strengthen(backbone: Backbone) -> None:
    """Scale all matrices to 1/sqrt(width) instead of the 0.02 they start with."""
    text = backbone.model.config.get_text_config()
    for weight in backbone.model.parameters():
        if weight.ndim == 2:
            weight.mul_(text.hidden_size**-0.5 / text.initializer_range)


def teach(backbone: Backbone) -> None:
    """Train the language model until most tokens are certain, as those of a trained policy are."""
    asked, generator = prompts(backbone, PROMPTS), torch.Generator().manual_seed(0)
    inputs = [prompt.inputs for prompt in asked]
    with torch.no_grad():
        features = vision_features(backbone.model, inputs)
    named = backbone.model.named_parameters()  # a tied output layer is there once
    learning = [weight for name, weight in named if "visual" not in name]
    optimizer = torch.optim.AdamW(learning, RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, LESSONS)
    for _ in range(LESSONS):
        said = completion_logprobs(
            backbone.model,
            inputs,
            [sentences(backbone, picture, generator) for picture in range(PROMPTS)],
            vision=features,
            suppressed=backbone.placeholders,
            entropy=False,
        )
        optimizer.zero_grad()
        (-said.logprob[said.mask].mean()).backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        schedule.step()


def sentences(backbone: Backbone, picture: int, generator: torch.Generator) -> list[list[int]]:
    """Lessons in a picture's own words: of five words one has four likely successors, the others
    one."""
    special = {*backbone.placeholders, *backbone.ends}
    size = backbone.model.config.get_text_config().vocab_size
    words = torch.tensor([token for token in range(size) if token not in special])
    words = words[picture::PROMPTS]
    language = torch.Generator().manual_seed(picture)
    successors = torch.randint(len(words), (len(words), 4), generator=language)
    free = torch.rand(len(words), generator=language) < 0.2
    rows = [torch.zeros(ROWS, dtype=torch.long)]
    while len(rows) < WORDS:
        chosen = torch.randint(4, (ROWS,), generator=generator)
        rows.append(successors[rows[-1], torch.where(free[rows[-1]], chosen, 0)])
    return words[torch.stack(rows, 1)].tolist()


def sharpen(backbone: Backbone) -> None:
    """Search for the scale of the last norm at which completions have the entropy asked for."""
    norm = backbone.model.model.language_model.norm.weight
    plain, asked = norm.detach().clone(), prompts(backbone, PROMPTS)
    low, high, tried = 0.01, 1000.0, {}
    for _ in range(SEARCH):
        scale = math.sqrt(low * high)
        with torch.no_grad():
            norm.copy_(plain * scale)
        groups = draw(backbone, asked, Sampling(GROUP, TOKENS, 1.0), SEARCHED)
        tried[scale] = entropy(backbone, asked, groups)
        if abs(tried[scale] / ENTROPY - 1) < NEAR / 2:
            return
        low, high = (scale, high) if tried[scale] > ENTROPY else (low, scale)
    best = min(tried, key=lambda scale: abs(tried[scale] - ENTROPY))
    if not abs(tried[best] / ENTROPY - 1) < NEAR:
        raise RuntimeError(
            f"no scale of the last norm gives an entropy of {ENTROPY} nats: the nearest is "
            f"{tried[best]:.3g} at {best:.3g}"
        )
    with torch.no_grad():
        norm.copy_(plain * best)


# --- both sides ----------------------------------------------------------------------------------


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
) -> Logprobs:
    return completion_logprobs(
        backbone.model,
        [prompt.inputs for prompt in asked],
        [[completion.tokens for completion in group] for group in groups],
        temperature=temperature,
        suppressed=backbone.placeholders,
    )


def entropy(backbone: Backbone, asked: Sequence[Prompt], groups: Groups) -> float:
    """Mean over all tokens, nats."""
    said = trainer(backbone, asked, groups)
    return said.entropy[said.mask].mean().item()


def apart(groups: Groups, said: Logprobs) -> list[Tensor]:
    """|sampler - trainer| of each completion's tokens."""
    flat = [completion for group in groups for completion in group]
    return [
        (torch.tensor(one.logprobs) - row[: len(one.tokens)].cpu()).abs()
        for one, row in zip(flat, said.logprob, strict=True)
    ]


# --- faults of the trainer's side, each of some size ---------------------------------------------


@dataclass(frozen=True)
class Step:
    """A batch, drawn from the weights as they are."""

    backbone: Backbone
    asked: list[Prompt]
    groups: Groups

    def now(self) -> list[Tensor]:
        """The gaps with the weights as they are at the moment."""
        return apart(self.groups, trainer(self.backbone, self.asked, self.groups))

    @cached_property
    def healthy(self) -> list[Tensor]:
        return self.now()

    @cached_property
    def exchanged(self) -> list[Tensor]:
        """The gaps where every completion is judged after another picture's prompt."""
        others = [*self.asked[1:], self.asked[0]]
        return apart(self.groups, trainer(self.backbone, others, self.groups))

    def layer(self, size: float) -> list[Tensor]:
        layers = self.backbone.model.model.language_model.layers
        with moved([layers[len(layers) // 2].mlp.down_proj.weight], size):
            return self.now()

    def stale(self, size: float) -> list[Tensor]:
        weights = self.backbone.model.model.language_model.parameters()
        with moved([weight for weight in weights if weight.ndim == 2], size):
            return self.now()

    def temperature(self, size: float) -> list[Tensor]:
        return apart(self.groups, trainer(self.backbone, self.asked, self.groups, 1.0 + size))

    def completion(self, size: float) -> list[Tensor]:
        count = math.ceil(size * len(self.healthy))
        return [*self.exchanged[:count], *self.healthy[count:]]


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


def measure(
    depth: int, steps: int, kind: str, dtype: torch.dtype = torch.bfloat16
) -> dict[str, Any]:
    """The figures of one twin."""
    with tempfile.TemporaryDirectory() as folder:
        backbone = peaked_twin(Path(folder), depth, dtype, kind)
    asked = prompts(backbone, PROMPTS)
    limit = limits(GapLimit(mean=None, high=None), backbone.model)
    batches = [
        Step(backbone, asked, draw(backbone, asked, Sampling(GROUP, TOKENS, 1.0), number))
        for number in range(steps)
    ]
    rows = [row for step in batches for row in step.healthy]
    whole = torch.cat(rows)
    of_steps = [Gap.of(torch.cat(step.healthy)) for step in batches]
    of_gates = list(gates(rows))
    found: dict[str, Any] = {
        "entropy": mean(entropy(backbone, asked, step.groups) for step in batches),
        "logit_spread": logit_spread(backbone.model),
        "limit_mean": limit.mean,
        "limit_high": limit.high,
        "tokens": len(whole),
        "mean": whole.mean().item(),
        **{f"q{q}": whole.quantile(q / 100).item() for q in (95, 99)},
        "max": whole.max().item(),
        "step_mean_most": max(gap.mean for gap in of_steps),
        "step_high_most": max(gap.high for gap in of_steps),
        "gate_mean_most": max(gap.mean for gap in of_gates),
        "gate_high_most": max(gap.high for gap in of_gates),
        "false_stops_step": mean(not gap.within(limit) for gap in of_steps),
        "false_stops_gate": mean(not gap.within(limit) for gap in of_gates),
    }
    for name, fault in FAULTS.items():
        shown = shows(fault, batches[:FAULTY], limit)
        refused = [size for size, gaps in shown.items() if not any(g.within(limit) for g in gaps)]
        found[f"smallest_{name}"] = min(refused, default=None)
        found[f"shown_{name}"] = {
            f"{size:g}": [min(gap.mean for gap in gaps), min(gap.high for gap in gaps)]
            for size, gaps in shown.items()
        }
    return found


def shows(
    fault: Callable[[Step, float], list[Tensor]], batches: Sequence[Step], limit: Limits
) -> dict[float, list[Gap]]:
    """The gaps of every step, from the largest size down to the first that some step lets pass."""
    found: dict[float, list[Gap]] = {}
    for size in SIZES:
        found[size] = [Gap.of(torch.cat(fault(step, size))) for step in batches]
        if any(gap.within(limit) for gap in found[size]):
            break
    return found


def gates(rows: Sequence[Tensor]) -> Iterator[Gap]:
    """Gates drawn at random from the beginnings of completions."""
    completions, tokens = GATE
    generator = torch.Generator().manual_seed(0)
    for _ in range(DRAWS):
        chosen = torch.randint(len(rows), (completions,), generator=generator).tolist()
        yield Gap.of(torch.cat([rows[row][:tokens] for row in chosen]))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one twin, 16 layers deep")
    parser.add_argument("--steps", type=int, help="steps of each twin: 8, or 4 if quick")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    asked = [(kind, depth, torch.bfloat16) for kind in KINDS for depth in DEPTHS]
    asked.append(("strong", 36, torch.float32))
    found: dict[str, Any] = {}
    for kind, depth, dtype in asked[: 1 if options.quick else None]:
        name = f"{str(dtype).removeprefix('torch.')}_{kind}_{depth}"
        steps = 2 if dtype == torch.float32 else options.steps or (4 if options.quick else 8)
        found[name] = measure(depth, steps, kind, dtype)
        sys.stdout.write(json.dumps({name: found[name]}, indent=1) + "\n")
        sys.stdout.flush()
    if options.json:
        # not a comparison with a peer: `ratio` is a limit over the largest healthy figure, at least
        margins = [
            row[f"limit_{figure}"] / row[f"step_{figure}_most"]
            for row in found.values()
            for figure in ("mean", "high")
        ]
        record.write(options.json, min(margins), found)


if __name__ == "__main__":
    main()
