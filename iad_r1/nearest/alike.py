"""Which good pictures are most like another one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn.functional import normalize

from iad_r1.nearest import imagenet
from iad_r1.types import Sample

SIDE = 224  # pixels, as the network was trained


class Alike:
    """Ranks pictures by the cosine of what the head of the ImageNet network reads of them. A
    picture is opened and described once.

    Args:
        opened: the picture of a sample.
    """

    def __init__(self, opened: Callable[[Sample], Image]) -> None:
        self.opened = opened
        self.known: dict[str, Tensor] = {}  # by id, [1280], of length 1
        self.ranked = 0  # how many samples have been asked for

    def nearest(self, sample: Sample, others: Sequence[Sample], most: int) -> tuple[Sample, ...]:
        """At most so many of the others, the most alike first; of equal ones the earlier."""
        self.ranked += 1
        if not others:
            return ()
        likeness = torch.stack([self.described(other) for other in others])
        order = (likeness @ self.described(sample)).argsort(descending=True, stable=True)
        return tuple(others[i] for i in order[:most].tolist())

    @torch.no_grad()
    def described(self, sample: Sample) -> Tensor:
        """[1280] What the network reads of a picture, of length 1. Threads may ask for it."""
        if sample.id not in self.known:
            shown = imagenet.pixels([self.opened(sample)], SIDE)
            self.known[sample.id] = normalize(imagenet.network().pooled(shown), dim=1)[0]
        return self.known[sample.id]
