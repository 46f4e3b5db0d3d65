"""From `conf/` and the command line to a checked `Config`.

Also turns what Hydra and OmegaConf have to say about a mistyped command line into one message
that names the nearest valid spelling.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, cast

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from iad_r1 import errors, prompts, rewards, stages
from iad_r1.command import arms, inherit, roots
from iad_r1.command.options import groups, only_with
from iad_r1.errors import ConfigError
from iad_r1.settings.base import CONF
from iad_r1.settings.config import Config, load

ComposeError = (HydraException, OmegaConfBaseException)
# Settings that hold a path, made absolute where the command was typed. NAME_OR_PATH may also be a
# name (a hub id, a packaged vocabulary): it is a path if spelled as one, or if it is there.
PATHS = ("init", "data.root", "benchmark.root")  # and those of the stage and of every benchmark
NAME_OR_PATH = ("backbone.path", "rewards.vocabulary")


def compose(overrides: Sequence[str], directory: Path | None = None) -> Config:
    """The checked configuration that `python run.py <overrides>` in `directory` would use."""
    overrides = inherit.with_backbone(quoted(overrides))
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            composed = hydra.compose("config", overrides)
        return resolve(composed, directory or Path.cwd(), overrides)
    except ComposeError as error:
        raise ConfigError(explain(error, overrides)) from None


def quoted(arguments: Sequence[str]) -> list[str]:
    """With quotes around the values that Hydra's grammar has no words for, such as paths that hold
    a tilde, a bracket or letters of other alphabets; a shell takes the user's own away."""
    parser, found = OverridesParser.create(), []
    sweeps = not {"-m", "--multirun"}.isdisjoint(arguments)
    for text in arguments:
        text = text.removeprefix("+") if text.startswith("+study=") else text  # as papers write it
        key, equals, value = text.partition("=")
        if equals and not text.startswith("-") and not value.startswith(("[", "{", "'", '"')):
            try:
                parser.parse_override(text)
            except HydraException:
                values = value.split(",") if sweeps else [value]
                text = f"{key}={','.join(map(errors.quoted, values))}"
        found.append(text)
    return found


def resolve(composed: DictConfig, directory: Path, typed: Sequence[str]) -> Config:
    """Plain values, absolute paths, types and cross-field rules; `typed` are the overrides that it
    was composed of. One arm of a study is composed anew, with its settings. Raises ConfigError, and
    WeightsError where a stage inherits from a run that saved none."""
    try:
        composed, typed = arms.of_arm(composed, typed, directory)
        plain = cast(dict[str, Any], OmegaConf.to_container(composed, resolve=True))
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error, [])) from None
    stage = stages.find(plain["stage"]["name"])
    drawn = plain["rollout"]["name"]
    if stage.rollouts and drawn not in stage.rollouts:
        raise ConfigError(
            f"stage={plain['stage']['name']} rollout={drawn}: it works with rollout="
            f"{' or '.join(stage.rollouts)} alone. Leave rollout out for {stage.rollouts[0]}."
        )
    for key in stage.shortcuts:
        plain.pop(key)
    plain["study"] = arms.part(plain)
    tested = product(set(plain["benchmark"]) - {"root"}, ("root", "lists"))
    paths = [*PATHS, *(f"benchmark.{name}.{key}" for name, key in tested), *stage.paths]
    paths += [f"data.parts.{name}.root" for name in plain["data"].get("parts", {})]
    names = {
        *NAME_OR_PATH,
        *stage.paths_or_names,
        *(["init"] if stage.inherits else []),
    }  # or that of weights on the hub
    for key in {*paths, *names}:
        _make_absolute(plain, key, directory, always=key not in names)
    if stage.inherits and plain["init"] is not None:
        inherit.take_over(plain, stage.inherits, typed)
    missing = list(roots.fill(plain))
    if missing:
        raise ConfigError("\n".join(missing))
    try:
        config = load(json.dumps(plain))
    except ConfigError as error:
        said = _with_suggestions(str(error), plain)
        for key in stage.shortcuts:  # as it is typed
            said = re.sub(rf"\bstage\.{key}\b", key, said)
        raise ConfigError(said) from None
    problems = [*stage.problems(config), *_unknown_names(config)]
    if problems:
        raise ConfigError("\n".join(problems))
    return config


def _unknown_names(config: Config) -> Iterator[str]:
    """Prompts that do not exist or cannot show that many references, and rewards that cannot be
    built: asked of the modules that own them, which are light."""
    wanted = [("sft", config.sft.prompt, 0), ("grpo", config.grpo.prompt, 0)]
    wanted += [("evaluate", config.evaluate.prompt, shots) for shots in config.evaluate.shots]
    for section, name, shots in wanted:
        if name not in prompts.names():
            near = _nearest(name, prompts.names())
            yield f"{section}.prompt={name}: there is no such prompt in iad_r1/prompts.py.{near}"
            continue
        try:
            prompts.conversation(name, shots=shots)
        except ConfigError as error:
            yield f"{section}.{error}"
    own = {key: found.model_dump().get("prompt") for key, found in config.benchmark.items()}
    for (key, name), shots in product(own.items(), config.evaluate.shots):
        if name is not None:
            try:
                prompts.conversation(name, "?", shots, {"A": "?"})
            except ConfigError as error:
                yield f"benchmark.{key}.{error}"
    try:
        trains = "grpo" in config.tasks()
        rewards.load(config.rewards, config.grid, config.location_format if trains else None)
    except ConfigError as error:
        yield str(error)


def _make_absolute(values: dict[str, Any], key: str, directory: Path, *, always: bool) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        values = values.get(parent, {})
    found = values.get(last)
    if isinstance(found, list):
        values[last] = [_absolute(text, directory, always=always) for text in found]
    elif last in values:
        values[last] = _absolute(found, directory, always=always)


def _absolute(text: Any, directory: Path, *, always: bool) -> Any:
    if not isinstance(text, str) or not text:
        return text
    path = directory / os.path.expanduser(text)  # unlike Path's, it takes what is no user
    if always or text.startswith((".", "/", "~")) or path.exists():
        return str(path.resolve())
    return text


# --- errors in the words of the person who typed -------------------------------------------------


def explain(error: Exception, arguments: Sequence[str]) -> str:
    """What is wrong with the command line, and the nearest thing that would be right."""
    overrides = [text for text in arguments if "=" in text and not text.startswith("-")]
    if isinstance(error, InterpolationKeyError):
        wanted = re.search(r"Interpolation key '([^']+)'", str(error))
        return (
            f"{error.full_key} is taken from {wanted.group(1) if wanted else 'another setting'}, "
            f"which these options do not have. Set it: {error.full_key}=<value>, or choose "
            "another recipe."
        )
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be read. {_first_line(error)}"
    for override in _parsed(overrides):
        problem = _unknown_option(override)
        if problem:
            return problem
    key = _key_in(str(error))
    if key:
        return _unknown_key(key, overrides)
    if isinstance(error, MissingConfigException):
        return _first_line(error)
    if "Ambiguous value" in str(error):
        return f"{_first_line(error)}. Add -m to run every value, or quote a list: key=[a,b]."
    return _first_line(error) + "."


def _parsed(overrides: Sequence[str]) -> Iterator[Override]:
    parser = OverridesParser.create()
    for text in overrides:
        yield parser.parse_override(text)


def _unknown_option(override: Override) -> str | None:
    """The problem with `group=option` where the group exists and the option does not."""
    name, known = override.key_or_group, groups()
    if name not in known or override.is_delete():
        return None
    values = override.value()
    chosen = [v for v in values if isinstance(v, str)] if isinstance(values, list) else [values]
    for option in chosen:
        if isinstance(option, str) and option not in known[name]:
            return (
                f"{name}={option}: there is no such option.{_nearest(option, known[name])} "
                f"{name} is one of: {', '.join(known[name])}."
            )
    return None


def _key_in(message: str) -> str | None:
    """The setting Hydra could not override or OmegaConf could not find."""
    found = re.search(r"Could not override '([^']+)'", message) or re.search(
        r"full_key: ([\w.]+)", message
    )
    return found.group(1) if found else None


def _unknown_key(key: str, overrides: Sequence[str]) -> str:
    if (by := only_with(key)) is not None:
        return f"{key}: only {by} has one. Add {by}."
    chosen = [o for o in overrides if o.partition("=")[0] in groups()]
    return f"{key}: there is no such setting.{_nearest(key, _valid_keys(chosen))}"


def _valid_keys(overrides: Sequence[str]) -> list[str]:
    """Every setting and group of the configuration that `overrides` select."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            composed = hydra.compose("config", list(overrides))
        except ComposeError:  # the overrides do not compose either: suggest from the defaults
            composed = hydra.compose("config", [])
    return [*groups(), *_flat(OmegaConf.to_container(composed, resolve=False))]


def _flat(values: Any, prefix: str = "") -> Iterator[str]:
    items: Iterator[tuple[Any, Any]] = iter(())
    if isinstance(values, Mapping):
        items = iter(values.items())
    elif isinstance(values, list):
        items = iter(enumerate(values))
    for key, value in items:
        yield f"{prefix}{key}"
        yield from _flat(value, f"{prefix}{key}.")


def _nearest(word: str, known: Sequence[str]) -> str:
    """` Did you mean ...?`: close spellings, then the same last name elsewhere; else the names
    that the section of `word` does have."""
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.7)
    last = word.rpartition(".")[2]
    same = [key for key in known if key.rpartition(".")[2] == last and key not in close]
    tails = {key.rpartition(".")[2]: key for key in known}
    alike = [tails[t] for t in difflib.get_close_matches(last, list(tails), n=1, cutoff=0.75)]
    names = list(dict.fromkeys([*close, *same, *alike]))[:3]
    if names:
        return f" Did you mean {' or '.join(names)}?"
    section = word.rpartition(".")[0]
    siblings = [key for key in known if section and key.rpartition(".")[0] == section]
    return f" {section} has: {', '.join(k.rpartition('.')[2] for k in siblings)}." * bool(siblings)


def _with_suggestions(message: str, plain: Mapping[str, Any]) -> str:
    """Add the nearest valid setting to each `...: there is no such setting.` line."""
    lines = []
    for line in message.splitlines():
        key, found, _ = line.partition(": there is no such setting.")
        if found:
            line += _nearest(key, [name for name in _flat(plain) if name != key])
        lines.append(line)
    return "\n".join(lines)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".")
