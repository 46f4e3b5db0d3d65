"""Self-consistency: several answers to one question, of which the majority counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from iad_r1.types import Prediction


def majority(drawn: Sequence[Prediction]) -> Prediction:
    """The first of several answers to one question that says what most of them say, with all
    `votes`.

    Answers that cannot be read count only if there are no others. In a tie the answer that was
    drawn first wins. P(yes) is the mean over those that open an answer.
    """
    votes = tuple(one.answer for one in drawn)
    counted = Counter(vote for vote in votes if vote != "invalid") or Counter(votes)
    [(chosen, _)] = counted.most_common(1)  # of equals the one that came first
    told = [one.p_yes for one in drawn if one.p_yes is not None]
    first = next(one for one in drawn if one.answer == chosen)
    return replace(first, votes=votes, p_yes=fmean(told) if told else None)


def by_votes(answered: Sequence[Prediction]) -> list[Prediction]:
    """The same answers, scored by the share of votes for "yes" in place of P(yes)."""
    return [
        replace(one, p_yes=None, score=one.votes.count("yes") / len(one.votes)) for one in answered
    ]
