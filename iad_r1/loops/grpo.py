"""SC-GRPO: group relative policy optimisation with the structured reward (IAD-R1, Algorithm 1).

Axes, here and in what the loop calls: P prompts of a batch, G completions of each prompt (a group),
N completions of all prompts of a rank, T tokens of the longest of them. `rewards_PG[p][g]` is the
reward of completion g of prompt p. A batch is shared out by prompts: each rank learns from its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from statistics import pstdev

from iad_r1.learn import guards, optim
from iad_r1.learn.context import Context
from iad_r1.learn.metering import Clock, host_memory, peak_memory
from iad_r1.learn.saving import Saver
from iad_r1.loops.choosing import note_chosen, open_chooser
from iad_r1.loops.collect import Collector
from iad_r1.loops.overlap import Overlap
from iad_r1.loops.policy import Policy
from iad_r1.loops.rollout_log import rollout_rows
from iad_r1.objective.advantages import advantages
from iad_r1.processes.distributed import share

SHOWN = ("reward", "kl", "length_mean")  # beside the progress bar


def train(context: Context) -> None:
    """SC-GRPO on the data set's RL part, in place. One pass of the loop is one batch of prompts, in
    the order of Algorithm 1: as many optimiser steps as `updates_per_batch` and `minibatches` ask.
    """
    grpo, samples, folder = context.config.grpo, context.dataset.rl, context.folder.path
    steps = optim.n_steps(grpo, len(samples), grpo.prompts_per_step)
    policy = Policy(context, steps)
    collector = Collector(context, policy.learner.whole)
    batches = optim.batches(samples, grpo.prompts_per_step, steps, context.config.seed)
    overlap = Overlap(collector, batches, grpo.overlap)
    chooser = open_chooser(context, collector)
    saver = Saver(
        context,
        "grpo",
        policy.learner,
        0,
        steps,
        extra=policy.saved(),
        batches=overlap,
        judge=chooser and chooser.judge,
    )
    watch = guards.CollapseWatch(grpo.collapse)
    with collector.prompts, context.progress("SC-GRPO", steps) as bar:
        for step in saver.steps(bar):
            watch.recall(folder / "metrics.jsonl", "grpo", step)
            clock = Clock()
            policy.refresh_reference(step)
            collector.synchronise(step, clock)
            drawn = overlap.take(step, clock)  # sampled and scored
            rows = partial(collector.rows, drawn)
            with overlap.beside(step + 1, clock), guards.kept(folder, "grpo", step, rows):
                gains_PG = advantages(drawn.rewards_PG(), grpo.advantage)
                batch = policy.batch(drawn.prompts, share(drawn.groups), share(gains_PG))
                batch = policy.with_reference(batch)
                batch = policy.with_old(batch)
                clock.lap("reference")
                learned = policy.learn(batch, step, overlap.check)
                clock.lap("update")
            values = {**drawn.statistics, **spread(gains_PG), **learned, **clock.scalars()}
            values["tokens_per_second"] = drawn.tokens() / values["seconds_step"]
            values["peak_memory_mib"] = peak_memory(context.model.device)
            values["host_memory_mib"] = host_memory()
            context.log("grpo", step, values)
            if step % grpo.rollouts_every == 0 or step + 1 == steps:
                context.log_rollouts("grpo", step, rollout_rows(drawn.groups, gains_PG))
            bar.advance(1, **{name: values[name] for name in SHOWN if name in values})
            watch.see("grpo", step, values)
            saver.done(step, values)
    collector.close()
    policy.learner.close()
    saver.take_best()
    note_chosen(context, steps, saver.best)
    optim.train_only(context.model, vision=True)


def spread(gains_PG: Sequence[Sequence[float]]) -> dict[str, float]:
    """How far the advantages of a batch lie apart."""
    flat = [gain for group in gains_PG for gain in group]
    return {
        "advantage_std": pstdev(flat),
        "advantage_min": min(flat),
        "advantage_max": max(flat),
    }
