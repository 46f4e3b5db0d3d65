"""Near-duplicates among photographs, so that a picture cannot sit in two splits at once.

A picture's fingerprint is its perceptual hash: the signs of its 256 lowest spatial frequencies
against their median. Two frames of one scene differ in a few bits, other pictures in about 128.
Colour plays no part, and neither does a small defect: a part before and after damage is a pair.

On a plain surface these frequencies are so weak that saving a picture once more turns many signs.
There the signs of all other frequencies are compared too: the grain of surface and sensor. Two
pictures are twins where their grain agrees far more than that of either with any usual picture of
the product.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import fft, sparse
from scipy.sparse import csgraph

EDGE = 64  # pixels; pictures are hashed at this size
BITS = 256
PLAIN = 5.0  # grey levels: a surface whose middle frequency is weaker is plain
OUTLIER = 8.0  # standard deviations that the likeness of twins stands out
LEAST = 10  # plain pictures of a product; of fewer it is not known what is usual
_FINE = np.add.outer(np.arange(EDGE), np.arange(EDGE)) >= 8  # frequencies finer than shading
GRAIN = int(_FINE.sum())  # bits
_CELLS = 2**24  # pairs compared at once: memory stays below 200 MiB


def perceptual_hash(picture: Image.Image) -> NDArray[np.bool_]:
    """[256] bits of a picture in any mode and size."""
    return described(picture)[0]


def described(picture: Image.Image) -> tuple[NDArray[np.bool_], NDArray[np.bool_] | None]:
    """The perceptual hash [256] of a picture in any mode and size and, if it shows a plain surface,
    its grain [GRAIN]."""
    small = picture.convert("L").resize((EDGE, EDGE), Image.Resampling.LANCZOS, reducing_gap=3.0)
    frequencies = np.asarray(fft.dctn(np.asarray(small, np.float32), norm="ortho"))
    lowest = frequencies[:17, :16].ravel()[1 : BITS + 1]  # without the mean brightness
    middle = np.median(lowest)
    is_plain = np.median(np.abs(lowest - middle)) < PLAIN
    return lowest > middle, frequencies[_FINE] > 0 if is_plain else None


def twins(grain: NDArray[np.bool_]) -> sparse.csr_array:
    """[n, n] True where the grain [n, GRAIN] of two pictures of one product is the same; never on
    the diagonal.

    How alike the grain of different parts is scatters around a common value. A pair of twins lies
    `OUTLIER` standard deviations above, seen from both of its pictures.
    """
    n, bits = grain.shape
    if n < LEAST:
        return sparse.csr_array((n, n), dtype=np.bool_)
    least = np.empty(n, np.float32)  # the likeness that is an outlier, of every picture
    for rows in _blocks(n, n):
        likeness = _likeness(grain, rows)
        usual = np.median(likeness, axis=1)
        spread = 1.4826 * np.median(np.abs(likeness - usual[:, None]), axis=1)  # robust
        # no less than that of random bits
        least[rows] = usual + OUTLIER * np.maximum(spread, bits**-0.5)
    blocks = []
    for rows in _blocks(n, n):
        likeness = _likeness(grain, rows)
        alike = (likeness >= least[rows, None]) & (likeness >= least)
        alike[np.arange(len(alike)), np.arange(rows.start, rows.stop)] = False
        blocks.append(sparse.csr_array(alike))
    return sparse.csr_array(sparse.vstack(blocks))


def _likeness(grain: NDArray[np.bool_], rows: slice) -> NDArray[np.float32]:
    """The correlation of the grain of some pictures with that of all."""
    some = _signs(grain[rows])
    parts = [some @ _signs(grain[at : at + 4096]).T for at in range(0, len(grain), 4096)]
    return np.concatenate(parts, axis=1) / grain.shape[1]


def _signs(bits: NDArray[np.bool_]) -> NDArray[np.float32]:
    return np.where(bits, np.float32(1), np.float32(-1))


def _blocks(n: int, others: int) -> list[slice]:
    """Rows that are compared at once with all others."""
    step = max(1, _CELLS // max(1, others))
    return [slice(at, min(at + step, n)) for at in range(0, n, step)]


def near(
    bits: NDArray[np.bool_], limit: int, others: NDArray[np.bool_] | None = None
) -> sparse.csr_array:
    """[n, m] True where hashes [n, 256] and `others` [m, 256] differ in at most `limit` bits; among
    themselves where there are no others."""
    signs, against = _signs(bits), _signs(bits if others is None else others)
    if not len(signs):
        return sparse.csr_array((0, len(against)), dtype=np.bool_)
    blocks = [
        sparse.csr_array(signs[rows] @ against.T >= BITS - 2 * limit)
        for rows in _blocks(len(signs), len(against))
    ]
    # the dot product of two sign vectors is 256 - 2 * (bits that differ): exact in float32
    return sparse.csr_array(sparse.vstack(blocks))


def groups(alike: sparse.csr_array) -> NDArray[np.int32]:
    """[n] the group of every picture: chains of near-duplicates are one group."""
    return csgraph.connected_components(alike, directed=False)[1]
