"""What the paper and MMAD have published, beside what a run has found.

Of several runs in one folder, rows have a `run`, its label, and are those that the run's own folder
gives: with all stages, and read as its weights were trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from iad_r1.judge import mmad_published, paper
from iad_r1.report import several
from iad_r1.store import models, starts
from iad_r1.store.run_folder import RunFolder

Row = Mapping[str, Any]


def of_paper(folder: Path, results: Sequence[Row]) -> list[dict[str, Any]]:
    """`paper.beside` of the results of a run."""
    if members := several.read(folder):
        return [{"run": one.label, **row} for one in members for row in one.paper]
    run = RunFolder(folder)
    config = run.read_json("config.json")
    return paper.beside(results, config, starts.trained_by(run), _hub(config))


def of_mmad(folder: Path, found: Sequence[Row]) -> list[dict[str, Any]]:
    """`mmad_published.beside` of a run's tables of MMAD."""
    if members := several.read(folder):
        return [{"run": one.label, **row} for one in members for row in one.mmad]
    config = RunFolder(folder).read_json("config.json")
    return mmad_published.beside(found, config, _hub(config))


def not_of_mmad(folder: Path, found: Sequence[Row]) -> str | None:
    """Why no published table stands beside some tables of a run."""
    if several.read(folder):
        return None
    config = RunFolder(folder).read_json("config.json")
    return mmad_published.without(found, config, _hub(config))


def _hub(config: Mapping[str, Any]) -> str | None:
    """The hub id of the published weights of a run's backbone."""
    name = (config.get("backbone") or {}).get("name")
    return next((one["path"] for one in models.backbones() if one["name"] == name), None)
