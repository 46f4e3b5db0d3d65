"""Consistency (Eq. 2): the completion has the form that the true label asks for."""

from __future__ import annotations

from iad_r1.rewards.case import Case
from iad_r1.schema import Status


def score(case: Case) -> float:
    """1.0 for a well-formed completion whose own answer agrees with its form and with the label.

    A defect takes think, location, type and answer; a normal image think and answer only. Stricter
    than the released pattern: nothing outside the tags, no tag twice, none empty, and no form that
    its own answer contradicts.
    """
    parsed = case.parsed
    agrees = parsed.verdict == case.solution.answer.lower()
    return float(agrees and parsed.status is Status.OK)
