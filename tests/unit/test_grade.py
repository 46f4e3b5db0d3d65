"""Grading: one completion against what is true of its image, without a model or settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from iad_r1 import prompts
from iad_r1.grid import Grid
from iad_r1.judge.grade import Grader, grade
from iad_r1.rewards import vocabulary
from iad_r1.types import Completion, Question, Sample, Solution, StopReason

RIGHT = (
    "<think>At the top left it differs.</think><location>top left</location>"
    "<type>scratch</type><answer>Yes</answer>"
)
GRADER = Grader(Grid(3, 3), vocabulary("default"))
ANOMALOUS = Sample(
    "bolt/1", "made", "test", "bolt", Path("unread.png"), Solution("Yes", "top left", "scratch")
)
CHOICE = replace(
    ANOMALOUS,
    solution=Solution("B"),
    question=Question("What is wrong?", {"A": "A hole", "B": "A scratch", "C": "Nothing"}),
)


def graded(sample, text, stop=StopReason.STOP, grader=GRADER):
    drawn = Completion(text, (1, 2), (-0.1, -0.1), stop)
    return grade(grader, sample, drawn, split="seen", p_yes=0.7)


def test_a_right_answer_is_right_in_every_part():
    found = graded(ANOMALOUS, RIGHT)
    assert (found.gold_answer, found.answer) == ("yes", "yes")
    assert (found.location_correct, found.type_correct) == (True, True)
    assert (found.status, found.split, found.p_yes, found.n_tokens) == ("ok", "seen", 0.7, 2)


@pytest.mark.parametrize(
    ("text", "answer", "place", "kind"),
    [
        (RIGHT.replace("top left</loc", "top right</loc"), "yes", False, True),
        (RIGHT.replace("top left</loc", "somewhere</loc"), "yes", False, True),
        (RIGHT.replace("scratch", "hole"), "yes", True, False),
        (RIGHT.replace(">Yes<", ">No<"), "no", True, True),
        (RIGHT + RIGHT, "invalid", False, False),
        ("anomaly detected", "invalid", False, False),
    ],
)
def test_each_part_is_judged_by_itself(text, answer, place, kind):
    found = graded(ANOMALOUS, text)
    assert (found.answer, found.location_correct, found.type_correct) == (answer, place, kind)


@pytest.mark.parametrize(
    ("evaluator", "prompt", "answer"),
    [
        ("strict", "base_test_qwen", "yes"),
        ("iadr1_compat", "base_test_qwen", "no"),  # its script finds "no" in "noticeable"
        ("iadr1_compat", "base_test_llava15", "yes"),  # this one looks in lower case
        ("iadr1_compat", "iad_r1_test_qwen", "invalid"),  # and this one in answer tags only
        ("mmad_compat", "iad_r1_test_qwen", "yes"),
    ],
)
def test_answers_are_read_as_the_evaluator_and_the_prompt_say(evaluator, prompt, answer):
    grader = replace(GRADER, evaluator=evaluator, form=prompts.form(prompt))
    text = "Yes, there is a noticeable scratch."
    assert graded(ANOMALOUS, text, grader=grader).answer == answer


def test_what_is_not_annotated_is_not_judged():
    unknown = graded(replace(ANOMALOUS, solution=Solution("Yes")), RIGHT)
    assert unknown.location_correct is None and unknown.type_correct is None
    assert graded(replace(ANOMALOUS, solution=Solution("No")), RIGHT).location_correct is None


def test_the_cells_that_a_mask_touches_are_kept_beside_the_one_it_lies_in():
    mask = np.zeros((9, 9), bool)
    mask[1, 1:5] = True
    drawn = Completion(RIGHT, (1, 2), (-0.1, -0.1), StopReason.STOP)
    found = grade(GRADER, ANOMALOUS, drawn, split="seen", mask=mask)
    assert found.gold_cells == "top left, top center"
    assert graded(ANOMALOUS, RIGHT).gold_cells is None


def test_an_answer_cut_off_at_the_limit_is_invalid():
    found = graded(ANOMALOUS, "<think>At the top", StopReason.LENGTH)
    assert (found.answer, found.status) == ("invalid", "truncated")


def test_the_references_that_were_shown_are_named():
    normal = replace(ANOMALOUS, id="bolt/0", solution=Solution("No"))
    sample = replace(ANOMALOUS, references=(normal, replace(normal, id="bolt/2")))
    drawn = Completion(RIGHT, (), (), StopReason.STOP)
    shown = [grade(GRADER, sample, drawn, split="s", shots=n).references for n in (0, 1, 2)]
    assert shown == [(), ("bolt/0",), ("bolt/0", "bolt/2")]


@pytest.mark.parametrize(
    ("text", "answer", "status"),
    [
        ("<think>A line.</think><answer>B</answer>", "B", "ok"),
        ("<think>A line.</think><answer>A scratch</answer>", "B", "ok"),
        ("<think>Even.</think><answer>C: Nothing</answer>", "C", "ok"),
        ("<think>A line.</think><answer>Yes</answer>", "invalid", "answer not yes/no"),
        ("<think>A line.</think><answer>D</answer>", "invalid", "answer not yes/no"),
        ("B. A scratch", "B", "missing tag"),
    ],
)
def test_a_multiple_choice_is_answered_with_a_letter(text, answer, status):
    found = graded(CHOICE, text)
    assert (found.gold_answer, found.answer, found.status) == ("B", answer, status)
    assert found.location_correct is None and found.type_correct is None


@pytest.mark.parametrize(
    ("solution", "question"),
    [
        (Solution("Yes"), CHOICE.question),
        (Solution("D"), CHOICE.question),
        (Solution("B"), Question()),
    ],
)
def test_an_answer_that_the_question_does_not_allow_is_refused(solution, question):
    with pytest.raises(ValueError, match=f"bolt/1: answer is '{solution.answer}', but the quest"):
        replace(ANOMALOUS, solution=solution, question=question)


@pytest.mark.parametrize("options", [{}, {"a": "a hole"}, {"AB": "a hole"}, {"1": "a hole"}])
def test_options_that_no_answer_could_name_are_refused(options):
    with pytest.raises(ValueError, match="named by capital letters"):
        Question("What is wrong?", options)


def test_only_a_yes_says_where_and_of_which_type():
    for answer in ("No", "B"):
        with pytest.raises(ValueError, match="cannot name a location"):
            Solution(answer, "top left")
    with pytest.raises(ValueError, match="'maybe'"):
        Solution("maybe")
