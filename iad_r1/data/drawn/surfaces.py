"""Painters of the synthetic products: one function draws one defect-free surface.

Coordinates are in units of 1/96 of the picture's side, so a product looks the same at every
`image_size`. Colours are 0..255 floats. No painter draws anything that resembles a defect: lines
and dots that belong to a product are regular and run through the whole picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.floating]  # float32 throughout; numpy's stubs do not follow that far
UNIT = 96.0  # a picture is UNIT x UNIT long, whatever its number of pixels


@dataclass(frozen=True)
class Surface:
    """A defect-free product.

    colour     [3, H, W] f32   0..255, before lighting and sensor noise
    material   [H, W] f32      1 where the product is, 0 on the background; None: everywhere
    substrate  [3, 1, 1] f32   what shows where a part of the product is missing
    """

    colour: Field
    material: Field | None
    substrate: Field


@dataclass(frozen=True)
class Canvas:
    """The random stream and the pixel centres a painter works with; `x`, `y` are [H, W]."""

    rng: np.random.Generator
    x: Field
    y: Field

    @property
    def size(self) -> int:
        """Pixels along one side."""
        return self.x.shape[0]

    def between(self, low: float, high: float) -> float:
        """A uniform draw."""
        return float(self.rng.uniform(low, high))

    def shade(self, *rgb: float, spread: float) -> Field:
        """`rgb` with a common and a per-channel random shift of up to `spread`, [3, 1, 1]."""
        shift = self.rng.uniform(-spread, spread) + self.rng.uniform(-spread, spread, 3) * 0.4
        return np.clip(np.asarray(rgb) + shift, 5, 250).astype(np.float32)[:, None, None]

    def choice(self, *options: tuple[float, float, float], spread: float) -> Field:
        """One of several base colours, varied like `shade`."""
        return self.shade(*options[self.rng.integers(len(options))], spread=spread)

    def rotated(self, degrees: float, cx: float = 0.0, cy: float = 0.0) -> tuple[Field, Field]:
        """Coordinates along and across an axis turned by `degrees` about (`cx`, `cy`)."""
        cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        dx, dy = self.x - np.float32(cx), self.y - np.float32(cy)
        return (
            np.float32(cos) * dx + np.float32(sin) * dy,
            np.float32(cos) * dy - np.float32(sin) * dx,
        )

    def smooth(self, rows: int, columns: int) -> Field:
        """Smooth noise of about unit variance with `rows` x `columns` bumps, as [H, W]."""
        knots = self.rng.standard_normal((rows, columns), dtype=np.float32)
        return _spline(self.size, rows) @ knots @ _spline(self.size, columns).T

    def lookup(self, position: Field, knots: int, span: float) -> Field:
        """1-D noise along `position` (any range); `span` units hold `knots` random values."""
        table = self.rng.standard_normal(knots, dtype=np.float32)
        index = position * np.float32(knots / span)
        low = np.floor(index)
        part = index - low
        left = low.astype(np.int32) % knots
        return table[left] * (1 - part) + table[(left + 1) % knots] * part


@lru_cache(maxsize=8)
def pixel_centres(size: int) -> tuple[Field, Field]:
    """x and y of every pixel centre as two [size, size] fields."""
    line = ((np.arange(size) + 0.5) * UNIT / size).astype(np.float32)
    x, y = np.meshgrid(line, line)
    x.setflags(write=False)
    y.setflags(write=False)
    return x, y


@lru_cache(maxsize=64)
def _spline(size: int, knots: int) -> Field:
    """[size, knots] weights of a raised-cosine interpolation between random values."""
    position = (np.arange(size) + 0.5) / size * (knots - 1)
    distance = np.abs(position[:, None] - np.arange(knots)[None, :])
    weight = np.where(distance < 1, 0.5 + 0.5 * np.cos(np.pi * np.minimum(distance, 1)), 0)
    return weight.astype(np.float32)


def coverage(distance: Field, softness: float = 1.0) -> Field:
    """1 inside (`distance` < 0), 0 outside, with an anti-aliased edge `softness` units wide."""
    return np.clip(0.5 - distance / np.float32(softness), 0, 1)


def blend(under: Field, over: Field, amount: Field) -> Field:
    """`over` laid on `under` with opacity `amount` [H, W]; colours are [3, 1, 1] or [3, H, W]."""
    return under + (over - under) * amount


def brushed_metal(c: Canvas) -> Surface:
    """Fine parallel streaks with a broad sheen."""
    u, v = c.rotated(c.between(-12, 12) + 90 * c.rng.integers(2), 48, 48)
    streaks = c.lookup(v + 90, 220, 180) * (1 + 0.3 * c.lookup(u + 90, 8, 180))
    sheen = np.cos((v - c.between(-40, 40)) * np.float32(np.pi / c.between(70, 110)))
    steel = c.choice((158, 162, 170), (176, 168, 152), (140, 146, 158), spread=14)
    return Surface(
        steel * (1 + 0.035 * streaks + 0.09 * sheen), None, c.shade(52, 46, 42, spread=8)
    )


def woven_fabric(c: Canvas) -> Surface:
    """A plain weave of two threads."""
    pitch = c.between(5.5, 8.5)
    u, v = c.rotated(c.between(-25, 25), c.between(0, 20), c.between(0, 20))
    u, v = u / np.float32(pitch), v / np.float32(pitch)
    over = (np.floor(u) + np.floor(v)) % 2
    warp, weft = np.abs(np.sin(np.pi * u)), np.abs(np.sin(np.pi * v))
    relief = 0.66 + 0.34 * np.where(over > 0, warp, weft)
    base = c.choice((92, 118, 160), (158, 96, 92), (120, 138, 96), (168, 150, 118), spread=16)
    other = base * np.float32(c.between(0.82, 0.95))
    return Surface(blend(base, other, over) * relief, None, c.shade(226, 222, 210, spread=8))


def gasket_ring(c: Canvas) -> Surface:
    """A rubber ring on a light plate."""
    cx, cy = c.between(45, 51), c.between(45, 51)
    radius = np.hypot(c.x - np.float32(cx), c.y - np.float32(cy))
    outer, inner = c.between(42, 46), c.between(13, 17)
    ring = coverage(
        np.abs(radius - np.float32((outer + inner) / 2)) - np.float32((outer - inner) / 2), 1.4
    )
    across = (radius - np.float32((outer + inner) / 2)) / np.float32((outer - inner) / 2)
    rubber = c.choice((66, 68, 74), (122, 62, 48), (58, 78, 104), (74, 92, 70), spread=10)
    body = rubber * (1.18 - 0.34 * across**2 + 0.03 * c.smooth(20, 20))
    plate = c.shade(198, 200, 202, spread=14)
    return Surface(blend(plate + 2 * c.smooth(6, 6), body, ring), ring, plate)


def circuit_trace(c: Canvas) -> Surface:
    """Parallel copper traces with a 45-degree jog and one row of square pads."""
    u, v = (c.x, c.y) if c.rng.integers(2) else (c.y, c.x)
    jog = np.clip(u - np.float32(c.between(20, 55)), 0, c.between(8, 16)) * (
        1 if c.rng.integers(2) else -1
    )
    spacing = c.between(13, 17)
    offset = (v - jog + np.float32(c.between(0, spacing))) % np.float32(spacing) - np.float32(
        spacing / 2
    )
    trace = coverage(np.abs(offset) - np.float32(c.between(1.8, 2.5)))
    board = c.choice((38, 98, 62), (34, 70, 118), (92, 40, 44), (46, 52, 58), spread=10)
    copper = np.minimum(board * 1.35 + 38, 230).astype(np.float32)
    colour = blend(board + 3 * c.smooth(10, 10), copper, trace)
    column = (
        np.abs(u - np.float32(c.between(74, 88)))
        if c.rng.integers(2)
        else np.abs(u - np.float32(c.between(8, 18)))
    )
    pad = coverage(np.maximum(np.abs(offset), column) - 3.6)
    return Surface(
        blend(colour, c.shade(196, 190, 168, spread=8), pad), None, c.shade(206, 178, 120, spread=8)
    )


def bolt_head(c: Canvas) -> Surface:
    """A chamfered hexagon on a dark plate."""
    cx, cy = c.between(46, 50), c.between(46, 50)
    turn, inradius = c.between(0, 60), c.between(38, 41)
    dx, dy = c.x - np.float32(cx), c.y - np.float32(cy)
    angles = np.deg2rad(turn + 60 * np.arange(6)).astype(np.float32)
    sides = np.cos(angles)[:, None, None] * dx + np.sin(angles)[:, None, None] * dy
    facet, apothem = sides.argmax(0), sides.max(0)
    head = coverage(apothem - np.float32(inradius), 1.4)
    light = c.between(0, 2 * np.pi)
    slope = (0.16 * np.cos(angles - np.float32(light))).astype(np.float32)
    chamfer = coverage(np.float32(inradius - 6.5) - np.hypot(dx, dy) * np.float32(0.94), 1.6)
    metal = c.choice((150, 152, 158), (172, 154, 104), (112, 116, 126), spread=12)
    body = metal * (1 + slope[facet] * chamfer - 0.05 * chamfer + 0.025 * c.smooth(24, 24))
    plate = c.shade(58, 60, 66, spread=10)
    return Surface(blend(plate + 2 * c.smooth(6, 6), body, head), head, plate)


def ceramic_tile(c: Canvas) -> Surface:
    """Glazed tiles with recessed joints."""
    period = c.between(44, 60)
    u, v = c.rotated(c.between(-5, 5))
    u, v = u + np.float32(c.between(0, period)), v + np.float32(c.between(0, period))
    half = np.float32(period / 2)
    edge = np.minimum(
        half - np.abs(u % np.float32(period) - half), half - np.abs(v % np.float32(period) - half)
    )
    joint, bevel = coverage(edge - 1.5), coverage(edge - 4.0, 3.0)
    glaze = c.choice((214, 210, 200), (150, 178, 190), (188, 170, 148), (160, 186, 160), spread=12)
    body = glaze * (1 + 0.025 * c.smooth(7, 7) - 0.07 * bevel)
    return Surface(
        blend(body, c.shade(128, 124, 118, spread=10), joint), None, c.shade(164, 92, 62, spread=10)
    )


def printed_label(c: Canvas) -> Surface:
    """Rows of print and a coloured heading band on paper."""
    u, v = c.rotated(c.between(-6, 6), 48, 48)
    u, v = u + 80, v + np.float32(80 + c.between(-3, 3))
    pitch = c.between(8.0, 10.0)
    row, column = (
        np.floor(v / np.float32(pitch)).astype(np.int32),
        np.floor(u / 1.6).astype(np.int32),
    )
    ink = (c.rng.random((32, 112)) < 0.62).astype(np.float32)
    gaps = np.cumsum(c.rng.integers(5, 11, size=(32, 24)), axis=1)
    for index in range(32):
        ink[index, gaps[index][gaps[index] < 112]] = 0
    inside = coverage(
        np.abs(v % np.float32(pitch) - np.float32(pitch / 2)) - np.float32(pitch * 0.24)
    )
    paper = c.choice((236, 234, 226), (232, 224, 196), (214, 226, 232), spread=8)
    print_colour = c.choice((48, 48, 56), (40, 56, 110), spread=8)
    text = ink[row % 32, column % 112] * inside * np.float32(0.8)
    band_colour = c.choice((190, 60, 54), (44, 110, 170), (52, 140, 92), (214, 150, 40), spread=12)
    first = np.float32(pitch * np.floor(80 / pitch)) - np.float32(pitch * c.rng.integers(2, 5))
    band = coverage(np.abs(v - first) - np.float32(pitch * 0.5))
    page = blend(blend(paper, print_colour, text), band_colour, band)
    return Surface(page + 1.5 * c.smooth(8, 8), None, c.shade(150, 116, 78, spread=8))


def wood_panel(c: Canvas) -> Surface:
    """Wavy grain, without knots."""
    _, v = c.rotated(c.between(-10, 10) + 90 * c.rng.integers(2), 48, 48)
    warp = 5 * c.smooth(3, 4)
    rings = np.sin((v + warp) * np.float32(2 * np.pi / c.between(7, 12)))
    fibre = c.lookup(v + 90 + warp * 0.4, 170, 180)
    timber = c.choice((178, 132, 84), (142, 94, 58), (200, 162, 116), spread=12)
    return Surface(
        timber * (1 + 0.085 * rings + 0.035 * fibre), None, c.shade(236, 220, 184, spread=6)
    )


def leather(c: Canvas) -> Surface:
    """A pebbled hide: two crossing waves bent by noise."""
    pitch = c.between(5.0, 7.5)
    u, v = c.rotated(c.between(0, 180))
    u, v = u + 3.2 * c.smooth(14, 14), v + 3.2 * c.smooth(14, 14)
    w = np.float32(2 * np.pi / pitch)
    pebble = np.sin(u * w) + np.sin((0.5 * u + 0.866 * v) * w) + np.sin((0.5 * u - 0.866 * v) * w)
    hide = c.choice((118, 72, 46), (70, 56, 52), (146, 104, 66), (96, 44, 44), spread=12)
    return Surface(
        hide * (1 + 0.075 * pebble + 0.03 * c.smooth(6, 6)),
        None,
        c.shade(202, 190, 170, spread=8),
    )


def ribbed_hose(c: Canvas) -> Surface:
    """Rounded ribs around a tube that fills the picture."""
    u, v = c.rotated(c.between(-14, 14) + 90 * c.rng.integers(2), 48, 48)
    pitch = c.between(10, 15)
    bend = np.float32(c.between(-0.004, 0.004)) * v * v
    rib = np.cos((u + bend + np.float32(c.between(0, pitch))) * np.float32(2 * np.pi / pitch))
    tube = 1.08 - 0.26 * (v / 48) ** 2
    plastic = c.choice((88, 92, 98), (60, 96, 140), (168, 112, 48), (84, 120, 88), spread=12)
    return Surface(plastic * (tube * (1 + 0.17 * rib)), None, c.shade(216, 210, 200, spread=8))


def knurled_grip(c: Canvas) -> Surface:
    """A diamond knurl cut into metal."""
    u, v = c.rotated(c.between(-10, 10), c.between(0, 10), c.between(0, 10))
    slope, pitch = np.float32(c.between(0.8, 1.25)), c.between(6.5, 9.5)
    w = np.float32(np.pi / pitch)
    ridge = np.abs(np.sin((u + slope * v) * w)) * np.abs(np.sin((u - slope * v) * w))
    side = np.cos((u + slope * v) * 2 * w)
    metal = c.choice((150, 152, 156), (128, 122, 110), (170, 160, 140), spread=12)
    return Surface(metal * (0.74 + 0.42 * ridge + 0.07 * side), None, c.shade(44, 40, 40, spread=8))


def steel_washer(c: Canvas) -> Surface:
    """A turned metal ring: concentric grooves and a conical sheen, on a light sheet."""
    cx, cy = c.between(45, 51), c.between(45, 51)
    dx, dy = c.x - np.float32(cx), c.y - np.float32(cy)
    radius = np.hypot(dx, dy)
    outer, inner = c.between(43, 47), c.between(12, 16)
    middle, half = np.float32((outer + inner) / 2), np.float32((outer - inner) / 2)
    ring = coverage(np.abs(radius - middle) - half, 1.4)
    grooves = c.lookup(radius, 60, 72)
    sheen = np.cos(2 * np.arctan2(dy, dx) + np.float32(c.between(0, 6.3)))
    metal = c.choice((128, 132, 140), (156, 132, 88), (112, 108, 106), spread=12)
    body = metal * (1 + 0.03 * grooves + 0.09 * sheen)
    sheet = c.choice((222, 214, 186), (196, 214, 224), spread=12)
    return Surface(blend(sheet + 2 * c.smooth(6, 6), body, ring), ring, sheet)


Painter = Callable[[Canvas], Surface]
SEEN: dict[str, Painter] = {
    "brushed metal": brushed_metal,
    "woven fabric": woven_fabric,
    "gasket ring": gasket_ring,
    "circuit trace": circuit_trace,
    "bolt head": bolt_head,
    "ceramic tile": ceramic_tile,
    "printed label": printed_label,
    "wood panel": wood_panel,
}
NEW: dict[str, Painter] = {
    "leather": leather,
    "ribbed hose": ribbed_hose,
    "knurled grip": knurled_grip,
    "steel washer": steel_washer,
}
PAINTERS: dict[str, Painter] = {**SEEN, **NEW}
