"""Predictions as columns: what every rate, score and comparison is computed from.

The positive class is "anomalous". An answer that cannot be read ("invalid") is wrong, counted,
and shown.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from iad_r1.errors import DataError
from iad_r1.judge.intervals import Floats
from iad_r1.schema import INVALID, Status
from iad_r1.types import LETTERS, Prediction

YES_NO = frozenset({"yes", "no"})

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Outcomes:
    """Predictions as columns, one entry per image, all of shape [n].

    Of a multiple choice no image is anomalous, normal, or answered with yes or no.
    """

    ids: tuple[str, ...]
    gold: NDArray[np.str_]
    anomalous: Flags
    normal: Flags
    right: Flags
    yes: Flags
    no: Flags
    invalid: Flags
    well_formed: Flags
    located: Flags  # answered "yes" and named the right cell
    place_known: Flags  # anomalous, and the place is annotated
    typed: Flags
    type_known: Flags
    p_yes: Floats | None  # None unless every image has one
    scores: Floats | None  # `p_yes`, else scores of any scale; None unless every image has one


def outcomes(predictions: Sequence[Prediction]) -> Outcomes:
    """Predictions as columns.

    Raises DataError on an unknown label, a repeated image, and two kinds of question at a time.
    """
    for row in predictions:
        _check(row)
    choices = sum(not is_yes_no(row) for row in predictions)
    if 0 < choices < len(predictions):
        raise DataError(
            f"{choices} of {len(predictions)} predictions answer a multiple choice and the others "
            "yes or no. Give one kind of question at a time."
        )
    repeated = [id for id, count in Counter(row.id for row in predictions).items() if count > 1]
    if repeated:
        raise DataError(
            f"{len(repeated)} images are predicted more than once, such as {repeated[0]}. "
            "Give one split at one number of reference images at a time."
        )
    gold = np.array([row.gold_answer for row in predictions], dtype=np.str_)
    answer = np.array([row.answer for row in predictions], dtype=np.str_)
    yes = answer == "yes"
    p_yes = _probabilities(predictions)
    return Outcomes(
        ids=tuple(row.id for row in predictions),
        gold=gold,
        anomalous=gold == "yes",
        normal=gold == "no",
        right=gold == answer,
        yes=yes,
        no=answer == "no",
        invalid=answer == INVALID,
        well_formed=_flags(row.status == Status.OK for row in predictions),
        located=yes & _flags(row.location_correct is True for row in predictions),
        place_known=_flags(row.location_correct is not None for row in predictions),
        typed=yes & _flags(row.type_correct is True for row in predictions),
        type_known=_flags(row.type_correct is not None for row in predictions),
        p_yes=p_yes,
        scores=_scores(predictions) if p_yes is None else p_yes,
    )


def is_yes_no(prediction: Prediction) -> bool:
    """Whether its question is answered with yes or no, and not with a letter."""
    return prediction.gold_answer in YES_NO


def _check(row: Prediction) -> None:
    labels = YES_NO if is_yes_no(row) else LETTERS
    if row.gold_answer not in labels or row.answer not in labels | {INVALID}:
        raise DataError(
            f"prediction {row.id}: gold_answer={row.gold_answer!r}, answer={row.answer!r}; "
            "gold must be 'yes', 'no' or a letter, and the answer one of the same kind or "
            "'invalid'."
        )


def _flags(values: Iterable[bool]) -> Flags:
    return np.fromiter(values, dtype=bool)


def _scores(predictions: Sequence[Prediction]) -> Floats | None:
    scores = [row.score for row in predictions if row.score is not None]
    if not scores or len(scores) < len(predictions):
        return None
    for row in predictions:
        if not math.isfinite(row.score or 0.0):
            raise DataError(f"prediction {row.id}: score={row.score} is no number to rank by.")
    return np.asarray(scores, dtype=np.float64)


def _probabilities(predictions: Sequence[Prediction]) -> Floats | None:
    scores = [row.p_yes for row in predictions if row.p_yes is not None]
    if not scores or len(scores) < len(predictions):
        return None
    for row in predictions:
        if not 0.0 <= (row.p_yes or 0.0) <= 1.0:  # also false for NaN
            raise DataError(f"prediction {row.id}: p_yes={row.p_yes} is not a probability.")
    return np.asarray(scores, dtype=np.float64)
