"""What `stage=export` is told. Values: `conf/stage/export.yaml`."""

from __future__ import annotations

from typing import Literal

from iad_r1.settings.base import Count0
from iad_r1.settings.stage import StageSettings


class ExportSettings(StageSettings):
    """For which suite, where to, and what is shown."""

    format: Literal["lmms_eval", "vlmevalkit"] | None
    to: str | None
    shots: Count0
    pictures: Literal["linked", "inside"]
