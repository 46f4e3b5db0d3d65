"""Prompts by name: what each asks, what it takes, and what it refuses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iad_r1 import prompts
from iad_r1.errors import ConfigError
from iad_r1.prompts import QUERY_IMAGE, TEST_IMAGE, conversation

OPTIONS = {"A": "Yes", "B": "No"}
MMAD = [name for name in prompts.TEMPLATES if name.startswith("mmad") and "gpt" not in name]


def table_8(shared: Path) -> dict[str, str]:
    """Phase to prompt, as printed in the paper."""
    text = (shared / "paper" / "iad_r1.txt").read_text(encoding="utf-8")
    rows = re.findall(r"^([\w() -]+) \| “(.+)” \|$", text, re.MULTILINE)
    return {
        phase: prompt.replace("\\n", "\n").replace("{iamge}", "{image}").replace("’", "'")
        for phase, prompt in rows
    }


@pytest.mark.parametrize(
    ("phase", "name", "shots"),
    [
        ("IAD-R1 Test (0-shot)", "iad_r1_test", 0),
        ("IAD-R1 Test (1-shot)", "iad_r1_test", 1),
        ("Base Model Test (0-shot)", "base_test", 0),
        ("Base Model Test (1-shot)", "base_test", 1),
        # The table prints these two in each other's place.
        ("AnomalyGPT Test (0-shot)", "anomaly_gpt", 1),
        ("AnomalyGPT Test (1-shot)", "anomaly_gpt", 0),
        ("Anomaly-OV Test (1-shot)", "anomaly_ov", 1),
        ("Anomaly-R1 Test (0-shot)", "anomaly_r1", 0),
        ("Anomaly-R1 Test (1-shot)", "anomaly_r1", 1),
    ],
)
def test_the_test_prompts_are_those_of_table_8(
    shared: Path, phase: str, name: str, shots: int
) -> None:
    assert conversation(name, shots=shots).text == table_8(shared)[phase]


@pytest.mark.parametrize(
    ("phase", "name", "question"),
    [
        ("GRPO Training", "grpo", "{Question}"),
        ("SC-GRPO Training", "sc_grpo", "{Question}"),
        ("Using Base Model as Initial Policy Model", "base_as_policy", None),
        ("Anomaly-OV Test (0-shot)", "anomaly_ov", None),
    ],
)
def test_prompts_of_table_8_that_do_not_place_the_image_have_it_first(
    shared: Path, phase: str, name: str, question: str | None
) -> None:
    assert conversation(name, question).text == "{image}" + table_8(shared)[phase]


@pytest.mark.parametrize("name", prompts.names())
@pytest.mark.parametrize("shots", [0, 1, 2, 5])
def test_there_is_a_picture_for_every_reference_and_one_to_judge(name: str, shots: int) -> None:
    template = prompts.TEMPLATES[name]
    choice = "{options}" in template.text or "{question_list}" in template.text
    options = OPTIONS if choice else None
    question = "Is it broken?" if template.question is None and name != "base_as_policy" else None
    allowed = template.max_shots if template.few_shot else 0
    if shots > allowed:
        with pytest.raises(ConfigError, match=rf"shots={shots}: its wording allows 0 to {allowed}"):
            conversation(name, question, shots, options)
    else:
        rendered = conversation(name, question, shots, options)
        assert rendered.images == shots + 1
        assert "{image}" not in (rendered.system or "")
        assert not re.search(r"\{(?!image\})\w+\}", rendered.text), "a place was left open"
        assert shots == 0 or str(shots) in rendered.text or name in UNCOUNTED


# These show the references without saying how many there are.
UNCOUNTED = {
    *("sc_grpo", "grpo", "sc_grpo_released", "base_as_policy", "base_as_policy_released_1shot"),
    *("base_test_api", "mmad_anomaly_gpt"),
}


@pytest.mark.parametrize("shots", [-1, 1001])
def test_a_senseless_number_of_references_is_refused(shots: int) -> None:
    with pytest.raises(ConfigError, match="0 to 1000"):
        conversation("iad_r1_test", shots=shots)


def test_backbones_are_asked_about_different_images() -> None:
    asked = {
        name: (TEST_IMAGE in text, QUERY_IMAGE in text)
        for name in prompts.names()
        if name.startswith(("iad_r1_test", "base_test"))
        for text in [conversation(name).text]
    }
    query = {"iad_r1_test_llava", "base_test", "base_test_llava"}
    assert asked == {name: (name not in query, name in query) for name in asked}
    assert QUERY_IMAGE not in conversation("base_test", shots=1).text


def test_only_llava_15_has_the_sentence_before_a_single_image() -> None:
    sentence = "Following is image of test sample:"
    having = [n for n in prompts.names() if "test" in n and sentence in conversation(n).text]
    assert having == ["iad_r1_test_llava15"]
    assert sentence in conversation("iad_r1_test_qwen", shots=1).text


def test_the_released_prompts_run_together_and_ours_do_not() -> None:
    assert "test image.Are there any defects in the query" in conversation("sc_grpo_released").text
    assert "test image.\nAre there any defects in the query" in conversation("sc_grpo").text
    assert "inspection.Your task" in conversation("sc_grpo_released", shots=1).text
    assert "inspection. Your task" in conversation("sc_grpo", shots=1).text
    assert "looks" not in conversation("grpo").text
    assert conversation("grpo") == conversation("sc_grpo")


def test_the_released_system_turn_still_holds_its_placeholder() -> None:
    system = conversation("base_as_policy_released", question="Broken?").system
    assert system is not None and system.endswith("</answer>{Question}")
    assert conversation("base_as_policy_released", question="Broken?").text == "{image}Broken?"


def test_a_question_replaces_the_templates_own() -> None:
    assert conversation("pa_sft").text == f"{{image}}\n{QUERY_IMAGE}"
    assert conversation("pa_sft", "Broken?").text == "{image}\nBroken?"
    assert conversation("base_test", "Broken?", shots=1).text.endswith(
        "{image} Broken? Please answer by yes or no."
    )


@pytest.mark.parametrize("name", MMAD)
def test_mmad_shows_knowledge_references_image_and_options_in_order(name: str) -> None:
    text = conversation(name, "Where?", 2, {"A": "top", "B": "left"}, "Caps are round.", 3).text
    order = [
        *("industrial inspector", "directly! ", "domain knowledge", "Caps are round."),
        *("is/are 2 image", "{image}{image}", "query image: {image}", "Question 3: Where? \n"),
        "A. top\nB. left\n",
    ]
    positions = [text.index(part) for part in order]
    assert positions == sorted(positions)
    assert "knowledge" not in conversation(name, "Where?", 0, OPTIONS).text


def test_mmad_names_its_seven_subtasks() -> None:
    assert len(MMAD) == 1 + 7 and "mmad_defect_localization" in MMAD


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match=r"prompt='sc_grp' is unknown.*pa_sft, sc_grpo, sc_grpo_r"
    ):
        conversation("sc_grp")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "mmad", "options": OPTIONS}, "needs question"),
        ({"name": "mmad", "question": "Where?"}, "needs options"),
        ({"name": "anomaly_r1_released", "question": "Where?"}, "needs options"),
        ({"name": "mmad"}, "needs question"),
        ({"name": "pa_sft", "options": OPTIONS}, "no place for options"),
        ({"name": "pa_sft", "knowledge": "x"}, "no place for knowledge='x'"),
        ({"name": "base_as_policy", "question": "x"}, "no place for question='x'"),
        ({"name": "pa_sft", "question": "see {image}"}, "question contains '{image}'"),
        ({"name": "mmad", "question": "x", "options": {"A": "{image}"}}, "options contains"),
        (
            {"name": "mmad", "question": "x", "options": OPTIONS, "knowledge": "{image}"},
            "knowledge contains",
        ),
    ],
)
def test_a_value_that_is_missing_or_has_no_place_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        conversation(**arguments)


@given(st.text(max_size=40).filter(lambda text: "{image}" not in text and text))
def test_a_question_is_never_read_for_places(question: str) -> None:
    text = f"{question}{{question}}{{shots}}{{references}}"
    assert conversation("pa_sft", text).text == "{image}\n" + text


def test_a_prompt_says_how_the_released_scripts_read_its_answers() -> None:
    """Own models by their tags; base models each in the way of its script."""
    forms = {name: prompts.form(name) for name in prompts.names()}
    assert {name for name in forms if name.startswith("iad_r1_test")} <= {
        name for name, form in forms.items() if form == "tagged"
    }
    assert {name: forms[name] for name in forms if name.startswith("base_test")} == {
        "base_test": "free",
        "base_test_api": "free",
        "base_test_internvl": "free_stripped",
        "base_test_llava": "tagged",
        "base_test_llava15": "free_lower",
        "base_test_qwen": "free",
    }
    with pytest.raises(ConfigError, match="is unknown"):
        prompts.form("base_tests")


def test_every_template_says_where_it_is_from() -> None:
    assert all(template.source for template in prompts.TEMPLATES.values())
