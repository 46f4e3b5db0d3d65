"""The parity gate of a run, if its sampler has weights of its own."""

from __future__ import annotations

from iad_r1.loops.context import Context
from iad_r1.rollouts.colocate.sampler import VllmSampler
from iad_r1.rollouts.parity import Gate
from iad_r1.rollouts.prompting import Prompter
from iad_r1.rollouts.sampling import Sampler
from iad_r1.rollouts.server.sampler import ServerSampler
from iad_r1.settings.config import HfRollout


def open_gate(context: Context, sampler: Sampler, prompter: Prompter) -> Gate | None:
    """The gate of a run, its probes the first pictures of SC-GRPO; None where sampler and trainer
    share their weights."""
    config = context.config
    if isinstance(config.rollout, HfRollout):
        return None
    if not isinstance(sampler, (VllmSampler, ServerSampler)):
        return None
    settings = config.rollout.parity
    return Gate(
        sampler,
        context.backbone,
        [prompter.encode(sample) for sample in context.dataset.rl[: settings.probes]],
        settings,
        temperature=config.rollout.temperature,
        packing=config.grpo.packing,
        path=context.folder.path / "parity.csv",
    )
