"""What is known of a picture before anything is written about it: its label and mask, and pixels.

Of a defect: the cells it lies in on every grid from 1x1 to 5x5, how large it is, its shape, and how
its colour differs from what surrounds it and from a good picture of the same product and view.
Nothing is registered: a colour is looked for anywhere in the good picture. Lightness and colours
are CIELAB (D65): L* from 0 to 100, and a* and b*.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from iad_r1.grid import Grid, Rule, cells_on, cells_touched

GRIDS = tuple(Grid(n, n) for n in range(1, 6))
SMALLEST_PART = 0.05  # of the largest: smaller ones are crumbs of it
SIDE = 192  # pixels; a picture as a whole is described at this size
SAMPLED = (
    256  # pixels; of a larger surrounding every second, third, ... row and column is looked at
)
BIN = 8.0  # L*, a* and b*: colours that lie in neighbouring bins are alike
SEEN = 0.0005  # of the pixels of a good picture: colours of fewer do not count
GREY = 10.0  # chroma, under which there is no hue to name; of very dark colours, under `DARK_GREY`
DARK, DARK_GREY = 20.0, 20.0  # L*, and chroma
NEAR = 20.0  # CIE 1976 difference of colours that are much alike
PALE = 45.0  # chroma of a yellow or an orange that is called tan

# (hue angle in degrees up to which, name)
_HUES = ((20, "pink"), (45, "red"), (75, "orange"), (105, "yellow"), (165, "green"), (210, "teal"),
         (310, "blue"), (335, "purple"), (360, "pink"))  # fmt: skip
_GREYS = ((20, "black"), (45, "dark gray"), (70, "gray"), (90, "light gray"), (101, "white"))


@dataclass(frozen=True)
class Defect:
    """One defect, or several of a kind.

    Colours are those of its pixels less those of a band around it; None where it fills the picture.
    `unseen` is the share of its pixels whose colour a good picture hardly shows, and
    `unseen_around` that of the band: light that has changed shows in both.
    """

    type: str  # as labelled
    coarse: str | None  # its class in the vocabulary, and the group of that; None: not known there
    group: str | None
    fine: str  # its name in the vocabulary, else as labelled
    cells: Mapping[str, tuple[int, ...]]  # by grid ("3x3"), by the rule for masks
    touched: Mapping[str, tuple[int, ...]]  # by grid, every cell in which it has a pixel
    pixels: int
    share: float  # of the picture
    box: tuple[int, int, int, int]  # left, top, width and height in pixels
    at_border: bool  # it reaches the border of the picture
    parts: int
    elongation: float  # length by width of the largest part; 1: as long as wide
    angle: float  # degrees that its length is turned from horizontal, 0 to 90
    fill: float  # its pixels by those of an ellipse with its moments; 1: an ellipse, less: ragged
    lighter: float | None  # L*
    redder: float | None  # a*
    yellower: float | None  # b*
    redness: float  # a* of the defect itself
    yellowness: float  # b*
    colour: str  # the most frequent
    colour_around: str | None
    unseen: float
    unseen_around: float


@dataclass(frozen=True)
class Facts:
    """One picture, beside a good one; `defect` is None where it is good itself."""

    product: str
    size: tuple[int, int]  # width, height
    colour: str  # the most frequent
    colour_share: float  # of the pixels much alike to it
    colour_change: float  # how far it is from the most frequent one of the good picture
    lightness: float  # mean L*
    spread: float  # standard deviation of L*
    lighter_than_good: float  # L*
    defect: Defect | None


def of_good(product: str, picture: Image.Image, good: Image.Image) -> Facts:
    """A good picture beside another one."""
    return _facts(product, picture, _small(picture), _small(good), None)


def of_defective(
    product: str,
    picture: Image.Image,
    mask: NDArray[np.bool_],
    good: Image.Image,
    named: tuple[str, str | None, str | None, str],
    rule: Rule,
) -> Facts:
    """A picture with a defect beside a good one.

    Args:
        mask: [H, W], in the geometry of the picture; not empty.
        named: the type as labelled, its class, its group and its name in the vocabulary.
    """
    whole, reference = _small(picture), _small(good)
    largest, parts = _parts(mask)
    elongation, angle, fill = shape(largest)
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, left = int(rows[0]), int(cols[0])
    height, width = int(rows[-1]) + 1 - top, int(cols[-1]) + 1 - left
    inside, around = _colours(picture, mask, (left, top, width, height))
    palette = _palette(reference)
    difference = None if not len(around) else inside.mean(0) - around.mean(0)
    kind, coarse, group, fine = named
    lying = cells_on(mask, GRIDS, rule)
    defect = Defect(
        type=kind,
        coarse=coarse,
        group=group,
        fine=fine,
        cells={str(g): tuple(sorted(cells)) for g, cells in zip(GRIDS, lying, strict=True)},
        touched={str(g): tuple(sorted(cells_touched(mask, g))) for g in GRIDS},
        pixels=int(mask.sum()),
        share=float(mask.mean()),
        box=(left, top, width, height),
        at_border=bool(mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any()),
        parts=parts,
        elongation=elongation,
        angle=angle,
        fill=fill,
        lighter=None if difference is None else float(difference[0]),
        redder=None if difference is None else float(difference[1]),
        yellower=None if difference is None else float(difference[2]),
        redness=float(inside[:, 1].mean()),
        yellowness=float(inside[:, 2].mean()),
        colour=colour_name(main(inside)),
        colour_around=colour_name(main(around)) if len(around) else None,
        unseen=_unseen(inside, palette),
        unseen_around=_unseen(around, palette),
    )
    return _facts(product, picture, whole, reference, defect)


def _facts(
    product: str,
    picture: Image.Image,
    whole: NDArray[np.float32],
    good: NDArray[np.float32],
    defect: Defect | None,
) -> Facts:
    colour = main(whole)
    alike = np.linalg.norm(whole - colour, axis=1) < NEAR
    return Facts(
        product=product,
        size=picture.size,
        colour=colour_name(colour),
        colour_share=float(alike.mean()),
        colour_change=float(np.linalg.norm(colour - main(good))),
        lightness=float(whole[:, 0].mean()),
        spread=float(whole[:, 0].std()),
        lighter_than_good=float(whole[:, 0].mean() - good[:, 0].mean()),
        defect=defect,
    )


# --- shape ---------------------------------------------------------------------------------------


def _parts(mask: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], int]:
    """The largest 8-connected part of a mask [H, W], and how many are not much smaller."""
    labels = np.zeros(mask.shape, np.int32)
    ndimage.label(mask, structure=np.ones((3, 3)), output=labels)
    sizes = np.bincount(labels.ravel())[1:]
    return labels == sizes.argmax() + 1, int((sizes >= SMALLEST_PART * sizes.max()).sum())


def shape(part: NDArray[np.bool_]) -> tuple[float, float, float]:
    """By the second moments of the pixels of a part [H, W]: how many times as long as wide it is,
    how many degrees (0 to 90) its length is turned from horizontal, and what share it has of an
    ellipse with these moments."""
    points = np.stack(part.nonzero()[::-1]).astype(np.float64)  # x, y
    moments = np.cov(points, bias=True) + np.eye(2) / 12  # a pixel is a square, no point
    values, vectors = np.linalg.eigh(moments)
    x, y = np.abs(vectors[:, 1])
    ellipse = 4 * np.pi * np.sqrt(values.prod())
    turned = float(np.degrees(np.arctan2(y, x)))
    return float(np.sqrt(values[1] / values[0])), turned, float(part.sum() / ellipse)


# --- colours -------------------------------------------------------------------------------------


def lab(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """[..., 3] sRGB values as L*, a* and b* (CIE 1976, D65)."""
    value = rgb.astype(np.float32) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750),
         (0.0193339, 0.1191920, 0.9503041)), np.float32,
    )  # fmt: skip
    white = to_xyz.sum(1)
    share = linear @ to_xyz.T / white
    root = np.where(share > 216 / 24389, np.cbrt(share), (24389 / 27 * share + 16) / 116)
    x, y, z = np.moveaxis(root, -1, 0)
    return np.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), axis=-1).astype(np.float32)


def colour_name(colour: NDArray[np.floating]) -> str:
    """The word for a colour (L*, a*, b*)."""
    lightness, a, b = map(float, colour)
    if np.hypot(a, b) < (DARK_GREY if lightness < DARK else GREY):
        return next(name for most, name in _GREYS if lightness < most)
    hue = np.degrees(np.arctan2(b, a)) % 360
    name = next(name for most, name in _HUES if hue <= most)
    if name in ("orange", "yellow") and lightness < 60:
        return "dark brown" if lightness < 30 else "brown"
    if name in ("orange", "yellow") and np.hypot(a, b) < PALE:
        return "tan"
    return f"dark {name}" if lightness < 30 else f"light {name}" if lightness > 75 else name


def main(colours: NDArray[np.float32]) -> NDArray[np.float32]:
    """[3] the mean of the bin that holds most of some colours [n, 3]. A median may be a colour that
    none of them is."""
    flat = np.ravel_multi_index(tuple(_bins(colours).T), (40, 40, 40))
    return colours[flat == np.bincount(flat).argmax()].mean(0)


def _small(picture: Image.Image) -> NDArray[np.float32]:
    """[n, 3] the colours of a picture, made small."""
    scale = min(1.0, SIDE / max(picture.size))
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return lab(np.asarray(picture.resize((width, height), Image.Resampling.BOX))).reshape(-1, 3)


def _colours(
    picture: Image.Image, mask: NDArray[np.bool_], box: tuple[int, int, int, int]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """[n, 3] the colours of a defect and [m, 3] of a band around it, about half as wide as it."""
    left, top, width, height = box
    band = max(3, round(0.5 * np.sqrt(mask.sum() / np.pi)))
    rows = slice(max(0, top - band), top + height + band)
    cols = slice(max(0, left - band), left + width + band)
    step = max(1, max(width, height) // SAMPLED)
    here = mask[rows, cols]
    distance = np.asarray(ndimage.distance_transform_edt(~here))
    near = np.asarray(picture)[rows, cols]
    found = near[::step, ::step], here[::step, ::step], distance[::step, ::step]
    pixels, inside, away = found if found[1].any() else (near, here, distance)
    # the border itself is neither: it is blurred in both
    beside = (away > (1 if band > 3 else 0)) & (away <= band)
    return lab(pixels[inside]), lab(pixels[beside])


def _bins(colours: NDArray[np.float32]) -> NDArray[np.intp]:
    """[n, 3] which bin each colour lies in; L*, a* and b* each have 40."""
    return np.clip((colours + np.array((32, 160, 160))) // BIN, 0, 39).astype(np.intp)


def _palette(colours: NDArray[np.float32]) -> NDArray[np.bool_]:
    """[40, 40, 40] True where a picture [n, 3] shows a colour of that bin, or of one next to it."""
    counts = np.zeros((40, 40, 40), np.int64)
    np.add.at(counts, tuple(_bins(colours).T), 1)
    shown = counts > SEEN * len(colours)
    for axis in range(3):  # the outermost bins hold no colour, so nothing comes round
        shown = shown | np.roll(shown, 1, axis) | np.roll(shown, -1, axis)
    return shown


def _unseen(colours: NDArray[np.float32], palette: NDArray[np.bool_]) -> float:
    return float((~palette[tuple(_bins(colours).T)]).mean()) if len(colours) else 0.0
