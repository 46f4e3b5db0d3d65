"""Verdicts on pictures of which nothing is known, and their files.

`predictions.jsonl` is the record: a line per picture, appended when its verdict is there, readable
after a kill. `predictions.csv` says the same for a spreadsheet.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np
from numpy.typing import NDArray

from iad_r1 import schema
from iad_r1.errors import DataError
from iad_r1.grid import Grid, parse_cells
from iad_r1.judge.predictions import repair, whole_lines
from iad_r1.types import Prediction, StopReason

Word = Literal["defective", "good", "no valid answer"]
UNREADABLE = "unreadable"  # what is recorded of a picture that could not be opened
WORDS: Mapping[str, Word] = {"yes": "defective", "no": "good", schema.INVALID: "no valid answer"}


@dataclass(frozen=True)
class Verdict:
    """What a model, or nearest good patches, say of one picture.

    picture    its path, or what it was called
    p_yes      the model's probability of "Yes" against "No"; None if it wrote no answer tag
    place      the model's words; None unless defective, as `cells` and `type`
    cells      what the words name, row by row from 0; empty if they name no place
    reasoning  what it thought before; None if its answer has no such part
    seconds    from the opened picture to the verdict; of a batch, its share
    score      how far it is from good pictures, of which 1 is the threshold; None of a model
    heat       [rows, columns] the same of every part of the picture, from the top left
    """

    picture: str
    verdict: Word
    p_yes: float | None
    place: str | None
    cells: tuple[int, ...]
    type: str | None
    reasoning: str | None
    seconds: float
    completion: str
    score: float | None = None
    heat: NDArray[np.float32] | None = field(default=None, compare=False)

    @property
    def defective(self) -> bool:
        return self.verdict == "defective"


def verdict(answer: Prediction, grid: Grid, threshold: float | None, seconds: float) -> Verdict:
    """What an answer amounts to. With a threshold P(yes) decides, where there is one; without, the
    word that the model wrote."""
    word = WORDS[answer.answer]
    if threshold is not None and answer.p_yes is not None:
        word = "defective" if answer.p_yes >= threshold else "good"
    said = schema.parse(answer.completion, answer.stop == StopReason.LENGTH)
    place = answer.location if word == "defective" else None
    return Verdict(
        picture=answer.id,
        verdict=word,
        p_yes=answer.p_yes,
        place=place,
        cells=tuple(sorted(parse_cells(place or "", grid) or ())),
        type=answer.type if word == "defective" else None,
        reasoning=said.think,
        seconds=seconds,
        completion=answer.completion,
    )


# --- files ---------------------------------------------------------------------------------------

COLUMNS = ("picture", "verdict", "p_yes", "score", "place", "cells", "type", "reasoning", "seconds",
           "annotated", "heat", "error")  # fmt: skip
Row = Mapping[str, Any]


class Record:
    """The two files in a run folder, gone on with where an earlier process stopped.

    `rows` holds what is recorded, in the order in which it was.
    """

    def __init__(self, folder: Path) -> None:
        self.lines, self.table = folder / "predictions.jsonl", folder / "predictions.csv"
        repair(self.lines)
        self.rows: list[Row] = list(_read(self.lines))
        with self.table.open("w", encoding="utf-8", newline="") as file:
            write_table(file, self.rows)

    def add(self, row: Row) -> None:
        """Record one picture; its line is whole, or it is not there."""
        with self.lines.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        with self.table.open("a", encoding="utf-8", newline="") as file:
            csv.writer(file).writerow(_cells(row))
        self.rows.append(row)

    def count(self, word: str) -> int:
        """How many pictures have that verdict, or are unreadable."""
        return sum(row["verdict"] == word for row in self.rows)


def judged(found: Verdict, annotated: str | None, heat: str | None = None, **file: Any) -> Row:
    """The line of a picture, with the paths of its marked copy and of its heat map; `file` tells
    later whether it is still the same."""
    plain = {"cells": list(found.cells), "seconds": round(found.seconds, 4)}
    paths = {"annotated": annotated, "heat": heat}
    return {**asdict(replace(found, heat=None)), **plain, **paths, **file}


def unreadable(picture: Path, error: str, **file: Any) -> Row:
    """The line of a picture that cannot be opened."""
    return {"picture": str(picture), "verdict": UNREADABLE, "error": error, **file}


def write_table(file: TextIO, rows: Iterable[Row]) -> None:
    """The table of the rows, as CSV."""
    csv.writer(file).writerows([COLUMNS, *map(_cells, rows)])


def _cells(row: Row) -> list[Any]:
    cells = {**row, "cells": " ".join(map(str, row.get("cells", ())))}
    return ["" if cells.get(name) is None else cells[name] for name in COLUMNS]


def _read(path: Path) -> Iterator[Row]:
    for number, line in enumerate(whole_lines(path), start=1):
        try:
            row = json.loads(line)
            yield {**row, "picture": row["picture"], "verdict": row["verdict"]}
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}, line {number}: not a verdict ({error!r}). Delete the line to have its "
                "picture judged anew."
            ) from error
