"""Any completion is scored in time linear in its length, and a batch in a few milliseconds."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable

import pytest

from bench.rewards import CONTEXTS, PIECES, SETS, Recipe, build, solution_for, typical
from iad_r1 import rewards, schema
from iad_r1.rewards.components.choice import letters

LENGTH = 100_000  # here; bench/rewards.py searches at 200,000
LONGEST = 200_000
LIMIT = 2.8  # twice as much where it is linear, four times where it is quadratic: between the two
# Each makes one of the released patterns, or an earlier version of ours, quadratic.
KNOWN_WORST: tuple[Recipe, ...] = (
    ("<answer>", "", ""),
    ("<think>", "", "</think>"),
    ("<think></think>", "", "<answer>"),
    ("</think><answer>", "<think>", ""),
    ("<location>\n", "", ""),
    ("\n", "<answer>", "</answer>"),
    (" ", "<think></think>", "x"),
    ("A ", "<think>", "</think><answer>A</answer>"),
    ("A ", "<think>A</think><answer>", "</answer>"),
    ("row 1 ", "<think>x</think><location>", "</location><type>hole</type><answer>Yes</answer>"),
    ("scratch ", "<think>x</think><location>top</location><type>", "</type><answer>Yes</answer>"),
)


def seconds(call: Callable[[], object]) -> float:
    """Processor time of the fastest of three calls, garbage collection aside."""
    times = []
    gc.disable()
    try:
        for _ in range(3):
            start = time.process_time()
            call()
            times.append(time.process_time() - start)
    finally:
        gc.enable()
    return min(times)


def doubling(call: Callable[[str], object], recipe: Recipe) -> float:
    """Time at LENGTH over time at half of it; on a busy machine the best of up to four tries."""
    long, short = build(recipe, LENGTH), build(recipe, LENGTH // 2)
    floor = 2e-4  # below this a clock tick decides
    best = math.inf
    for _ in range(4):
        ratio = max(seconds(lambda: call(long)), floor) / max(seconds(lambda: call(short)), floor)
        best = min(best, ratio)
        if best <= LIMIT:
            break
    return best


@pytest.mark.parametrize("name", SETS)
def test_doubling_the_length_at_most_doubles_the_time(name: str) -> None:
    chosen = rewards.load(name)
    truth = solution_for(chosen)
    for recipe in KNOWN_WORST:
        assert doubling(lambda text: chosen.score(text, truth), recipe) <= LIMIT, recipe


@pytest.mark.parametrize(
    "read",
    [
        schema.parse,
        letters,
        lambda text: schema.read_answer(text, "iadr1_compat"),
        lambda text: schema.read_answer(text, "mmad_compat"),
        lambda text: schema.read_answer(text, options={"A": "a hole", "B": "b"}),
    ],
    ids=["parse", "letters", "iadr1_compat", "mmad_compat", "strict letters"],
)
def test_parsers_and_evaluators_are_linear_too(read: Callable[[str], object]) -> None:
    for recipe in (*KNOWN_WORST, ("ab", "", ""), ("é", "", ""), (".", "", "")):
        assert doubling(read, recipe) <= LIMIT, recipe


@pytest.mark.parametrize("name", SETS)
def test_no_long_completion_takes_a_second(name: str) -> None:
    chosen = rewards.load(name)
    truth = solution_for(chosen)
    for number, piece in enumerate(PIECES):
        text = build((piece, *CONTEXTS[number % len(CONTEXTS)]), LONGEST)
        start = time.process_time()
        chosen.score(text, truth)
        assert time.process_time() - start < 1.0, piece


@pytest.mark.parametrize("name", ["sc_grpo", "sc_grpo_released"])
def test_four_groups_of_eight_are_scored_in_well_under_five_milliseconds(name: str) -> None:
    chosen, pairs = rewards.load(name), typical(32)
    assert seconds(lambda: [chosen.score(*pair) for pair in pairs]) < 0.005
