"""One parser for completions, and three ways of reading what they answer."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iad_r1.errors import ConfigError
from iad_r1.schema import (
    INVALID,
    Parsed,
    Status,
    first_line_tag,
    label,
    parse,
    read_answer,
)

DEFECT = (
    "<think>A line crosses.</think><location>top left</location>"
    "<type>scratch</type><answer>Yes</answer>"
)
CLEAN = "<think>Even surface.</think><answer>No</answer>"
OPTIONS = {"A": "Scratch", "B": "Hole.", "C": "No defect", "D": "A stain"}
EVALUATORS = ["strict", "iadr1_compat", "mmad_compat"]
FORMS = ["tagged", "free", "free_lower", "free_stripped"]

PIECES = st.sampled_from(
    [
        *(
            f"<{slash}{tag}>"
            for tag in ("think", "location", "type", "answer")
            for slash in ("", "/")
        ),
        *(
            "</think><answer>",
            "<THINK>",
            "<answer",
            "answer>",
            "\n",
            " ",
            "x",
            "Yes",
            "No",
            "B",
            ".",
        ),
    ]
)
TEXTS = st.one_of(st.text(max_size=40), st.lists(PIECES, max_size=12).map("".join))


# --- parsing -------------------------------------------------------------------------------------


def test_a_defect_is_taken_apart() -> None:
    assert parse(DEFECT) == Parsed(
        think="A line crosses.",
        location="top left",
        type="scratch",
        answer="Yes",
        verdict="yes",
        status=Status.OK,
    )


def test_a_clean_part_is_taken_apart() -> None:
    assert parse(CLEAN) == Parsed("Even surface.", None, None, "No", "no", Status.OK)


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (DEFECT, Status.OK),
        (CLEAN, Status.OK),
        (f"\n {CLEAN}\t\n", Status.OK),
        (CLEAN.replace("</think><", "</think>\n<"), Status.OK),
        (CLEAN.replace("No", " no. "), Status.OK),
        (CLEAN.replace("No", "NO!"), Status.OK),
        ("", Status.MISSING_TAG),
        ("Yes", Status.MISSING_TAG),
        ("<answer>No</answer>", Status.MISSING_TAG),
        ("<think>a</think>", Status.MISSING_TAG),
        ("<think>a<answer>No</answer>", Status.MISSING_TAG),
        ("a</think><answer>No</answer>", Status.MISSING_TAG),
        ("</think>a<think><answer>No</answer>", Status.MISSING_TAG),
        ("<think>a</think><answer>Yes</answer>", Status.MISSING_TAG),
        (DEFECT.replace("<location>top left</location>", ""), Status.MISSING_TAG),
        (DEFECT.replace("<type>scratch</type>", ""), Status.MISSING_TAG),
        (DEFECT.replace("</type>", ""), Status.MISSING_TAG),
        (CLEAN + "<type>", Status.MISSING_TAG),
        (CLEAN + "</location>", Status.MISSING_TAG),
        (CLEAN.lower().replace("think", "THINK"), Status.MISSING_TAG),
        (CLEAN + "<answer>No</answer>", Status.REPEATED_TAG),
        (CLEAN + CLEAN, Status.REPEATED_TAG),
        (CLEAN + "</answer>", Status.REPEATED_TAG),
        ("<think>" + CLEAN, Status.REPEATED_TAG),
        (CLEAN.replace("Even", "say <answer>Yes</answer>"), Status.REPEATED_TAG),
        (CLEAN + "<type>" * 3, Status.REPEATED_TAG),
        ("<answer>No</answer><think>a</think>", Status.WRONG_ORDER),
        ("<think>a<answer>No</answer></think>", Status.WRONG_ORDER),
        ("<think>a<answer>No</think></answer>", Status.WRONG_ORDER),
        (
            "<think>a</think><type>b</type><location>top</location><answer>Yes</answer>",
            Status.WRONG_ORDER,
        ),
        ("Well: " + CLEAN, Status.OUTSIDE_TEXT),
        (CLEAN + " Done.", Status.OUTSIDE_TEXT),
        (CLEAN.replace("</think><", "</think>so<"), Status.OUTSIDE_TEXT),
        (DEFECT.replace("</type><", "</type>.<"), Status.OUTSIDE_TEXT),
        (DEFECT.replace("</location><", "</location>.<"), Status.OUTSIDE_TEXT),
        (DEFECT.replace("</think><", "</think>.<"), Status.OUTSIDE_TEXT),
        ("." + DEFECT, Status.OUTSIDE_TEXT),
        (DEFECT + ".", Status.OUTSIDE_TEXT),
        (f" {DEFECT.replace('><', '> <')} ", Status.OK),
        ("<think></think><answer>No</answer>", Status.EMPTY_TAG),
        ("<think> \n</think><answer>No</answer>", Status.EMPTY_TAG),
        (DEFECT.replace("scratch", ""), Status.EMPTY_TAG),
        (DEFECT.replace("top left", " "), Status.EMPTY_TAG),
        ("<think>a</think><answer></answer>", Status.EMPTY_TAG),
        (CLEAN.replace("No", "maybe"), Status.BAD_ANSWER),
        (CLEAN.replace("No", "No, it is fine"), Status.BAD_ANSWER),
        (CLEAN.replace("No", "B"), Status.BAD_ANSWER),
        (DEFECT.replace("Yes", "maybe"), Status.BAD_ANSWER),
        (DEFECT.replace("Yes", "No"), Status.UNEXPECTED_TAG),
        (CLEAN.replace("<answer>", "<type>hole</type><answer>"), Status.UNEXPECTED_TAG),
        (CLEAN.replace("<answer>", "<location>top</location><answer>"), Status.UNEXPECTED_TAG),
    ],
)
def test_what_is_wrong_with_a_completion_is_named(text: str, status: Status) -> None:
    assert parse(text).status is status


def test_a_completion_that_was_cut_off_says_so_and_still_gives_its_parts() -> None:
    parsed = parse(DEFECT + "and so", truncated=True)
    assert (parsed.status, parsed.verdict, parsed.type) == (Status.TRUNCATED, "yes", "scratch")
    assert parse(CLEAN, truncated=True).status is Status.TRUNCATED


def test_the_statuses_read_as_words() -> None:
    assert {status.value for status in Status} == {
        *("ok", "missing tag", "repeated tag", "wrong order", "text outside tags", "truncated"),
        *("empty tag", "answer not yes/no", "unexpected tag"),
    }


def test_a_repeated_tag_says_nothing() -> None:
    parsed = parse(DEFECT + "<answer>No</answer>")
    assert (parsed.answer, parsed.verdict, parsed.type) == (None, INVALID, "scratch")


@pytest.mark.parametrize("tag", ["location", "type"])
def test_a_yes_may_leave_out_what_its_data_set_does_not_hold(tag: str) -> None:
    without = re.sub(f"<{tag}>.*</{tag}>", "", DEFECT)
    assert parse(without).status is Status.MISSING_TAG
    assert parse(without, optional=[tag]).status is Status.OK
    assert parse(DEFECT, optional=[tag]).status is Status.OK
    assert parse("<think>a</think><answer>No</answer>", optional=[tag]).status is Status.OK


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        *(("A", "A"), ("B.", "B"), ("(B)", "B"), ("C)", "C"), ("D:", "D"), (" B ", "B")),
        *(
            ("B: hole", "B"),
            ("B. Hole.", "B"),
            ("(B) Hole", "B"),
            ("B :hole", "B"),
            ("(B", "B"),
            ("hole", "B"),
            ("NO DEFECT!", "C"),
        ),
        *(
            ("B: scratch", INVALID),
            ("B hole", INVALID),
            ("E", INVALID),
            ("a", INVALID),
            ("B: hole, C", INVALID),
            ("B.. hole", INVALID),
            ("", INVALID),
        ),
        *(("A or B", INVALID), ("scratch and hole", INVALID), ("Yes", INVALID), ("AB", INVALID)),
    ],
)
def test_a_multiple_choice_answer_comes_through_the_same_door(answer: str, verdict: str) -> None:
    parsed = parse(f"<think>a</think><answer>{answer}</answer>", options=OPTIONS)
    assert parsed.verdict == verdict
    empty = Status.EMPTY_TAG if not answer else Status.BAD_ANSWER
    assert parsed.status is (empty if verdict == INVALID else Status.OK)


def test_a_multiple_choice_answer_needs_no_place_and_no_type() -> None:
    yes = {"A": "Yes", "B": "No"}
    assert parse("<think>a</think><answer>A</answer>", options=yes).status is Status.OK
    assert parse(DEFECT, options=yes).status is Status.UNEXPECTED_TAG
    assert parse(DEFECT, options=yes).verdict == "A"


def test_an_option_that_two_letters_share_is_no_answer() -> None:
    assert label("hole", {"A": "Hole", "B": "hole"}) == INVALID
    assert label("A", {"A": "Hole", "B": "hole"}) == "A"


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        *(("Yes", "yes"), (" nO.\n", "no"), ("Yes!", "yes"), ("No !.", "no"), ("yes .", "yes")),
        *(("yes no", INVALID), ("", INVALID), (".No", INVALID), ("NoX", INVALID), ("no?", INVALID)),
    ],
)
def test_a_label_is_the_whole_text(text: str, verdict: str) -> None:
    assert label(text) == verdict


@given(TEXTS, st.booleans(), st.sampled_from([None, OPTIONS]))
def test_no_text_breaks_the_parser(text: str, truncated: bool, options: dict | None) -> None:
    parsed = parse(text, truncated, options)
    assert (parsed.status is Status.TRUNCATED) == truncated
    assert parsed.verdict in ({"yes", "no", INVALID} if options is None else {*"ABCD", INVALID})
    if parsed.status is Status.OK:
        assert parsed.think and parsed.answer and parsed.verdict != INVALID


@given(TEXTS)
def test_what_is_well_formed_is_its_parts_put_together(text: str) -> None:
    parsed = parse(text)
    if parsed.status is Status.OK:
        parts = [getattr(parsed, tag) for tag in ("think", "location", "type", "answer")]
        assert (parsed.location is None) == (parsed.type is None) == (parsed.verdict == "no")
        assert re.sub(r"\s|</?\w+>", "", text) == re.sub(r"\s", "", "".join(filter(None, parts)))


# --- evaluators ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (DEFECT, "yes"),
        (CLEAN, "no"),
        ("<answer>Yes</answer>", "yes"),
        ("noise <answer>No.</answer> noise", "no"),
        (CLEAN + CLEAN, INVALID),
        ("<answer></answer>", INVALID),
        ("<answer>anomaly</answer>", INVALID),
        ("<answer>Yes, a scratch</answer>", INVALID),
        ("<answer>Yes", INVALID),
        ("Yes <think>", INVALID),
        ("Yes", "yes"),
        ("No, the object is fine.", "no"),
        ("yes there is a scratch", "yes"),
        ("  NO.", "no"),
        ("Yes, there is a noticeable scratch", "yes"),
        ("Yes or no", INVALID),
        ("No. 3 pin is bent.", INVALID),
        ("no.2 lead is missing", INVALID),
        ("No. Pin 3 is fine.", "no"),
        ("yes/no", INVALID),
        ("No and yes", INVALID),
        ("No-one knows", INVALID),
        ("No’one", INVALID),
        ("Nothing to see", INVALID),
        ("anomaly detected", INVALID),
        ("The answer is yes", INVALID),
        ("", INVALID),
    ],
)
def test_strict_takes_a_label_and_nothing_else(text: str, answer: str) -> None:
    assert read_answer(text) == read_answer(text, "strict") == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer>B</answer>", "B"),
        ("<answer>B", INVALID),
        ("B", "B"),
        ("B. Hole", "B"),
        ("B) because of the dark spot", "B"),
        ("The answer is B.", "B"),
        ("The answer is B.               \n\n              ", "B"),
        ("B                                                  ", "B"),
        ("Answer: (C)", "C"),
        ("A scratch is visible. Therefore C", "C"),
        ("A scratch is visible", INVALID),
        ("B: it is not C", INVALID),
        ("Hole", "B"),
        ("There is a hole", INVALID),
        ("E", INVALID),
        ("The answer is E", INVALID),
        ("It is AB", INVALID),
        ("I cannot tell", INVALID),
        ("", INVALID),
    ],
)
def test_strict_takes_a_letter_at_either_end_or_an_option_word_for_word(
    text: str, answer: str
) -> None:
    assert read_answer(text, options=OPTIONS) == answer


def test_a_text_cut_off_before_its_answer_is_invalid_only_to_strict() -> None:
    assert read_answer("Yes, there", truncated=True) == INVALID
    assert read_answer("Yes, there") == "yes"
    assert read_answer(CLEAN, truncated=True) == "no", "the answer was already written"
    assert read_answer("Yes", "mmad_compat", truncated=True) == "yes"


# Every fault of the released evaluators that is on the list, by name.
@pytest.mark.parametrize(
    ("fault", "text", "form", "answer"),
    [
        ("an empty answer is yes", "<answer></answer>", "tagged", "yes"),
        ("an empty text is yes", "", "free", "yes"),
        ("a-no-maly is no", "<answer>anomaly detected</answer>", "tagged", "no"),
        ("not sure is no", "<answer>not sure</answer>", "tagged", "no"),
        ("cannot tell is no", "<answer>I cannot tell</answer>", "tagged", "no"),
        ("a letter of yes is yes", "<answer>e</answer>", "tagged", "yes"),
        ("yes comes first", "<answer>yes and no</answer>", "tagged", "yes"),
        ("noticeable is no", "Yes, there is a noticeable scratch", "free", "no"),
        ("Yes with more is nothing", "Yes, there are defects.", "free", INVALID),
        ("no tag is wrong", "No", "tagged", INVALID),
        ("an answer over two lines is wrong", "<answer>No\n</answer>", "tagged", INVALID),
        ("the first answer counts", "<answer>No</answer><answer>Yes</answer>", "tagged", "no"),
    ],
)
def test_faults_of_the_iad_r1_scripts_are_kept(fault: str, text: str, form, answer: str) -> None:
    assert read_answer(text, "iadr1_compat", form=form) == answer, fault


@pytest.mark.parametrize(
    ("text", "free", "free_lower", "free_stripped"),
    [
        ("Yes", "yes", "yes", "yes"),
        ("NO.", "no", "no", "no"),
        ("No!", "no", "no", "no"),
        ("Yes, there are defects.", INVALID, "yes", "yes"),
        ("YES it is", INVALID, "yes", "yes"),
        ("Ye.", INVALID, INVALID, "yes"),
        (" N. ", INVALID, INVALID, INVALID),
        ("perfect", INVALID, INVALID, INVALID),
    ],
)
def test_the_scripts_of_other_models_look_a_second_time_in_their_own_way(
    text: str, free: str, free_lower: str, free_stripped: str
) -> None:
    assert read_answer(text, "iadr1_compat", form="free") == free
    assert read_answer(text, "iadr1_compat", form="free_lower") == free_lower
    assert read_answer(text, "iadr1_compat", form="free_stripped") == free_stripped


def test_what_the_scripts_cannot_read_becomes_the_letter_e() -> None:
    assert read_answer("<answer>x</answer>", "iadr1_compat", options={"A": "b", "E": "c"}) == "E"
    assert read_answer("<answer>B</answer>", "iadr1_compat", options={"A": "b.", "B": "c"}) == "A"
    assert read_answer("c!", "iadr1_compat", options={"A": "b.", "B": "c"}, form="free") == "B"


def test_the_scripts_forget_the_full_stop_of_an_option() -> None:
    options = {"A": "A hole.", "B": "A dent."}
    assert read_answer("<answer>There is a dent there</answer>", "iadr1_compat", options) == "B"
    assert read_answer("there is a dent there", "iadr1_compat", options, form="free") == "B"


@pytest.mark.parametrize(
    ("text", "form", "letter"),
    [
        ("<answer>hole</answer>", "tagged", "B"),
        ("<answer>hole.</answer>", "tagged", "A"),
        ("<answer>hole!</answer>", "tagged", "A"),
        ("Hole.", "free", "B"),
        ("Hole!", "free", "B"),
        ("Hole.!", "free", "A"),
        ("Hole.", "free_lower", "B"),
        ("Hole!", "free_lower", "A"),
        ("Hole!", "free_stripped", "B"),
        ("HOLE?", "free", "E"),
        ("HOLE?", "free_lower", "A"),
        ("HOLE?", "free_stripped", "A"),
        (" .LE. ", "free_stripped", "E"),
        (".LE.", "free_stripped", "A"),
        (".LE.", "free_lower", "E"),
    ],
)
def test_a_whole_option_counts_before_a_part_of_an_earlier_one(
    text: str, form, letter: str
) -> None:
    options = {"A": "ole", "B": "hole."}
    assert read_answer(text, "iadr1_compat", options=options, form=form) == letter


# The two looks of the released scripts, written out.
def released_look(said: str, again: str, exact: set[str]) -> str:
    for answer in ("yes", "no"):
        if answer in exact:
            return answer
    for answer in ("yes", "no"):
        if again in answer or answer in again:
            return answer
    return INVALID


@settings(max_examples=200)
@given(st.one_of(st.text(alphabet="yesnoYESNO.! a\n", max_size=8), TEXTS))
def test_any_text_is_judged_as_the_scripts_judge_it(text: str) -> None:
    match = re.search("<answer>(.*?)</answer>", text)
    said = match[1].strip().lower() if match else None
    tagged = INVALID if said is None else released_look(said, said, {said})
    both = {text.lower().strip("."), text.lower().strip("!")}
    stripped = text.lower().strip(".").strip()
    assert read_answer(text, "iadr1_compat") == tagged
    assert read_answer(text, "iadr1_compat", form="free") == released_look(text, text, both)
    lower = released_look(text, text.lower(), {text.lower().strip(".")})
    assert read_answer(text, "iadr1_compat", form="free_lower") == lower
    assert read_answer(text, "iadr1_compat", form="free_stripped") == released_look(
        text, stripped, both
    )


@pytest.mark.parametrize(
    ("fault", "text", "letter"),
    [
        ("the last letter counts", "Answer: B because A fits", "A"),
        ("the article is an option", "A scratch is visible", "A"),
        ("E is read where it is not offered", "E", "E"),
        ("a refusal becomes an answer", "I refuse", "C"),
        ("no text becomes an answer", "", "A"),
        ("a small letter is not read as one", "b", "A"),
    ],
)
def test_faults_of_the_mmad_helper_are_kept(fault: str, text: str, letter: str) -> None:
    assert read_answer(text, "mmad_compat", options=OPTIONS) == letter, fault


def test_the_mmad_helper_answers_yes_no_questions_by_letter() -> None:
    assert read_answer("A", "mmad_compat") == "yes"
    assert read_answer("B.", "mmad_compat") == "no"
    assert read_answer("yes it is", "mmad_compat") == "yes"
    assert read_answer("C", "mmad_compat") == INVALID


def test_without_options_there_is_no_closest_one() -> None:
    assert read_answer("x", "mmad_compat", options={}) == INVALID


def test_an_unknown_evaluator_or_form_is_refused_with_the_known_ones() -> None:
    unknown: Any = "fuzzy"  # as it comes from a user's own code, where nobody checks types
    with pytest.raises(ConfigError, match="strict, iadr1_compat, mmad_compat"):
        read_answer("Yes", unknown)
    with pytest.raises(ConfigError, match="tagged, free, free_lower, free_stripped"):
        read_answer("Yes", "iadr1_compat", form=unknown)


@given(TEXTS, st.sampled_from(EVALUATORS), st.sampled_from(FORMS), st.sampled_from([None, OPTIONS]))
def test_no_text_breaks_an_evaluator(text: str, evaluator, form, options: dict | None) -> None:
    answer = read_answer(text, evaluator, options, form)
    assert answer in ({"yes", "no", INVALID} if options is None else {*"ABCDE", INVALID})


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("<answer>a</answer>", "a"),
        ("x\n\n<answer>a</answer>", "a"),
        ("<answer>a</answer>\n<answer>b</answer>", "a"),
        ("<answer>a\n<answer>b</answer>", "b"),
        ("<answer>\n</answer><answer>b</answer>", "b"),
        ("</answer><answer>b<answer>c</answer></answer>", "b<answer>c"),
        ("<answer>a</type>\r</answer>", "a</type>\r"),
        ("<answer></answer>", ""),
        ("<answer>a\n</answer>\n", None),
        ("</answer>", None),
    ],
)
def test_a_tag_counts_where_it_opens_and_closes_on_one_line(text: str, content: str | None) -> None:
    assert first_line_tag(text, "answer") == content
    assert first_line_tag(text, "location") is None


@given(TEXTS, st.sampled_from(["answer", "type"]))
def test_a_tag_on_one_line_is_found_as_the_pattern_finds_it(text: str, tag: str) -> None:
    match = re.search(f"<{tag}>(.*?)</{tag}>", text)
    assert first_line_tag(text, tag) == (match[1] if match else None)
