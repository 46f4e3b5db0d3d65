"""`stage=sft`: PA-SFT, then an evaluation."""

from __future__ import annotations

from iad_r1.stages import pipeline

Settings, Stage = pipeline.Settings, pipeline.Stage
