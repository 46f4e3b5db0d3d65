"""Every choice of every group with every stage: types that are right, and rules that either have
nothing to say or say a sentence.

There are 1,400 such pairs, and Hydra needs a fifth of a second for one. So each choice and each
stage is composed once, and a pair is put together from what the two change. That is the same as
composing it, because a stage and a choice change different settings: the first test says so of all
pairs, the second composes some of them. Choices of one group with those of another come together
where one sets what the other does: a backbone brings its recipe, weights shorten it; those are
composed in full. All else writes to its own section alone, which the first test says, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.errors import HydraException
from omegaconf import OmegaConf
from test_config import OPTIONS, needed

from iad_r1 import stages
from iad_r1.command import compose
from iad_r1.command.options import groups
from iad_r1.errors import ConfigError
from iad_r1.settings import rules
from iad_r1.settings.base import CONF
from iad_r1.settings.config import Config

Leaves = dict[str, Any]  # settings by their dotted names
ROOT = Path("/data")  # typed where an option asks for a folder; nothing opens it
STAGES = stages.names()
CHOICES = [(g, o) for g, o in OPTIONS if g not in ("stage", "teacher", "study", "scale")]
WIDE = {"backbone", "recipe", "weights", "data", "cluster"}  # set values of other sections, too
ABSENT = object()


@cache
def leaves(*overrides: str) -> Leaves:
    """The settings that `overrides` select."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        found = OmegaConf.to_container(hydra.compose("config", list(overrides)), resolve=True)
    flat: Leaves = {}

    def walk(values: Any, prefix: str) -> None:
        for key, value in values.items():
            if isinstance(value, dict) and value:
                walk(value, f"{prefix}{key}.")
            else:
                flat[prefix + key] = value

    walk(found, "")
    return flat


def needed_by(option: str, group: str = "stage") -> list[str]:
    """What an option asks for beside its name, less the stage."""
    return [text for text in needed(ROOT).get((group, option), []) if not text.startswith("stage=")]


def changes(group: str, option: str) -> Leaves:
    """What an option, and what it asks for beside its name, set otherwise than nothing does."""
    before, after = leaves(), leaves(f"{group}={option}", *needed_by(option, group))
    gone = dict.fromkeys(before.keys() - after.keys(), ABSENT)
    return gone | {k: v for k, v in after.items() if k not in before or before[k] != v}


def together(*several: Leaves) -> Any:
    """The defaults with these changes, as nested values."""
    return as_nested(leaves() | {key: value for one in several for key, value in one.items()})


def as_nested(flat: Leaves) -> Any:
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        if value is not ABSENT:
            *parents, last = key.split(".")
            into = nested
            for parent in parents:
                into = into.setdefault(parent, {})
            into[last] = value
    return nested


def checked(values: Any) -> list[str]:
    """What is wrong with settings whose types are right."""
    stage = stages.find(values["stage"]["name"])
    kept = {key: value for key, value in values.items() if key not in stage.shortcuts}
    kept["benchmark"] = {k: v for k, v in kept["benchmark"].items() if k != "root"}
    config = Config.model_validate(kept)
    return [*rules.contradictions(config), *stage.problems(config)]


def sections(of: Iterable[str]) -> set[str]:
    return {key.partition(".")[0] for key in of}


@pytest.mark.parametrize("group", sorted({group for group, _ in CHOICES}))
def test_a_stage_and_a_choice_change_different_settings(group):
    of_stages = {key for stage in STAGES for key in changes("stage", stage)}
    own = {f"stage.{key}" for key in ("name", "tasks")} | {"name"}  # made of both their names
    for option in (option for of, option in CHOICES if of == group):
        found = set(changes(group, option))
        if group not in WIDE:
            asked = {text.partition("=")[0] for text in needed(ROOT).get((group, option), [])}
            assert sections(found) <= {group, "name"} | sections(asked), (group, option)
        if group != "rollout":  # stage=serve and stage=parity bring theirs
            assert not (found & of_stages) - own - {"evaluate.splits"}, (group, option)


@pytest.mark.parametrize("stage", STAGES)
def test_every_choice_with_a_stage_has_types_that_are_right_and_rules_that_say_what_is_not(stage):
    of_stage = changes("stage", stage)
    accepted = 0
    for group, option in CHOICES:
        engines = stages.find(stage).rollouts
        if group == "rollout" and engines and option not in engines:
            continue  # refused before types are looked at: test_config.py
        if group == "rollout" and sections(of_stage) >= {"rollout"}:  # typed, it wins
            made = as_nested(leaves(f"stage={stage}", f"rollout={option}", *needed_by(stage)))
        else:
            made = together(changes(group, option), of_stage)
        if group != "benchmark":
            name = made[group]["name"] if group in made else option  # a recipe has no section
            assert name == option
        said = checked(made)
        assert all(text.endswith((".", "?")) and len(text) > 20 for text in said), said
        accepted += not said
    assert accepted > len(CHOICES) / 4


def test_every_choice_is_accepted_with_some_stage():
    for group, option in CHOICES:
        of = changes(group, option)
        assert any(not checked(together(of, changes("stage", s))) for s in STAGES), (group, option)


@pytest.mark.parametrize(
    ("stage", "group", "option"),
    [
        ("expert_ad", "grid", "5x5"),
        ("score", "recipe", "tiny_views"),
        ("grpo", "weights", "tiny"),
        ("serve", "backbone", "llava15_7b"),
        ("plan", "rollout", "vllm"),
    ],
)
def test_a_pair_put_together_is_the_pair_composed(stage, group, option):
    asked = needed_by(option, group) + needed_by(stage)
    composed = leaves(f"stage={stage}", f"{group}={option}", *asked)
    made = together(changes(group, option), changes("stage", stage))
    assert as_nested(composed) | {"name": None} == made | {"name": None}


@pytest.mark.parametrize("weights", groups()["weights"])
def test_recipes_with_weights_compose_with_a_backbone_of_each_kind(weights):
    for recipe, backbone in product(groups()["recipe"], ("tiny", "qwen25vl_3b")):
        asked = [f"recipe={recipe}", f"weights={weights}", f"backbone={backbone}"]
        try:
            compose.compose(asked)
        except ConfigError as error:  # a sentence of ours, and no fault of types
            assert "there is no such setting" not in str(error)
            assert not isinstance(error.__context__, HydraException)
