"""The SC-GRPO loop: what one step does, whatever way it is carried out."""

from __future__ import annotations

import json
from dataclasses import dataclass

import packing_cases as cases
import pytest
import torch

from iad_r1.backbones.packing import completion_logprobs
from iad_r1.errors import MismatchError
from iad_r1.learn.metering import Clock
from iad_r1.loops import grpo
from iad_r1.loops.collect import Collected, Collector
from iad_r1.loops.policy import Batch, Policy
from iad_r1.objective.advantages import advantages
from iad_r1.rollouts.prompting import Prompter
from iad_r1.types import Group, Score


@pytest.fixture
def rewarded(monkeypatch):
    """A reward that any text can win or lose: untrained models rarely earn the real one."""

    def score(self, batch, groups):
        return [
            [Score(float(sum(c.tokens) % 7), {"answer": 0.0}) for c in group] for group in groups
        ]

    monkeypatch.setattr(Collector, "score", score)


@dataclass
class Taken:
    """One batch, up to where it is learned from."""

    policy: Policy
    groups: list[Group]
    batch: Batch


def taken(context, count: int = 4, gains=None) -> Taken:
    """The first pictures as a batch: sampled, scored and complete."""
    policy, collector = Policy(context, steps=1), Collector(context)
    drawn = collector.collect(context.dataset.rl[:count], 0, Clock())
    return Taken(policy, drawn.groups, complete(policy, drawn, gains))


def complete(policy: Policy, drawn: Collected, gains=None) -> Batch:
    batch = policy.batch(drawn.prompts, drawn.groups, gains or advantages(drawn.rewards_PG()))
    return policy.with_old(policy.with_reference(batch))


def trained(context) -> list[torch.Tensor]:
    grpo.train(context)
    return [p.detach().clone() for p in context.model.parameters()]


def assert_same(weights, others, atol=1e-5):
    """Equal within a twentieth of the learning rate. Adam divides a gradient by its own size, so
    where one is all but zero the rounding of a float sum shows; a wrong gradient moves weights by
    up to two learning rates, 4e-4."""
    for one, other in zip(weights, others, strict=True):
        torch.testing.assert_close(one, other, atol=atol, rtol=1e-4)


def test_packed_and_unpacked_training_move_the_weights_alike(make_context, rewarded):
    packed = trained(make_context("grpo.packing=group", "grpo.steps=1"))
    assert_same(packed, trained(make_context("grpo.packing=off", "grpo.steps=1")))
    assert_same(packed, trained(make_context("grpo.packing=group_flash", "grpo.steps=1")))
    with cases.flex_on_cpu():
        assert_same(packed, trained(make_context("grpo.packing=group_flex", "grpo.steps=1")))


def test_the_packing_that_was_chosen_is_in_the_manifest(make_context):
    for wanted, chosen in {
        "auto": {"chosen": "group", "through": "SDPA"},
        "group_flash": {"chosen": "group_flash", "through": "plain steps"},
    }.items():
        context = make_context(f"grpo.packing={wanted}")
        assert context.packing == chosen["chosen"]
        assert context.folder.read_json("manifest.json")["packing"] == chosen


def test_micro_batches_do_not_change_the_step(make_context, rewarded):
    whole = trained(make_context("grpo.steps=1"))
    assert_same(whole, trained(make_context("grpo.steps=1", "grpo.token_budget=100")))


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(make_context, rewarded):
    first, second = trained(make_context()), trained(make_context())
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    other = trained(make_context("seed=1"))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_without_a_kl_term_no_reference_runs(make_context, rewarded):
    policy = Policy(make_context("grpo.kl_coef=0"), steps=1)
    assert policy.reference is None and policy.saved() == {}
    assert taken(make_context("grpo.kl_coef=0")).batch.reference is None


def test_equal_rewards_leave_the_weights_alone_without_a_kl_term(make_context, monkeypatch):
    monkeypatch.setattr(
        Collector, "score", lambda self, batch, groups: [[Score(1.0)] * len(g) for g in groups]
    )
    for choice in ("keep", "skip"):
        context = make_context("grpo.kl_coef=0", f"grpo.degenerate_groups={choice}")
        before = [p.detach().clone() for p in context.model.parameters()]
        assert_same(before, trained(context), atol=0)


def test_one_step_raises_what_paid_and_lowers_what_did_not(make_context):
    context = make_context("grpo.kl_coef=0", "grpo.learning_rate=1e-4")
    gains = advantages([[1.0, 0.0, 0.0, 0.0]] * 4)
    found = taken(context, gains=gains)

    def likelihood():
        with torch.no_grad():
            return found.policy.all_logprobs(context.model, found.batch).sum(1)

    before = likelihood()
    found.policy.learn(found.batch, step=0)
    gain = (likelihood() - before) * found.batch.advantage
    assert gain.sum() > 0


def test_a_sampler_that_follows_another_policy_is_found_out(make_context, rewarded, monkeypatch):
    context = make_context()
    honest = Collector.sample

    def stale(self, *args):
        weight = context.model.lm_head.weight
        kept = weight.detach().clone()
        with torch.no_grad():
            weight += 0.05 * torch.randn_like(weight)
        groups = honest(self, *args)
        with torch.no_grad():
            weight.copy_(kept)
        return groups

    monkeypatch.setattr(Collector, "sample", stale)
    with pytest.raises(MismatchError, match="sampler and trainer disagree"):
        grpo.train(context)


def test_two_updates_per_batch_clip_against_the_first(make_context, rewarded):
    context = make_context("grpo.updates_per_batch=2", "grpo.learning_rate=3e-3")
    found = taken(context)
    policy, batch = found.policy, found.batch
    assert batch.old is None
    first = policy.gradient(batch, None, range(4), "first")
    assert policy.check_sampler(batch, first.logprobs, "first")["sampler_gap"] < 1e-4
    policy.learner.update("first")
    second = policy.gradient(batch, first.logprobs, range(4), "second")
    assert first.stats is not None and second.stats is not None
    assert first.stats.ratio_min == first.stats.ratio_max == 1.0
    assert second.stats.ratio_max > 1.0 > second.stats.ratio_min


def test_a_batch_is_learned_from_as_it_is_and_all_its_passes_have_the_first_for_old(
    make_context, rewarded, monkeypatch
):
    found = taken(make_context("grpo.updates_per_batch=3", "grpo.learning_rate=3e-3"))
    policy, gradient, asked = found.policy, Policy.gradient, []

    def watched(self, batch, old, *given):
        result = gradient(self, batch, old, *given)
        asked.append((batch, old, result.logprobs))
        return result

    monkeypatch.setattr(Policy, "gradient", watched)
    policy.learn(found.batch, 0)
    assert all(batch is found.batch for batch, *_ in asked)
    own = asked[0][2]
    assert [old is own for _, old, _ in asked] == [False, True, True] and asked[0][1] is None
    assert not torch.equal(own, asked[1][2])


def test_truncated_completions_are_masked_when_asked(make_context, rewarded):
    context = make_context("grpo.truncated=mask", "rollout.max_tokens=3")
    found = taken(context, gains=[[1.0, -1.0] * 2] * 4)
    cut = [str(c.stop) == "length" for group in found.groups for c in group.completions]
    assert any(cut) and found.batch.counted.any(1).tolist() == [not c for c in cut]


def test_lora_trains_the_adapter_and_keeps_its_own_reference(make_context, rewarded):
    from iad_r1.learn import lora

    context = make_context("tuning=lora", "tuning.rank=4", "grpo.learning_rate=1e-2")
    base = {k: v.clone() for k, v in context.model.state_dict().items()}
    sample = context.dataset.rl[0]
    with lora.adapter(context, "grpo"):
        prompt = Prompter(context.backbone, "iad_r1_test").encode(sample).inputs
        tokens = [[tuple(range(20, 28))]]
        reference = Policy(context, steps=1).reference
        assert reference is not None

        def asked():
            with torch.no_grad(), reference.active() as model:
                assert model is context.model
                return completion_logprobs(model, [prompt], tokens).logprob

        untouched = asked()
        grpo.train(context)
        assert torch.equal(asked(), untouched)
        frozen = [n for n, p in context.model.named_parameters() if not p.requires_grad]
        assert frozen and all("lora_" not in name for name in frozen)
        with torch.no_grad():
            adapted = completion_logprobs(context.model, [prompt], tokens).logprob
    with torch.no_grad():
        merged = completion_logprobs(context.model, [prompt], tokens).logprob
    torch.testing.assert_close(merged, adapted, atol=1e-5, rtol=1e-5)
    changed = [k for k, v in context.model.state_dict().items() if not torch.equal(v, base[k])]
    assert changed and all("language_model.layers" in name for name in changed)
    kept = context.folder.checkpoint("grpo-adapter")
    assert json.loads((kept / "adapter_config.json").read_text())["r"] == 4


@pytest.mark.parametrize(
    "options",
    [
        ["grpo.degenerate_groups=keep"],
        ["grpo.degenerate_groups=skip", "grpo.token_budget=100", "grpo.packing=group"],
        ["grpo.degenerate_groups=skip", "grpo.minibatches=2", "grpo.packing=off"],
    ],
    ids=["whole", "micro-batches", "minibatches"],
)
def test_the_gradient_of_a_step_is_that_of_equation_11(make_context, monkeypatch, options):
    """Against loops over completions and tokens, through the model's own forward."""
    context = make_context("rollout.temperature=0.7", *options)
    rewards = iter([[0.0, 1.0, 1.0, 3.0], [2.0] * 4, [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 2.0, 1.0]])
    monkeypatch.setattr(
        Collector,
        "score",
        lambda self, samples, groups: [[Score(r) for r in next(rewards)] for _ in groups],
    )
    policy, collector = Policy(context, steps=1), Collector(context)
    assert policy.reference is not None and policy.reference.copy is not None
    with torch.no_grad():  # a reference that is not the policy
        for weight in policy.reference.copy.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    drawn = collector.collect(context.dataset.rl[:4], 0, Clock())
    gains, batch = advantages(drawn.rewards_PG()), complete(policy, drawn)
    gradients = []

    def keep_gradient(where):
        parameters = list(context.model.parameters())
        gradients.append(
            torch.cat(
                [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
            )
        )
        context.model.zero_grad(set_to_none=True)
        return {"grad_norm": 0.0, "learning_rate": 0.0}

    monkeypatch.setattr(policy.learner, "update", keep_gradient)
    policy.learn(batch, 0)

    placeholders = torch.tensor(context.backbone.placeholders)

    def plain(model, prompt, tokens):
        hook = model.lm_head.register_forward_hook(
            lambda _m, _i, out: out.index_fill(-1, placeholders, -torch.inf) / 0.7
        )
        try:
            return cases.plain_logprobs(model, prompt.inputs, list(tokens))
        finally:
            hook.remove()

    skipped = {1} if "grpo.degenerate_groups=skip" in options else set()
    parts = [[0, 1], [2, 3]] if "grpo.minibatches=2" in options else [[0, 1, 2, 3]]
    assert len(gradients) == len(parts)
    for part, found in zip(parts, gradients, strict=True):
        live = [group for group in part if group not in skipped]
        context.model.zero_grad(set_to_none=True)
        for group in live:
            for completion, gain in zip(drawn.groups[group].completions, gains[group], strict=True):
                prompt = drawn.prompts[group]
                mine = plain(context.model, prompt, completion.tokens)
                with torch.no_grad():
                    theirs = plain(policy.reference.copy, prompt, completion.tokens)
                ratio, apart = (mine - mine.detach()).exp(), theirs - mine
                per_token = -ratio * gain + 0.02 * (apart.exp() - apart - 1)
                (per_token.mean() / (4 * len(live))).backward()
        expected = torch.cat(
            [
                (torch.zeros_like(p) if p.grad is None else p.grad).flatten()
                for p in context.model.parameters()
            ]
        )
        assert expected.norm() > 1e-3
        assert cases.relative(found, expected) < 2e-5


def test_entropy_is_computed_for_the_loss_alone(make_context, rewarded, monkeypatch):
    """The reference, the old policy and idle ranks are asked for log-probs, and for those alone."""
    asked = []

    def counted(*given, entropy, **more):
        asked.append((torch.is_grad_enabled(), entropy))
        return completion_logprobs(*given, entropy=entropy, **more)

    monkeypatch.setattr("iad_r1.loops.policy.completion_logprobs", counted)
    found = taken(make_context("grpo.minibatches=2"))
    assert asked == [(False, False)] * 2  # reference and old policy
    found.policy.idle(found.batch)
    found.policy.learn(found.batch, 0)
    assert asked[2:] == [(True, False), (True, True), (True, True)]
