"""Settings of `stage=plan` (`conf/stage/plan.yaml`)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from iad_r1.settings.base import Above0, Count, Count0
from iad_r1.settings.stage import StageSettings


class PlanSettings(StageSettings):
    """On what, and what a step is assumed to carry."""

    gpus: Count0
    gpu_memory: Above0  # GiB of each
    main_memory: Above0  # GiB of the host
    picture: Annotated[list[Count], Field(min_length=2, max_length=2)]  # width, height: pixels
    pictures: Count  # in one prompt
    answer: Count  # tokens of a PA-SFT target
