"""The folder a run writes: created once, every JSON file in it replaced whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from iad_r1.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parents[2]
TRAINED = ("grpo", "sft", "pretrain")  # checkpoints of a run, most trained first


@dataclass(frozen=True)
class RunFolder:
    """One run's output. `path` is absolute."""

    path: Path

    @classmethod
    def create(cls, outputs: Path, name: str, now: datetime | None = None) -> RunFolder:
        """Make `outputs/name/<timestamp>`, with a suffix where that second is already taken."""
        stamp = (now or datetime.now()).strftime("%Y-%m-%d_%H-%M-%S")
        parent = outputs.absolute() / name
        parent.mkdir(parents=True, exist_ok=True)
        suffix = 1
        while True:
            path = parent / (stamp if suffix == 1 else f"{stamp}_{suffix}")
            try:
                path.mkdir()  # fails if another process was faster, so no two runs share a folder
                return cls(path)
            except FileExistsError:
                suffix += 1

    @classmethod
    def open(cls, path: Path | str) -> RunFolder:
        """An existing run. ConfigError if `path` is not a run folder."""
        folder = Path(path).expanduser().absolute()
        if not folder.is_dir():
            raise ConfigError(f"there is no run folder {folder}.{_others(folder)}")
        if not (folder / "config.json").is_file():
            raise ConfigError(
                f"{folder} is not a run folder: it holds no config.json.{_others(folder)}"
            )
        return cls(folder)

    @property
    def outputs(self) -> Path:
        """What `create` was given; of one of several models, what the run of all of them was."""
        above = self.path.parent.parent
        return RunFolder(above).outputs if self.is_of_several else above

    def model(self, label: str) -> RunFolder:
        """The run of one of several models of this command."""
        return RunFolder(self.path / "models" / label)

    @property
    def is_of_several(self) -> bool:
        """Whether this is the run of one of several models of a command."""
        above, models = self.path.parent.parent, self.path.parent.name == "models"
        return models and (above / "config.json").is_file()

    @property
    def config_file(self) -> Path:
        return self.path / "config.json"

    def checkpoint(self, stage: str) -> Path:
        """Where the weights after `stage` (pretrain, sft or grpo) are kept."""
        return self.path / "checkpoints" / stage

    def predictions(self, stage: str, split: str, shots: int) -> Path:
        """Where the answers of the weights after `stage` are kept, one JSON object per line."""
        return self.path / "predictions" / f"{stage}.{split}.{shots}shot.jsonl"

    def write_json(self, name: str, value: Any) -> Path:
        """Replace the file `name` by `value`, all or nothing."""
        return write_json(self.path / name, value)

    def read_json(self, name: str) -> dict[str, Any]:
        """The object in the file `name`; empty if the file does not exist yet."""
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}

    def update_json(self, name: str, **values: Any) -> dict[str, Any]:
        """Set top-level keys of the file `name`, keep the others, and return the whole."""
        merged = {**self.read_json(name), **values}
        self.write_json(name, merged)
        return merged

    def summary(self) -> dict[str, Any]:
        """What `summary.json` holds so far."""
        return self.read_json("summary.json")

    def update_summary(self, **values: Any) -> dict[str, Any]:
        """Set top-level keys of `summary.json`, e.g. `results=[...]`."""
        return self.update_json("summary.json", **values)

    def add_seconds(self, phase: str, seconds: float) -> None:
        """Add to the time spent on `phase` in `summary.json`."""
        spent = dict(self.summary().get("seconds", {}))
        spent[phase] = spent.get(phase, 0.0) + seconds
        self.update_summary(seconds=spent)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Inside, no other process works on this run. The lock goes with the process, however it
        ends. ConfigError if another one holds it."""
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(
                    f"another process is working on {self.path}. Wait for it or stop it first."
                ) from None
            yield

    def is_running(self) -> bool:
        """Whether some process works on this run now."""
        try:
            with self.locked():
                return False
        except ConfigError:
            return True

    def update_manifest(self, **values: Any) -> dict[str, Any]:
        """Set top-level keys of `manifest.json`, e.g. `data={...fingerprint...}`."""
        return self.update_json("manifest.json", **values)


def write_json(path: Path, value: Any) -> Path:
    """Write `value` so that a reader, or a crash at any instant, sees the old file or the new.

    NaN and infinity are refused (ValueError): they are not JSON.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=_plain) + "\n"
    return write_text(path, text)


def write_text(path: Path, text: str) -> Path:
    """Replace `path` by `text`, all or nothing."""
    with replacing(path) as file:
        file.write(text)
    return path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """A file that takes the place of `path` once all is written: temporary name, flush to disk,
    rename. After an error the old one is left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("x", encoding="utf-8", newline="") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _plain(value: Any) -> Any:
    """JSON for paths and tuples-like containers; anything else is a mistake worth an error."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON: {value!r}")


# --- the runs there are --------------------------------------------------------------------------


def holds_model(folder: Path) -> bool:
    """Whether a checkpoint is complete: an adapter or a model in Hugging Face layout."""
    return any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))


def recent_runs(outputs: Path, stages: Iterable[str] = TRAINED, limit: int = 3) -> list[Path]:
    """Newest run folders below `outputs` that hold a checkpoint of one of `stages`."""
    wanted = set(stages)
    found = {
        checkpoint.parent.parent
        for checkpoint in outputs.glob("*/*/checkpoints/*")
        if checkpoint.name in wanted and holds_model(checkpoint)
    }
    return sorted(found, key=lambda path: path.name, reverse=True)[:limit]


def _others(folder: Path) -> str:
    outputs = next((p for p in (folder, *folder.parents) if p.name == "outputs"), None)
    runs = recent_runs(outputs) if outputs else []
    return "" if not runs else " The latest runs with weights: " + ", ".join(map(str, runs)) + "."
