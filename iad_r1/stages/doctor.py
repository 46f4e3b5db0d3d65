"""`stage=doctor`: is this data fit to train or test on? Opens every file, without torch or weights.

    python run.py stage=doctor data=photos data.root=<folder>
    python run.py stage=doctor benchmark=mvtec benchmark.mvtec.root=<folder>

Prints what it found and writes `doctor.json` (its keys: `docs/data.md`). The exit code is 0 if
training or testing may start, 1 if something has to be mended first.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from rich.console import Console

from iad_r1 import stages
from iad_r1.data.readers import synthetic
from iad_r1.settings.base import Count, Count0
from iad_r1.settings.config import Config
from iad_r1.settings.data import ReaderSettings
from iad_r1.settings.stage import StageSettings
from iad_r1.store.run_folder import RunFolder

UNFIT = 1  # exit code where something has to be mended


class Settings(StageSettings):
    """How files are opened, and how much is printed."""

    workers: Count | None
    shown: Count0


class Stage(stages.Stage):
    """Needs no weights."""

    saves = False

    def announce(self, config: Config, output: str) -> Iterator[str]:
        yield "check of the data"
        for section, settings in chosen(config).items():
            yield stages.row(section, settings.announce())
        yield stages.row("output", output)

    def run(self, config: Config, folder: RunFolder) -> int:
        found = carry_out(config, folder, Console())
        return 0 if found["ok"] else UNFIT


def chosen(config: Config) -> dict[str, ReaderSettings]:
    """What is checked: `data` and every benchmark; of benchmarks alone, no drawn world beside."""
    tests = {f"benchmark.{name}": found for name, found in config.benchmark.items()}
    if tests and isinstance(config.data, synthetic.Settings):
        return tests
    return {"data": config.data, **tests}


def carry_out(config: Config, folder: RunFolder, console: Console) -> dict[str, Any]:
    """Check, print, write `doctor.json`; returns its content."""
    from iad_r1.data import checkup
    from iad_r1.grid import as_grid
    from iad_r1.report import doctor
    from iad_r1.store.progress import progress

    stage = config.stage
    assert isinstance(stage, Settings)
    grid, rule = as_grid(config.grid), config.grid.mask_rule
    sources = [checkup.listed(name, of, config.seed) for name, of in chosen(config).items()]
    workers = stage.workers or len(os.sched_getaffinity(0))
    with progress("opening", sum(len(source.looks) for source in sources)) as bar:
        for source in sources:
            checkup.opened(source, grid, rule, workers, bar.advance)
    for source in sources:
        checkup.compared(source)
        checkup.judged(source, grid, rule, config.seed, alone=not config.benchmark)
        checkup.passed_over(source)
    found = checkup.content(sources)
    folder.write_json("doctor.json", found)
    doctor.show(found, sources, stage.shown, folder.path, console)
    return found
