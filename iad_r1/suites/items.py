"""Samples as the items of a task: what is shown and asked, what is right, and its pictures."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL.Image import Image

from iad_r1.data import images
from iad_r1.errors import DataError
from iad_r1.judge import mmad
from iad_r1.rollouts.prompting import conversation, shown
from iad_r1.types import Conversation, Sample

Pictures = Literal["linked", "inside"]


@dataclass(frozen=True)
class Asking:
    """The prompt of samples that have none of their own, and how many references are shown."""

    prompt: str
    shots: int


@dataclass(frozen=True)
class Item:
    """A sample to be asked. `pictures` are in the order of the places in `words.text`. `group` is
    what its accuracy is counted under: the column of MMAD's table, else which parts they are."""

    sample: Sample
    words: Conversation
    pictures: tuple[Sample, ...]
    group: str


def items(samples: Sequence[Sample], asking: Asking) -> Iterator[Item]:
    """The samples, each with its words and pictures. DataError if one lacks references."""
    for sample in samples:
        if len(sample.references) < asking.shots:
            raise DataError(
                f"{sample.where or sample.id} has {len(sample.references)} good pictures to be "
                f"shown with it, fewer than stage.shots={asking.shots}."
            )
        words = conversation(asking.prompt, sample, asking.shots)
        yield Item(sample, words, tuple(shown(sample, asking.shots)), _group(sample))


def text(words: Conversation) -> str:
    """The words without their places for pictures, the system turn first."""
    pieces = [words.system or "", *words.text.split("{image}")]
    return "\n".join(piece.strip() for piece in pieces if piece.strip())


def task_name(split: str) -> str:
    """What the task of a split is called: small letters, digits and underscores."""
    return "iad_r1_" + re.sub(r"[^0-9a-z]+", "_", split.lower()).strip("_")


def as_others_open_it(sample: Sample) -> Path | None:
    """The file of a sample, where `Image.open(file).convert("RGB")` gives what we show; None where
    the picture is a part of a file, drawn, turned by its camera, deeper than 8 bits, or so large
    that it is decoded smaller."""
    if not isinstance(sample.image, Path):
        return None
    with images.opened(sample.image, "image") as picture:
        plain = images.turn(picture) == 1 and not picture.mode.startswith(("I", "F"))
        return sample.image.absolute() if plain and images.smaller(picture) == 1 else None


def picture(sample: Sample) -> object:
    """What tells the picture of a sample from others: several questions may be about one."""
    return sample.id if isinstance(sample.image, Image) else sample.image


def _group(sample: Sample) -> str:
    subtask = sample.question.subtask
    if sample.question.options is None:
        return "defective" if sample.solution.answer == "Yes" else "good"
    if subtask != mmad.DETECTION:
        return subtask
    right = sample.question.options[sample.solution.answer]
    return mmad.ANOMALOUS if mmad.says_defective(right) else mmad.NORMAL


class Store:
    """Pictures that are written, each once, as PNG below a folder."""

    def __init__(self, folder: Path, pictures: Pictures) -> None:
        self.folder, self.pictures = folder, pictures
        self.found: dict[object, Path] = {}

    def path(self, sample: Sample) -> Path:
        """Where a picture lies: absolute, or in `folder` if it was written there."""
        if (key := picture(sample)) not in self.found:
            linked = as_others_open_it(sample) if self.pictures == "linked" else None
            self.found[key] = linked or self._written(sample)
        return self.found[key]

    def _written(self, sample: Sample) -> Path:
        path = self.folder / "images" / f"{len(self.found):06}.png"
        path.parent.mkdir(exist_ok=True)
        images.open_image(sample).save(path)
        return path
