"""What the SC-GRPO loop can do beyond one plain step: each option does what its name says."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from small_run import logged, same, weights
from torch import Tensor

from iad_r1.backbones.backbone import Backbone
from iad_r1.errors import MismatchError
from iad_r1.learn import lora
from iad_r1.learn.context import Context
from iad_r1.learn.metering import Clock
from iad_r1.learn.saving import Saver
from iad_r1.loops import grpo
from iad_r1.loops.collect import Collected, Collector, degenerate
from iad_r1.loops.policy import Batch, Policy
from iad_r1.objective.advantages import advantages, is_degenerate
from iad_r1.types import Score


def by_tokens(self, samples, groups):
    """A reward that any text can win or lose: untrained models rarely earn the real one."""
    return [[Score(float(sum(c.tokens) % 7), {"answer": 0.0}) for c in group] for group in groups]


@pytest.fixture
def rewarded(monkeypatch):
    monkeypatch.setattr(Collector, "score", by_tokens)


def kept(context: Context) -> tuple[Policy, Batch]:
    """A policy and one batch that it could learn from."""
    policy, collector = Policy(context, steps=1), Collector(context)
    return policy, complete(policy, collector.collect(context.dataset.rl[:4], 0, Clock()))


def complete(policy: Policy, drawn: Collected) -> Batch:
    batch = policy.batch(drawn.prompts, drawn.groups, advantages(drawn.rewards_PG()))
    return policy.with_old(policy.with_reference(batch))


# ----------------------------------------------------------- importance between sampler and trainer


def gradient_norm(context: Context) -> float:
    policy, batch = kept(context)
    return policy.learn(batch, 0)["grad_norm"]


@pytest.mark.slow
def test_the_correction_weighs_the_policy_gradient(make_context, rewarded):
    plain = gradient_norm(make_context("grpo.kl_coef=0"))
    on = ["grpo.kl_coef=0", "grpo.importance.level=token"]
    assert plain > 0.01
    # sampler and trainer are one policy here, so the weights are 1 up to rounding
    assert gradient_norm(make_context(*on)) == pytest.approx(plain, rel=1e-4)
    assert gradient_norm(make_context(*on, "grpo.importance.level=sequence")) == pytest.approx(
        plain, rel=1e-3
    )
    halved = gradient_norm(make_context(*on, "grpo.importance.cap=0.5"))
    assert halved == pytest.approx(plain / 2, rel=1e-4)
    dropped = [*on, "grpo.importance.cap=0.5", "grpo.importance.mode=mask"]
    assert gradient_norm(make_context(*dropped)) == 0.0


@pytest.mark.parametrize("cut", ["rollout.top_k=5", "rollout.top_p=0.5"])
def test_cut_off_sampling_is_weighed_by_the_probability_that_was_kept(make_context, rewarded, cut):
    context = make_context(cut, "grpo.importance.level=token", "grpo.kl_coef=0")
    policy, batch = kept(context)
    with torch.no_grad():
        trainer = policy.all_logprobs(context.model, batch)
    raw = (trainer - batch.sampler).exp()[batch.counted]
    found = policy.learn(batch, 0)
    assert found["importance_mean"] == pytest.approx(float(raw.mean()), rel=1e-5)
    assert 0 < found["importance_min"] <= found["importance_max"] < 1 + 1e-4
    assert found["importance_mean"] < 0.9, "an untrained model spreads its probability"
    assert found["sampler_gap"] < 1e-3 < found["sampler_gap_max"]


def test_a_sampler_of_another_policy_is_found_out_behind_cut_off_sampling(make_context, rewarded):
    context = make_context("rollout.top_p=0.5", "grpo.importance.level=token")
    policy, batch = kept(context)
    batch.sampler.sub_(1.0)  # less likely than the trainer says: no cut explains that
    with pytest.raises(MismatchError, match=r"disagree by [\d.]+ nats on average"):
        policy.learn(batch, 0)


def test_off_logs_the_raw_mismatch_too(make_context, rewarded):
    policy, batch = kept(make_context())
    found = policy.learn(batch, 0)
    assert found["importance_mean"] == pytest.approx(1.0, abs=1e-4)
    assert 0 <= found["sampler_gap_mean"] <= found["sampler_gap_max"] == found["sampler_gap"]


# ------------------------------------------------------------------------------ degenerate groups


def only_odd_pictures_teach(context: Context) -> Callable[..., Any]:
    odd = {sample.id for sample in context.dataset.rl[1::2]}

    def score(self, samples, groups):
        return [
            [Score(float(i * (sample.id in odd))) for i in range(len(group))]
            for sample, group in zip(samples, groups, strict=True)
        ]

    return score


def collected(context: Context, step: int = 3) -> Any:
    return Collector(context).collect(context.dataset.rl[:4], step, Clock())


def test_groups_without_a_signal_are_drawn_anew_with_other_pictures(make_context, monkeypatch):
    context = make_context("grpo.degenerate_groups=resample", "grpo.resample_limit=20")
    monkeypatch.setattr(Collector, "score", only_odd_pictures_teach(context))
    batch, asked = collected(context), list(context.dataset.rl[:4])
    assert batch.statistics["degenerate_groups"] == 0.5  # of the first draw: slots 0 and 2
    assert degenerate(dict(enumerate(batch.groups))) == []
    assert batch.statistics["degenerate_left"] == 0.0
    assert [batch.groups[n].sample for n in (1, 3)] == [asked[1], asked[3]]
    attempts = [group.attempt for group in batch.groups]
    assert attempts[1] == attempts[3] == 0 < min(attempts[0], attempts[2])
    assert batch.statistics["resampled_groups"] == attempts[0] + attempts[2]
    for slot in (0, 2):
        expected = Collector(context).other(3, slot, attempts[slot])
        assert batch.groups[slot].sample == expected != asked[slot]
        assert batch.prompts[slot].name == expected.id


def test_what_takes_a_slot_over_depends_on_seed_step_slot_and_attempt_alone(
    make_context, monkeypatch
):
    """So a resumed run, and one on other ranks, draws the same."""
    settings = "grpo.degenerate_groups=resample", "grpo.resample_limit=2"
    context = make_context(*settings)
    monkeypatch.setattr(Collector, "score", only_odd_pictures_teach(context))
    collector = Collector(context)
    collector.collect(context.dataset.rl[4:8], 2, Clock())  # an earlier step leaves no trace
    batch, fresh = collector.collect(context.dataset.rl[:4], 3, Clock()), collected(context)
    assert batch.groups == fresh.groups
    monkeypatch.setattr(
        Collector, "score", lambda self, samples, groups: [[Score(1.0)] * len(g) for g in groups]
    )
    crowded = collected(context)  # more slots drawn anew: the others' draws stay what they were
    first = crowded.groups[0]
    assert first.sample == Collector(context).other(3, 0, first.attempt)
    others = [Collector(context).other(step, 0, 1).id for step in range(12)]
    assert len(set(others)) > 3


def test_drawing_anew_is_bounded_and_what_is_left_is_not_learned_from(make_context, monkeypatch):
    context = make_context(
        "grpo.degenerate_groups=resample", "grpo.resample_limit=2", "grpo.kl_coef=0"
    )
    monkeypatch.setattr(
        Collector, "score", lambda self, samples, groups: [[Score(1.0)] * len(g) for g in groups]
    )
    before = weights(context)
    lines = logged(context)
    assert [line["resampled_groups"] for line in lines] == [8, 8]
    assert [line["degenerate_left"] for line in lines] == [1.0, 1.0]
    assert same(before, weights(context))


def test_completions_drawn_anew_are_new(make_context, monkeypatch):
    context = make_context("grpo.degenerate_groups=resample", "grpo.resample_limit=1")
    collector, sample = Collector(context), context.dataset.rl[0]
    prompt = [collector.prompter.encode(sample)]
    first, again = (collector.sample(prompt, 3, [0], attempt) for attempt in (0, 1))
    assert first != again and collector.sample(prompt, 3, [0], 1) == again


# ------------------------------------------------------------------------------- the reference


@pytest.mark.slow
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_every_n_steps_the_policy_becomes_its_own_reference(make_context, rewarded, tuning):
    context = make_context(
        f"tuning={tuning}", "grpo.reference_refresh=2", "grpo.steps=5", "grpo.learning_rate=1e-3",
        "grpo.vision_lr_scale=0",
    )  # fmt: skip
    with lora.adapter(context, "grpo"):
        far = [line["kl"] for line in logged(context)]
    # 0 where it was made or made anew; only rounding separates policy and reference there
    assert [value < 1e-7 for value in far] == [True, False, True, False, True], far
    assert min(far[1], far[3]) > 1e-5


def reopened(context: Context) -> Context:
    """The same run in a new process: the weights it began with, and what it saved since."""
    again = copy.copy(context)
    again.backbone = Backbone.load(context.folder.checkpoint("base"))
    return again


@pytest.mark.slow
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_a_refreshed_reference_survives_a_stop(make_context, rewarded, monkeypatch, tuning):
    settings = (
        f"tuning={tuning}", "grpo.reference_refresh=2", "grpo.steps=5", "grpo.save_every=1",
        "grpo.learning_rate=1e-3", "grpo.vision_lr_scale=0", "grpo.updates_per_batch=2",
        "grpo.minibatches=2",
    )  # fmt: skip
    whole = make_context(*settings)
    with lora.adapter(whole, "grpo"):
        expected = logged(whole)
    stopped, done = make_context(*settings), Saver.done

    class Killed(Exception):
        pass

    def die(self, step, values):
        done(self, step, values)
        if step == 3:  # the reference in use was taken before step 2
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Saver, "done", die)
        with lora.adapter(stopped, "grpo"):
            grpo.train(stopped)
    saved = sorted((stopped.folder.path / "checkpoints").glob("grpo-step-*/reference.pt"))
    assert saved
    again = reopened(stopped)
    with lora.adapter(again, "grpo"):
        last = logged(again)
    assert len(last) == 1
    for name in ("loss", "kl", "reward", "grad_norm", "ratio_min", "learning_rate"):
        assert last[0][name] == expected[4][name], name
    assert same(weights(again), weights(whole))


# -------------------------------------------------------------------------- several optimiser steps


def test_a_pass_in_minibatches_takes_an_optimiser_step_for_each(make_context, rewarded):
    context = make_context("grpo.minibatches=2", "grpo.updates_per_batch=3", "grpo.steps=1",
                           "grpo.learning_rate=3e-3", "grpo.degenerate_groups=keep")  # fmt: skip
    policy, batch = kept(context)
    assert policy.minibatches(batch) == [[0, 1], [2, 3]]
    with torch.no_grad():
        before = policy.all_logprobs(context.model, batch)
    assert batch.old is not None and torch.equal(batch.old, before)
    found = policy.learn(batch, 0)
    assert policy.learner.schedule.last_epoch == 6
    assert torch.equal(batch.old, before)
    assert found["ratio_min"] < 1 < found["ratio_max"]


def test_the_first_minibatch_of_the_first_pass_has_a_ratio_of_one_and_the_next_has_not(
    make_context, rewarded
):
    context = make_context("grpo.minibatches=2", "grpo.learning_rate=3e-3")
    policy, batch = kept(context)
    found = []
    for part in policy.minibatches(batch):
        stats = policy.gradient(batch, batch.old, part, "here").stats
        assert stats is not None
        found.append(float(stats.ratio_max))
        policy.learner.update("here")
    assert found[0] == pytest.approx(1.0, abs=1e-5)
    assert found[1] > 1.001


def test_a_minibatch_moves_the_weights_as_a_batch_of_its_groups_would(make_context, rewarded):
    parts = make_context("grpo.minibatches=2", "grpo.kl_coef=0", "grpo.degenerate_groups=keep")
    policy, batch = kept(parts)
    policy.gradient(batch, batch.old, [0, 1], "here")
    policy.learner.update("here")
    alone = make_context("grpo.kl_coef=0", "grpo.prompts_per_step=2", "grpo.degenerate_groups=keep")
    other, collector = Policy(alone, steps=1), Collector(alone)
    other.learn(complete(other, collector.collect(alone.dataset.rl[:2], 0, Clock())), 0)
    for one, two in zip(weights(parts), weights(alone), strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)


def test_which_minibatch_a_group_is_in_depends_on_its_place_in_the_batch(make_context, rewarded):
    context = make_context("grpo.minibatches=2")
    policy, batch = kept(context)
    of_rank_1 = dataclasses.replace(batch, slots=[1, 3])
    assert policy.minibatches(of_rank_1) == [[0], [1]]
    the_others_were_degenerate = dataclasses.replace(batch, slots=[2, 3])
    assert policy.minibatches(the_others_were_degenerate) == [[], [0, 1]]


def test_a_step_whose_groups_all_lack_a_signal_leaves_the_weights_alone(make_context, monkeypatch):
    monkeypatch.setattr(
        Collector, "score", lambda self, samples, groups: [[Score(1.0)] * len(g) for g in groups]
    )
    context = make_context("grpo.minibatches=2", "grpo.degenerate_groups=skip")
    before = weights(context)
    assert all(line["grad_norm"] == 0.0 for line in logged(context))
    assert same(before, weights(context))


# ------------------------------------------------------------------------------- image features


def test_under_a_frozen_tower_the_passes_of_a_batch_share_its_features(
    make_context, rewarded, monkeypatch
):
    context = make_context("grpo.vision_lr_scale=0", "grpo.minibatches=2", "grpo.steps=1")
    policy, collector = Policy(context, steps=1), Collector(context)
    drawn = collector.collect(context.dataset.rl[:4], 0, Clock())
    alive = sum(not is_degenerate(rewards) for rewards in drawn.rewards_PG())
    calls: list[int] = []
    before = weights(context)
    assert policy.reference is not None
    models: list[Any] = [context.model, policy.reference.copy]
    for model in models:
        model.model.visual.register_forward_pre_hook(lambda *_: calls.append(1))
    policy.learn(complete(policy, drawn), 0)  # complete: with reference and old log-probs
    assert len(calls) == alive > 0  # each picture once for reference, old and every update
    moved = weights(context)

    live = make_context("grpo.vision_lr_scale=0", "grpo.minibatches=2", "grpo.steps=1")
    policy, collector = Policy(live, steps=1), Collector(live)
    policy.frozen_tower = False  # encode anew in every pass
    policy.learn(complete(policy, collector.collect(live.dataset.rl[:4], 0, Clock())), 0)
    # of a gradient near zero AdamW makes a step as large as of any, so single weights may differ
    apart = distance(moved, weights(live))
    assert apart < 1e-3 * distance(moved, before), "rounding does not explain it"


def distance(some: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """Between all weights of two models."""
    return sum(float((a - b).square().sum()) for a, b in zip(some, others, strict=True)) ** 0.5


def test_a_tower_that_learns_is_seen_anew_by_every_pass(make_context, rewarded):
    policy, batch = kept(make_context("grpo.vision_lr_scale=0.5"))
    assert not policy.frozen_tower and batch.vision is None
