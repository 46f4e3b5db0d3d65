"""Settings of the stages that judge pictures: `stage=predict` and `stage=app`."""

from __future__ import annotations

from typing import Literal

from iad_r1.settings.base import Above0, AtLeast0, Count, Percent
from iad_r1.settings.stage import ServedSettings, StageSettings


class JudgingSettings(StageSettings):
    """What pictures are shown with, and from which P(yes) on one is defective; of nearest good
    patches, from which score."""

    references: str | list[str] | None  # files, folders or globs
    threshold: AtLeast0 | None
    miss_rate: Percent | None
    validation: str | None  # the run whose validation predictions choose the threshold
    batch_size: Count


class PredictSettings(JudgingSettings):
    """Which pictures are judged, and what is left behind (`conf/stage/predict.yaml`)."""

    images: str | list[str] | None  # files, folders or globs
    annotate: Literal["all", "defective", "none"]
    fail_on_defect: bool
    watch: bool
    poll: Above0  # seconds between two looks at the folder
    patience: AtLeast0  # seconds


class AppSettings(JudgingSettings, ServedSettings):
    """Where the page is served, to whom, and how much it takes (`conf/stage/app.yaml`)."""

    most_pictures: Count  # judged at once
    most_megabytes: Count  # of one picture
