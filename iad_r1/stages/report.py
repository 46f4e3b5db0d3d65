"""`stage=report`: write the report of an earlier run (`init`) again, from what its folder holds."""

from __future__ import annotations

from collections.abc import Iterator

from iad_r1 import stages
from iad_r1.settings.config import Config
from iad_r1.settings.stage import StageSettings
from iad_r1.store.run_folder import RunFolder

Settings = StageSettings


class Stage(stages.Stage):
    """Reads an earlier run, not its weights."""

    imports = ("iad_r1.report",)

    def problems(self, config: Config) -> Iterator[str]:
        if config.init is None:
            yield "stage=report needs the run to report on: init=outputs/<name>/<timestamp>."

    def announce(self, config: Config, output: str) -> Iterator[str]:
        yield f"report on {config.init}"

    def run(self, config: Config, folder: RunFolder) -> None:
        from iad_r1 import report
        from iad_r1.report.terminal import print_summary

        reported = RunFolder.open(str(config.init))
        report.build(reported.path)
        print_summary(reported.summary(), reported.path)
