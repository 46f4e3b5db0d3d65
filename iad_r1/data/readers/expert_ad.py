"""Expert-AD, what IAD-R1 was trained on: questions about views of Real-IAD, in two lists.

    <root>/PA-SFT/Expert_AD_Stage_1.json     [{images, messages}]
    <root>/SC-GRPO/Expert_AD_Stage_2.json    [{id, image, problem, solution}]

PA-SFT learns the answer of the assistant word for word, its reasoning too. Of SC-GRPO the tags of
`solution` alone are known: the answer, and of a defect its location and type. `images` and `image`
name one picture, or a good one and then the one in question: such an item is always shown with its
reference in training. The words around the pictures are those of the prompt. An item of a list that
was built here (`stage=expert_ad`) also says its `product`.

Labels, places and types are those of the tags. A file name of Real-IAD says only which object a
picture shows. Nothing is kept apart for validation, as in the paper, unless `validation_share` is
set. Then whole objects are, so that no other view of them is trained on; a picture of theirs is
asked about once, whatever lists it is in.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, Field, ValidationError

from iad_r1 import prompts, schema
from iad_r1.data import faults, folders
from iad_r1.errors import DataError
from iad_r1.settings.data import Folder, Trains, needed
from iad_r1.types import Question, Sample, Solution

SOURCE = (
    "Expert-AD: yanhui01/Expert-AD on the Hugging Face hub, where it is open to you (licence not "
    "stated), and the pictures of Real-IAD (CC BY-NC-SA 4.0). Unpack it so that the folder holds "
    "PA-SFT/ and SC-GRPO/."
)
FOLDERS = ("Expert-AD",)
PICTURE = "<image>"  # stands for a picture in what the user says
THOUGHT = "<think>-</think>"  # put before a solution, which has none
PATTERN = "<answer>No</answer> or <location>...</location><type>...</type><answer>Yes</answer>"
# <product>_<object>_{OK,NG_<kind>}_C<camera>_<time>
VIEW = re.compile(r"(?P<object>(?P<product>.+?)_\d+_(?:OK|NG)\w*?)_C(?P<camera>\d)")


class Settings(Trains, Folder):
    """Where Expert-AD lies. The other paths start from its root."""

    name: Literal["expert_ad"]
    root: Annotated[str, needed("folder of Expert-AD, which holds PA-SFT/ and SC-GRPO/", SOURCE)]
    images: str  # what the paths of pictures start from
    sft: str
    rl: str
    # of the good and of the defective objects of every product, kept apart
    validation_share: Annotated[float, Field(ge=0, lt=1)]

    tests: ClassVar[bool] = False


class Message(BaseModel):
    """What one side says."""

    role: str
    content: str


class SftRow(BaseModel):
    """An item of PA-SFT as it is written."""

    images: str | list[str]
    messages: list[Message]
    product: str | None = None


class RlRow(BaseModel):
    """An item of SC-GRPO as it is written."""

    id: str | int
    image: str | list[str]
    problem: str
    solution: str
    product: str | None = None


@dataclass(frozen=True)
class Item:
    """An item of either list. Of its pictures, the one in question is the last."""

    id: str
    where: str
    pictures: Sequence[str]
    asked: str
    solution: Solution
    target: str | None = None
    named: str | None = None  # its product, where the list says it

    @property
    def picture(self) -> str:
        return self.pictures[-1]

    @property
    def product(self) -> str:
        """As its list or Real-IAD calls it, else the first folder of the path."""
        if self.named is not None:
            return self.named
        view = VIEW.match(Path(self.picture).name)
        return folders.words(view["product"] if view else Path(self.picture).parts[0])


def read(settings: Settings, seed: int) -> Iterator[Sample]:
    """The items of both lists, in their order."""
    root = folders.there(settings.root, SOURCE)
    images = root / settings.images
    parts: dict[str, list[Item]] = {}
    for part, name, read_row in (("sft", settings.sft, _sft), ("rl", settings.rl, _rl)):
        parts[part] = []
        with faults.of_one():
            parts[part] = _items(root / name, images, read_row)
    apart = _apart(
        [item for items in parts.values() for item in items], settings.validation_share, seed
    )
    asked: set[str] = set()  # to validate
    for part, items in parts.items():
        for item in items:
            if _object(item.picture) not in apart:
                yield _sample(images, item, part)
            elif item.picture not in asked:
                asked.add(item.picture)
                yield _sample(images, item, "validation")


# --- lists ---------------------------------------------------------------------------------------


def _items(file: Path, images: Path, read_row: Callable[[object, int, str], Item]) -> list[Item]:
    """Raises DataError that names the first item that is wrong, and says how many are."""
    rows = folders.read_json(file, SOURCE)
    if not isinstance(rows, list):
        raise DataError(f"{file} is no list of items.")
    found: dict[str, Item] = {}
    wrong: list[DataError] = []
    for index, row in enumerate(rows):
        where = f"{file}, item {index}"
        try:
            item = read_row(row, index, where)
            _check(item, images, found)
            found[item.id] = item
        except ValidationError as error:
            wrong.append(DataError(f"{where}: {folders.wrong(error)}"))
        except DataError as error:
            wrong.append(error)
    faults.tell(wrong, f"({len(wrong)} of {len(rows)} items of this list are wrong.)")
    return list(found.values())


def _sft(row: object, index: int, where: str) -> Item:
    said = SftRow.model_validate(row)
    roles = [message.role for message in said.messages]
    if roles != ["user", "assistant"]:
        raise DataError(f"{where}: expected a message of user and of assistant, not of {roles}.")
    asked, target = (message.content for message in said.messages)
    solution = _solution(target, where, f"<think>...</think>, then {PATTERN}")
    pictures = _listed(said.images)
    return Item(f"expert_ad/sft/{index}", where, pictures, asked, solution, target, said.product)


def _rl(row: object, index: int, where: str) -> Item:
    said = RlRow.model_validate(row)
    solution = _solution(THOUGHT + said.solution, where, PATTERN)
    id, pictures = f"expert_ad/rl/{said.id}", _listed(said.image)
    return Item(id, where, pictures, said.problem, solution, named=said.product)


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def _solution(text: str, where: str, expected: str) -> Solution:
    """What the tags of a text say."""
    said = schema.parse(text)
    if said.status is not schema.Status.OK:
        raise DataError(
            f"{where}: {said.status} in {text.removeprefix(THOUGHT)!r}. Expected {expected}."
        )
    return Solution(said.verdict.capitalize(), said.location, said.type)


def _check(item: Item, images: Path, before: Mapping[str, Item]) -> None:
    """Raises DataError for an id that is there already, and pictures that do not fit or are not
    there."""
    if item.id in before:
        raise DataError(f"{item.where}: its id is that of {before[item.id].where} too.")
    if len(item.pictures) not in (1, 2):
        raise DataError(
            f"{item.where}: it has {len(item.pictures)} pictures. Expected one, or a reference and "
            "one."
        )
    marks = item.asked.count(PICTURE)
    if marks not in (0, len(item.pictures)):
        raise DataError(
            f"{item.where}: its question holds {PICTURE} {marks} times, but its pictures are "
            f"{len(item.pictures)}."
        )
    for path in item.pictures:
        if not (images / path).is_file():
            raise DataError(
                f"{item.where}: {images / path} is not there. data.images is the folder that the "
                "paths of pictures start from."
            )


# --- samples -------------------------------------------------------------------------------------


def _sample(images: Path, item: Item, split: str) -> Sample:
    asked = item.asked.rpartition(PICTURE)[2].strip()
    references = [
        Sample(f"expert_ad/{path}", "expert_ad", split, item.product, images / path, Solution("No"))
        for path in item.pictures[:-1]
    ]
    return Sample(
        id=item.id,
        dataset="expert_ad",
        split=split,
        product=item.product,
        image=images / item.picture,
        solution=item.solution,
        references=tuple(references),
        shots=len(references),
        question=Question(asked if asked != prompts.QUERY_IMAGE else None),
        target=item.target,
        where=item.where,
    )


def _object(picture: str) -> str:
    """Which object a picture shows. Where its name is not as in Real-IAD, no other one does."""
    view = VIEW.match(Path(picture).name)
    return view["object"] if view else picture


def _apart(items: Sequence[Item], share: float, seed: int) -> set[str]:
    """The objects that are kept apart, none of which is a reference."""
    shown = {_object(path) for item in items for path in item.pictures[:-1]}
    defective: dict[tuple[str, str], bool] = {}
    for item in items:
        key = item.product, _object(item.picture)
        defective[key] = defective.get(key, False) or item.solution.answer == "Yes"
    strata: dict[tuple[str, bool], list[str]] = {}
    for (product, name), is_defective in sorted(defective.items()):
        if name not in shown:
            strata.setdefault((product, is_defective), []).append(name)
    stream, apart = random.Random(f"validation/{seed}"), set[str]()
    for names in strata.values():
        wanted = max(1, round(share * len(names))) if share and len(names) > 1 else 0
        apart.update(stream.sample(names, wanted))
    return apart
