"""The gallery: one card per stored picture, with what every stage said about it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from markupsafe import Markup, escape

from iad_r1 import boxes
from iad_r1.grid import parse_cells
from iad_r1.report import gallery, overlay, wording
from iad_r1.report.run_data import RunData
from iad_r1.types import Prediction

Row = dict[str, Any]
Asked = tuple[Mapping[str, Any], list[Prediction | None]]  # a picture, and what each view said
PICTURES, PICTURE_BYTES = 96, 6_000_000  # of a page, at most; both as they are stored
_TAG = re.compile(r"&lt;(/?)(think|location|type|answer)&gt;")


def views(run: RunData) -> list[Row]:
    """The (stage, shots) pairs a reader can switch between; `key` is safe as a CSS class and
    `before` the position of the stage before, of several runs that of the first, at the same number
    of reference pictures."""
    pairs = dict.fromkeys((item.shots, item.stage) for item in run.evaluations)
    order = [member.label for member in run.members] or wording.STAGES
    found: list[Row] = []
    for index, (shots, stage) in enumerate(sorted(pairs, key=lambda pair: _place(pair, order))):
        earlier = [
            n
            for n, view in enumerate(found)
            if view["shots"] == shots and (not run.members or view["stage"] == order[0])
        ]
        before = earlier[-1] if earlier else None
        label = f"{wording.stage_name(stage)}, {shots}-shot"
        key = f"v{index}"
        found.append({"key": key, "stage": stage, "shots": shots, "label": label, "before": before})
    return found


def _place(pair: tuple[int, str], order: Sequence[str]) -> tuple[int, int, str]:
    shots, stage = pair
    return shots, order.index(stage) if stage in order else len(order), stage


def default_view(found: Sequence[Row]) -> str | None:
    """The most trained stage with the fewest reference pictures."""
    best = max(found, key=lambda v: (-v["shots"], wording.stage_order(v["stage"])), default=None)
    return best["key"] if best else None


def cards(run: RunData, found: Sequence[Row], asked: Sequence[Asked]) -> list[Row]:
    """A card for each of these pictures, with the answers of the views in `found`."""
    return [_card(run, picture, found, said) for picture, said in asked]


def shown(run: RunData, asked: Sequence[Asked]) -> list[Asked]:
    """The first of these pictures: as many as a page holds without growing large."""
    sizes = accumulate((run.folder / picture["image"]).stat().st_size for picture, _ in asked)
    fits = sum(size <= PICTURE_BYTES for size in sizes)
    return list(asked[: min(fits, PICTURES)])


def asked(run: RunData, found: Sequence[Row]) -> list[Asked]:
    """The pictures that at least one view has judged, with what each of them said: splits in turn,
    fixed order."""
    answers: dict[tuple[str, int], dict[str, Prediction]] = {}
    for item in run.evaluations:
        answers.setdefault((item.stage, item.shots), {}).update({p.id: p for p in item.predictions})
    splits: dict[str, list[Mapping[str, Any]]] = {}
    for picture in run.pictures:
        splits.setdefault(picture["split"], []).append(picture)
    made = []
    for picture in gallery.in_turn(splits.values()):
        said = [answers[view["stage"], view["shots"]].get(picture["id"]) for view in found]
        if any(said):
            made.append((picture, said))
    return made


def _card(
    run: RunData, picture: Mapping[str, Any], found: Sequence[Row], said: list[Prediction | None]
) -> Row:
    path = run.folder / picture["image"]
    width, height = overlay.size(path)
    truth = next(p for p in said if p is not None)
    mask = picture["mask"] and run.folder / picture["mask"]

    heat = picture["heat"] and run.folder / picture["heat"]

    def cells(text: str | None) -> list[overlay.Rectangle]:
        named = parse_cells(text, run.grid) if text and run.grid is not None else None
        return overlay.rectangles(named, run.grid, width, height) if named and run.grid else []

    return {
        "truth": truth,
        "product": picture["product"],
        "split": truth.split,
        "gold": "anomalous" if truth.gold_answer == "yes" else "normal",
        "uri": overlay.data_uri(path.read_bytes()),
        "width": width,
        "height": height,
        "heat": overlay.data_uri(heat.read_bytes(), "png") if heat else "",
        "outline": overlay.mask_outline(mask) if mask and mask.is_file() else "",
        "gold_cells": cells(truth.gold_location),
        "answers": [
            {
                "key": view["key"],
                "said": p,
                "verdict": verdict(p),
                "cells": cells(p.location if p.answer == "yes" and p.marked is None else None),
                "boxes": _outlines(p, width, height),
                "trace": trace(p.completion),
                "change": _change(said[view["before"]] if view["before"] is not None else None, p),
            }
            for view, p in zip(found, said, strict=True)
            if p is not None
        ],
    }


def _outlines(row: Prediction, width: int, height: int) -> list[str]:
    """What an answer marks, as the corners of SVG polygons on a picture of this size."""
    marked = row.marked
    if marked is None or row.answer != "yes":
        return []
    across, down = width / marked.picture[0], height / marked.picture[1]
    corners = [*marked.outlines, *(boxes.corners(*box) for box in marked.boxes)]
    return [
        " ".join(
            f"{x * across:.1f},{y * down:.1f}" for x, y in zip(one[::2], one[1::2], strict=True)
        )
        for one in corners
    ]


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
