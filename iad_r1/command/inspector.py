"""`iad_r1.Inspector`: verdicts in a program of one's own.

from iad_r1 import Inspector
inspector = Inspector("outputs/photos/2026-01-02_03-04-05")
print(inspector.inspect("part.jpg", references=["good.jpg"]).verdict)
"""

from __future__ import annotations

from pathlib import Path

from iad_r1 import stages
from iad_r1.command import compose
from iad_r1.errors import ConfigError
from iad_r1.loops import inspector
from iad_r1.settings.predict import JudgingSettings


class Inspector(inspector.Inspector):
    """The weights of a run or of the hub, asked with the run's own settings, or nearest good
    patches.

    Args:
        init: a run folder, one of its checkpoints, or a hub id, whose backbone's published
            settings are used; "patchcore": nearest good patches, which need no weights of a run.
        settings: any others, as on the command line of `stage=predict`: `"threshold=0.3"`,
            `"miss_rate=2"`, `"rollout=vllm"`, `"engine.device=cpu"`.

    Raises ConfigError, DataError or WeightsError as that command would.
    """

    def __init__(self, init: str | Path, *settings: str) -> None:
        judge = "method=patchcore" if str(init) == "patchcore" else f"init={init}"
        config = compose.compose(["stage=predict", judge, *settings])
        assert isinstance(config.stage, JudgingSettings)
        if config.stage.references is not None:
            raise ConfigError(
                "iad_r1.Inspector is shown references with each picture: "
                "inspect(picture, references=[...])."
            )
        stages.find("predict").check_weights(config, Path.cwd() / "outputs")
        super().__init__(config)
