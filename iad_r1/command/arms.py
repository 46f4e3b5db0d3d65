"""The settings of one run of a study: `study=<name> study.arm=<arm>` stands for those of its arm.

They come in this order, and a later one wins: those of the scale, of the study at that scale, of
the arm, of the arm at that scale, and what is typed. What makes the arm cannot be typed over.
`~key` has an arm do without a setting of its scale.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from iad_r1.errors import ConfigError, quoted
from iad_r1.settings.base import CONF
from iad_r1.settings.study import EVERY
from iad_r1.store import studies

_OTHER = re.compile(r"\{(\w+)\}")  # an arm whose run another one starts from


def commas(values: Sequence[Any]) -> str:
    """Values as `-m` takes them."""
    return ",".join(map(str, values))


def names(study: Mapping[str, Any]) -> list[str]:
    """The arms of a study at its scale: first those that only serve others there."""
    at = [name for name in study["at"].get(study["scale"], {}) if name != EVERY]
    return [*(name for name in at if name not in study["arms"]), *study["arms"]]


# for `conf/scale/`: what a sweep of a study goes through
OmegaConf.register_new_resolver("commas", commas, replace=True)
OmegaConf.register_new_resolver("arms", lambda study: commas(names(study)), replace=True)


def of_arm(
    composed: DictConfig, typed: Sequence[str], directory: Path
) -> tuple[DictConfig, list[str]]:
    """The configuration of the arm that `composed` names, and the overrides it was composed of;
    those that were given where it names none.

    Raises ConfigError if there is no such arm, if what makes it is typed too, or if it starts from
    a run that is not there.
    """
    study = composed.get("study")
    if study is None:
        return composed, list(typed)
    name, arm, scale = study.name, study.arm, study.scale
    if arm not in names(study):
        arms = ", ".join(names(study))
        given = "is one arm at a time or a sweep" if arm is None else f"has no arm {arm}"
        raise ConfigError(
            f"study={name} {given}. Run all: python run.py -m study={name} scale={scale}, choose "
            f"one: study.arm=<arm>, of {arms}."
        )
    at: Mapping[str, Sequence[str]] = study.at.get(scale, {})
    own = _by_key([*study.arms.get(arm, ()), *at.get(arm, ())])
    if twice := sorted(set(own) & set(_by_key(typed))):
        raise ConfigError(
            f"study={name} study.arm={arm}: the arm sets {', '.join(own[key] for key in twice)}, "
            f"and {', '.join(_by_key(typed)[key] for key in twice)} was typed. Leave it out, or "
            "run it without study=."
        )
    outputs = directory / "outputs"
    filled = [_filled(text, name, scale, composed.seed, outputs) for text in own.values()]
    wanted = _by_key([*study.every, *at.get(EVERY, ()), *filled])
    left_out = {*_by_key(typed), *(key[1:] for key in wanted if key.startswith("~"))}
    kept = [t for key, t in wanted.items() if key not in left_out and not key.startswith("~")]
    overrides = [*kept, *typed]
    ready = GlobalHydra.instance().is_initialized()  # as in `run.py`; it may not be twice
    with nullcontext() if ready else hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("config", overrides), overrides


def part(plain: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a run is of a study, out of the settings of the study; None where it is of none."""
    study = plain["study"]
    return study and {key: study[key] for key in ("name", "arm", "scale")}


def _by_key(overrides: Sequence[str]) -> dict[str, str]:
    """Overrides by what they set; a later one takes the place of an earlier one."""
    return {text.partition("=")[0].lstrip("+"): text for text in overrides}


def _filled(text: str, study: str, scale: str, seed: int, outputs: Path) -> str:
    """A setting with the folders of the runs that it names."""
    key, _, value = text.partition("=")
    if not (names := _OTHER.findall(value)):
        return text
    for other in names:
        run = studies.finished(outputs, study, other, scale, seed)
        if run is None:
            raise ConfigError(
                f"{text}: there is no finished run of the arm {other} with seed={seed} in "
                f"{outputs / study}. Run it first: {studies.command(study, other, scale, seed)}"
            )
        value = value.replace(f"{{{other}}}", str(run.path))
    return f"{key}={quoted(value)}"
