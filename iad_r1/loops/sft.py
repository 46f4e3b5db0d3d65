"""PA-SFT: supervised fine-tuning on answers that perceive before they judge (IAD-R1 Eq. 1).

SC-GRPO with one completion per prompt, the target, in place of the sampler.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from iad_r1.backbones.backbone import EncodedTarget, Inputs, Prompt
from iad_r1.backbones.packing import completion_logprobs, micro_batches, vision_features
from iad_r1.data.ahead import Ahead
from iad_r1.data.targets import Target, chain_of_thought, direct_answer
from iad_r1.grid import as_grid
from iad_r1.learn import guards, optim
from iad_r1.learn.context import Context
from iad_r1.learn.features import Features, Key
from iad_r1.learn.learner import Learner, Part, open_learner
from iad_r1.learn.saving import Saver
from iad_r1.processes import distributed
from iad_r1.rollouts.prompting import Augment, open_prompter
from iad_r1.settings.training import SftPhase
from iad_r1.types import Sample

GIB = 2**30
Weighted = tuple[EncodedTarget, list[float]]  # a target and the loss weight of each token
TARGETS = {"chain_of_thought": chain_of_thought, "direct": direct_answer}


def train(context: Context) -> None:
    """Run the phases of `config.sft` in place, on the data set's SFT part (or its RL part)."""
    done = 0
    for index, phase in enumerate(context.config.sft.phases):
        done = _Phase(context, phase, index).run(first_step=done)


class _Phase:
    """One leg: its own frozen parts, optimiser and schedule."""

    def __init__(self, context: Context, phase: SftPhase, index: int) -> None:
        self.context, self.phase, self.index = context, phase, index
        self.sft = context.config.sft
        self.samples = getattr(context.dataset, self.sft.samples)
        self.prompter = open_prompter(context.config, context.backbone, "sft")
        self.seed = context.config.seed * 1000 + index
        self.name = f"PA-SFT {index + 1}/{len(self.sft.phases)}"
        self.learner: Learner | None = None  # while the leg runs
        self.prompts: Ahead[tuple[Sample, int], Prompt] = Ahead(
            self.prompt, context.config.engine.picture_threads
        )  # of a sample at a step
        self.features = Features(int(context.config.memory.features * GIB))  # of a frozen tower

    def run(self, first_step: int) -> int:
        """Train the leg; steps are numbered from `first_step`. Returns the next step's number."""
        phase, model = self.phase, self.context.model
        steps = optim.n_steps(phase, len(self.samples), phase.batch_size)
        parts = self.context.config.tuning.train
        optim.train_only(model, vision=not phase.freeze_vision, parts=parts)
        self.learner = learner = open_learner(
            self.context.config.engine,
            model,
            self.sft,
            steps,
            lr_scale=phase.lr_scale,
            vision_lr_scale=phase.vision_lr_scale,
        )
        batches = optim.batches(self.samples, phase.batch_size, steps, self.seed)
        saver = Saver(self.context, "sft", learner, first_step, first_step + steps, leg=self.index)
        model.train()
        with self.prompts, self.context.progress(self.name, steps) as bar:
            for step in saver.steps(bar):
                batch, *later = batches[step - first_step :][:2]
                with guards.kept(
                    self.context.folder.path, "sft", step, partial(self.rows, batch, step)
                ):
                    values = self.step(learner, batch, step, *later)
                self.context.log("sft", step, {**values, "phase": self.index})
                bar.advance(loss=values["loss"])
                saver.done(step, values)
        learner.close()
        optim.train_only(model, vision=True)
        return first_step + steps

    def step(
        self, learner: Learner, batch: Sequence[Sample], step: int, then: Sequence[Sample] = ()
    ) -> dict[str, float]:
        """One optimiser step on the batch of all ranks, some samples at a time, while the prompts
        of the batch `then` are prepared."""
        where, parts = f"sft step {step}", self.losses(batch, step, then)
        loss = learner.accumulate(parts, where, idle=parts[0])
        return {"loss": distributed.total(loss), **learner.update(where)}

    def losses(self, batch: Sequence[Sample], step: int, then: Sequence[Sample] = ()) -> list[Part]:
        """Mean negative log-likelihood of the trained target tokens of the batch (Eq. 1), nats, as
        functions that compute the parts which add up to it; several samples lie in one sequence and
        do not see each other.

        A part has at most `sft.token_budget` tokens, or a single sample. Words that name the place
        count `location_weight` times, the word that decides the verdict `verdict_weight` times,
        untrained spans not at all; with `loss_normalisation=sample`
        the weights of each target sum to 1, so the loss is the mean over samples. On several ranks
        these are the parts of the rank.
        """
        batch = distributed.share(batch)
        shots = [self.shots(sample, step) for sample in batch]
        prompts = self.prompts.take(
            [(sample, step) for sample in batch],
            then=[(sample, step + 1) for sample in distributed.share(then)],
        )
        targets = [self.target(sample, k) for sample, k in zip(batch, shots, strict=True)]
        for prompt, (target, _) in zip(prompts, targets, strict=True):
            self.prompter.room.check(prompt, len(target.tokens))
        whole = distributed.total(sum(sum(weights) for _, weights in targets))
        vision = self.vision(batch, shots, prompts) if self.phase.freeze_vision else None
        found: list[Part] = []
        for part in self.parts(prompts, targets):
            features = None if vision is None else [vision[i] for i in part]
            chosen = [prompts[i].inputs for i in part], [targets[i] for i in part]
            found.append(partial(self.weighted, *chosen, features, whole))
        return found

    def parts(self, prompts: Sequence[Prompt], targets: Sequence[Weighted]) -> list[list[int]]:
        """Which samples share a forward."""
        if self.sft.token_budget is None:
            return [list(range(len(prompts)))]
        tokens = [[target.tokens] for target, _ in targets]
        return micro_batches([prompt.inputs for prompt in prompts], tokens, self.sft.token_budget)

    def weighted(
        self,
        prompts: Sequence[Inputs],
        targets: Sequence[Weighted],
        vision: Sequence[Tensor | None] | None,
        whole: float,
    ) -> Tensor:
        """The weighted sum of the targets' negative log-likelihoods, over the `whole` weight."""
        result = completion_logprobs(
            self.context.model,
            prompts,
            [[target.tokens] for target, _ in targets],
            packing="group_flash" if self.context.packing == "group_flash" else "group",
            vision=vision,
            entropy=False,
        )
        weights = torch.zeros_like(result.logprob)
        for row, (_, weight) in enumerate(targets):
            weights[row, : len(weight)] = torch.tensor(weight)
        return -(result.logprob * weights).sum() / whole

    def rows(self, batch: Sequence[Sample], step: int) -> list[dict[str, Any]]:
        """The batch as a table, for when it could not be learned from."""
        found = []
        for sample in batch:
            shots = self.shots(sample, step)
            target, weights = self.target(sample, shots)
            found.append(
                {
                    "id": sample.id,
                    "prompt": self.prompter.conversation(sample, shots).text,
                    "target": self.context.backbone.decode(target.tokens),
                    "token_ids": list(target.tokens),
                    "weights": weights,
                }
            )
        return found

    def prompt(self, asked: tuple[Sample, int]) -> Prompt:
        """The prompt of a sample at a step, with that step's reference and augmentation."""
        sample, step = asked
        return self.prompter.encode(sample, self.shots(sample, step), self.augment(sample, step))

    def shots(self, sample: Sample, step: int) -> int:
        """How many reference pictures the prompt shows: 1 for `one_shot_share` of the prompts, and
        at least those that belong to the sample."""
        drawn = self.random(sample, step).random() < self.sft.one_shot_share
        return max(sample.shots, int(drawn))

    def target(self, sample: Sample, shots: int) -> Weighted:
        """Tokens of the sample's target and the loss weight of each (see `losses`)."""
        config = self.context.config
        place = self.prompter.place(sample)
        target = TARGETS[self.sft.target](sample, config.seed, as_grid(config.grid), place)
        encode = self.context.backbone.encode_target
        encoded = encode(target.text, target.untrained)
        cell = None if place is None else sample.solution.location
        places = encode(target.text, location_spans(target, cell)).trained
        verdict = encode(target.text, [target.verdict] if target.verdict else []).trained
        weights = [
            float(trained)
            * (1.0 if no_place else self.phase.location_weight)
            * (1.0 if no_verdict else self.phase.verdict_weight)
            for trained, no_place, no_verdict in zip(encoded.trained, places, verdict, strict=True)
        ]
        if self.sft.loss_normalisation == "sample" and any(weights):
            weights = [weight / math.fsum(weights) for weight in weights]
        return encoded, weights

    def augment(self, sample: Sample, step: int) -> Augment | None:
        return photometric(self.random(sample, step)) if self.phase.augment else None

    def random(self, sample: Sample, step: int) -> random.Random:
        """A stream of its own for each use of a sample, whatever else the run draws."""
        return random.Random(f"{self.seed}/{sample.id}/{step}")

    @torch.no_grad()
    def vision(
        self, batch: Sequence[Sample], shots: Sequence[int], prompts: Sequence[Prompt]
    ) -> list[Tensor | None]:
        """Features of each prompt's pictures, in main memory. They are computed by themselves, so
        that they do not depend on the company in which they were asked for."""
        keys = [(sample.id, k) for sample, k in zip(batch, shots, strict=True)]
        asked = dict(zip(keys, prompts, strict=True))
        known, new = self.features.known(asked), dict[Key, Tensor | None]()
        missing = [key for key in asked if key not in known]
        if distributed.total(len(missing)):  # all ranks must agree on whether weights are gathered
            with self.learner.whole() if self.learner else nullcontext():
                for key in missing:
                    found = vision_features(self.context.model, [asked[key].inputs])[0]
                    new[key] = None if found is None else found.cpu()
        self.features.keep(new)
        found = known | new
        return [found[key] for key in keys]


def location_spans(target: Target, cell: str | None = None) -> list[tuple[int, int]]:
    """Characters of the place a target names, wherever it names it: the place is decided at its
    first mention, in the reasoning, and only repeated in the tag; where that holds numbers, the
    reasoning names the `cell`. Empty for a normal image."""
    found = re.search(r"<location>(.*?)</location>", target.text)
    if found is None:
        return []
    names = "|".join(map(re.escape, filter(None, (found[1], cell))))
    return [match.span() for match in re.finditer(rf"(?<!\w)(?:{names})(?!\w)", target.text)]


def photometric(stream: random.Random, strength: float = 0.2) -> Augment:
    """Random brightness, contrast and colour, each by a factor within 1 +/- `strength`.

    Geometry is left alone: it would change the place the target names.
    """
    factors = [stream.uniform(1 - strength, 1 + strength) for _ in range(3)]
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)

    def augment(picture: Image.Image) -> Image.Image:
        for enhancer, factor in zip(enhancers, factors, strict=True):
            picture = enhancer(picture).enhance(factor)
        return picture

    return augment
