"""`stage=expert_ad`: chains of thought to train on, built from labels and masks as Expert-AD was.

    python run.py stage=expert_ad data=photos data.root=<folder> teacher=rules

Writes about the pictures that a run with these settings would train on. In `dataset/` of the run
folder are the lists of PA-SFT and SC-GRPO in their official formats, where every item comes from,
what was left out and why, and a data card (`docs/expert_ad.md`).
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from iad_r1 import nearest, stages
from iad_r1.errors import ConfigError
from iad_r1.expert import teachers
from iad_r1.settings.config import Config
from iad_r1.settings.expert import ExpertSettings
from iad_r1.stages import predict
from iad_r1.store.run_folder import RunFolder

Settings = ExpertSettings
FILTERS = ("datasketch", "py3langid")
GRIDS = 5  # facts know square grids of up to this many rows


class Stage(stages.Stage):
    """Needs weights that tell which pictures are alike, and for `teacher=self` those of a run."""

    saves = False
    shortcuts = ("teacher", "items")
    inherits = predict.INHERITED
    imports = ("iad_r1.loops.expert_ad",)

    def problems(self, config: Config) -> Iterator[str]:
        stage, grid = _settings(config), config.grid
        yield from teachers.find(stage.teacher.name).problems(config)
        if config.init is not None and stage.teacher.name != "self":
            yield (
                f"init={config.init} with teacher={stage.teacher.name}: no model of a run writes. "
                "Leave init out, or use teacher=self."
            )
        if grid.rows != grid.cols or grid.rows > GRIDS:
            yield f"grid={grid.name} with stage=expert_ad: facts know grids from 1x1 to 5x5."
        if len(set(stage.shots)) < len(stage.shots):
            yield f"stage.shots={stage.shots} names a number twice."
        if stage.words[0] > stage.words[1]:
            yield f"stage.words={stage.words}: no text has that few and that many."
        for key, part in config.data.members().items():
            if getattr(part, "views", None) is not None:
                yield (
                    f"data{key}.views with stage=expert_ad: texts are written about photographs, "
                    f"and not about views of them. Use data{key}.views=null."
                )

    def check_inputs(self, config: Config) -> None:
        nearest.weights_file()
        missing = [name for name in FILTERS if find_spec(name) is None]
        if missing:
            raise ConfigError(
                f"stage=expert_ad filters texts with {' and '.join(missing)}, which "
                f"{'is' if len(missing) == 1 else 'are'} not installed. Type: pip install "
                '-e ".[expert]"'
            )
        teachers.find(_settings(config).teacher.name).require(config)

    def announce(self, config: Config, output: str) -> Iterator[str]:
        stage = _settings(config)
        yield "chains of thought from labels and masks"
        for key, part in config.data.members().items():
            yield stages.row(f"data{key}", part.announce())
        for name, part in config.benchmark.items():
            yield stages.row(name, f"{part.announce()}: not written about")
        most = "" if stage.items is None else f", at most {stage.items:,} pictures"
        writes = teachers.find(stage.teacher.name).announce(config)
        yield stages.row("teacher", f"{writes}, places on {config.grid.name}{most}")
        yield stages.row("output", output)

    def run(self, config: Config, folder: RunFolder) -> None:
        from iad_r1.loops import expert_ad

        expert_ad.run(config, folder)


def _settings(config: Config) -> ExpertSettings:
    assert isinstance(config.stage, ExpertSettings)
    return config.stage
