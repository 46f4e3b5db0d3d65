"""95 % intervals of rates and of their means, as [low, high]. Pure: counts in, bounds out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Interval = list[float]
Floats = NDArray[np.float64]
Z = 1.959963984540054  # 97.5 % of a normal distribution lie below


def wilson(successes: int, n: int) -> Interval | None:
    """The 95 % Wilson score interval of a rate, in percent; None when n = 0. As scipy has it, whose
    import alone takes a second."""
    if n == 0:
        return None
    rate, scale = successes / n, 2 * (n + Z**2)
    middle = (2 * n * rate + Z**2) / scale
    half = Z / scale * math.sqrt(4 * n * rate * (1 - rate) + Z**2)
    low = 0.0 if successes == 0 else middle - half
    high = 1.0 if successes == n else middle + half
    return [100 * low, 100 * high]


def of_rates(counts: Sequence[tuple[int, int]], seed: int, resamples: int) -> Interval | None:
    """Interval of the mean of rates, each (successes, n), in percent; None when an n is 0.

    Where a class is all right or all wrong, no resample can show the other outcome, and a
    bootstrap would claim a certainty that few images cannot give: Newcombe's interval is used.
    """
    if any(n == 0 for _, n in counts):
        return None
    if len(counts) == 1:
        return wilson(*counts[0])
    if any(k in (0, n) for k, n in counts):
        return newcombe(
            [100 * k / n for k, n in counts], [wilson(k, n) or [0.0, 100.0] for k, n in counts]
        )
    return _stratified_bootstrap(counts, seed, resamples)


def mean_rate(counts: Sequence[tuple[int, int]]) -> float | None:
    """The mean of rates, each (successes, n), in percent; None when an n is 0."""
    if any(n == 0 for _, n in counts):
        return None
    return float(100 * np.mean([k / n for k, n in counts]))


def of_changes(groups: Sequence[Floats], seed: int, resamples: int) -> Interval:
    """Interval of the mean over groups of the mean change, each change in {-1, 0, 1}.

    A bootstrap over images within each group; wider where a group shows no variation. Forty
    images without a change do not prove that none would ever change: such a group gets the
    Wilson bound of 0 in n on either side instead of a width of zero.
    """
    rng = np.random.default_rng(seed)
    drawn = [100 * resampled_means(group, rng, resamples) for group in groups]
    if all(np.ptp(group) > 0 for group in groups):
        return percentiles(np.mean(drawn, axis=0))
    means = [float(100 * group.mean()) for group in groups]
    bounds = [
        percentiles(draws) if np.ptp(group) > 0 else _unvaried(mean, len(group))
        for group, draws, mean in zip(groups, drawn, means, strict=True)
    ]
    return newcombe(means, bounds)


def newcombe(values: Sequence[float], bounds: Sequence[Interval]) -> Interval:
    """Interval of the mean of independent values from the interval of each: square and add."""
    below = sum((value - low) ** 2 for value, (low, _) in zip(values, bounds, strict=True)) ** 0.5
    above = sum((high - value) ** 2 for value, (_, high) in zip(values, bounds, strict=True)) ** 0.5
    mean = float(np.mean(values))
    return [mean - below / len(values), mean + above / len(values)]


def percentiles(draws: Floats) -> Interval:
    """Where the middle 95 % of bootstrap draws lie."""
    low, high = np.percentile(draws, [2.5, 97.5])
    return [float(low), float(high)]


def resampled_means(changes: Floats, rng: np.random.Generator, resamples: int) -> Floats:
    """Bootstrap means of values in {-1, 0, 1}: drawing the three counts is drawing images."""
    n = len(changes)
    shares = [np.mean(changes == step) for step in (-1, 0, 1)]
    worse, _, better = rng.multinomial(n, shares, resamples).T
    return (better - worse) / n


def _stratified_bootstrap(counts: Sequence[tuple[int, int]], seed: int, resamples: int) -> Interval:
    """Percentile interval of the mean of several rates, each (successes, n).

    Resampling n images of a class with replacement draws Binomial(n, k/n) successes, so
    drawing the counts is the image bootstrap itself, at a cost that does not grow with n.
    """
    rng = np.random.default_rng(seed)
    drawn = [rng.binomial(n, k / n, resamples) / n for k, n in counts]
    return percentiles(100 * np.mean(drawn, axis=0))


def _unvaried(mean: float, n: int) -> Interval:
    _, width = wilson(0, n) or [0.0, 100.0]
    return [max(-100.0, mean - width), min(100.0, mean + width)]
