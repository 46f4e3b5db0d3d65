"""Files of predictions: append-only, one JSON object per line, readable after a kill."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from iad_r1.errors import DataError
from iad_r1.types import Prediction


def append(path: Path, answers: Sequence[Prediction]) -> None:
    """Add predictions to a file, one JSON object per line."""
    path.parent.mkdir(exist_ok=True)
    lines = [json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in answers]
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(lines))


def read_predictions(path: Path) -> dict[str, Prediction]:
    """Predictions by image id; a half-written last line, as a kill leaves it, does not count."""
    if not path.is_file():
        return {}
    whole = _whole_lines(path)
    try:
        # not splitlines(): a model may well say U+2028, which that takes for the end of a line
        rows = [_read(line) for line in whole.split("\n")[:-1]]
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{path} is broken ({error}). Delete the file to answer its images again."
        ) from error
    return {row.id: row for row in rows}


def repair(path: Path) -> None:
    """Cut off a half-written last line, so that the next one can be appended."""
    if path.is_file() and (whole := _whole_lines(path)) != path.read_text(encoding="utf-8"):
        path.write_text(whole, encoding="utf-8")


def _whole_lines(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    return text[: text.rfind("\n") + 1]


def _read(line: str) -> Prediction:
    values = json.loads(line)
    return Prediction(**{**values, "references": tuple(values["references"])})
