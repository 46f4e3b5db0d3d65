"""`stage=export`: a benchmark, or the test part of `data`, as a task of another suite.

    python run.py stage=export format=lmms_eval benchmark=visa benchmark.visa.root=<folder> to=<new>

The suite then asks any model that it knows the same questions about the same pictures, and scores
the answers as an evaluation here would (`docs/evaluation.md`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from iad_r1 import prompts, stages
from iad_r1.errors import ConfigError, DataError
from iad_r1.settings.config import Config
from iad_r1.settings.export import ExportSettings
from iad_r1.store.run_folder import RunFolder

Settings = ExportSettings


class Stage(stages.Stage):
    """Needs no weights."""

    saves = False
    paths = ("stage.to",)
    shortcuts = ("format", "to")
    imports = ("iad_r1.loops.export",)

    def problems(self, config: Config) -> Iterator[str]:
        stage = _settings(config)
        if stage.format is None:
            yield "stage=export needs the suite to write for: format=lmms_eval or vlmevalkit."
        if not config.benchmark and not any(p.tests for p in config.data.members().values()):
            yield f"data={config.data.name} has no test part. Choose benchmark=... to export."
        if stage.shots and config.reference_choice == "nearest":
            yield (
                "reference_choice=nearest with stage=export: references are not ranked for other "
                "suites. Use reference_choice=drawn."
            )
        if config.location_format != "words":
            yield (
                f"location_format={config.location_format} with stage=export: other suites score "
                "no places. Use location_format=words."
            )
        try:
            prompts.conversation(config.evaluate.prompt, shots=stage.shots)
        except ConfigError as error:
            yield f"evaluate.{error}"

    def check_inputs(self, config: Config) -> None:
        to = _settings(config).to
        if to is not None and Path(to).exists() and not is_empty(Path(to)):
            raise DataError(f"to={to} is there already and no empty folder. Name a new one.")

    def announce(self, config: Config, output: str) -> Iterator[str]:
        yield f"export for {_settings(config).format}"
        for name, found in config.benchmark.items() or {"data": config.data}.items():
            yield stages.row(name, found.announce())
        yield stages.row("output", _settings(config).to or output)

    def run(self, config: Config, folder: RunFolder) -> None:
        from iad_r1.loops import export

        export.run(config, folder)


def is_empty(folder: Path) -> bool:
    """Whether it is a folder without anything in it."""
    return folder.is_dir() and not any(folder.iterdir())


def _settings(config: Config) -> ExportSettings:
    assert isinstance(config.stage, ExportSettings)
    return config.stage
