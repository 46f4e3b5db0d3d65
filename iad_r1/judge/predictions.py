"""Files of predictions: append-only, one JSON object per line, readable after a kill."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from iad_r1.errors import DataError
from iad_r1.types import Marked, Prediction


def append(path: Path, answers: Sequence[Prediction]) -> None:
    """Add predictions to a file, one JSON object per line."""
    path.parent.mkdir(exist_ok=True)
    lines = [json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in answers]
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(lines))


def write(path: Path, answers: Sequence[Prediction]) -> None:
    """Replace a file by these predictions, whole or not at all."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.unlink(missing_ok=True)
    append(unfinished, answers)
    unfinished.replace(path)


def read_predictions(path: Path) -> dict[str, Prediction]:
    """Predictions by image id; a half-written last line, as a kill leaves it, does not count.

    Raises DataError naming the line that is no prediction, or answers an image once more.
    """
    found: dict[str, Prediction] = {}
    for number, line in enumerate(whole_lines(path), start=1):
        try:
            row = _read(line)
            if row.id in found:
                raise ValueError(f"{row.id} is answered already")
        except (ValueError, TypeError) as error:
            raise DataError(
                f"{path}, line {number}: not a prediction ({error}). "
                "Delete the file and evaluate again to answer its images anew."
            ) from error
        found[row.id] = row
    return found


def repair(path: Path) -> None:
    """Cut off a half-written last line, so that the next one can be appended. The others are not
    written again: a kill at any instant leaves them."""
    if path.is_file():
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)


def whole_lines(path: Path) -> list[bytes]:
    """The lines of a file, none if it is not there; a last one without an end does not count. As
    bytes: it may end within a letter, and U+2028, which models may well say, ends no line."""
    return path.read_bytes().split(b"\n")[:-1] if path.is_file() else []


def _read(line: bytes) -> Prediction:
    values = json.loads(line)
    if not isinstance(values, dict):
        raise TypeError(f"a {type(values).__name__}, not an object")
    lists = {name: tuple(values.get(name, ())) for name in ("references", "votes")}
    found = {**values, **lists}
    if values.get("marked") is not None:
        found["marked"] = Marked(**{key: _frozen(value) for key, value in values["marked"].items()})
    return Prediction(**found)


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
