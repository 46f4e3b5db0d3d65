"""`stage=doctor`: is this data fit to train or test on? Opens every file, without torch or weights.

    python run.py stage=doctor data=photos data.root=<folder>
    python run.py stage=doctor benchmark=mvtec benchmark.mvtec.root=<folder>

Prints what it found, and writes `doctor.html` and `doctor.json` (its keys: `docs/data.md`). The
exit code is 0 if training or testing may start, 1 if something has to be mended first.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import yaml
from rich.console import Console

from iad_r1 import rewards, stages
from iad_r1.backbones import published
from iad_r1.backbones.shapes import architecture
from iad_r1.data.readers import synthetic
from iad_r1.planner.widths import Shown, shown, shown_tiny, widths_of
from iad_r1.settings.backbone import BuiltBackbone
from iad_r1.settings.base import CONF, Count, Count0, Pictures
from iad_r1.settings.config import Config
from iad_r1.settings.data import ReaderSettings
from iad_r1.settings.stage import StageSettings
from iad_r1.store.run_folder import RunFolder

UNFIT = 1  # exit code where something has to be mended


class Settings(StageSettings):
    """How files are opened, and how much is printed."""

    workers: Count | None
    shown: Count0
    backbones: list[str]  # whose costs are told, beside the chosen one
    smallest_defect: Count  # pixels of a picture as a model sees it


class Stage(stages.Stage):
    """Needs no weights."""

    saves = False

    def problems(self, config: Config) -> Iterator[str]:
        assert isinstance(config.stage, Settings)
        for name in set(config.stage.backbones) - set(published.names()):
            known = ", ".join(published.names())
            yield f"stage.backbones holds {name!r}, which is none of {known}."

    def announce(self, config: Config, output: str) -> Iterator[str]:
        from iad_r1.data import checkup

        yield "check of the data"
        for section, settings in chosen(config).items():
            yield stages.row(section, checkup.said(settings))
        yield stages.row("output", output)

    def run(self, config: Config, folder: RunFolder) -> int:
        found = carry_out(config, folder, Console())
        return 0 if found["ok"] else UNFIT


def chosen(config: Config) -> dict[str, ReaderSettings]:
    """What is checked: `data` and every benchmark; of benchmarks alone, no drawn world beside."""
    tests = {f"benchmark.{name}": found for name, found in config.benchmark.items()}
    if tests and isinstance(config.data, synthetic.Settings):
        return tests
    own = {f"data{key}": found for key, found in config.data.members().items()}
    return {**own, **tests}


def carry_out(config: Config, folder: RunFolder, console: Console) -> dict[str, Any]:
    """Check, print, write `doctor.json` and `doctor.html`; returns the content of the former."""
    from iad_r1.data import cache, checkup, sizes
    from iad_r1.grid import as_grid
    from iad_r1.report import doctor
    from iad_r1.store.progress import progress

    stage = config.stage
    assert isinstance(stage, Settings)
    grid, rule = as_grid(config.grid), config.grid.mask_rule
    sources = [checkup.listed(name, of, config.seed) for name, of in chosen(config).items()]
    workers = stage.workers or len(os.sched_getaffinity(0))
    to_open = sum(len(checkup.to_open(source)) for source in sources)
    with progress("opening", to_open) as bar, cache.Kept(trusted=False) as kept:
        for source in sources:
            checkup.opened(source, grid, rule, workers, bar.advance, kept)
    words = config.rewards.vocabulary or "default"
    views = sights(config, stage)
    name, own = next(iter(views.items()))
    pictures = {
        source.section: checkup.distinct(source)
        if len(sources) == 1
        else checkup.parted(source, config.seed)
        for source in sources
    }
    defects = any("Yes" in source.answers.values() for source in sources if source.trains)
    for source in sources:
        others = [other for other in sources if source.trains and other is not source]
        apart = [p for o in others for p in pictures[o.section] if checkup.is_apart(o, p)]
        checkup.compared(source, pictures[source.section], apart)
        checkup.types(source, rewards.vocabulary(words), words)
        source.problems += sizes.too_small(source.looks, name, own, stage.smallest_defect)
        checkup.judged(source, grid, rule, config.seed, not config.benchmark, defects)
        checkup.passed_over(source)
    found = checkup.content(sources, sizes.costs(sources, views, stage.smallest_defect))
    folder.write_json("doctor.json", found)
    doctor.page(found, sources, config.name, folder.path)
    doctor.show(found, sources, stage.shown, folder.path, console)
    return found


def sights(config: Config, stage: Settings) -> dict[str, Callable[[int, int], Shown]]:
    """How models see a picture of some width and height, by the name of the backbone and of the
    limit: the chosen one first, as SC-GRPO shows it, then as published, and as released for
    SC-GRPO."""
    found: dict[str, Callable[[int, int], Shown]] = {}
    limits: dict[str, Pictures] = {"SC-GRPO": config.grpo, "PA-SFT": config.sft}
    for task, limit in limits.items():
        found[f"{config.backbone.name} ({task})"] = _own(config, limit)
    for name in stage.backbones:
        model = widths_of(published.read(name)["config"])
        file = CONF / "backbone" / f"{name}.yaml"
        most = yaml.safe_load(file.read_text(encoding="utf-8"))["grpo_max_pixels"]
        found[name] = partial(shown, model, max_pixels=None)
        if most is not None:
            found[f"{name} ({most:,} px)"] = partial(shown, model, max_pixels=most)
    return found


def _own(config: Config, limit: Pictures) -> Callable[[int, int], Shown]:
    """How the chosen backbone sees pictures within a stage's limits."""
    backbone = config.backbone
    if isinstance(backbone, BuiltBackbone):
        most = min(backbone.max_pixels, limit.max_pixels or backbone.max_pixels)
        return lambda *size: shown_tiny(*limit.within(size), most)
    model = architecture(config)
    return lambda *size: shown(model, *limit.within(size), limit.max_pixels)
