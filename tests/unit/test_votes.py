"""Self-consistency: what several answers to one question amount to."""

from __future__ import annotations

from typing import Any

import pytest

from iad_r1.judge.predictions import append, read_predictions
from iad_r1.judge.rates import summarise
from iad_r1.judge.votes import by_votes, majority
from iad_r1.types import Prediction


def answer(
    said: str, p_yes: float | None = 0.5, place: str | None = None, **more: str
) -> Prediction:
    known: dict[str, Any] = {"id": "a", "gold_answer": "yes", **more}
    return Prediction(
        dataset="d", split="seen", product="p", shots=0, gold_location=None, gold_type=None,
        completion=f"{said} {place}", status="ok", answer=said, location=place, type=None,
        location_correct=None, type_correct=None, p_yes=p_yes, n_tokens=3, stop="stop", **known,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("drawn", "verdict"),
    [
        (["yes", "no", "no"], "no"),
        (["invalid", "invalid", "yes"], "yes"),  # what cannot be read has no vote
        (["invalid", "invalid"], "invalid"),
        (["no", "yes", "invalid"], "no"),  # a tie: the one that was drawn first
        (["B", "A", "A"], "A"),
    ],
)
def test_the_majority_of_the_answers_that_can_be_read_counts(drawn, verdict):
    found = majority([answer(said) for said in drawn])
    assert (found.answer, found.votes) == (verdict, tuple(drawn))


def test_the_rest_of_a_record_is_of_the_first_that_says_so_and_p_yes_is_the_mean():
    drawn = [answer("no", 0.2), answer("yes", 0.8, "center"), answer("yes", None, "top")]
    found = majority(drawn)
    assert (found.location, found.completion) == ("center", "yes center")
    assert found.p_yes == pytest.approx(0.5)
    assert majority([answer("invalid", None)] * 2).p_yes is None


def test_the_share_of_votes_ranks_pictures(tmp_path):
    """Both records survive the file."""
    pictures = [
        majority([answer(said, 0.5, None, id=name, gold_answer=gold) for said in votes])
        for name, gold, votes in (
            ("a", "yes", ["yes", "yes", "no"]),
            ("b", "no", ["no", "no", "invalid"]),
            ("c", "no", ["yes", "no", "no"]),
        )
    ]
    append(tmp_path / "file.jsonl", pictures)
    read = list(read_predictions(tmp_path / "file.jsonl").values())
    assert read == pictures
    scored = by_votes(read)
    assert [one.score for one in scored] == pytest.approx([2 / 3, 0, 1 / 3])
    assert summarise(scored, 0)["auroc"] == 100 and summarise(read, 0)["auroc"] == 50
