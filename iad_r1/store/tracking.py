"""Numbers of a run, as it goes: always to the run folder, and mirrored to Weights & Biases.

`metrics.jsonl` and `rollouts/*.parquet` are the record. wandb is a view of it: whatever goes
wrong there costs one printed sentence, never the run. It never asks for a login and waits no
longer than the configured timeouts.
"""

from __future__ import annotations

import io
import json
import math
import netrc
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from iad_r1.errors import MismatchError
from iad_r1.settings.tracking import Mode, TrackingConfig
from iad_r1.store.run_folder import TRAINED, write_text

if TYPE_CHECKING:
    from wandb.sdk.wandb_run import Run

THUMBNAIL = "thumbnail"  # the column of a rollout row that may hold a PIL image
_RESERVED = ("stage", "step", "not_finite")


class Tracker:
    """Writes one run's numbers. Use as a context manager, from one process (rank 0) only.

    `config` is the resolved configuration that wandb shows beside the curves.
    """

    def __init__(
        self, tracking_config: TrackingConfig, run_folder: Path, config: Mapping[str, Any]
    ) -> None:
        self._settings = tracking_config
        self._folder = Path(run_folder)
        self._config = config
        self._metrics = self._folder / "metrics.jsonl"
        self._entered = False
        self._run: Run | None = None

    def __enter__(self) -> Tracker:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._metrics.touch()
        _drop_torn_line(self._metrics)
        self._entered = True
        self._run = _start_wandb(self._settings, self._folder, self._config)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._close(exit_code=0 if kind is None else 1)

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
        self._mirror(lambda run: run.log(_under(stage, step, values)))

    def rollouts(self, stage: str, step: int, rows: Sequence[Mapping[str, Any]]) -> Path:
        """Write `rollouts/<stage>-<step>.parquet`, one row per completion; returns its path.

        A row may hold a PIL image under `thumbnail`; it is stored as JPEG bytes.
        """
        import pandas

        path = self._folder / "rollouts" / f"{stage}-{step:05d}.parquet"
        path.parent.mkdir(exist_ok=True)
        partial = path.with_suffix(".partial")
        pandas.DataFrame([_storable(row) for row in rows]).to_parquet(partial, index=False)
        partial.replace(path)
        if shown := rows[: self._settings.rollout_rows]:
            self._mirror(lambda run: run.log(_under(stage, step, {"rollouts": _table(shown)})))
        return path

    def evaluation(self, results: Sequence[Mapping[str, Any]]) -> None:
        """Show the rows of `summary.json`'s `results` as a wandb table."""
        if results:
            self._mirror(lambda run: run.log({"evaluation/results": _table(results)}))

    def rewind(self, stage: str, step: int) -> None:
        """Drop the lines and rollouts of `stage` from `step` on; wandb keeps what it was sent."""
        lines = self._metrics.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if not _is_later(json.loads(line), stage, step)]
        if len(kept) < len(lines):
            write_text(self._metrics, "".join(kept))
        for table in (self._folder / "rollouts").glob(f"{stage}-*.parquet"):
            if int(table.stem.rpartition("-")[2]) >= step:
                table.unlink()

    def flush(self) -> None:
        """Have the disk hold every line so far."""
        with self._metrics.open("a") as file:
            os.fsync(file.fileno())

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Put the run's headline numbers into wandb's summary and close."""
        self._mirror(lambda run: run.summary.update(dict(_flat(summary))))
        self._close(exit_code=0)

    def _close(self, exit_code: int) -> None:
        self._entered = False
        self._mirror(lambda run: run.finish(exit_code=exit_code))
        self._run = None

    def _mirror(self, send: Callable[[Run], Any]) -> None:
        """Send to wandb; on failure say so once and go on without it."""
        if self._run is None:
            return
        try:
            send(self._run)
        except Exception as error:  # of whatever kind: the record is elsewhere and goes on
            self._run = None
            _say(f"wandb stopped ({_one_line(error)}); {self._metrics} goes on.")


# ------------------------------------------------------------------------------- values


def _is_later(line: Mapping[str, Any], stage: str, step: int) -> bool:
    return line["stage"] == stage and line["step"] >= step


def _under(stage: str, step: int, values: Mapping[str, Any]) -> dict[str, Any]:
    """As wandb is told: every stage counts its steps from zero, so each has its own `step`."""
    return {f"{stage}/{name}": value for name, value in {"step": step, **values}.items()}


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


def _storable(row: Mapping[str, Any]) -> dict[str, Any]:
    picture = row.get(THUMBNAIL)
    if picture is None or isinstance(picture, bytes):
        return dict(row)
    data = io.BytesIO()
    picture.convert("RGB").save(data, format="JPEG", quality=85)
    return {**row, THUMBNAIL: data.getvalue()}


def _table(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Rows as a wandb table: the union of their columns, pictures as images, nests as JSON."""
    import wandb

    columns: list[Any] = list(dict.fromkeys(name for row in rows for name in row))
    data: list[Any] = [[_cell(name, row.get(name)) for name in columns] for row in rows]
    return wandb.Table(columns=columns, data=data, allow_mixed_types=True)


def _cell(name: str, value: Any) -> Any:
    import wandb

    if name == THUMBNAIL and value is not None and not isinstance(value, bytes):
        return wandb.Image(value)
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return json.dumps(value, default=str)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float | str]]:
    """Leaves of nested mappings and lists as ("results/0/n", 600)."""
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{key}/")
        elif isinstance(value, list | tuple):
            yield from _flat({str(i): item for i, item in enumerate(value)}, f"{key}/")
        elif isinstance(value, int | float | str):
            yield key, value


def _drop_torn_line(path: Path) -> None:
    """Cut off the half line that a killed run may leave, so the file stays one JSON per line."""
    with path.open("rb+") as file:
        data = file.read()
        file.truncate(data.rfind(b"\n") + 1)


# -------------------------------------------------------------------------------- wandb


def _start_wandb(settings: TrackingConfig, folder: Path, config: Mapping[str, Any]) -> Run | None:
    """The wandb run, or None when disabled or not to be had."""
    if settings.mode == "disabled":
        return None
    try:
        import wandb

        # Silent from here on, or its login step prints lines of its own.
        base_url = wandb.setup(wandb.Settings(silent=True)).settings.base_url
        mode = resolve_mode(settings.mode, os.environ, base_url)
        if mode == "disabled":
            return None
        if mode == "online":
            try:
                return _init(settings, folder, config, "online")
            except (wandb.Error, OSError) as error:
                _say(f"wandb could not go online ({_one_line(error)}); this run is kept offline.")
        return _init(settings, folder, config, "offline")
    except Exception as error:  # of whatever kind, e.g. a WANDB_... variable it does not accept
        _say(f"wandb could not start ({_one_line(error)}); metrics.jsonl is still written.")
        return None


def resolve_mode(
    mode: Mode, environ: Mapping[str, str], base_url: str
) -> Literal["online", "offline", "disabled"]:
    """What a configured mode means on this machine.

    `auto` follows WANDB_MODE where it is set, and else goes online exactly if a login exists.
    `online` without a login would ask for one, so it becomes offline, said once.
    """
    if mode == "auto":
        wanted = environ.get("WANDB_MODE", "")
        if wanted in ("offline", "disabled"):
            return wanted
        return "online" if has_login(environ, base_url) else "offline"
    if mode == "online" and not has_login(environ, base_url):
        _say("tracking.mode=online, but there is no wandb login: kept offline. Run `wandb login`.")
        return "offline"
    return mode


def has_login(environ: Mapping[str, str], base_url: str) -> bool:
    """Whether wandb would find an API key for its server: WANDB_API_KEY, or a netrc entry."""
    if environ.get("WANDB_API_KEY"):
        return True
    names = [environ["NETRC"]] if environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
    path = next((p for name in names if (p := Path(name).expanduser()).is_file()), None)
    try:
        entries = netrc.netrc(str(path)) if path else None
    except (netrc.NetrcParseError, OSError):
        return False  # wandb could not read it either
    host = urlsplit(base_url).netloc
    # wandb's present default host is a front of the older one, and takes its logins too.
    hosts = (host, "api.wandb.ai") if host == "api.forge.coreweave.com" else (host,)
    return entries is not None and any(entries.authenticators(name) for name in hosts)


def _init(
    settings: TrackingConfig,
    folder: Path,
    config: Mapping[str, Any],
    mode: Literal["online", "offline"],
) -> Run:
    import wandb

    name = f"{folder.parent.name}-{folder.name}"
    run = wandb.init(
        # the same for a run that goes on, so its curves go on too
        id=re.sub(r"[^\w.-]", "-", name) if mode == "online" else None,
        resume="allow" if mode == "online" else None,
        project=settings.project,
        entity=settings.entity,
        tags=settings.tags,
        name=name,
        dir=folder,
        config=dict(config),
        mode=mode,
        reinit="create_new",
        settings=wandb.Settings(
            console="off",
            silent=True,
            init_timeout=settings.init_timeout,
            finish_timeout=settings.finish_timeout,
            login_timeout=settings.init_timeout,
            save_code=False,
            disable_git=True,
            x_save_requirements=False,
        ),
    )
    for stage in TRAINED:
        run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
    if mode == "online":
        _say(f"wandb: {run.url}")
    return run


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
