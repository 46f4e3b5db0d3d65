"""What `stage=score` is told. Values: `conf/stage/score.yaml`."""

from __future__ import annotations

from typing import Literal

from iad_r1.settings.base import Count0
from iad_r1.settings.stage import StageSettings


class ScoreSettings(StageSettings):
    """Which file, how scores become answers, and what of it may be left out."""

    predictions: str | None
    threshold: float | None
    rule: Literal["f1", "miss", "overkill"]
    at_miss: float | None
    at_overkill: float | None
    shots: Count0
    extra: Literal["refuse", "left_out"]
    missing: Literal["refuse", "wrong", "left_out"]
