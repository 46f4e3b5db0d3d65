"""What SC-GRPO learns from: a group of completions for each picture, with what they earned."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from iad_r1 import rewards, schema
from iad_r1.backbones.backbone import Prompt
from iad_r1.learn.metering import Clock
from iad_r1.loops.context import Context
from iad_r1.loops.gate import open_gate
from iad_r1.loops.rollout_log import failed_rows, reward_statistics, rollout_rows
from iad_r1.objective.advantages import is_degenerate
from iad_r1.processes import distributed
from iad_r1.processes.distributed import gather, share
from iad_r1.prompts import form as released_form
from iad_r1.rollouts import open_sampler
from iad_r1.rollouts.prompting import Prompter, Room
from iad_r1.rollouts.sampling import Sampling
from iad_r1.settings.config import HfRollout
from iad_r1.types import Completion, Sample, Score


@dataclass
class Collected:
    """B groups in the order of the batch, known to every rank except for the prompts' tensors.

    `attempts` counts how often a group was drawn anew with another picture (0: not at all);
    `statistics` describe the first draw, so that they mean the same whether or not groups are
    drawn anew.
    """

    samples: list[Sample]
    prompts: list[Prompt]  # this rank's share
    groups: list[list[Completion]]
    scores: list[list[Score]]
    attempts: list[int]
    statistics: dict[str, float]

    def rewards(self) -> list[list[float]]:
        """[B][G] totals."""
        return [[score.total for score in group] for group in self.scores]

    def degenerate(self) -> list[int]:
        """The groups whose completions all earned the same."""
        return [n for n, group in enumerate(self.rewards()) if is_degenerate(group)]

    def tokens(self) -> int:
        """Completion tokens of all groups."""
        return sum(len(completion.tokens) for group in self.groups for completion in group)


class Collector:
    """Prompts, samples and scores.

    Args:
        whole: inside, every rank can read all weights (`Learner.whole`). A sampler with weights of
            its own needs that for the parity gate alone: `sync` asks for one module at a time.
    """

    def __init__(
        self, context: Context, whole: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> None:
        config, self.grpo = context.config, context.config.grpo
        self.whole = whole
        self.sampled_from = whole if isinstance(config.rollout, HfRollout) else nullcontext
        self.rollout, self.seed = config.rollout, config.seed
        self.pool = context.dataset.rl
        room = Room("grpo.max_length", self.grpo.max_length, config.rollout.max_tokens)
        self.prompter = Prompter(context.backbone, self.grpo.prompt, room)
        self.judge = partial(
            schema.read_answer,
            evaluator=config.evaluate.evaluator,
            form=released_form(self.grpo.prompt),
        )
        self.rewards = rewards.load(config.rewards, config.grid)
        self.sampler = open_sampler(config, context.backbone, config.rollout.batch_size)
        self.gate = open_gate(context, self.sampler, self.prompter)

    def close(self) -> None:
        """Give the sampler back."""
        self.sampler.close()

    def collect(self, samples: Sequence[Sample], step: int, clock: Clock) -> Collected:
        """A group for every sample, from the weights as they are now. With
        `degenerate_groups=resample`, groups that carry no signal are drawn anew."""
        self.sampler.sync()
        clock.lap("sync")
        if self.gate is not None and self.gate.due(step):
            with self.whole():
                self.gate.check("grpo", step)
            clock.lap("parity")
        prompts = [self.prompter.encode(sample) for sample in share(samples)]
        groups = gather(self.sample(prompts, step, share(range(len(samples)))))
        clock.lap("sample")
        scores = self.score(samples, groups)
        found = reward_statistics(samples, groups, scores, self.judge)
        batch = Collected(list(samples), prompts, groups, scores, [0] * len(samples), found)
        clock.lap("score")
        if self.grpo.degenerate_groups == "resample":
            self.resample(batch, step, clock)
        return batch

    def sample(
        self, prompts: Sequence[Prompt], step: int, slots: Sequence[int], attempt: int = 0
    ) -> list[list[Completion]]:
        """G completions of each of this rank's prompts, which stand at `slots` of the batch.

        Every prompt has random numbers of its own, so what is drawn depends neither on the other
        prompts of a forward nor on the number of ranks.
        """
        rollout = self.rollout
        sampling = Sampling(
            self.grpo.group_size,
            rollout.max_tokens,
            rollout.temperature,
            rollout.top_p,
            rollout.top_k,
        )
        again = (attempt,) if attempt else ()
        seeds = [(self.seed, step, slot, *again) for slot in slots]
        with self.sampled_from():
            return self.sampler.generate(prompts, sampling, seeds)

    def score(
        self, samples: Sequence[Sample], groups: Sequence[Sequence[Completion]]
    ) -> list[list[Score]]:
        """The reward of every completion, group by group (Eq. 9)."""
        return [
            [self.rewards.score(completion.text, sample.solution) for completion in group]
            for sample, group in zip(samples, groups, strict=True)
        ]

    def table(self, batch: Collected, gains: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
        """The batch as a table for the run's record, with the advantages."""
        return rollout_rows(batch.samples, batch.groups, batch.scores, gains, batch.attempts)

    def rows(self, batch: Collected) -> list[dict[str, Any]]:
        """The batch as a table, for when it could not be learned from."""
        words = self.prompter.conversation(batch.samples[0], 0).text
        return failed_rows(words, batch.samples, batch.groups, batch.scores)

    def resample(self, batch: Collected, step: int, clock: Clock) -> None:
        """Replace degenerate groups by groups of other pictures, `resample_limit` times at most
        (DAPO's dynamic sampling, bounded). What was drawn is counted in the statistics."""
        drawn = 0
        for attempt in range(1, self.grpo.resample_limit + 1):
            slots = batch.degenerate()
            if not slots:
                break
            drawn += len(slots)
            self._draw_anew(batch, slots, step, attempt, clock)
        batch.statistics["resampled_groups"] = drawn
        batch.statistics["degenerate_left"] = len(batch.degenerate()) / len(batch.samples)

    def _draw_anew(
        self, batch: Collected, slots: list[int], step: int, attempt: int, clock: Clock
    ) -> None:
        """Every rank draws for the slots it holds, so that prompts stay where they are learned
        from; all ranks call the sampler, also those that hold none."""
        ranks, rank = distributed.world(), distributed.rank()
        mine = [slot for slot in slots if slot % ranks == rank]
        for slot in slots:
            batch.samples[slot] = self.other(step, slot, attempt)
            batch.attempts[slot] = attempt
        prompts = [self.prompter.encode(batch.samples[slot]) for slot in mine]
        for slot, prompt in zip(mine, prompts, strict=True):
            batch.prompts[slot // ranks] = prompt
        groups = dict(zip(mine, self.sample(prompts, step, mine, attempt), strict=True))
        for found in distributed.everyone(groups):
            for slot, group in found.items():
                batch.groups[slot] = group
        clock.lap("sample")
        samples, fresh = [batch.samples[n] for n in slots], [batch.groups[n] for n in slots]
        for slot, scores in zip(slots, self.score(samples, fresh), strict=True):
            batch.scores[slot] = scores
        clock.lap("score")

    def other(self, step: int, slot: int, attempt: int) -> Sample:
        """The picture that takes a slot over: decided by seed, step, slot and attempt alone."""
        return random.Random(f"{self.seed}/{step}/{slot}/{attempt}").choice(self.pool)
