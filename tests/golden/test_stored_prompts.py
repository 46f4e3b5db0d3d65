"""Every prompt, rendered for one sample, is the stored text, to the letter.

The files were written once with `python -m tests.golden.test_stored_prompts` and read against
Table 8 and the released scripts; run it again only for a prompt that was meant to change.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from iad_r1 import prompts
from iad_r1.types import Conversation

STORED = Path(__file__).parent / "prompts"
CHOICE = {
    "question": "There is a defect in the object. What is the type of the defect?",
    "options": {"A": "Scratch", "B": "Hole", "C": "Stain", "D": "No defect"},
}
KNOWLEDGE = "Scratch: a fine line across the cap.\nGood: even and glossy."


def values(name: str) -> dict:
    """What a template needs that it does not have itself."""
    template = prompts.TEMPLATES[name]
    if "{options}" in template.text or "{question_list}" in template.text:
        return CHOICE
    if "{question}" in template.text and template.question is None:
        return {"question": "Is there any defect in the object? A. Yes B. No"}
    return {}


def cases() -> list[tuple[str, str, dict]]:
    """(file name, template, arguments): with 0, 1 and 3 references, and with knowledge."""
    found = []
    for name, template in prompts.TEMPLATES.items():
        found.append((f"{name}.0shot", name, values(name)))
        for shots in (1, 3):
            if template.few_shot is not None and shots <= template.max_shots:
                found.append((f"{name}.{shots}shot", name, {**values(name), "shots": shots}))
        if "{knowledge}" in template.text:
            known = {**values(name), "shots": 1, "knowledge": KNOWLEDGE, "number": 2}
            found.append((f"{name}.1shot.knowledge", name, known))
    return found


def written(conversation: Conversation) -> str:
    system = "" if conversation.system is None else f"[system]\n{conversation.system}\n"
    return f"{system}[user]\n{conversation.text}\n"


@pytest.mark.parametrize(("file", "name", "arguments"), cases(), ids=lambda value: str(value)[:40])
def test_the_rendered_prompt_is_the_stored_one(file: str, name: str, arguments: dict) -> None:
    conversation = prompts.conversation(name, **arguments)
    stored = (STORED / f"{file}.txt").read_text(encoding="utf-8")
    assert written(conversation) == stored
    assert conversation.images == arguments.get("shots", 0) + 1


def test_no_stored_prompt_is_left_over() -> None:
    assert {path.stem for path in STORED.glob("*.txt")} == {file for file, _, _ in cases()}


if __name__ == "__main__":
    for file, name, arguments in cases():
        text = written(prompts.conversation(name, **arguments))
        (STORED / f"{file}.txt").write_text(text, encoding="utf-8")
