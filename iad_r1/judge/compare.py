"""Paired differences between predictions on the same images, in percentage points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from iad_r1.errors import MismatchError
from iad_r1.judge import intervals
from iad_r1.judge.intervals import Floats
from iad_r1.judge.outcomes import outcomes
from iad_r1.judge.rates import METRICS
from iad_r1.types import Prediction

# The images that "detected" averages over change with the answers: no pairing by image exists.
PAIRED_METRICS = tuple(name for name in METRICS if name != "location_accuracy_detected")

Pair = tuple[Sequence[Prediction], Sequence[Prediction]]  # before, after


def paired_difference(
    before: Sequence[Prediction],
    after: Sequence[Prediction],
    metric: str,
    seed: int,
    resamples: int = 2000,
) -> dict[str, Any]:
    """`after` minus `before` on the same images, in percentage points.

    Returns {delta, ci95, n, n_changed}; `n` counts the images the metric looks at and
    `n_changed` those whose outcome differs. The interval is a bootstrap over images within
    each class: it covers which images were drawn, not how training would vary with the seed.
    Raises MismatchError when the two sides do not hold the same images.
    """
    changes = _changes(before, after, metric)
    if changes is None:
        return {"delta": None, "ci95": None, "n": 0, "n_changed": 0}
    return {
        "delta": _delta(changes),
        "ci95": intervals.of_changes(changes, seed, resamples),
        "n": sum(map(len, changes)),
        "n_changed": sum(int(np.count_nonzero(group)) for group in changes),
    }


def pooled_paired_difference(
    pairs: Sequence[Pair], metric: str, seed: int, resamples: int = 2000
) -> dict[str, Any]:
    """The mean paired difference over several training seeds, in percentage points.

    Each resample draws seeds with replacement, then images within each class. Where all seeds
    were tested on the same images (`design` "crossed") one draw of images serves every seed,
    since an image that is hard for one seed is hard for the others; otherwise images are drawn
    per seed ("nested"). So the interval covers both which images were tested and which
    training seed was drawn. With few seeds the second part is rough and somewhat too narrow
    (by a factor of sqrt((S-1)/S)); look at `per_seed` beside it.
    Returns {delta, ci95, n, per_seed, n_seeds, design}; `n` is the images of one seed.
    """
    if not pairs:
        raise MismatchError("a pooled difference needs at least one (before, after) pair.")
    found = [_changes(before, after, metric) for before, after in pairs]
    defined = [changes for changes in found if changes is not None]
    deltas = [None if changes is None else _delta(changes) for changes in found]
    crossed = _same_images(pairs)
    report = {
        "per_seed": deltas,
        "n_seeds": len(pairs),
        "n": min(0 if changes is None else sum(map(len, changes)) for changes in found),
        "design": "crossed" if crossed else "nested",
    }
    if len(defined) < len(found):
        return {"delta": None, "ci95": None, **report}
    draw = _crossed_draws if crossed else _nested_draws
    draws = draw(defined, np.random.default_rng(seed), resamples)
    mean = float(np.mean([_delta(changes) for changes in defined]))
    return {"delta": mean, "ci95": intervals.percentiles(100 * draws), **report}


def mcnemar(before: Sequence[Prediction], after: Sequence[Prediction]) -> dict[str, Any]:
    """McNemar's exact test of whether one side judges more of the same images rightly.

    Returns {only_before, only_after, p}: how many images that side alone has right, and the
    probability of a split at least as uneven if neither side were better. Images count as
    independent. Raises MismatchError when the two sides do not hold the same images.
    """
    from scipy.stats import binomtest

    changes = _changes(before, after, "accuracy")
    change = np.concatenate(changes) if changes else np.zeros(0)
    lost, won = int((change < 0).sum()), int((change > 0).sum())
    p = float(binomtest(won, won + lost).pvalue) if won + lost else 1.0
    return {"only_before": lost, "only_after": won, "p": p}


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values of several tests, adjusted by Holm's method: that any true null hypothesis falls
    below 5 % has a probability of at most 5 %, however many tests there are."""
    adjusted, worst = [0.0] * len(p_values), 0.0
    for done, place in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        worst = max(worst, min(1.0, (len(p_values) - done) * p_values[place]))
        adjusted[place] = worst
    return adjusted


def _changes(
    before: Sequence[Prediction], after: Sequence[Prediction], metric: str
) -> list[Floats] | None:
    """Per-image changes in {-1, 0, 1} of each of the metric's groups, images sorted by id so that
    seeds line up; None where a group is empty."""
    if metric not in PAIRED_METRICS:
        raise MismatchError(
            f"{metric!r} cannot be paired by image. Choose one of {', '.join(PAIRED_METRICS)}."
        )
    _require_same_images(before, after)
    old, new = (outcomes(sorted(side, key=lambda row: row.id)) for side in (before, after))
    outcome, groups = METRICS[metric].outcome, METRICS[metric].groups(old)
    others = METRICS[metric].groups(new)
    for label, other in zip((old.gold, *groups), (new.gold, *others), strict=True):
        if (differs := np.flatnonzero(label != other)).size:
            raise MismatchError(
                f"{differs.size} images have another label or annotation before than after, such "
                f"as {old.ids[differs[0]]}. Both runs must read the same version of the data."
            )
    if not all(group.any() for group in groups):
        return None
    change = outcome(new).astype(np.float64) - outcome(old).astype(np.float64)
    return [change[group] for group in groups]


def _require_same_images(before: Sequence[Prediction], after: Sequence[Prediction]) -> None:
    old, new = {row.id for row in before}, {row.id for row in after}
    if old != new or len(new) != len(after):
        only_before, only_after = sorted(old - new), sorted(new - old)
        raise MismatchError(
            "a paired difference needs the same images on both sides: "
            f"{len(only_before)} only before (such as {only_before[:3]}), "
            f"{len(only_after)} only after (such as {only_after[:3]}), "
            f"{len(after) - len(new)} repeated. Evaluate both runs on the same split."
        )


def _delta(changes: Sequence[Floats]) -> float:
    return float(100 * np.mean([group.mean() for group in changes]))


def _same_images(pairs: Sequence[Pair]) -> bool:
    """Whether every seed was tested on one and the same set. Ids alone do not tell: pictures that
    are drawn anew for each seed may be numbered alike, but they do not show the same defects."""

    def key(rows: Sequence[Prediction]) -> set[tuple[str, str, str | None, str | None]]:
        return {(row.id, row.gold_answer, row.gold_location, row.gold_type) for row in rows}

    first = key(pairs[0][0])
    return all(key(before) == first for before, _ in pairs[1:])


def _crossed_draws(
    changes: Sequence[Sequence[Floats]], rng: np.random.Generator, resamples: int
) -> Floats:
    n_seeds, draws = len(changes), np.zeros(resamples)
    by_group = [np.stack([seed[g] for seed in changes]) for g in range(len(changes[0]))]
    for i in range(resamples):
        # How often each seed is drawn; the change of an image is then a weighted mean.
        weights = np.bincount(rng.integers(0, n_seeds, n_seeds), minlength=n_seeds) / n_seeds
        means = [
            (weights @ group)[rng.integers(0, group.shape[1], group.shape[1])].mean()
            for group in by_group
        ]
        draws[i] = np.mean(means)
    return draws


def _nested_draws(
    changes: Sequence[Sequence[Floats]], rng: np.random.Generator, resamples: int
) -> Floats:
    n_seeds, draws = len(changes), np.zeros(resamples)
    for i in range(resamples):
        means = [
            np.mean([intervals.resampled_means(group, rng, 1)[0] for group in changes[chosen]])
            for chosen in rng.integers(0, n_seeds, n_seeds)
        ]
        draws[i] = np.mean(means)
    return draws
