"""What a reasoning says, by rule, against a reader's labels; and how answers follow from it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from iad_r1 import schema
from iad_r1.data.targets import chain_of_thought
from iad_r1.grid import Grid, words
from iad_r1.judge.reasoning import elsewhere, of_another_type, read, reasoning_scores
from iad_r1.rewards import vocabulary
from iad_r1.types import Prediction, Sample, Solution

GOLDEN = Path(__file__).parents[1] / "golden"
GRID, TYPES = Grid(3, 3), vocabulary("default")
OPPOSITE = {"defective": "sound", "sound": "defective"}


def labelled(name: str) -> list[dict[str, Any]]:
    lines = (GOLDEN / name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def agreement(rows: list[dict[str, Any]]) -> Counter[str]:
    """How often the rule says what the reader says, cannot tell, tells too much, or errs."""
    found: Counter[str] = Counter()
    for row in rows:
        says = read(schema.parse(row["completion"]).think or "").says or "unclear"
        if says == row["says"]:
            found["agrees"] += 1
        elif says == "unclear":
            found["untold"] += 1
        else:
            found["opposite" if OPPOSITE.get(row["says"]) == says else "too much"] += 1
    return found


def test_it_agrees_with_the_reader_on_97_of_the_100_and_never_says_the_opposite():
    found = agreement(labelled("reasonings.jsonl"))
    assert found.total() == 100
    assert found["agrees"] >= 97
    assert found["opposite"] == 0


def test_of_30_that_the_rule_was_not_written_on_it_cannot_tell_half_and_errs_twice_at_most():
    found = agreement(labelled("reasonings_unseen.jsonl"))
    assert found.total() == 30
    assert found["agrees"] >= 13
    assert found["opposite"] + found["too much"] <= 2


def test_places_and_types_unlike_the_tags_are_found_with_one_false_alarm():
    wrong = []
    for row in labelled("reasonings.jsonl"):
        said = schema.parse(row["completion"])
        reading = read(said.think or "")
        if (reading.says, said.verdict) == ("defective", "yes"):
            grid = Grid(5, 5) if "of 5" in (said.location or "") else GRID
            found = ["place"] * elsewhere(reading, said.location, grid)
            found += ["type"] * of_another_type(reading, said.type, TYPES)
            wrong += [row["id"]] * (found != row["unlike"])
    assert len(wrong) <= 1


@pytest.mark.parametrize("grid", [GRID, Grid(5, 5), Grid(1, 1)], ids=str)
@pytest.mark.parametrize("kind", ["scratch", None])
def test_every_reasoning_by_rule_bears_out_its_own_tags(grid, kind):
    for number in range(24):
        cell = words(number % grid.cells, grid)
        for solution in (Solution("No"), Solution("Yes", cell, kind)):
            sample = Sample(str(number), "made", "train", "bolt", Path("a.png"), solution)
            said = schema.parse(chain_of_thought(sample, 0, grid).text)
            reading = read(said.think or "")
            assert reading.says == ("defective" if solution.answer == "Yes" else "sound")
            assert not elsewhere(reading, said.location, grid)
            assert not of_another_type(reading, said.type, TYPES)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("There is a scratch.", "defective"),
        ("There is no scratch.", "sound"),
        ("A scratch is not visible.", "sound"),
        ("It cannot be called free of scratches.", "defective"),
        ("A scratch would be a reason to reject it.", None),
        ("It is darker than a good part.", None),
        ("", None),
    ],
)
def test_denials_and_suppositions_count(text, says):
    assert read(text).says == says


def test_a_place_beside_the_tag_is_found_only_where_it_is_named():
    assert elsewhere(read("In the upper left there is a scratch."), "bottom right", GRID)
    assert not elsewhere(read("In the upper left there is a scratch."), "top left", GRID)
    assert not elsewhere(read("There is a scratch near the edge."), "bottom right", GRID)
    assert not elsewhere(read("There is a scratch. The top left is clean."), "center", GRID)


def predicted(gold: str, answer: str, think: str | None, **tags: str) -> Prediction:
    inner = "" if think is None else f"<think>{think}</think>"
    return Prediction(
        id=f"{gold} {answer} {think}",
        dataset="made",
        split="seen",
        product="screw",
        shots=0,
        gold_answer=gold,
        gold_location=None,
        gold_type=None,
        completion=f"{inner}<answer>{answer.capitalize()}</answer>",
        status="ok",
        answer=answer,
        location=tags.get("place"),
        type=tags.get("type"),
        location_correct=None,
        type_correct=None,
        p_yes=None,
        n_tokens=1,
        stop="stop",
    )


SCRATCH = "At the top left there is a scratch."
ROWS = [
    predicted("yes", "yes", SCRATCH, place="top left", type="scratch"),
    predicted("yes", "yes", SCRATCH, place="center", type="hole"),
    predicted("no", "yes", SCRATCH, place="top left", type="scratch"),
    predicted("yes", "no", SCRATCH),
    predicted("yes", "yes", "No damage is visible.", place="center", type="hole"),
    predicted("no", "no", "No damage is visible."),
    predicted("no", "no", "A metal part on a table."),
    predicted("no", "no", None),
    predicted("no", "invalid", SCRATCH),
    predicted("A", "A", SCRATCH),
]


def test_every_reasoned_answer_is_right_wrong_contradicted_or_untold():
    assert reasoning_scores(ROWS, GRID, TYPES) == {
        "n": 7,
        "without": 1,
        "consistent_right": 3,
        "consistent_wrong": 1,
        "contradictory": 2,
        "defect_but_no": 1,
        "sound_but_yes": 1,
        "untold": 1,
        "defects": 3,
        "place": 1,
        "type": 1,
    }


def test_answers_without_reasoning_have_no_such_numbers():
    assert reasoning_scores(ROWS[7:8], GRID, TYPES) is None
    detector = [replace(row, score=0.5) for row in ROWS]
    assert reasoning_scores(detector, GRID, TYPES) is None
