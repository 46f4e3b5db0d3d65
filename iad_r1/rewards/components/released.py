"""The reward functions released with IAD-R1, faults included (golden/sc_grpo_rewards.jsonl).

Equal to the published regular expressions, but linear in the length of the completion: their
`.*?` between literal tags is a search for those literals one after the other.

Faults kept: anything around the tags is free, the first of several answers is graded, only
consistency reads across lines, place and type pay on a wrong answer, and a text without a keyword
is "center".
"""

from __future__ import annotations

from itertools import pairwise

from iad_r1.errors import DataError
from iad_r1.grid import location_score
from iad_r1.rewards.case import Case
from iad_r1.rewards.released_types import released_types
from iad_r1.schema import first_line_tag


def consistency(case: Case) -> float:
    """1.0 if the tags the true label asks for stand somewhere, touching, in order.

    A defect needs think, location, type and answer; a normal image think and answer, and no
    location or type anywhere. The texts in the tags are not looked at.
    """
    if _label(case) == "yes":
        tags = ("think", "location", "type", "answer")
        return float(_touching(case.completion, *tags))
    if "<location>" in case.completion or "<type>" in case.completion:
        return 0.0
    return format_base(case)


def format_base(case: Case) -> float:
    """1.0 if think and answer stand somewhere, touching, whatever the label."""
    return float(_touching(case.completion, "think", "answer"))


def accuracy(case: Case) -> float:
    """1.0 for the right answer; for a defect also the mean of type and place, whatever is
    answered. A part without its tag is worth 0."""
    if _label(case) == "no":
        return _right_answer(case)
    return ((_type(case) or 0.0) + (_location(case) or 0.0)) / 2.0 + _right_answer(case)


def accuracy_without_type(case: Case) -> float:
    """`accuracy` with the place alone. For a defect it is 0 altogether without a location tag:
    the released function fails there and swallows the error."""
    if _label(case) == "no":
        return _right_answer(case)
    place = _location(case)
    return 0.0 if place is None else place + _right_answer(case)


def accuracy_without_location(case: Case) -> float:
    """`accuracy` with the type alone; for a defect 0 altogether without a type tag."""
    if _label(case) == "no":
        return _right_answer(case)
    kind = _type(case)
    return 0.0 if kind is None else kind + _right_answer(case)


def answer_only(case: Case) -> float:
    """1.0 for the right answer."""
    return _right_answer(case)


for _places in (accuracy, accuracy_without_type):
    vars(_places)["only_grid"] = "3x3"  # checked by `load`, before a completion is scored
    vars(_places)["places"] = ("words",)


def _label(case: Case) -> str:
    """The true label, "yes" or "no". The released code scores anything else as nothing at all."""
    answer = first_line_tag(case.gold, "answer")
    text = (case.gold if answer is None else answer).strip().lower()
    if text not in ("yes", "no"):
        raise DataError(f"solution {case.gold!r} has no answer: it must be Yes or No.")
    return text


def _right_answer(case: Case) -> float:
    said = first_line_tag(case.completion, "answer")
    return float(said is not None and said.strip().lower() == _label(case))


def _type(case: Case) -> float | None:
    said, true = (first_line_tag(text, "type") for text in (case.completion, case.gold))
    if said is None or true is None:
        return None
    return released_types().score(said.strip(), true.strip())


def _location(case: Case) -> float | None:
    said, true = (first_line_tag(text, "location") for text in (case.completion, case.gold))
    if said is None or true is None:
        return None
    return location_score(said, true, released=True)


def _touching(text: str, *tags: str) -> bool:
    """Whether `<a>…</a><b>…</b>…` occurs, each tag directly after the one before."""
    joints = [f"</{before}><{after}>" for before, after in pairwise(tags)]
    for literal in (f"<{tags[0]}>", *joints, f"</{tags[-1]}>"):
        _, found, text = text.partition(literal)
        if not found:
            return False
    return True
