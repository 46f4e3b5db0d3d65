"""Settings of `stage=predict` (`conf/stage/predict.yaml`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from iad_r1.settings.base import Above0, AtLeast0, Count, Share
from iad_r1.settings.stage import StageSettings

Percent = Annotated[float, Field(ge=0, lt=100)]


class PredictSettings(StageSettings):
    """Which pictures are judged, from which P(yes) on one is defective, and what is left behind."""

    images: str | list[str] | None  # files, folders or globs
    references: str | list[str] | None
    threshold: Share | None
    miss_rate: Percent | None
    validation: str | None  # the run whose validation predictions choose the threshold
    batch_size: Count
    annotate: Literal["all", "defective", "none"]
    fail_on_defect: bool
    watch: bool
    poll: Above0  # seconds between two looks at the folder
    patience: AtLeast0  # seconds
