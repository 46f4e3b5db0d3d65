"""Files of predictions: append-only, one JSON object per line, readable after a kill."""

from __future__ import annotations

import json
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
    # not splitlines(): a model may well say U+2028, which that takes for the end of a line
    lines = _whole_lines(path).split("\n")[:-1] if path.is_file() else []
    for number, line in enumerate(lines, start=1):
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
    """Cut off a half-written last line, so that the next one can be appended."""
    if path.is_file() and (whole := _whole_lines(path)) != path.read_text(encoding="utf-8"):
        path.write_text(whole, encoding="utf-8")


def _whole_lines(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    return text[: text.rfind("\n") + 1]


def _read(line: str) -> Prediction:
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
