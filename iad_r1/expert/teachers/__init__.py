"""Who writes: one module for each `teacher=`, with one function.

    draft(asked: Asked, seed: int) -> Draft

The same for a picture and a seed every time, whatever was written before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from iad_r1.expert.facts import Facts
from iad_r1.settings import modules


@dataclass(frozen=True)
class Asked:
    """What a text is wanted about. `grid` ("3x3") is the one that places are named on, `place` the
    words of it for the defect; None: the picture is good. `coarse` asks for the class of a defect
    in the place of its type."""

    id: str
    facts: Facts
    grid: str
    place: str | None
    coarse: bool = False


@dataclass(frozen=True)
class Draft:
    """What a teacher has written; `type` is None where the picture is good."""

    description: str
    reasoning: str
    type: str | None


def names() -> list[str]:
    """Every teacher there is."""
    return modules.names(__name__)


def find(name: str) -> Any:
    """The module of that name."""
    return modules.find(__name__, name)
