"""The model under training with its reference and learner: log-probs, loss and update.

Axes as in `loops/grpo.py`; P, N and T here count what is this rank's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial, reduce
from statistics import fmean

import torch
from torch import Tensor, nn

from iad_r1.backbones.backbone import Inputs, Prompt
from iad_r1.backbones.packing import (
    Logprobs,
    Packing,
    completion_logprobs,
    micro_batches,
    vision_features,
)
from iad_r1.errors import MismatchError
from iad_r1.learn import optim
from iad_r1.learn.context import Context
from iad_r1.learn.learner import open_learner
from iad_r1.learn.reference import Reference
from iad_r1.objective.advantages import is_degenerate
from iad_r1.objective.losses import ImportanceStats, LossStats, importance_weights, policy_loss
from iad_r1.processes import distributed
from iad_r1.rollouts.gap import Gap, limits
from iad_r1.types import Completion, Group, StopReason


@dataclass(frozen=True)
class Batch:
    """What a rank learns from. `sampler`, `reference` and `old` are log-probs [N, T] of the same
    tokens.

    Attributes:
        slots: [P] place of each group in the whole batch.
        prompts: [P] as the processor returned them.
        tokens_PG: of every completion.
        rows: [P] where the completions of each group are among the N.
        advantage: [N]
        counted: [N, T] bool, the tokens in the loss.
        sampler: when they were drawn.
        vision: [P] image features under a frozen tower; None: every pass encodes them anew.
        reference: of the reference; None without a KL term.
        old: of the policy before the first update, which the ratio of Eq. 11 is taken to. None
            where a pass is one optimiser step: the first pass then finds them, and has ratio 1.
        spare: a group to compute with on a rank that has none to learn from.
    """

    slots: list[int]
    prompts: list[Inputs]
    tokens_PG: list[list[tuple[int, ...]]]
    rows: list[list[int]]
    advantage: Tensor
    counted: Tensor
    sampler: Tensor
    vision: list[Tensor | None] | None
    reference: Tensor | None = None
    old: Tensor | None = None
    spare: Batch | None = None

    def rows_of(self, groups: Sequence[int]) -> list[int]:
        """Where the completions of some groups are among the N."""
        return [row for group in groups for row in self.rows[group]]


@dataclass(frozen=True)
class Gradient:
    """What one optimiser step is to follow. `loss` and `stats` are of all ranks, `stats` None if no
    group had a signal; `logprobs` [N, T] are the policy's own, where it was asked on this rank."""

    loss: float
    stats: LossStats | None
    logprobs: Tensor


class Policy:
    """The model under training with its reference and optimiser."""

    def __init__(self, context: Context, steps: int) -> None:
        config, self.grpo = context.config, context.config.grpo
        self.packing: Packing = context.packing
        self.model, self.backbone, self.rollout = context.model, context.backbone, config.rollout
        self.gap_limit = limits(self.grpo.gap_limit, self.model)  # before a rank keeps parts only
        parts = config.tuning.train
        optim.train_only(self.model, vision=self.grpo.vision_lr_scale > 0, parts=parts)
        self.frozen_tower = not any(
            parameter.requires_grad
            for name, parameter in self.model.named_parameters()
            if optim.is_vision(name)
        )
        self.reference: Reference | None = None  # beta = 0: none
        if self.grpo.kl_coef > 0:
            self.reference = Reference(
                self.model,
                lora=config.tuning.name == "lora",
                refreshed=self.grpo.reference_refresh is not None,
            )
        self.learner = open_learner(
            config.engine,
            self.model,
            self.grpo,
            steps * self.grpo.updates_per_batch * self.grpo.minibatches,
            vision_lr_scale=self.grpo.vision_lr_scale,
        )
        if self.reference is not None and self.reference.model is not self.model:
            self.learner.store(self.reference.model)

    def saved(self) -> dict[str, nn.Module]:
        """What a checkpoint must hold beside model and optimiser."""
        return {} if self.reference is None else dict(self.reference.state())

    def refresh_reference(self, step: int) -> None:
        """Every `reference_refresh` steps the policy becomes its own reference."""
        every = self.grpo.reference_refresh
        if self.reference is not None and every is not None and step and step % every == 0:
            with self.learner.whole(), self.learner.whole(self.reference.model, change=True):
                self.reference.refresh()

    # --- the batch ------------------------------------------------------------------------------

    @torch.no_grad()
    def batch(
        self,
        prompts: Sequence[Prompt],
        groups: Sequence[Group],
        gains_PG: Sequence[Sequence[float]],
    ) -> Batch:
        """The rank's groups as tensors, with what the sampler said of them.

        Unless `degenerate_groups=keep`, groups whose rewards are all equal are left out: they have
        no policy gradient, only the KL term would act on them.
        """
        slots = distributed.share(range(self.grpo.prompts_per_step))[: len(prompts)]
        given = list(zip(slots, prompts, groups, gains_PG, strict=True))
        live = given
        if self.grpo.degenerate_groups != "keep":
            live = [one for one in given if not is_degenerate(one[3])]
        with self.learner.whole() if self.frozen_tower else nullcontext():
            spare = None if live else self.as_tensors(given[:1])
            return self.as_tensors(live, spare)

    def as_tensors(
        self,
        given: Sequence[tuple[int, Prompt, Group, Sequence[float]]],
        spare: Batch | None = None,
    ) -> Batch:
        """Groups as the loss reads them, each with its slot, prompt and advantages."""
        groups = [group.completions for _, _, group, _ in given]
        prompts = [prompt.inputs for _, prompt, _, _ in given]
        flat = [completion for group in groups for completion in group]
        width = max((len(completion.tokens) for completion in flat), default=0)
        sampler, counted = torch.zeros(2, len(flat), width, device=self.model.device)
        for row, completion in enumerate(flat):
            sampler[row, : len(completion.tokens)] = torch.tensor(completion.logprobs)
            counted[row, : len(completion.tokens)] = self.counts(completion)
        # one picture at a time, so that none depends on its company
        vision = (
            [vision_features(self.model, [p])[0] for p in prompts] if self.frozen_tower else None
        )
        rows = torch.arange(len(flat)).split([len(group) for group in groups])
        gains = [gain for *_, gains in given for gain in gains]
        return Batch(
            slots=[slot for slot, *_ in given],
            prompts=prompts,
            tokens_PG=[[completion.tokens for completion in group] for group in groups],
            rows=[part.tolist() for part in rows],
            advantage=torch.tensor(gains, device=self.model.device),
            counted=counted.bool(),
            sampler=sampler,
            vision=vision,
            spare=spare,
        )

    def counts(self, completion: Completion) -> bool:
        """Whether a completion is in the loss: one cut off at the limit may be masked."""
        return self.grpo.truncated == "keep" or completion.stop is StopReason.STOP

    @torch.no_grad()
    def with_reference(self, batch: Batch) -> Batch:
        """The batch with the reference's log-probs, if there is a KL term."""
        if self.reference is None:
            return batch
        with self.learner.whole(self.reference.model), self.reference.active() as model:
            return replace(batch, reference=self.all_logprobs(model, batch))

    @torch.no_grad()
    def with_old(self, batch: Batch) -> Batch:
        """The batch with the policy's own log-probs, if a pass has several optimiser steps."""
        if self.grpo.minibatches == 1:
            return batch
        with self.learner.whole():
            return replace(batch, old=self.all_logprobs(self.model, batch))

    def all_logprobs(self, model: nn.Module, batch: Batch) -> Tensor:
        """[N, T] What `model` says of the whole batch."""
        if not batch.prompts:
            return torch.zeros_like(batch.sampler)
        return self.logprobs(model, batch, range(len(batch.prompts))).logprob

    def logprobs(
        self, model: nn.Module, batch: Batch, groups: Sequence[int], *, entropy: bool = False
    ) -> Logprobs:
        """What `model` says of the completions of some groups. Its `entropy` is reported with the
        loss, so other passes do without."""
        vision = batch.vision
        return completion_logprobs(
            model,
            [batch.prompts[group] for group in groups],
            [batch.tokens_PG[group] for group in groups],
            packing=self.packing,
            vision=None if vision is None else [vision[group] for group in groups],
            temperature=self.rollout.temperature,
            token_budget=None if torch.is_grad_enabled() else self.grpo.token_budget,
            entropy=entropy,
            suppressed=self.backbone.placeholders,
        )

    # --- learning from it -----------------------------------------------------------------------

    def learn(
        self, batch: Batch, step: int, check: Callable[[], None] = lambda: None
    ) -> dict[str, float]:
        """`updates_per_batch` passes over the batch, each in `minibatches` optimiser steps; `check`
        is called before every forward, and ends the step if it raises.

        Returns the mean loss of the steps, the largest gradient norm, the last learning rate,
        statistics over the tokens of all of them, and how far the sampler was from the policy.
        """
        where, old = f"grpo step {step}", batch.old
        gradients: list[Gradient] = []
        taken: list[dict[str, float]] = []
        mismatch: dict[str, float] = {}
        for groups in self.minibatches(batch) * self.grpo.updates_per_batch:
            gradients.append(self.gradient(batch, old, groups, where, check))
            if not taken:  # the policy is still the one that was synchronised
                old = gradients[0].logprobs if old is None else old
                mismatch = self.check_sampler(batch, old, where)
            taken.append(self.learner.update(where))
        stats = [gradient.stats for gradient in gradients if gradient.stats is not None]
        return {
            "loss": fmean(gradient.loss for gradient in gradients),
            "grad_norm": max(done["grad_norm"] for done in taken),
            "learning_rate": taken[-1]["learning_rate"],
            **(reduce(LossStats.__add__, stats).scalars() if stats else {}),
            **mismatch,
        }

    def minibatches(self, batch: Batch) -> list[list[int]]:
        """The groups of each optimiser step: equal parts of the batch, in its order. Which part a
        group falls into depends neither on ranks nor on what was left out."""
        parts, whole = self.grpo.minibatches, self.grpo.prompts_per_step
        return [
            [i for i, slot in enumerate(batch.slots) if slot * parts // whole == part]
            for part in range(parts)
        ]

    def gradient(
        self,
        batch: Batch,
        old: Tensor | None,
        groups: Sequence[int],
        where: str,
        check: Callable[[], None] = lambda: None,
    ) -> Gradient:
        """Add the gradient of the loss of `groups` of every rank (Eq. 11), some at a time.

        old: as `Batch.old`. check: as in `learn`.
        """
        rows = batch.rows_of(groups)
        n_tokens = distributed.total(float(batch.counted[rows].sum()))
        n_sequences = distributed.total(len(rows))
        stats, own = list[LossStats](), torch.zeros_like(batch.sampler)

        def part_of_loss(part: Sequence[int]) -> Tensor:
            check()
            loss, found, logprob = self.loss(batch, old, part, int(n_sequences), int(n_tokens))
            stats.append(found.cpu())
            own[batch.rows_of(part), : logprob.shape[1]] = logprob
            return loss

        parts = [partial(part_of_loss, part) for part in self._micro_batches(batch, groups)]
        loss = self.learner.accumulate(parts, where, idle=partial(self.idle, batch))
        loss = distributed.total(loss)
        everyones = [one for found in distributed.everyone(stats) for one in found]
        return Gradient(loss, reduce(LossStats.__add__, everyones) if everyones else None, own)

    def loss(
        self, batch: Batch, old: Tensor | None, part: Sequence[int], n_sequences: int, n_tokens: int
    ) -> tuple[Tensor, LossStats, Tensor]:
        """The share of the groups `part` in the loss (Eq. 11), its statistics, and the log-probs
        it was made of."""
        self.model.train()
        policy = self.logprobs(self.model, batch, part, entropy=True)
        own = policy.logprob.detach()
        rows, width = batch.rows_of(part), own.shape[1]
        before = own if old is None else old[rows, :width]
        counted = batch.counted[rows, :width]
        importance = None  # the weights are 1
        if self.grpo.importance.level != "off":
            importance, _ = self._weigh(before, batch.sampler[rows, :width], counted)
        loss, stats = policy_loss(
            policy.logprob,
            before,
            None if batch.reference is None else batch.reference[rows, :width],
            batch.advantage[rows],
            counted,
            clip_low=self.grpo.clip_low,
            clip_high=self.grpo.clip_high,
            kl_coef=self.grpo.kl_coef,
            kl_kind=self.grpo.kl_kind,
            aggregation=self.grpo.aggregation,
            n_sequences=n_sequences,
            n_tokens=max(n_tokens, 1),  # 0 if every completion was cut off and masked
            max_tokens=self.rollout.max_tokens,
            importance=importance,
            entropy=policy.entropy,
        )
        return loss, stats, own

    def idle(self, batch: Batch) -> Tensor:
        """A pass through the policy like those of `gradient`, for ranks that have fewer of them."""
        held = batch if batch.spare is None else batch.spare
        return self.logprobs(self.model, held, [0]).logprob.sum()

    def _weigh(
        self, trainer: Tensor, sampler: Tensor, counted: Tensor
    ) -> tuple[Tensor, ImportanceStats]:
        """The weight of each token or sequence for having been drawn by `sampler`."""
        rule = self.grpo.importance
        return importance_weights(
            trainer, sampler, counted, level=rule.level, mode=rule.mode, cap=rule.cap
        )

    def _micro_batches(self, batch: Batch, groups: Sequence[int]) -> list[list[int]]:
        """The groups of each forward."""
        if self.grpo.token_budget is None:
            return [list(groups)] if groups else []
        parts = micro_batches(
            [batch.prompts[group] for group in groups],
            [batch.tokens_PG[group] for group in groups],
            self.grpo.token_budget,
            self.packing,
        )
        return [[groups[i] for i in part] for part in parts]

    def check_sampler(self, batch: Batch, own: Tensor, where: str) -> dict[str, float]:
        """How far sampler and trainer are apart on the same tokens, before anything is capped.

        `own` [N, T] are the trainer's log-probs. `sampler_gap` is the largest difference, in nats,
        that the settings do not explain, and `sampler_gap_high` the 95 % quantile: where top-p and
        top-k cut off improbable tokens, the others share out their probability.
        MismatchError if the mean or the quantile is above its limit: then the two do not run the
        same policy. Where single tokens are corrected for (`grpo.importance`), the mean decides.
        With `grpo.overlap` the sampler's weights were older by a step: then the parity gate
        compares the two with the same weights, and here the limit is what the correction's cap can
        make good.
        """
        _, mine = self._weigh(own, batch.sampler, batch.counted)
        stats = reduce(ImportanceStats.__add__, distributed.everyone(mine))
        explained = math.inf if self.rollout.top_k else -math.log(self.rollout.top_p)
        apart = (batch.sampler - own)[batch.counted]
        gap = Gap.of(torch.maximum(-apart, apart - explained).clamp(min=0))
        if self.grpo.overlap:
            self._check_overlap(gap.mean, where)
            return stats.scalars()
        limit = self.gap_limit
        if self.grpo.importance.level != "off":
            limit = replace(limit, high=math.inf)
        if not gap.within(limit):
            raise MismatchError(
                f"{where}: sampler and trainer disagree {gap.against(limit)}. They should run the "
                "same weights on the same prompt; training on these completions would follow "
                "another policy's gradient. Try grpo.packing=off; if that helps, the packed "
                "forward is at fault: report it. If every figure is just above its limit from the "
                "first step on, it is the rounding of your kernels: raise grpo.gap_limit.mean and "
                "grpo.gap_limit.high."
            )
        return {"sampler_gap": gap.largest, "sampler_gap_high": gap.high, **stats.scalars()}

    def _check_overlap(self, mean: float, where: str) -> None:
        """MismatchError if a step moves the policy further than `grpo.importance` corrects."""
        limit = math.log(self.grpo.importance.cap)
        if not mean <= limit:
            raise MismatchError(
                f"{where}: the policy is {mean:.3g} nats per token from the one that drew the "
                f"batch one step earlier, further than grpo.importance.cap="
                f"{self.grpo.importance.cap:g} corrects (log cap: {limit:.3g}). Use a lower "
                "grpo.learning_rate, or grpo.overlap=0."
            )
