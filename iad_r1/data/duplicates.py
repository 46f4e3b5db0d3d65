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

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import fft, sparse

EDGE = 64  # pixels; pictures are hashed at this size
BITS = 256
PLAIN = 5.0  # grey levels: a surface whose middle frequency is weaker is plain
OUTLIER = 8.0  # standard deviations that the likeness of twins stands out
LEAST = 10  # plain pictures of a product; of fewer it is not known what is usual
_FINE = np.add.outer(np.arange(EDGE), np.arange(EDGE)) >= 8  # frequencies finer than shading
GRAIN = int(_FINE.sum())  # bits
_CELLS = 2**24  # pairs compared at once: memory stays below 200 MiB


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
    found = []  # pairs that are one for their first picture, and their likeness
    for rows in _blocks(n):
        likeness = _likeness(grain, rows)
        usual = np.median(likeness, axis=1)
        spread = 1.4826 * np.median(np.abs(likeness - usual[:, None]), axis=1)  # robust
        # no less than that of random bits
        least[rows] = usual + OUTLIER * np.maximum(spread, bits**-0.5)
        first, second = np.nonzero(likeness >= least[rows, None])
        found.append((first + rows.start, second, likeness[first, second]))
    first, second, likeness = (np.concatenate(column) for column in zip(*found, strict=True))
    alike = (likeness >= least[second]) & (first != second)
    return pairs(first[alike], second[alike], n)


def pairs(
    first: NDArray[np.intp] | list[int], second: NDArray[np.intp] | list[int], n: int
) -> sparse.csr_array:
    """[n, n] True where two pictures are a pair."""
    true = np.ones(len(first), np.bool_)
    return sparse.csr_array((true, (first, second)), shape=(n, n))


def _likeness(grain: NDArray[np.bool_], rows: slice) -> NDArray[np.float32]:
    """The correlation of the grain of some pictures with that of all."""
    some = _signs(grain[rows])
    parts = [some @ _signs(grain[at : at + 4096]).T for at in range(0, len(grain), 4096)]
    return np.concatenate(parts, axis=1) / grain.shape[1]


def _signs(bits: NDArray[np.bool_]) -> NDArray[np.float32]:
    return np.where(bits, np.float32(1), np.float32(-1))


def _blocks(n: int) -> list[slice]:
    """Rows that are compared at once with all others."""
    step = max(1, _CELLS // n)
    return [slice(at, min(at + step, n)) for at in range(0, n, step)]


def near(
    bits: NDArray[np.bool_], others: NDArray[np.bool_], limit: int, twins: sparse.csr_array
) -> Iterator[NDArray[np.intp]]:
    """Of every picture the numbers of those that nearly equal it: hashes [n, 256] and `others`
    [m, 256] differ in at most `limit` bits, or they are `twins` [n, m]."""
    words = _words(others)
    for i, one in enumerate(_words(bits).T):
        alike, row = _alike(words, one, limit), _row(twins, i)
        yield np.union1d(alike, row) if len(row) else alike


def groups(bits: NDArray[np.bool_], limit: int, twins: sparse.csr_array) -> NDArray[np.int32]:
    """[n] the group of every picture, numbered by their first pictures: chains of those that are
    near one another, by their hashes [n, 256] or as `twins` [n, n], are one group.

    Nothing is held of a pair. What has a group is compared with nothing more.
    """
    words = _words(bits)
    found = np.full(len(bits), -1, np.int32)
    left, words_left = np.arange(len(bits)), words  # those without a group, and some others
    alone, number = len(bits), 0  # how many have no group
    for first in range(len(bits)):
        if found[first] >= 0:
            continue
        waiting = [first]
        while waiting:
            one = waiting.pop()
            near = left[_alike(words_left, words[:, one], limit)]
            if len(row := _row(twins, one)):
                near = np.union1d(near, row)
            near = near[found[near] < 0]
            found[near] = number
            waiting += near.tolist()
            alone -= len(near)
            if 2 * alone < len(left):
                kept = found[left] < 0
                left, words_left = left[kept], words_left[:, kept]
        number += 1
    return found


def _words(bits: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Hashes [n, 256] as numbers [4, n]."""
    return np.ascontiguousarray(np.packbits(bits, axis=1).view(np.uint64).T)


def _alike(words: NDArray[np.uint64], one: NDArray[np.uint64], limit: int) -> NDArray[np.intp]:
    """Which of hashes [4, n] differ from one [4] in at most `limit` bits. Few do so in a quarter of
    their bits: the others are not looked at further."""
    some = np.flatnonzero(np.bitwise_count(words[0] ^ one[0]) <= limit)
    differ = np.bitwise_count(words[:, some] ^ one[:, None]).sum(axis=0, dtype=np.uint16)
    return some[differ <= limit]


def _row(twins: sparse.csr_array, i: int) -> NDArray[np.signedinteger]:
    return twins.indices[twins.indptr[i] : twins.indptr[i + 1]]
