"""The `rewards` section of a configuration: which components a set has, and what they weigh.

The sets themselves are `conf/rewards/<name>.yaml`, the same files Hydra composes from, and the
only place where they are written down. In an installed package they lie in `iad_r1/conf/rewards`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from iad_r1.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parents[1]
_CONF = (_PACKAGE / "conf", _PACKAGE.parent / "conf")  # installed; a checkout


class ComponentConfig(BaseModel):
    """One component: the function that scores it, its weight, and what must pay first.

    `function` is a file of `iad_r1/rewards/components` ("answer"), a function in one of them
    ("released:accuracy"), or a module of your own ("my_package.brevity:score"); a file alone means
    its function `score`. `gate` names a component that must pay above zero, or
    this one pays nothing. `settings` are handed to the function as keyword arguments.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    function: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*(:[A-Za-z_]\w*)?$")]
    weight: float
    gate: str | None
    settings: dict[str, bool | int | float | str] = {}  # absent: the function takes none


class RewardsConfig(BaseModel):
    """A reward set. Components are evaluated from top to bottom.

    `vocabulary` names the types that the `type` component knows: "default", the path of a YAML
    file of your own, or null for a set that does not look at types.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    name: str
    vocabulary: str | None
    components: Annotated[dict[str, ComponentConfig], Field(min_length=1)]

    @model_validator(mode="after")
    def _gates_come_first(self) -> RewardsConfig:
        seen: set[str] = set()
        for name, component in self.components.items():
            if component.gate is not None and component.gate not in seen:
                raise ValueError(
                    f"component {name!r} waits for {component.gate!r}, which must stand above it; "
                    f"above it are {', '.join(sorted(seen)) or 'none'}"
                )
            seen.add(name)
        return self


def folder() -> Path:
    """Where the reward sets are. Raises ConfigError when the configuration folder is gone."""
    for conf in _CONF:
        if (conf / "rewards").is_dir():
            return conf / "rewards"
    raise ConfigError(f"there is no folder of reward sets: looked for {_CONF[0]} and {_CONF[1]}.")


def names() -> list[str]:
    """The sets that can be loaded by name."""
    return sorted(path.stem for path in folder().glob("*.yaml"))


def read(name: str) -> RewardsConfig:
    """The set of that name. Raises ConfigError listing the names if there is none."""
    if name not in names():
        raise ConfigError(f"rewards={name!r} is unknown. Use one of {', '.join(names())}.")
    return check(read_yaml(folder() / f"{name}.yaml"), f"conf/rewards/{name}.yaml")


def check(values: Any, where: str) -> RewardsConfig:
    """A mapping as a reward set. Raises ConfigError saying which setting of `where` is wrong."""
    try:
        return RewardsConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(error, where)) from None


def explain(error: ValidationError, where: str) -> str:
    """One line per wrong setting."""
    return "\n".join(
        f"{where}: {'.'.join(map(str, item['loc'])) or 'the whole file'}: {item['msg']}."
        for item in error.errors()
    )


def read_yaml(path: Path) -> Any:
    """The content of a YAML file. Raises ConfigError if it is missing or is not YAML."""
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from None
