"""A picture against good ones, patch by patch, as PatchCore does it (Roth et al., 2022).

A patch is a place on a grid of side/8 cells each way, with what two blocks of the ImageNet network
say of it and of its eight neighbours. How strange a patch is, is its distance to the nearest patch
of good pictures. Here those are drawn at random, not as a coreset, and nothing is re-weighted.

From two pictures on, good pictures also say how strange good is: each is compared with the others.
The threshold is a quantile of these scores, so that no defect is needed to choose it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from iad_r1.errors import DataError
from iad_r1.grid import Grid
from iad_r1.nearest import LEAST, imagenet
from iad_r1.settings.patchcore import Patchcore

BLOCKS = (4, 10)  # at side/8 and side/16
STRANGEST = 0.01  # share of the patches of a picture whose mean is its score


@dataclass(frozen=True)
class Found:
    """How far a picture is from good ones.

    score  1 is the threshold; what is above is defective
    heat   [side/8, side/8] the same of every patch, row by row from the top left
    """

    score: float
    heat: NDArray[np.float32]

    @property
    def defective(self) -> bool:
        return self.score > 1

    def cell(self, grid: Grid) -> int:
        """Where it is strangest: the cell that holds the peak of the heat map, smoothed over 3 x 3
        patches, the first among equals."""
        smooth = _smooth(torch.from_numpy(self.heat)[None])[0]
        rows, cols = smooth.shape
        row, col = divmod(int(smooth.argmax()), cols)
        return grid.cell_at((col + 0.5) / cols, (row + 0.5) / rows)


@dataclass(frozen=True)
class GoodPatches:
    """Patches of good pictures of one product, and the score from which on a picture is defective.

    patches    [m, 152]
    owners     [m] from which good picture each is
    threshold  in distances between patches
    """

    patches: Tensor
    owners: Tensor
    threshold: float
    side: int

    def judge(self, picture: Image) -> Found:
        """A picture of any size against all good ones."""
        heat = _strangeness(described([picture], self.side)[0], self.patches)
        return Found(_score(heat) / self.threshold, (heat / self.threshold).numpy())


def remember(pictures: Iterable[Image], settings: Patchcore, seed: int) -> GoodPatches:
    """What there is to know of good pictures of one product, in seconds on a CPU. They are opened
    one after the other; of more patches than `settings.patches` the seed draws some.

    DataError for fewer than two pictures: they do not say how much good ones differ.
    """
    each = [described([picture], settings.side) for picture in pictures]
    if len(each) < LEAST:
        raise DataError(
            f"nearest good patches need {LEAST} good pictures of a product or more, and there are "
            f"{len(each)}: a single one does not say how much good ones differ."
        )
    found = torch.cat(each)
    stream = torch.Generator().manual_seed(seed)
    kept = torch.randperm(found.shape[0] * found.shape[1], generator=stream)[: settings.patches]
    patches, owners = found.flatten(0, 1)[kept], kept // found.shape[1]
    scores = [
        _score(_strangeness(own, patches[owners != number])) for number, own in enumerate(found)
    ]
    # the next score above the quantile: of few good pictures that is the largest
    threshold = np.quantile(scores, 1 - settings.overkill / 100, method="higher")
    # pictures that are all the same leave no distance; then any difference is one
    least = torch.finfo(patches.dtype).eps * float(patches.norm(dim=1).mean())
    return GoodPatches(patches, owners, max(float(threshold), least), settings.side)


@torch.no_grad()
def described(pictures: Sequence[Image], side: int) -> Tensor:
    """[n, (side/8)², 152] what the network says of every patch, row by row. WeightsError without
    its weights."""
    early, late = imagenet.network().features(imagenet.pixels(pictures, side), BLOCKS)
    late = interpolate(_smooth(late), early.shape[2:], mode="bilinear")
    return torch.cat([_smooth(early), late], 1).flatten(2).transpose(1, 2)


def _strangeness(own: Tensor, good: Tensor) -> Tensor:
    """[side/8, side/8] the distance of every patch [(side/8)², 152] to the nearest good one."""
    edge = round(own.shape[0] ** 0.5)
    return torch.cdist(own, good).amin(1).view(edge, edge)


def _score(heat: Tensor) -> float:
    """The mean of the strangest patches."""
    return float(heat.flatten().topk(max(1, round(STRANGEST * heat.numel()))).values.mean())


def _smooth(values: Tensor) -> Tensor:
    """The mean over 3 x 3 neighbours, fewer at the edges."""
    return avg_pool2d(values, 3, stride=1, padding=1, count_include_pad=False)
