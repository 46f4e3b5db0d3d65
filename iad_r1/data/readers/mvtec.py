"""MVTec AD as published, or as MMAD compiled it after Defect Spectrum (DS-MVTec).

    <root>/bottle/{train/good,test/good,test/broken_large}/000.png
    <root>/bottle/ground_truth/broken_large/000_mask.png

    <root>/bottle/image/{good,broken_large}/000.png             beside captions, 000.txt
    <root>/bottle/mask/broken_large/000_mask.png                or rgb_mask/, of `grid` rbg_mask/
    <root>/../MVTec-AD/bottle/train/good/000.png                the references, where they are there

Nothing in it teaches a defect, so it tests only; `train` holds the references.

In DS-MVTec 21 of the 26 pictures in pill/image/good show metal nuts. The published numbers of MMAD
and IAD-R1 hold them (`variant=published`, 465 good pictures); `variant=fixed` leaves them out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from iad_r1.data import folders
from iad_r1.errors import DataError
from iad_r1.settings.data import Folder, needed
from iad_r1.types import Sample

SOURCE = (
    "MVTec AD: mvtec.com/company/research/datasets/mvtec-ad (CC BY-NC-SA 4.0). Unpack it so that "
    "the folder holds bottle/, cable/ and so on. DS-MVTec is part of jiang-cc/MMAD on the hub."
)
FOLDERS = ("DS-MVTec", "MMAD/DS-MVTec", "mvtec_anomaly_detection", "MVTec-AD", "mvtec_ad", "MVTec")
WRONG_PILLS = frozenset(f"{number:03}" for number in range(21))
PILLS = 26  # good ones as published


class Settings(Folder):
    """Where MVTec AD lies."""

    name: Literal["mvtec"]
    root: Annotated[
        str, needed("folder of MVTec AD, which holds bottle/test/good/ and so on", SOURCE)
    ]
    variant: Literal["published", "fixed"]  # of DS-MVTec; MVTec AD itself has one

    def announce(self) -> str:
        """Which folder and variant."""
        return f"{super().announce()}, {self.variant}"


def read(settings: Settings, seed: int) -> Iterator[Sample]:
    """All pictures, category by category."""
    root = folders.there(settings.root, SOURCE)
    if not any((category / "image").is_dir() for category in folders.children(root)):
        yield from folders.layout(root, "mvtec")
        return
    for category in folders.children(root):
        yield from _compiled(root, category, settings.variant)
    yield from (
        sample
        for sample in folders.layout(root.parent / "MVTec-AD", "mvtec")
        if sample.split == "train"
    )


def _compiled(root: Path, category: Path, variant: str) -> Iterator[Sample]:
    masks = folders.Masks(next(iter(sorted(category.glob("*mask"))), category / "mask"))
    found = list(folders.kinds(root, "mvtec", category, category / "image", "test", masks))
    good = [sample for sample in found if sample.solution.answer == "No"]
    if variant == "fixed" and category.name == "pill" and len(good) == PILLS:
        left_out = {sample.id for sample in good if _name(sample) in WRONG_PILLS}
        if len(left_out) != len(WRONG_PILLS):
            raise DataError(
                f"{category}/image/good: {len(WRONG_PILLS)} pictures of metal nuts were expected "
                "at 000 to 020. Use benchmark.mvtec.variant=published."
            )
        found = [sample for sample in found if sample.id not in left_out]
    masks.check(spare=True)
    yield from found


def _name(sample: Sample) -> str:
    return Path(sample.id).stem
