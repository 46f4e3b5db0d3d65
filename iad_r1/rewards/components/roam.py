"""Reasoned outcome alignment (ROAM) of AnomalyR1, strict: reasoning must bear the answer out."""

from __future__ import annotations

from iad_r1.rewards.case import Case
from iad_r1.rewards.components.choice import answered, letters
from iad_r1.schema import parse


def score(
    case: Case, both_right: float, right_alone: float, wrong_alone: float, both_wrong: float
) -> float:
    """What the answer and the conclusion of the reasoning, both letters, are worth together.

    The conclusion is the last option letter named in think. `both_right` and `both_wrong` are paid
    when it equals the answer, `right_alone` and `wrong_alone` when think names no letter. Reasoning
    that concludes otherwise than it answers, and a malformed completion, earn 0.0.
    """
    answer = answered(case.completion)
    if answer is None:
        return 0.0
    right = answer == case.letter
    named = letters(parse(case.completion).think or "")
    if not named:
        return right_alone if right else wrong_alone
    if named[-1] != answer:
        return 0.0
    return both_right if right else both_wrong
