"""Named prompts: every one of IAD-R1's Table 8, the wording of the released scripts where it
differs, AnomalyR1's, and MMAD's.

    conversation("iad_r1_test", shots=1).text
    conversation("mmad", question="…", options={"A": "Yes", "B": "No"}, knowledge="…")

Wording moves results by several points, so the faults of the released prompts are kept under
names of their own: sentences that run together, "test image" for one backbone and "query image"
for another, a placeholder that was never filled in. Templates are data: `{image}` is the image to
judge, `{references}` one `{image}` per shot.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from iad_r1.boxes import LocationFormat
from iad_r1.errors import ConfigError
from iad_r1.schema import Form
from iad_r1.types import Conversation

TEST_IMAGE = "Are there any defects in the test image?"
QUERY_IMAGE = "Are there any defects in the query image?"

_MANY = 1000  # more references than any model reads: "no limit"


@dataclass(frozen=True)
class Template:
    """A prompt with places to fill.

    text            without references; `{image}` once, and `{question}` unless it is fixed
    few_shot        with references (`{references}`, `{shots}`); None: it takes none
    question        asked when the caller gives none; None: the caller must give one
    few_shot_question  the same with references, where it differs
    system          the system turn
    max_shots       how many references the wording allows
    form            how the released scripts read what it is answered with (`schema.read_answer`)
    source          where it is from
    """

    text: str
    source: str
    few_shot: str | None = None
    question: str | None = None
    few_shot_question: str | None = None
    system: str | None = None
    max_shots: int = _MANY
    form: Form = "tagged"


def conversation(
    name: str,
    question: str | None = None,
    shots: int = 0,
    options: Mapping[str, str] | None = None,
    knowledge: str | None = None,
    number: int = 1,
    location_format: LocationFormat = "words",
) -> Conversation:
    """The named prompt with `shots` reference images, references first, the image to judge last.

    question   replaces the template's own; required where it has none (MMAD, AnomalyR1)
    options    letter to text, for multiple choice; only where the template has a place for them
    knowledge  what is known about the product (MMAD); optional where there is a place for it
    number     the question's number (MMAD)
    location_format  how a place is to be written; but for words, a sentence that asks for it ends
                     the prompt, unless options are given

    Raises ConfigError for an unknown name (listing the names), a missing or misplaced value, a
    value that would add an image, and more references than the wording allows.
    """
    template = _find(name)
    text = _text(name, template, shots)
    places = set(_PLACE.findall(text))
    if "question_list" in places:
        places |= {"question", "options", "number"}
    given = {"question": question, "options": options, "knowledge": knowledge}
    _check(name, places, given)
    asked = question or (template.few_shot_question if shots else None) or template.question
    for place, value in {"question": asked, "options": options}.items():
        if place in places and value is None:
            raise ConfigError(f"prompt={name!r} needs {place}=...: it has none of its own.")
    values = _values(asked or "", shots, options, knowledge, number)
    asks = "" if options is not None else _PLACES[location_format]
    return Conversation(_fill(text, values) + asks, template.system)


def form(name: str) -> Form:
    """How the released scripts read the answers to this prompt. Raises ConfigError if unknown."""
    return _find(name).form


def names() -> list[str]:
    """Every template, sorted."""
    return sorted(TEMPLATES)


def _find(name: str) -> Template:
    if name not in TEMPLATES:
        raise ConfigError(f"prompt={name!r} is unknown. Use one of {', '.join(names())}.")
    return TEMPLATES[name]


def _text(name: str, template: Template, shots: int) -> str:
    limit = template.max_shots if template.few_shot is not None else 0
    if not 0 <= shots <= limit:
        raise ConfigError(f"prompt={name!r} with shots={shots}: its wording allows 0 to {limit}.")
    return template.few_shot if shots and template.few_shot is not None else template.text


def _check(name: str, places: Collection[str], given: Mapping[str, object]) -> None:
    """A value without a place would be lost without a word; `{image}` in one adds a picture."""
    for key, value in given.items():
        if value is not None and key not in places:
            raise ConfigError(f"prompt={name!r} has no place for {key}={value!r}.")
        if "{image}" in str(value):
            raise ConfigError(f"prompt={name!r}: {key} contains '{{image}}', a picture too many.")


def _values(
    question: str,
    shots: int,
    options: Mapping[str, str] | None,
    knowledge: str | None,
    number: int,
) -> dict[str, str]:
    """What stands in each place."""
    options = dict(options or {})
    listed = "".join(f"{letter}. {option}\n" for letter, option in options.items())
    asked = f"Question {number}: {question} \n{listed}"
    return {
        "question": question,
        "options": listed,
        "question_list": str([{"type": "text", "text": asked, "options": options}]),
        "knowledge": f"{_KNOWLEDGE}{knowledge}" if knowledge else "",
        "number": str(number),
        "shots": str(shots),
        "references": "{image}" * shots,
    }


_PLACE = re.compile(r"\{(\w+)\}")


def _fill(text: str, values: Mapping[str, str]) -> str:
    """All places at once, so that a value is never searched for places itself."""
    return _PLACE.sub(lambda match: values.get(match[1], match[0]), text)


# --- wording -----------------------------------------------------------------------------------

_NORMAL = (
    "Following is {shots} image of normal sample, which can be used as a template to compare the "
    "image being queried."
)
_SAMPLE = "Following is image of test sample:"
_EXPERT = (
    "You are an expert in detecting defects in image. Your task is to detect if there are any "
    "defects in the test image."
)
_EXPERT_PAIR = (
    "You are an expert in detecting defects in image. I will provide you with two images: a "
    "reference image (first) showing a normal object without defects, and a test image (second) "
    "that needs inspection.",
    "Your task is to compare these images and determine if there are any anomalies in the test "
    "image. Use the reference image as a baseline for what is considered normal.",
)
_POLICY_TASK = (
    "You are an expert in detecting anomalies in image. Your task is to detect if there are any "
    "anomalies in the test image."
)
_POLICY_PAIR = (
    "You are an expert in detecting anomalies in images. I will provide you with two images: a "
    "reference image (first) showing a normal object without defects, and a test image (second) "
    "that needs inspection.",
    _EXPERT_PAIR[1],
)
_POLICY_FORM = (
    "If you find anomalies in the test image, structure your response with the following format:",
    "<think>[Your process of observation and reasoning is here]</think><location>[The location of "
    "the anomaly in the image]</location><type>[The type of anomaly in the image]</type>"
    "<answer>[Your final answer is here(yes or no)]</answer>",
    "If no anomalies are detected in the test image, structure your response with the following "
    "format:",
    "<think>[Your process of observation and reasoning is here]</think>"
    "<answer>[Your final answer is here(yes or no)]</answer>",
)
_POLICY_REMINDER = (
    "Remember that the first image is always the reference (normal) image, and the second image is "
    "the test image that needs inspection."
)
_ROUND = (
    "This is a photo of a object for anomaly detection, which should be round, without any damage, "
    "flaw, defect, scratch, hole or broken part."
)
_YES_OR_NO = "Please answer by yes or no."
_LETTER = (
    "First output the thinking process in <think> </think> tags and then output the final answer "
    "letter in <answer> </answer> tags."
)
_R1_TRAINING = (
    "A conversation between User and Assistant. The user asks a choice question, and the Assistant "
    "solves it. The assistant first thinks about the reasoning process in the mind and then "
    "provides the user with the answer.Respond with your reasoning in <think> </think> tags "
    "followed by a single letter answer in <answer> </answer> tags."
)
_INSPECTOR = (
    "\nYou are an industrial inspector who checks products by images. You should judge whether "
    "there is a defect in the query image and answer the questions about it.\nAnswer with the "
    "option's letter from the given choices directly.\n"
)
_KNOWLEDGE = (
    "Following is the domain knowledge which contains some type of defect and the normal object "
    "characteristics: \n "
)
_MMAD_NORMAL = _NORMAL.replace("is {shots}", "is/are {shots}")
_MMAD_HEAD = _INSPECTOR + "Answer with the option's letter from the given choices directly! "
_MMAD_TAIL = (
    "Following is the query image: {image}Following is the question list: "
    "Question {number}: {question} \n{options}"
)

_PLACES: Mapping[LocationFormat, str] = {
    "words": "",
    "box": ' The location of a defect is its box as JSON: {"bbox_2d": [x1, y1, x2, y2]}.',
    "box+mask": " The location of a defect is its box and its outline as JSON: "
    '{"bbox_2d": [x1, y1, x2, y2], "polygon_2d": [x1, y1, x2, y2, ...]}.',
}

_TABLE_8 = "IAD-R1, Table 8"
_SCRIPTS = "IAD-R1, released scripts"

_MMAD = Template(
    text=f"{_MMAD_HEAD}{{knowledge}}{_MMAD_TAIL}",
    few_shot=f"{_MMAD_HEAD}{{knowledge}}{_MMAD_NORMAL}{{references}}{_MMAD_TAIL}",
    form="free",
    source="MMAD, the protocol for local models",
)
_MMAD_SUBTASKS = (
    "anomaly_detection",
    "defect_classification",
    "defect_localization",
    "defect_description",
    "defect_analysis",
    "object_classification",
    "object_analysis",
)
_SC_GRPO = Template(
    text=f"{{image}}{_EXPERT}\n{{question}}",
    few_shot=f"{{references}}{{image}}{' '.join(_EXPERT_PAIR)}\n{{question}}",
    question=QUERY_IMAGE,
    max_shots=1,
    source=f"{_TABLE_8}; with a reference, the released wording with the missing spaces put in",
)

TEMPLATES: Mapping[str, Template] = MappingProxyType(
    {
        # Training
        "pa_sft": Template(
            text="{image}\n{question}",
            few_shot=f"{_NORMAL} {{references}}\n{_SAMPLE} {{image}}\n{{question}}",
            question=QUERY_IMAGE,
            source="IAD-R1, README; with references its wording is unpublished, this is Table 8's",
        ),
        "grpo": _SC_GRPO,  # Table 8 gives both the same words
        "sc_grpo": _SC_GRPO,
        "sc_grpo_released": Template(
            text=f"{{image}}{_EXPERT}{{question}}",
            few_shot=f"{{references}}{{image}}{''.join(_EXPERT_PAIR)}{{question}}",
            question=QUERY_IMAGE,
            max_shots=1,
            source=f"{_SCRIPTS}: no space before the question",
        ),
        "base_as_policy": Template(
            text="{image}" + " ".join((_POLICY_TASK, *_POLICY_FORM)),
            few_shot="{references}{image}"
            + " ".join((*_POLICY_PAIR, *_POLICY_FORM, _POLICY_REMINDER)),
            max_shots=1,
            source=f"{_TABLE_8}; with a reference, the released wording with spaces put in",
        ),
        "base_as_policy_released": Template(
            # The system turn is never formatted: its {Question} reaches the model as it stands.
            text="{image}{question}",
            system="".join((_POLICY_TASK, *_POLICY_FORM, "{Question}")),
            question=QUERY_IMAGE,
            source=_SCRIPTS,
        ),
        "base_as_policy_released_1shot": Template(
            text="{image}{question}",
            few_shot="{references}{image}{question}",
            system="".join((*_POLICY_PAIR, *_POLICY_FORM, _POLICY_REMINDER, "{Question}")),
            question=QUERY_IMAGE,
            max_shots=1,
            source=_SCRIPTS,
        ),
        # Tests of IAD-R1's own models
        "iad_r1_test": Template(
            text="{image}{question}",
            few_shot=f"{_NORMAL} {{references}} {_SAMPLE} {{image}} {{question}}",
            question=TEST_IMAGE,
            source=_TABLE_8,
        ),
        "iad_r1_test_qwen": Template(
            text="{image}{question}",
            few_shot=f"{_NORMAL}{{references}}{_SAMPLE}{{image}}{{question}}",
            question=TEST_IMAGE,
            source=f"{_SCRIPTS}, Qwen",
        ),
        "iad_r1_test_llava": Template(
            text="{image}{question}",
            few_shot=f"{_NORMAL}{{references}}{_SAMPLE}{{image}}{{question}}",
            question=QUERY_IMAGE,
            source=f"{_SCRIPTS}, LLaVA-OneVision and LLaVA-1.6: the query image",
        ),
        "iad_r1_test_llava15": Template(
            text=f"{_SAMPLE}{{image}}{{question}}",
            few_shot=f"{_NORMAL}{{references}}{_SAMPLE}{{image}}{{question}}",
            question=TEST_IMAGE,
            source=f"{_SCRIPTS}, LLaVA-1.5: the sentence stands before a single image too",
        ),
        # Tests of base models
        "base_test": Template(
            text=f"{{image}}{{question}} {_YES_OR_NO}",
            few_shot=f"{_NORMAL} {{references}} {_SAMPLE} {{image}} {{question}} {_YES_OR_NO}",
            question=QUERY_IMAGE,
            few_shot_question=TEST_IMAGE,
            form="free",
            source=_TABLE_8,
        ),
        "base_test_qwen": Template(
            text="{image}{question}",
            few_shot=f"{_NORMAL}{{references}}{_SAMPLE}{{image}}{{question}}",
            system="Please answer by yes or no",
            question=TEST_IMAGE,
            form="free",
            source=f"{_SCRIPTS}, Qwen",
        ),
        "base_test_llava": Template(
            text="{image}{question}",
            few_shot=f"{_NORMAL}{{references}}{_SAMPLE}{{image}}{{question}}",
            question=QUERY_IMAGE,
            source=f"{_SCRIPTS}, LLaVA-OneVision and LLaVA-1.6: yes or no is not asked for, and "
            "only an answer tag is read, which no base model writes",
        ),
        "base_test_llava15": Template(
            text="{image}{question}Please answer by yes or no",
            few_shot=f"{_NORMAL}{{references}}{_SAMPLE}{{image}}{{question}}"
            "Please answer by yes or no",
            question=TEST_IMAGE,
            form="free_lower",
            source=f"{_SCRIPTS}, LLaVA-1.5",
        ),
        "base_test_internvl": Template(
            text=f"{_INSPECTOR}\nFollowing is the query image:\n{{image}}\n{{question}}\n"
            + _YES_OR_NO,
            few_shot=f"{_INSPECTOR}\n{_MMAD_NORMAL}\n{{references}}\n"
            f"Following is the query image:\n{{image}}\n{{question}}\n{_YES_OR_NO}",
            question=TEST_IMAGE,
            form="free_stripped",
            source=f"{_SCRIPTS}, InternVL: asks for a letter and for yes or no",
        ),
        "base_test_api": Template(
            text="{image}{question}Directly answer by yes or no.",
            few_shot="{references}{image}{question}Directly answer by yes or no.",
            question=TEST_IMAGE,
            form="free",
            source=f"{_SCRIPTS}, GPT and others: what the references are is never said",
        ),
        # Rivals
        "anomaly_gpt": Template(
            text=f"{_ROUND} {{image}} {{question}} {_YES_OR_NO}",
            few_shot=f"{_NORMAL} {{references}} {_ROUND} {{image}} {{question}} {_YES_OR_NO}",
            question=TEST_IMAGE,
            form="free",
            source=f"{_TABLE_8}, which prints the 0-shot and the 1-shot text in each other's place",
        ),
        "anomaly_ov": Template(
            text="{image}{question} Please reply with 'Yes' or 'No'.",
            few_shot=f"{_NORMAL} {{references}} {_SAMPLE} {{image}} {{question}} "
            "Please reply with 'Yes' or 'No'.",
            question="Are there any defects for the object in the image?",
            form="free",
            source=f"{_TABLE_8}, which does not place the single image",
        ),
        "anomaly_r1": Template(
            text=f"{_LETTER} {{image}} {{question}}",
            few_shot=f"{_LETTER} {_NORMAL} {{references}} {_SAMPLE} {{image}} {{question}}",
            question=TEST_IMAGE,
            source=_TABLE_8,
        ),
        "anomaly_r1_released": Template(
            # The script passes the Python list of questions as the text.
            text="{image}{question_list}",
            few_shot=f"{_NORMAL}{{references}}{_SAMPLE}{{image}}{{question_list}}",
            system=_LETTER,
            source=f"{_SCRIPTS}, AnomalyR1",
        ),
        "anomaly_r1_train": Template(
            text=f"{{image}}{{question}} {_R1_TRAINING}",
            question=TEST_IMAGE,
            source="AnomalyR1, released training script; its data always ask, so the question is "
            "Table 8's, for data that do not",
        ),
        # MMAD
        "mmad": _MMAD,
        **{
            f"mmad_{subtask}": replace(_MMAD, source=f"{_MMAD.source}; subtask {subtask}")
            for subtask in _MMAD_SUBTASKS
        },
        "mmad_anomaly_gpt": Template(
            text=f"{{image}}{_ROUND} {{question}}",
            few_shot=f"{{references}}{{image}}{_ROUND} {{question}}",
            question="Is there any anomaly in the image?",
            form="free",
            source="MMAD, AnomalyGPT's anomaly detection: no options are shown",
        ),
    }
)
