"""From which score on a part is called defective, and what that costs.

A threshold is chosen on validation pictures, or on good ones alone where good ones are all that its
rule asks for. One that was chosen on the pictures it is judged by is called an oracle: it is the
best case, not a promise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from iad_r1.errors import DataError
from iad_r1.judge import intervals
from iad_r1.judge.outcomes import Outcomes, is_yes_no, outcomes
from iad_r1.types import Prediction

VALIDATION = "validation_"  # how the names of splits begin that choices may be made on

Rule = Literal["f1", "miss", "overkill"]
Place = tuple[str, str, int]  # stage, split, shots


@dataclass(frozen=True)
class Threshold:
    """What scores at least `value` is called defective.

    rule   "f1": F1 is largest; "miss" or "overkill": that rate is at most `limit` percent, and
           the other one is as low as it can be
    """

    rule: Rule
    limit: float | None
    value: float


def choose(predictions: Sequence[Prediction], rule: Rule, limit: float | None = None) -> Threshold:
    """The threshold that a rule gives on these pictures.

    Raises DataError if they hold no defects and the rule has to know what it misses, no good ones
    and it has to know what it rejects, or no scores.
    """
    rows = outcomes(predictions)
    if rows.scores is None:
        raise DataError(
            f"a threshold needs a score of every picture, and some of {len(rows.ids):,} have none."
        )
    for side, word, rules in (
        (rows.anomalous, "defective", ("f1", "miss")),
        (rows.normal, "good", ("f1", "overkill")),
    ):
        if rule in rules and not side.any():
            raise DataError(
                f"no threshold can be chosen by {rule!r} on {len(rows.ids):,} pictures of which "
                f"none is {word}: what it would {'miss' if word == 'defective' else 'reject'} is "
                "not known. Validate on good and defective pictures"
                + (", or limit the overkill rate alone." if word == "defective" else ".")
            )
    if rule == "f1":
        return Threshold(rule, None, _best_f1(rows))
    assert limit is not None
    if rule == "miss":
        defective = np.sort(rows.scores[rows.anomalous])
        allowed = int(limit * defective.size / 100 + 1e-9)
        value = (
            defective[allowed] if allowed < defective.size else np.nextafter(defective[-1], np.inf)
        )
    else:
        good = np.sort(rows.scores[rows.normal])[::-1]
        allowed = int(limit * good.size / 100 + 1e-9)
        value = np.nextafter(good[allowed], np.inf) if allowed < good.size else good[-1]
    return Threshold(rule, limit, float(value))


def _best_f1(rows: Outcomes) -> float:
    """The lowest score from which on F1 is largest: of equal ones it misses least."""
    assert rows.scores is not None
    levels = np.unique(rows.scores)
    caught, called = (
        part.size - np.searchsorted(np.sort(part), levels)
        for part in (rows.scores[rows.anomalous], rows.scores)
    )
    return float(levels[np.argmax(2 * caught / (rows.anomalous.sum() + called))])


def at(
    predictions: Sequence[Prediction], value: float, seed: int, resamples: int = 2000
) -> dict[str, Any]:
    """What the pictures get if those that score at least `value` are called defective:
    {miss_rate, overkill_rate, balanced_accuracy, f1, ci95}, percent; None where undefined."""
    rows = outcomes(predictions)
    assert rows.scores is not None
    called = rows.scores >= value
    counts = {
        "miss_rate": [(int((~called & rows.anomalous).sum()), int(rows.anomalous.sum()))],
        "overkill_rate": [(int((called & rows.normal).sum()), int(rows.normal.sum()))],
    }
    right = [[(n - k, n)] for ((k, n),) in counts.values()]
    counts["balanced_accuracy"] = [pair for pairs in right for pair in pairs]
    caught, asked = int((called & rows.anomalous).sum()), int(called.sum() + rows.anomalous.sum())
    bounds = {name: intervals.of_rates(pairs, seed, resamples) for name, pairs in counts.items()}
    return {
        **{name: intervals.mean_rate(pairs) for name, pairs in counts.items()},
        "f1": 200 * caught / asked if asked else None,
        "ci95": {name: found for name, found in bounds.items() if found is not None},
    }


def operating_points(
    answers: Mapping[Place, Sequence[Prediction]], limits: Mapping[Rule, float | None], seed: int
) -> list[dict[str, Any]]:
    """For every test split that has scores, a row per rule: the threshold, where it was chosen and
    what it costs.

    It is chosen on the validation split of the same name, else on all that were answered alike;
    where there are none, or they cannot give it (`refused` says why), on the test pictures
    themselves, and then `oracle` is True. `limits` are those of the rules; None leaves a rule out.
    """
    return [
        {"stage": stage, "split": split, "shots": shots, **row}
        for (stage, split, shots), tested in answers.items()
        if not split.startswith(VALIDATION) and all(map(is_yes_no, tested))
        if tested and outcomes(tested).scores is not None
        for row in _points(tested, _validation(answers, (stage, split, shots)), limits, seed)
    ]


def _validation(
    answers: Mapping[Place, Sequence[Prediction]], place: Place
) -> dict[str, Sequence[Prediction]]:
    """The validation splits to choose on, by name."""
    stage, split, shots = place
    found = {
        s: rows
        for (of, s, k), rows in answers.items()
        if s.startswith(VALIDATION) and (of, k) == (stage, shots) and all(map(is_yes_no, rows))
    }
    own = VALIDATION + split
    return {own: found[own]} if own in found else found


def _points(
    tested: Sequence[Prediction],
    validation: Mapping[str, Sequence[Prediction]],
    limits: Mapping[Rule, float | None],
    seed: int,
) -> Iterator[dict[str, Any]]:
    rules: dict[Rule, float | None] = {"f1": None}
    rules |= {rule: limit for rule, limit in limits.items() if limit is not None}
    # pictures of several splits may share an id
    pooled = [
        replace(row, id=f"{name}/{row.id}") for name, rows in validation.items() for row in rows
    ]
    for rule, limit in rules.items():
        chosen, refused = None, None
        try:
            chosen = choose(pooled, rule, limit) if pooled else None
        except DataError as error:
            refused = str(error)
        oracle = chosen is None
        try:
            chosen = chosen or choose(tested, rule, limit)
        except DataError:
            continue  # no picture to choose on, and so nothing that it would cost
        yield {
            "rule": rule,
            "limit": limit,
            "threshold": chosen.value,
            "oracle": oracle,
            "chosen_on": ["the test pictures"] if oracle else sorted(validation),
            "n_chosen_on": len(tested if oracle else pooled),
            "refused": refused,
            **at(tested, chosen.value, seed),
        }
