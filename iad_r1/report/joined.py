"""Several runs put together: one `summary.json`, one table and one report.

They are the models of one `stage=evaluate models=[...]`, or earlier runs that `stage=report
runs=[...]` names.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from iad_r1 import report
from iad_r1.errors import DataError, TrainingError, setting
from iad_r1.judge.predictions import read_predictions
from iad_r1.report import gallery, published, run_data, several, tables, terminal, wording
from iad_r1.report.several import Member
from iad_r1.store import models
from iad_r1.store.run_folder import RunFolder, write_text

Row = dict[str, Any]


def join(folder: RunFolder, labels: Sequence[str]) -> None:
    """Put together what the runs in `models/<label>` have found, and print and write it.

    TrainingError that names the models that did not finish, after all else is done.
    """
    runs = {label: folder.model(label) for label in labels}
    ended = {label: run for label, run in runs.items() if _finished(run)}
    if ended:
        _put_together(folder, ended)
    if failed := list(_failures({label: run for label, run in runs.items() if label not in ended})):
        raise TrainingError(
            f"{len(failed)} of {len(runs)} models were not evaluated; the others are in "
            f"{folder.path}. {' '.join(failed)} The same command with resume=auto evaluates "
            "what is missing."
        )


def gather(folder: RunFolder, runs: Sequence[str]) -> None:
    """Put earlier runs together, each with the last weights that it has evaluated."""
    found: dict[str, RunFolder] = {}
    for run in map(RunFolder.open, runs):
        found[models.label_of(_name(run), found)] = run
    _put_together(folder, found)


def _name(run: RunFolder) -> str:
    """What a run is called beside others: one of several models as it was called among them."""
    return run.path.name if run.is_of_several else f"{run.path.parent.name}_{_last(run)}"


def check(run: RunFolder) -> None:
    """DataError unless this run can stand in a report with others."""
    several.refuse(run.path)
    _last(run)


def _last(run: RunFolder) -> str:
    """The most trained weights that a run has evaluated."""
    stages = [row["stage"] for row in run.summary().get("results") or []]
    if not stages:
        raise DataError(
            f"{run.path} was not evaluated, so it has nothing to show beside others. Evaluate it "
            f"first: python run.py stage=evaluate {setting('init', run.path)}."
        )
    return max(stages, key=wording.stage_order)


def _put_together(folder: RunFolder, runs: Mapping[str, RunFolder]) -> None:
    stages = {label: _last(run) for label, run in runs.items()}
    rows = {
        key: [row for label, run in runs.items() for row in _rows(run, key, stages[label], label)]
        for key in ("results", "thresholds", "mmad")
    }
    summaries = {label: run.summary() for label, run in runs.items()}
    asked = {label: found["asked"] for label, found in summaries.items() if "asked" in found}
    folder.update_summary(
        **{key: found for key, found in rows.items() if found or key == "results"},
        baselines=_baselines(summaries.values()),
        seconds={label: sum(s.get("seconds", {}).values()) for label, s in summaries.items()},
        **({"asked": asked} if asked else {}),
    )
    apart = [line for label, run in runs.items()
             for line in _take_answers(folder, label, run, stages[label])]  # fmt: skip
    _take_steps(folder, runs)
    _take_pictures(folder, list(runs.values()))
    members = [_member(label, run, stages[label]) for label, run in runs.items()]
    several.write(folder.path, members)
    read = [run.read_json("manifest.json").get("data") for run in runs.values()]
    if all(one == read[0] for one in read) and read[0]:
        folder.update_manifest(data=read[0])
    together = run_data.load(folder.path)
    folder.update_summary(
        comparisons=tables.comparisons(together), notes=[*apart, *tables.unlike(together)]
    )
    report.build(folder.path)
    terminal.print_summary(folder.summary(), folder.path)


def _member(label: str, run: RunFolder, stage: str) -> Member:
    manifest, summary = run.read_json("manifest.json"), run.summary()
    return Member(
        label,
        str(run.path),
        stage,
        run.read_json("config.json"),
        (manifest.get("code") or {}).get("commit"),
        (manifest.get("data") or {}).get("fingerprints") or {},
        published.of_paper(run.path, summary.get("results") or []),
        published.of_mmad(run.path, summary.get("mmad") or []),
    )


def _baselines(summaries: Iterable[Mapping[str, Any]]) -> list[Row]:
    """What nearest good patches reach on each split, of the first run that had them judge it."""
    found: dict[str, Row] = {}
    for summary in summaries:
        for row in summary.get("baselines") or []:
            found.setdefault(row["split"], row)
    return list(found.values())


def _finished(run: RunFolder) -> bool:
    return run.read_json("manifest.json").get("status") == "finished"


def _rows(run: RunFolder, key: str, stage: str, label: str) -> Iterator[Row]:
    """What the summary of a run says under `key` of its last weights, under its label."""
    for row in run.summary().get(key) or []:
        if row["stage"] == stage:
            yield {**row, "stage": label}


def _take_answers(folder: RunFolder, label: str, run: RunFolder, stage: str) -> Iterator[str]:
    """Copy the answers of these weights. Those of nearest good patches beside them are the same
    beside every run that judged the same pictures, so the first ones stay; says where others are
    left out."""
    (folder.path / "predictions").mkdir(exist_ok=True)
    for file in sorted((run.path / "predictions").glob("*.jsonl")):
        of, asked = file.name.split(".", 1)  # the split and the shots
        if of == stage:
            shutil.copyfile(file, folder.path / "predictions" / f"{label}.{asked}")
        elif of == wording.PATCHCORE:
            beside = folder.path / "predictions" / file.name
            if not beside.exists():
                shutil.copyfile(file, beside)
            elif beside.read_bytes() != file.read_bytes() and _said(beside) != _said(file):
                split = asked.rsplit(".", 2)[0]
                yield (
                    f"{split}: beside {label} nearest good patches judged other pictures than "
                    "beside a run before it, or judged them otherwise. The first ones are shown."
                )


def _said(file: Path) -> dict[str, str]:
    return {id: row.answer for id, row in read_predictions(file).items()}


def _take_steps(folder: RunFolder, runs: Mapping[str, RunFolder]) -> None:
    lines = [
        json.dumps({**line, "run": label}) + "\n"
        for label, run in runs.items()
        for line in run_data.steps(run.path / "metrics.jsonl")
    ]
    if lines:
        write_text(folder.path / "metrics.jsonl", "".join(lines))


def _take_pictures(folder: RunFolder, runs: Sequence[RunFolder]) -> None:
    """Copy the stored pictures, those that several runs show once, and heat maps of any run."""
    pictures: dict[str, Row] = {}
    for run in runs:
        for row in gallery.read(run.path):
            files, heat = _files(run.path, row), gallery.heat_of(run.path, row)
            if row["id"] not in pictures and all(map(_is_there, files)):
                pictures[row["id"]] = row
                for file in files:
                    _copy(file, folder.path / file.relative_to(run.path))
            if heat and row["id"] in pictures:
                _copy(run.path / heat, folder.path / heat)
    text = "".join(json.dumps(row) + "\n" for row in pictures.values())
    write_text(folder.path / gallery.LIST, text)


def _copy(file: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, to)


def _files(folder: Path, row: Row) -> list[Path]:
    return [folder / row[key] for key in ("image", "mask") if row[key]]


def _is_there(file: Path) -> bool:
    return file.is_file()


def _failures(runs: dict[str, RunFolder]) -> Iterator[str]:
    for label, run in runs.items():
        error = run.path / "error.txt"
        lines = error.read_text(encoding="utf-8").strip().splitlines() if error.is_file() else []
        yield f"{label}: {lines[-1] if lines else 'its process ended without a word.'}"
