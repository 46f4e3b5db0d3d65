"""From a mask to the words for where the defect lies."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from iad_r1.grid import Grid, Rule, cells_from_mask, describe


def location_words(mask: NDArray[np.bool_], grid: Grid, rule: Rule) -> str | None:
    """The grid's words for the defect in `mask` [H, W]; None when the mask is empty."""
    return describe(cells_from_mask(mask, grid, rule), grid) or None
