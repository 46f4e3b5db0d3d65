"""Several data sets trained on at once: data=mix data/parts=[synthetic,photos].

Every part is read with its own settings, and keeps its own parts and references: what a part trains
is what it trains alone. `weights` says how often an epoch holds each of its training pictures.
Parts that test have splits of their names. All is put together in `iad_r1.data.mix`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from iad_r1.settings.data import Reader, ReaderSettings, reader
from iad_r1.types import Sample


class Settings(ReaderSettings):
    """The parts by name, and how often an epoch holds each picture: 2 is twice, 0.5 is a half of
    the pictures, drawn once."""

    name: Literal["mix"]
    parts: dict[str, Reader]
    weights: dict[str, Annotated[float, Field(gt=0)]]

    @model_validator(mode="after")
    def _fits(self) -> Settings:
        if not self.parts:
            raise PydanticCustomError("no_parts", "choose its parts: data/parts=[synthetic,photos]")
        if self.parts.keys() != self.weights.keys():
            raise PydanticCustomError(
                "weights", "data.parts and data.weights must have the same names"
            )
        return self

    def members(self) -> Mapping[str, ReaderSettings]:
        return {f".parts.{name}": part for name, part in self.parts.items()}

    def announce(self) -> str:
        """All parts, and how often each is shown."""
        shown = [f"{self.weights[name]:g} x {part.announce()}" for name, part in self.parts.items()]
        return "; ".join(shown)


def read(settings: Settings, seed: int) -> Iterator[Sample]:
    """All that the parts know of, one after the other."""
    for part in settings.members().values():
        yield from reader(part.name).read(part, seed)
