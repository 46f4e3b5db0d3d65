"""A study: runs that differ in their arm and seed, and what is asked of them. Values: `conf/study/`
and `conf/scale/`.

An arm is a list of settings, as they are typed. `{other}` in one of them stands for the folder of
the finished run of the arm `other` with the same seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Annotated, Literal

from pydantic import Field, model_validator

from iad_r1.settings.base import Count0, Section

EVERY = "every"  # in the place of an arm: settings of all of them
Weights = Literal["base", "pretrain", "sft", "grpo"]
Typed = list[Annotated[str, Field(pattern=r"^([\w/.@+]+=|~[\w.]+$)")]]


class StudyRun(Section):
    """What a run is of a study: it stands in the run's `config.json`."""

    name: str
    arm: str
    scale: str


class Row(Section):
    """A row of the study's table: the weights that the runs of the arm `of` had after a task.
    `published` is what `judge/paper.csv` calls the method."""

    label: str
    of: str
    weights: Weights
    published: str | None


class Claim(Section):
    """That the row `better` is better in a metric than each of the rows `than`."""

    says: str
    better: str
    than: Annotated[list[str], Field(min_length=1)]
    metric: str


class Axis(Section):
    """Rows as points of a curve: what they differ in, as a number."""

    label: str
    at: Annotated[dict[str, float], Field(min_length=2)]


class Study(Section):
    """All of a study. `at` adds to the arms of a scale, `every` and its key "every" to all arms."""

    name: str
    title: str
    arm: str | None
    scale: str
    every: Typed
    seeds: Annotated[list[Count0], Field(min_length=1)]
    arms: Annotated[dict[str, Typed], Field(min_length=1)]
    at: dict[str, dict[str, Typed]]
    rows: Annotated[dict[str, Row], Field(min_length=1)]
    baseline: str
    axis: Axis | None
    metrics: Annotated[list[str], Field(min_length=1)]
    claims: list[Claim]
    published: str | None  # the backbone whose numbers the paper prints
    notes: list[str]

    @model_validator(mode="after")
    def _names_what_is_there(self) -> Study:
        if wrong := list(self._unknown()):
            raise ValueError("; ".join(wrong))
        return self

    def _unknown(self) -> Iterator[str]:
        rows = [("baseline", self.baseline)]
        rows += [("axis.at", name) for name in (self.axis.at if self.axis else ())]
        rows += [("claims", name) for c in self.claims for name in (c.better, *c.than)]
        arms = [(f"rows.{name}.of", row.of) for name, row in self.rows.items()]
        for scale, of in self.at.items():  # an arm of one scale serves others there
            said = " ".join(chain.from_iterable(of.values()))
            arms += [(f"at.{scale}", a) for a in of if a != EVERY and f"{{{a}}}" not in said]
        for kind, named, known in (("row", rows, self.rows), ("arm", arms, self.arms)):
            for where, name in named:
                if name not in known:
                    yield f"{where} names the {kind} {name!r}, which is none of {', '.join(known)}"
