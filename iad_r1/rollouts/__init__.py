"""Samplers, which draw completions, chosen by `rollout=...`."""

from __future__ import annotations

from iad_r1.backbones.backbone import Backbone
from iad_r1.rollouts.colocate.sampler import kept, tile_limit
from iad_r1.rollouts.hf import HfSampler
from iad_r1.rollouts.sampling import Sampler
from iad_r1.rollouts.server.sampler import ServerSampler, served
from iad_r1.settings.config import Config
from iad_r1.settings.rollout import VllmRollout, VllmServerRollout


def open_sampler(config: Config, backbone: Backbone, batch_size: int) -> Sampler:
    """The sampler that the settings name. `batch_size`: completions decoded at once, for
    samplers that do not decide it themselves."""
    if isinstance(config.rollout, VllmRollout):
        return kept(backbone, config.rollout)
    if isinstance(config.rollout, VllmServerRollout):
        return ServerSampler(backbone, config.rollout, served(config, tile_limit(backbone)))
    return HfSampler(backbone, batch_size)
