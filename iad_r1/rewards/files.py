"""Reads reward sets and vocabularies from YAML.

The sets are `conf/rewards/<name>.yaml`, the same files Hydra composes from, and the only place
where they are written down.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from iad_r1.errors import ConfigError
from iad_r1.settings.base import CONF
from iad_r1.settings.rewards import RewardsConfig

Checked = TypeVar("Checked", bound=BaseModel)
FOLDER = CONF / "rewards"


def names() -> list[str]:
    """The sets that can be loaded by name."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read(name: str) -> RewardsConfig:
    """The set of that name. Raises ConfigError listing the names if there is none."""
    if name not in names():
        raise ConfigError(f"rewards={name!r} is unknown. Use one of {', '.join(names())}.")
    return check(RewardsConfig, read_yaml(FOLDER / f"{name}.yaml"), f"conf/rewards/{name}.yaml")


def check(kind: type[Checked], values: object, where: str) -> Checked:
    """A mapping as what it should be. Raises ConfigError with a line for every wrong setting."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        wrong = (
            f"{where}: {'.'.join(map(str, item['loc'])) or 'the whole file'}: {item['msg']}."
            for item in error.errors()
        )
        raise ConfigError("\n".join(wrong)) from None


def read_yaml(path: Path) -> Any:
    """The content of a YAML file. Raises ConfigError if it is missing or is not YAML."""
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from None
