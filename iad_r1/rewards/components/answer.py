"""Answer accuracy (Eq. 3): the one answer tag holds the true label."""

from __future__ import annotations

from iad_r1.rewards.case import Case


def score(case: Case) -> float:
    """1.0 if the whole text of the only answer tag is the true "Yes" or "No", else 0.0."""
    return float(case.parsed.verdict == case.solution.answer.lower())
