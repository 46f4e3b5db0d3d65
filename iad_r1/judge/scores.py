"""What the scores of images are worth: ranking (AUROC, average precision, ROC) and calibration.

A score is the probability of "Yes" (`p_yes`), or one of any scale (`score`) where a model gives
no probability. A higher one is more defective. Every view is None unless each image has one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iad_r1.judge.intervals import Floats, Interval, percentiles
from iad_r1.judge.outcomes import Flags, Outcomes, outcomes
from iad_r1.types import Prediction

Counts = NDArray[np.integer]

BINS = 15  # of calibration, equally many images in each
RANKED = ("auroc", "ap", "f1_max")
CALIBRATED = ("ece", "brier")


def ranking(
    rows: Outcomes, seed: int, resamples: int
) -> tuple[Mapping[str, float | None], Mapping[str, Interval]]:
    """AUROC, average precision and the best F1 of any threshold, in percent, and the intervals of
    the first two: a bootstrap stratified by class.

    The threshold of `f1_max` is chosen on these same images, so that is an oracle.
    """
    if rows.scores is None or rows.anomalous.all() or not rows.anomalous.any():
        return dict.fromkeys(RANKED), {}
    counts = _per_level(rows.scores, rows.anomalous)
    levels = counts[0].size
    rng = np.random.default_rng(seed)
    # Only the counts per distinct score matter; blocks bound the memory at any image count.
    block = max(1, 2_000_000 // levels)
    areas, precisions = [], []
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        drawn = [rng.multinomial(side.sum(), side / side.sum(), size) for side in counts]
        areas.append(_area(*drawn))
        precisions.append(_average_precision(*drawn))
    one = [side[None] for side in counts]
    found = {"auroc": _area(*one), "ap": _average_precision(*one), "f1_max": _f1(*one).max(1)}
    return {name: 100 * float(value[0]) for name, value in found.items()}, {
        "auroc": percentiles(100 * np.concatenate(areas)),
        "ap": percentiles(100 * np.concatenate(precisions)),
    }


def _per_level(scores: Floats, anomalous: Flags) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many defective and how many good images have each distinct score, from the lowest up."""
    levels, level = np.unique(scores, return_inverse=True)
    defective, good = (np.bincount(level[side], minlength=levels.size)
                       for side in (anomalous, ~anomalous))  # fmt: skip
    return defective, good


def _area(positive: Counts, negative: Counts) -> Floats:
    """Area under the ROC curve from counts per ascending score level, [B, L] -> [B].

    A positive beats every negative on a lower level and half of those on its own.
    """
    below = negative.cumsum(axis=1) - negative / 2
    return (positive * below).sum(axis=1) / (positive.sum(axis=1) * negative.sum(axis=1))


def _average_precision(positive: Counts, negative: Counts) -> Floats:
    """The mean over the positives of the precision at their own level, [B, L] -> [B]."""
    caught, called = _from_above(positive), _from_above(positive + negative)
    return (positive * caught / np.maximum(called, 1)).sum(axis=1) / positive.sum(axis=1)


def _f1(positive: Counts, negative: Counts) -> Floats:
    """F1 if everything from a level on is called defective, [B, L] -> [B, L]."""
    caught, called = _from_above(positive), _from_above(positive + negative)
    return 2 * caught / (positive.sum(axis=1, keepdims=True) + called)


def _from_above(counts: Counts) -> Counts:
    return counts[:, ::-1].cumsum(axis=1)[:, ::-1]


def roc(predictions: Sequence[Prediction]) -> dict[str, list[float]] | None:
    """The ROC curve of the scores: {false_positive, true_positive} in percent, without points on
    a straight line between others, or None. As sklearn has it, whose import takes a second."""
    rows = outcomes(predictions)
    if rows.scores is None or rows.anomalous.all() or not rows.anomalous.any():
        return None
    caught, rejected = (side[::-1].cumsum() for side in _per_level(rows.scores, rows.anomalous))
    turns = (np.diff(caught, 2) != 0) | (np.diff(rejected, 2) != 0)
    shown = [0, *(np.flatnonzero(turns) + 1), caught.size - 1][: caught.size]
    return {
        "false_positive": [0.0, *(100 * (rejected / rejected[-1])[shown]).tolist()],
        "true_positive": [0.0, *(100 * (caught / caught[-1])[shown]).tolist()],
    }


def calibration(predictions: Sequence[Prediction], bins: int = BINS) -> dict[str, Any] | None:
    """Does "80 % sure" mean right in 80 of 100? None where the scores are no probabilities.

    Bins hold equally many images. Returns {bins: [{p_yes, anomalous, n}], ece, brier}: mean
    stated probability and observed share per bin (percent), the expected calibration error
    (percentage points) and the Brier score (0-1, lower is better).
    """
    rows = outcomes(predictions)
    if rows.p_yes is None:
        return None
    order = np.argsort(rows.p_yes, kind="stable")
    shares = _shares_of_ties(rows.p_yes, rows.anomalous)
    table = [
        {
            "p_yes": float(100 * rows.p_yes[part].mean()),
            "anomalous": float(100 * shares[part].mean()),
            "n": int(part.size),
        }
        for part in np.array_split(order, min(bins, order.size))
    ]
    return {"bins": table, **calibration_errors(rows, bins)}


def calibration_errors(rows: Outcomes, bins: int = BINS) -> dict[str, float | None]:
    """{ece, brier} of `calibration`; None where the scores are no probabilities of a defect."""
    if rows.p_yes is None or not (rows.anomalous | rows.normal).all():
        return dict.fromkeys(CALIBRATED)
    order = np.argsort(rows.p_yes, kind="stable")
    gaps = (rows.p_yes - _shares_of_ties(rows.p_yes, rows.anomalous))[order]
    ece = sum(abs(part.sum()) for part in np.array_split(gaps, min(bins, order.size)))
    brier = np.mean((rows.p_yes - rows.anomalous) ** 2)
    return {"ece": float(100 * ece / order.size), "brier": float(brier)}


def _shares_of_ties(p_yes: Floats, anomalous: Flags) -> Floats:
    """For every image the share of defective ones among those of its probability: a bin may end
    among them, and which of them it takes is no matter of their order."""
    _, level = np.unique(p_yes, return_inverse=True)
    return (np.bincount(level, weights=anomalous) / np.bincount(level))[level]
