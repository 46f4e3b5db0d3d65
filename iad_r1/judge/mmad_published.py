"""The accuracies that MMAD has published for models, and an evaluation of ours beside them.

`mmad_published.csv` holds them: percent, from `all_result/` of the repository jam-cc/MMAD (commit
f9a0e6f), of all 22 models. They are counted by the released script.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from iad_r1.judge.mmad import AVERAGE, SUBTASKS

FILE = Path(__file__).with_suffix(".csv")
MODELS = {
    "llava_ov_7b": "llava-onevision-qwen2-7b-si",
    "llava15_7b": "llava-v1.5-7b",
    "llava15_13b": "llava-v1.5-13b",
    "llava16_34b": "llava-v1.6-34b",
    "qwen25vl_7b": "Qwen2.5-VL-7B-Instruct",
    "qwen25vl_72b": "Qwen2.5-VL-72B-Instruct-AWQ",
}
# questions by set: good and defective of anomaly detection, then the other subtasks
QUESTIONS: Mapping[str, tuple[int, ...]] = {
    "DS-MVTec": (465, 1226, 1205, 1193, 1213, 1205, 464, 1367),
    "MVTec-LOCO": (573, 992, 982, 982, 974, 954, 544, 1623),
    "VisA": (943, 1198, 1190, 1197, 1190, 1163, 935, 2806),
    "GoodsAD": (1269, 1631, 1311, 1506, 1333, 1460, 1211, 3367),
}
COUNTED = ("Overkill", "Recall", *SUBTASKS[1:])  # shares of those questions
NEAR = 1e-4  # by how much a count may differ from a whole number
PLAIN = {"templates": "random", "knowledge": False, "order": "listed"}  # as it was asked there

Row = Mapping[str, Any]


@cache
def cells() -> Mapping[tuple[str, int], Mapping[tuple[str, str], float]]:
    """Percent by model and shots, then by set (or AVERAGE) and metric."""
    found: dict[tuple[str, int], dict[tuple[str, str], float]] = {}
    with FILE.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            place = row["model"], int(row["setting"].removesuffix("-shot"))
            found.setdefault(place, {})[row["dataset"], row["metric"]] = float(row["value"])
    return found


def broken(model: str, shots: int) -> int:
    """How many published cells are no share of all the questions: some were left out of them."""
    values = cells()[model, shots]
    pairs = (
        (values.get((name, metric)), n)
        for name, counts in QUESTIONS.items()
        for metric, n in zip(COUNTED, counts, strict=True)
    )
    counts = (value * n / 100 for value, n in pairs if value is not None)
    return sum(abs(count - round(count)) > NEAR for count in counts)


def beside(
    found: Sequence[Row], config: Mapping[str, Any], hub: str | None
) -> list[dict[str, Any]]:
    """For every table of `mmad` that an untrained model with published accuracies has answered:
    {stage, shots, model, rows, incomparable, notes}.

    `rows` are {dataset, subtask, published, ours, difference, ci95}, percent, AVERAGE only where
    all sets were asked. Ours count an unreadable answer as wrong. `difference` and its interval are
    ours less the published, which is taken as exact; None where `incomparable` says why. `hub` is
    the hub id of the backbone's published weights.
    """
    model = _model(config, hub)
    published = cells()
    return [
        _beside(table, model, published[model, table["shots"]], config, hub)
        for table in found
        if model is not None and table["stage"] == "base" and (model, table["shots"]) in published
    ]


def without(found: Sequence[Row], config: Mapping[str, Any], hub: str | None) -> str | None:
    """Why some of the tables have no published one beside them; None where all have."""
    model = _model(config, hub)
    shots = [k for name, k in cells() if name == model]
    if not shots:
        return "MMAD has published no accuracies of this model." if found else None
    if all(table["stage"] == "base" and table["shots"] in shots for table in found):
        return None
    return f"MMAD has published {model} untrained and {shots[0]}-shot only."


def standing(found: Sequence[Row]) -> list[dict[str, Any]]:
    """All models that MMAD has published and those of our tables that hold all sets, the best
    average first: {model, stage, shots, average, flatters, rates}, percent.

    `model` is None of ours, `stage` of theirs; `rates` are the means over sets by subtask, and
    `flatters` says that a published file has left questions out. Empty without a table of ours.
    """
    ours = [
        {"model": None, "stage": table["stage"], "shots": table["shots"], "flatters": False,
         "average": table["average"]["average"],
         "rates": [table["average"][task] for task in SUBTASKS]}
        for table in found
        if set(table["sets"]) == set(QUESTIONS)
    ]  # fmt: skip
    theirs = [
        {"model": model, "stage": None, "shots": shots, "flatters": broken(model, shots) > 0,
         "average": values[AVERAGE, AVERAGE],
         "rates": [values[AVERAGE, task] for task in SUBTASKS]}
        for (model, shots), values in cells().items()
    ]  # fmt: skip
    return sorted([*theirs, *ours], key=lambda row: -row["average"]) if ours else []


def _model(config: Mapping[str, Any], hub: str | None) -> str | None:
    """What MMAD calls the model: one of a service by the name that the service has for it, others
    by their hub id or, read from a folder of another name, by their backbone."""
    backbone = config.get("backbone") or {}
    name = str(backbone.get("name"))
    if name == "api":
        return str(backbone.get("model"))
    path = str(backbone.get("path") or hub)
    if _last(path) == _last(str(hub)):
        return MODELS.get(name)
    known = {_last(model): model for model, _ in cells()}
    return known.get(_last(path)) or (MODELS.get(name) if Path(path).is_absolute() else None)


def _last(path: str) -> str:
    return path.rpartition("/")[2].lower().removesuffix("-hf")


def _beside(
    table: Row,
    model: str,
    published: Mapping[tuple[str, str], float],
    config: Mapping[str, Any],
    hub: str | None,
) -> dict[str, Any]:
    why = _incomparable(table, config)
    rows = []
    sets: dict[str, Mapping[str, float | None]] = {
        name: table["sets"][name]["strict"] for name in QUESTIONS if name in table["sets"]
    }
    if len(sets) == len(QUESTIONS):
        sets[AVERAGE] = table["average"]
    for name, rates in sets.items():
        for subtask in (*SUBTASKS, "average"):
            theirs = published[name, AVERAGE if subtask == "average" else subtask]
            ours = rates.get(subtask)
            bounds = (table.get("intervals") or {}).get(name, {}).get(subtask)
            open_ = ours is None or why is not None
            rows.append(
                {
                    "dataset": name, "subtask": subtask, "published": theirs, "ours": ours,
                    "difference": None if ours is None or open_ else ours - theirs,
                    "ci95": None if open_ or not bounds else [b - theirs for b in bounds],
                }
            )  # fmt: skip
    return {
        "stage": table["stage"], "shots": table["shots"], "model": model, "rows": rows,
        "incomparable": why, "notes": list(_notes(table, model, config, hub)),
    }  # fmt: skip


def _incomparable(table: Row, config: Mapping[str, Any]) -> str | None:
    weights = (config.get("weights") or {}).get("name", "published")
    limit = (config.get("evaluate") or {}).get("limit")
    if weights != "published":
        return f"the weights are {weights}, not the published ones"
    if limit is not None and any(row["n"] >= limit for row in table["sets"].values()):
        return f"only the first {limit:,} questions of a set were asked (evaluate.limit)"
    return None


def _notes(table: Row, model: str, config: Mapping[str, Any], hub: str | None) -> Iterator[str]:
    path = str((config.get("backbone") or {}).get("path") or hub)
    if _last(path) not in (_last(str(hub)), _last(model)):
        yield f"weights read from {path}, taken for those of {hub}"
    if lost := broken(model, table["shots"]):
        yield (
            f"{lost} of {len(QUESTIONS) * len(COUNTED)} published cells are no share of all the "
            "questions: unreadable answers were left out there, which flatters"
        )
    if unread := sum(row["invalid"] for row in table["sets"].values()):
        yield f"{unread:,} answers could not be read: wrong here, left out by the released script"
    if table.get("choices") == "logprob":
        yield "the likeliest letter answers here, the text there"
    asked = (config.get("benchmark") or {}).get("mmad") or {}
    other = [f"{key}={asked[key]}" for key in PLAIN if asked.get(key, PLAIN[key]) != PLAIN[key]]
    if other:
        yield f"asked here with {', '.join(other)}"
    for name, row in table["sets"].items():
        if row["n"] != sum(QUESTIONS.get(name, ())):
            yield f"{name}: {row['n']:,} questions here, {sum(QUESTIONS.get(name, ())):,} published"
    if model.endswith("AWQ"):
        yield "the published weights are quantised (AWQ)"
