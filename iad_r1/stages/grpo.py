"""SC-GRPO: group relative policy optimisation with the structured reward (IAD-R1, Algorithm 1)."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from iad_r1 import rewards
from iad_r1.advantages import advantages
from iad_r1.backbones.backbone import Inputs
from iad_r1.errors import MismatchError
from iad_r1.losses import LossStats, policy_loss
from iad_r1.packing import Logprobs, adapter_off, completion_logprobs, micro_batches
from iad_r1.report.terminal import progress
from iad_r1.rollouts.hf import HfEngine
from iad_r1.rollouts.sampling import Sampling
from iad_r1.stages import optim
from iad_r1.stages.context import Context
from iad_r1.stages.prompting import Prompter
from iad_r1.stages.rollout_log import reward_statistics, rollout_rows
from iad_r1.types import Completion, Sample, Score, StopReason

# Sampler and trainer read the same weights, so only rounding may separate them.
SAMPLER_LIMIT = {torch.float32: 1e-3, torch.bfloat16: 0.3}  # nats, worst token


def train(context: Context) -> None:
    """SC-GRPO on the data set's RL part, in place. One pass of the loop is one optimiser step
    (`updates_per_batch` of them when that is above 1), in the order of Algorithm 1."""
    grpo, samples = context.config.grpo, context.dataset.rl
    steps = optim.n_steps(grpo, len(samples), grpo.prompts_per_step)
    policy = Policy(context, steps)
    batches = optim.batches(samples, grpo.prompts_per_step, steps, context.config.seed)
    with progress("SC-GRPO", steps) as bar:
        for step, batch in enumerate(batches):
            clock = _Clock()
            prompts = [policy.prompter.encode(sample) for sample in batch]
            groups = policy.sample(prompts, step)
            clock.lap("sample")
            scores = policy.score(batch, groups)
            advantage = advantages([[s.total for s in g] for g in scores], grpo.advantage)
            clock.lap("score")
            rollout = policy.keep(prompts, groups, advantage)
            clock.lap("reference")
            learned = [policy.update(rollout, step) for _ in range(grpo.updates_per_batch)][-1]
            clock.lap("update")
            values = {**reward_statistics(batch, groups, scores), **learned, **clock.seconds}
            context.tracker.log("grpo", step, values)
            if step % grpo.rollouts_every == 0 or step + 1 == steps:
                rows = rollout_rows(batch, groups, scores, advantage)
                context.tracker.rollouts("grpo", step, rows)
            bar.advance(reward=values["reward"], kl=values["kl"], length=values["length_mean"])
    optim.train_only(context.model, vision=True)


@dataclass
class Rollout:
    """What one batch leaves to learn from: B groups, N completions in all, T tokens (padded).

    `sampler` [N, T] are the log-probs the completions were drawn with; `old` [N, T] the trainer's
    own before the first update, which the ratio of Eq. 11 is taken to; `reference` [N, T] those
    of the reference policy, None without a KL term; `counted` [N, T] marks tokens in the loss.
    """

    prompts: Sequence[Inputs]
    completions: list[list[tuple[int, ...]]]
    advantage: Tensor  # [N]
    sampler: Tensor
    counted: Tensor
    reference: Tensor | None
    old: Tensor | None = None


class Policy:
    """The model under training with its sampler, rewards, reference and optimiser."""

    def __init__(self, context: Context, steps: int) -> None:
        config, self.grpo = context.config, context.config.grpo
        self.model, self.backbone, self.config = context.model, context.backbone, config
        self.prompter = Prompter(context.backbone, self.grpo.prompt)
        self.rewards = rewards.load(config.rewards, config.grid)
        self.engine = HfEngine(context.backbone, config.rollout.batch_size)
        optim.train_only(self.model, vision=self.grpo.vision_lr_scale > 0)
        self.adam = optim.optimizer(
            self.model,
            learning_rate=self.grpo.learning_rate,
            weight_decay=self.grpo.weight_decay,
            vision_lr_scale=self.grpo.vision_lr_scale,
        )
        self.schedule = optim.scheduler(
            self.adam,
            self.grpo.schedule,
            self.grpo.warmup_steps,
            steps * self.grpo.updates_per_batch,
        )
        # full tuning: a frozen copy; LoRA: the policy itself, its adapter off; beta = 0: none
        self.reference: nn.Module | None = None
        if self.grpo.kl_coef > 0:
            lora = config.tuning.name == "lora"
            self.reference = self.model if lora else copy.deepcopy(self.model).requires_grad_(False)

    def sample(self, prompts: Sequence[Inputs], step: int) -> list[list[Completion]]:
        """G completions of each prompt, drawn from the weights as they are now."""
        rollout = self.config.rollout
        return self.engine.generate(
            prompts,
            Sampling(
                group_size=self.grpo.group_size,
                max_tokens=rollout.max_tokens,
                temperature=rollout.temperature,
                seed=self.config.seed * 1_000_003 + step,
            ),
        )

    def score(
        self, batch: Sequence[Sample], groups: Sequence[Sequence[Completion]]
    ) -> list[list[Score]]:
        """The reward of every completion, group by group (Eq. 9)."""
        return [
            [self.rewards.score(completion.text, sample.solution) for completion in group]
            for sample, group in zip(batch, groups, strict=True)
        ]

    def keep(
        self,
        prompts: Sequence[Inputs],
        groups: Sequence[Sequence[Completion]],
        advantage: Sequence[Sequence[float]],
    ) -> Rollout:
        """The batch as tensors, with the reference policy's log-probs."""
        flat = [completion for group in groups for completion in group]
        width = max(len(completion.tokens) for completion in flat)
        sampler, counted = torch.zeros(2, len(flat), width)
        for row, completion in enumerate(flat):
            sampler[row, : len(completion.tokens)] = torch.tensor(completion.logprobs)
            counted[row, : len(completion.tokens)] = self.counts(completion)
        completions = [[completion.tokens for completion in group] for group in groups]
        return Rollout(
            prompts=prompts,
            completions=completions,
            advantage=torch.tensor([a for group in advantage for a in group]),
            sampler=sampler,
            counted=counted.bool(),
            reference=self.reference_logprobs(prompts, completions),
        )

    def counts(self, completion: Completion) -> bool:
        """Whether a completion is in the loss: one cut off at the limit may be masked."""
        return self.grpo.truncated == "keep" or completion.stop is StopReason.STOP

    @torch.no_grad()
    def reference_logprobs(
        self, prompts: Sequence[Inputs], completions: list[list[tuple[int, ...]]]
    ) -> Tensor | None:
        """[N, T], or None when beta is 0: then no reference runs."""
        if self.reference is None:
            return None
        with adapter_off(self.model) if self.reference is self.model else nullcontext():
            return self.logprobs(self.reference, prompts, completions).logprob

    def logprobs(
        self,
        model: nn.Module,
        prompts: Sequence[Inputs],
        completions: Sequence[Sequence[Sequence[int]]],
    ) -> Logprobs:
        return completion_logprobs(
            model,
            prompts,
            completions,
            packing=self.grpo.packing,
            temperature=self.config.rollout.temperature,
            token_budget=None if torch.is_grad_enabled() else self.grpo.token_budget,
            suppressed=self.backbone.placeholders,
        )

    def update(self, rollout: Rollout, step: int) -> dict[str, float]:
        """One optimiser step on the whole batch (Eq. 11), a micro-batch of groups at a time."""
        n_tokens, rows = int(rollout.counted.sum()), _rows(rollout.completions)
        old = torch.zeros_like(rollout.sampler) if rollout.old is None else rollout.old
        stats, total = None, 0.0
        self.model.train()
        for part in self._micro_batches(rollout):
            index = torch.cat([rows[group] for group in part])
            policy = self.logprobs(
                self.model,
                [rollout.prompts[group] for group in part],
                [rollout.completions[group] for group in part],
            )
            width = policy.logprob.shape[1]
            if rollout.old is None:
                old[index, :width] = policy.logprob.detach()
            loss, found = policy_loss(
                policy.logprob,
                old[index, :width],
                None if rollout.reference is None else rollout.reference[index, :width],
                rollout.advantage[index],
                rollout.counted[index, :width],
                clip_low=self.grpo.clip_low,
                clip_high=self.grpo.clip_high,
                kl_coef=self.grpo.kl_coef,
                kl_kind=self.grpo.kl_kind,
                aggregation=self.grpo.aggregation,
                n_sequences=len(rollout.advantage),
                n_tokens=n_tokens,
                max_tokens=self.config.rollout.max_tokens,
                entropy=policy.entropy,
            )
            optim.check_finite(loss, f"grpo step {step}")
            loss.backward()
            total += float(loss)
            stats = found if stats is None else stats + found
        assert stats is not None  # a batch has at least one group
        gap = self.check_sampler(rollout, old, step) if rollout.old is None else {}
        rollout.old = old
        learning_rate = optim.lr(self.adam)
        where = f"grpo step {step}"
        norm = optim.update(self.model, self.adam, self.schedule, self.grpo.max_grad_norm, where)
        return {
            "loss": total,
            **stats.scalars(),
            **gap,
            "grad_norm": norm,
            "learning_rate": learning_rate,
        }

    def _micro_batches(self, rollout: Rollout) -> list[list[int]]:
        if self.grpo.token_budget is None:
            return [list(range(len(rollout.prompts)))]
        return micro_batches(
            rollout.prompts, rollout.completions, self.grpo.token_budget, self.grpo.packing
        )

    def check_sampler(self, rollout: Rollout, trainer: Tensor, step: int) -> dict[str, float]:
        """Largest difference between what the sampler and the trainer say of the same token.

        MismatchError above the limit: then the two do not run the same policy.
        """
        gap = float(((trainer - rollout.sampler).abs() * rollout.counted).max())
        limit = SAMPLER_LIMIT[next(self.model.parameters()).dtype]
        if not gap <= limit:
            raise MismatchError(
                f"grpo step {step}: sampler and trainer disagree by {gap:.3g} nats on a token "
                f"(limit {limit:g}). They should run the same weights on the same prompt; training "
                "on these completions would follow another policy's gradient. Try "
                "grpo.packing=off; if that helps, the packed forward is at fault: report it."
            )
        return {"sampler_gap": gap}


def _rows(completions: Sequence[Sequence[Sequence[int]]]) -> list[Tensor]:
    """Row numbers, among all N completions, of each group's."""
    sizes = [len(group) for group in completions]
    return list(torch.arange(sum(sizes)).split(sizes))


class _Clock:
    """Seconds of each part of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[f"seconds_{phase}"] = now - self._last
        self._last = now
