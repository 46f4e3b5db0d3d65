"""SC-GRPO: group relative policy optimisation with the structured reward (IAD-R1, Algorithm 1)."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor, nn

from iad_r1 import distributed, rewards
from iad_r1.advantages import advantages, is_degenerate
from iad_r1.backbones.backbone import Inputs, Prompt
from iad_r1.distributed import gather, share
from iad_r1.errors import MismatchError
from iad_r1.losses import LossStats, policy_loss
from iad_r1.packing import Logprobs, adapter_off, completion_logprobs, micro_batches
from iad_r1.rollouts import open_engine
from iad_r1.rollouts.sampling import Sampling
from iad_r1.stages import optim
from iad_r1.stages.context import Context
from iad_r1.stages.learner import Learner
from iad_r1.stages.prompting import Prompter
from iad_r1.stages.rollout_log import reward_statistics, rollout_rows
from iad_r1.stages.saving import Saver
from iad_r1.types import Completion, Sample, Score, StopReason

SHOWN = ("reward", "kl", "length_mean")  # beside the progress bar
# Sampler and trainer read the same weights, so only rounding may separate them.
SAMPLER_LIMIT = {torch.float32: 1e-3, torch.bfloat16: 0.3}  # nats, worst token


def train(context: Context) -> None:
    """SC-GRPO on the data set's RL part, in place. One pass of the loop is one optimiser step
    (`updates_per_batch` of them when that is above 1), in the order of Algorithm 1."""
    grpo, samples = context.config.grpo, context.dataset.rl
    steps = optim.n_steps(grpo, len(samples), grpo.prompts_per_step)
    policy = Policy(context, steps)
    batches = optim.batches(samples, grpo.prompts_per_step, steps, context.config.seed)
    saver = Saver(context, "grpo", policy.learner, 0, steps)
    with context.progress("SC-GRPO", steps) as bar:
        for step in saver.steps(bar):
            clock, batch = _Clock(), batches[step]
            prompts = [policy.prompter.encode(sample) for sample in share(batch)]
            groups = gather(policy.sample(prompts, step))
            clock.lap("sample")
            scores = policy.score(batch, groups)
            advantage = advantages([[s.total for s in g] for g in scores], grpo.advantage)
            clock.lap("score")
            rollout = policy.keep(prompts, share(groups), share(advantage))
            clock.lap("reference")
            learned: dict[str, float] = {}  # of the last update; the sampler's gap of the first
            for _ in range(grpo.updates_per_batch):
                learned |= policy.update(rollout, step)
            clock.lap("update")
            values = {**reward_statistics(batch, groups, scores), **learned, **clock.seconds}
            context.log("grpo", step, values)
            if step % grpo.rollouts_every == 0 or step + 1 == steps:
                rows = rollout_rows(batch, groups, scores, advantage)
                context.log_rollouts("grpo", step, rows)
            shown = {name: values[name] for name in SHOWN if name in values}
            bar.advance(1, **shown)
            saver.done(step, values)
    policy.engine.close()
    optim.train_only(context.model, vision=True)


@dataclass
class Rollout:
    """What a rank has to learn from: B groups, N completions in all, T tokens (padded).

    Log-probs [N, T] of the same tokens: `sampler`'s when they were drawn, `reference`'s (None
    without a KL term), and the `trainer`'s own at the last pass. `old` is the trainer's before the
    first update, which the ratio of Eq. 11 is taken to; None until then.
    """

    prompts: Sequence[Inputs]
    completions: list[list[tuple[int, ...]]]
    rows: Sequence[Tensor]  # [G] each: the rows of each group among the N
    advantage: Tensor  # [N]
    counted: Tensor  # [N, T] bool: tokens in the loss
    sampler: Tensor
    trainer: Tensor
    reference: Tensor | None
    old: Tensor | None = None


class Policy:
    """The model under training with its sampler, rewards, reference and optimiser."""

    def __init__(self, context: Context, steps: int) -> None:
        config, self.grpo = context.config, context.config.grpo
        self.model, self.backbone, self.config = context.model, context.backbone, config
        self.prompter = Prompter(context.backbone, self.grpo.prompt)
        self.rewards = rewards.load(config.rewards, config.grid)
        self.engine = open_engine(config, context.backbone, config.rollout.batch_size)
        optim.train_only(self.model, vision=self.grpo.vision_lr_scale > 0)
        # full tuning: a frozen copy; LoRA: the policy itself, its adapter off; beta = 0: none
        self.reference: nn.Module | None = None
        if self.grpo.kl_coef > 0:
            lora = config.tuning.name == "lora"
            self.reference = self.model if lora else copy.deepcopy(self.model).requires_grad_(False)
        self.learner = Learner(
            self.model,
            self.grpo,
            steps * self.grpo.updates_per_batch,
            vision_lr_scale=self.grpo.vision_lr_scale,
        )

    def sample(self, prompts: Sequence[Prompt], step: int) -> list[list[Completion]]:
        """G completions of each of this rank's prompts, from the weights as they are now.

        Every prompt has random numbers of its own, so what is drawn depends neither on the other
        prompts of a forward nor on the number of ranks.
        """
        rollout, seed = self.config.rollout, self.config.seed
        sampling = Sampling(self.grpo.group_size, rollout.max_tokens, rollout.temperature)
        numbers = share(range(self.grpo.prompts_per_step))
        self.engine.sync()
        return self.engine.generate(prompts, sampling, [(seed, step, n) for n in numbers])

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
        prompts: Sequence[Prompt],
        groups: Sequence[Sequence[Completion]],
        advantage: Sequence[Sequence[float]],
    ) -> Rollout:
        """The rank's groups as tensors, with the reference policy's log-probs.

        With `degenerate_groups=skip`, groups whose rewards are all equal are left out: they have no
        policy gradient, only the KL term would act on them.
        """
        if self.grpo.degenerate_groups == "skip":
            live = [i for i, gains in enumerate(advantage) if not is_degenerate(gains)]
            prompts, groups = [prompts[i] for i in live], [groups[i] for i in live]
            advantage = [advantage[i] for i in live]
        flat = [completion for group in groups for completion in group]
        width = max((len(completion.tokens) for completion in flat), default=0)
        sampler, counted = torch.zeros(2, len(flat), width, device=self.model.device)
        for row, completion in enumerate(flat):
            sampler[row, : len(completion.tokens)] = torch.tensor(completion.logprobs)
            counted[row, : len(completion.tokens)] = self.counts(completion)
        completions = [[completion.tokens for completion in group] for group in groups]
        inputs = [prompt.inputs for prompt in prompts]
        return Rollout(
            prompts=inputs,
            completions=completions,
            rows=torch.arange(len(flat)).split([len(group) for group in groups]),
            advantage=torch.tensor(
                [a for group in advantage for a in group], device=self.model.device
            ),
            counted=counted.bool(),
            sampler=sampler,
            trainer=torch.zeros_like(sampler),
            reference=self.reference_logprobs(inputs, completions),
        )

    def counts(self, completion: Completion) -> bool:
        """Whether a completion is in the loss: one cut off at the limit may be masked."""
        return self.grpo.truncated == "keep" or completion.stop is StopReason.STOP

    @torch.no_grad()
    def reference_logprobs(
        self, prompts: Sequence[Inputs], completions: list[list[tuple[int, ...]]]
    ) -> Tensor | None:
        """[N, T], or None when beta is 0: then no reference runs."""
        if self.reference is None or not completions:
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
        """One optimiser step on the batch of all ranks (Eq. 11), some groups at a time."""
        where = f"grpo step {step}"
        n_tokens = distributed.total(float(rollout.counted.sum()))
        n_sequences = distributed.total(len(rollout.advantage))
        learned = [
            self.backward(rollout, part, n_sequences, n_tokens, where)
            for part in self._micro_batches(rollout)
        ]
        values = {"loss": distributed.total(sum(loss for loss, _ in learned))}
        stats = [s for found in distributed.everyone([s for _, s in learned]) for s in found]
        if stats:
            values |= reduce(LossStats.__add__, stats).scalars()
        if rollout.old is None:
            values["sampler_gap"] = self.check_sampler(rollout, where)
            rollout.old = rollout.trainer.clone()
        return values | self.learner.update(where)

    def backward(
        self,
        rollout: Rollout,
        part: Sequence[int],
        n_sequences: float,
        n_tokens: float,
        where: str,
    ) -> tuple[float, LossStats]:
        """Add the gradient of the groups `part`; their share of the loss and its statistics."""
        self.model.train()
        policy = self.logprobs(
            self.model,
            [rollout.prompts[group] for group in part],
            [rollout.completions[group] for group in part],
        )
        index = torch.cat([rollout.rows[group] for group in part])
        width = policy.logprob.shape[1]
        rollout.trainer[index, :width] = policy.logprob.detach()
        old, reference = rollout.old, rollout.reference
        loss, stats = policy_loss(
            policy.logprob,
            None if old is None else old[index, :width],
            None if reference is None else reference[index, :width],
            rollout.advantage[index],
            rollout.counted[index, :width],
            clip_low=self.grpo.clip_low,
            clip_high=self.grpo.clip_high,
            kl_coef=self.grpo.kl_coef,
            kl_kind=self.grpo.kl_kind,
            aggregation=self.grpo.aggregation,
            n_sequences=int(n_sequences),
            n_tokens=max(int(n_tokens), 1),  # 0 if every completion was cut off and masked
            max_tokens=self.config.rollout.max_tokens,
            entropy=policy.entropy,
        )
        self.learner.backward(loss, where)
        return loss.item(), stats

    def _micro_batches(self, rollout: Rollout) -> list[list[int]]:
        groups = list(range(len(rollout.prompts)))
        if self.grpo.token_budget is None or not groups:
            return [groups] if groups else []
        return micro_batches(
            rollout.prompts, rollout.completions, self.grpo.token_budget, self.grpo.packing
        )

    def check_sampler(self, rollout: Rollout, where: str) -> float:
        """Largest difference between what sampler and trainer say of the same token, in nats.

        MismatchError above the limit: then the two do not run the same policy.
        """
        apart = (rollout.trainer - rollout.sampler).abs() * rollout.counted
        gap = max(distributed.everyone(float(apart.max()) if apart.numel() else 0.0))
        limit = SAMPLER_LIMIT[next(self.model.parameters()).dtype]
        if not gap <= limit:
            raise MismatchError(
                f"{where}: sampler and trainer disagree by {gap:.3g} nats on a token "
                f"(limit {limit:g}). They should run the same weights on the same prompt; training "
                "on these completions would follow another policy's gradient. Try "
                "grpo.packing=off; if that helps, the packed forward is at fault: report it."
            )
        return gap


class _Clock:
    """Seconds of each part of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[f"seconds_{phase}"] = now - self._last
        self._last = now
