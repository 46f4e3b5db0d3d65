"""The `tracking` section. Values: `conf/tracking/`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from iad_r1.settings.base import Above0, Count0, Section

Mode = Literal["auto", "online", "offline", "disabled"]


class TrackingConfig(Section):
    """Where per-step numbers go besides `metrics.jsonl`, which is always written."""

    name: str
    mode: Mode
    project: Annotated[str, Field(min_length=1)]
    entity: str | None
    tags: list[str]
    rollout_rows: Count0
    init_timeout: Above0  # seconds
    finish_timeout: Above0  # seconds
