"""The pictures of a report: chosen once, so every stage and every run is seen on the same ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from iad_r1.data import images
from iad_r1.errors import DataError
from iad_r1.report import overlay
from iad_r1.store.run_folder import write_text
from iad_r1.types import Sample

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

LIST = "gallery.jsonl"
FOLDER = Path("figures") / "samples"
_HEAT = ".heat.png"
PER_SPLIT = 24  # pictures kept for the report
LONGEST_SIDE = 384  # pixels; a larger picture is stored smaller, a smaller one as it is
JPEG_QUALITY = 88
T = TypeVar("T")


def save(run_folder: Path, samples: Sequence[Sample], limit_per_split: int = PER_SPLIT) -> Path:
    """Store a fixed, product-diverse choice of `samples` for the report; returns `gallery.jsonl`.

    One line per picture: {id, product, split, image, mask}, paths relative to the run folder,
    `mask` null where there is none. The choice depends on the samples' ids, products and labels
    alone, so calling it again for another stage changes nothing. Splits that `samples` does not
    mention keep their pictures.
    """
    folder = Path(run_folder)
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    splits = dict.fromkeys(sample.split for sample in samples)
    rows = [row for row in read(folder) if row["split"] not in splits]
    for split in splits:
        of_split = [sample for sample in samples if sample.split == split]
        rows += [_store(folder, sample) for sample in choose(of_split, limit_per_split)]
    return write_text(folder / LIST, "".join(json.dumps(row) + "\n" for row in rows))


def keep_heat(run_folder: Path, sample: Sample, heat: NDArray[np.floating]) -> None:
    """Store the heat map of a picture beside it, if it is one of those that `save` stored."""
    image = Path(run_folder) / _image_of(sample)
    if image.is_file():
        overlay.heat_layer(heat).save(image.with_suffix(_HEAT))


def heat_of(run_folder: Path, row: Mapping[str, Any]) -> str | None:
    """The heat map of a row of `gallery.jsonl`, relative to the run folder; None without one."""
    heat = Path(row["image"]).with_suffix(_HEAT)
    return heat.as_posix() if (Path(run_folder) / heat).is_file() else None


def read(run_folder: Path) -> list[dict[str, Any]]:
    """The rows of `gallery.jsonl`; empty when nothing was stored. DataError if it is broken."""
    path = Path(run_folder) / LIST
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    try:
        rows = [json.loads(line) for line in lines]
        return [{key: row[key] for key in ("id", "product", "split", "image", "mask")}
                for row in rows]  # fmt: skip
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is broken ({error!r}). Delete it and evaluate again to write it anew."
        ) from error


def choose(samples: Sequence[Sample], limit: int) -> list[Sample]:
    """At most `limit` samples: products in turn, anomalous and normal in turn within each.

    The order inside a product is by a hash of the id, so it follows neither file names nor the
    order of `samples`.
    """
    products: dict[str, dict[str, list[Sample]]] = {}
    for sample in sorted(samples, key=lambda sample: (_digest(sample), sample.id)):
        kinds = products.setdefault(sample.product, {})
        kinds.setdefault(sample.solution.answer, []).append(sample)
    queues = [  # "Yes" begins
        in_turn(kinds[answer] for answer in sorted(kinds, reverse=True))
        for _, kinds in sorted(products.items())
    ]
    return list(islice(in_turn(queues), limit))


def in_turn(queues: Iterable[Iterable[T]]) -> Iterator[T]:
    """The first of each, then the second of each, and so on; an empty one leaves its turn."""
    return (item for turn in zip_longest(*queues) for item in turn if item is not None)


def _digest(sample: Sample) -> str:
    return hashlib.sha256(sample.id.encode()).hexdigest()


def _image_of(sample: Sample) -> Path:
    return FOLDER / f"{_digest(sample)[:16]}.jpg"


def _store(folder: Path, sample: Sample) -> dict[str, Any]:
    """Write the picture and its mask under a name that does not tell the label."""
    image = _image_of(sample)
    picture = _shrunk(images.open_image(sample))
    picture.save(folder / image, format="JPEG", quality=JPEG_QUALITY)
    mask, defective = None, images.open_mask(sample)
    if defective is not None:
        mask = image.with_suffix(".mask.png")
        _mask(defective, picture.size).save(folder / mask)
    return {
        "id": sample.id,
        "product": sample.product,
        "split": sample.split,
        "image": image.as_posix(),
        "mask": None if mask is None else mask.as_posix(),
    }


def _mask(defective: NDArray[np.bool_], size: tuple[int, int]) -> Image:
    """Defective as white. A pixel is white if any part of it is defective, so a thin defect does
    not vanish when the picture shrinks."""
    from PIL import Image as images

    binary = images.fromarray(defective.astype("uint8") * 255)
    smooth = binary.resize(size, images.Resampling.BOX)
    return smooth.point([0] + [255] * 255)


def _shrunk(picture: Image) -> Image:
    scale = LONGEST_SIDE / max(picture.size)
    if scale >= 1:
        return picture
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture.resize((width, height))
