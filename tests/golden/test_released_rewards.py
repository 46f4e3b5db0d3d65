"""The released reward sets return what the papers' own code returns, row by row.

The golden files are read in place, from the folder beside the checkout.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.rewards import Naive
from iad_r1 import grid, rewards
from iad_r1.rewards.sets import load

COLUMNS = (
    "consistency",
    "accuracy",
    "accuracy_without_type",
    "accuracy_without_location",
    "answer_only",
    "format_base",
)


def rows(shared: Path, name: str) -> list[dict]:
    text = (shared / "golden" / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@cache
def released(function: str) -> Callable[[str, str], float]:
    component = {"function": f"released:{function}", "weight": 1.0, "gate": None}
    mapping = {"name": function, "vocabulary": None, "components": {function: component}}
    chosen = load(mapping)
    return lambda completion, solution: chosen.score(completion, solution).total


@pytest.fixture(scope="module")
def scored(shared: Path) -> list[dict]:
    return rows(shared, "sc_grpo_rewards")


@pytest.mark.parametrize("column", COLUMNS)
def test_every_row_of_every_column_is_reproduced(scored: list[dict], column: str) -> None:
    score = released(column)
    wrong = [row for row in scored if score(row["completion"], row["solution"]) != row[column]]
    assert len({row[column] for row in scored}) >= 2, "the column cannot fail us"
    assert not wrong, f"{len(wrong)} of {len(scored)} rows differ, first: {wrong[0]}"


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("sc_grpo_released", {"consistency": "consistency", "accuracy": "accuracy"}),
        (
            "sc_grpo_released_without_type",
            {"consistency": "consistency", "accuracy": "accuracy_without_type"},
        ),
        (
            "sc_grpo_released_without_location",
            {"consistency": "consistency", "accuracy": "accuracy_without_location"},
        ),
        ("answer_only_released", {"format": "format_base", "answer": "answer_only"}),
    ],
)
def test_the_released_sets_name_and_sum_these_columns(
    scored: list[dict], name: str, columns: dict[str, str]
) -> None:
    chosen = rewards.load(name)
    for row in scored:
        score = chosen.score(row["completion"], row["solution"])
        assert score.parts == {part: row[column] for part, column in columns.items()}
        assert score.total == pytest.approx(sum(row[column] for column in columns.values()))


def test_every_type_score_is_reproduced(shared: Path) -> None:
    table = rows(shared, "type_scores")
    wrong = [
        row
        for row in table
        if rewards.type_score(row["predicted"], row["actual"], released=True) != row["score"]
    ]
    assert len(table) >= 400 and {0.0, 0.3, 0.85, 1.0} < {row["score"] for row in table}
    assert not wrong, wrong[:3]


def test_every_location_score_is_reproduced(shared: Path) -> None:
    table = rows(shared, "location_scores")
    wrong = [
        row
        for row in table
        if grid.location_score(row["predicted"], row["actual"], "3x3", released=True)
        != row["score"]
    ]
    assert {row["score"] for row in table} == {0, 1}
    assert not wrong, wrong[:3]


def test_every_roam_and_choice_score_is_reproduced(shared: Path) -> None:
    table = rows(shared, "roam_rewards")
    assert {row["roam"] for row in table} == {0.0, 0.05, 0.1, 0.8, 1.0}
    both = rewards.load("anomaly_r1_released")
    for name in ("roam", "choice"):
        chosen = rewards.load(f"{name}_released")
        for row in table:
            score = chosen.score(row["completion"], row["solution"])
            assert score.total == score.parts[name] == row[name], row
    for row in table:
        score = both.score(row["completion"], row["solution"])
        assert score.parts == {"roam": row["roam"], "choice": row["choice"]}
        assert score.total == row["roam"] + row["choice"]


# --- beyond the rows: equal to the regular expressions they came from -----------------------------

NAIVE = Naive()
PIECES = st.sampled_from(
    [
        *(f"<{slash}{tag}>" for tag in ("think", "location", "type", "answer") for slash in "/ "),
        *("<think>", "</think><answer>", "</think><location>", "</location><type>"),
        *("</type><answer>", "<THINK>", "\n", " ", "\r", "\u2028", "x", "Yes", "No", "no ", "YES"),
        *("top", "Left", "copyright", "slower", "center", "stain", "a stain.", "scrach", ".", ""),
    ]
).map(lambda piece: piece.replace("< ", "<"))
TEXTS = st.lists(PIECES, max_size=14).map("".join)
LABELS = st.sampled_from(["Yes", "yes", " YES ", "No", "no", "NO "])
SOLUTIONS = st.one_of(
    LABELS,
    LABELS.map(lambda label: f"<answer>{label}</answer>"),
    st.tuples(TEXTS, LABELS).map(
        lambda pair: (
            f"<location>top left</location><type>stain</type><answer>{pair[1]}</answer>" + pair[0]
        )
    ),
)


@pytest.mark.parametrize("column", COLUMNS)
def test_any_text_scores_as_the_patterns_score_it(column: str) -> None:
    score = released(column)

    @settings(deadline=None)
    @given(TEXTS, SOLUTIONS)
    def agree(completion: str, solution: str) -> None:
        assert score(completion, solution) == getattr(NAIVE, column)(completion, solution)

    agree()


def test_well_formed_texts_with_one_thing_changed_score_as_the_patterns_score_them(
    scored: list[dict],
) -> None:
    chance = random.Random(0)
    for row in scored:
        pieces = re.split(r"(</?\w+>|\s+)", row["completion"])
        at, other = chance.randrange(len(pieces)), chance.randrange(len(pieces))
        pieces[at], pieces[other] = pieces[other], pieces[at]
        changed = "".join(pieces)
        for column in COLUMNS:
            ours = released(column)(changed, row["solution"])
            assert ours == getattr(NAIVE, column)(changed, row["solution"]), (column, changed)


WORDS = st.sampled_from(
    [
        *("surface", "scratch", "mark", "bent", "component", "structural", "damage", "anomaly"),
        *("anomalies", "hole", "through-hole", "shape", "deviation", "shape-deviation", "wear"),
        *("on the", "near edge", "defect", "s", "a", ".", "!", "  ", "-", "foreign", "matter"),
        *("erosion", "Contamination", "presence of foreign objects", "missing", "part", "parts"),
    ]
)
LABEL_TEXTS = st.one_of(
    st.lists(WORDS, max_size=4).map(" ".join),
    st.lists(WORDS, max_size=3).map("".join),
    st.text(alphabet="aehlorst cd-.", max_size=14),
)


@settings(max_examples=500, deadline=None)
@given(LABEL_TEXTS, LABEL_TEXTS)
def test_any_pair_of_labels_scores_as_the_written_out_rules_score_it(said: str, true: str) -> None:
    assert rewards.type_score(said, true, released=True) == NAIVE.type_score(said, true)


# One row for each branch, for a checkout without the golden files.
DEFECT = "<location>top left</location><type>scratch</type><answer>Yes</answer>"
BRANCHES = [
    # completion, solution, then the columns in order
    (f"<think>a</think>{DEFECT}", DEFECT, (1.0, 2.0, 2.0, 2.0, 1.0, 0.0)),
    (f"<think>a</think>{DEFECT}".replace("Yes", "No"), DEFECT, (1.0, 1.0, 1.0, 1.0, 0.0, 0.0)),
    (DEFECT.replace("left", "right"), DEFECT, (0.0, 1.5, 1.0, 2.0, 1.0, 0.0)),
    (DEFECT.replace("scratch", "hole"), DEFECT, (0.0, 1.5, 2.0, 1.0, 1.0, 0.0)),
    ("<type>stain</type><answer>Yes</answer>", DEFECT, (0.0, 1.15, 0.0, 1.3, 1.0, 0.0)),
    ("<location>top left</location><answer>yes </answer>", DEFECT, (0.0, 1.5, 2.0, 0.0, 1.0, 0.0)),
    ("<think>a</think><answer>Yes</answer>", DEFECT, (0.0, 1.0, 0.0, 0.0, 1.0, 1.0)),
    ("<think>a</think><answer>No</answer>", "no", (1.0, 1.0, 1.0, 1.0, 1.0, 1.0)),
    ("<think>a</think><answer>Yes</answer>", "No", (1.0, 0.0, 0.0, 0.0, 0.0, 1.0)),
    (f"<think>a</think>{DEFECT}", "NO", (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)),
    ("<think>a</think><answer>No</answer><type>", "No", (0.0, 1.0, 1.0, 1.0, 1.0, 1.0)),
    ("<think>a</think><answer>No</answer><location>", "No", (0.0, 1.0, 1.0, 1.0, 1.0, 1.0)),
    ("<think>a</think> <answer>No</answer>", "No", (0.0, 1.0, 1.0, 1.0, 1.0, 0.0)),
    ("<think>a</think><answer>No", "No", (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)),
    ("</think><answer><think>a</answer>", "No", (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)),
    ("<think></think><answer>\nNo\n</answer>", "No", (1.0, 0.0, 0.0, 0.0, 0.0, 1.0)),
    (f"<think>a</think>{DEFECT}", "Yes", (1.0, 1.0, 0.0, 0.0, 1.0, 0.0)),
    ("<think>a</think><answer>No</answer><think>", "No", (1.0, 1.0, 1.0, 1.0, 1.0, 1.0)),
    (DEFECT.replace("Yes", "No"), DEFECT.replace("Yes", "No"), (0.0, 1.0, 1.0, 1.0, 1.0, 0.0)),
    (DEFECT.replace("scratch", " "), DEFECT, (0.0, 1.5, 2.0, 1.0, 1.0, 0.0)),
    (DEFECT, DEFECT.replace("scratch", " "), (0.0, 1.5, 2.0, 1.0, 1.0, 0.0)),
]


@pytest.mark.parametrize(("completion", "solution", "expected"), BRANCHES)
def test_every_branch_of_the_released_rewards(
    completion: str, solution: str, expected: tuple[float, ...]
) -> None:
    ours = [released(column)(completion, solution) for column in COLUMNS]
    assert ours == pytest.approx(expected)
    assert ours == [getattr(NAIVE, column)(completion, solution) for column in COLUMNS]


LABEL_BRANCHES = [
    ("scratch", "scratch", 1.0),
    ("SCRATCH!", " scratch", 1.0),
    ("a scratch", "scratch", 0.85),
    ("s", "scratch", 0.85),
    ("", "scratch", 0.0),
    ("scratch", "", 0.0),
    (".", "scratch", 0.85),
    ("linear scratch", "score mark", 0.85),
    ("stain", "scratch", 0.3),
    ("stain", "hole", 0.0),
    ("surface anomaly", "scratch", 0.3),
    ("scratch", "surface anomalies", 0.3),
    ("surface anomaly", "hole", 0.0),
    ("hole", "structural anomaly", 0.3),
    ("surface anomaly", "surface anomaly", 1.0),
    ("unknown", "scratch", 0.0),
    ("unknown", "unknowm", 0.4 * 12 / 14),
    ("scrach", "score mark", 0.6 + 0.25 * 12 / 13),
    ("wear near edge", "abrasion", 0.6 + 0.25 * 4 / 14),
    ("shape-deviation", "bending", 0.6 + 0.25 * 28 / 30),
    ("through-hole", "opening", 0.85),
    ("foreign  matter.", "debris", 0.85),
    ("surface  scratch!", "score mark", 0.85),
    ("xyz", "qwv", 0.0),
    ("abcdefg", "abcxxxdefgxxx", 0.4 * 0.7),  # just similar enough
    ("abcdef", "abcxxxdefxxx.", 0.0),  # just not
    ("straße", "strasse", 0.4 * 10 / 13),  # lower case, where upper case would be equal
]


@pytest.mark.parametrize(("said", "true", "expected"), LABEL_BRANCHES)
def test_every_branch_of_the_released_type_matcher(said: str, true: str, expected: float) -> None:
    assert rewards.type_score(said, true, released=True) == pytest.approx(expected)
    assert NAIVE.type_score(said, true) == pytest.approx(expected)


@pytest.mark.parametrize(("said", "true"), [(a, b) for a, b, _ in LABEL_BRANCHES])
def test_the_released_type_matcher_treats_both_sides_alike(said: str, true: str) -> None:
    either = (rewards.type_score(a, b, released=True) for a, b in ((said, true), (true, said)))
    assert len(set(either)) == 1


def test_long_labels_score_as_short_ones_do() -> None:
    assert rewards.type_score("scratch " * 50, "scratch", released=True) == 0.85
    assert rewards.type_score("x" * 300, "scratch", released=True) == 0.0
