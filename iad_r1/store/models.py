"""Several models in one command: what each entry of `models=[...]` stands for.

Each is a run of its own with the settings of the command, and differs in its weights alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from iad_r1.errors import ConfigError, IadError
from iad_r1.settings.base import CONF
from iad_r1.settings.config import Config, load
from iad_r1.store.starts import find_start

# What stands in results for weights of a run, for nearest good patches and for a file of answers.
STAGES = ("base", "pretrain", "sft", "grpo", "patchcore", "scored")


def parts(config: Config, models: Sequence[str]) -> dict[str, Config]:
    """The configuration of the run of each model, by the label that it has in results.

    ConfigError that names the model if it is not known, or its settings contradict the command's.
    """
    found: dict[str, Config] = {}
    for model in models:
        try:
            name, own = weights(config, model)
            label = label_of(name, found)
            values = {**config.model_dump(mode="json"), **own, "name": label, "resume": None}
            values["stage"] = {**values["stage"], "models": [], "tasks": ["evaluate"]}
            if found:  # nearest good patches are the same beside every model: once is enough
                values["patchcore"] = {**values["patchcore"], "beside": "never"}
            found[label] = load(json.dumps(values))
        except IadError as error:
            raise ConfigError(f"models: {model}: {error}") from None
    return found


def weights(config: Config, model: str) -> tuple[str, dict[str, Any]]:
    """A name for one entry of `models`, and the sections that say where its weights are.

    A run folder or a checkpoint in one, a backbone by its name or hub id, or with `backbone=api` a
    name of the service, else a folder or hub id of another version of `backbone`.
    """
    path = Path(model)
    if (path / "checkpoints").is_dir() or path.parent.name == "checkpoints":
        start = find_start(path)
        before = start.run.read_json("config.json")
        own = {section: before[section] for section in ("backbone", "weights") if section in before}
        return f"{start.run.path.parent.name}_{start.stage}", {"init": model, **own}
    known = {name: one for one in backbones() for name in (one["name"], one["path"])}
    kind = config.weights.name if config.backbone.source == "hub" else "published"
    own = {"init": None, "weights": {"name": kind}}
    if model in known:
        return known[model]["name"], {"backbone": known[model], **own}
    here = config.backbone.model_dump(mode="json")
    if config.backbone.source == "api":
        return model, {"backbone": {**here, "model": model}, **own}
    if config.backbone.source == "built":
        names = ", ".join(one["name"] for one in backbones())
        raise ConfigError(
            "this is no run folder and no backbone that is known here. If it is a version of one, "
            f"say of which: backbone=<one of {names}>."
        )
    return path.name, {"backbone": {**here, "path": model}, **own}


@cache
def backbones() -> tuple[dict[str, Any], ...]:
    """The sections of all published backbones."""
    files = sorted((CONF / "backbone").glob("*.yaml"))
    read = [cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(file))) for file in files]
    sections = [{key: value for key, value in one.items() if key != "defaults"} for one in read]
    return tuple(section for section in sections if section.get("source") == "hub")


def label_of(name: str, taken: Collection[str]) -> str:
    """What a model or run is called where a stage stands, also in names of files: without dots,
    each once, and never as a stage is called."""
    plain = re.sub(r"[^\w=,+-]+", "-", name)
    plain = f"model-{plain}" if plain in STAGES else plain
    numbered = (plain if number == 1 else f"{plain}-{number}" for number in count(1))
    return next(label for label in numbered if label not in taken)
