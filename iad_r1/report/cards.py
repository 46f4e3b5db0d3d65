"""The gallery: one card per stored picture, with what every stage said about it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from markupsafe import Markup, escape

from iad_r1.grid import Grid, parse_cells
from iad_r1.report import overlay, wording
from iad_r1.report.run_data import Evaluation, RunData
from iad_r1.types import Prediction

Row = dict[str, Any]
_TAG = re.compile(r"&lt;(/?)(think|location|type|answer)&gt;")


def views(run: RunData) -> list[Row]:
    """The (stage, shots) pairs a reader can switch between; `key` is safe as a CSS class."""
    pairs = dict.fromkeys((item.shots, item.stage) for item in run.evaluations)
    ordered = sorted(pairs, key=lambda pair: (pair[0], wording.stage_order(pair[1]), pair[1]))
    return [
        {
            "key": f"v{index}",
            "stage": stage,
            "shots": shots,
            "label": f"{wording.stage_name(stage)}, {shots}-shot",
            "before": _before(ordered, index),
        }
        for index, (shots, stage) in enumerate(ordered)
    ]


def _before(ordered: Sequence[tuple[int, str]], index: int) -> int | None:
    """The position of the stage before, at the same number of reference pictures."""
    return index - 1 if index and ordered[index - 1][0] == ordered[index][0] else None


def default_view(found: Sequence[Row]) -> str | None:
    """The most trained stage with the fewest reference pictures."""
    best = max(found, key=lambda v: (-v["shots"], wording.stage_order(v["stage"])), default=None)
    return best["key"] if best else None


def cards(run: RunData, found: Sequence[Row]) -> list[Row]:
    """One card per picture that at least one evaluation judged: splits in turn, fixed order."""
    by_view = [_answers(run.evaluations, view) for view in found]
    made = []
    for picture in _splits_in_turn(run.pictures):
        said = [answers.get(picture["id"]) for answers in by_view]
        if any(said):
            made.append(_card(run, picture, found, said))
    return made


def _splits_in_turn(pictures: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """So that the first pictures on the page come from every split."""
    splits: dict[str, list[Mapping[str, Any]]] = {}
    for picture in pictures:
        splits.setdefault(picture["split"], []).append(picture)
    for turn in zip_longest(*splits.values()):
        yield from (picture for picture in turn if picture is not None)


def _answers(evaluations: Sequence[Evaluation], view: Row) -> dict[str, Prediction]:
    return {
        p.id: p
        for item in evaluations
        if (item.stage, item.shots) == (view["stage"], view["shots"])
        for p in item.predictions
    }


def _card(
    run: RunData, picture: Mapping[str, Any], found: Sequence[Row], said: list[Prediction | None]
) -> Row:
    path = run.folder / picture["image"]
    width, height = overlay.size(path)
    truth = next(p for p in said if p is not None)
    mask = picture["mask"] and run.folder / picture["mask"]
    return {
        "id": picture["id"],
        "product": picture["product"],
        "split": truth.split,
        "gold": "anomalous" if truth.gold_answer == "yes" else "normal",
        "gold_location": truth.gold_location,
        "gold_type": truth.gold_type,
        "uri": overlay.data_uri(path),
        "width": width,
        "height": height,
        "outline": overlay.mask_outline(mask) if mask and mask.is_file() else "",
        "gold_cells": _cells(truth.gold_location, run.grid, width, height),
        "answers": [
            {
                "key": view["key"],
                **_answer(p, run.grid, width, height),
                "change": _change(said[view["before"]] if view["before"] is not None else None, p),
            }
            for view, p in zip(found, said, strict=True)
            if p is not None
        ],
    }


def _cells(text: str | None, grid: Grid | None, width: int, height: int) -> list[Any]:
    cells = parse_cells(text, grid) if text and grid is not None else None
    return overlay.rectangles(cells, grid, width, height) if cells and grid is not None else []


def _answer(row: Prediction, grid: Grid | None, width: int, height: int) -> Row:
    named = row.location if row.answer == "yes" else None
    return {
        "verdict": verdict(row),
        "answer": {"yes": "defective", "no": "normal"}.get(row.answer, "unreadable"),
        "location": row.location,
        "type": row.type,
        "location_correct": row.location_correct,
        "type_correct": row.type_correct,
        "p_yes": None if row.p_yes is None else 100 * row.p_yes,
        "status": row.status,
        "tokens": row.n_tokens,
        "references": len(row.references),
        "cells": _cells(named, grid, width, height),
        "trace": trace(row.completion),
    }


def verdict(row: Prediction) -> str:
    """ "right", "wrong" or "unreadable": the yes/no answer only."""
    if row.answer not in ("yes", "no"):
        return "unreadable"
    return "right" if row.answer == row.gold_answer else "wrong"


def _change(before: Prediction | None, after: Prediction) -> str:
    if before is None:
        return ""
    was, now = verdict(before) == "right", verdict(after) == "right"
    return "" if was == now else "mended" if now else "spoilt"


def trace(completion: str) -> Markup:
    """What the model wrote, safe to embed, with its tags set apart."""
    return Markup(_TAG.sub(r'<span class="tag">&lt;\1\2&gt;</span>', str(escape(completion))))
