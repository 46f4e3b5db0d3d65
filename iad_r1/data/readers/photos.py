"""A user's own photographs: labels, types and masks from a folder (`iad_r1.data.folders`).

The pictures marked `train` serve PA-SFT and SC-GRPO alike, for such sets are small; a share of
them is kept apart for validation. Those marked `test` are never trained on. What is true of a
picture comes from its label and mask, never from its name.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from iad_r1.data import duplicates, folders, images
from iad_r1.data.folders import Row
from iad_r1.errors import DataError
from iad_r1.grid import Grid, Rule, cells_from_mask, describe
from iad_r1.settings.data import PhotosConfig
from iad_r1.types import Dataset, Sample, Solution

REFERENCES_PER_SAMPLE = 4
SPLIT_NAME = "seen"  # every product of the test part is trained on

Part = str  # train, validation, test, or dropped
Stratum = tuple[str, bool]  # product, defective


@dataclass(frozen=True)
class Photo:
    """A row whose files were opened and found sound."""

    row: Row
    location: str | None
    bits: NDArray[np.bool_]  # perceptual hash
    image_digest: str
    mask_digest: str | None

    @property
    def stratum(self) -> Stratum:
        return self.row.product, self.row.defective


def load(config: PhotosConfig, grid: Grid, location_rule: Rule, seed: int) -> Dataset:
    """Read, check and split a folder; every picture and mask is decoded once.

    Raises DataError naming the row or file that is wrong, or the part that would lack good or
    defective pictures.
    """
    root = Path(config.root)
    photos = [inspect(row, grid, location_rule) for row in folders.read(root)]
    _check_identical(photos)
    _check_parts([photo.row.split for photo in photos], photos, ("train", "test"))
    alike = duplicates.near(np.stack([photo.bits for photo in photos]), config.near_duplicate_bits)
    groups = duplicates.groups(alike)
    leaks = _leaks(photos, alike)
    parts = _parts(photos, groups, leaks if config.drop_leaks else set(), config, seed)
    _check_parts(parts, photos, ("train", "validation"))
    samples = _Samples(root, photos, groups, parts, seed)
    train = samples.of("train")
    return Dataset(
        name=samples.dataset,
        fingerprint=_fingerprint(config, seed, photos),
        sft=train,
        rl=train,
        validation={SPLIT_NAME: samples.of("validation")},
        test={SPLIT_NAME: samples.of("test")},
        counts=_counts(photos, parts, groups, leaks),
    )


# --- reading -----------------------------------------------------------------------------------


def inspect(row: Row, grid: Grid, rule: Rule) -> Photo:
    """Open the files of one row. Raises DataError if one is missing, broken or contradictory."""
    try:
        bits = duplicates.perceptual_hash(images.upright(row.image))
        location = _location(row, row.mask, grid, rule) if row.mask is not None else None
    except DataError as error:
        raise DataError(f"{row.where}: {error}") from error
    return Photo(row, location, bits, _digest(row.image), row.mask and _digest(row.mask))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _location(row: Row, mask: Path, grid: Grid, rule: Rule) -> str | None:
    with images.opened(row.image, "image") as picture:
        values = images.defective(images.turned(images.read(mask, "mask"), picture, mask))
    if row.defective and not values.any():
        raise DataError(
            f"{mask}: this mask is empty, but its picture is labelled defective. Leave the mask "
            "out if the place is not known."
        )
    if not row.defective and values.any():
        raise DataError(f"{mask}: this mask marks a defect, but its picture is labelled good.")
    return describe(cells_from_mask(values, grid, rule), grid) or None


# --- splitting ---------------------------------------------------------------------------------


def _leaks(photos: Sequence[Photo], alike: sparse.csr_array) -> set[int]:
    """Training pictures that are near-duplicates of a test picture."""
    train = np.flatnonzero([photo.row.split == "train" for photo in photos])
    test = np.flatnonzero([photo.row.split == "test" for photo in photos])
    return set(train[np.asarray(alike[train][:, test].sum(axis=1)).ravel() > 0].tolist())


def _parts(
    photos: Sequence[Photo],
    groups: NDArray[np.int32],
    dropped: set[int],
    config: PhotosConfig,
    seed: int,
) -> list[Part]:
    """The part of every picture; `dropped` are left out of training and validation."""
    rest = [i for i, photo in enumerate(photos) if photo.row.split == "train" and i not in dropped]
    kept_apart = carve(
        [int(groups[i]) for i in rest],
        [photos[i].stratum for i in rest],
        config.validation_share,
        seed,
    )
    validation = {i for i, apart in zip(rest, kept_apart, strict=True) if apart}
    return [
        "dropped" if i in dropped else "validation" if i in validation else photo.row.split
        for i, photo in enumerate(photos)
    ]


def carve(groups: Sequence[int], strata: Sequence[Stratum], share: float, seed: int) -> list[bool]:
    """Which pictures go to validation: about `share` of every stratum, and whole groups only.

    Groups come in an order drawn from `seed`; one that would overfill a stratum stays. A stratum
    of at least two pictures asks for at least one; one whose groups are all too large gets none.
    """
    sizes = Counter(strata)
    wanted = {s: max(1, round(share * n)) if n > 1 else 0 for s, n in sizes.items()}
    members: dict[int, Counter[Stratum]] = {}
    for group, stratum in zip(groups, strata, strict=True):
        members.setdefault(group, Counter())[stratum] += 1
    order = sorted(members)
    random.Random(f"validation/{seed}").shuffle(order)
    taken: Counter[Stratum] = Counter()
    chosen: set[int] = set()
    for group in order:
        if all(taken[s] + n <= wanted[s] for s, n in members[group].items()):
            taken += members[group]
            chosen.add(group)
    return [group in chosen for group in groups]


# --- samples -----------------------------------------------------------------------------------


class _Samples:
    """Turns photos into samples with references of their own product."""

    def __init__(
        self,
        root: Path,
        photos: Sequence[Photo],
        groups: NDArray[np.int32],
        parts: Sequence[Part],
        seed: int,
    ) -> None:
        self.root, self.photos, self.groups, self.parts = root, photos, groups, parts
        self.seed, self.dataset = seed, root.resolve().name
        self.pools: dict[str, list[int]] = {}
        for i, photo in enumerate(photos):
            if parts[i] == "train" and not photo.row.defective:
                self.pools.setdefault(photo.row.product, []).append(i)

    def of(self, part: Part) -> tuple[Sample, ...]:
        """The samples of one part, mixed: any prefix holds what the whole holds, roughly."""
        found = [self.sample(i) for i, p in enumerate(self.parts) if p == part]
        return tuple(sorted(found, key=lambda s: hashlib.sha256(s.id.encode()).hexdigest()))

    def sample(self, index: int) -> Sample:
        bare = self.bare(index)
        references = tuple(self.bare(i) for i in self.references(index, bare.id))
        return replace(bare, references=references)

    def references(self, index: int, name: str) -> list[int]:
        """Normal training pictures of the product: never the picture itself, and none of its
        near-duplicates as long as there are others."""
        photo = self.photos[index]
        others = [i for i in self.pools.get(photo.row.product, ()) if i != index]
        fresh = [i for i in others if self.groups[i] != self.groups[index]] or others
        if not fresh:
            raise DataError(
                f"{photo.row.where}: {photo.row.product!r} has no (other) good picture in its "
                "training part, so there is nothing to compare this one with. Add good pictures "
                "of it with split=train, or lower data.validation_share."
            )
        stream = random.Random(f"references/{self.seed}/{name}")
        return stream.sample(fresh, min(REFERENCES_PER_SAMPLE, len(fresh)))

    def bare(self, index: int) -> Sample:
        """A sample without references."""
        photo, part = self.photos[index], self.parts[index]
        row = photo.row
        solution = Solution("Yes", photo.location, row.type) if row.defective else Solution("No")
        return Sample(
            id=f"{self.dataset}/{_relative(row.image, self.root)}",
            dataset=self.dataset,
            split=part if part == "train" else f"{part}.{SPLIT_NAME}",
            product=row.product,
            image=row.image,
            solution=solution,
            mask=row.mask if row.defective else None,
        )


def _relative(path: Path, root: Path) -> str:
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


# --- checks and counts -------------------------------------------------------------------------

_TOO_FEW = {
    "train": "Training needs both. Mark pictures with split=train (or put them into "
    "<product>/train/<defect>/).",
    "test": "The test needs both. Mark pictures with split=test (or put them into "
    "<product>/test/<defect>/).",
    "validation": "There are too few to keep some apart, or most are near-duplicates of one "
    "another. Add pictures, raise data.validation_share or lower data.near_duplicate_bits.",
}


def _check_parts(parts: Sequence[Part], photos: Sequence[Photo], names: Sequence[Part]) -> None:
    """Every part in `names` holds good and defective pictures."""
    for name in names:
        found = {photo.row.defective for p, photo in zip(parts, photos, strict=True) if p == name}
        missing = [word for word, label in (("good", False), ("defective", True))
                   if label not in found]  # fmt: skip
        if missing:
            raise DataError(
                f"The {name} part of the folder holds no {' and no '.join(missing)} pictures. "
                f"{_TOO_FEW[name]}"
            )


def _check_identical(photos: Sequence[Photo]) -> None:
    """The same picture cannot be good in one place and defective in another."""
    first: dict[str, Photo] = {}
    for photo in photos:
        twin = first.setdefault(photo.image_digest, photo)
        if twin.row.defective != photo.row.defective:
            raise DataError(
                f"{photo.row.where}: the same picture as in {twin.row.where}, but with the other "
                "label. Correct one of them."
            )


def _counts(
    photos: Sequence[Photo], parts: Sequence[Part], groups: NDArray[np.int32], leaks: set[int]
) -> Mapping[str, int]:
    sizes = Counter(groups.tolist())
    counts = {"read": len(photos)}
    for part in ("train", "validation", "test"):
        of_part = [photo for p, photo in zip(parts, photos, strict=True) if p == part]
        anomalous = [photo for photo in of_part if photo.row.defective]
        counts[f"{part}_normal"] = len(of_part) - len(anomalous)
        counts[f"{part}_anomalous"] = len(anomalous)
        counts[f"{part}_without_mask"] = sum(photo.location is None for photo in anomalous)
        counts[f"{part}_untyped"] = sum(photo.row.type is None for photo in anomalous)
    return counts | {
        "near_duplicates": sum(size for size in sizes.values() if size > 1),
        "leaks": len(leaks),
        "leaks_dropped": parts.count("dropped"),
    }


def _fingerprint(config: PhotosConfig, seed: int, photos: Sequence[Photo]) -> str:
    """Equal exactly when pictures, annotations, settings and seed are; wherever the folder is."""
    rows = [
        [p.image_digest, p.mask_digest, p.row.product, p.row.split, p.row.defective, p.row.type]
        for p in photos
    ]
    facts = [config.model_dump(mode="json", exclude={"root"}), seed, rows]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
