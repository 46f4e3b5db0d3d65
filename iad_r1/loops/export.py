"""A benchmark as a task of another suite."""

from __future__ import annotations

import shlex
from pathlib import Path

from iad_r1.errors import DataError
from iad_r1.loops.results import splits
from iad_r1.loops.score import open_data
from iad_r1.settings.config import Config
from iad_r1.settings.export import ExportSettings
from iad_r1.store.run_folder import RunFolder
from iad_r1.suites import items, lmms_eval, vlmevalkit


def run(config: Config, folder: RunFolder) -> None:
    """Write the tasks, say what they hold, and how they are used."""
    stage = config.stage
    assert isinstance(stage, ExportSettings)
    asked = splits(config, open_data(config, folder))
    names = [items.task_name(split) for split in asked]
    if len(set(names)) < len(names):
        raise DataError(f"splits {', '.join(asked)} would be tasks of one name. Export them apart.")
    to = Path(stage.to) if stage.to is not None else folder.path / str(stage.format)
    to.mkdir(parents=True, exist_ok=True)
    asking = items.Asking(config.evaluate.prompt, stage.shots)
    here = shlex.quote(str(to))
    if stage.format == "lmms_eval":
        tasks = lmms_eval.write(to, asked, asking, stage.pictures, config.evaluate.max_tokens)
        use = f"python -m lmms_eval --include_path {here} --tasks {tasks[0]} --model <model>"
    else:
        tasks = vlmevalkit.write(to, asked, asking, stage.pictures)
        models = to / "config.json"
        use = (
            f"name a model in {models}, then\n"
            f"LMUData={here} python run.py --config {shlex.quote(str(models))} "
            "--judge exact_matching"
        )
    held = sum(file.stat().st_size for file in to.rglob("*") if file.is_file())
    folder.update_summary(export={"to": str(to), "tasks": tasks, "bytes": held})
    print(f"{sum(map(len, asked.values())):,} questions, {held / 1e6:,.1f} MB in {to}")
    print(f"tasks     {', '.join(tasks)}\nto use it {use}", flush=True)
