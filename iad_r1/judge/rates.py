"""What a run's predictions amount to. Pure: predictions in, numbers out.

The positive class is "anomalous". An answer that cannot be read ("invalid") is wrong, counted,
and shown. Percentages run 0-100 at full precision; None means undefined (nothing to divide by).

Every rate here is the mean, over one or two groups of images, of a 0/1 outcome per image:

    metric              groups              outcome of one image
    balanced_accuracy   anomalous, normal   answered as the gold says
    miss_rate           anomalous           not answered "yes"  (an escape; 1 - TPR)
    overkill_rate       normal              not answered "no"   (a false reject; 1 - TNR)
    yes_rate            all                 answered "yes"
    invalid_rate        all                 the answer could not be read
    well_formed         all                 the whole text follows the required form
    location_accuracy   place annotated     answered "yes" and named the right cell
    type_accuracy       type annotated      answered "yes" and named the right type

so one description (`METRICS`) serves the values, their intervals and the paired differences.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iad_r1.errors import DataError, MismatchError
from iad_r1.schema import Status
from iad_r1.types import Prediction

ANSWERS = ("yes", "no", "invalid")

Flags = NDArray[np.bool_]
Floats = NDArray[np.float64]
Interval = list[float]


@dataclass(frozen=True)
class Outcomes:
    """Predictions as columns, one entry per image, all of shape [n]."""

    ids: tuple[str, ...]
    anomalous: Flags
    yes: Flags
    no: Flags
    well_formed: Flags
    located: Flags  # answered "yes" and named the right cell
    place_known: Flags  # anomalous, and the place is annotated
    typed: Flags
    type_known: Flags
    p_yes: Floats | None  # None unless every image has one


@dataclass(frozen=True)
class Metric:
    """The mean over `groups` of the mean `outcome` in each group, times 100."""

    outcome: Callable[[Outcomes], Flags]
    groups: Callable[[Outcomes], tuple[Flags, ...]]
    higher_is_better: bool | None  # None: neither direction is better


def _all(rows: Outcomes) -> tuple[Flags, ...]:
    return (np.ones(len(rows.ids), dtype=bool),)


METRICS: Mapping[str, Metric] = {
    "balanced_accuracy": Metric(
        lambda rows: np.where(rows.anomalous, rows.yes, rows.no),
        lambda rows: (rows.anomalous, ~rows.anomalous),
        True,
    ),
    "miss_rate": Metric(lambda rows: ~rows.yes, lambda rows: (rows.anomalous,), False),
    "overkill_rate": Metric(lambda rows: ~rows.no, lambda rows: (~rows.anomalous,), False),
    "yes_rate": Metric(lambda rows: rows.yes, _all, None),
    "invalid_rate": Metric(lambda rows: ~(rows.yes | rows.no), _all, False),
    "well_formed": Metric(lambda rows: rows.well_formed, _all, True),
    "location_accuracy": Metric(lambda rows: rows.located, lambda rows: (rows.place_known,), True),
    "location_accuracy_detected": Metric(
        lambda rows: rows.located, lambda rows: (rows.place_known & rows.yes,), True
    ),
    "type_accuracy": Metric(lambda rows: rows.typed, lambda rows: (rows.type_known,), True),
}
# The images that "detected" averages over change with the answers: no pairing by image exists.
PAIRED_METRICS = tuple(name for name in METRICS if name != "location_accuracy_detected")


def outcomes(predictions: Sequence[Prediction]) -> Outcomes:
    """Predictions as columns. Raises DataError on an unknown label or a repeated image."""
    for row in predictions:
        if row.gold_answer not in ("yes", "no") or row.answer not in ANSWERS:
            raise DataError(
                f"prediction {row.id}: gold_answer={row.gold_answer!r}, answer={row.answer!r}; "
                "gold must be 'yes' or 'no', and the answer one of 'yes', 'no', 'invalid'."
            )
    repeated = [id for id, count in Counter(row.id for row in predictions).items() if count > 1]
    if repeated:
        raise DataError(
            f"{len(repeated)} images are predicted more than once, such as {repeated[0]}. "
            "Give one split at one number of reference images at a time."
        )
    yes = _flags(row.answer == "yes" for row in predictions)
    return Outcomes(
        ids=tuple(row.id for row in predictions),
        anomalous=_flags(row.gold_answer == "yes" for row in predictions),
        yes=yes,
        no=_flags(row.answer == "no" for row in predictions),
        well_formed=_flags(row.status == Status.OK for row in predictions),
        located=yes & _flags(row.location_correct is True for row in predictions),
        place_known=_flags(row.location_correct is not None for row in predictions),
        typed=yes & _flags(row.type_correct is True for row in predictions),
        type_known=_flags(row.type_correct is not None for row in predictions),
        p_yes=_scores(predictions),
    )


def _flags(values: Any) -> Flags:
    return np.fromiter(values, dtype=bool)


def _scores(predictions: Sequence[Prediction]) -> Floats | None:
    scores = [row.p_yes for row in predictions if row.p_yes is not None]
    if not scores or len(scores) < len(predictions):
        return None
    for row in predictions:
        if not 0.0 <= (row.p_yes or 0.0) <= 1.0:  # also false for NaN
            raise DataError(f"prediction {row.id}: p_yes={row.p_yes} is not a probability.")
    return np.asarray(scores, dtype=np.float64)


def value(rows: Outcomes, metric: str) -> float | None:
    """One metric of `METRICS` in percent, or None where a group it needs is empty."""
    spec = METRICS[metric]
    return _value(spec.outcome(rows), spec.groups(rows))


def _value(outcome: Flags, groups: tuple[Flags, ...]) -> float | None:
    if not all(group.any() for group in groups):
        return None
    return float(100 * np.mean([outcome[group].mean() for group in groups]))


def wilson(successes: int, n: int) -> Interval | None:
    """The 95 % Wilson score interval of a rate, in percent; None when n = 0."""
    from scipy.stats import binomtest

    if n == 0:
        return None
    bounds = binomtest(successes, n).proportion_ci(confidence_level=0.95, method="wilson")
    return [100 * float(bounds.low), 100 * float(bounds.high)]


def _interval(rows: Outcomes, metric: str, seed: int, resamples: int) -> Interval | None:
    spec = METRICS[metric]
    outcome, groups = spec.outcome(rows), spec.groups(rows)
    counts = [(int(outcome[group].sum()), int(group.sum())) for group in groups]
    if any(n == 0 for _, n in counts):
        return None
    if len(counts) == 1:
        return wilson(*counts[0])
    if any(k in (0, n) for k, n in counts):
        return _newcombe(counts)
    return _stratified_bootstrap(counts, seed, resamples)


def _stratified_bootstrap(counts: Sequence[tuple[int, int]], seed: int, resamples: int) -> Interval:
    """Percentile interval of the mean of several rates, each (successes, n).

    Resampling n images of a class with replacement draws Binomial(n, k/n) successes, so
    drawing the counts is the image bootstrap itself, at a cost that does not grow with n.
    """
    rng = np.random.default_rng(seed)
    drawn = [rng.binomial(n, k / n, resamples) / n for k, n in counts]
    return _percentiles(100 * np.mean(drawn, axis=0))


def _newcombe(counts: Sequence[tuple[int, int]]) -> Interval:
    """Interval of the mean of rates, each (successes, n), from their Wilson intervals.

    Used where a class is all right or all wrong: no resample can then show the other
    outcome, and a bootstrap would claim a certainty that few images cannot give.
    """
    rates = [100 * k / n for k, n in counts]
    return _square_and_add(rates, [wilson(k, n) or [0.0, 100.0] for k, n in counts])


def _square_and_add(values: Sequence[float], bounds: Sequence[Interval]) -> Interval:
    """Newcombe's interval of the mean of independent values from the interval of each."""
    below = sum((value - low) ** 2 for value, (low, _) in zip(values, bounds, strict=True)) ** 0.5
    above = sum((high - value) ** 2 for value, (_, high) in zip(values, bounds, strict=True)) ** 0.5
    mean = float(np.mean(values))
    return [mean - below / len(values), mean + above / len(values)]


def _percentiles(draws: Floats) -> Interval:
    low, high = np.percentile(draws, [2.5, 97.5])
    return [float(low), float(high)]


def summarise(
    predictions: Sequence[Prediction], seed: int, resamples: int = 2000
) -> dict[str, Any]:
    """Every metric of one evaluation, with 95 % intervals in `ci95`.

    Rates carry Wilson intervals; balanced accuracy and AUROC a bootstrap of `resamples`
    draws stratified by class. `confusion` is gold x answer: {"yes": {"yes": n, "no": n,
    "invalid": n}, "no": {...}}. `auroc` (0-100) needs `p_yes` on every image.
    """
    rows = outcomes(predictions)
    values = {name: value(rows, name) for name in METRICS}
    intervals = {name: _interval(rows, name, seed, resamples) for name in METRICS}
    area, area_interval = _auroc(rows, seed, resamples)
    anomalous, n = int(rows.anomalous.sum()), len(rows.ids)
    return {
        "n": n,
        "n_normal": n - anomalous,
        "n_anomalous": anomalous,
        "n_located": int(rows.place_known.sum()),
        "n_typed": int(rows.type_known.sum()),
        **values,
        "gold_yes_rate": 100 * anomalous / n if n else None,
        "auroc": area,
        "confusion": confusion(rows),
        "ci95": {
            name: bounds
            for name, bounds in {**intervals, "auroc": area_interval}.items()
            if bounds is not None
        },
    }


def confusion(rows: Outcomes) -> dict[str, dict[str, int]]:
    """Counts of gold ("yes", "no") x answer ("yes", "no", "invalid")."""
    given = {"yes": rows.yes, "no": rows.no, "invalid": ~(rows.yes | rows.no)}
    golds = {"yes": rows.anomalous, "no": ~rows.anomalous}
    return {
        gold: {answer: int((of & to).sum()) for answer, to in given.items()}
        for gold, of in golds.items()
    }


def per_product(
    predictions: Sequence[Prediction], seed: int, resamples: int = 2000
) -> dict[str, dict[str, Any]]:
    """`summarise` of each product, sorted by name."""
    products: dict[str, list[Prediction]] = {}
    for row in predictions:
        products.setdefault(row.product, []).append(row)
    return {name: summarise(products[name], seed, resamples) for name in sorted(products)}


def macro(products: Mapping[str, Mapping[str, Any]], floor: float = 60.0) -> dict[str, Any]:
    """The unweighted view over products: mean, the worst one, how many are below `floor` %.

    Only products with both normal and anomalous images have a balanced accuracy; the others
    are counted in `n_undefined`.
    """
    defined = {
        name: float(row["balanced_accuracy"])
        for name, row in products.items()
        if row["balanced_accuracy"] is not None
    }
    worst = min(defined, key=lambda name: (defined[name], name), default=None)
    return {
        "balanced_accuracy": float(np.mean(list(defined.values()))) if defined else None,
        "worst_product": worst,
        "worst_balanced_accuracy": defined[worst] if worst is not None else None,
        "n_below_floor": sum(score < floor for score in defined.values()),
        "floor": floor,
        "n_products": len(products),
        "n_undefined": len(products) - len(defined),
    }


# ---------------------------------------------------------------- paired differences


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
    pair = _pair(before, after, metric)
    if pair is None:
        return {"delta": None, "ci95": None, "n": 0, "n_changed": 0}
    changes, groups = pair
    looked_at = np.logical_or.reduce(groups)
    return {
        "delta": float(100 * np.mean([changes[group].mean() for group in groups])),
        "ci95": _difference_interval([changes[group] for group in groups], seed, resamples),
        "n": int(looked_at.sum()),
        "n_changed": int((changes[looked_at] != 0).sum()),
    }


def _difference_interval(groups: Sequence[Floats], seed: int, resamples: int) -> Interval:
    """Bootstrap over images within each group; wider where a group shows no variation.

    Forty images without a change do not prove that none would ever change: such a group gets
    the Wilson bound of 0 in n on either side instead of a width of zero.
    """
    rng = np.random.default_rng(seed)
    drawn = [100 * _resampled_means(group, rng, resamples) for group in groups]
    if all(np.ptp(group) > 0 for group in groups):
        return _percentiles(np.mean(drawn, axis=0))
    means = [float(100 * group.mean()) for group in groups]
    bounds = [
        _percentiles(draws) if np.ptp(group) > 0 else _unvaried(mean, len(group))
        for group, draws, mean in zip(groups, drawn, means, strict=True)
    ]
    return _square_and_add(means, bounds)


def _unvaried(mean: float, n: int) -> Interval:
    _, width = wilson(0, n) or [0.0, 100.0]
    return [max(-100.0, mean - width), min(100.0, mean + width)]


def _resampled_means(changes: Floats, rng: np.random.Generator, resamples: int) -> Floats:
    """Bootstrap means of values in {-1, 0, 1}: drawing the three counts is drawing images."""
    n = len(changes)
    shares = [np.mean(changes == step) for step in (-1, 0, 1)]
    worse, _, better = rng.multinomial(n, shares, resamples).T
    return (better - worse) / n


def _pair(
    before: Sequence[Prediction], after: Sequence[Prediction], metric: str
) -> tuple[Floats, tuple[Flags, ...]] | None:
    """Per-image change in {-1, 0, 1} in `before`'s order, and the groups; None if undefined."""
    if metric not in PAIRED_METRICS:
        raise MismatchError(
            f"{metric!r} cannot be paired by image. Choose one of {', '.join(PAIRED_METRICS)}."
        )
    old, new = outcomes(before), outcomes(_aligned(before, after))
    groups = METRICS[metric].groups(old)
    for group, other in zip(groups, METRICS[metric].groups(new), strict=True):
        _require_same_gold(old.ids, group, other)
    if not all(group.any() for group in groups):
        return None
    outcome = METRICS[metric].outcome
    return outcome(new).astype(np.float64) - outcome(old).astype(np.float64), groups


def _aligned(before: Sequence[Prediction], after: Sequence[Prediction]) -> list[Prediction]:
    by_id = {row.id: row for row in after}
    old, new = {row.id for row in before}, set(by_id)
    if old != new or len(by_id) != len(after):
        only_before, only_after = sorted(old - new), sorted(new - old)
        raise MismatchError(
            "a paired difference needs the same images on both sides: "
            f"{len(only_before)} only before (such as {only_before[:3]}), "
            f"{len(only_after)} only after (such as {only_after[:3]}), "
            f"{len(after) - len(by_id)} repeated. Evaluate both runs on the same split."
        )
    return [by_id[row.id] for row in before]


def _require_same_gold(ids: Sequence[str], group: Flags, other: Flags) -> None:
    if (differs := np.flatnonzero(group != other)).size:
        raise MismatchError(
            f"{differs.size} images have another label or annotation before than after, "
            f"such as {ids[differs[0]]}. Both runs must read the same version of the data."
        )


def pooled_paired_difference(
    pairs: Sequence[tuple[Sequence[Prediction], Sequence[Prediction]]],
    metric: str,
    seed: int,
    resamples: int = 2000,
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
    singles = [paired_difference(old, new, metric, seed, resamples) for old, new in pairs]
    deltas = [single["delta"] for single in singles]
    report = {
        "per_seed": deltas,
        "n_seeds": len(pairs),
        "n": min(single["n"] for single in singles),
        "design": "crossed" if _same_images(pairs) else "nested",
    }
    if any(delta is None for delta in deltas):
        return {"delta": None, "ci95": None, **report}
    changes = [_changes_by_group(old, new, metric) for old, new in pairs]
    draw = _crossed_draws if report["design"] == "crossed" else _nested_draws
    draws = draw(changes, np.random.default_rng(seed), resamples)
    return {"delta": float(np.mean(deltas)), "ci95": _percentiles(100 * draws), **report}


def _same_images(
    pairs: Sequence[tuple[Sequence[Prediction], Sequence[Prediction]]],
) -> bool:
    """Whether every seed was tested on one and the same set. Ids alone do not tell: pictures that
    are drawn anew for each seed may be numbered alike, but they do not show the same defects."""

    def key(rows: Sequence[Prediction]) -> set[tuple[str, str, str | None, str | None]]:
        return {(row.id, row.gold_answer, row.gold_location, row.gold_type) for row in rows}

    first = key(pairs[0][0])
    return all(key(before) == first for before, _ in pairs[1:])


def _changes_by_group(
    before: Sequence[Prediction], after: Sequence[Prediction], metric: str
) -> list[Floats]:
    """Per-image changes of each group, images sorted by id so that seeds line up."""
    pair = _pair(sorted(before, key=lambda row: row.id), after, metric)
    assert pair is not None, "callers have checked that the metric is defined"
    changes, groups = pair
    return [changes[group] for group in groups]


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
            np.mean([_resampled_means(group, rng, 1)[0] for group in changes[chosen]])
            for chosen in rng.integers(0, n_seeds, n_seeds)
        ]
        draws[i] = np.mean(means)
    return draws


# ------------------------------------------------------------------- what chance gives


def location_chance(
    accepted: Sequence[Collection[str]],
    cells: Sequence[str],
    center: str | None = None,
    areas: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Location accuracy in percent of guessers that never look at the image.

    `accepted` holds, for each anomalous image with a known place, the cells that count as
    right. `uniform` draws a cell at random, `area_weighted` draws one in proportion to
    `areas` (equal to `uniform` when the cells are equally large), `always_center` always
    says `center`, `best_constant` always says the one cell that is right most often.
    """
    if not accepted or not cells:
        return {"n": 0, "uniform": None, "area_weighted": None, "always_center": None,
                "best_constant": None, "best_cell": None}  # fmt: skip
    weights = np.ones(len(cells)) if areas is None else np.asarray(areas, dtype=np.float64)
    hits = np.array([[cell in right for cell in cells] for right in accepted], dtype=np.float64)
    per_cell = 100 * hits.mean(axis=0)
    best = int(per_cell.argmax())
    return {
        "n": len(accepted),
        "uniform": float(per_cell.mean()),
        "area_weighted": float(per_cell @ weights / weights.sum()),
        "always_center": None if center is None else float(per_cell[list(cells).index(center)]),
        "best_constant": float(per_cell[best]),
        "best_cell": cells[best],
    }


def factory_view(
    miss_rate: float, overkill_rate: float, defect_prior: float, parts: int
) -> dict[str, float | None]:
    """What the two error rates (percent) mean for `parts` parts of which a share is defective.

    `defect_prior` is that share, 0-1. Counts are expectations, not whole numbers. `ppv` is
    the share of rejected parts that are defective and `npv` the share of accepted parts that
    are good, both in percent.
    """
    defective = parts * defect_prior
    missed = defective * miss_rate / 100
    overkilled = (parts - defective) * overkill_rate / 100
    caught, passed = defective - missed, parts - defective - overkilled
    return {
        "parts": float(parts),
        "defective": defective,
        "caught": caught,
        "missed": missed,
        "overkilled": overkilled,
        "passed": passed,
        "ppv": 100 * caught / (caught + overkilled) if caught + overkilled > 0 else None,
        "npv": 100 * passed / (passed + missed) if passed + missed > 0 else None,
    }


# --------------------------------------------------------------------- score-based views


def _auroc(rows: Outcomes, seed: int, resamples: int) -> tuple[float | None, Interval | None]:
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
    draws = [
        _area(*(rng.multinomial(side.sum(), side / side.sum(), size) for side in counts))
        for size in _blocks(resamples, block)
    ]
    area = float(_area(*(side[None] for side in counts))[0])
    return 100 * area, _percentiles(100 * np.concatenate(draws))


def _area(positive: NDArray[np.integer], negative: NDArray[np.integer]) -> Floats:
    """Area under the ROC curve from counts per ascending score level, [B, L] -> [B].

    A positive beats every negative on a lower level and half of those on its own.
    """
    below = negative.cumsum(axis=1) - negative / 2
    return (positive * below).sum(axis=1) / (positive.sum(axis=1) * negative.sum(axis=1))


def _blocks(total: int, size: int) -> list[int]:
    return [min(size, total - start) for start in range(0, total, size)]


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
    """Does "80 % sure" mean right in 80 of 100? None unless every image has `p_yes`.

    Bins hold equally many images. Returns {bins: [{p_yes, anomalous, n}], ece, brier}: mean
    stated probability and observed share per bin (percent), the expected calibration error
    (percentage points) and the Brier score (0-1, lower is better).
    """
    rows = outcomes(predictions)
    if rows.p_yes is None:
        return None
    order = np.argsort(rows.p_yes, kind="stable")
    parts = [part for part in np.array_split(order, min(bins, order.size)) if part.size]
    table = [
        {
            "p_yes": float(100 * rows.p_yes[part].mean()),
            "anomalous": float(100 * rows.anomalous[part].mean()),
            "n": int(part.size),
        }
        for part in parts
    ]
    gaps = [row["n"] * abs(row["p_yes"] - row["anomalous"]) for row in table]
    return {
        "bins": table,
        "ece": float(sum(gaps) / order.size),
        "brier": float(np.mean((rows.p_yes - rows.anomalous) ** 2)),
    }
