"""What every section of a configuration is: typed, complete, and nothing else accepted.

The values live in `conf/`, and only there: no setting has a default here. Standard library and
pydantic only, so that a mistake is reported before anything heavy is imported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic import NonNegativeFloat as AtLeast0
from pydantic import NonNegativeInt as Count0
from pydantic import PositiveFloat as Above0
from pydantic import PositiveInt as Count

__all__ = ["CONF", "Above0", "AtLeast0", "Count", "Count0", "Section", "Share"]


def conf_of(package: Path) -> Path:
    """The folder of YAML files: an installed package holds it, a checkout has it beside."""
    return next(p for p in (package / "conf", package.parent / "conf") if p.is_dir())


CONF = conf_of(Path(__file__).resolve().parents[1])
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A group of settings: typed, complete, nothing else accepted, never changed later."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
