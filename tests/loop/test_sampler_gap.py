"""Rounding in bfloat16 passes between sampler and trainer; another policy does not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from bench import sampler_gap
from bench.sampler_gap import Step, peaked_twin
from iad_r1.backbones.float32_head import Float32Head
from iad_r1.rollouts.gap import LIMITS, SPREAD, Gap, Limits, limits, logit_spread
from iad_r1.rollouts.sampling import Sampling
from iad_r1.settings.training import GapLimit

LIMIT = LIMITS[torch.bfloat16]
UNSET = GapLimit(mean=None, high=None)


@pytest.fixture(scope="module")
def step(tmp_path_factory) -> Step:
    """Completions of a bfloat16 policy that was trained until it was peaked."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler_gap, "LESSONS", 30)
        patch.setattr(sampler_gap, "TOKENS", 16)
        backbone = peaked_twin(tmp_path_factory.mktemp("peaked"), 2, torch.bfloat16, "trained")
    asked = sampler_gap.prompts(backbone, sampler_gap.PROMPTS)
    sampling = Sampling(sampler_gap.GROUP, 16, 1.0)
    return Step(backbone, asked, sampler_gap.draw(backbone, asked, sampling, sampler_gap.SEARCHED))


def test_the_policy_is_peaked_as_a_trained_one_is(step):
    found = sampler_gap.entropy(step.backbone, step.asked, step.groups)
    assert found == pytest.approx(0.3, rel=0.1)
    assert logit_spread(step.backbone.model) < SPREAD


def test_a_policy_that_cannot_be_peaked_is_refused(step, monkeypatch):
    monkeypatch.setattr(sampler_gap, "SEARCH", 2)
    monkeypatch.setattr(sampler_gap, "TOKENS", 4)
    norm = step.backbone.model.model.language_model.norm.weight
    saved = norm.detach().clone()
    try:
        with pytest.raises(RuntimeError, match=r"gives an entropy of 0\.3 nats: the nearest is"):
            sampler_gap.sharpen(step.backbone)
    finally:
        with torch.no_grad():
            norm.copy_(saved)


def test_a_peaked_bfloat16_policy_is_within_the_limits_of_its_own_trainer(step):
    gap = Gap.of(torch.cat(step.healthy))
    assert gap.tokens > 40 and gap.within(LIMIT)
    assert gap.largest > 1e-3, "nothing was rounded"


@pytest.mark.parametrize("fault", ["layer", "stale", "temperature", "completion"])
def test_a_fault_is_refused_with_its_figures_and_their_limits(step, fault):
    gap = Gap.of(torch.cat(sampler_gap.FAULTS[fault](step, 0.5)))
    assert not gap.within(LIMIT)
    said = gap.against(LIMIT)
    assert f"{gap.mean:.3g} nats on average (limit {LIMIT.mean:g})" in said
    assert f"{gap.high:.3g} at the 95% quantile (limit {LIMIT.high:g})" in said
    assert f"of {gap.tokens} tokens, at most {gap.largest:.3g}" in said


def test_one_wild_token_does_not_stop_a_run_and_a_twentieth_of_them_does():
    apart = torch.full((200,), 0.01)
    apart[0] = 1.0
    assert Gap.of(apart).within(LIMIT) and Gap.of(apart).largest == 1.0
    apart[:11] = 0.3
    gap = Gap.of(apart)
    assert gap.mean < LIMIT.mean and not gap.within(LIMIT)


def test_what_is_not_a_number_is_infinitely_far_apart():
    gap = Gap.of(torch.tensor([0.0, math.nan]))
    assert gap.mean == gap.high == gap.largest == math.inf and not gap.within(LIMIT)


def test_the_settings_replace_one_limit_or_both(step):
    asked, model = GapLimit(mean=0.5, high=None), step.backbone.model
    assert limits(asked, model) == Limits(0.5, LIMIT.high)
    assert limits(UNSET, model) == LIMIT


def test_limits_grow_with_the_spread_of_the_logits_and_never_below_it(step):
    model = step.backbone.model
    norm, before = model.model.language_model.norm.weight, logit_spread(model)
    logits = model(**step.asked[0].inputs).logits[0]
    assert before == pytest.approx(logits.std(-1).mean().item(), rel=0.5)
    saved = norm.detach().clone()
    try:
        for size in (0.01, 8.0):
            with torch.no_grad():
                norm.copy_(saved * size * SPREAD / before)
            wide = max(1.0, size)
            found = limits(UNSET, model)
            assert found.mean == pytest.approx(wide * LIMIT.mean, rel=0.02)
            assert found.high == pytest.approx(wide * LIMIT.high, rel=0.02)
            assert limits(GapLimit(mean=0.5, high=0.6), model) == Limits(0.5, 0.6)
    finally:
        with torch.no_grad():
            norm.copy_(saved)


# --- the output layer in float32 -----------------------------------------------------------------


def heads(dtype: torch.dtype) -> tuple[nn.Linear, Float32Head, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    plain, ours = nn.Linear(64, 96, bias=False), Float32Head(64, 96, bias=False)
    ours.load_state_dict(plain.state_dict())
    states = torch.randn(2, 5, 64, generator=generator)
    return plain.to(dtype), ours.to(dtype), states.to(dtype).requires_grad_()


def test_logits_of_bfloat16_weights_are_not_rounded_to_bfloat16():
    plain, ours, states = heads(torch.bfloat16)
    found = ours(states)
    exact = nn.functional.linear(states.double(), plain.weight.double())
    assert found.dtype == torch.float32
    assert (found - exact).abs().max() < 1e-5 < (plain(states) - exact).abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_those_of_the_plain_layer(dtype):
    plain, ours, states = heads(dtype)
    towards = torch.randn(2, 5, 96, generator=torch.Generator().manual_seed(1)).to(dtype).float()
    expected = torch.autograd.grad((plain(states).float() * towards).sum(), [states, plain.weight])
    found = torch.autograd.grad((ours(states).float() * towards).sum(), [states, ours.weight])
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one, other, rtol=0 if dtype == torch.float32 else 1e-2, atol=0)


def test_float32_weights_give_the_same_bits_as_before():
    plain, ours, states = heads(torch.float32)
    assert torch.equal(ours(states), plain(states))


def test_sampler_and_trainer_share_the_float32_output_layer(step):
    model = step.backbone.model
    assert isinstance(model.lm_head, Float32Head) and model.lm_head.weight.dtype == torch.bfloat16
    assert model(**step.asked[0].inputs).logits.dtype == torch.float32
