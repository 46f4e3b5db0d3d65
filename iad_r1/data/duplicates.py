"""Near-duplicates among photographs, so that a picture cannot sit in two splits at once.

A picture's fingerprint is its perceptual hash: the signs of its 256 lowest spatial frequencies
against their median. Two frames of one scene differ in a few bits, other pictures in about 128.
Colour plays no part, and neither does a small defect: a part before and after damage is a pair.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import fft, sparse
from scipy.sparse import csgraph

EDGE = 64  # pixels; pictures are hashed at this size
BITS = 256
_BLOCK = 1024  # rows compared at once: memory stays in the megabytes


def perceptual_hash(picture: Image.Image) -> NDArray[np.bool_]:
    """[256] bits of a picture in any mode and size."""
    small = picture.convert("L").resize((EDGE, EDGE), Image.Resampling.LANCZOS, reducing_gap=3.0)
    frequencies = np.asarray(fft.dctn(np.asarray(small, np.float32), norm="ortho"))
    lowest = frequencies[:17, :16].ravel()[1 : BITS + 1]  # without the mean brightness
    return lowest > np.median(lowest)


def near(
    bits: NDArray[np.bool_], limit: int, others: NDArray[np.bool_] | None = None
) -> sparse.csr_array:
    """[n, m] True where hashes [n, 256] and `others` [m, 256] differ in at most `limit` bits; among
    themselves where there are no others."""
    signs, against = (
        np.where(hashes, 1, -1).astype(np.float32)
        for hashes in (bits, bits if others is None else others)
    )
    blocks = [
        sparse.csr_array(signs[at : at + _BLOCK] @ against.T >= BITS - 2 * limit)
        for at in range(0, len(signs), _BLOCK)
    ]
    # the dot product of two sign vectors is 256 - 2 * (bits that differ): exact in float32
    return sparse.csr_array(sparse.vstack(blocks))


def groups(alike: sparse.csr_array) -> NDArray[np.int32]:
    """[n] the group of every picture: chains of near-duplicates are one group."""
    return csgraph.connected_components(alike, directed=False)[1]
