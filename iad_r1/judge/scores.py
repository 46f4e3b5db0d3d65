"""What the probabilities of "Yes" are worth: ranking (AUROC, ROC) and calibration.

Every view is None unless each image has `p_yes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iad_r1.judge.intervals import Floats, Interval, percentiles
from iad_r1.judge.outcomes import Outcomes, outcomes
from iad_r1.types import Prediction


def auroc(rows: Outcomes, seed: int, resamples: int) -> tuple[float | None, Interval | None]:
    """AUROC of `p_yes` in percent and its bootstrap interval, stratified by class."""
    if rows.p_yes is None or rows.anomalous.all() or not rows.anomalous.any():
        return None, None
    positive, negative = rows.p_yes[rows.anomalous], rows.p_yes[~rows.anomalous]
    levels = np.unique(rows.p_yes)
    counts = [
        np.bincount(np.searchsorted(levels, side), minlength=levels.size)
        for side in (positive, negative)
    ]
    rng = np.random.default_rng(seed)
    # Only the counts per distinct score matter; blocks bound the memory at any image count.
    block = max(1, 2_000_000 // levels.size)
    sizes = [min(block, resamples - start) for start in range(0, resamples, block)]
    draws = [
        _area(*(rng.multinomial(side.sum(), side / side.sum(), size) for side in counts))
        for size in sizes
    ]
    area = float(_area(*(side[None] for side in counts))[0])
    return 100 * area, percentiles(100 * np.concatenate(draws))


def _area(positive: NDArray[np.integer], negative: NDArray[np.integer]) -> Floats:
    """Area under the ROC curve from counts per ascending score level, [B, L] -> [B].

    A positive beats every negative on a lower level and half of those on its own.
    """
    below = negative.cumsum(axis=1) - negative / 2
    return (positive * below).sum(axis=1) / (positive.sum(axis=1) * negative.sum(axis=1))


def roc(predictions: Sequence[Prediction]) -> dict[str, list[float]] | None:
    """The ROC curve of `p_yes`: {false_positive, true_positive} in percent, or None."""
    rows = outcomes(predictions)
    if rows.p_yes is None or rows.anomalous.all() or not rows.anomalous.any():
        return None
    from sklearn.metrics import roc_curve

    false_positive, true_positive, _ = roc_curve(rows.anomalous, rows.p_yes)
    return {
        "false_positive": (100 * false_positive).tolist(),
        "true_positive": (100 * true_positive).tolist(),
    }


def overkill_at_miss(predictions: Sequence[Prediction], limit: float) -> float | None:
    """The least overkill (percent) of any `p_yes` threshold that misses at most `limit` %.

    The threshold is chosen on these same images, so this is an oracle, not a promise.
    """
    curve = roc(predictions)
    if curve is None:
        return None
    pairs = zip(curve["false_positive"], curve["true_positive"], strict=True)
    return min(overkill for overkill, caught in pairs if 100 - caught <= limit + 1e-9)


def calibration(predictions: Sequence[Prediction], bins: int = 15) -> dict[str, Any] | None:
    """Does "80 % sure" mean right in 80 of 100?

    Bins hold equally many images. Returns {bins: [{p_yes, anomalous, n}], ece, brier}: mean
    stated probability and observed share per bin (percent), the expected calibration error
    (percentage points) and the Brier score (0-1, lower is better).
    """
    rows = outcomes(predictions)
    if rows.p_yes is None:
        return None
    order = np.argsort(rows.p_yes, kind="stable")
    table = [
        {
            "p_yes": float(100 * rows.p_yes[part].mean()),
            "anomalous": float(100 * rows.anomalous[part].mean()),
            "n": int(part.size),
        }
        for part in np.array_split(order, min(bins, order.size))
    ]
    gaps = [row["n"] * abs(row["p_yes"] - row["anomalous"]) for row in table]
    return {
        "bins": table,
        "ece": float(sum(gaps) / order.size),
        "brier": float(np.mean((rows.p_yes - rows.anomalous) ** 2)),
    }
