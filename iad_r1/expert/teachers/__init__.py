"""Who writes: one module for each `teacher=`, and one file of its values in `conf/teacher/`.

A module has `Settings`, the types of these, and

    problems(config: Config) -> Iterator[str]      a sentence for each setting that cannot work
    require(config: Config) -> None                is there what it needs? Asked before work starts
    announce(config: Config) -> str                one line about it
    teacher(config: Config, folder: RunFolder) -> Teacher
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from iad_r1.expert.facts import Facts
from iad_r1.settings import modules
from iad_r1.types import Sample


@dataclass(frozen=True)
class Asked:
    """What a text is wanted about. `grid` ("3x3") is the one that places are named on, `place` the
    words of it for the defect; None: the picture is good. `coarse` asks for the class of a defect
    in the place of its type."""

    sample: Sample
    reference: Sample  # the good picture beside it
    facts: Facts
    grid: str
    place: str | None
    coarse: bool = False


@dataclass(frozen=True)
class Draft:
    """What a teacher has written; `type` is None where the picture is good. `shown` are words for
    what only its writer was shown, beside those of `stage.forbidden`."""

    description: str
    reasoning: str
    type: str | None
    shown: Sequence[str] = field(default=())


@dataclass(frozen=True)
class Rejection:
    """Why something is left out: the filter, and what it found."""

    reason: str
    found: str


class Teacher(Protocol):
    """Who writes. The same for a picture every time, whatever was written before.

    Attributes:
        writer: what tells its texts from those of another: a model, the hash of its words.
    """

    writer: Mapping[str, Any]

    def write(self, pictures: Iterable[Sequence[Asked]]) -> Iterator[Sequence[Draft | Rejection]]:
        """For each picture, in their order, a text for each that is wanted of it, or why there is
        none. Pictures are taken as there is room."""
        ...

    def close(self) -> Mapping[str, Any]:
        """Say what writing took, and return it for summary.json."""
        ...


def names() -> list[str]:
    """Every teacher there is."""
    return modules.names(__name__)


def find(name: str) -> Any:
    """The module of that name."""
    return modules.find(__name__, name)
