"""Every known way to be paid without the work: what the released code pays, and what we pay.

Scores are given as shares of what an honest, perfect completion earns under the same set, so that
the two can be compared.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iad_r1 import grid, rewards

YES = "<location>middle right</location><type>scratch</type><answer>Yes</answer>"
LOW = YES.replace("middle right", "bottom center")
CENTER = YES.replace("middle right", "center")
NO = "<answer>No</answer>"
STRICT, RELEASED = rewards.load("sc_grpo"), rewards.load("sc_grpo_released")
CLASSES = (
    "contamination, presence of foreign objects, scratch, missing parts, deformation, hole, damage,"
    " abrasion"
)


def said(
    location: str = "nowhere", kind: str = "nothing", answer: str = "No", think: str = "a"
) -> str:
    return (
        f"<think>{think}</think><location>{location}</location><type>{kind}</type>"
        f"<answer>{answer}</answer>"
    )


# completion, solution, released parts (consistency, accuracy), strict parts in the set's order
HOLES = {
    "a single letter is part of the label": (
        said("middle right", "s", "Yes"),
        YES,
        (1.0, 1.925),
        (1, 1, 1, 0),
    ),
    "a list of every class contains the label": (
        said("middle right", CLASSES, "Yes"),
        YES,
        (1.0, 1.925),
        (1, 1, 1, 0),
    ),
    "a full stop is part of every label": (
        said("middle right", ".", "Yes"),
        YES,
        (1.0, 1.925),
        (1, 1, 1, 0),
    ),
    "a label inside a denial": (
        said("middle right", "not a scratch", "Yes"),
        YES,
        (1.0, 1.925),
        (1, 1, 1, 0),
    ),
    "text without a keyword is the center": (
        said("I do not know", "scratch", "Yes"),
        CENTER,
        (1.0, 2.0),
        (1, 1, 0, 1),
    ),
    "an empty location is the center": (
        said("", "scratch", "Yes"),
        CENTER,
        (1.0, 2.0),
        (0, 1, 0, 1),
    ),
    "copyright is right": (said("copyright", "scratch", "Yes"), YES, (1.0, 2.0), (1, 1, 0, 1)),
    "slower is lower": (said("slower", "scratch", "Yes"), LOW, (1.0, 2.0), (1, 1, 0, 1)),
    "left and right is left": (
        said("left and right", "scratch", "Yes"),
        YES.replace("right", "left"),
        (1.0, 2.0),
        (1, 1, 0, 1),
    ),
    "place and type pay on a wrong answer": (
        said("middle right", "scratch", "No"),
        YES,
        (1.0, 1.0),
        (0, 0, 0, 0),
    ),
    "place and type pay without an answer": (
        "<location>middle right</location><type>scratch</type>",
        YES,
        (0.0, 1.0),
        (0, 0, 0, 0),
    ),
    "the first of two answers is graded": (
        said("middle right", "scratch", "Yes") + "<answer>No</answer>",
        YES,
        (1.0, 2.0),
        (0, 0, 0, 0),
    ),
    "an answer quoted in the reasoning is graded": (
        "<think>Perhaps <answer>No</answer></think><answer>Yes</answer>",
        NO,
        (1.0, 1.0),
        (0, 0, 0, 0),
    ),
    "the first of two places is graded": (
        said("middle right</location><location>top left", "scratch", "Yes"),
        YES,
        (1.0, 2.0),
        (0, 1, 0, 1),
    ),
    "the first of two types is graded": (
        said("middle right", "scratch</type><type>hole", "Yes"),
        YES,
        (1.0, 2.0),
        (0, 1, 1, 0),
    ),
    "text around the tags is free": (
        "It is broken. <think>a</think><answer>No</answer> It is broken.",
        NO,
        (1.0, 1.0),
        (0, 1, 0, 0),
    ),
    "text between the tags is free": (
        "<think>a</think><answer>x</think><answer>No</answer>",
        NO,
        (1.0, 0.0),
        (0, 0, 0, 0),
    ),
    "tags without text earn the form": (
        "<think></think><answer></answer>",
        NO,
        (1.0, 0.0),
        (0, 0, 0, 0),
    ),
    "no reasoning at all": ("<think></think><answer>No</answer>", NO, (1.0, 1.0), (0, 1, 0, 0)),
    "the form does not care what the answer is": (
        "<think>a</think><answer>Yes</answer>",
        NO,
        (1.0, 0.0),
        (0, 0, 0, 0),
    ),
    "a defect named beside a No": (
        said("middle right", "scratch", "No"),
        NO,
        (0.0, 1.0),
        (0, 1, 0, 0),
    ),
}


@pytest.mark.parametrize("name", HOLES)
def test_the_released_code_pays_what_we_do_not(name: str) -> None:
    completion, solution, released, strict = HOLES[name]
    assert tuple(RELEASED.score(completion, solution).parts.values()) == pytest.approx(released)
    assert tuple(STRICT.score(completion, solution).parts.values()) == pytest.approx(strict)


@pytest.mark.parametrize("name", HOLES)
def test_no_hole_pays_like_honest_work(name: str) -> None:
    _, solution, _, strict = HOLES[name]
    assert sum(strict) < STRICT.score(f"<think>Seen.</think>{solution}", solution).total


@pytest.mark.parametrize("kind", ["s", ".", CLASSES, "scratch scratch", "scratches everywhere", ""])
def test_parts_and_lists_of_types_are_worth_nothing(kind: str) -> None:
    assert rewards.type_score(kind, "scratch") == 0.0


@pytest.mark.parametrize(
    ("predicted", "actual"), [("s", "scratch"), (CLASSES, "scratch"), ("", "scratch")]
)
def test_the_released_type_score_of_the_same(predicted: str, actual: str) -> None:
    expected = 0.85 if predicted else 0.0
    assert rewards.type_score(predicted, actual, released=True) == expected


# AnomalyR1: completion, solution, released (roam, choice), strict (roam, choice)
LETTER_HOLES = {
    "the article is option A": (
        "<think>A scratch is visible</think><answer>A</answer>",
        "A",
        (1.0, 1.0),
        (0.8, 1.0),
    ),
    "text after the answer": (
        "<think>B</think><answer>B</answer> or C",
        "B",
        (1.0, 1.0),
        (0.0, 0.0),
    ),
    "the last of several answers": (
        "<think>B</think><answer>C</answer><answer>B</answer>",
        "B",
        (1.0, 1.0),
        (0.0, 0.0),
    ),
    "a hedge": ("<think>B</think><answer>B, C or D</answer>", "D", (0.0, 1.0), (0.0, 0.0)),
    "any character is an answer": (
        "<think>x y z</think><answer>?!x</answer>",
        "B",
        (0.0, 0.0),
        (0.0, 0.0),
    ),
    "a small letter is a wrong answer, and paid": (
        "<think>none</think><answer>b</answer>",
        "B",
        (0.05, 0.0),
        (0.0, 0.0),
    ),
    "yes is a wrong answer, and paid": (
        "<think></think><answer>OK</answer>",
        "B",
        (0.05, 0.0),
        (0.0, 0.0),
    ),
}


@pytest.mark.parametrize("name", LETTER_HOLES)
def test_the_released_letters_pay_what_we_do_not(name: str) -> None:
    completion, solution, released, strict = LETTER_HOLES[name]
    for at, kind in enumerate(("roam", "choice")):
        paid = rewards.load(f"{kind}_released").score(completion, solution).total
        assert (paid, rewards.load(kind).score(completion, solution).total) == (
            released[at],
            strict[at],
        )


# --- new holes --------------------------------------------------------------------------------

TAGS = ("think", "location", "type", "answer")
PLACES = st.sampled_from([grid.words(cell, "3x3") for cell in range(9)])
KINDS = st.sampled_from(["scratch", "hole", "stain", "crack", "dent", "missing part", "debris"])
TRUTHS = st.one_of(
    st.just(NO),
    st.builds("<location>{}</location><type>{}</type><answer>Yes</answer>".format, PLACES, KINDS),
)
NOISE = st.text(alphabet="abc .,:;<>/\n", max_size=20)
FRAGMENTS = st.one_of(
    NOISE,
    PLACES,
    KINDS,
    st.sampled_from(["Yes", "No", "yes and no", "A", CLASSES, "whole image", "unknown"]),
    st.sampled_from([f"<{slash}{tag}>" for tag in TAGS for slash in ("", "/")]),
    st.sampled_from(["</think><answer>", "</think><location>", "</location><type>"]),
)


def honest(solution: str) -> float:
    return STRICT.score(f"<think>Seen.</think>{solution}", solution).total


@given(st.lists(FRAGMENTS, max_size=16).map("".join), TRUTHS)
def test_no_text_out_scores_an_honest_one(text: str, solution: str) -> None:
    assert STRICT.score(text, solution).total <= honest(solution)


@given(TRUTHS, st.data())
def test_repeating_a_tag_never_pays(solution: str, data: st.DataObject) -> None:
    """Any tag pair of an honest text written once more, anywhere, with any content."""
    whole = f"<think>Seen.</think>{solution}"
    tag, inside = data.draw(st.sampled_from(TAGS)), data.draw(FRAGMENTS)
    at = data.draw(st.integers(0, len(whole)))
    text = f"{whole[:at]}<{tag}>{inside}</{tag}>{whole[at:]}"
    assert STRICT.score(text, solution).total < honest(solution)


@given(PLACES, KINDS, st.text(alphabet="xyz ,.-", max_size=20))
def test_words_outside_the_vocabulary_earn_nothing(place: str, kind: str, noise: str) -> None:
    solution = f"<location>{place}</location><type>{kind}</type><answer>Yes</answer>"
    parts = STRICT.score(said(noise, f"{noise} x", "Yes"), solution).parts
    assert (parts["location"], parts["type"]) == (0.0, 0.0)
    around = STRICT.score(said(place, f"{kind} x{noise}", "Yes"), solution).parts
    assert around["type"] == 0.0


@given(TRUTHS, PLACES, KINDS, st.sampled_from(["Yes", "No"]))
def test_contradicting_the_label_earns_nothing(
    solution: str, place: str, kind: str, answer: str
) -> None:
    wrong = "Yes" if "No" in solution else "No"
    with_defect = said(place, kind, wrong)
    without = f"<think>Seen.</think><answer>{wrong}</answer>"
    for text in (with_defect, without):
        assert STRICT.score(text, solution).total == 0.0


@given(st.sets(PLACES, min_size=2), PLACES)
def test_naming_several_places_never_beats_naming_the_right_one(
    places: set[str], true: str
) -> None:
    text = said(" and ".join(sorted(places)), "scratch", "Yes")
    solution = f"<location>{true}</location><type>scratch</type><answer>Yes</answer>"
    assert STRICT.score(text, solution).parts["location"] == 0.0


@given(st.sets(KINDS, min_size=2), KINDS, st.sampled_from([", ", " and ", " or ", " ", "/", ""]))
def test_listing_types_never_beats_naming_one(kinds: set[str], true: str, between: str) -> None:
    assert rewards.type_score(between.join(sorted(kinds)), true) == 0.0
