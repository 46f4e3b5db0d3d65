"""What SC-GRPO learns from: a group of completions for each picture, with what they earned."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from iad_r1 import rewards, schema
from iad_r1.backbones.backbone import Prompt
from iad_r1.data.ahead import Ahead
from iad_r1.errors import MismatchError
from iad_r1.learn.context import Context
from iad_r1.learn.metering import Clock
from iad_r1.loops.rollout_log import failed_rows, reward_statistics
from iad_r1.objective.advantages import is_degenerate
from iad_r1.processes import distributed
from iad_r1.prompts import form as released_form
from iad_r1.rollouts import open_sampler
from iad_r1.rollouts.parity import Gate, OwnWeights
from iad_r1.rollouts.prompting import Prompter, open_prompter
from iad_r1.rollouts.sampling import Sampler, Sampling
from iad_r1.rollouts.server.sampler import ServerSampler
from iad_r1.settings.rollout import HfRollout
from iad_r1.types import Completion, Group, Sample, Score, StopReason


@dataclass(frozen=True)
class Collected:
    """The groups of a batch, in its order and known to every rank, and the prompts of this rank's
    share of them. `statistics` describe the first draw, so that they mean the same whether or not
    groups are drawn anew."""

    prompts: list[Prompt]
    groups: list[Group]
    statistics: dict[str, float]

    def rewards_PG(self) -> list[list[float]]:
        """The total of every completion."""
        return [group.rewards() for group in self.groups]

    def tokens(self) -> int:
        """Completion tokens of all groups."""
        return sum(len(c.tokens) for group in self.groups for c in group.completions)

    def as_json(self) -> dict[str, Any]:
        """All that `Collector.collected` needs to make it again: prompts and scores follow."""
        groups = [
            {
                "id": group.sample.id,
                "attempt": group.attempt,
                "version": group.version,
                "completions": [asdict(completion) for completion in group.completions],
            }
            for group in self.groups
        ]
        return {"statistics": self.statistics, "groups": groups}


@dataclass(frozen=True)
class Asked:
    """What a rank has drawn, by slot, before the others know of it; `version` as in `Group`."""

    prompts: dict[int, Prompt]
    completions: dict[int, list[Completion]]
    version: int


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
        self.seed, rollout = config.seed, config.rollout
        self.sampling = Sampling(
            self.grpo.group_size,
            rollout.max_tokens,
            rollout.temperature,
            rollout.top_p,
            rollout.top_k,
        )
        self.pool = context.dataset.rl
        self.prompter = open_prompter(config, context.backbone, "grpo")
        self.prompts = Ahead(self.prompter.encode, config.engine.picture_threads)
        self.read_answer = partial(
            schema.read_answer,
            evaluator=config.evaluate.evaluator,
            form=released_form(self.grpo.prompt),
        )
        self.rewards = rewards.load(config.rewards, config.grid, config.location_format)
        self.sampler = open_sampler(config, context.backbone, rollout.batch_size)
        self.gate = open_gate(context, self.sampler, self.prompter)
        self.version = 0  # of the sampler's weights: batches that they have learned

    def close(self) -> None:
        """Give the sampler back; what it is drawing in another thread is given up."""
        self.sampler.close()

    def synchronise(self, step: int, clock: Clock) -> None:
        """Give the sampler the weights as they are now, and check it where it keeps its own."""
        self.sampler.sync()
        self.version = step
        clock.lap("sync")
        if self.gate is not None and self.gate.due(step):
            with self.whole():
                self.gate.check("grpo", step)
            clock.lap("parity")

    def agree(self, prompts: Sequence[Prompt], step: int, clock: Clock) -> dict[str, float]:
        """The gaps of a batch that older weights drew: what sampler and trainer say now, both
        with the weights of `step`, of short completions to some of its prompts."""
        if self.gate is None:
            return {}
        with self.whole():
            gap = self.gate.agree(prompts, f"grpo step {step}")
        clock.lap("parity")
        return {"sampler_gap": gap.largest, "sampler_gap_high": gap.high}

    def let_weights_move(self) -> None:
        """Say that the weights will be learned from now on, although the sampler still draws."""
        if isinstance(self.sampler, ServerSampler):
            self.sampler.let_weights_move()

    def collect(
        self,
        samples: Sequence[Sample],
        step: int,
        clock: Clock,
        then: Sequence[Sample] = (),
        asked: Asked | None = None,
    ) -> Collected:
        """A scored group for every sample, while the prompts of the batch `then` are prepared. With
        `degenerate_groups=resample`, groups that carry no signal are drawn anew with other
        pictures, `resample_limit` times at most (DAPO's dynamic sampling, bounded).

        asked: the first draw, if it was made already.
        """
        first = dict(enumerate(samples))
        asked = asked or self.ask(first, step, 0, clock, then)
        prompts, groups = self.scored(first, asked, 0, clock)
        statistics = reward_statistics(list(groups.values()), self.read_answer)
        clock.lap("score")
        if self.grpo.degenerate_groups == "resample":
            drawn = 0
            for attempt in range(1, self.grpo.resample_limit + 1):
                slots = degenerate(groups)
                if not slots:
                    break
                drawn += len(slots)
                others = {slot: self.other(step, slot, attempt) for slot in slots}
                asked = self.ask(others, step, attempt, clock)
                new_prompts, new_groups = self.scored(others, asked, attempt, clock)
                prompts |= new_prompts
                groups |= new_groups
            statistics["resampled_groups"] = drawn
            statistics["degenerate_left"] = len(degenerate(groups)) / len(groups)
        return Collected(list(prompts.values()), list(groups.values()), statistics)

    def collected(
        self, saved: Mapping[str, Any], samples: Sequence[Sample], step: int
    ) -> Collected:
        """The batch of a step as `Collected.as_json` told it, on any number of ranks."""
        groups = list[Group]()
        for slot, one in enumerate(saved["groups"]):
            attempt = one["attempt"]
            sample = self.other(step, slot, attempt) if attempt else samples[slot]
            if sample.id != one["id"]:
                raise MismatchError(
                    f"the checkpoint before grpo step {step} holds completions to {one['id']}, but "
                    f"this run would show {sample.id} there. Its data have changed: start anew."
                )
            said = [
                Completion(c["text"], (*c["tokens"],), (*c["logprobs"],), StopReason(c["stop"]))
                for c in one["completions"]
            ]
            sample = self.prompter.judged(sample)
            (scores,) = self.score([sample], [said])
            groups.append(Group(sample, said, scores, attempt, one["version"]))
        mine = distributed.share(groups)
        prompts = self.prompts.take([group.sample for group in mine])
        return Collected(prompts, groups, dict(saved["statistics"]))

    def ask(
        self,
        samples: Mapping[int, Sample],
        step: int,
        attempt: int,
        clock: Clock,
        then: Sequence[Sample] = (),
    ) -> Asked:
        """This rank's part of a draw: the slots that it learns from. All ranks call the sampler,
        also those that hold none; they tell each other nothing here, so a thread may do it beside
        the learning."""
        mine = [slot for slot in samples if slot % distributed.world() == distributed.rank()]
        encoded = self.prompts.take([samples[n] for n in mine], then=distributed.share(then))
        clock.lap("pictures")
        said = self.sample(encoded, step, mine, attempt)
        prompts = dict(zip(mine, encoded, strict=True))
        return Asked(prompts, dict(zip(mine, said, strict=True)), self.version)

    def scored(
        self, samples: Mapping[int, Sample], asked: Asked, attempt: int, clock: Clock
    ) -> tuple[dict[int, Prompt], dict[int, Group]]:
        """The prompts of this rank, and the scored groups of all, by their slots in the batch."""
        parts = distributed.everyone(asked.completions)
        found = {slot: group for part in parts for slot, group in part.items()}
        completions_PG = [found[slot] for slot in samples]
        clock.lap("sample")
        samples = {slot: self.prompter.judged(sample) for slot, sample in samples.items()}
        scores_PG = self.score(list(samples.values()), completions_PG)
        clock.lap("score")
        drawn = zip(samples.items(), completions_PG, scores_PG, strict=True)
        return asked.prompts, {
            slot: Group(sample, completions, scores, attempt, asked.version)
            for (slot, sample), completions, scores in drawn
        }

    def sample(
        self, prompts: Sequence[Prompt], step: int, slots: Sequence[int], attempt: int = 0
    ) -> list[list[Completion]]:
        """[P][G] Completions of each of this rank's prompts, which stand at `slots` of the batch.

        Every prompt has random numbers of its own, so what is drawn depends neither on the other
        prompts of a forward nor on the number of ranks.
        """
        again = (attempt,) if attempt else ()
        seeds = [(self.seed, step, slot, *again) for slot in slots]
        with self.sampled_from():
            return self.sampler.generate(prompts, self.sampling, seeds)

    def score(
        self, samples: Sequence[Sample], completions_PG: Sequence[Sequence[Completion]]
    ) -> list[list[Score]]:
        """[P][G] The reward of every completion (Eq. 9)."""
        return [
            [self.rewards.score(completion.text, sample.solution) for completion in group]
            for sample, group in zip(samples, completions_PG, strict=True)
        ]

    def rows(self, drawn: Collected) -> list[dict[str, Any]]:
        """The batch as a table, for when it could not be learned from."""
        sample = drawn.groups[0].sample
        words = self.prompter.conversation(sample, sample.shots).text
        return failed_rows(words, drawn.groups)

    def other(self, step: int, slot: int, attempt: int) -> Sample:
        """The picture that takes a slot over: decided by seed, step, slot and attempt alone."""
        return random.Random(f"{self.seed}/{step}/{slot}/{attempt}").choice(self.pool)


def degenerate(groups: Mapping[int, Group]) -> list[int]:
    """The slots of the groups whose completions all earned the same."""
    return [slot for slot, group in groups.items() if is_degenerate(group.rewards())]


def open_gate(context: Context, sampler: Sampler, prompter: Prompter) -> Gate | None:
    """The parity gate of a run, its probes the first pictures of SC-GRPO; None where sampler and
    trainer share their weights."""
    rollout = context.config.rollout
    if isinstance(rollout, HfRollout) or not isinstance(sampler, OwnWeights):
        return None
    return Gate(
        sampler,
        context.backbone,
        [prompter.encode(sample) for sample in context.dataset.rl[: rollout.parity.probes]],
        rollout.parity,
        context.config.grpo.gap_limit,
        temperature=rollout.temperature,
        packing=context.packing,
        path=context.folder.path / "parity.csv",
    )
