"""What AnomalyR1 was trained on: multiple-choice questions whose answer is a letter, in two lists.

    <root>/fewshot-ad-train.jsonl       {image, problem, solution} on every line
    <root>/fewshot-ad-val.jsonl
    <root>/few-shot-dataset/...         the pictures, which are MMAD's: so MMAD is no new product

`problem` names its options itself, and `solution` is the letter of the right one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ValidationError

from iad_r1.data import faults, folders
from iad_r1.errors import DataError
from iad_r1.rewards.case import read_letter
from iad_r1.settings.data import Folder, Trains, needed
from iad_r1.types import Question, Sample, Solution

SOURCE = (
    "The lists of AnomalyR1 are its authors' (licence not stated); the pictures are those of MMAD "
    "(jiang-cc/MMAD on the Hugging Face hub, CC BY-NC-SA 4.0). Unpack them so that the folder "
    "holds fewshot-ad-train.jsonl and few-shot-dataset/."
)
FOLDERS = ("AnomalyR1",)
LETTERS = {letter: letter for letter in "ABCDE"}


class Settings(Trains, Folder):
    """Where the lists lie. The other paths start from the root."""

    name: Literal["anomaly_r1"]
    root: Annotated[
        str, needed("folder that holds fewshot-ad-train.jsonl and few-shot-dataset/", SOURCE)
    ]
    images: str  # what the paths of pictures start from
    train: str
    validation: str | None

    tests: ClassVar[bool] = False


class Row(BaseModel):
    """A line of a list."""

    image: str
    problem: str
    solution: str


def read(settings: Settings, seed: int) -> Iterator[Sample]:
    """The lines of both lists, in their order."""
    root = folders.there(settings.root, SOURCE)
    for split, name in (("train", settings.train), ("validation", settings.validation)):
        with faults.of_one():
            if name is None:
                continue
            yield from _list(root / name, root / settings.images, split)


def _list(file: Path, images: Path, split: str) -> Iterator[Sample]:
    if not file.is_file():
        raise DataError(f"{file} is not there. {SOURCE}")
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            with faults.of_one():
                if line.strip():
                    yield _sample(line, images, split, number, f"{file}, line {number}")


def _sample(line: str, images: Path, split: str, number: int, where: str) -> Sample:
    try:
        row = Row.model_validate_json(line)
    except ValidationError as error:
        raise DataError(f"{where}: {folders.wrong(error)}") from None
    letter = read_letter(row.solution)
    if letter is None:
        raise DataError(f"{where}: the solution {row.solution!r} is no letter from A to E.")
    *above, _ = Path(row.image).parts
    return Sample(
        id=f"anomaly_r1/{split}/{number}",
        dataset="anomaly_r1",
        split=split,
        product=folders.words(" ".join(above[:2])) or "part",
        image=images / row.image,
        solution=Solution(letter),
        question=Question(row.problem, LETTERS, listed=True),
        where=where,
    )
