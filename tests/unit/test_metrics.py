"""The numbers in every table: checked against other libraries, by hand, and by property."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import balanced_accuracy_score, brier_score_loss, roc_auc_score

from iad_r1.errors import DataError, MismatchError
from iad_r1.judge import compare, intervals, rates, scores
from iad_r1.schema import Status
from iad_r1.types import Prediction


def prediction(
    id: str = "a",
    gold: str = "yes",
    answer: str = "yes",
    *,
    product: str = "screw",
    located: bool | None = None,
    typed: bool | None = None,
    status: str = Status.OK.value,
    p_yes: float | None = None,
) -> Prediction:
    return Prediction(
        id=id,
        dataset="made",
        split="seen",
        product=product,
        shots=0,
        gold_answer=gold,
        gold_location="center" if located is not None else None,
        gold_type="scratch" if typed is not None else None,
        completion="",
        status=status,
        answer=answer,
        location=None,
        type=None,
        location_correct=located,
        type_correct=typed,
        p_yes=p_yes,
        n_tokens=1,
        stop="stop",
    )


def rows_of(answers: list[tuple[str, str]], **fields: Any) -> list[Prediction]:
    return [
        replace(prediction(str(i), gold, answer), **fields)
        for i, (gold, answer) in enumerate(answers)
    ]


UNHURRIED = settings(deadline=None, max_examples=40)  # a busy machine is not a failure
GOLD_AND_ANSWER = st.lists(
    st.tuples(st.sampled_from(["yes", "no"]), st.sampled_from(["yes", "no", "invalid"])),
    min_size=1,
    max_size=60,
)
BOTH_CLASSES = GOLD_AND_ANSWER.filter(lambda rows: len({gold for gold, _ in rows}) == 2)


@UNHURRIED
@given(BOTH_CLASSES)
def test_balanced_accuracy_is_sklearns_with_invalid_counted_as_wrong(answers):
    wrong = {"yes": "no", "no": "yes"}
    strict = [answer if answer != "invalid" else wrong[gold] for gold, answer in answers]
    expected = 100 * balanced_accuracy_score([gold for gold, _ in answers], strict)
    assert rates.summarise(rows_of(answers), 0, 50)["balanced_accuracy"] == pytest.approx(expected)


@UNHURRIED
@given(BOTH_CLASSES)
def test_miss_and_overkill_are_what_balanced_accuracy_leaves(answers):
    summary = rates.summarise(rows_of(answers), 0, 50)
    assert summary["balanced_accuracy"] == pytest.approx(
        100 - (summary["miss_rate"] + summary["overkill_rate"]) / 2
    )


@UNHURRIED
@given(GOLD_AND_ANSWER, st.randoms(use_true_random=False))
def test_the_order_of_images_does_not_matter(answers, random):
    rows = rows_of(answers)
    shuffled = random.sample(rows, len(rows))
    assert rates.summarise(rows, 0, 50) == rates.summarise(shuffled, 0, 50)


@UNHURRIED
@given(GOLD_AND_ANSWER)
def test_every_interval_contains_its_value_and_stays_between_0_and_100(answers):
    summary = rates.summarise(rows_of(answers), 0, 400)
    for name, (low, high) in summary["ci95"].items():
        assert 0 <= low <= summary[name] + 1e-9 and summary[name] - 1e-9 <= high <= 100, name
        assert high > low, f"{name}: a sample of {len(answers)} images cannot be certain"


@UNHURRIED
@given(GOLD_AND_ANSWER)
def test_the_confusion_table_counts_every_image_once(answers):
    summary = rates.summarise(rows_of(answers), 0, 50)
    cells = [n for row in summary["confusion"].values() for n in row.values()]
    assert sum(cells) == summary["n"] == summary["n_normal"] + summary["n_anomalous"]


@UNHURRIED
@given(st.integers(0, 40), st.integers(0, 40))
def test_wilson_is_scipys(right, wrong):
    n = right + wrong
    if n == 0:
        assert intervals.wilson(right, n) is None
        return
    bounds = binomtest(right, n).proportion_ci(method="wilson")
    assert intervals.wilson(right, n) == pytest.approx([100 * bounds.low, 100 * bounds.high])


def test_wilson_by_hand():
    assert intervals.wilson(0, 10) == pytest.approx([0, 100 * 3.8415 / 13.8415], abs=0.01)
    assert intervals.wilson(5, 10) == pytest.approx([23.66, 76.34], abs=0.01)


def test_rates_carry_wilson_intervals():
    answers = [("yes", "no")] * 3 + [("yes", "yes")] * 17 + [("no", "no")] * 10
    summary = rates.summarise(rows_of(answers), 0)
    assert summary["miss_rate"] == 15.0
    assert summary["ci95"]["miss_rate"] == intervals.wilson(3, 20)
    assert summary["ci95"]["overkill_rate"] == intervals.wilson(0, 10)


def test_the_bootstrap_of_counts_is_the_bootstrap_of_images():
    """Drawing binomial counts must match resampling the images one by one."""
    answers = [("yes", "yes")] * 61 + [("yes", "no")] * 19 + [("no", "no")] * 50
    answers += [("no", "yes")] * 10
    low, high = rates.summarise(rows_of(answers), 3, 20_000)["ci95"]["balanced_accuracy"]
    rng = np.random.default_rng(0)
    right = [np.repeat([1, 0], [61, 19]), np.repeat([1, 0], [50, 10])]
    draws = [
        50 * sum(side[rng.integers(0, side.size, side.size)].mean() for side in right)
        for _ in range(20_000)
    ]
    assert [low, high] == pytest.approx(np.percentile(draws, [2.5, 97.5]), abs=0.35)


def test_a_balanced_accuracy_interval_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(1)
    truth, covered, trials = 100 * (0.8 + 0.9) / 2, 0, 300
    for trial in range(trials):
        caught, passed = rng.random(60) < 0.8, rng.random(60) < 0.9
        answers = [("yes", "yes" if hit else "no") for hit in caught]
        answers += [("no", "no" if hit else "yes") for hit in passed]
        low, high = rates.summarise(rows_of(answers), trial, 500)["ci95"]["balanced_accuracy"]
        covered += low <= truth <= high
    assert 0.90 <= covered / trials <= 0.99


def test_a_perfect_small_sample_is_not_reported_as_certain():
    summary = rates.summarise(rows_of([("yes", "yes")] * 5 + [("no", "no")] * 5), 0)
    low, high = summary["ci95"]["balanced_accuracy"]
    assert summary["balanced_accuracy"] == high == 100.0 and low < 80


def test_same_seed_same_intervals():
    answers = [("yes", "yes"), ("yes", "no"), ("no", "no"), ("no", "yes"), ("no", "no")]
    assert rates.summarise(rows_of(answers), 7) == rates.summarise(rows_of(answers), 7)


def test_one_class_alone_has_no_balanced_accuracy():
    summary = rates.summarise(rows_of([("no", "no"), ("no", "yes")]), 0)
    assert summary["balanced_accuracy"] is None and summary["miss_rate"] is None
    assert summary["overkill_rate"] == 50.0
    assert "balanced_accuracy" not in summary["ci95"]


def test_no_predictions_give_none_not_a_crash():
    summary = rates.summarise([], 0)
    assert summary["n"] == 0 and summary["ci95"] == {}
    assert all(summary[name] is None for name in rates.METRICS)


def test_a_missed_defect_has_the_wrong_location_even_if_its_text_named_the_right_cell():
    rows = [
        prediction("hit", "yes", "yes", located=True, typed=True),
        prediction("elsewhere", "yes", "yes", located=False, typed=False),
        prediction("missed", "yes", "no", located=True, typed=True),
        prediction("unreadable", "yes", "invalid", located=True, typed=True),
        prediction("no mask", "yes", "yes"),
        prediction("clean", "no", "no"),
    ]
    summary = rates.summarise(rows, 0)
    assert summary["n_located"] == 4
    assert summary["location_accuracy"] == 25.0 and summary["type_accuracy"] == 25.0
    assert summary["location_accuracy_detected"] == 50.0


def test_well_formed_counts_the_parsers_verdict():
    rows = [
        prediction("a"),
        prediction("b", status=Status.MISSING_TAG),
        prediction("c", "no", "no"),
    ]
    assert rates.summarise(rows, 0)["well_formed"] == pytest.approx(200 / 3)


@UNHURRIED
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 8)), min_size=2, max_size=40))
def test_auroc_is_sklearns(rows):
    golds = [gold for gold, _ in rows]
    if len(set(golds)) < 2:
        golds = [True, *([False] * (len(rows) - 1))]
    scores = [level / 8 for _, level in rows]
    table = [
        prediction(str(i), "yes" if gold else "no", p_yes=score)
        for i, (gold, score) in enumerate(zip(golds, scores, strict=True))
    ]
    assert rates.summarise(table, 0, 20)["auroc"] == pytest.approx(
        100 * roc_auc_score(golds, scores)
    )


def test_auroc_needs_a_score_on_every_image():
    rows = [prediction("a", "yes", p_yes=0.9), prediction("b", "no", "no")]
    assert rates.summarise(rows, 0)["auroc"] is None


def test_the_auroc_interval_matches_resampled_images():
    rng = np.random.default_rng(5)
    golds = np.repeat([True, False], [50, 70])
    scores = np.clip(rng.normal(0.4 + 0.15 * golds, 0.2), 0, 1)
    rows = [
        prediction(str(i), "yes" if gold else "no", p_yes=float(score))
        for i, (gold, score) in enumerate(zip(golds, scores, strict=True))
    ]
    draws = []
    for _ in range(500):
        chosen = np.concatenate([rng.integers(0, 50, 50), rng.integers(50, 120, 70)])
        draws.append(100 * roc_auc_score(golds[chosen], scores[chosen]))
    interval = rates.summarise(rows, 0, 4000)["ci95"]["auroc"]
    assert interval == pytest.approx(np.percentile(draws, [2.5, 97.5]), abs=2.0)


@pytest.mark.parametrize("p_yes", [math.nan, 1.5, -0.1])
def test_a_score_that_is_no_probability_is_refused(p_yes):
    with pytest.raises(DataError, match="image-7"):
        rates.summarise([prediction("image-7", p_yes=p_yes)], 0)


def test_an_unknown_answer_is_refused_by_name():
    with pytest.raises(DataError, match=r"part-3.*maybe"):
        rates.summarise([prediction("part-3", "yes", "maybe")], 0)


def test_an_image_predicted_twice_is_refused():
    with pytest.raises(DataError, match="more than once, such as twin"):
        rates.summarise([prediction("twin"), prediction("twin")], 0)


# ----------------------------------------------------------------------- multiple choice


CHOICES = [("A", "A"), ("B", "C"), ("C", "C"), ("D", "invalid")]


def test_a_multiple_choice_has_an_accuracy_and_no_rates_of_defects():
    summary = rates.summarise(rows_of(CHOICES), 0)
    assert summary["accuracy"] == 50.0 and summary["invalid_rate"] == 25.0
    assert summary["ci95"]["accuracy"] == intervals.wilson(2, 4)
    known = {name for name in rates.METRICS if summary[name] is not None}
    assert known == set(summary["ci95"]) == {"accuracy", "invalid_rate", "well_formed"}
    assert (summary["n"], summary["n_normal"], summary["n_anomalous"]) == (4, 0, 0)
    assert summary["gold_yes_rate"] is None and summary["auroc"] is None


def test_accuracy_of_yes_and_no_counts_every_image_alike():
    summary = rates.summarise(
        rows_of([("yes", "yes"), ("yes", "no"), ("yes", "yes"), ("no", "no")]), 0
    )
    assert summary["accuracy"] == 75.0 and summary["ci95"]["accuracy"] == intervals.wilson(3, 4)


def test_two_kinds_of_question_are_not_put_into_one_table():
    mixed = [*rows_of(CHOICES), prediction("part", "yes", "yes")]
    with pytest.raises(DataError, match="4 of 5 predictions answer a multiple choice"):
        rates.summarise(mixed, 0)


def test_a_multiple_choice_answered_with_yes_is_refused_by_name():
    with pytest.raises(DataError, match=r"part-3.*'A'.*'yes'"):
        rates.summarise([prediction("part-3", "A", "yes")], 0)


def test_the_accuracy_of_choices_is_paired_on_the_same_golds():
    before = rows_of(CHOICES)
    after = [replace(row, answer=row.gold_answer) for row in before]
    assert compare.paired_difference(before, after, "accuracy", 0)["delta"] == 50.0
    other = [replace(row, gold_answer="A") for row in after]
    with pytest.raises(MismatchError, match="3 images have another label"):
        compare.paired_difference(before, other, "accuracy", 0)


# ------------------------------------------------------------------------------ products


def test_products_are_summarised_apart_and_the_worst_is_named():
    rows = [
        prediction("1", "yes", "yes", product="cube"),
        prediction("2", "no", "no", product="cube"),
        prediction("3", "yes", "no", product="cookie"),
        prediction("4", "no", "no", product="cookie"),
        prediction("5", "no", "no", product="toy"),
    ]
    products = rates.per_product(rows, 0)
    assert list(products) == ["cookie", "cube", "toy"]
    overall = rates.macro(products)
    assert overall["balanced_accuracy"] == 75.0
    assert overall["worst_product"] == "cookie" and overall["worst_balanced_accuracy"] == 50.0
    assert overall["n_below_floor"] == 1 and overall["n_undefined"] == 1


# --------------------------------------------------------------------- paired differences


@UNHURRIED
@given(BOTH_CLASSES, st.data())
def test_a_paired_difference_is_after_minus_before(answers, data):
    before = rows_of(answers)
    after = [
        replace(row, answer=data.draw(st.sampled_from(["yes", "no", "invalid"]))) for row in before
    ]
    for metric in ("accuracy", "balanced_accuracy", "miss_rate", "yes_rate", "invalid_rate"):
        difference = compare.paired_difference(before, after[::-1], metric, 0, 50)
        values = [rates.summarise(side, 0, 10)[metric] for side in (before, after)]
        assert difference["delta"] == pytest.approx(values[1] - values[0])
        mirrored = compare.paired_difference(after, before, metric, 0, 50)
        assert mirrored["delta"] == pytest.approx(-difference["delta"])


def test_the_paired_interval_matches_resampled_images():
    rng = np.random.default_rng(2)
    before = [prediction(str(i), "yes", "yes" if rng.random() < 0.6 else "no") for i in range(150)]
    after = [replace(row, answer="yes") if rng.random() < 0.3 else row for row in before]
    changed = [old.answer != new.answer for old, new in zip(before, after, strict=True)]
    change = np.array(changed, dtype=int)
    draws = [100 * change[rng.integers(0, 150, 150)].mean() for _ in range(20_000)]
    found = compare.paired_difference(after, before, "miss_rate", 0, 20_000)
    assert found["ci95"] == pytest.approx(np.percentile(draws, [2.5, 97.5]), abs=0.7)
    assert found["n"] == 150 and found["n_changed"] == int(change.sum())


def test_pairing_cancels_what_both_sides_share():
    """Two runs that agree on nearly all images differ by a little with certainty."""
    before = rows_of([("yes", "yes")] * 50 + [("yes", "no")] * 50)
    after = [replace(row, answer="yes") if int(row.id) in range(50, 60) else row for row in before]
    difference = compare.paired_difference(before, after, "miss_rate", 0)
    assert difference["delta"] == -10.0 and difference["ci95"][1] < 0
    separate = [rates.summarise(side, 0)["ci95"]["miss_rate"] for side in (before, after)]
    assert separate[1][1] > separate[0][0], "the separate intervals overlap"


def test_identical_runs_differ_by_nothing_but_few_images_do_not_prove_it():
    few = rows_of([("yes", "yes"), ("no", "yes"), ("no", "no")])
    many = rows_of([("yes", "yes"), ("no", "yes"), ("no", "no")] * 200)
    widths = []
    for rows in (few, many):
        found = compare.paired_difference(rows, rows, "balanced_accuracy", 0)
        assert (found["delta"], found["n"], found["n_changed"]) == (0.0, len(rows), 0)
        low, high = found["ci95"]
        assert low < 0 < high and low == pytest.approx(-high)
        widths.append(high - low)
    assert widths[0] > 50 > 3 > widths[1]


def test_a_class_without_a_change_does_not_make_the_other_certain():
    """Good parts are judged alike, defective ones are not: both kinds of doubt count."""
    before = rows_of([("yes", "no")] * 10 + [("no", "no")] * 10)
    after = [replace(row, answer="yes") if int(row.id) < 5 else row for row in before]
    found = compare.paired_difference(before, after, "balanced_accuracy", 0)
    misses = compare.paired_difference(before, after, "miss_rate", 0)
    assert found["delta"] == 25.0 and misses["delta"] == -50.0
    assert np.ptp(found["ci95"]) > np.ptp(misses["ci95"]) / 2


def test_different_images_are_refused_and_named():
    before, after = [prediction("x"), prediction("y")], [prediction("y"), prediction("z")]
    with pytest.raises(MismatchError, match=r"only before \(such as \['x'\]\).*\['z'\]"):
        compare.paired_difference(before, after, "miss_rate", 0)


def test_another_label_for_the_same_image_is_refused():
    before, after = (
        [prediction("x", "yes"), prediction("y", "no")],
        [prediction("x", "no"), prediction("y", "no")],
    )
    with pytest.raises(MismatchError, match=r"another label.*such as x"):
        compare.paired_difference(before, after, "miss_rate", 0)


def test_a_metric_over_a_moving_set_of_images_is_not_paired():
    with pytest.raises(MismatchError, match="location_accuracy_detected"):
        compare.paired_difference([prediction()], [prediction()], "location_accuracy_detected", 0)


def seeds_of(n_seeds: int, images: int, gain: float, same_images: bool):
    rng = np.random.default_rng(9)
    hard = rng.random(images) < 0.4
    pairs = []
    for seed in range(n_seeds):
        prefix = "" if same_images else f"{seed}-"
        before = [
            prediction(f"{prefix}{i}", "yes", "no" if hard[i] else "yes") for i in range(images)
        ]
        after = [
            replace(row, answer="yes") if rng.random() < gain + 0.15 * seed else row
            for row in before
        ]
        pairs.append((before, after))
    return pairs


@pytest.mark.parametrize(("same_images", "design"), [(True, "crossed"), (False, "nested")])
def test_the_pooled_difference_is_the_mean_over_seeds(same_images, design):
    pairs = seeds_of(3, 120, 0.3, same_images)
    found = compare.pooled_paired_difference(pairs, "miss_rate", 0, 500)
    assert found["design"] == design and found["n_seeds"] == 3 and found["n"] == 120
    assert found["delta"] == pytest.approx(np.mean(found["per_seed"]))
    assert found["ci95"][0] < found["delta"] < found["ci95"][1]
    assert found == compare.pooled_paired_difference(pairs, "miss_rate", 0, 500)


@pytest.mark.parametrize("same_images", [True, False])
def test_the_pooled_interval_covers_the_spread_between_seeds(same_images):
    """Three seeds that differ widely are less sure than one of them tested alone."""
    pairs = seeds_of(3, 2000, 0.1, same_images)
    pooled = compare.pooled_paired_difference(pairs, "miss_rate", 0, 500)
    before, after = pairs[1]
    alone = compare.paired_difference(before, after, "miss_rate", 0, 500)
    assert np.ptp(pooled["ci95"]) > 1.5 * np.ptp(alone["ci95"])


def test_pictures_drawn_anew_for_each_seed_are_not_the_same_images_for_being_numbered_alike():
    pairs = seeds_of(2, 60, 0.3, same_images=True)
    before, after = ([replace(row, gold_location="top left") for row in side] for side in pairs[1])
    found = compare.pooled_paired_difference([pairs[0], (before, after)], "miss_rate", 0, 100)
    assert found["design"] == "nested"


def test_one_seed_pooled_is_the_paired_difference():
    pair = seeds_of(1, 200, 0.3, True)
    pooled = compare.pooled_paired_difference(pair, "miss_rate", 0, 4000)
    before, after = pair[0]
    single = compare.paired_difference(before, after, "miss_rate", 0, 4000)
    assert pooled["delta"] == pytest.approx(single["delta"])
    assert pooled["ci95"] == pytest.approx(single["ci95"], abs=1.0)


# ------------------------------------------------------- chance, factory, scores


def test_chance_levels_by_hand():
    cells = ("left", "center", "right")
    chance = rates.location_chance(
        [{"center"}, {"center"}, {"left", "center"}, {"right"}], cells, "center", [1, 2, 1]
    )
    assert chance["always_center"] == chance["best_constant"] == 75.0
    assert chance["best_cell"] == "center" and chance["n"] == 4
    assert chance["uniform"] == pytest.approx(100 * 5 / 12)
    assert chance["area_weighted"] == pytest.approx(100 * (0.25 * 1 + 0.75 * 2 + 0.25 * 1) / 4)


@UNHURRIED
@given(st.lists(st.sampled_from("abcdefghi"), min_size=1, max_size=50))
def test_a_random_guess_among_nine_equal_cells_is_right_one_time_in_nine(golds):
    chance = rates.location_chance([{gold} for gold in golds], "abcdefghi", "e")
    assert chance["uniform"] == pytest.approx(100 / 9)
    assert chance["area_weighted"] == pytest.approx(100 / 9)


def test_factory_numbers_by_hand():
    view = rates.factory_view(miss_rate=10, overkill_rate=4, defect_prior=0.005, parts=10_000)
    assert view["defective"] == 50 and view["missed"] == 5
    assert view["overkilled"] == pytest.approx(398)
    assert view["ppv"] == pytest.approx(100 * 45 / 443)
    assert view["npv"] == pytest.approx(100 * 9552 / 9557)


@UNHURRIED
@given(st.floats(0, 100), st.floats(0, 100), st.floats(0, 1), st.integers(1, 10**6))
def test_every_part_is_counted_once(miss, overkill, prior, parts):
    view = rates.factory_view(miss, overkill, prior, parts)
    fates = [view[name] or 0.0 for name in ("caught", "missed", "overkilled", "passed")]
    assert sum(fates) == pytest.approx(parts)


def scored(pairs: list[tuple[str, float]]) -> list[Prediction]:
    return [prediction(str(i), gold, p_yes=p) for i, (gold, p) in enumerate(pairs)]


def test_calibration_by_hand_and_brier_by_sklearn():
    rows = scored([("yes", 0.9), ("yes", 0.9), ("no", 0.1), ("yes", 0.1)])
    table = scores.calibration(rows, bins=2)
    assert table is not None
    assert [row["p_yes"] for row in table["bins"]] == pytest.approx([10, 90])
    assert [row["anomalous"] for row in table["bins"]] == pytest.approx([50, 100])
    assert table["ece"] == pytest.approx(25)
    golds = [row.gold_answer == "yes" for row in rows]
    assert table["brier"] == pytest.approx(brier_score_loss(golds, [0.9, 0.9, 0.1, 0.1]))


def test_without_scores_there_is_no_roc_and_no_calibration():
    rows = [prediction("a"), prediction("b", "no", "no")]
    assert scores.roc(rows) is None and scores.calibration(rows) is None
