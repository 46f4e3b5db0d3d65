"""Earlier runs: the weights a run begins with, and the run it goes on with."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iad_r1.errors import ConfigError, WeightsError, setting
from iad_r1.store import keys
from iad_r1.store.run_folder import TRAINED, RunFolder, holds_model


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
    if path.parent.name == "checkpoints" and path.name in TRAINED and holds_model(path):
        return Start(path.name, path, RunFolder.open(path.parent.parent))
    run = RunFolder.open(path)
    for stage in TRAINED:
        if holds_model(run.checkpoint(stage)):
            return Start(stage, run.checkpoint(stage), run)
    raise WeightsError(
        f"the run {run.path} saved no weights: checkpoints/ holds none of "
        f"{', '.join(reversed(TRAINED))}. It may have stopped before its first stage ended."
    )


def start_of(init: str) -> Start | None:
    """The weights of the run that `init` names, itself or by a checkpoint of it. None where it
    names others: a folder in Hugging Face layout, or a name on the hub.

    ConfigError if it is a path that leads nowhere; WeightsError if that run saved no weights.
    """
    path = Path(init)
    own = path.parent.name == "checkpoints" and path.name in TRAINED
    if own or (path.is_absolute() and not is_model(path)):
        return find_start(path)
    return None


def weights_files(init: str | None) -> list[Path]:
    """The files of the weights that `init` names, where a folder of this machine holds them."""
    if init is None:
        return []
    start = start_of(init)
    return sorted((start.path if start else Path(init)).glob("*.safetensors"))


def is_model(folder: Path) -> bool:
    """Whether a folder holds a model in Hugging Face layout; a run's `config.json` is another."""
    try:
        return "model_type" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def trained_by(run: RunFolder) -> dict[str, dict[str, Any]]:
    """The settings that trained the weights of a run, by stage: its own and, along `init`, those of
    the runs before it, as far as they are still there."""
    found: dict[str, dict[str, Any]] = {}
    config, last = run.read_json("config.json"), TRAINED[0]
    while True:
        tasks = (config.get("stage") or {}).get("tasks") or []
        for stage in TRAINED[TRAINED.index(last) :]:
            if stage in tasks:
                found.setdefault(stage, config)
        try:
            start = start_of(config["init"]) if config.get("init") else None
        except (ConfigError, WeightsError):
            start = None  # it is gone
        if start is None:
            return found
        config, last = start.run.read_json("config.json"), start.stage


# Settings that may differ from those a run was started with when it goes on.
FREE_ON_RESUME = (
    "resume", "dry_run", "tracking", "engine.threads", "engine.picture_threads", "engine.hosts",
    "engine.ranks", "memory", "store", "rollout.servers",
)  # fmt: skip


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
                f"{setting('init', config['resume'])}."
            )
        if run.is_running():
            raise ConfigError(f"another process is working on {run.path}; it needs no resume.")
        return run
    return next((run for run in _alike(outputs, config) if _may_go_on(run)), None)


def find_interrupted(outputs: Path, config: Mapping[str, Any]) -> RunFolder | None:
    """The newest run of this name and these settings, if it has not ended, nobody works on it, and
    what it has begun was begun by the code and the libraries that are here now."""
    run = next(_alike(outputs, config), None)
    return run if run is not None and _may_go_on(run) and _is_of_this_code(run) else None


def _is_of_this_code(run: RunFolder) -> bool:
    for name, note in run.read_json("manifest.json").get("store", {}).items():
        facts = None if note["kept"] else note.get("facts")
        if facts is not None:
            now = keys.code_of(name.partition(" ")[0]), keys.versions()
            if (facts["code"], facts["libraries"]) != now:
                return False
    return True


def find_finished(outputs: Path, config: Mapping[str, Any]) -> RunFolder | None:
    """The newest run of this name and these settings that ended well."""
    return next((run for run in _alike(outputs, config) if ended_well(run)), None)


def _alike(outputs: Path, config: Mapping[str, Any]) -> Iterator[RunFolder]:
    """The runs of the same name and settings, the newest first."""
    for file in sorted((outputs / config["name"]).glob("*/config.json"), reverse=True):
        run = RunFolder(file.parent)
        if not differences(run.read_json("config.json"), config):
            yield run


def ended_well(run: RunFolder) -> bool:
    """Whether a run was carried out to its end."""
    return run.read_json("manifest.json").get("status") == "finished"


def _may_go_on(run: RunFolder) -> bool:
    return not ended_well(run) and not run.is_running()


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
