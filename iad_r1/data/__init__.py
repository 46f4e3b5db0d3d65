"""Data sets as `types.Dataset`, and the pictures of their samples.

`iad_r1.settings.data` is imported before anything heavy may load, so this file imports numpy and
PIL only inside its functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from iad_r1.settings.data import SyntheticConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    from iad_r1.grid import Grid, Rule
    from iad_r1.settings.data import DataConfig
    from iad_r1.types import Dataset, Sample


def load(config: DataConfig, grid: Grid, location_rule: Rule, seed: int) -> Dataset:
    """The data set a run reads, split. Places are words of `grid`, found by `location_rule`.

    Raises DataError when it is missing or disagrees with itself.
    """
    if isinstance(config, SyntheticConfig):
        from iad_r1.data.readers import synthetic

        return synthetic.load(config, grid, location_rule, seed)
    from iad_r1.data.readers import photos

    return photos.load(config, grid, location_rule, seed)


def open_image(sample: Sample) -> Image:
    """The picture of a sample upright and in RGB: see `iad_r1.data.images`."""
    from iad_r1.data import images

    return images.open_image(sample)


def open_mask(sample: Sample) -> NDArray[np.bool_] | None:
    """The mask of a sample in the geometry of `open_image`: see `iad_r1.data.images`."""
    from iad_r1.data import images

    return images.open_mask(sample)
