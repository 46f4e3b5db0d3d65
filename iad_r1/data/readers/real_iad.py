"""Real-IAD: thirty objects from five views, read from its JSON files.

    <root>/realiad_jsons/[realiad_jsons/]audiojack.json
    <root>/realiad_1024/audiojack/NG/BX/S0123/audiojack_0123_NG_BX_C1_<time>.{jpg,png}

A view of a defective object that does not show the defect is labelled OK there, so labels come from
the JSON and never from folders. Masks are named by it, or lie beside the picture. Training pictures
are good ones only: it tests, and `train` holds the references.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from iad_r1.data import faults, folders
from iad_r1.errors import DataError
from iad_r1.settings.data import Folder, needed
from iad_r1.types import Mask, Sample, Solution

SOURCE = (
    "Real-IAD: Real-IAD/Real-IAD on the Hugging Face hub, on request (CC BY-NC-SA 4.0). Unpack it "
    "so that the folder holds realiad_jsons/ and realiad_1024/ (or _256, _512, _raw)."
)
FOLDERS = ("Real-IAD",)
KINDS = {
    "AK": "pit", "BX": "deformation", "CH": "abrasion", "HS": "scratch", "PS": "damage",
    "QS": "missing parts", "YW": "foreign objects", "ZW": "contamination",
}  # fmt: skip


class Settings(Folder):
    """Where Real-IAD lies, in which size, and which of its views."""

    name: Literal["real_iad"]
    root: Annotated[
        str, needed("folder of Real-IAD, which holds realiad_jsons/ and realiad_1024/", SOURCE)
    ]
    size: Literal["256", "512", "1024", "raw"]
    views: Literal["realiad_jsons", "realiad_jsons_sv"]


def read(settings: Settings, seed: int) -> Iterator[Sample]:
    """All views, object by object, in the order of the lists."""
    root = folders.there(settings.root, SOURCE)
    lists, pictures = root / settings.views, root / f"realiad_{settings.size}"
    nested = lists / lists.name
    files = sorted((nested if nested.is_dir() else lists).glob("*.json"))
    if not files:
        raise DataError(f"{lists} holds no <object>.json. {SOURCE}")
    if not pictures.is_dir():
        names = sorted(path.name for path in root.glob("realiad_*") if "json" not in path.name)
        raise DataError(
            f"{pictures} is not there; {root} holds {', '.join(names) or 'no pictures'}. Choose a "
            "size that is there (benchmark.real_iad.size=...), or unpack this one."
        )
    for file in files:
        with faults.of_one(str(file)):
            listed = folders.mapping(folders.read_json(file), str(file))
            for split in ("train", "test"):
                for index, row in enumerate(listed.get(split, ())):
                    where = f"{file}, {split} {index}"
                    with faults.of_one(where):
                        yield _sample(row, pictures / file.stem, file.stem, split, where)


def _sample(row: Any, folder: Path, product: str, split: str, where: str) -> Sample:
    row = folders.mapping(row, where)
    missing = [key for key in ("anomaly_class", "image_path", "mask_path") if key not in row]
    if missing:
        raise DataError(f"{where} has no {' and no '.join(missing)}.")
    kind, image = row["anomaly_class"], folder / row["image_path"]
    if kind != "OK" and kind not in KINDS:
        raise DataError(f"{where}: anomaly_class={kind!r} is none of OK, {', '.join(KINDS)}.")
    mask = _mask(image, folder, row["mask_path"], where) if kind != "OK" else None
    return Sample(
        id=f"real_iad/{product}/{row['image_path']}",
        dataset="real_iad",
        split=split,
        product=folders.words(product),
        image=image,
        solution=Solution("Yes", None, KINDS[kind]) if kind != "OK" else Solution("No"),
        mask=mask,
        where=where,
    )


def _mask(image: Path, folder: Path, named: str | None, where: str) -> Mask:
    beside = [image.with_suffix(".png"), image.with_name(f"{image.stem}_mask.png")]
    tried = [*([folder / named] if named else []), *beside]
    for path in tried:
        if path != image and path.is_file():
            return Mask((path,))
    raise DataError(f"{where}: the mask of {image.name} is not there. Looked for {tried[0]}.")
