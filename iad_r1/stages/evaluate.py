"""`stage=evaluate`: answers to held-out images, of an earlier run or of a published backbone."""

from __future__ import annotations

from pathlib import Path

from iad_r1 import nearest
from iad_r1.chat import client
from iad_r1.errors import ConfigError
from iad_r1.settings.config import Config
from iad_r1.stages import pipeline

Settings = pipeline.Settings


class Stage(pipeline.Stage):
    """Asks for weights that were trained, unless nearest good patches answer."""

    def check_weights(self, config: Config, outputs: Path) -> bool:
        if config.method.name == "patchcore":
            nearest.weights_file()
            return True
        if config.backbone.source == "api":
            client.require(config.backbone)
            return True
        if config.backbone.source == "built" and config.init is None:
            raise ConfigError(
                f"stage=evaluate needs trained weights, and backbone={config.backbone.name} has "
                f"none of its own. {pipeline.type_init(outputs, 'evaluate')}"
            )
        return super().check_weights(config, outputs)
