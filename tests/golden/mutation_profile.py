"""Pytest plugin for mutation runs (`setup.cfg`).

Hypothesis takes few examples, the same every time, and does not shrink them. Nothing stays
remembered between tests: a result from before the mutation would hide it.
"""

from hypothesis import Phase, settings

from iad_r1 import grid
from iad_r1.rewards.case import read_solution
from iad_r1.rewards.released_types import released_types
from iad_r1.rewards.vocabulary import vocabulary

settings.register_profile(
    "mutation",
    max_examples=30,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
)

REMEMBERED = (grid._parse_cached, read_solution, released_types, vocabulary)


def pytest_runtest_setup() -> None:
    for function in REMEMBERED:
        function.cache_clear()
