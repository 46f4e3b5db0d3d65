"""`stage=score`: answers or scores that something else has made, judged as an evaluation is.

    python run.py stage=score predictions=<file> benchmark=mmad benchmark.mmad.root=<folder>

Reads our predictions, the answers of MMAD's scripts, and tables of answers or of a detector's
scores (`docs/evaluation.md`). The run folder is that of an evaluation. Rows that are about no
picture of the data, and pictures without a row, are counted, and refused unless that is allowed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from iad_r1 import stages
from iad_r1.errors import DataError
from iad_r1.settings.config import Config
from iad_r1.settings.score import ScoreSettings
from iad_r1.store.run_folder import RunFolder

Settings = ScoreSettings


class Stage(stages.Stage):
    """Needs no weights."""

    saves = False
    paths = ("stage.predictions",)
    shortcuts = ("predictions", "threshold")
    imports = ("iad_r1.loops.score",)

    def problems(self, config: Config) -> Iterator[str]:
        stage = _settings(config)
        if stage.predictions is None:
            yield "stage=score needs the answers to judge: predictions=<JSONL, JSON or CSV file>."
        limits = {"miss": stage.at_miss, "overkill": stage.at_overkill, "f1": 0.0}
        if stage.threshold is None and limits[stage.rule] is None:
            yield (
                f"stage.rule={stage.rule} keeps a rate, and evaluate.at_{stage.rule} is null. Set "
                f"it, e.g. evaluate.at_{stage.rule}=5."
            )
        if not config.benchmark and not any(p.tests for p in config.data.members().values()):
            yield f"data={config.data.name} has no test part. Choose benchmark=... to judge on."

    def check_inputs(self, config: Config) -> None:
        file = Path(str(_settings(config).predictions))
        if not file.is_file():
            raise DataError(f"predictions={file}: there is no such file.")

    def announce(self, config: Config, output: str) -> Iterator[str]:
        yield f"judging {_settings(config).predictions}"
        for name, found in config.benchmark.items() or {"data": config.data}.items():
            yield stages.row(name, found.announce())
        yield stages.row("output", output)

    def run(self, config: Config, folder: RunFolder) -> None:
        from iad_r1.loops import score

        score.run(config, folder)


def _settings(config: Config) -> ScoreSettings:
    assert isinstance(config.stage, ScoreSettings)
    return config.stage
