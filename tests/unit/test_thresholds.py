"""What scores are worth and where a threshold lies: against scikit-learn, and by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics
from sklearn.calibration import calibration_curve

from iad_r1.errors import DataError
from iad_r1.judge import rates, scores, thresholds
from iad_r1.types import Prediction

UNHURRIED = settings(deadline=None, max_examples=25)  # a busy machine is not a failure


def scored(rows: list[tuple[str, float]], split: str = "seen", **fields) -> list[Prediction]:
    """Predictions of these labels and probabilities, each answered as its probability has it."""
    return [
        replace(
            Prediction(
                id=str(i), dataset="made", split=split, product="part", shots=0, gold_answer=gold,
                gold_location=None, gold_type=None, completion="", status="ok",
                answer="yes" if p >= 0.5 else "no", location=None, type=None,
                location_correct=None, type_correct=None, p_yes=p, n_tokens=1, stop="stop",
            ),
            **fields,
        )
        for i, (gold, p) in enumerate(rows)
    ]  # fmt: skip


LABELLED = st.lists(
    st.tuples(st.sampled_from(["yes", "no"]), st.integers(0, 8).map(lambda level: level / 8)),
    min_size=2,
    max_size=40,
).filter(lambda rows: len({gold for gold, _ in rows}) == 2)


def columns(rows: list[tuple[str, float]]) -> tuple[list[bool], list[float]]:
    return [gold == "yes" for gold, _ in rows], [p for _, p in rows]


@UNHURRIED
@given(LABELLED)
def test_average_precision_best_f1_and_brier_are_sklearns(rows):
    golds, given_scores = columns(rows)
    summary = rates.summarise(scored(rows), 0, 20)
    precision, recall, _ = metrics.precision_recall_curve(golds, given_scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    assert summary["ap"] == pytest.approx(
        100 * metrics.average_precision_score(golds, given_scores)
    )
    assert summary["f1_max"] == pytest.approx(100 * f1.max())
    rejected, caught, _ = metrics.roc_curve(golds, given_scores)
    assert scores.roc(scored(rows)) == {
        "false_positive": (100 * rejected).tolist(), "true_positive": (100 * caught).tolist()
    }  # fmt: skip
    assert summary["brier"] == pytest.approx(metrics.brier_score_loss(golds, given_scores))


def test_the_calibration_error_has_15_bins_of_equally_many_images():
    rng = np.random.default_rng(3)
    p = rng.random(150)
    rows = [("yes" if rng.random() < x**2 else "no", float(x)) for x in p]
    share, stated = calibration_curve(*columns(rows), n_bins=15, strategy="quantile")
    assert len(share) == 15
    found = rates.summarise(scored(rows), 0, 20)
    assert found["ece"] == pytest.approx(100 * np.mean(np.abs(share - stated)))
    table = scores.calibration(scored(rows))
    assert table is not None and table["ece"] == pytest.approx(found["ece"])


@UNHURRIED
@given(LABELLED, st.randoms(use_true_random=False))
def test_equal_probabilities_give_one_calibration_error_in_any_order(rows, random):
    found = [rates.summarise(scored(r), 0, 20) for r in (rows, random.sample(rows, len(rows)))]
    assert found[0]["ece"] == pytest.approx(found[1]["ece"])


def test_scores_of_another_scale_are_ranked_and_not_calibrated():
    rows = [("no", 0.1), ("yes", 0.3), ("no", 0.2), ("yes", 0.9)]
    other = [
        replace(row, p_yes=None, score=50 * p - 7)
        for row, (_, p) in zip(scored(rows), rows, strict=True)
    ]
    summary, same = rates.summarise(other, 0, 50), rates.summarise(scored(rows), 0, 50)
    for name in ("auroc", "ap", "f1_max"):
        assert summary[name] == same[name] == 100.0
    assert summary["ece"] is summary["brier"] is None is scores.calibration(other)
    assert thresholds.choose(other, "f1").value == pytest.approx(50 * 0.3 - 7)


def test_a_score_that_is_no_number_is_refused():
    rows = [replace(row, p_yes=None, score=float("nan")) for row in scored([("no", 0.1)])]
    with pytest.raises(DataError, match="prediction 0: score=nan"):
        rates.summarise(rows, 0)


# ------------------------------------------------------------------------------ thresholds


BY_HAND = [("yes", 0.9), ("yes", 0.5), ("no", 0.6), ("no", 0.1), ("no", 0.2)]


@pytest.mark.parametrize(
    ("rule", "limit", "miss", "overkill"),
    [
        ("miss", 50.0, 50.0, 0.0),
        ("miss", 49.0, 0.0, 100 / 3),
        ("miss", 0.0, 0.0, 100 / 3),
        ("overkill", 0.0, 50.0, 0.0),
        ("overkill", 34.0, 0.0, 100 / 3),
        ("f1", None, 0.0, 100 / 3),  # 0.8 from 0.5 on, 0.67 from 0.9 on
    ],
)
def test_a_threshold_keeps_its_rate_and_no_more(rule, limit, miss, overkill):
    rows = scored(BY_HAND)
    chosen = thresholds.choose(rows, rule, limit)
    found = thresholds.at(rows, chosen.value, 0)
    assert (found["miss_rate"], found["overkill_rate"]) == pytest.approx((miss, overkill))


@UNHURRIED
@given(LABELLED, st.sampled_from(["miss", "overkill"]), st.floats(0, 99))
def test_no_other_threshold_keeps_the_rate_at_a_lower_price(rows, rule, limit):
    golds, given_scores = columns(rows)
    false, true, _ = metrics.roc_curve(golds, given_scores, drop_intermediate=False)
    curve = {"miss": 100 * (1 - true), "overkill": 100 * false}
    other = {"miss": "overkill", "overkill": "miss"}[rule]
    best = min(b for a, b in zip(curve[rule], curve[other], strict=True) if a <= limit + 1e-6)
    found = thresholds.at(scored(rows), thresholds.choose(scored(rows), rule, limit).value, 0, 20)
    assert found[f"{rule}_rate"] <= limit + 1e-6
    assert found[f"{other}_rate"] == pytest.approx(best)


@UNHURRIED
@given(LABELLED)
def test_the_threshold_of_the_best_f1_gives_it_as_sklearn_counts(rows):
    golds, given_scores = columns(rows)
    value = thresholds.choose(scored(rows), "f1").value
    found = thresholds.at(scored(rows), value, 0, 20)
    called = [score >= value for score in given_scores]
    assert found["f1"] == pytest.approx(100 * metrics.f1_score(golds, called))
    assert found["f1"] == pytest.approx(rates.summarise(scored(rows), 0, 20)["f1_max"])
    assert found["balanced_accuracy"] == pytest.approx(
        100 * metrics.balanced_accuracy_score(golds, called)
    )


@UNHURRIED
@given(st.lists(st.integers(0, 8), min_size=1, max_size=30), st.floats(0, 99))
def test_good_pictures_alone_give_a_threshold_that_rejects_no_more_of_them(levels, limit):
    rows = scored([("no", level / 8) for level in levels])
    found = thresholds.at(rows, thresholds.choose(rows, "overkill", limit).value, 0)
    assert found["overkill_rate"] <= limit and found["miss_rate"] is None


@pytest.mark.parametrize("rule", ["f1", "miss"])
def test_no_threshold_that_must_know_misses_comes_from_good_pictures(rule):
    with pytest.raises(DataError, match="2 pictures of which none is defective"):
        thresholds.choose(scored([("no", 0.1), ("no", 0.4)]), rule, 5.0)


def test_no_overkill_threshold_comes_from_defects_alone():
    with pytest.raises(DataError, match="none is good"):
        thresholds.choose(scored([("yes", 0.1)]), "overkill", 5.0)


def test_a_threshold_needs_every_score():
    rows = [replace(row, p_yes=None) for row in scored(BY_HAND)]
    with pytest.raises(DataError, match="needs a score of every picture"):
        thresholds.choose(rows, "f1")


# ----------------------------------------------------------------------------- where chosen


LIMITS: dict[thresholds.Rule, float | None] = {"miss": 0.0, "overkill": None}
EASY = [("yes", 0.8), ("no", 0.3)]  # validation: 0.8 lets one test defect pass


def points(**splits: list[Prediction]) -> dict[str, dict]:
    answers = {("sft", name, 0): rows for name, rows in splits.items()}
    found = thresholds.operating_points(answers, LIMITS, 0)
    assert [row["split"] for row in found] == ["seen"] * len(found)
    return {row["rule"]: row for row in found}


def test_a_threshold_from_the_test_pictures_is_called_an_oracle():
    found = points(seen=scored(BY_HAND))
    assert set(found) == {"f1", "miss"}  # a rule without a limit is left out
    for row in found.values():
        assert row["oracle"] and row["chosen_on"] == ["the test pictures"]
    assert found["miss"]["miss_rate"] == 0.0


def test_validation_pictures_choose_the_threshold_and_the_test_pictures_pay():
    found = points(seen=scored(BY_HAND), validation_seen=scored(EASY, "validation_seen"))
    assert not found["miss"]["oracle"] and found["miss"]["threshold"] == 0.8
    assert found["miss"]["chosen_on"] == ["validation_seen"]
    assert found["miss"]["n_chosen_on"] == 2
    assert found["miss"]["miss_rate"] == 50.0  # what the oracle would have hidden


def test_the_validation_split_of_the_same_name_comes_before_all_others():
    other = scored([("yes", 0.05), ("no", 0.01)])
    found = points(seen=scored(BY_HAND), validation_new=other, validation_seen=scored(EASY))
    assert found["miss"]["chosen_on"] == ["validation_seen"]
    found = points(seen=scored(BY_HAND), validation_new=other, validation_photos=scored(EASY))
    assert found["miss"]["chosen_on"] == ["validation_new", "validation_photos"]
    assert found["miss"]["n_chosen_on"] == 4 and found["miss"]["threshold"] == 0.05


def test_validation_without_defects_is_refused_and_what_is_shown_instead_is_an_oracle():
    good = scored([("no", 0.1), ("no", 0.4)])
    found = points(seen=scored(BY_HAND), validation_seen=good)
    assert found["miss"]["oracle"] and "none is defective" in found["miss"]["refused"]
    answers = {("sft", "seen", 0): scored(BY_HAND), ("sft", "validation_seen", 0): good}
    rows = thresholds.operating_points(answers, {"overkill": 0.0}, 0)
    (overkill,) = (row for row in rows if row["rule"] == "overkill")
    assert not overkill["oracle"] and overkill["threshold"] == np.nextafter(0.4, 1)


def test_other_stages_and_shots_do_not_choose():
    answers = {
        ("sft", "seen", 0): scored(BY_HAND),
        ("sft", "validation_seen", 1): scored(EASY),
        ("grpo", "validation_seen", 0): scored(EASY),
    }
    assert all(row["oracle"] for row in thresholds.operating_points(answers, LIMITS, 0))


def test_questions_with_options_have_no_operating_points():
    rows = [replace(row, gold_answer="A", answer="A") for row in scored(EASY)]
    assert points(seen=rows) == {}


def test_products_are_averaged_and_the_worst_is_named_by_auroc_and_ap():
    rows = scored([("yes", 0.9), ("no", 0.1), ("yes", 0.2), ("no", 0.3)])
    rows = [replace(row, product="ab"[i // 2]) for i, row in enumerate(rows)]
    found = rates.macro(rates.per_product(rows, 0, 20))["scores"]
    assert found["auroc"] == {"mean": 50.0, "worst_product": "b", "worst": 0.0, "n": 2}
    assert found["ap"]["mean"] == 75.0 and found["ap"]["worst_product"] == "b"
