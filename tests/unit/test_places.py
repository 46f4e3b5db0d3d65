"""Scores of places: by cell and distance, of what is called defective and of all, and by guessing.

Worked by hand on a 3 x 3 grid: cells are numbered 0 to 8 in reading order.
"""

from __future__ import annotations

import numpy as np
import pytest

from iad_r1.grid import Grid, cells_touched, distance
from iad_r1.judge.places import chance, place_scores
from iad_r1.types import Prediction

GRID = Grid(3, 3)


def placed(
    number: int, said: str | None, gold: str | None, touched: str | None, answer: str = "yes"
) -> Prediction:
    """A picture, defective if it has a `gold` place; `said` is where the defect is said to be."""
    return Prediction(
        id=str(number),
        dataset="made",
        split="seen",
        product="screw",
        shots=0,
        gold_answer="yes" if gold else "no",
        gold_location=gold,
        gold_type=None,
        completion="",
        status="ok",
        answer=answer,
        location=said,
        type=None,
        location_correct=said == gold if gold else None,
        type_correct=None,
        p_yes=None,
        n_tokens=1,
        stop="stop",
        gold_cells=touched,
    )


ROWS = [
    placed(0, "top left", "top left", "top left, top center"),  # right: distance 0
    placed(1, "top center", "top left", "top left, top center"),  # touches it: distance 1
    placed(2, "bottom right", "top left", "top left"),  # two cells away
    placed(3, "somewhere", "center", "center"),  # names no cell
    placed(4, "center", "center", "center", answer="no"),  # missed
    placed(5, "center", None, None),  # a good part
]


def test_a_missed_defect_counts_as_not_placed_unless_only_detected_ones_are_asked_for():
    found = place_scores(ROWS, GRID)
    assert found is not None
    assert (found["n"], found["n_detected"], found["unread"]) == (5, 4, 1)
    assert (found["hit"], found["hit_detected"]) == (20.0, 25.0)
    assert (found["touch"], found["touch_detected"]) == (40.0, 50.0)
    assert found["ci95"]["hit"][0] < 20 < found["ci95"]["hit"][1]


def test_the_distance_is_that_of_the_defects_which_were_detected_and_placed():
    found = place_scores(ROWS, GRID)
    assert found is not None and found["distance"] == (0 + 1 + 2) / 3


def test_naming_the_whole_picture_touches_no_defect_that_leaves_a_cell_out():
    everywhere = placed(0, "whole image", "center", "center, top left")
    found = place_scores([everywhere], GRID)
    assert found is not None and (found["hit"], found["touch"]) == (0.0, 0.0)
    # eight cells lie next to the center, which is the true one
    assert found["distance"] == pytest.approx(8 / 9)


def test_guessers_are_scored_by_both_rules():
    found = place_scores(ROWS, GRID)
    assert found is not None
    hit, touch = found["chance"]["hit"], found["chance"]["touch"]
    assert hit["uniform"] == hit["area_weighted"] == pytest.approx(100 / 9)
    assert (hit["always_center"], hit["best_cell"], hit["best_constant"]) == (
        40.0,
        "top left",
        60.0,
    )
    assert touch["uniform"] == pytest.approx(100 * (2 + 2 + 1 + 1 + 1) / 5 / 9)
    assert (touch["always_center"], touch["best_cell"]) == (40.0, "top left")


def test_a_guesser_of_one_cell_is_wrong_where_the_defect_is_in_several():
    golds = [frozenset({0, 8}), frozenset({4})]
    assert chance(golds, GRID)["uniform"] == pytest.approx(100 / 2 / 9)
    assert chance(golds, GRID)["always_center"] == 50.0
    assert chance(golds[1:0], Grid(2, 2))["n"] == 0
    assert chance([frozenset({3})], Grid(2, 2), several=True)["always_center"] is None


def test_older_predictions_that_do_not_say_which_cells_are_touched_keep_their_hits():
    found = place_scores([placed(0, "center", "center", None)], GRID)
    assert found is not None and found["hit"] == 100.0 and "touch" not in found
    assert "touch" not in found["chance"]


def test_without_an_annotated_place_there_is_nothing_to_score():
    assert place_scores([placed(0, None, None, None, answer="no")], GRID) is None


def test_cells_are_touched_by_any_pixel_of_theirs_and_no_other():
    mask = np.zeros((6, 9), bool)
    assert cells_touched(mask, GRID) == frozenset()
    mask[1, 2] = mask[2, 2:4] = True  # rows of two pixels, columns of three
    assert cells_touched(mask, GRID) == {0, 3, 4}


def test_cells_are_as_far_apart_as_a_king_would_walk():
    assert [distance(0, other, GRID) for other in range(9)] == [0, 1, 2, 1, 1, 2, 2, 2, 2]
