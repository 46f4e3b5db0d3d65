"""Views of training photographs: mirrored, tilted, zoomed and shifted, and some of the good ones
with a drawn defect.

A model learns some hundred photographs by heart before it has learned what a defect is. Views are
drawn once, so that every stage sees the same ones, and the mask moves with its picture. PA-SFT and
SC-GRPO are given views of their own. The reference of a view is mirrored as the view is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from iad_r1.data import images
from iad_r1.data.drawn import world
from iad_r1.errors import DataError
from iad_r1.grid import Grid, Rule, cells_from_mask, describe
from iad_r1.settings.data import Views
from iad_r1.types import Sample, Solution

TILT = 8.0  # degrees, to either side
ZOOM = (0.87, 1.15)
SHIFT = 0.08  # of a side, in either direction
KEPT = 0.5  # of the mask is in sight at least
TRIES = 8  # at such a view; then the picture is only mirrored

Fill = Literal["edge", "constant"]
Mirrored = tuple[bool, bool]  # left to right, top to bottom
Motion = tuple[float, float, float, float, float, float]  # Pillow's AFFINE: from where a pixel is


@dataclass(frozen=True)
class _Photograph:
    """A picture small enough to be kept, [H, W, 3], and where it is defective, [H, W]."""

    picture: NDArray[np.uint8]
    mask: NDArray[np.uint8] | None  # 255: defective

    def mirrored(self, how: Mirrored) -> _Photograph:
        """Seen in a mirror, or in two, or in none."""
        across, down = how
        ways = np.s_[:: -1 if down else 1, :: -1 if across else 1]
        mask = None if self.mask is None else np.ascontiguousarray(self.mask[ways])
        return _Photograph(np.ascontiguousarray(self.picture[ways]), mask)

    def moved(self, rng: np.random.Generator) -> _Photograph:
        """Tilted, zoomed and shifted; what comes into sight is like the edge."""
        height, width = self.picture.shape[:2]
        for _ in range(TRIES):
            motion = _motion(width, height, rng)
            picture = partial(_warped, self.picture, motion, Image.Resampling.BILINEAR, "edge")
            if self.mask is None:
                return _Photograph(picture(), None)
            mask = _warped(self.mask, motion, Image.Resampling.NEAREST, "constant")
            if np.count_nonzero(mask) >= KEPT * np.count_nonzero(self.mask):
                return _Photograph(picture(), mask)
        return self


class Viewer:
    """Draws views of samples, at most `settings.pixels` large."""

    def __init__(self, settings: Views, grid: Grid, rule: Rule, seed: int) -> None:
        self.settings, self.grid, self.seed = settings, grid, seed
        self.rule: Rule = rule
        self.opened: dict[str, _Photograph] = {}
        self.references: dict[tuple[str, Mirrored], Sample] = {}

    def draw(self, samples: Sequence[Sample], part: str, count: int) -> Iterator[Sample]:
        """`count` views for a part. Good and defective ones alternate, and all photographs of a
        label are shown about equally often. `samples` hold good ones at least."""
        defective = [sample for sample in samples if sample.solution.answer == "Yes"]
        sound = [sample for sample in samples if sample.solution.answer == "No"]
        order = world.stream(self.seed, f"views/{part}", 0)
        good, bad = _endless(sound, order), _endless(defective, order)
        share = self.settings.drawn_defects if defective else 1.0
        for index in range(count):
            rng = world.stream(self.seed, f"views/{part}", index + 1)
            draws = index % 2 == 1 and rng.random() < share
            photograph = next(good if draws or index % 2 == 0 else bad)
            yield self.view(photograph, f"{part}/{index:05d}", draws, rng)

    def view(self, sample: Sample, name: str, draws: bool, rng: np.random.Generator) -> Sample:
        """One view of a sample; `draws` a defect on a good one."""
        mirrored: Mirrored = (bool(rng.integers(2)), bool(rng.integers(2)))
        shown = self._open(sample).mirrored(mirrored).moved(rng)
        kind = sample.solution.type
        if draws:
            try:
                damaged, kind = world.damaged(rng, shown.picture)
            except DataError as error:
                raise DataError(f"{sample.where or sample.id}: {error}") from None
            shown = _Photograph(damaged.image, damaged.mask.astype(np.uint8) * 255)
        solution = Solution("No")
        if draws or sample.solution.answer == "Yes":
            solution = Solution("Yes", self._place(shown.mask), kind)
        return replace(
            sample,
            id=f"{sample.id}/{name}",
            image=Image.fromarray(shown.picture),
            mask=None if shown.mask is None else Image.fromarray(shown.mask),
            solution=solution,
            references=tuple(self._reference(each, mirrored) for each in sample.references[:1]),
        )

    def _place(self, mask: NDArray[np.uint8] | None) -> str | None:
        if mask is None:
            return None
        return describe(cells_from_mask(mask, self.grid, self.rule), self.grid) or None

    def _reference(self, sample: Sample, mirrored: Mirrored) -> Sample:
        key = sample.id, mirrored
        if key not in self.references:
            picture = Image.fromarray(self._open(sample).mirrored(mirrored).picture)
            name = "".join(str(int(each)) for each in mirrored)
            self.references[key] = replace(sample, id=f"{sample.id}/mirrored/{name}", image=picture)
        return self.references[key]

    def _open(self, sample: Sample) -> _Photograph:
        if sample.id not in self.opened:
            picture, mask = images.open_image(sample), images.open_mask(sample)
            scale = min(1, math.sqrt(self.settings.pixels / (picture.width * picture.height)))
            size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
            if mask is not None:
                mask = (images.shrunk(mask, size) * np.uint8(255)).astype(np.uint8)
            small = picture.resize(size, Image.Resampling.LANCZOS)
            self.opened[sample.id] = _Photograph(np.asarray(small), mask)
        return self.opened[sample.id]


def _endless(samples: Sequence[Sample], rng: np.random.Generator) -> Iterator[Sample]:
    while samples:
        yield from (samples[k] for k in rng.permutation(len(samples)))


def _motion(width: int, height: int, rng: np.random.Generator) -> Motion:
    angle, zoom = math.radians(rng.uniform(-TILT, TILT)), rng.uniform(*ZOOM)
    x, y = width * (0.5 + rng.uniform(-SHIFT, SHIFT)), height * (0.5 + rng.uniform(-SHIFT, SHIFT))
    cos, sin = math.cos(angle) / zoom, math.sin(angle) / zoom
    half = width / 2, height / 2
    return (cos, sin, x - cos * half[0] - sin * half[1],
            -sin, cos, y + sin * half[0] - cos * half[1])  # fmt: skip


def _warped(
    values: NDArray[np.uint8], motion: Motion, how: Image.Resampling, fill: Fill
) -> NDArray[np.uint8]:
    height, width = values.shape[:2]
    rim = math.ceil(0.3 * max(height, width))
    beside = ((rim, rim), (rim, rim), (0, 0))[: values.ndim]
    wide = Image.fromarray(np.pad(values, beside, mode=fill))
    a, b, c, d, e, f = motion
    # the frame starts at (rim, rim) of the padded picture
    motion = (a, b, c + rim, d, e, f + rim)
    return np.asarray(wide.transform((width, height), Image.Transform.AFFINE, motion, how))
