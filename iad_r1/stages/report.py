"""`stage=report`: the report of an earlier run (`init`) written again, or one of several runs.

    python run.py stage=report init=outputs/<name>/<timestamp>
    python run.py stage=report runs=[outputs/<name>/<timestamp>,outputs/<name>/<timestamp>]

Several runs stand side by side on one page, each with the last weights that it has evaluated.
"""

from __future__ import annotations

from collections.abc import Iterator

from iad_r1 import stages
from iad_r1.settings.config import Config
from iad_r1.settings.stage import StageSettings
from iad_r1.store.run_folder import RunFolder


class Settings(StageSettings):
    """Which runs; empty: that of `init`."""

    runs: list[str]


class Stage(stages.Stage):
    """Reads earlier runs, not their weights."""

    paths = ("stage.runs",)
    shortcuts = ("runs",)
    imports = ("iad_r1.report.joined",)

    def problems(self, config: Config) -> Iterator[str]:
        runs = _settings(config).runs
        if not runs and config.init is None:
            yield "stage=report needs the run to report on: init=outputs/<name>/<timestamp>."
        if runs and config.init is not None:
            yield f"init={config.init} with runs=[{','.join(runs)}]: add it to runs instead."
        if runs and (len(runs) < 2 or len(set(runs)) < len(runs)):
            yield (
                f"stage=report shows two or more different runs side by side, not "
                f"runs=[{','.join(runs)}]. For one run use init=<run>."
            )

    def check_inputs(self, config: Config) -> None:
        from iad_r1.report import joined

        super().check_inputs(config)
        for run in _settings(config).runs:
            joined.check(RunFolder.open(run))

    def announce(self, config: Config, output: str) -> Iterator[str]:
        runs = _settings(config).runs
        if not runs:
            yield f"report on {config.init}"
            return
        yield f"report on {len(runs)} runs"
        for run in runs:
            yield stages.row("run", run)
        yield stages.row("output", output)

    def run(self, config: Config, folder: RunFolder) -> None:
        from iad_r1 import report
        from iad_r1.report import joined
        from iad_r1.report.terminal import print_summary

        if runs := _settings(config).runs:
            joined.gather(folder, runs)
            return
        reported = RunFolder.open(str(config.init))
        report.build(reported.path)
        print_summary(reported.summary(), reported.path)


def _settings(config: Config) -> Settings:
    assert isinstance(config.stage, Settings)
    return config.stage
