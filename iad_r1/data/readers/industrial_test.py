"""The test set that the papers' numbers were made with: a folder and a list for each of its parts.

    <root>/{DAGM,DS-MVTec,DTD,MPDD,SDD,VisA}/...
    <lists>/test_{DAGM,DTD,MPDD,MVTec,SDD,VisA}_format.json

A list maps a picture's path to one question, its answer (A: there are defects, B: there are none)
and its references, `random_templates` and `similar_templates`; several sets have none. The answer
is the label: nothing is read from a path. Defects have neither place nor type there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from iad_r1.data import faults, folders
from iad_r1.errors import DataError
from iad_r1.settings.data import Folder, needed
from iad_r1.types import Sample, Solution

SOURCE = (
    "It is yanhui01/Industrial_test on the Hugging Face hub (licences are those of its sets, most "
    "CC BY-NC-SA 4.0). Unpack it so that the folder holds DAGM/, DS-MVTec/, DTD/, MPDD/, SDD/ and "
    "VisA/. The lists, test_DAGM_format.json and so on, are in data/Test/ of the code released "
    "with IAD-R1."
)
FOLDERS = ("Industrial_test", ".")  # or the six folders as they are
ANSWERS = {"A": "Yes", "B": "No"}
OPTIONS = {"A": "Yes.", "B": "No."}


class Settings(Folder):
    """Where the pictures and their lists lie, and which references are shown."""

    name: Literal["industrial_test"]
    root: Annotated[
        str, needed("folder that holds DAGM/, DS-MVTec/, DTD/, MPDD/, SDD/, VisA/", SOURCE)
    ]
    lists: Annotated[str, needed("folder of test_DAGM_format.json and so on", SOURCE)]
    templates: Literal["random", "similar"]


def read(settings: Settings, seed: int) -> Iterator[Sample]:
    """All pictures, list by list, in the order of each list; a list is a split of its own."""
    root = folders.there(settings.root, SOURCE)
    files = sorted(folders.there(settings.lists, SOURCE).glob("test_*_format.json"))
    if not files:
        raise DataError(f"{settings.lists} holds no test_<set>_format.json. {SOURCE}")
    for file in files:
        name = file.stem.removeprefix("test_").removesuffix("_format")
        with faults.of_one():
            for path, row in folders.mapping(folders.read_json(file), str(file)).items():
                where = f"{file}, {path}"
                with faults.of_one(where):
                    yield _sample(root, name, path, row, settings.templates, where)


def _sample(root: Path, name: str, path: str, row: Any, templates: str, where: str) -> Sample:
    row = folders.mapping(row, where)
    turns: Sequence[Mapping[str, Any]] = row.get("conversation", ())
    asked = [(turn.get("Answer"), turn.get("Options")) for turn in turns]
    answer = asked[0][0] if len(asked) == 1 else None
    if answer not in ANSWERS or asked != [(answer, OPTIONS)]:
        raise DataError(f"{where}: expected one question with the options {OPTIONS}, not {asked}.")
    return _picture(
        root, name, path, ANSWERS[answer], where,
        tuple(
            _picture(root, name, shown, "No", f"{where}, {templates} templates")
            for shown in row.get(f"{templates}_templates", ())
        ),
    )  # fmt: skip


def _picture(
    root: Path, name: str, path: str, answer: str, where: str, references: tuple[Sample, ...] = ()
) -> Sample:
    parts = Path(path).parts
    if len(parts) < 3:
        raise DataError(f"{where}: {path!r} is no <set>/<product>/.../<picture>.")
    return Sample(
        id=f"industrial_test/{path}",
        dataset="industrial_test",
        split=f"test.{name}",
        product=folders.words(parts[0] if parts[1] == "test" else parts[1]),
        image=root / path,
        solution=Solution(answer),
        references=references,
        where=where,
    )
