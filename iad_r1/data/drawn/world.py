"""A world of drawn products: 8 seen and 4 new products, 7 defect types, exact masks.

Every picture is a function of (seed, stream, index) alone: each split is its own stream, so the
size of one split never changes another, and a longer split starts with the shorter one.
The label, the product and the defect type follow from the index (any prefix is balanced); the
picture is drawn the same way for both labels and only then damaged, so nothing outside the mask
tells a defective picture from a normal one.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from iad_r1.data.drawn.defects import DEFECT_TYPES, DEFECTS, Wound
from iad_r1.data.drawn.surfaces import (
    NEW,
    PAINTERS,
    SEEN,
    UNIT,
    Canvas,
    Field,
    Surface,
    pixel_centres,
)
from iad_r1.errors import DataError

SEEN_PRODUCTS: tuple[str, ...] = tuple(SEEN)
NEW_PRODUCTS: tuple[str, ...] = tuple(NEW)
RADIUS = (7.0, 12.0)  # units of 1/96 of the side, times U(0.8, 1.2)
CONTRAST = (0.4, 1.0)
MARGIN = 9.0  # nearest that a defect's centre comes to the border
SMALLEST_CHANGE = (
    6  # grey levels of 255; weaker traces of a defect are left out of picture and mask
)
CHANGE_ON_PHOTOGRAPHS = 16  # the same for photographs, whose surfaces are less even
SQUARE = (0.3, 1.0)  # side of the square of a photograph that a defect is drawn into, of its own
SMALLEST_SQUARE = 12  # pixels of its side: in fewer, defects have no shape
SMALLEST_MASK = 24.0  # square units; a fainter defect is drawn again


@dataclass(frozen=True)
class Picture:
    """One drawn picture: `image` [H, W, 3] uint8 and `mask` [H, W] bool, True where damaged."""

    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]


@dataclass(frozen=True)
class Item:
    """What one index of a stream shows; `defect` is None for a normal picture."""

    product: str
    defect: str | None


def draw(rng: np.random.Generator, product: str, defect: str | None, size: int) -> Picture:
    """Draw `product` at `size` x `size` pixels, damaged by `defect` unless that is None.

    The same `rng` state gives the same picture outside the mask for every `defect`.
    """
    background, damage = rng.spawn(2)
    x, y = pixel_centres(size)
    surface = PAINTERS[product](Canvas(background, x, y))
    light, noise = _lighting(background, x, y), _sensor_noise(background, size)
    clean = _expose(surface.colour, light, noise)
    if defect is None:
        return Picture(clean, np.zeros((size, size), np.bool_))
    while True:  # a low-contrast defect on a matching surface can be invisible: draw it again
        window, damaged = _damage(damage, surface, defect, x, y)
        exposed = _expose(damaged, light[:, *window], noise[window])
        changed = np.abs(exposed.astype(np.int16) - clean[window]).max(axis=2) >= SMALLEST_CHANGE
        if changed.sum() * (UNIT / size) ** 2 >= SMALLEST_MASK:
            break
    image, mask = clean, np.zeros((size, size), np.bool_)
    image[window][changed] = exposed[changed]
    mask[window] = changed
    return Picture(image, mask)


def damaged(rng: np.random.Generator, photograph: NDArray[np.uint8]) -> tuple[Picture, str]:
    """A photograph [H, W, 3] of a good part with a drawn defect somewhere, and the defect's type.

    It is drawn into a square of random size, so that defects are small and large. Raises DataError
    for a photograph without room for the smallest.
    """
    height, width = photograph.shape[:2]
    if min(height, width) < SMALLEST_SQUARE:
        raise DataError(
            f"a picture of {width}x{height} pixels is too small to draw a defect into. Leave it "
            "out, or train on the photographs themselves (data.views=null)."
        )
    while True:  # a defect that matches the surface cannot be seen: draw another one
        kind = DEFECT_TYPES[rng.integers(len(DEFECT_TYPES))]
        side = max(SMALLEST_SQUARE, round(rng.uniform(*SQUARE) * min(height, width)))
        top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
        square = (slice(top, top + side), slice(left, left + side))
        before = photograph[square]
        colour = before.transpose(2, 0, 1).astype(np.float32)
        dark = np.percentile(colour, rng.uniform(0, 100), axis=(1, 2))
        surface = Surface(colour, None, dark.astype(np.float32)[:, None, None])
        window, painted = _damage(rng, surface, kind, *pixel_centres(side))
        after = np.clip(painted, 0, 255).astype(np.uint8).transpose(1, 2, 0)
        difference = np.abs(after.astype(np.int16) - before[window]).max(axis=2)
        changed = difference >= CHANGE_ON_PHOTOGRAPHS
        if changed.sum() >= SMALLEST_MASK * (side / UNIT) ** 2:
            break
    image, mask = photograph.copy(), np.zeros((height, width), np.bool_)
    image[square][window][changed] = after[changed]
    mask[square][window] = changed
    return Picture(image, mask), kind


def _lighting(rng: np.random.Generator, x: Field, y: Field) -> Field:
    """[3, H, W] gain: exposure, a linear gradient and a slight colour cast."""
    gain = rng.uniform(0.86, 1.1) * rng.uniform(0.97, 1.03, 3)
    slope_x, slope_y = rng.uniform(-0.12, 0.12, 2).astype(np.float32)
    plane = 1 + slope_x * (x / 48 - 1) + slope_y * (y / 48 - 1)
    return plane * gain.astype(np.float32)[:, None, None]


def _sensor_noise(rng: np.random.Generator, size: int) -> Field:
    """[H, W] Gaussian noise of 1.5 to 3.5 grey levels."""
    return rng.standard_normal((size, size), dtype=np.float32) * np.float32(rng.uniform(1.5, 3.5))


def _expose(colour: Field, light: Field, noise: Field) -> NDArray[np.uint8]:
    """What the camera stores of a lit surface, [H, W, 3]."""
    levels = colour * light
    levels += noise
    np.clip(levels, 0, 255, out=levels)
    return np.ascontiguousarray(levels.astype(np.uint8).transpose(1, 2, 0))


def _damage(
    rng: np.random.Generator, surface: Surface, defect: str, x: Field, y: Field
) -> tuple[tuple[slice, slice], Field]:
    """A damaged [3, h, w] window of the surface and where it belongs in the picture."""
    size = x.shape[0]
    cx, cy = _centre(rng, surface.material, size)
    radius = rng.uniform(*RADIUS) * rng.uniform(0.8, 1.2)
    contrast = np.float32(rng.uniform(*CONTRAST))
    window = _window(cx, cy, 1.9 * radius + 6, size)
    dx, dy = x[window] - np.float32(cx), y[window] - np.float32(cy)
    turn = rng.uniform(0, 2 * np.pi)
    cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    wound = Wound(rng, dx, dy, cos, sin, radius, surface.substrate)
    before = surface.colour[:, *window]
    amount = np.full(dx.shape, contrast)
    if surface.material is not None and defect != "foreign object":
        amount = amount * surface.material[window]  # only a foreign object reaches past the part
    return window, before + (DEFECTS[defect](wound, before) - before) * amount


def _centre(rng: np.random.Generator, material: Field | None, size: int) -> tuple[float, float]:
    """A point on the product: first one cell of 3 x 3, evenly, then anywhere in that cell."""
    edges = np.array([MARGIN, UNIT / 3, 2 * UNIT / 3, UNIT - MARGIN])
    while True:
        cell = rng.integers(3, size=2)
        for _ in range(12):
            cx, cy = rng.uniform(edges[cell], edges[cell + 1])
            pixel = int(cy * size / UNIT), int(cx * size / UNIT)
            if material is None or material[pixel] > 0.99:
                return float(cx), float(cy)


def _window(cx: float, cy: float, reach: float, size: int) -> tuple[slice, slice]:
    """The rows and columns within `reach` units of a point."""
    scale = size / UNIT
    rows = slice(max(0, int((cy - reach) * scale)), min(size, int((cy + reach) * scale) + 1))
    columns = slice(max(0, int((cx - reach) * scale)), min(size, int((cx + reach) * scale) + 1))
    return rows, columns


def item(index: int, products: Sequence[str]) -> Item:
    """Label, product and type of one index: they alternate, so every prefix is balanced."""
    pair = index // 2
    position, turn = pair % len(products), pair // len(products)
    defect = DEFECT_TYPES[(turn + position) % len(DEFECT_TYPES)] if index % 2 else None
    return Item(products[position], defect)


def pool_products(new_share: float) -> tuple[str, ...]:
    """The RL pool's cycle of products, in which `new_share` of the entries are new products."""
    cycle, seen, new, turns = [], 0, 0, 80
    for turn in range(turns):
        if int((turn + 1) * new_share + 1e-9) > int(turn * new_share + 1e-9):
            cycle.append(NEW_PRODUCTS[new % len(NEW_PRODUCTS)])
            new += 1
        else:
            cycle.append(SEEN_PRODUCTS[seen % len(SEEN_PRODUCTS)])
            seen += 1
    return tuple(cycle)


def stream(seed: int, name: str, index: int) -> np.random.Generator:
    """The random stream of picture `index` in the stream called `name`."""
    return np.random.default_rng([seed, zlib.crc32(name.encode()), index])


def pretraining_batch(
    rng: np.random.Generator,
    n: int,
    image_size: int,
    products: Sequence[str] = SEEN_PRODUCTS,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Fresh pictures for the supervised pre-training of a vision tower, without end.

    Returns images [n, H, W, 3] uint8 and class maps [n, H, W] uint8: 0 is sound, k is
    `DEFECT_TYPES[k - 1]`. About half of the pictures are sound. New products stay new as long as
    `products` names none of them.
    """
    images = np.empty((n, image_size, image_size, 3), np.uint8)
    classes = np.zeros((n, image_size, image_size), np.uint8)
    for k in range(n):
        product = products[int(rng.integers(len(products)))]
        kind = int(rng.integers(2 * len(DEFECT_TYPES)))
        defect = DEFECT_TYPES[kind] if kind < len(DEFECT_TYPES) else None
        picture = draw(rng, product, defect, image_size)
        images[k], classes[k] = picture.image, picture.mask * np.uint8(kind + 1)
    return images, classes
