"""The `grid` section of a configuration (`conf/grid`)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from iad_r1.grid import MOST, Rule
from iad_r1.settings.base import Section


class GridConfig(Section):
    """Which cells places are named by, and how a defect mask becomes some of them."""

    name: str
    rows: Annotated[int, Field(ge=1, le=MOST)]
    cols: Annotated[int, Field(ge=1, le=MOST)]
    mask_rule: Rule
    neighbour_credit: Annotated[float, Field(ge=0, lt=1)]
