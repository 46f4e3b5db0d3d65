"""AnomalyR1's released reader of letters, against its rule written out with regular expressions."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iad_r1 import rewards
from iad_r1.rewards.components.anomaly_r1 import read_choice

KEYWORDS = (
    *("答案", "选择", "正确", "是", "对", "认为", "应该", "觉得"),
    *("ANSWER", "CORRECT", "CHOOSE", "SELECT", "RIGHT", "THINK", "BELIEVE", "SHOULD"),
)


def written_out(text: str) -> str | None:
    """The rule, one occurrence after the other (quadratic)."""
    text = re.sub(r"\s+", " ", text)
    if len(text) < 3:
        text = re.sub(r"[^\w\s]", "", text)
        return text[0] if text else None
    found = re.findall(r"(?<![a-z])([A-D])(?![a-z])", text)
    points = dict.fromkeys(found, 0)
    for letter in found:
        at = text.rfind(letter)
        around = text[max(0, at - 20) : min(len(text), at + 20)]
        points[letter] += sum(word in around for word in KEYWORDS)
        points[letter] += 2 if at > len(text) * 0.7 else 0
        points[letter] += 1 if at < len(text) - 1 and text[at + 1] in "。.!！,，" else 0
    return max(points, key=lambda letter: points[letter]) if points else None


def structured(text: str) -> bool:
    return bool(re.search(r"<think>(.*?)</think>\s*<answer>(.*?)</answer>", text, re.DOTALL))


def last(tag: str, text: str) -> str | None:
    found = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    return written_out(found[-1].strip()) if found else None


def roam(text: str, truth: str) -> float:
    think, answer = last("think", text), last("answer", text)
    if not structured(text) or (think is None and answer is None):
        return 0.0
    if think is None:
        return 0.8 if answer == truth else 0.05
    if think == answer:
        return 1.0 if answer == truth else 0.1
    return 0.0


LETTERS = st.text(alphabet="ABCDEaDd .,!！。是对 \n()x", max_size=40)
PIECES = st.sampled_from(
    [
        *(
            "<think>",
            "</think>",
            "<answer>",
            "</answer>",
            "</think><answer>",
            "</think>\n <answer>",
        ),
        *("A", "B.", "(C)", "d", "A scratch", "not B but C", " ", "\n", "Done", "ANSWER B", "是"),
    ]
)
TEXTS = st.lists(PIECES, max_size=12).map("".join)


FAR = "x" * 25
WEIGHED = [
    "答案A, B of the others is",
    "A or B 是 of the others",
    f"A or {FAR} B" + FAR * 3,
    f"A! {FAR}B {FAR}{FAR}",
    f"A 对 {FAR} B. {FAR}{FAR}",
    f"A {FAR} 选择B {FAR}{FAR}",
    f"A, B {FAR} D {FAR}{FAR}",
    f"B {FAR * 3} A",
    f"B B B {FAR * 3} A",
    f"B, B, {FAR * 3} A",
    f"B. B. B. {FAR * 3} A!",
    f"B 对{'x' * 17}A 对 {FAR * 3}",
    f"B{'x' * 18} 对 A，{FAR * 3}",
    *(f"{FAR}对{'x' * gap} A and B, {FAR * 4}" for gap in (17, 18, 19, 20)),
    *(f"B, A {'x' * gap}对{FAR * 4}" for gap in (16, 17, 18, 19)),
    "A. B。 C！ D，",
    "A B",
    "AB. C",
    "A B! 是",
    "0123456 A B x",
    f"对B A {FAR} B {FAR * 3}",  # the keyword stands at the very start
    "A 23456 B",
    *(f"A {word} {FAR} B, {FAR}{FAR}" for word in KEYWORDS),
]


@pytest.mark.parametrize("text", WEIGHED)
def test_several_letters_are_weighed_by_the_written_out_rule(text: str) -> None:
    assert read_choice(text) == written_out(text)


@settings(max_examples=300, deadline=None)
@given(LETTERS)
def test_letters_are_read_by_the_written_out_rule(text: str) -> None:
    assert read_choice(text) == written_out(text)


@settings(max_examples=300, deadline=None)
@given(TEXTS, st.sampled_from("ABCD"))
def test_roam_and_choice_are_the_written_out_table(text: str, truth: str) -> None:
    right = structured(text) and last("answer", text) == truth
    assert rewards.load("roam_released").score(text, truth).total == roam(text, truth)
    assert rewards.load("choice_released").score(text, truth).total == float(right)


@pytest.mark.parametrize(
    ("text", "roam", "choice"),
    [
        ("<think>B</think><answer>B</answer>", 1.0, 1.0),
        ("<think>none</think><answer>B</answer>", 0.8, 1.0),
        ("<think>C</think><answer>C</answer>", 0.1, 0.0),
        ("<think>none</think><answer>C</answer>", 0.05, 0.0),
        ("<think>none</think><answer>none</answer>", 0.0, 0.0),
        ("<think>B</think><answer>C</answer>", 0.0, 0.0),
        ("<think>B</think><answer>none</answer>", 0.0, 0.0),
        ("<think>C</think><answer>B</answer>", 0.0, 1.0),
        ("x<think>B</think> \n <answer>B</answer>x", 1.0, 1.0),
        ("<think>B</think><answer>B</answer><think>", 1.0, 1.0),
        ("<think>B</think><answer>B</answer></answer>", 1.0, 1.0),
        ("<think>B</think>so<answer>B</answer>", 0.0, 0.0),
        ("</think><answer>B</answer><think>B", 0.0, 0.0),
        ("B</think><answer>B</answer>", 0.0, 0.0),
        ("</answer><think>B</think><answer>B", 0.0, 0.0),
        ("<think></think><answer></answer>", 0.0, 0.0),
    ],
)
def test_the_table_of_roam(text: str, roam: float, choice: float) -> None:
    assert rewards.load("roam_released").score(text, "B").total == roam
    assert rewards.load("choice_released").score(text, "B").total == choice


@pytest.mark.parametrize(
    ("answers", "letter"),
    [
        ("<answer>A</answer>", "A"),
        ("<answer>A</answer><answer>B</answer>", "B"),
        ("<answer>A</answer><answer>B", "A"),  # the last pair, not the last opening
        ("<answer>A</answer>x</answer>", "A"),  # up to the first closing
        ("<answer>A</answer><answer>B</answer>C</answer>", "B"),
        ("<answer>A</answer></answer><answer>B</answer><answer>C</answer><answer>", "C"),
        ("<answer>x<answer>B. </answer>", "B"),
    ],
)
def test_the_last_answer_is_the_one_that_is_read(answers: str, letter: str) -> None:
    chosen = rewards.load("choice_released")
    assert chosen.score(f"<think>x</think>{answers}", letter).total == 1.0
    assert chosen.score(f"<think>x</think>{answers}", "D").total == 0.0


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("", None),
        ("b", "b"),  # two characters or fewer: whatever comes first
        ("!?", None),
        ("A scratch is visible", "A"),  # the article counts as an option
        ("A scratch is visible. Therefore C", "C"),  # the last third counts double
        ("BCD", "B"),
        ("None of them", None),
    ],
)
def test_faults_of_the_released_reader_are_kept(text: str, letter: str | None) -> None:
    assert read_choice(text) == letter
