"""`stage=compare`: is one run better than another? Paired differences on the same images.

    python run.py stage=compare runs=[outputs/<name>/<timestamp>,outputs/<name>/<timestamp>]

The first run is compared with each of the others, by the last weights that each has evaluated.
Prints a table, and writes `compare.json`, `compare.csv` and `compare.html` (see
`docs/evaluation.md`). Runs whose images or labels differ are refused; other differences are said.
"""

from __future__ import annotations

from collections.abc import Iterator

from iad_r1 import stages
from iad_r1.settings.base import Count0
from iad_r1.settings.config import Config
from iad_r1.settings.stage import StageSettings
from iad_r1.store.run_folder import RunFolder


class Settings(StageSettings):
    """Which runs, and on which images."""

    runs: list[str]
    shared: bool
    pictures: Count0


class Stage(stages.Stage):
    """Reads earlier runs, not their weights."""

    saves = False
    paths = ("stage.runs",)
    shortcuts = ("runs",)
    imports = ("iad_r1.report.comparison",)

    def problems(self, config: Config) -> Iterator[str]:
        runs = _settings(config).runs
        if len(set(runs)) < 2 or len(set(runs)) < len(runs):
            yield (
                f"stage=compare needs two or more different runs, not runs=[{','.join(runs)}]. "
                "Use runs=[outputs/<name>/<timestamp>,outputs/<name>/<timestamp>]."
            )
        if len(runs) > 26:
            yield f"stage=compare names runs by letters, and runs holds {len(runs)}."

    def check_inputs(self, config: Config) -> None:
        for run in _settings(config).runs:
            RunFolder.open(run)

    def announce(self, config: Config, output: str) -> Iterator[str]:
        yield f"comparison of {len(_settings(config).runs)} runs"
        yield stages.row("output", output)

    def run(self, config: Config, folder: RunFolder) -> None:
        from rich.console import Console

        from iad_r1.report import comparison

        stage, console = _settings(config), Console()
        found = comparison.compare(comparison.load(stage.runs), stage.shared, config.seed)
        comparison.write(found, folder.path, stage.pictures)
        comparison.show(found, folder.path, console if console.is_terminal else Console(width=80))


def _settings(config: Config) -> Settings:
    assert isinstance(config.stage, Settings)
    return config.stage
