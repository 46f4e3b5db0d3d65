"""The runs of several models joined: one `summary.json`, one table and one report.

A model's label stands where a run that trains names its stages.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from typing import Any

from iad_r1 import report
from iad_r1.errors import TrainingError
from iad_r1.report import gallery, terminal, wording
from iad_r1.store.run_folder import RunFolder


def join(folder: RunFolder, labels: Sequence[str]) -> None:
    """Put together what the runs in `models/<label>` have found, and print and write it.

    TrainingError that names the models that did not finish, after all else is done.
    """
    runs = {label: RunFolder(folder.path / "models" / label) for label in labels}
    ended = {label: run for label, run in runs.items() if _finished(run)}
    results = [row for label, run in ended.items() for row in _rows(label, run)]
    seconds = {label: sum(run.summary()["seconds"].values()) for label, run in ended.items()}
    folder.update_summary(results=results, comparisons=[], seconds=seconds)
    for label, run in ended.items():
        _take_answers(folder, label, run)
    if ended:
        first = next(iter(ended.values()))
        folder.update_summary(baselines=first.summary().get("baselines", []))
        folder.update_manifest(data=first.read_json("manifest.json")["data"])
        shutil.copyfile(first.path / gallery.LIST, folder.path / gallery.LIST)
        shown = folder.path / gallery.FOLDER
        shutil.copytree(first.path / gallery.FOLDER, shown, dirs_exist_ok=True)
        report.build(folder.path)
        terminal.print_summary(folder.summary(), folder.path)
    if len(ended) > 1:
        listed = ",".join(str(run.path) for run in ended.values())
        print(f"\nIs one better than another? python run.py stage=compare 'runs=[{listed}]'")
    if failed := list(_failures({label: run for label, run in runs.items() if label not in ended})):
        raise TrainingError(
            f"{len(failed)} of {len(runs)} models were not evaluated; the others are in "
            f"{folder.path}. {' '.join(failed)} The same command with resume=auto evaluates "
            "what is missing."
        )


def _finished(run: RunFolder) -> bool:
    return run.read_json("manifest.json").get("status") == "finished"


def _rows(label: str, run: RunFolder) -> Iterator[dict[str, Any]]:
    for row in run.summary()["results"]:
        yield {**row, "stage": label}


def _take_answers(folder: RunFolder, label: str, run: RunFolder) -> None:
    (folder.path / "predictions").mkdir(exist_ok=True)
    for file in sorted((run.path / "predictions").glob("*.jsonl")):
        stage, asked = file.name.split(".", 1)  # the split and the shots
        name = stage if stage == wording.PATCHCORE else label  # the same beside every model
        shutil.copyfile(file, folder.path / "predictions" / f"{name}.{asked}")


def _failures(runs: dict[str, RunFolder]) -> Iterator[str]:
    for label, run in runs.items():
        error = run.path / "error.txt"
        lines = error.read_text(encoding="utf-8").strip().splitlines() if error.is_file() else []
        yield f"{label}: {lines[-1] if lines else 'its process ended without a word.'}"
