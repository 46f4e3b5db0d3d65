"""`stage=evaluate`: answers to held-out images, of an earlier run, a published backbone, or several
models one after the other (`models=[...]`), each in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from iad_r1 import data, nearest
from iad_r1.chat import client
from iad_r1.errors import ConfigError
from iad_r1.processes import ranks
from iad_r1.settings.config import Config
from iad_r1.stages import pipeline, row
from iad_r1.store import models
from iad_r1.store.run_folder import RunFolder


class Settings(pipeline.Settings):
    """Which models; empty: that of `init` or `backbone`."""

    models: list[str]


class Stage(pipeline.Stage):
    """Asks for weights that were trained, unless nearest good patches answer."""

    shortcuts = ("models",)
    paths_or_names = ("stage.models",)

    def problems(self, config: Config) -> Iterator[str]:
        yield from super().problems(config)
        named = _settings(config).models
        if named and config.init is not None:
            yield f"init={config.init} with models=[{','.join(named)}]: add it to models instead."
        if named and config.method.name == "patchcore":
            yield "models=[...] with method=patchcore: nearest good patches answer without a model."
        if len(set(named)) < len(named):
            yield f"models=[{','.join(named)}]: name each model once."
        if named and config.engine.hosts > 1:
            yield (
                f"models=[{','.join(named)}] with engine.hosts={config.engine.hosts}: several "
                "models are evaluated on one host. Use engine.hosts=1."
            )

    def check_inputs(self, config: Config) -> None:
        for part in self._each(config).values():
            super().check_inputs(part)

    def check_weights(self, config: Config, outputs: Path) -> bool:
        return all([self._check_weights(part, outputs) for part in self._each(config).values()])

    def _check_weights(self, config: Config, outputs: Path) -> bool:
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

    def announce(self, config: Config, output: str) -> Iterator[str]:
        if not _settings(config).models:
            yield from super().announce(config, output)
            return
        each = self._each(config)
        yield f"{config.stage.name} of {len(each)} models"
        for label, part in each.items():
            yield row("model", f"{label}: {pipeline.weights(part)}")
        for found in data.benchmarks(config).values():
            yield row("benchmark", found.announce())
        yield row("evaluate", pipeline.evaluation(config))
        yield row("output", output)

    def parts(self, config: Config, folder: RunFolder) -> Iterator[RunFolder]:
        for label, part in models.parts(config, _settings(config).models).items():
            run = folder.model(label)
            if run.read_json("manifest.json").get("status") != "finished":
                run.write_json("config.json", part.model_dump(mode="json"))
                yield run

    def run(self, config: Config, folder: RunFolder) -> None:
        named = _settings(config).models
        if not named:
            super().run(config, folder)
        elif ranks.is_main():
            from iad_r1.report import joined

            joined.join(folder, list(models.parts(config, named)))

    def _each(self, config: Config) -> dict[str, Config]:
        """The configuration of each model by its label; of the only one under no label."""
        named = _settings(config).models
        return models.parts(config, named) if named else {"": config}


def _settings(config: Config) -> Settings:
    assert isinstance(config.stage, Settings)
    return config.stage
