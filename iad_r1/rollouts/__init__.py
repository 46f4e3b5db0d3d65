"""Engines that draw completions, chosen by `rollout=...`."""

from __future__ import annotations

from iad_r1.backbones.backbone import Backbone
from iad_r1.config import Config
from iad_r1.rollouts.hf import HfEngine
from iad_r1.rollouts.sampling import Engine


def open_engine(config: Config, backbone: Backbone, batch_size: int) -> Engine:
    """The rollout engine that the settings name. `batch_size`: completions decoded at once, for
    engines that do not decide it themselves."""
    return HfEngine(backbone, batch_size)
