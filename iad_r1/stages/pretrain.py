"""`stage=pretrain`: The pre-training of the tiny vision tower alone."""

from __future__ import annotations

from iad_r1.stages import pipeline

Settings, Stage = pipeline.Settings, pipeline.Stage
