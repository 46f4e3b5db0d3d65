"""Settings of `stage=plan` (`conf/stage/plan.yaml`)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from iad_r1.settings.base import Above0, AtLeast0, Count, Count0
from iad_r1.settings.stage import StageSettings


class PlanSettings(StageSettings):
    """On what, and what a step is assumed to carry."""

    gpus: Count0
    gpu_memory: Above0  # GiB of each
    main_memory: Above0  # GiB of the host
    picture: Annotated[list[Count], Field(min_length=2, max_length=2)]  # width, height: pixels
    pictures: Count  # in one prompt
    answer: Count  # tokens of a PA-SFT target
    overhead: AtLeast0  # GiB of each GPU: CUDA's context, libraries' workspaces, NCCL
    workspace: AtLeast0  # GiB of a vLLM engine, beside its weights and cache
    margin: Annotated[float, Field(ge=0, lt=1)]  # share of the memory that must stay free
