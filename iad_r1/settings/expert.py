"""What `stage=expert_ad` is told. Values: `conf/stage/expert_ad.yaml`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, SerializeAsAny

from iad_r1.settings import modules
from iad_r1.settings.base import Count, Section
from iad_r1.settings.stage import ServedSettings, StageSettings

TEACHERS = "iad_r1.expert.teachers"


class TeacherSettings(Section):
    """What every teacher is told; one that is told more adds it in its own module. Values:
    `conf/teacher/`."""

    name: str


Teacher = Annotated[SerializeAsAny[TeacherSettings], modules.typed_by(TEACHERS)]


class ExpertSettings(StageSettings):
    """Which pictures are written about, by whom, and what a text must not do."""

    teacher: Teacher
    items: Count | None  # pictures, by list, product, label and type alike; null: all
    rl_share: Annotated[float, Field(gt=0, lt=1)]  # for SC-GRPO, of those that may serve both
    shots: Annotated[list[Literal[0, 1]], Field(min_length=1)]
    words: Annotated[list[Count], Field(min_length=2, max_length=2)]  # of a reasoning
    alike: Annotated[float, Field(gt=0, le=1)] | None  # Jaccard index of near-duplicate texts
    forbidden: list[str]
    arms: bool
    licence: str | None


class ReviewSettings(ServedSettings):
    """Whether there is a page, and where and to whom it is served (`conf/stage/review.yaml`)."""

    write: bool
