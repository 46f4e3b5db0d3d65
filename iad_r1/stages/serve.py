"""`stage=serve`: a vLLM server for the runs of `rollout=vllm_server`, until it is stopped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from iad_r1 import stages
from iad_r1.settings.config import Config
from iad_r1.settings.rollout import VllmServerRollout
from iad_r1.settings.stage import StageSettings
from iad_r1.stages import pipeline, row
from iad_r1.store.run_folder import RunFolder

Settings = StageSettings


class Stage(stages.Stage):
    """A server that begins without weights: a run sends them."""

    saves = False
    imports = ("iad_r1.loops.opening", "iad_r1.rollouts.server.start")

    def problems(self, config: Config) -> Iterator[str]:
        if not isinstance(config.rollout, VllmServerRollout):
            yield (
                f"stage=serve starts a vLLM server, and rollout={config.rollout.name} has none. "
                "Use stage=serve rollout=vllm_server."
            )

    def check_inputs(self, config: Config) -> None:
        if config.backbone.source == "built":  # its tokenizer is made from the data
            pipeline.check_data(config)
        pipeline.begin(config)

    def check_weights(self, config: Config, outputs: Path) -> bool:
        return pipeline.find_weights(config, pipeline.begin(config))

    def announce(self, config: Config, output: str) -> Iterator[str]:
        assert isinstance(config.rollout, VllmServerRollout)
        yield f"a vLLM server for {config.backbone.name}, without weights: a run sends them"
        yield row("address", f"http://{config.rollout.host}:{config.rollout.port}")

    def run(self, config: Config, folder: RunFolder) -> None:
        from iad_r1.loops.opening import corpus, open_backbone
        from iad_r1.rollouts.colocate.sampler import require_vllm, tile_limit
        from iad_r1.rollouts.server.sampler import served
        from iad_r1.rollouts.server.start import become_server

        assert isinstance(config.rollout, VllmServerRollout)
        require_vllm()
        backbone = open_backbone(config, folder, pipeline.begin(config), lambda: corpus(config))
        folder.update_manifest(status="serving")
        backbone.limit_pixels(config.grpo.max_pixels)
        name = served(config, tile_limit(backbone)).name
        become_server(backbone, config.rollout, folder.path / "model", name)
