"""What can be chosen on the command line: the groups in `conf/`, their options, and `--help`.

Reads the YAML files alone, so `--help` costs no import of Hydra.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import yaml

from iad_r1.settings.base import CONF


def groups() -> dict[str, list[str]]:
    """Every configuration group and its options, sorted; Hydra's own are not ours."""
    folders = sorted(path for path in CONF.iterdir() if path.is_dir() and path.name != "hydra")
    return {path.name: sorted(file.stem for file in path.glob("*.yaml")) for path in folders}


def description(group: str, option: str) -> str:
    """One line about an option: the first comment of its file."""
    for line in (CONF / group / f"{option}.yaml").read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and not line.startswith("# @package"):
            return line.lstrip("# ").strip()
    return ""


def default_options() -> dict[str, str | None]:
    """The option of each group that `conf/config.yaml` chooses, in its order, then of those that
    a stage or a study brings along; None where none is chosen."""
    found = dict(_chosen(CONF / "config.yaml"))
    return found | {group: option for group, option, _ in _brought()}


def only_with(group: str) -> str | None:
    """What brings a group along, as it is typed: a stage or any study. None: every run has it."""
    return next((what for found, _, what in _brought() if found == group), None)


def _brought() -> Iterator[tuple[str, str | None, str]]:
    """(group, option, by what) of what stages and studies choose:
    "/teacher@_global_.teacher: rules"."""
    for file in sorted((*(CONF / "stage").glob("*.yaml"), *(CONF / "study").glob("*.yaml"))):
        by = f"stage={file.stem}" if file.parent.name == "stage" else "study=<study>"
        for group, option in _chosen(file):
            yield group.removeprefix("/").partition("@")[0], option, by


def _chosen(file: Path) -> Iterator[tuple[str, str | None]]:
    for entry in _read(file).get("defaults", ()):
        if isinstance(entry, dict):
            for group, option in entry.items():
                if not group.startswith(("override ", "optional ")):
                    yield group, option


def group_options() -> str:
    """The list of groups and options for `--help`, stages first, defaults marked with a star."""
    available = groups()
    lines: list[str] = []
    defaults = sorted(default_options().items(), key=lambda pair: pair[0] != "stage")
    for group, chosen in defaults:
        by = only_with(group)
        lines.append(group if by is None else f"{group} (with {by})")
        width = max(len(option) for option in available[group])
        for option in available[group]:
            star = "*" if option == chosen else " "
            lines.append(f"{star} {option:<{width}}  {description(group, option)}")
        lines.append("")
    return "\n".join(lines)


def help_text() -> str:
    """What `--help` prints: `hydra.help.template` of `conf/config.yaml`, filled."""
    template: str = _read(CONF / "config.yaml")["hydra"]["help"]["template"]
    return template.replace("$OPTIONS", group_options())


def _read(file: Path) -> dict:
    return yaml.safe_load(file.read_text(encoding="utf-8"))
