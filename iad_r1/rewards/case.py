"""What a reward component looks at: one completion, and what is true of its image."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property, lru_cache

from iad_r1 import schema
from iad_r1.errors import DataError
from iad_r1.grid import Grid
from iad_r1.rewards.vocabulary import Vocabulary
from iad_r1.types import Solution


@dataclass(frozen=True)
class Case:
    """One completion to score. A component is a function of this, and of nothing else."""

    completion: str
    gold: str  # the solution as text: the papers' tags, or the letter of a multiple choice
    grid: Grid
    neighbour_credit: float
    vocabulary: Vocabulary | None

    @cached_property
    def solution(self) -> Solution:
        """What is true of the image. Raises DataError when `gold` is no yes/no solution."""
        return read_solution(self.gold)

    @cached_property
    def letter(self) -> str:
        """The right letter of a multiple choice. Raises DataError when `gold` names none."""
        letter = read_letter(self.gold)
        if letter is None:
            raise DataError(
                f"solution {self.gold!r} names no letter. It must be one of A to E, such as B, "
                "(B), B: scratch or <answer>B</answer>."
            )
        return letter

    @cached_property
    def parsed(self) -> schema.Parsed:
        """The completion taken apart.

        A place or a type that the data set does not hold may be left out of a "Yes": a model that
        learned from such data never saw the tag.
        """
        solution, optional = self.solution, []
        if solution.answer == "Yes" and solution.location is None:
            optional.append("location")
        if solution.answer == "Yes" and solution.type is None:
            optional.append("type")
        return schema.parse(self.completion, optional=optional)


@lru_cache(maxsize=4096)
def read_solution(text: str) -> Solution:
    """The tag form of a solution, e.g. `<answer>No</answer>`, or a bare "Yes" or "No".

    Empty tags count as absent. Raises DataError when the answer is neither yes nor no, or when a
    "No" names a place or a type.
    """
    parsed = schema.parse(text)
    verdict = parsed.verdict if parsed.answer is not None else schema.label(text)
    if verdict == schema.INVALID:
        raise DataError(
            f"solution {text!r} has no answer. It must hold one <answer>Yes</answer> or "
            "<answer>No</answer>."
        )
    answer = "Yes" if verdict == "yes" else "No"
    try:
        return Solution(answer, location=parsed.location or None, type=parsed.type or None)
    except ValueError as error:
        raise DataError(f"solution {text!r}: {error}.") from None


_LETTER = re.compile(r"\(?([A-Ea-e])\)?\s*(?:[.:)].*)?", re.DOTALL)


@lru_cache(maxsize=4096)
def read_letter(text: str) -> str | None:
    """The letter that a solution of a multiple choice names, with or without its tags, brackets
    and option: "B", "(B)", "b.", "B: scratch", `<answer>B</answer>`. None for other texts."""
    tagged = schema.parse(text).answer
    match = _LETTER.fullmatch(text.strip() if tagged is None else tagged)
    return match and match[1].upper()
