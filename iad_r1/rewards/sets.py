"""Reward sets: named components, weighted, gated and summed (Eq. 9)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from iad_r1.boxes import LocationFormat
from iad_r1.errors import ConfigError, TrainingError
from iad_r1.grid import Grid, as_grid
from iad_r1.rewards.case import Case
from iad_r1.rewards.files import check, read
from iad_r1.rewards.vocabulary import Vocabulary, vocabulary
from iad_r1.settings.grid import GridConfig
from iad_r1.settings.rewards import ComponentConfig, RewardsConfig
from iad_r1.types import Score, Solution

_COMPONENTS = "iad_r1.rewards.components"


@dataclass(frozen=True)
class Component:
    """One named part of a reward. `function` returns None where the part does not apply."""

    name: str
    function: Callable[..., float | None]
    weight: float
    gate: str | None
    settings: Mapping[str, Any]


class RewardSet:
    """Scores completions. Build one with `load`."""

    def __init__(
        self,
        name: str,
        components: Iterable[Component],
        grid: Grid,
        neighbour_credit: float,
        types: Vocabulary | None,
    ) -> None:
        self.name = name
        self.components = tuple(components)
        self.grid = grid
        self._neighbour_credit = neighbour_credit
        self._vocabulary = types

    @property
    def names(self) -> tuple[str, ...]:
        """The components, in the order they are evaluated."""
        return tuple(component.name for component in self.components)

    def score(self, completion: str, solution: str | Solution) -> Score:
        """What one completion earns: `total` is the weighted sum, `parts` are before weighting.

        `solution` is the tag form (`<answer>No</answer>`), a letter for the multiple-choice sets,
        or a `Solution`. A part that does not apply pays 0.0: place and type of a normal image, the
        place where the data set has no mask, the type where it has none (`applicable` says which).

        Raises DataError for a solution that cannot be read, TrainingError naming the component
        when one returns what is not a finite number. A crash is never a reward of zero.
        """
        case = self._case(completion, solution)
        parts: dict[str, float] = {}
        for component in self.components:
            closed = component.gate is not None and not parts[component.gate] > 0
            parts[component.name] = 0.0 if closed else self._value(component, case) or 0.0
        total = math.fsum(part.weight * parts[part.name] for part in self.components)
        return Score(total, parts)

    def scores(self, completions: Iterable[str], solution: str | Solution) -> list[Score]:
        """The scores of a group: completions of one prompt."""
        return [self.score(completion, solution) for completion in completions]

    def applicable(self, solution: str | Solution) -> tuple[str, ...]:
        """The components that can pay for an image with this solution."""
        case = self._case("", solution)
        return tuple(part.name for part in self.components if self._value(part, case) is not None)

    def _case(self, completion: str, solution: str | Solution) -> Case:
        gold = solution if isinstance(solution, str) else solution.as_tags()
        return Case(completion, gold, self.grid, self._neighbour_credit, self._vocabulary)

    def _value(self, component: Component, case: Case) -> float | None:
        value = component.function(case, **component.settings)
        if value is not None and not math.isfinite(value):
            raise TrainingError(
                f"rewards={self.name}: component {component.name!r} returned {value} for the "
                f"completion {case.completion[:500]!r} with solution {case.gold!r}. "
                "A reward must be a finite number, or None where it does not apply."
            )
        return value

    def __repr__(self) -> str:
        return f"RewardSet({self.name}: {', '.join(self.names)} on {self.grid})"


def load(
    rewards: str | RewardsConfig | Mapping[str, Any],
    grid: str | Grid | GridConfig = "3x3",
    location_format: LocationFormat | None = None,
) -> RewardSet:
    """The reward set of a name (`conf/rewards/<name>.yaml`), or of such a file's content.

    Raises ConfigError listing the sets for an unknown name, for a component, a vocabulary or a
    grid that cannot be found, and for a component that cannot read places of `location_format`.
    """
    if isinstance(rewards, str):
        config = read(rewards)
    elif isinstance(rewards, RewardsConfig):
        config = rewards
    else:
        config = check(RewardsConfig, rewards, "rewards")
    types = vocabulary(config.vocabulary) if config.vocabulary is not None else None
    components = [_component(name, part) for name, part in config.components.items()]
    for component in components:
        _check_fits(component, as_grid(grid), types, location_format)
    credit = grid.neighbour_credit if isinstance(grid, GridConfig) else 0.0
    return RewardSet(config.name, components, as_grid(grid), credit, types)


def _component(name: str, config: ComponentConfig) -> Component:
    module, _, function = config.function.partition(":")
    path = module if "." in module else f"{_COMPONENTS}.{module}"
    try:
        found = getattr(import_module(path), function or "score")
    except (ModuleNotFoundError, AttributeError) as error:
        raise ConfigError(
            f"rewards.components.{name}.function={config.function!r}: {error}. It is a file of "
            "iad_r1/rewards/components with a function score(case), or <your.module>:<function>."
        ) from None
    return Component(name, found, config.weight, config.gate, dict(config.settings))


def _check_fits(
    component: Component,
    grid: Grid,
    types: Vocabulary | None,
    location_format: LocationFormat | None,
) -> None:
    """What a function says it needs (`only_grid`, `needs_vocabulary`, `places`), against what the
    set has."""
    only = getattr(component.function, "only_grid", None)
    if only is not None and grid != as_grid(only):
        raise ConfigError(
            f"rewards.components.{component.name} ({component.function.__name__}) knows only a "
            f"{only} grid, not {grid}. Use grid={only}, or another reward set."
        )
    places: Sequence[str] | None = getattr(component.function, "places", None)
    if places is not None and location_format is not None and location_format not in places:
        raise ConfigError(
            f"rewards.components.{component.name} reads places as {' or '.join(places)}, and "
            f"location_format={location_format}. Use "
            f"{'rewards=sc_grpo_box' if 'words' in places else f'location_format={places[0]}'}, or "
            "another reward set."
        )
    if getattr(component.function, "needs_vocabulary", False) and types is None:
        raise ConfigError(
            f"rewards.components.{component.name} needs a vocabulary. "
            "Try rewards.vocabulary=default."
        )
