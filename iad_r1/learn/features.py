"""Features of pictures that a frozen vision tower has seen."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping

from torch import Tensor

Key = tuple[str, int]  # a sample's id, and how many references its prompt shows


class Features:
    """Features of the pictures of a prompt, in main memory, wherever the model is.

    Together they take `limit` bytes at most. The least recently used are forgotten first; computed
    again they are the same, so the limit decides about time alone.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.size = limit, 0
        self.kept: OrderedDict[Key, Tensor | None] = OrderedDict()

    def known(self, keys: Iterable[Key]) -> dict[Key, Tensor | None]:
        """What is kept of these."""
        found = {key: self.kept[key] for key in keys if key in self.kept}
        for key in found:
            self.kept.move_to_end(key)
        return found

    def keep(self, new: Mapping[Key, Tensor | None]) -> None:
        """Keep more, and forget what there is no room for."""
        for key, features in new.items():
            self.kept[key] = features
            self.size += _bytes(features)
        while self.size > self.limit:
            self.size -= _bytes(self.kept.popitem(last=False)[1])


def _bytes(features: Tensor | None) -> int:
    return 0 if features is None else features.numel() * features.element_size()
