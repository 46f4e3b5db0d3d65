"""What a run was made from and what it makes, by name: data, weights, an evaluation, the report.

The names follow from run folder and stage, so that a later run that starts from these weights can
name them too: that is the lineage which trackers show.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from iad_r1.store.run_folder import TRAINED, RunFolder
from iad_r1.store.starts import Start, find_start

MIB = 2**20


@dataclass(frozen=True)
class Product:
    """Something with a name.

    Attributes:
        files: of it, by the name each has in it.
        texts: files that are not on disk, by name.
        about: what to know of it.
        of: names of what it was made from.
    """

    kind: Literal["dataset", "model", "evaluation", "report"]
    name: str
    files: Mapping[str, Path] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    of: tuple[str, ...] = ()

    @property
    def mib(self) -> float:
        """The size of its files."""
        return sum(file.stat().st_size for file in self.files.values()) / MIB


def run_name(folder: Path) -> str:
    """A run's name in trackers."""
    return f"{folder.parent.name}-{folder.name}"


def data(run: RunFolder) -> Product:
    """What was read: its fingerprints, not the pictures. The same data are the same product."""
    found = run.read_json("manifest.json")["data"]
    kept = {name: found[name] for name in ("name", "fingerprint", "fingerprints", "counts")}
    text = json.dumps(kept, indent=2, sort_keys=True) + "\n"
    return Product("dataset", _data_name(run), texts={"data.json": text}, about=kept)


def weights(run: RunFolder, stage: str, init: str | None) -> Product:
    """The checkpoint of a stage: made from the data, and from the stage before it in this run or
    the weights that the run started from (`init`)."""
    folder = run.checkpoint(stage)
    files = {file.relative_to(folder).as_posix(): file for file in _files(folder)}
    before = _before(run, stage) or _started(init)
    about = {"stage": stage, "run": run_name(run.path), "path": str(folder)}
    of = (_data_name(run), *([] if before is None else [weights_name(before.run, before.stage)]))
    return Product("model", weights_name(run, stage), files, about=about, of=of)


def evaluation(run: RunFolder, stage: str, init: str | None) -> Product:
    """The answers of the weights after `stage` and what they amount to."""
    files = {file.name: file for file in sorted((run.path / "predictions").glob(f"{stage}.*"))}
    files["summary.json"] = run.path / "summary.json"
    own = Start(stage, run.checkpoint(stage), run)
    judged = own if stage in TRAINED and own.path.is_dir() else _started(init)
    of = (_data_name(run), *([] if judged is None else [weights_name(judged.run, judged.stage)]))
    return Product("evaluation", _evaluation_name(run, stage), files, about={"stage": stage}, of=of)


def report(run: RunFolder) -> Product:
    """The page of the run, made from all that it has evaluated."""
    stages = dict.fromkeys(row["stage"] for row in run.summary().get("results", []))
    of = tuple(_evaluation_name(run, stage) for stage in stages)
    files = {"report.html": run.path / "report.html"}
    return Product("report", _safe(f"report-{run_name(run.path)}"), files, of=of)


def weights_name(run: RunFolder, stage: str) -> str:
    """How the weights of a run after `stage` are called."""
    return _safe(f"weights-{run_name(run.path)}-{stage}")


def _before(run: RunFolder, stage: str) -> Start | None:
    earlier = [s for s in TRAINED[TRAINED.index(stage) + 1 :] if run.checkpoint(s).is_dir()]
    return Start(earlier[0], run.checkpoint(earlier[0]), run) if earlier else None


def _started(init: str | None) -> Start | None:
    return find_start(init) if init is not None else None


def _evaluation_name(run: RunFolder, stage: str) -> str:
    return _safe(f"evaluation-{run_name(run.path)}-{stage}")


def _data_name(run: RunFolder) -> str:
    return _safe(f"data-{run.read_json('manifest.json')['data']['name']}")


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _safe(name: str) -> str:
    """In the letters that W&B takes, and of the length."""
    return re.sub(r"[^\w.-]", "-", name)[:128]
