"""`stage=grpo`: SC-GRPO from the PA-SFT weights of an earlier run, evaluated before and after."""

from __future__ import annotations

from iad_r1.stages import pipeline

Settings, Stage = pipeline.Settings, pipeline.Stage
