"""Trackers: views of a run in other tools, a file for each. The record is the run folder's own.

A backend is called by one thread alone, which `Mirror` keeps for it, in the order of the run. It
may raise, wait or hang: the run does not notice.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from iad_r1.store import metrics
from iad_r1.store.products import Product
from iad_r1.store.run_folder import TRAINED

THUMBNAIL = "thumbnail"  # the column of a rollout row that may hold a picture as JPEG bytes

Row = Mapping[str, Any]


class Backend(Protocol):
    """What a tracker does with what a run logs."""

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step, by their names in metrics.jsonl."""
        ...

    def rollouts(self, stage: str, step: int, rows: Sequence[Row]) -> None:
        """The first completions of a step."""
        ...

    def evaluation(self, rows: Sequence[Row]) -> None:
        """`results` of summary.json so far; the last weights in it are new."""
        ...

    def made(self, product: Product) -> None:
        """Weights, an evaluation or a report that is finished, or the data that were read."""
        ...

    def rewind(self, stage: str, step: int) -> None:
        """The steps of a stage from this one on are taken again."""
        ...

    def close(self, summary: Mapping[str, Any], failed: bool) -> None:
        """The run has ended: well, with its summary.json, or not."""
        ...


def evaluated(rows: Sequence[Row]) -> Iterator[tuple[str, float]]:
    """Keys and values of the last weights in `rows`: every number of every row, and for each number
    of shots the unweighted mean over the tested splits, of what all of them define."""
    from iad_r1.judge.thresholds import VALIDATION  # with numpy, which an evaluation has loaded

    rows = [row for row in rows if row["stage"] == rows[-1]["stage"]]
    for row in rows:
        for name in metrics.EVALUATED:
            if row.get(name) is not None:
                yield metrics.eval_key(row["split"], row["shots"], name), row[name]
    tested = [row for row in rows if not row["split"].startswith(VALIDATION)]
    for shots in dict.fromkeys(row["shots"] for row in tested):
        of_shots = [row for row in tested if row["shots"] == shots]
        for name in metrics.EVALUATED:
            values = [row.get(name) for row in of_shots]
            if all(value is not None for value in values):
                mean = sum(value for value in values if value is not None) / len(values)
                yield metrics.eval_key(metrics.TESTED, shots, name), mean


def trained(stage: str) -> int:
    """How many stages weights have been trained, so that evaluations stand in their order; weights
    of anything else are as loaded."""
    return len(TRAINED) - TRAINED.index(stage) if stage in TRAINED else 0


def result_columns(row: Row) -> dict[str, Any]:
    """A row of results as a row of a flat table: what was tested, the numbers, and their 95 %
    intervals as `<name>_low` and `<name>_high`."""
    asked = {name: row.get(name) for name in ("stage", "dataset", "split", "shots", "n")}
    numbers: dict[str, Any] = {}
    for name in metrics.EVALUATED:
        numbers[name] = row.get(name)
        low, high = (row.get("ci95") or {}).get(name) or (None, None)
        numbers |= {f"{name}_low": low, f"{name}_high": high}
    return asked | {name: value for name, value in numbers.items() if value is not None}


def side_by_side(pictures: Sequence[bytes]) -> Any:
    """[H, W, 3] of JPEGs in a row, black below the lower ones."""
    import numpy as np
    from PIL import Image

    opened = [Image.open(io.BytesIO(data)).convert("RGB") for data in pictures]
    size = sum(picture.width for picture in opened), max(picture.height for picture in opened)
    whole, left = Image.new("RGB", size), 0
    for picture in opened:
        whole.paste(picture, (left, 0))
        left += picture.width
    return np.asarray(whole)
