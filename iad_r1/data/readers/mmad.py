"""MMAD: multiple-choice questions of seven subtasks about pictures of four data sets.

    <root>/mmad.json                  picture to {conversation, mask_path, random_templates, ...}
    <root>/domain_knowledge.json      optional: what is known of every product, to be put before
    <root>/{DS-MVTec,MVTec-LOCO,VisA,GoodsAD}/...
    <root>/MVTec-AD/bottle/train/good/000.png, ...          references

A picture has several questions, and each is a sample. The key of a question is its answer: nothing
is read from a path but the names of set and product. Whether a picture is defective is what the
right option of its question of anomaly detection says.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from iad_r1.data import faults, folders
from iad_r1.errors import DataError
from iad_r1.settings.data import Folder, needed
from iad_r1.types import Mask, Question, Sample, Solution

SOURCE = (
    "MMAD: jiang-cc/MMAD on the Hugging Face hub (CC BY-NC-SA 4.0), ALL_DATA.zip, mmad.json and "
    "domain_knowledge.json. Unpack it so that the folder holds mmad.json and DS-MVTec/."
)
FOLDERS = ("MMAD", ".")  # or its folders as they are
# in the papers' tables
MERGED = {"Object Structure": "Object Analysis", "Object Details": "Object Analysis"}
KNOWN_AS = {"DS-MVTec": "MVTec"}  # in domain_knowledge.json

Subset = Literal["DS-MVTec", "MVTec-LOCO", "VisA", "GoodsAD"]


class Settings(Folder):
    """Where MMAD lies, and how its questions are asked."""

    name: Literal["mmad"]
    root: Annotated[str, needed("folder of MMAD, which holds mmad.json and DS-MVTec/", SOURCE)]
    subsets: Annotated[list[Subset], Field(min_length=1)]
    templates: Literal["random", "similar"]
    knowledge: bool
    order: Literal["listed", "drawn"]
    prompt: str  # a name from iad_r1/prompts.py


class Turn(BaseModel):
    """A question as it is written."""

    Question: str
    Answer: str
    Options: dict[str, str]
    type: Literal[
        "Anomaly Detection", "Defect Classification", "Defect Localization", "Defect Description",
        "Defect Analysis", "Object Classification", "Object Analysis", "Object Structure",
        "Object Details",
    ]  # fmt: skip


class Entry(BaseModel):
    """What mmad.json says of a picture."""

    turns: list[Turn]
    mask_path: str | None = None
    similar_templates: list[str] = []
    random_templates: list[str] = []


def read(settings: Settings, seed: int) -> Iterator[Sample]:
    """All questions about the chosen sets, in the order of mmad.json; a set is a split."""
    root = folders.there(settings.root, SOURCE)
    file, knowledge_file = root / "mmad.json", root / "domain_knowledge.json"
    listed = folders.read_json(file, SOURCE)
    known = folders.read_json(knowledge_file, SOURCE) if settings.knowledge else {}
    for path, row in folders.mapping(listed, str(file)).items():
        with faults.of_one(f"{file}, {path}"):
            yield from _of_picture(settings, seed, root, file, path, row, known)


def _of_picture(
    settings: Settings,
    seed: int,
    root: Path,
    file: Path,
    path: str,
    row: Any,
    known: Mapping[str, Any],
) -> list[Sample]:
    """The questions about a picture; none if its set was not chosen."""
    subset, product, *below = (*Path(path).parts, "", "")
    if not any(below):
        raise DataError(f"{file}: {path!r} is no <set>/<product>/.../<picture>.")
    if subset not in settings.subsets:
        return []
    entry = _entry(row, f"{file}, {path}")
    knowledge = _knowledge(known, subset, product) if settings.knowledge else None
    templates = (
        entry.random_templates if settings.templates == "random" else entry.similar_templates
    )
    references = _references(root, subset, product, templates)
    mask = _mask(root, path, entry.mask_path)

    def asked(numbered: tuple[int, Turn]) -> Sample:
        index, turn = numbered
        where = f"{file}, {path}, question {index}"
        if settings.order == "drawn":
            turn = _drawn(turn, f"{seed}/{path}#{index}")
        try:
            return Sample(
                id=f"mmad/{path}#{index}",
                dataset=subset,
                split=f"test.{subset}",
                product=folders.words(product),
                image=root / path,
                solution=Solution(turn.Answer),
                mask=mask,
                references=references,
                question=Question(
                    turn.Question,
                    turn.Options,
                    knowledge=knowledge,
                    subtask=MERGED.get(turn.type, turn.type),
                    prompt=settings.prompt,
                ),
                where=where,
            )
        except ValueError as error:
            raise DataError(f"{where}: {error}.") from None

    return faults.every(asked, enumerate(entry.turns))


def _entry(row: Any, where: str) -> Entry:
    """The questions are under every key that begins with "conversation"."""
    row = folders.mapping(row, where)
    told = [row[key] for key in row if key.startswith("conversation")]
    turns = [turn for of in told for turn in (of if isinstance(of, list) else [of])]
    try:
        return Entry.model_validate({**row, "turns": turns})
    except ValidationError as error:
        raise DataError(f"{where}: {folders.wrong(error)}") from None


def _drawn(turn: Turn, stream: str) -> Turn:
    """The question with the texts of its options under other letters."""
    texts = list(turn.Options.items())
    random.Random(f"options/{stream}").shuffle(texts)
    letters = dict(zip(sorted(turn.Options), texts, strict=True))
    return Turn(
        Question=turn.Question,
        Answer=next((new for new, (old, _) in letters.items() if old == turn.Answer), turn.Answer),
        Options={new: text for new, (_, text) in letters.items()},
        type=turn.type,
    )


def _knowledge(known: Mapping[str, Any], subset: str, product: str) -> str:
    """All that is known of a product, a line each, as MMAD shows it."""
    name = KNOWN_AS.get(subset, subset)
    try:
        return "\n".join(known[name][product].values())
    except KeyError:
        raise DataError(
            f"domain_knowledge.json says nothing of {name}, {product}. Use "
            "benchmark.mmad.knowledge=false."
        ) from None


def _references(
    root: Path, subset: str, product: str, templates: Sequence[str]
) -> tuple[Sample, ...]:
    """The good pictures that are shown with one, as far as they are there: of those behind a
    missing one none would be the k-th."""
    there = takewhile(lambda path: (root / path).is_file(), templates)
    return tuple(
        Sample(f"mmad/{path}", subset, "train", folders.words(product), root / path, Solution("No"))
        for path in there
    )


def _mask(root: Path, path: str, named: str | None) -> Mask | None:
    """The mask of a picture. Its path starts from set and product, or from the folder in them."""
    if not named:
        return None
    parts = Path(path).parts
    tried = (root.joinpath(*parts[:n], named) for n in (2, 3))
    return next((Mask((file,)) for file in tried if file.is_file()), None)
