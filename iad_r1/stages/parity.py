"""`stage=parity`: do sampler and trainer run the same model here? A minute, before a run."""

from __future__ import annotations

from collections.abc import Iterator

from iad_r1.settings.config import Config
from iad_r1.settings.rollout import HfRollout
from iad_r1.stages import pipeline
from iad_r1.store.run_folder import RunFolder

Settings = pipeline.Settings


class Stage(pipeline.Stage):
    """Opens what a run would open, and trains nothing."""

    ranked = False
    imports = ("iad_r1.loops.parity",)

    def problems(self, config: Config) -> Iterator[str]:
        if isinstance(config.rollout, HfRollout):
            yield (
                "stage=parity compares a sampler with the trainer, but rollout=hf samples "
                "from the trainer's own weights. Leave rollout=hf out."
            )

    def run(self, config: Config, folder: RunFolder) -> None:
        from iad_r1.loops import parity

        parity.run(config, folder)
