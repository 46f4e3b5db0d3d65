"""The objective: equations, limits, and that no bookkeeping changes a gradient."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from iad_r1.objective.losses import (
    LossStats,
    importance_weights,
    kl_per_token,
    policy_loss,
    token_logprobs,
)

AGGREGATIONS = ["sequence_mean", "token_mean", "fixed_length"]
TOKEN: dict[str, Any] = {"level": "token", "mode": "truncate", "cap": 2.0}
SEQUENCE: dict[str, Any] = dict(TOKEN, level="sequence")
PAPER: dict[str, Any] = {"clip_low": 0.2, "clip_high": 0.2, "kl_coef": 0.04}


def batch(rows: int, tokens: int, seed: int = 0) -> dict[str, Any]:
    """Log-probs, advantages and a ragged mask (every row has at least one token)."""
    rng = torch.Generator().manual_seed(seed)

    def values(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    lengths = torch.randint(1, tokens + 1, (rows,), generator=rng)
    logp = -values(rows, tokens).abs()
    return {
        "logp": logp,
        "old_logp": logp + 0.3 * values(rows, tokens),
        "ref_logp": logp + 0.3 * values(rows, tokens),
        "advantage": values(rows),
        "entropy": values(rows, tokens).abs(),
        "mask": torch.arange(tokens) < lengths[:, None],
    }


def counts(mask: torch.Tensor) -> dict[str, Any]:
    return {"n_sequences": len(mask), "n_tokens": int(mask.sum()), "max_tokens": mask.shape[1]}


def reference_loss(data: dict[str, torch.Tensor], aggregation: str, kl_kind: str) -> float:
    """The equations written as loops, one token at a time."""
    rows = []
    for i, mask in enumerate(data["mask"].tolist()):
        terms = []
        for t, counted in enumerate(mask):
            if not counted:
                continue
            logp, old, ref = (float(data[k][i, t]) for k in ("logp", "old_logp", "ref_logp"))
            ratio, gain = math.exp(logp - old), float(data["advantage"][i])
            clipped = min(max(ratio, 0.8), 1.28)
            d = ref - logp
            kl = {"k1": -d, "k2": d * d / 2, "k3": math.exp(d) - d - 1}[kl_kind]
            terms.append(-min(ratio * gain, clipped * gain) + 0.04 * kl)
        rows.append(terms)
    if aggregation == "sequence_mean":
        return sum(sum(r) / len(r) for r in rows) / len(rows)
    if aggregation == "token_mean":
        return sum(map(sum, rows)) / sum(map(len, rows))
    return sum(map(sum, rows)) / (len(rows) * data["mask"].shape[1])


@pytest.mark.parametrize("kl_kind", ["k1", "k2", "k3"])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_the_loss_is_the_equation_token_by_token(aggregation, kl_kind):
    data = batch(5, 7)
    loss, _ = policy_loss(
        **data,
        clip_low=0.2,
        clip_high=0.28,
        kl_coef=0.04,
        kl_kind=kl_kind,
        aggregation=aggregation,
        **counts(data["mask"]),
    )
    assert float(loss) == pytest.approx(reference_loss(data, aggregation, kl_kind), rel=1e-12)


def gradient(data, split: int, aggregation: Any) -> tuple[torch.Tensor, LossStats]:
    """d loss / d logp with the rows cut into micro-batches of `split`, one backward each."""
    logp = data["logp"].clone().requires_grad_()
    stats = []
    for start in range(0, len(logp), split):
        rows = slice(start, start + split)
        part = {k: v[rows] for k, v in data.items() if k != "logp"}
        loss, stat = policy_loss(
            logp[rows], **part, **PAPER, aggregation=aggregation, **counts(data["mask"])
        )
        loss.backward()
        stats.append(stat)
    total = stats[0]
    for stat in stats[1:]:
        total = total + stat
    assert logp.grad is not None
    return logp.grad, total


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@given(st.integers(1, 6), st.integers(1, 7), st.integers(1, 6), st.integers(0, 2**16))
@settings(max_examples=25, deadline=None)
def test_gradient_and_statistics_do_not_depend_on_the_micro_batches(
    aggregation, rows, tokens, split, seed
):
    data = batch(rows, tokens, seed)
    whole, stats = gradient(data, rows, aggregation)
    parts, joined = gradient(data, split, aggregation)
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=0)
    assert joined.scalars() == pytest.approx(stats.scalars(), rel=1e-5)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@given(st.integers(1, 6), st.integers(2, 7), st.integers(0, 2**16))
@settings(max_examples=25, deadline=None)
def test_masked_tokens_get_no_gradient_whatever_they_hold(aggregation, rows, tokens, seed):
    data = batch(rows, tokens, seed)
    mask = data["mask"]
    clean, _ = gradient(data, rows, aggregation)
    assert torch.count_nonzero(clean[~mask]) == 0
    for name, junk in (("old_logp", -torch.inf), ("ref_logp", torch.inf), ("logp", torch.nan)):
        data[name] = data[name].masked_fill(~mask, junk)
    dirty, _ = gradient(data, rows, aggregation)
    torch.testing.assert_close(dirty[mask], clean[mask], rtol=0, atol=0)
    assert torch.count_nonzero(dirty[~mask]) == 0


def test_one_update_per_batch_has_a_ratio_of_exactly_one():
    data = batch(4, 6)
    data["old_logp"] = None
    _, stats = policy_loss(**data, **PAPER, **counts(data["mask"]))
    scalars = stats.scalars()
    assert scalars["ratio_min"] == scalars["ratio_mean"] == scalars["ratio_max"] == 1.0
    assert scalars["clip_fraction_low"] == scalars["clip_fraction_high"] == 0.0


def test_with_ratio_one_the_gradient_is_that_of_plain_policy_gradient():
    data = batch(4, 6)
    logp = data["logp"].clone().requires_grad_()
    n = counts(data["mask"])
    loss, _ = policy_loss(
        logp, None, None, data["advantage"], data["mask"], clip_low=0.2, clip_high=0.2,
        kl_coef=0.0, aggregation="token_mean", **n,
    )  # fmt: skip
    loss.backward()
    expected = -data["advantage"][:, None] * data["mask"] / n["n_tokens"]
    torch.testing.assert_close(logp.grad, expected)


@pytest.mark.parametrize(
    ("log_ratio", "gain", "low", "high", "moves"),
    [
        (0.5, 1.0, 0, 1, False),  # already likelier than 1 + clip_high and still rewarded: stop
        (0.5, -1.0, 0, 0, True),  # likelier but punished: pull back
        (-0.5, -1.0, 1, 0, False),  # already rarer than 1 - clip_low and still punished: stop
        (-0.5, 1.0, 0, 0, True),  # rarer but rewarded: push
        (-0.5, 0.5, 0, 0, True),  # however small the reward
        (0.1, 1.0, 0, 0, True),  # inside the trust region
        (0.5, 0.0, 0, 0, False),  # neither rewarded nor punished: nothing to stop
        (-0.5, 0.0, 0, 0, False),
    ],
)
def test_clipping_stops_only_the_side_that_moves_further_away(log_ratio, gain, low, high, moves):
    logp = torch.zeros(1, 1, requires_grad=True)
    loss, stats = policy_loss(
        logp, torch.full((1, 1), -log_ratio), None, torch.tensor([gain]),
        torch.ones(1, 1, dtype=torch.bool), clip_low=0.2, clip_high=0.28, kl_coef=0.0,
        n_sequences=1, n_tokens=1,
    )  # fmt: skip
    loss.backward()
    assert logp.grad is not None and bool(logp.grad.abs() > 0) is moves
    scalars = stats.scalars()
    assert (scalars["clip_fraction_low"], scalars["clip_fraction_high"]) == (low, high)


def test_a_ratio_at_the_very_bound_is_not_counted_as_clipped():
    ratio = torch.tensor([[0.5], [2.0]], dtype=torch.float64)
    _, stats = policy_loss(
        ratio.log(), torch.zeros(2, 1), None, torch.tensor([-1.0, 1.0]),
        torch.ones(2, 1, dtype=torch.bool), clip_low=0.5, clip_high=1.0, kl_coef=0.0,
        n_sequences=2, n_tokens=2,
    )  # fmt: skip
    scalars = stats.scalars()
    assert (scalars["ratio_min"], scalars["ratio_max"]) == (0.5, 2.0)
    assert scalars["clip_fraction_low"] == scalars["clip_fraction_high"] == 0


def test_advantages_of_another_precision_do_not_change_that_of_the_loss():
    logp, mask = torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool)
    loss, _ = policy_loss(
        logp, None, None, torch.ones(1, dtype=torch.float64), mask, clip_low=0.2, clip_high=0.2,
        kl_coef=0.0, n_sequences=1, n_tokens=1,
    )  # fmt: skip
    assert loss.dtype == torch.float32


def test_what_is_logged_is_a_share_of_the_tokens_that_count():
    ratio = torch.tensor([[0.5, 0.7, 1.0, 1.5], [1.6, 1.7, 1.1, 9.0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]).bool()
    logp = ratio.log()
    entropy = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 100.0]])
    _, stats = policy_loss(
        logp, torch.zeros(2, 4), logp - 0.5, torch.tensor([-1.0, 1.0]), mask, clip_low=0.2,
        clip_high=0.2, kl_coef=0.1, kl_kind="k1", n_sequences=2, n_tokens=7, entropy=entropy,
    )  # fmt: skip
    assert stats.scalars() == pytest.approx(
        {
            "clip_fraction_low": 2 / 7,
            "clip_fraction_high": 2 / 7,
            "ratio_min": 0.5,
            "ratio_mean": 8.1 / 7,
            "ratio_max": 1.7,
            "kl": 0.5,
            "entropy": 4.0,
        }
    )


def test_asymmetric_clip_uses_each_bound_on_its_own_side():
    logp = torch.tensor([[0.24, -0.24]])  # ratios 1.271 and 0.787
    old, mask = torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool)
    kwargs: dict[str, Any] = {"kl_coef": 0.0, "n_sequences": 1, "n_tokens": 2}
    args = (logp, old, None, torch.tensor([1.0]), mask)
    _, wide = policy_loss(*args, clip_low=0.2, clip_high=0.28, **kwargs)
    _, tight = policy_loss(*args, clip_low=0.2, clip_high=0.2, **kwargs)
    assert wide.scalars()["clip_fraction_high"] == 0
    assert tight.scalars()["clip_fraction_high"] == 0.5


def test_kl_estimators_agree_on_the_true_divergence():
    policy, reference = torch.tensor([0.5, 0.3, 0.2]).log(), torch.tensor([0.4, 0.4, 0.2]).log()
    true = float((policy.exp() * (policy - reference)).sum())
    for kind in ("k1", "k3"):
        estimate = (policy.exp() * kl_per_token(policy, reference, kind)).sum()
        assert float(estimate) == pytest.approx(true, rel=1e-5)
    k2 = (policy.exp() * kl_per_token(policy, reference, "k2")).sum()
    assert float(k2) == pytest.approx(true, rel=0.1)  # biased, second order
    assert (kl_per_token(policy, reference, "k3") >= 0).all()
    assert torch.count_nonzero(kl_per_token(policy, policy, "k3")) == 0


def test_a_reference_is_asked_for_exactly_when_it_is_used():
    data = batch(2, 3)
    with pytest.raises(ValueError, match="reference"):
        policy_loss(**(data | {"ref_logp": None}), **PAPER, **counts(data["mask"]))
    with pytest.raises(ValueError, match="reference"):
        policy_loss(**data, **(PAPER | {"kl_coef": 0.0}), **counts(data["mask"]))
    with pytest.raises(ValueError, match="max_tokens"):
        policy_loss(
            **data, **PAPER, aggregation="fixed_length", n_sequences=2, n_tokens=5
        )  # fmt: skip


def test_a_fully_masked_row_adds_nothing_and_is_no_division_by_zero():
    data = batch(3, 4)
    data["mask"][1] = False
    for aggregation in AGGREGATIONS:
        grad, _ = gradient(data, 3, aggregation)
        assert torch.isfinite(grad).all() and torch.count_nonzero(grad[1]) == 0


# ---------------------------------------------------------------------------- token_logprobs


@pytest.mark.parametrize("chunk", [1, 3, 10, 64])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_entropy_and_gradients_do_not_depend_on_the_chunk(chunk, temperature):
    torch.manual_seed(0)
    hidden = torch.randn(10, 8, dtype=torch.float64)
    weight = torch.randn(31, 8, dtype=torch.float64)
    targets = torch.randint(31, (10,))
    mix = torch.randn(10)

    def run(compute):
        states, head = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        logp, entropy = compute(states, head)
        (logp * mix).sum().backward()
        return logp.detach(), entropy, states.grad, head.grad

    def plain(states, head):
        logps = F.log_softmax((states @ head.T).float() / temperature, -1)
        entropy = torch.distributions.Categorical(logits=logps.detach()).entropy()
        return logps[range(10), targets], entropy

    def chunked(states, head):
        return token_logprobs(states, head, targets, temperature=temperature, chunk=chunk)

    got = run(chunked)
    for value, expected in zip(got, run(plain), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    with torch.no_grad():  # nothing is computed twice then, and nothing is different
        assert all(map(torch.equal, chunked(hidden, weight), got[:2]))


class Largest(TorchDispatchMode):
    """The most elements any operation returned while this was active."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return result


def test_no_tensor_is_larger_than_one_chunk_of_the_vocabulary_and_none_is_kept():
    tokens, vocabulary, chunk = 64, 1000, 8
    head = torch.nn.Linear(4, vocabulary, bias=False)
    hidden = torch.randn(tokens, 4, requires_grad=True)
    targets = torch.zeros(tokens, dtype=torch.long)
    kept: list[int] = []

    def record(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.numel() >= vocabulary and tensor is not head.weight:
            kept.append(tensor.numel())
        return tensor

    with Largest() as seen, torch.autograd.graph.saved_tensors_hooks(record, lambda t: t):
        logp, _ = token_logprobs(hidden, head, targets, chunk=chunk)
        logp.sum().backward()
    assert not kept, "logits were kept for the backward pass"
    assert seen.elements == chunk * vocabulary


def test_what_fits_into_one_chunk_is_computed_once():
    calls: list[int] = []
    weight = torch.randn(9, 4)

    def head(states: torch.Tensor) -> torch.Tensor:
        calls.append(len(states))
        return states @ weight.T

    for chunk, expected in ((6, [6]), (4, [4, 2, 4, 2])):  # forward, then again in the backward
        calls.clear()
        hidden = torch.randn(6, 4, requires_grad=True)
        token_logprobs(hidden, head, torch.arange(6), chunk=chunk)[0].sum().backward()
        assert sorted(calls) == sorted(expected)


def test_states_and_targets_of_unequal_length_are_no_table():
    with pytest.raises(ValueError, match="shorter"):
        token_logprobs(torch.randn(7, 4), torch.randn(9, 4), torch.arange(4), chunk=3)


def test_bfloat16_logits_are_normalised_in_float32():
    head = torch.nn.Linear(16, 5000, bias=False).bfloat16()
    hidden = torch.randn(7, 16).bfloat16()
    logp, entropy = token_logprobs(hidden, head, torch.arange(7), chunk=7)
    assert logp.dtype == entropy.dtype == torch.float32
    expected = F.log_softmax(head(hidden).float(), -1)[range(7), range(7)]
    torch.testing.assert_close(logp, expected)


def test_entropy_can_be_left_out_and_survives_impossible_tokens():
    weight, hidden = torch.eye(4), torch.tensor([[0.0, 0.0, -torch.inf, -torch.inf]])
    target = torch.tensor([0])
    # a linear layer would make NaN of 0 * inf, so the head is a function here
    _, entropy = token_logprobs(hidden, lambda x: x, target, chunk=8)
    assert float(entropy) == pytest.approx(math.log(2))
    _, skipped = token_logprobs(torch.ones(1, 4), weight, target, chunk=8, entropy=False)
    assert float(skipped) == 0.0


# ---------------------------------------------------------------------------- importance weights


def sampler_gap() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    trainer = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, -1.0, 9.0]], requires_grad=True)
    sampler = torch.tensor([[-1.0, -3.5, -2.0], [-1.5, -1.5, -9.0]])
    return trainer, sampler, torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()


def test_token_weights_are_truncated_or_dropped_above_the_cap():
    trainer, sampler, mask = sampler_gap()
    e = math.exp
    raw = torch.tensor([[1.0, e(1.5), e(-1.0)], [e(0.5), e(0.5), 1.0]])
    cut, stats = importance_weights(trainer, sampler, mask, **TOKEN)
    torch.testing.assert_close(cut, raw.clamp(max=2.0))
    dropped, _ = importance_weights(trainer, sampler, mask, **dict(TOKEN, mode="mask"))
    torch.testing.assert_close(dropped, torch.where(raw <= 2.0, raw, 0.0))
    assert not cut.requires_grad
    assert stats.scalars() == pytest.approx(
        {
            "importance_min": e(-1.0),
            "importance_mean": (1 + e(1.5) + e(-1.0) + 2 * e(0.5)) / 5,
            "importance_max": e(1.5),  # raw, before the cap
            "importance_capped": 1 / 5,
            "sampler_gap_max": 1.5,
            "sampler_gap_mean": (0 + 1.5 + 1 + 0.5 + 0.5) / 5,
        }
    )


def test_sequence_weights_use_the_whole_sequence():
    trainer, sampler, mask = sampler_gap()
    weights, stats = importance_weights(trainer, sampler, mask, **SEQUENCE)
    torch.testing.assert_close(weights, torch.tensor([[math.exp(0.5)], [2.0]]))
    scalars = stats.scalars()
    assert scalars["importance_max"] == pytest.approx(math.e)
    assert scalars["importance_mean"] == pytest.approx((math.e + math.exp(0.5)) / 2)
    assert scalars["importance_capped"] == 1 / 2
    assert scalars["sampler_gap_mean"] == pytest.approx(3.5 / 5)  # still of tokens
    dropped, _ = importance_weights(trainer, sampler, mask, **dict(SEQUENCE, mode="mask"))
    torch.testing.assert_close(dropped, torch.tensor([[math.exp(0.5)], [0.0]]))


def test_off_still_reports_the_raw_mismatch():
    trainer, sampler, mask = sampler_gap()
    weights, stats = importance_weights(trainer, sampler, mask, **dict(TOKEN, level="off"))
    assert weights.shape == mask.shape and (weights == 1).all()
    assert stats.scalars()["importance_max"] > 2


def test_a_weight_of_exactly_the_cap_is_kept():
    one = torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1, 1).bool()
    weights, stats = importance_weights(*one, level="token", mode="mask", cap=1.0)
    assert weights.item() == 1.0 and stats.scalars()["importance_capped"] == 0.0


@pytest.mark.parametrize("level", ["off", "token", "sequence"])
def test_importance_statistics_of_parts_join_to_those_of_the_whole(level):
    data = batch(6, 5)
    data["mask"][2] = False  # a sequence that does not count has no ratio
    args = data["logp"], data["old_logp"], data["mask"]
    _, whole = importance_weights(*args, level=level, mode="truncate", cap=1.1)
    parts = [
        importance_weights(*(a[rows] for a in args), level=level, mode="mask", cap=1.1)[1]
        for rows in (slice(0, 2), slice(2, 3), slice(3, 6))
    ]
    assert parts[1].scalars() == {}
    unlikely = torch.full((1, 2), -3.0), torch.full((1, 2), -1.0), torch.ones(1, 2).bool()
    low = importance_weights(*unlikely, level=level, mode="mask", cap=1.0)[1]
    assert (parts[1] + low).scalars() == low.scalars()
    assert (parts[0] + parts[1] + parts[2]).scalars() == pytest.approx(whole.scalars())
    with pytest.raises(ValueError, match="importance mode 'cut'"):
        mode: Any = "cut"
        importance_weights(*args, level="token", mode=mode, cap=1.0)


def test_equal_engines_weigh_exactly_one_and_weights_scale_the_policy_term_only():
    data = batch(3, 4)
    ones, _ = importance_weights(data["logp"], data["logp"], data["mask"], **TOKEN)
    assert (ones == 1).all()
    n = counts(data["mask"])
    base, _ = policy_loss(**data, **PAPER, **n)
    doubled, _ = policy_loss(**data, **PAPER, **n, importance=ones * 2)
    without_kl, _ = policy_loss(
        **(data | {"ref_logp": None}), **(PAPER | {"kl_coef": 0.0}), **n
    )  # fmt: skip
    assert float(doubled - base) == pytest.approx(float(without_kl), rel=1e-6)
