"""SC-GRPO: group relative policy optimisation with the structured reward (IAD-R1, Algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from statistics import fmean, pstdev

import torch
from torch import Tensor, nn

from iad_r1.backbones.backbone import Inputs, Prompt
from iad_r1.backbones.packing import Logprobs, completion_logprobs, micro_batches, vision_features
from iad_r1.errors import MismatchError
from iad_r1.learn import guards, optim
from iad_r1.learn.learner import open_learner
from iad_r1.learn.metering import Clock, peak_memory
from iad_r1.learn.reference import Reference
from iad_r1.learn.saving import Saver
from iad_r1.loops.collect import Collector
from iad_r1.loops.context import Context
from iad_r1.objective.advantages import advantages, is_degenerate
from iad_r1.objective.losses import ImportanceStats, LossStats, importance_weights, policy_loss
from iad_r1.processes import distributed
from iad_r1.processes.distributed import share
from iad_r1.types import Completion, StopReason

SHOWN = ("reward", "kl", "length_mean")  # beside the progress bar
# Sampler and trainer read the same weights, so only rounding may separate them.
SAMPLER_LIMIT = {torch.float32: 1e-3, torch.bfloat16: 0.3}  # nats, worst token
Rewards = Sequence[Sequence[float]]


def train(context: Context) -> None:
    """SC-GRPO on the data set's RL part, in place. One pass of the loop is one batch of prompts, in
    the order of Algorithm 1: as many optimiser steps as `updates_per_batch` and `minibatches` ask.
    """
    grpo, samples, folder = context.config.grpo, context.dataset.rl, context.folder.path
    steps = optim.n_steps(grpo, len(samples), grpo.prompts_per_step)
    policy = Policy(context, steps)
    collector = Collector(context, policy.learner.whole)
    batches = optim.batches(samples, grpo.prompts_per_step, steps, context.config.seed)
    saver = Saver(context, "grpo", policy.learner, 0, steps, extra=policy.saved())
    watch = guards.CollapseWatch(grpo.collapse)
    with context.progress("SC-GRPO", steps) as bar:
        for step in saver.steps(bar):
            watch.recall(folder / "metrics.jsonl", "grpo", step)
            clock = Clock()
            policy.refresh_reference(step)
            batch = collector.collect(batches[step], step, clock)
            with guards.kept(folder, "grpo", step, partial(collector.rows, batch)):
                gains = advantages(batch.rewards(), grpo.advantage)
                rollout = policy.keep(batch.prompts, share(batch.groups), share(gains))
                clock.lap("reference")
                learned = policy.learn(rollout, step)
                clock.lap("update")
            values = {**batch.statistics, **spread(gains), **learned, **clock.scalars()}
            values["tokens_per_second"] = batch.tokens() / values["seconds_step"]
            values["peak_memory_mib"] = peak_memory(context.model.device)
            context.log("grpo", step, values)
            if step % grpo.rollouts_every == 0 or step + 1 == steps:
                context.log_rollouts("grpo", step, collector.table(batch, gains))
            bar.advance(1, **{name: values[name] for name in SHOWN if name in values})
            watch.see("grpo", step, values)
            saver.done(step, values)
    collector.close()
    policy.learner.close()
    optim.train_only(context.model, vision=True)


def spread(gains: Rewards) -> dict[str, float]:
    """How far the advantages of a batch lie apart."""
    flat = [gain for group in gains for gain in group]
    return {
        "advantage_std": pstdev(flat),
        "advantage_min": min(flat),
        "advantage_max": max(flat),
    }


@dataclass
class Rollout:
    """What a rank has to learn from: B groups, N completions in all, T tokens (padded).

    Log-probs [N, T] of the same tokens: `sampler`'s when they were drawn, `reference`'s (None
    without a KL term), and the `trainer`'s own at the last pass. `old` is the trainer's before the
    first update, which the ratio of Eq. 11 is taken to: known from the start when a pass has
    several optimiser steps, else None until the first of them.
    """

    slots: list[int]  # [B] place of each group in the whole batch
    prompts: Sequence[Inputs]
    completions: list[list[tuple[int, ...]]]
    rows: Sequence[Tensor]  # [G] each: the rows of each group among the N
    advantage: Tensor  # [N]
    counted: Tensor  # [N, T] bool: tokens in the loss
    sampler: Tensor
    trainer: Tensor
    vision: list[Tensor | None] | None = None  # image features of each group; None: encode anew
    reference: Tensor | None = None
    old: Tensor | None = None
    mismatch: dict[str, float] = field(default_factory=dict)  # of sampler and trainer, raw
    spare: Rollout | None = None  # a group to compute with when none is left to learn from


@dataclass(frozen=True)
class Update:
    """What one optimiser step did, over all ranks. `stats` is None if no group had a signal."""

    loss: float
    stats: LossStats | None
    norm: float
    rate: float


def joined(updates: Sequence[Update]) -> dict[str, float]:
    """One line of numbers for the optimiser steps of a batch: the mean loss, the largest gradient
    norm, the last learning rate, and statistics over the tokens of all of them."""
    stats = [update.stats for update in updates if update.stats is not None]
    return {
        "loss": fmean(update.loss for update in updates),
        "grad_norm": max(update.norm for update in updates),
        "learning_rate": updates[-1].rate,
        **(reduce(LossStats.__add__, stats).scalars() if stats else {}),
    }


class Policy:
    """The model under training with its reference and optimiser."""

    def __init__(self, context: Context, steps: int) -> None:
        config, self.grpo = context.config, context.config.grpo
        self.model, self.backbone, self.config = context.model, context.backbone, config
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

    def keep(
        self,
        prompts: Sequence[Prompt],
        groups: Sequence[Sequence[Completion]],
        advantage: Rewards,
    ) -> Rollout:
        """The rank's groups as tensors, with the log-probs that stay as they are: the reference's
        and, when the batch is learned from in several optimiser steps, the policy's own.

        Unless `degenerate_groups=keep`, groups whose rewards are all equal are left out: they have
        no policy gradient, only the KL term would act on them.
        """
        slots = share(range(self.grpo.prompts_per_step))[: len(prompts)]
        first = slots[:1], prompts[:1], groups[:1], advantage[:1]
        if self.grpo.degenerate_groups != "keep":
            live = [i for i, gains in enumerate(advantage) if not is_degenerate(gains)]
            prompts, groups = [prompts[i] for i in live], [groups[i] for i in live]
            advantage, slots = [advantage[i] for i in live], [slots[i] for i in live]
        rollout = self.as_tensors(slots, prompts, groups, advantage)
        if not slots:
            rollout.spare = self.as_tensors(*first)
        self.fill(rollout)
        return rollout

    def as_tensors(
        self,
        slots: list[int],
        prompts: Sequence[Prompt],
        groups: Sequence[Sequence[Completion]],
        advantage: Rewards,
    ) -> Rollout:
        """The groups as the loss reads them."""
        flat = [completion for group in groups for completion in group]
        width = max((len(completion.tokens) for completion in flat), default=0)
        sampler, counted = torch.zeros(2, len(flat), width, device=self.model.device)
        for row, completion in enumerate(flat):
            sampler[row, : len(completion.tokens)] = torch.tensor(completion.logprobs)
            counted[row, : len(completion.tokens)] = self.counts(completion)
        return Rollout(
            slots=slots,
            prompts=[prompt.inputs for prompt in prompts],
            completions=[[completion.tokens for completion in group] for group in groups],
            rows=torch.arange(len(flat)).split([len(group) for group in groups]),
            advantage=torch.tensor(
                [a for group in advantage for a in group], device=self.model.device
            ),
            counted=counted.bool(),
            sampler=sampler,
            trainer=torch.zeros_like(sampler),
        )

    @torch.no_grad()
    def fill(self, rollout: Rollout) -> None:
        """Add what is computed once per batch: image features under a frozen tower, which the
        reference shares, and the log-probs of the reference and of the policy as it is."""
        groups = list(range(len(rollout.prompts)))
        if self.frozen_tower:
            with self.learner.whole():
                for part in (rollout, rollout.spare):
                    self.see(part)
        if self.reference is not None:
            with self.learner.whole(self.reference.model), self.reference.active() as model:
                rollout.reference = (
                    self.logprobs(model, rollout, groups).logprob if groups else None
                )
        if self.grpo.minibatches > 1:
            with self.learner.whole():
                if groups:
                    rollout.trainer = self.logprobs(self.model, rollout, groups).logprob
            rollout.old = rollout.trainer.clone()

    def see(self, rollout: Rollout | None) -> None:
        """Add image features: one picture at a time, so that none depends on its company."""
        if rollout is not None:
            rollout.vision = [vision_features(self.model, [p])[0] for p in rollout.prompts]

    def counts(self, completion: Completion) -> bool:
        """Whether a completion is in the loss: one cut off at the limit may be masked."""
        return self.grpo.truncated == "keep" or completion.stop is StopReason.STOP

    def logprobs(self, model: nn.Module, rollout: Rollout, groups: Sequence[int]) -> Logprobs:
        """What `model` says of the completions of some groups."""
        vision = rollout.vision
        return completion_logprobs(
            model,
            [rollout.prompts[group] for group in groups],
            [rollout.completions[group] for group in groups],
            packing=self.grpo.packing,
            vision=None if vision is None else [vision[group] for group in groups],
            temperature=self.config.rollout.temperature,
            token_budget=None if torch.is_grad_enabled() else self.grpo.token_budget,
            suppressed=self.backbone.placeholders,
        )

    def learn(self, rollout: Rollout, step: int) -> dict[str, float]:
        """`updates_per_batch` passes over the batch, each in `minibatches` optimiser steps."""
        where = f"grpo step {step}"
        if self.grpo.minibatches > 1:
            rollout.mismatch = self.check_sampler(rollout, where)
        updates = [
            self.update(rollout, step, groups)
            for _ in range(self.grpo.updates_per_batch)
            for groups in self.minibatches(rollout)
        ]
        return {**joined(updates), **rollout.mismatch}

    def minibatches(self, rollout: Rollout) -> list[list[int]]:
        """The groups of each optimiser step: equal parts of the batch, in its order. Which part a
        group falls into depends neither on ranks nor on what was left out."""
        parts, whole = self.grpo.minibatches, self.grpo.prompts_per_step
        return [
            [i for i, slot in enumerate(rollout.slots) if slot * parts // whole == part]
            for part in range(parts)
        ]

    def update(self, rollout: Rollout, step: int, groups: Sequence[int] | None = None) -> Update:
        """One optimiser step on `groups` of every rank (Eq. 11; None: all), some at a time."""
        where = f"grpo step {step}"
        groups = range(len(rollout.prompts)) if groups is None else groups
        index = [row for group in groups for row in rollout.rows[group].tolist()]
        n_tokens = distributed.total(float(rollout.counted[index].sum()))
        n_sequences = distributed.total(len(index))
        learned: list[LossStats] = []
        parts = [
            partial(self.loss, rollout, part, n_sequences, n_tokens, learned)
            for part in self._micro_batches(rollout, groups)
        ]
        loss = self.learner.accumulate(parts, where, idle=partial(self.idle, rollout))
        loss = distributed.total(loss)
        stats = [s for found in distributed.everyone(learned) for s in found]
        if rollout.old is None and self.grpo.minibatches == 1:
            rollout.mismatch = self.check_sampler(rollout, where)
            rollout.old = rollout.trainer.clone()
        done = self.learner.update(where)
        return Update(
            loss,
            reduce(LossStats.__add__, stats) if stats else None,
            done["grad_norm"],
            done["learning_rate"],
        )

    def loss(
        self,
        rollout: Rollout,
        part: Sequence[int],
        n_sequences: float,
        n_tokens: float,
        learned: list[LossStats],
    ) -> Tensor:
        """The share of the groups `part` in the loss (Eq. 11); adds its statistics to `learned`."""
        self.model.train()
        policy = self.logprobs(self.model, rollout, part)
        index = torch.cat([rollout.rows[group] for group in part])
        width = policy.logprob.shape[1]
        rollout.trainer[index, :width] = policy.logprob.detach()
        old, reference = rollout.old, rollout.reference
        before = policy.logprob.detach() if old is None else old[index, :width]
        counted = rollout.counted[index, :width]
        loss, stats = policy_loss(
            policy.logprob,
            before,
            None if reference is None else reference[index, :width],
            rollout.advantage[index],
            counted,
            clip_low=self.grpo.clip_low,
            clip_high=self.grpo.clip_high,
            kl_coef=self.grpo.kl_coef,
            kl_kind=self.grpo.kl_kind,
            aggregation=self.grpo.aggregation,
            n_sequences=int(n_sequences),
            n_tokens=max(int(n_tokens), 1),  # 0 if every completion was cut off and masked
            max_tokens=self.config.rollout.max_tokens,
            importance=self.importance(before, rollout.sampler[index, :width], counted),
            entropy=policy.entropy,
        )
        learned.append(stats)
        return loss

    def idle(self, rollout: Rollout) -> Tensor:
        """A pass through the policy like those of `loss`, for ranks that have fewer of them."""
        held = rollout if rollout.spare is None else rollout.spare
        return self.logprobs(self.model, held, [0]).logprob.sum()

    def importance(self, trainer: Tensor, sampler: Tensor, counted: Tensor) -> Tensor | None:
        """The weight of each token or sequence for having been drawn by `sampler`; None: all 1."""
        if self.grpo.importance.level == "off":
            return None
        return self._weigh(trainer, sampler, counted)[0]

    def _weigh(
        self, trainer: Tensor, sampler: Tensor, counted: Tensor
    ) -> tuple[Tensor, ImportanceStats]:
        rule = self.grpo.importance
        return importance_weights(
            trainer, sampler, counted, level=rule.level, mode=rule.mode, cap=rule.cap
        )

    def _micro_batches(self, rollout: Rollout, groups: Sequence[int]) -> list[list[int]]:
        if self.grpo.token_budget is None or not groups:
            return [list(groups)] if groups else []
        parts = micro_batches(
            [rollout.prompts[group] for group in groups],
            [rollout.completions[group] for group in groups],
            self.grpo.token_budget,
            self.grpo.packing,
        )
        return [[groups[i] for i in part] for part in parts]

    def check_sampler(self, rollout: Rollout, where: str) -> dict[str, float]:
        """How far sampler and trainer are apart on the same tokens, before anything is capped.

        `sampler_gap` is the largest difference, in nats, that the settings do not explain.
        MismatchError above the limit: then the two do not run the same policy. Where single tokens
        are corrected for (`grpo.importance`), it is the mean that the limit holds for.
        """
        _, mine = self._weigh(rollout.trainer, rollout.sampler, rollout.counted)
        stats = reduce(ImportanceStats.__add__, distributed.everyone(mine))
        apart = (rollout.sampler - rollout.trainer)[rollout.counted]
        unexplained = torch.maximum(-apart, apart - self.explained()).clamp(min=0)
        gap = max(distributed.everyone(float(unexplained.max()) if len(apart) else 0.0))
        mean = distributed.total(float(unexplained.sum())) / max(stats.tokens, 1)
        limit = SAMPLER_LIMIT[next(self.model.parameters()).dtype]
        if not (gap if self.grpo.importance.level == "off" else mean) <= limit:
            raise MismatchError(
                f"{where}: sampler and trainer disagree by up to {gap:.3g} nats on a token, "
                f"{mean:.3g} on average (limit {limit:g}). They should run the same weights on the "
                "same prompt; training on these completions would follow another policy's "
                "gradient. Try "
                "grpo.packing=off; if that helps, the packed forward is at fault: report it."
            )
        return {"sampler_gap": gap, **stats.scalars()}

    def explained(self) -> float:
        """By how much the sampler may find a token likelier than the trainer: where top-p and
        top-k cut off improbable tokens, the others share out their probability."""
        rollout = self.config.rollout
        return math.inf if rollout.top_k else -math.log(rollout.top_p)
