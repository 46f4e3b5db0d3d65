"""Numbers of a run, as it goes: always to the run folder, and mirrored to a tracker.

`metrics.jsonl` and `rollouts/*.parquet` are the record. A tracker is a view of it: whatever goes
wrong there costs one printed sentence, never the run.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from iad_r1.errors import ConfigError, MismatchError
from iad_r1.settings.tracking import NoTracking, Tracking
from iad_r1.store.products import Product
from iad_r1.store.run_folder import write_text
from iad_r1.store.trackers import Backend
from iad_r1.store.trackers.mirror import Mirror

_RESERVED = ("stage", "step", "not_finite")


class Tracker:
    """Writes one run's numbers. Use as a context manager, from one process (rank 0) only.

    `config` is the resolved configuration that a tracker shows beside the curves.
    """

    def __init__(self, settings: Tracking, run_folder: Path, config: Mapping[str, Any]) -> None:
        self._settings = settings
        self._folder = Path(run_folder)
        self._config = config
        self._metrics = self._folder / "metrics.jsonl"
        self._entered = False
        self._mirror: Mirror | None = None

    def __enter__(self) -> Tracker:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._metrics.touch()
        _drop_torn_line(self._metrics)
        self._entered = True
        settings = self._settings
        if not isinstance(settings, NoTracking):
            open_ = partial(_open_backend, settings, self._folder, self._config)
            self._mirror = Mirror(settings.name, open_, settings, str(self._metrics))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._close({}, failed=kind is not None)

    def log(self, stage: str, step: int, scalars: Mapping[str, float]) -> None:
        """Append one line {"stage", "step", ...scalars} to `metrics.jsonl`.

        JSON has no NaN: such a value is written as null and spelled out beside it, as in
        {"loss": null, "not_finite": {"loss": "nan"}}.
        """
        if taken := [name for name in _RESERVED if name in scalars]:
            raise MismatchError(f"scalars of {stage} step {step} use the reserved names {taken}.")
        values = {name: _number(name, value) for name, value in scalars.items()}
        line = {"stage": stage, "step": step, **_json_safe(values)}
        if not self._entered:
            raise MismatchError("Tracker.log needs `with Tracker(...) as tracker:` around it.")
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
        self._send(lambda tracker: tracker.log(stage, step, values))

    def rollouts(self, stage: str, step: int, rows: Sequence[Mapping[str, Any]]) -> Path:
        """Write `rollouts/<stage>-<step>.parquet`, one row per completion, which may hold a picture
        under `thumbnail`, as JPEG bytes; returns its path."""
        import pandas

        path = self._folder / "rollouts" / f"{stage}-{step:05d}.parquet"
        path.parent.mkdir(exist_ok=True)
        unfinished = path.with_suffix(".partial")
        pandas.DataFrame(list(rows)).to_parquet(unfinished, index=False)
        unfinished.replace(path)
        if not isinstance(self._settings, NoTracking):
            shown = rows[: self._settings.rollout_rows]
            if shown:
                self._send(lambda tracker: tracker.rollouts(stage, step, shown))
        return path

    def evaluation(self, results: Sequence[Mapping[str, Any]]) -> None:
        """Show the rows of `summary.json`'s `results`; the last weights in it are new."""
        rows = list(results)
        if rows:
            self._send(lambda tracker: tracker.evaluation(rows))

    def made(self, product: Callable[[], Product]) -> None:
        """Show what the run has made, or the data that it has read. `product` is called by the
        tracker alone, so it costs and risks nothing here."""
        self._send(lambda tracker: tracker.made(product()))

    def rewind(self, stage: str, step: int) -> None:
        """Drop the lines and rollouts of `stage` from `step` on."""
        lines = self._metrics.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if not _is_later(json.loads(line), stage, step)]
        if len(kept) < len(lines):
            write_text(self._metrics, "".join(kept))
        for table in (self._folder / "rollouts").glob(f"{stage}-*.parquet"):
            if int(table.stem.rpartition("-")[2]) >= step:
                table.unlink()
        self._send(lambda tracker: tracker.rewind(stage, step))

    def flush(self) -> None:
        """Have the disk hold every line so far."""
        with self._metrics.open("a") as file:
            os.fsync(file.fileno())

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Close, with the run's `summary.json`."""
        self._close(summary, failed=False)

    def _close(self, summary: Mapping[str, Any], *, failed: bool) -> None:
        self._entered = False
        mirror, self._mirror = self._mirror, None
        if mirror is not None:
            mirror.close(lambda tracker: tracker.close(summary, failed))

    def _send(self, call: Callable[[Backend], Any]) -> None:
        if self._mirror is not None:
            self._mirror.send(call)


def check(settings: Tracking) -> None:
    """ConfigError if the tracker's package is not installed."""
    if find_spec(settings.name) is None and not isinstance(settings, NoTracking):
        raise ConfigError(
            f"tracking={settings.name} needs the package {settings.name}, which is not installed. "
            f'Type: pip install "iad_r1[{settings.name}]". Or leave it out: tracking=none.'
        )


def _open_backend(settings: Any, folder: Path, config: Mapping[str, Any]) -> Backend | None:
    """That of the tracker the settings name, a module of `iad_r1/store/trackers/`."""
    module = import_module(f"iad_r1.store.trackers.{settings.name}")
    return module.open_backend(settings, folder, config)


# ------------------------------------------------------------------------------- values


def _is_later(line: Mapping[str, Any], stage: str, step: int) -> bool:
    return line["stage"] == stage and line["step"] >= step


def _number(name: str, value: Any) -> float:
    try:
        number = float(value)  # also takes 0-d arrays and tensors
    except (TypeError, ValueError) as error:
        raise MismatchError(f"metric {name!r} is {value!r}; it must be one number.") from error
    return int(number) if number.is_integer() and isinstance(value, int) else number


def _json_safe(values: Mapping[str, float]) -> dict[str, Any]:
    """Values with NaN and infinities as null, and a note `not_finite` that spells them out."""
    odd = {name: str(value) for name, value in values.items() if not math.isfinite(value)}
    safe: dict[str, Any] = {name: None if name in odd else v for name, v in values.items()}
    return {**safe, "not_finite": odd} if odd else safe


def _drop_torn_line(path: Path) -> None:
    """Cut off the half line that a killed run may leave, so the file stays one JSON per line."""
    with path.open("rb+") as file:
        data = file.read()
        file.truncate(data.rfind(b"\n") + 1)
