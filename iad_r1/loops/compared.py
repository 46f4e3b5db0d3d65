"""Verdicts of nearest good patches on pictures of which nothing is known."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from iad_r1.data import images
from iad_r1.errors import DataError
from iad_r1.grid import Grid, words
from iad_r1.judge.verdicts import Verdict
from iad_r1.nearest import patchcore
from iad_r1.nearest.patchcore import GoodPatches
from iad_r1.settings.patchcore import Patchcore
from iad_r1.types import Sample

KEPT = 4  # sets of good pictures that stay remembered

Goods = tuple[Sample, ...]


class Compared:
    """Compares pictures with the good ones that are their references, as `stage=evaluate` would.

    What it remembers of good pictures is kept for as long as they are the same files.
    """

    def __init__(self, settings: Patchcore, grid: Grid, seed: int) -> None:
        self.settings, self.grid, self.seed = settings, grid, seed
        self.kept: list[tuple[Goods, Any, GoodPatches]] = []  # the last one used at the end

    def verdicts(self, samples: Sequence[Sample], threshold: float | None) -> list[Verdict]:
        """A verdict on each picture, from this score on defective; None: above 1."""
        good = self.remembered(samples[0].references)
        return [self._verdict(sample, good, threshold) for sample in samples]

    def remembered(self, goods: Goods) -> GoodPatches:
        """What there is to know of good pictures. DataError if they are too few."""
        files = _files(goods)
        for number, (shown, known, good) in enumerate(self.kept):
            if shown is goods or (files is not None and files == known):
                self.kept.append(self.kept.pop(number))
                return good
        opened = (images.open_image(sample) for sample in goods)
        good = patchcore.remember(opened, self.settings, self.seed)
        self.kept = [*self.kept, (goods, files, good)][-KEPT:]
        return good

    def close(self) -> None:
        """Forget all good pictures."""
        self.kept = []

    def _verdict(self, sample: Sample, good: GoodPatches, threshold: float | None) -> Verdict:
        began = time.perf_counter()
        found = good.judge(images.open_image(sample))
        defective = found.defective if threshold is None else found.score >= threshold
        cell = found.cell(self.grid)
        return Verdict(
            picture=sample.id,
            verdict="defective" if defective else "good",
            p_yes=None,
            place=words(cell, self.grid) if defective else None,
            cells=(cell,) if defective else (),
            type=None,
            reasoning=None,
            seconds=time.perf_counter() - began,
            completion="",
            score=found.score,
            heat=found.heat,
        )


def _files(goods: Goods) -> list[tuple[Path, int, int]] | None:
    """The files of good pictures as they are now; None if some are in memory alone."""
    found: list[tuple[Path, int, int]] = []
    for sample in goods:
        if not isinstance(sample.image, Path):
            return None
        try:
            file = sample.image.stat()
        except OSError as error:
            raise DataError(f"{sample.image}: cannot be read ({error.strerror}).") from error
        found.append((sample.image, file.st_size, file.st_mtime_ns))
    return found
