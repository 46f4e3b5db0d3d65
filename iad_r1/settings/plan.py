"""Settings of `stage=plan` (`conf/stage/plan.yaml`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

_Count = Annotated[int, Field(gt=0)]
_Gib = Annotated[float, Field(ge=0)]


class PlanStage(BaseModel):
    """`stage=plan`: on what, and what a step is assumed to carry."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: Literal["plan"]
    steps: list[Literal["plan"]]
    gpus: Annotated[int, Field(ge=0)]
    gpu_memory: Annotated[float, Field(gt=0)]  # GiB of each
    main_memory: Annotated[float, Field(gt=0)]  # GiB of the host
    picture: Annotated[list[_Count], Field(min_length=2, max_length=2)]  # width, height: pixels
    pictures: _Count  # in one prompt
    answer: _Count  # tokens of a PA-SFT target
    overhead: _Gib  # of each GPU: CUDA's context, libraries' workspaces, NCCL
    workspace: _Gib  # of a vLLM engine, beside its weights and cache
    margin: Annotated[float, Field(ge=0, lt=1)]  # share of the memory that must stay free
