"""Engines that draw completions, chosen by `rollout=...`."""

from __future__ import annotations

from iad_r1.backbones.backbone import Backbone
from iad_r1.rollouts.hf import HfEngine
from iad_r1.rollouts.sampling import Engine
from iad_r1.rollouts.server.sampler import VllmServerEngine, served
from iad_r1.settings.config import Config, VllmRollout, VllmServerRollout


def open_engine(config: Config, backbone: Backbone, batch_size: int) -> Engine:
    """The rollout engine that the settings name. `batch_size`: completions decoded at once, for
    engines that do not decide it themselves."""
    if isinstance(config.rollout, VllmRollout):
        from iad_r1.rollouts.colocate.sampler import kept  # vllm is imported only where it is used

        return kept(backbone, config.rollout)
    if isinstance(config.rollout, VllmServerRollout):
        return VllmServerEngine(backbone, config.rollout, served(config))
    return HfEngine(backbone, batch_size)
