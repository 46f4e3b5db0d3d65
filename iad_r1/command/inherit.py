"""Settings that a stage takes from the weights which `init` names, so that they are used as they
were made: of an earlier run those of its `config.json`, of published weights those of their
backbone. What is typed wins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from iad_r1 import stages
from iad_r1.errors import ConfigError
from iad_r1.store.models import backbones
from iad_r1.store.starts import start_of


def with_backbone(arguments: Sequence[str]) -> list[str]:
    """With the backbone whose published weights `init` names, where the stage inherits and none is
    typed."""
    typed = {key: value.strip("'\"") for key, _, value in (a.partition("=") for a in arguments)}
    stage = typed.get("stage")
    if stage in stages.names() and stages.find(stage).inherits and "backbone" not in typed:
        known = published()
        if typed.get("init") in known:
            return [*arguments, f"backbone={known[typed['init']]}"]
    return list(arguments)


def published() -> dict[str, str]:
    """The backbone of each hub id there is one for."""
    return {one["path"]: one["name"] for one in backbones()}


def take_over(values: dict[str, Any], inherits: Sequence[str], typed: Sequence[str]) -> None:
    """Put the settings of `init` in the place of those that are inherited and not `typed`.

    ConfigError where nothing says how the weights were made; ConfigError or WeightsError where they
    are not there.
    """
    init = values["init"]
    keys = [text.partition("=")[0].lstrip("+~") for text in typed]
    start = start_of(init)
    if start is None:
        _name_weights(values, init, "backbone" in keys)
        return
    if "recipe" in keys:
        raise ConfigError(
            f"recipe=... with init={init}: the settings are those of that run. Set single ones, "
            "such as evaluate.max_tokens=256, or leave recipe out."
        )
    earlier = start.run.read_json("config.json")
    for name in inherits:
        found, here = _get(earlier, name), _get(values, name)
        if found is None or name in keys:
            continue
        if name == "evaluate":  # a run of an older version lacks what was added since
            found = {**here, **found}
        for key in keys:
            if key.startswith(f"{name}."):
                _set(found, key.removeprefix(f"{name}."), _get(values, key))
        _set(values, name, found)


def _name_weights(values: dict[str, Any], init: str, chosen: bool) -> None:
    """Have the backbone read its weights from a hub id or a folder that is no run."""
    backbone = values["backbone"]
    if not chosen or backbone["source"] != "hub":
        what = "holds a model, and not a run" if Path(init).is_dir() else "is no run folder here"
        raise ConfigError(
            f"init={init}: this {what}. Known hub ids are {', '.join(published())}. Of another one "
            "say which model it was made from: backbone=<name> (see --help)."
        )
    backbone["path"] = init


def _get(values: Mapping[str, Any], key: str) -> Any:
    """The value behind a dotted key; None where there is none."""
    found: Any = values
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        values = values[parent]
    values[last] = value
