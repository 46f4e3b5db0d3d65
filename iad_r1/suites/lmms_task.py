"""A task of lmms-eval: what it shows of a line of its data, and how it scores an answer.

This file is copied beside the data as `utils.py`, and `iad_r1/schema.py` as `iad_r1_reading.py`, so
that answers are read there as they are here. It imports nothing else of ours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from iad_r1.schema import INVALID, read_answer

HALVES = ("Anomaly Detection, normal", "Anomaly Detection, anomalous")

Doc = Mapping[str, Any]
Rows = Sequence[Mapping[str, str]]


def doc_to_visual(doc: Doc) -> list[Image.Image]:
    """Its pictures, references first."""
    folder = Path(__file__).parent
    return [Image.open(folder / path).convert("RGB") for path in doc["pictures"]]


def doc_to_text(doc: Doc) -> str:
    """The words, for models that are shown all pictures before them."""
    return doc["text"]


def doc_to_messages(doc: Doc) -> list[dict[str, Any]]:
    """The conversation, its pictures at their places between the words."""
    pictures = iter(doc_to_visual(doc))
    first, *others = doc["prompt"].split("{image}")
    content: list[dict[str, Any]] = [{"type": "text", "text": first}] if first else []
    for words in others:
        content.append({"type": "image", "url": next(pictures)})
        if words:
            content.append({"type": "text", "text": words})
    asked = [{"role": "user", "content": content}]
    if doc["system"]:
        system = [{"type": "text", "text": doc["system"]}]
        return [{"role": "system", "content": system}, *asked]
    return asked


def process_results(doc: Doc, results: Sequence[str]) -> dict[str, dict[str, str]]:
    """The answer that is read, for every number that is made of them."""
    options = json.loads(doc["options"])
    said = read_answer(results[0], "strict", options)
    right = doc["target"] if options else doc["target"].lower()
    row = {"id": doc["id"], "group": doc["group"], "answer": said, "right": right}
    return dict.fromkeys(metrics(bool(options)), row)


def metrics(options: bool) -> tuple[str, ...]:
    """The numbers of questions with options, or of those for yes or no; the first says most."""
    more = ("mmad_average",) if options else ("balanced_accuracy", "miss_rate", "overkill_rate")
    return (*more, "accuracy", "invalid_rate")


def accuracy(rows: Rows) -> float:
    """Percent of the answers that are right; one that cannot be read is wrong."""
    right = sum(row["answer"] == row["right"] for row in rows)
    return 100 * right / len(rows) if rows else float("nan")


def invalid_rate(rows: Rows) -> float:
    """Percent of the answers that cannot be read."""
    return 100 * sum(row["answer"] == INVALID for row in rows) / len(rows)


def miss_rate(rows: Rows) -> float:
    """Percent of the defects that are not called so."""
    return 100 - accuracy(_of(rows, "defective"))


def overkill_rate(rows: Rows) -> float:
    """Percent of the good parts that are not called good."""
    return 100 - accuracy(_of(rows, "good"))


def balanced_accuracy(rows: Rows) -> float:
    """The mean of the accuracies on good and on defective parts."""
    return (accuracy(_of(rows, "good")) + accuracy(_of(rows, "defective"))) / 2


def mmad_average(rows: Rows) -> float:
    """The mean of the subtasks of a set; anomaly detection is the mean of its halves."""
    groups = {row["group"] for row in rows}
    found = [accuracy(_of(rows, group)) for group in groups - set(HALVES)]
    if groups.issuperset(HALVES):
        found.append(sum(accuracy(_of(rows, half)) for half in HALVES) / 2)
    return sum(found) / len(found) if found else float("nan")


def _of(rows: Rows, group: str) -> Rows:
    return [row for row in rows if row["group"] == group]
