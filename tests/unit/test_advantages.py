"""Advantages: the equations, what they are invariant to, and what they refuse."""

import math
import statistics

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from iad_r1.errors import TrainingError
from iad_r1.objective.advantages import advantages, is_degenerate

KINDS = ["group_std", "no_std", "leave_one_out", "batch_std"]
reward = st.integers(-400, 400).map(lambda n: n / 100)
groups = st.lists(st.lists(reward, min_size=2, max_size=8), min_size=1, max_size=5)


def test_group_std_is_the_papers_equation_with_the_sample_deviation():
    group = [0.0, 1.0, 1.0, 3.0]
    mean, std = 1.25, statistics.stdev(group)
    expected = [(r - mean) / (std + 1e-4) for r in group]
    assert advantages([group]) == [pytest.approx(expected)]


def test_two_completions_and_one():
    assert advantages([[0.0, 1.0], [5.0]]) == [
        pytest.approx([-0.5 / (math.sqrt(0.5) + 1e-4), 0.5 / (math.sqrt(0.5) + 1e-4)]),
        [0.0],
    ]


@pytest.mark.parametrize("kind", ["group_std", "batch_std"])
def test_without_eps_equal_rewards_are_no_division_by_zero(kind):
    assert advantages([[1.0, 1.0], [1.0, 1.0]], kind, eps=0.0) == [[0.0, 0.0], [0.0, 0.0]]


def test_no_std_only_centres():
    assert advantages([[0.0, 1.0, 1.0, 3.0]], "no_std") == [[-1.25, -0.25, -0.25, 1.75]]


def test_leave_one_out_compares_with_the_mean_of_the_others():
    group = [0.0, 1.0, 1.0, 3.0]
    others = [statistics.mean(group[:i] + group[i + 1 :]) for i in range(4)]
    expected = [r - o for r, o in zip(group, others, strict=True)]
    assert advantages([group], "leave_one_out") == [pytest.approx(expected)]


def test_batch_std_divides_by_the_deviation_of_all_rewards():
    batch = [[0.0, 1.0], [2.0, 6.0]]
    std = statistics.stdev([0.0, 1.0, 2.0, 6.0]) + 1e-4
    got = advantages(batch, "batch_std")
    assert got == [pytest.approx([-0.5 / std, 0.5 / std]), pytest.approx([-2 / std, 2 / std])]


@pytest.mark.parametrize("kind", KINDS)
@given(batch=groups, shift=st.integers(-50, 50))
def test_adding_a_constant_to_every_reward_changes_nothing(kind, batch, shift):
    moved = advantages([[r + shift for r in g] for g in batch], kind)
    for got, expected in zip(moved, advantages(batch, kind), strict=True):
        assert got == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", ["group_std", "batch_std"])
@given(batch=groups, scale=st.integers(1, 50))
def test_scaling_every_reward_changes_nothing_once_divided_by_the_deviation(kind, batch, scale):
    assume(all(not is_degenerate(g) for g in batch))
    scaled = advantages([[r * scale for r in g] for g in batch], kind, eps=0.0)
    for got, expected in zip(scaled, advantages(batch, kind, eps=0.0), strict=True):
        assert got == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@given(batch=groups)
def test_advantages_of_a_group_sum_to_zero_and_keep_the_order_of_rewards(kind, batch):
    for values, group in zip(advantages(batch, kind), batch, strict=True):
        assert math.fsum(values) == pytest.approx(0.0, abs=1e-6)
        by_reward = [a for _, a in sorted(zip(group, values, strict=True))]
        assert by_reward == sorted(values)


@pytest.mark.parametrize("kind", KINDS)
def test_a_group_that_earned_the_same_gets_exact_zeros(kind):
    # 3 * 0.1 does not average to 0.1 in floating point; the answer must be 0 all the same
    assert advantages([[0.1, 0.1, 0.1]], kind) == [[0.0, 0.0, 0.0]]
    assert is_degenerate([0.1, 0.1, 0.1]) and not is_degenerate([0.1, 0.2])


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "batch_std"])
def test_groups_do_not_see_each_other(kind):
    alone = advantages([[1.0, 2.0, 4.0]], kind)[0]
    assert advantages([[9.0, -9.0], [1.0, 2.0, 4.0]], kind)[1] == alone


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_a_reward_that_is_no_number_stops_and_names_the_completion(kind, bad):
    with pytest.raises(TrainingError, match="group 1, completion 2"):
        advantages([[1.0, 2.0], [0.0, 1.0, bad]], kind)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(TrainingError, match="group 0 has one completion"):
        advantages([[1.0]], "leave_one_out")
    with pytest.raises(TrainingError, match="group 1 of the batch has no completion"):
        advantages([[1.0, 2.0], []])
    assert advantages([[1.0]], "group_std") == [[0.0]]
