"""Painters of the seven synthetic defect types: one function damages one surface.

Every type has its own shape *and* its own profile, so that a type can be told without colour:

    scratch         straight parallel strokes, bright with dark flanks
    hole            dark round disc with a bright rim, lit on its far wall
    stain           soft lobed tint; the texture stays visible
    crack           one thin dark zigzag with branches
    dent            smooth shading, dark on the lit side and bright on the other; texture stays
    missing part    straight-edged piece gone, the substrate shows, shadow along two edges
    foreign object  opaque coloured pellet with a highlight and a cast shadow

All of them are lit from the upper left. Units as in `iad_r1.data.drawn.surfaces`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from iad_r1.data.drawn.surfaces import Field, blend, coverage

SHADOW = np.float32(1.84)  # how far, right and down, an object throws its shadow


@dataclass(frozen=True)
class Wound:
    """Where and how large, for one window of the picture.

    x, y       [h, w] f32      offsets from the centre, in 1/96 of the picture's side
    u, v       [h, w] f32      the same, turned by an angle whose cosine and sine are `cos`, `sin`
    radius                     in 1/96 of the picture's side
    substrate  [3, 1, 1] f32   what shows where a part is missing
    """

    rng: np.random.Generator
    x: Field
    y: Field
    cos: np.float32
    sin: np.float32
    radius: float
    substrate: Field

    @cached_property
    def u(self) -> Field:
        """Along the defect."""
        return self.cos * self.x + self.sin * self.y

    @cached_property
    def v(self) -> Field:
        """Across the defect."""
        return self.cos * self.y - self.sin * self.x

    def between(self, low: float, high: float) -> np.float32:
        """A uniform draw."""
        return np.float32(self.rng.uniform(low, high))


def scratch(wound: Wound, surface: Field) -> Field:
    """Two or three straight strokes side by side, a bright core between dark flanks."""
    light = np.zeros_like(wound.u)
    bow = wound.between(-0.06, 0.06) / np.float32(wound.radius)
    gap, width = wound.between(3.6, 4.6), wound.between(0.8, 1.05)
    count = wound.rng.integers(2, 4)
    for stroke in range(count):
        length = np.float32(wound.radius) * wound.between(1.05, 1.6)
        shift = wound.between(-0.3, 0.3) * np.float32(wound.radius)
        across = wound.v - bow * wound.u**2 - gap * np.float32(stroke - (count - 1) / 2)
        ends = coverage(np.abs(wound.u - shift) - length, 6.0)
        core = np.exp(-((across / width) ** 2))
        flank = np.exp(-(((np.abs(across) - 1.9 * width) / width) ** 2))
        light += ends * (110 * core - 75 * flank)
    return surface + light


def hole(wound: Wound, surface: Field) -> Field:
    """A round bore: dark inside, its far wall lit, a bright worn rim."""
    size = np.float32(wound.radius * 0.78)
    distance = np.hypot(wound.u, wound.v / wound.between(0.85, 1.0)) - size
    wall = 26 + 30 * np.clip((wound.x + wound.y) / (1.6 * size), -0.6, 1)
    rim = np.exp(-(((distance - 0.9) / 0.9) ** 2)) * 70
    return blend(surface + rim, wall, coverage(distance))


def stain(wound: Wound, surface: Field) -> Field:
    """A lobed film that tints what lies under it, darker along its edge."""
    angle = np.arctan2(wound.v, wound.u)
    lobes = np.ones_like(angle)
    for order in (2, 3, 5):
        lobes += wound.between(0.08, 0.17) * np.cos(order * angle + wound.between(0, 6.28))
    distance = np.hypot(wound.u, wound.v) - np.float32(wound.radius * 1.05) * lobes
    film = coverage(distance, wound.radius * 0.35)
    edge = np.exp(-(((distance + 1.8) / 1.8) ** 2)) * 0.22
    tints = ((0.62, 0.44, 0.22), (0.34, 0.36, 0.40), (0.78, 0.40, 0.26), (0.42, 0.52, 0.86))
    tint = np.asarray(tints[wound.rng.integers(len(tints))], np.float32)[:, None, None]
    soiled = surface * tint + 14
    return blend(surface, soiled, np.minimum(film * (0.85 + edge), 1))


def crack(wound: Wound, surface: Field) -> Field:
    """A jagged dark line with two side branches."""
    reach, steps = wound.radius * 1.5, 7
    along = np.linspace(-reach, reach, steps)
    sides = (
        np.where(np.arange(steps) % 2, 1.0, -1.0)
        * wound.rng.uniform(0.12, 0.34, steps)
        * wound.radius
    )
    main = np.stack([along + wound.rng.uniform(-1, 1, steps), sides], axis=1)
    starts, ends = [main[:-1]], [main[1:]]
    for knot, side in ((2, 1.0), (4, -1.0)):
        tip = main[knot] + wound.radius * np.array(
            [wound.rng.uniform(0.25, 0.5), side * wound.rng.uniform(0.55, 0.85)]
        )
        starts.append(main[knot : knot + 1])
        ends.append(tip[None])
    distance = _to_segments(wound.u, wound.v, np.concatenate(starts), np.concatenate(ends))
    line = coverage(distance - np.float32(wound.rng.uniform(0.75, 1.05)))
    return blend(surface, surface * 0.1, line)


def _to_segments(u: Field, v: Field, starts: np.ndarray, ends: np.ndarray) -> Field:
    """Distance from every pixel to the nearest of the segments `starts[k]`-`ends[k]`."""
    a, ab = starts.astype(np.float32), (ends - starts).astype(np.float32)
    pu, pv = u[None] - a[:, 0, None, None], v[None] - a[:, 1, None, None]
    du, dv = ab[:, 0, None, None], ab[:, 1, None, None]
    t = np.clip((pu * du + pv * dv) / (du * du + dv * dv), 0, 1)
    return np.sqrt(((pu - t * du) ** 2 + (pv - t * dv) ** 2).min(axis=0))


def dent(wound: Wound, surface: Field) -> Field:
    """A pressed hollow: shading only."""
    reach = np.float32(wound.radius * 1.25)
    turn = np.deg2rad(wound.between(25, 65))
    toward = (wound.x * np.cos(turn) + wound.y * np.sin(turn)) / reach
    bowl = np.maximum(1 - (wound.x**2 + wound.y**2) / reach**2, 0) ** 2
    # a cool cast, as of sky light: where brightness is unchanged the colour is not, so that the
    # changed pixels are one region and not two halves
    cast = np.array([-0.1, 0.0, 0.1], np.float32)[:, None, None]
    return surface + 280 * (toward + cast) * bowl


def missing_part(wound: Wound, surface: Field) -> Field:
    """An angular piece is gone; the substrate lies flat in it, in shadow at the upper left."""
    half_u = np.float32(wound.radius) * wound.between(0.72, 0.95)
    half_v = np.float32(wound.radius) * wound.between(0.6, 0.8)
    taper = wound.between(-0.28, 0.28)
    notch = np.abs(wound.v) - half_v * (1 + taper * wound.u / half_u)
    distance = np.maximum(np.abs(wound.u) - half_u, notch)
    gone = coverage(distance)
    slope = _upper_left(distance)
    shadow = np.exp(-(((distance + 1.6) / 1.5) ** 2)) * slope
    floor = wound.substrate * (1 - 0.6 * shadow)
    return blend(surface, floor, gone)


def _upper_left(distance: Field) -> Field:
    """1 where the nearest edge lies toward the upper left, 0 elsewhere."""
    down, right = np.gradient(distance)
    return np.maximum(-(down + right) / np.maximum(np.abs(down) + np.abs(right), 1e-6), 0)


def foreign_object(wound: Wound, surface: Field) -> Field:
    """A coloured pellet lying on the product."""
    colours = (
        (214, 48, 44),
        (238, 196, 40),
        (52, 92, 214),
        (44, 176, 190),
        (196, 58, 170),
        (108, 196, 54),
    )
    colour = np.asarray(colours[wound.rng.integers(len(colours))], np.float32)[:, None, None]
    half = np.float32(wound.radius) * wound.between(0.5, 0.75)
    thick = np.float32(wound.radius) * wound.between(0.38, 0.48)
    distance = _capsule(wound.u, wound.v, half) - thick
    turn_u, turn_v = (wound.cos + wound.sin) * SHADOW, (wound.cos - wound.sin) * SHADOW
    shadow = coverage(_capsule(wound.u - turn_u, wound.v - turn_v, half) - thick, 3.0)
    round_off = np.clip(-distance / thick, 0, 1)
    lit = 0.62 + 0.5 * np.sqrt(round_off)
    shine = (
        np.exp(
            -(((_capsule(wound.u + turn_u * 0.55, wound.v + turn_v * 0.55, half * 0.7)) / 1.3) ** 2)
        )
        * 90
    )
    body = colour * lit + shine
    return blend(surface * (1 - 0.55 * shadow), body, coverage(distance))


def _capsule(u: Field, v: Field, half: np.float32) -> Field:
    """Distance to the segment from -`half` to `half` along u."""
    return np.hypot(u - np.clip(u, -half, half), v)


Painter = Callable[[Wound, Field], Field]
DEFECTS: dict[str, Painter] = {
    "scratch": scratch,
    "hole": hole,
    "stain": stain,
    "crack": crack,
    "dent": dent,
    "missing part": missing_part,
    "foreign object": foreign_object,
}
DEFECT_TYPES: tuple[str, ...] = tuple(DEFECTS)  # class k of a pre-training mask is entry k - 1
