"""The `rewards` section of a configuration: which components a set has, and what they weigh."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from iad_r1.settings.base import Section


class ComponentConfig(Section):
    """One component: the function that scores it, its weight, and what must pay first.

    `function` is a file of `iad_r1/rewards/components` ("answer"), a function in one of them
    ("released:accuracy"), or a module of your own ("my_package.brevity:score"); a file alone means
    its function `score`. `gate` names a component that must pay above zero, or
    this one pays nothing. `settings` are handed to the function as keyword arguments.
    """

    function: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*(:[A-Za-z_]\w*)?$")]
    weight: float
    gate: str | None
    settings: dict[str, bool | int | float | str] = Field(default_factory=dict)  # absent: none


class RewardsConfig(Section):
    """A reward set. Components are evaluated from top to bottom.

    `vocabulary` names the types that the `type` component knows: "default", the path of a YAML
    file of your own, or null for a set that does not look at types.
    """

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
