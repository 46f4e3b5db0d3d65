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

__all__ = ["CONF", "Above0", "AtLeast0", "Count", "Count0", "Percent", "Pictures", "Section",
           "Share"]  # fmt: skip


def conf_of(package: Path) -> Path:
    """The folder of YAML files: an installed package holds it, a checkout has it beside."""
    return next(p for p in (package / "conf", package.parent / "conf") if p.is_dir())


CONF = conf_of(Path(__file__).resolve().parents[1])
Side = Annotated[int, Field(ge=28)]  # pixels; one image token of the Qwen families
Share = Annotated[float, Field(ge=0, le=1)]
Percent = Annotated[float, Field(ge=0, lt=100)]


class Section(BaseModel):
    """A group of settings: typed, complete, nothing else accepted, never changed later."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Pictures(Section):
    """How large the pictures of a stage are shown. Both are limits: nothing is enlarged.

    `max_pixels` is handed to the processor; null: the checkpoint's own limit. What it means for a
    family is said in `backbones/families.py`. `max_size` is [width, height], into which a picture
    is scaled before the processor sees it; null: any.
    """

    max_pixels: Annotated[int, Field(ge=1024)] | None  # one image token of the tiny model
    max_size: Annotated[list[Side], Field(min_length=2, max_length=2)] | None

    def within(self, size: tuple[int, int]) -> tuple[int, int]:
        """A size (width, height) made smaller to fit into `max_size`, its proportions kept."""
        if self.max_size is None:
            return size
        scale = min(most / side for side, most in zip(size, self.max_size, strict=True))
        return size if scale >= 1 else (max(1, int(size[0] * scale)), max(1, int(size[1] * scale)))
