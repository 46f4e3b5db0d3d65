"""The `tracking` section of a run's configuration. Its values live in `conf/tracking/`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Mode = Literal["auto", "online", "offline", "disabled"]


class TrackingConfig(BaseModel):
    """Where per-step numbers go besides `metrics.jsonl`, which is always written."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    mode: Mode
    project: Annotated[str, Field(min_length=1)]
    entity: str | None
    tags: tuple[str, ...]
    rollout_rows: Annotated[int, Field(ge=0)]
    init_timeout: Annotated[float, Field(gt=0)]  # seconds
    finish_timeout: Annotated[float, Field(gt=0)]  # seconds
