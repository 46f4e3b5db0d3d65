"""Files of answers or scores that something else has made, as rows about pictures.

    .jsonl         an object per line; `predictions/*.jsonl` of a run too
    .csv           a header and a row per picture
    .json          a list of objects; with `gpt_answer`, the answers of MMAD's scripts

The columns are `PICTURE`, `TEXT` and `SCORE`, under any of their names. MMAD's are those that its
published scripts write: `image`, `question` (with its `text`, and `options` where they were put
into another order), `question_type`, `correct_answer` and `gpt_answer`; and `completion` where we
have written them (`suites/mmad.py`).
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iad_r1.errors import DataError

PICTURE = ("id", "image_path", "image", "path", "file", "filename", "file_name")
TEXT = ("completion", "response", "answer", "text", "output")
SCORE = ("score", "pred_score", "anomaly_score", "pred_scores")
LABEL = ("gt_label", "label", "gt_labels")
DEFECTIVE, GOOD = (
    frozenset({"1", "yes", "true", "anomalous", "defective", "abnormal"}),
    frozenset({"0", "no", "false", "normal", "good"}),
)
LISTED = re.compile(r"^\s*([A-Z])[.:)]\s*(.*?)\s*$", re.M)


@dataclass(frozen=True)
class Answer:
    """One row of a file.

    `picture` is a path or an id as the file has it. `text` is what was said, `p_yes` and `score` as
    of a Prediction; one of the three at least. `defective` is its own label, to check ours against.
    `asked` is what the row says of a question with options: {question, type, options, right,
    whole}; `whole`: the text is all that was said, not the letter that a script read in it.
    """

    where: str
    picture: str
    text: str | None = None
    p_yes: float | None = None
    score: float | None = None
    defective: bool | None = None
    asked: Mapping[str, Any] | None = None
    shots: int | None = None
    stop: str = "stop"
    n_tokens: int = 0


def read(file: Path) -> list[Answer]:
    """The rows of a file. DataError naming the row that cannot be read."""
    rows = list(_rows(file))
    if not rows:
        raise DataError(f"{file} holds no answers.")
    return [
        _of_mmad(row, where) if "gpt_answer" in row else _answer(row, where) for row, where in rows
    ]


def _rows(file: Path) -> Iterator[tuple[Mapping[str, Any], str]]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read: {error}.") from None
    kind = file.suffix.lower()
    if kind == ".csv":
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text))
        header = next(lines, [])
        names = [name.strip().lower() for name in header]
        for number, cells in enumerate(lines, 2):
            if any(cell.strip() for cell in cells):
                if len(cells) != len(names):
                    raise DataError(
                        f"{file}, line {number} has {len(cells)} cells and the header {len(names)}."
                    )
                yield dict(zip(names, cells, strict=True)), f"{file}, line {number}"
        return
    try:
        if kind == ".json":
            found = json.loads(text)
            named = [(row, f"{file}, entry {n}") for n, row in enumerate(found, 1)]
        elif kind == ".jsonl":
            lines = text.split("\n")
            named = [(json.loads(line), f"{file}, line {n}")
                     for n, line in enumerate(lines, 1) if line.strip()]  # fmt: skip
        else:
            raise DataError(f"{file}: answers are read from .jsonl, .json and .csv, not {kind!r}.")
    except (json.JSONDecodeError, TypeError) as error:
        raise DataError(f"{file} is not JSON as its name says: {error}.") from None
    for row, where in named:
        if not isinstance(row, Mapping):
            raise DataError(f"{where} is no object, but {row!r:.60}.")
        yield row, where


def _delimiter(text: str) -> str:
    first = text.partition("\n")[0]
    return max(",;\t", key=first.count)


def _answer(row: Mapping[str, Any], where: str) -> Answer:
    picture = _first(row, PICTURE)
    if picture is None:
        raise DataError(
            f"{where} names no picture: it has {', '.join(map(str, row))}. Name it in one of "
            f"{', '.join(PICTURE)}."
        )
    text = _first(row, TEXT)
    p_yes = _number(row, ("p_yes",), where)
    score = _number(row, SCORE, where)
    if text is None and p_yes is None and score is None:
        raise DataError(
            f"{where} holds neither an answer ({', '.join(TEXT)}) nor a score "
            f"(p_yes, {', '.join(SCORE)})."
        )
    if p_yes is not None and not 0 <= p_yes <= 1:
        raise DataError(f"{where}: p_yes={p_yes} is no probability. Call it score.")
    return Answer(
        where, str(picture), None if text is None else str(text), p_yes, score,
        _label(_first(row, LABEL), where), None, _count(row, "shots", where),
        str(row.get("stop") or "stop"), _count(row, "n_tokens", where) or 0,
    )  # fmt: skip


def _first(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((row[name] for name in names if row.get(name) not in (None, "")), None)


def _number(row: Mapping[str, Any], names: Sequence[str], where: str) -> float | None:
    found = _first(row, names)
    if found is None:
        return None
    try:
        value = float(found)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{where}: {found!r} is no number.")
    return value


def _count(row: Mapping[str, Any], name: str, where: str) -> int | None:
    found = _number(row, (name,), where)
    if found is not None and (found < 0 or found != int(found)):
        raise DataError(f"{where}: {name}={row[name]} is no whole number from 0 on.")
    return None if found is None else int(found)


def _label(value: Any, where: str) -> bool | None:
    if value is None:
        return None
    word = str(value).strip().lower().removesuffix(".0")
    if word not in DEFECTIVE | GOOD:
        raise DataError(f"{where}: the label {value!r} is neither 1 (defective) nor 0 (good).")
    return word in DEFECTIVE


def _of_mmad(row: Mapping[str, Any], where: str) -> Answer:
    lacking = [name for name in ("image", "question", "correct_answer") if name not in row]
    if lacking:
        raise DataError(f"{where} holds gpt_answer, but no {' and no '.join(lacking)}.")
    asked = row["question"] if isinstance(row["question"], Mapping) else {"text": row["question"]}
    text = str(asked.get("text", ""))
    options = asked.get("options") or dict(LISTED.findall(text))
    return Answer(
        where,
        str(row["image"]),
        str(row.get("completion", row["gpt_answer"])),
        asked={
            "question": text,
            "type": row.get("question_type"),
            "options": {str(key): str(value) for key, value in options.items()},
            "right": str(row["correct_answer"]),
            "whole": "completion" in row,
        },
        stop=str(row.get("stop") or "stop"),
    )
