"""Which pictures texts are written about, which of the two lists each is in, and which good picture
it is compared with."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from iad_r1.data import mix
from iad_r1.data.readers.expert_ad import VIEW
from iad_r1.expert.teachers import Rejection
from iad_r1.types import Sample

List = Literal["sft", "grpo"]
LISTS: tuple[List, ...] = ("sft", "grpo")
# a picture, good ones, and how many of these to choose
Nearest = Callable[[Sample, Sequence[Sample], int], Sequence[Sample]]


@dataclass(frozen=True)
class Candidate:
    """A picture that a list may hold. Those of a `group` are near-duplicates of one another, or
    show the same object."""

    sample: Sample
    list: List
    group: int

    @property
    def stratum(self) -> tuple[Any, ...]:
        """What is alike in every part of a list: list, product, label and type."""
        solution = self.sample.solution
        return self.list, self.sample.product, solution.answer, solution.type or ""


def candidates(
    samples: Sequence[Sample], groups: Sequence[int], share: float, seed: int
) -> tuple[list[Candidate], dict[str, Rejection]]:
    """The list of every picture: as its data set says, else drawn, about `share` of every product
    and label for SC-GRPO, and whole groups. No group is in both lists: where a data set itself has
    put one into both, it stays in that of PA-SFT."""
    groups = together(samples, groups)
    loose = [i for i, sample in enumerate(samples) if sample.split == "train"]
    moved = mix.carve(
        [groups[i] for i in loose],
        [(samples[i].product, samples[i].solution.answer == "Yes") for i in loose],
        share,
        f"grpo/{seed}",
    )
    taken = {i for i, apart in zip(loose, moved, strict=True) if apart}
    found: list[Candidate] = []
    for i, sample in enumerate(samples):
        learns = sample.split == "rl" or i in taken
        found.append(Candidate(sample, "grpo" if learns else "sft", groups[i]))
    shown = {one.group for one in found if one.list == "sft"}
    both = {
        one.sample.id: Rejection("in both lists", "it is in PA-SFT, or nearly equals one there")
        for one in found
        if one.list == "grpo" and one.group in shown
    }
    return [one for one in found if one.sample.id not in both], both


def together(samples: Sequence[Sample], groups: Sequence[int]) -> list[int]:
    """Groups, joined where they show views of the same object, by the names of Real-IAD."""
    objects: dict[str, int] = {}
    pairs: list[tuple[int, int]] = []
    for sample, group in zip(samples, groups, strict=True):
        if name := view_of(sample)[0]:
            pairs.append((group, objects.setdefault(name, group)))
    n = max(groups, default=-1) + 1
    first, second = np.array(pairs, np.intp).reshape(-1, 2).T
    edges = sparse.csr_array((np.ones(len(pairs), np.int8), (first, second)), shape=(n, n))
    joined = csgraph.connected_components(edges, directed=False)[1] if n else []
    return [int(joined[group]) for group in groups]


def view_of(sample: Sample) -> tuple[str | None, str | None]:
    """The object that a picture shows and the camera, where its name is as in Real-IAD's."""
    named = VIEW.match(sample.image.name) if isinstance(sample.image, Path) else None
    return (named["object"], named["camera"]) if named else (None, None)


def spread(found: Iterable[Candidate], seed: int) -> list[Candidate]:
    """In an order of which every beginning holds about the same share of every stratum, so that
    shorter ones are parts of longer ones. It does not depend on the order that they come in."""
    strata: dict[tuple[Any, ...], list[Candidate]] = {}
    for one in found:
        strata.setdefault(one.stratum, []).append(one)
    ranked: list[tuple[float, str, Candidate]] = []
    for members in strata.values():
        members.sort(key=lambda one: _drawn(one, seed))
        # the first of a small stratum does not always come before the first of a large one
        offset = int(_drawn(members[0], seed)[:8], 16) / 2**32
        for rank, one in enumerate(members):
            ranked.append(((rank + offset) / len(members), _drawn(one, seed), one))
    return [one for *_, one in sorted(ranked, key=lambda row: row[:2])]


def _drawn(one: Candidate, seed: int) -> str:
    return hashlib.sha256(f"order/{seed}/{one.sample.id}".encode()).hexdigest()


# --- references ----------------------------------------------------------------------------------


class References:
    """The good pictures that others are compared with: of the same list, product and camera, or
    those that the data set gives.

    Args:
        given: by id, the references of a sample that come from its data set.
        nearest: ranks good pictures by how alike they are.
    """

    def __init__(
        self,
        found: Iterable[Candidate],
        given: Mapping[str, Sequence[Sample]],
        nearest: Nearest,
    ) -> None:
        self.given, self.nearest = given, nearest
        self.good: dict[tuple[str, str, str | None], list[Candidate]] = {}
        for one in found:
            if one.sample.solution.answer == "No":
                self.good.setdefault(self._key(one), []).append(one)

    def _key(self, one: Candidate) -> tuple[str, str, str | None]:
        return one.list, one.sample.product, view_of(one.sample)[1]

    def find(self, one: Candidate) -> Sample | None:
        """The most alike good picture, none of its own group; None: there is none."""
        return next(iter(self.nearest(one.sample, self.others(one), 1)), None)

    def others(self, one: Candidate) -> list[Sample]:
        """The good pictures that it may be compared with."""
        if given := self.given.get(one.sample.id):
            return list(given)
        pool = self.good.get(self._key(one), ())
        return [other.sample for other in pool if other.group != one.group]


def unfit(sample: Sample) -> Rejection | None:
    """Why nothing can be written about a picture, by what is known of it."""
    solution = sample.solution
    if sample.question.options is not None:
        return Rejection("question", "it has options, and is not answered by yes or no")
    if solution.answer == "Yes" and (sample.mask is None or solution.location is None):
        return Rejection("no mask", "where the defect lies is not known")
    if solution.answer == "Yes" and solution.type is None:
        return Rejection("no type", "of which type the defect is, is not known")
    return None
