"""What a run's predictions amount to. Pure: predictions in, numbers out.

Percentages run 0-100 at full precision; None means undefined (nothing to divide by). Every rate
here is the mean, over one or two groups of images, of a 0/1 outcome per image:

    metric              groups              outcome of one image
    accuracy            all                 answered as the gold says
    balanced_accuracy   anomalous, normal   answered as the gold says
    miss_rate           anomalous           not answered "yes"  (an escape; 1 - TPR)
    overkill_rate       normal              not answered "no"   (a false reject; 1 - TNR)
    yes_rate            anomalous or normal answered "yes"
    invalid_rate        all                 the answer could not be read
    well_formed         all                 the whole text follows the required form
    location_accuracy   place annotated     answered "yes" and named the right cell
    type_accuracy       type annotated      answered "yes" and named the right type

so one description (`METRICS`) serves the values, their intervals and the paired differences. A
multiple choice has neither anomalous nor normal images: the rates that ask for them are None.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from iad_r1.judge import intervals, scores
from iad_r1.judge.outcomes import Flags, Outcomes, outcomes
from iad_r1.types import Prediction


@dataclass(frozen=True)
class Metric:
    """The mean over `groups` of the mean `outcome` in each group, times 100."""

    outcome: Callable[[Outcomes], Flags]
    groups: Callable[[Outcomes], tuple[Flags, ...]]
    higher_is_better: bool | None  # None: neither direction is better


def _all(rows: Outcomes) -> tuple[Flags, ...]:
    return (np.ones(len(rows.ids), dtype=bool),)


METRICS: Mapping[str, Metric] = {
    "accuracy": Metric(lambda rows: rows.right, _all, True),
    "balanced_accuracy": Metric(
        lambda rows: rows.right, lambda rows: (rows.anomalous, rows.normal), True
    ),
    "miss_rate": Metric(lambda rows: ~rows.yes, lambda rows: (rows.anomalous,), False),
    "overkill_rate": Metric(lambda rows: ~rows.no, lambda rows: (rows.normal,), False),
    "yes_rate": Metric(lambda rows: rows.yes, lambda rows: (rows.anomalous | rows.normal,), None),
    "invalid_rate": Metric(lambda rows: rows.invalid, _all, False),
    "well_formed": Metric(lambda rows: rows.well_formed, _all, True),
    "location_accuracy": Metric(lambda rows: rows.located, lambda rows: (rows.place_known,), True),
    "location_accuracy_detected": Metric(
        lambda rows: rows.located, lambda rows: (rows.place_known & rows.yes,), True
    ),
    "type_accuracy": Metric(lambda rows: rows.typed, lambda rows: (rows.type_known,), True),
}


def summarise(
    predictions: Sequence[Prediction], seed: int, resamples: int = 2000
) -> dict[str, Any]:
    """Every metric of one evaluation, with 95 % intervals in `ci95`.

    Rates carry Wilson intervals; balanced accuracy, AUROC and average precision a bootstrap of
    `resamples` draws stratified by class. `confusion` is gold x answer: {"yes": {"yes": n,
    "no": n, "invalid": n}, "no": {...}}. `auroc`, `ap` and `f1_max` (0-100) need a score of every
    image, `ece` (points) and `brier` (0-1) its `p_yes`.
    """
    rows = outcomes(predictions)
    values, bounds = {}, {}
    for name, metric in METRICS.items():
        outcome = metric.outcome(rows)
        counts = [(int(outcome[group].sum()), int(group.sum())) for group in metric.groups(rows)]
        values[name] = intervals.mean_rate(counts)
        bounds[name] = intervals.of_rates(counts, seed, resamples)
    ranked, bounds_of_ranked = scores.ranking(rows, seed, resamples)
    anomalous, normal = int(rows.anomalous.sum()), int(rows.normal.sum())
    asked = anomalous + normal
    return {
        "n": len(rows.ids),
        "n_normal": normal,
        "n_anomalous": anomalous,
        "n_located": int(rows.place_known.sum()),
        "n_typed": int(rows.type_known.sum()),
        **values,
        "gold_yes_rate": 100 * anomalous / asked if asked else None,
        **ranked,
        **scores.calibration_errors(rows),
        "confusion": confusion(rows),
        "ci95": {
            **{name: interval for name, interval in bounds.items() if interval is not None},
            **bounds_of_ranked,
        },
    }


def confusion(rows: Outcomes) -> dict[str, dict[str, int]]:
    """Counts of gold ("yes", "no") x answer ("yes", "no", "invalid")."""
    golds = {"yes": rows.anomalous, "no": rows.normal}
    given = {"yes": rows.yes, "no": rows.no, "invalid": rows.invalid}
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
    are counted in `n_undefined`. `scores` holds {mean, worst_product, worst} of AUROC and average
    precision, where products have them.
    """
    own = _over_products(products, "balanced_accuracy")
    ranked = {name: _over_products(products, name) for name in ("auroc", "ap")}
    return {
        "balanced_accuracy": own["mean"],
        "worst_product": own["worst_product"],
        "worst_balanced_accuracy": own["worst"],
        "n_below_floor": sum(
            row["balanced_accuracy"] is not None and row["balanced_accuracy"] < floor
            for row in products.values()
        ),
        "floor": floor,
        "n_products": len(products),
        "n_undefined": len(products) - own["n"],
        "scores": {name: found for name, found in ranked.items() if found["n"]},
    }


def _over_products(products: Mapping[str, Mapping[str, Any]], metric: str) -> dict[str, Any]:
    """{mean, worst_product, worst, n} over the products that define a metric."""
    found = {n: float(row[metric]) for n, row in products.items() if row[metric] is not None}
    worst = min(found, key=lambda name: (found[name], name), default=None)
    return {
        "mean": float(np.mean(list(found.values()))) if found else None,
        "worst_product": worst,
        "worst": found[worst] if worst is not None else None,
        "n": len(found),
    }


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
