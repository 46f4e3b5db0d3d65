"""Rewards: what a completion earns, as pure functions of its text and the solution.

    score = rewards.load("sc_grpo", grid="3x3").score(completion, solution)
    score.total, score.parts["location"]

Kept stable, for scripts outside this repository: `load(name).score(completion, solution)` with
plain strings, its `total` and `parts` (named as in the set's YAML; `sc_grpo_released` has
`consistency` and `accuracy`), the names of the sets, `type_score(predicted, actual, released=)`
and `grid.location_score(predicted, actual, grid=, released=)`. Importing either loads no torch.

The sets are `conf/rewards/*.yaml`; their components are the files of `components/`; the types they
know are `vocabularies/default.yaml` or a file of the user's own.
"""

from __future__ import annotations

from iad_r1.rewards.files import names
from iad_r1.rewards.released_types import released_types
from iad_r1.rewards.sets import RewardSet, load
from iad_r1.rewards.vocabulary import Vocabulary, vocabulary
from iad_r1.settings.rewards import RewardsConfig

__all__ = ["RewardSet", "RewardsConfig", "Vocabulary", "load", "names", "type_score", "vocabulary"]


def type_score(
    predicted: str, actual: str, released: bool = False, types: str = "default"
) -> float:
    """Eq. 5: what naming the type `predicted` is worth when `actual` is true, 0.0 to 1.0.

    `types` names the vocabulary (see `Vocabulary.score`). `released=True` is IAD-R1's published
    matcher with its own word list, substrings and fuzzy matches included.
    """
    if released:
        return released_types().score(predicted, actual)
    return vocabulary(types).score(predicted, actual)
