"""The results that IAD-R1's paper prints, and an evaluation of ours beside them.

`paper.csv` holds the numbers: balanced accuracy in percent, each with the table that prints it (T1
to T11, or a file of the paper's repository). In T2, T3, T5 and T6 the model was inferred.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_suffix(".csv")
METRIC = "balanced_accuracy"
AVERAGE = "Average"
SETS = ("MVTec-AD", "MPDD", "VisA", "DAGM", "DTD-Synthetic", "SDD")  # in the order of the tables
FEW_SHOT_SETS = ("MVTec-AD", "VisA")  # the others are tested without references alone
IMAGES: Mapping[str, int] = {  # of the paper's lists
    "MVTec-AD": 1691, "MPDD": 458, "VisA": 2141, "DAGM": 8050, "DTD-Synthetic": 1304, "SDD": 340,
}  # fmt: skip
NAMES = {
    "mvtec": "MVTec-AD", "ds-mvtec": "MVTec-AD", "mvtec-ad": "MVTec-AD", "visa": "VisA",
    "mpdd": "MPDD", "dagm": "DAGM", "sdd": "SDD", "dtd": "DTD-Synthetic",
    "dtd-synthetic": "DTD-Synthetic",
}  # fmt: skip
MODELS = {
    "llava_ov_05b": ("LLaVA-OneVision-SI", "0.5B"),
    "llava_ov_7b": ("LLaVA-OneVision-SI", "7B"),
    "llava15_7b": ("LLaVA-1.5", "7B"),
    "llava15_13b": ("LLaVA-1.5", "13B"),
    "llava16_8b": ("LLaVA-1.6", "8B"),
    "llava16_34b": ("LLaVA-1.6", "34B"),
    "qwen2vl_2b": ("Qwen2-VL-Instruct", "2B"),
    "qwen25vl_3b": ("Qwen2.5-VL-Instruct", "3B"),
    "qwen25vl_7b": ("Qwen2.5-VL-Instruct", "7B"),
    "qwen25vl_72b": ("Qwen2.5-VL-Instruct", "72B"),
    "internvl25_4b": ("InternVL-2.5", "4B"),
}
BASE, SFT, GRPO = "base", "PA-SFT", "PA-SFT+SC-GRPO"
GRPO_ALONE = "SC-GRPO(no PA-SFT)"
TRUSTED = ("T4", "T1")  # the fullest tables first; others only where these have no such cell
ROUNDING = 0.1  # percent by which two printings of a value may differ

Row = Mapping[str, Any]
Config = Mapping[str, Any]  # a run's config.json


@dataclass(frozen=True)
class Printed:
    """A cell of the paper: percent, the table it is from, and where the paper contradicts it."""

    value: float
    table: str
    flags: tuple[str, ...] = ()


@cache
def rows() -> tuple[Row, ...]:
    """All rows of `paper.csv`."""
    with FILE.open(encoding="utf-8", newline="") as lines:
        return tuple({**row, "value": float(row["value"])} for row in csv.DictReader(lines))


def printed(model: str, params: str, method: str, shots: int, dataset: str) -> Printed | None:
    """What the paper says of a model, method, number of shots and set; None where it does not.

    The average is that of the cells, so that it belongs to them, and not the one that is printed.
    """
    asked = (model, params, method, f"{shots}-shot")
    if dataset != AVERAGE:
        return _cell(*asked, dataset)
    cells = {name: cell for name in averaged(shots) if (cell := _cell(*asked, name)) is not None}
    if len(cells) < len(averaged(shots)):
        return None
    mean = sum(cell.value for cell in cells.values()) / len(cells)
    tables = "+".join(dict.fromkeys(cell.table for cell in cells.values()))
    flags = _disagreeing(mean, _printings(*asked, AVERAGE))
    of_cells = (f"{flag} of {name}" for name, cell in cells.items() for flag in cell.flags)
    return Printed(mean, tables, (*flags, *of_cells))


def contradictions(
    value: float, model: str, params: str, method: str, shots: int, dataset: str
) -> list[str]:
    """Where the paper prints something else than `value` for this, by more than rounding."""
    return list(_disagreeing(value, _printings(model, params, method, f"{shots}-shot", dataset)))


def averaged(shots: int) -> tuple[str, ...]:
    """The sets of the paper's average."""
    return FEW_SHOT_SETS if shots else SETS


def beside(
    results: Sequence[Row], config: Config, trained: Mapping[str, Config], hub: str | None
) -> list[dict[str, Any]]:
    """Rows of `results` that the paper has too, with its number and ours.

    `config` is that of the run which evaluated; `trained` holds those which trained its weights, by
    stage (`starts.trained_by`), and `hub` is the hub id of the backbone's published weights.
    `difference` and its `ci95` are ours less the paper's, which is taken as exact; both are None
    where `incomparable` says why. `notes` are the paper's contradictions and other sizes of sets.
    """
    backbone = str((config.get("backbone") or {}).get("name"))
    if backbone not in MODELS:
        return []
    sets = {row["split"]: name for row in results if (name := _set(row["split"], config))}
    limited = {row["split"] for row in results if _limited(row, config)}
    read_from = str((config.get("backbone") or {}).get("path") or hub)
    same = read_from.rpartition("/")[2].lower() == str(hub).rpartition("/")[2].lower()
    found = []
    for row in results:
        made = trained.get(row["stage"], config)
        members = row.get("of") or [row["split"]]
        names = {sets.get(member) for member in members}
        mean = "of" in row and names == set(averaged(row["shots"]))
        name = AVERAGE if mean else sets.get(row["split"])
        tuned = "sft" in trained or any(other["stage"] == "sft" for other in results)
        method = _method(row["stage"], made, tuned)
        if name is None or method is None or row.get(METRIC) is None:
            continue
        paper = printed(*MODELS[backbone], method, row["shots"], name)
        if paper is None:
            continue
        why = None
        kinds = [(of.get("weights") or {}).get("name", "published") for of in (config, made)]
        if unpublished := [kind for kind in kinds if kind != "published"]:
            why = f"the weights are {unpublished[0]}, not the published ones"
        elif not same and not Path(read_from).is_absolute():
            why = f"the weights are those of {read_from}, not of {hub}"
        elif limited.intersection(members):
            limit = config["evaluate"]["limit"]
            why = f"only the first {limit:,} pictures were tested (evaluate.limit)"
        bounds = (row.get("ci95") or {}).get(METRIC)
        flags = [f"the paper contradicts itself: {flag}" for flag in paper.flags]
        notes = [*flags, *_sizes(row, name), *_adapters(row, made)]
        if not same and why is None:
            notes.append(f"weights read from {read_from}, taken for those of {hub}")
        if config.get("init") and row["stage"] not in ("base", *trained):
            notes.append("the run that trained these weights is gone: settings are of this one")
        found.append(
            {
                "stage": row["stage"], "split": row["split"], "shots": row["shots"],
                "model": " ".join(MODELS[backbone]), "method": method, "dataset": name,
                "table": paper.table, "published": paper.value, "ours": row[METRIC],
                "ours_ci95": bounds,
                "difference": None if why else row[METRIC] - paper.value,
                "ci95": None if why or not bounds else [b - paper.value for b in bounds],
                "incomparable": why, "notes": notes,
            }
        )  # fmt: skip
    return found


def _adapters(row: Row, config: Config) -> list[str]:
    """That other weights were trained than in the paper's tables, where they were."""
    adapted = (config.get("tuning") or {}).get("name") == "lora" and row["stage"] != "base"
    return ["LoRA here, all weights trained in the paper's table"] * adapted


def _printings(
    model: str, params: str, method: str, setting: str, dataset: str
) -> dict[str, float]:
    """The values of one cell, by table."""
    wanted = (model, params, method, setting, dataset)
    keys = ("model", "params", "method", "setting", "dataset")
    return {row["table"]: row["value"] for row in rows() if tuple(row[k] for k in keys) == wanted}


def _cell(model: str, params: str, method: str, setting: str, dataset: str) -> Printed | None:
    found = _printings(model, params, method, setting, dataset)
    if not found:
        return None
    table = next((name for name in TRUSTED if name in found), next(iter(found)))
    return Printed(found[table], table, tuple(_disagreeing(found[table], found)))


def _disagreeing(value: float, printings: Mapping[str, float]) -> Iterator[str]:
    """Where the paper contradicts `value`, by more than rounding."""
    for table, other in printings.items():
        if abs(other - value) > ROUNDING + 1e-9:
            yield f"{table} prints {other:.1f}"


def _set(split: str, config: Mapping[str, Any]) -> str | None:
    """The paper's name of a split of a benchmark; None of anything else."""
    benchmarks = config.get("benchmark") or {}
    if split in benchmarks:
        return NAMES.get(split)
    name = split.removeprefix("industrial_test_").lower()
    return NAMES.get(name) if "industrial_test" in benchmarks and split.lower() != name else None


def _limited(row: Row, config: Mapping[str, Any]) -> bool:
    limit = (config.get("evaluate") or {}).get("limit")
    return "of" not in row and limit is not None and row["n"] >= limit


def _method(stage: str, config: Config, tuned: bool) -> str | None:
    """What the paper calls weights that `config` trained; None where it trained none in this way.
    `tuned` says whether there was a PA-SFT before."""
    if stage != "grpo":
        return {"base": BASE, "sft": SFT}.get(stage)
    if (config.get("rewards") or {}).get("name") not in ("sc_grpo", "sc_grpo_released"):
        return None
    return GRPO_ALONE if (config.get("grpo") or {}).get("from_base") and not tuned else GRPO


def _sizes(row: Row, name: str) -> Iterator[str]:
    if name != AVERAGE and row["n"] != IMAGES[name]:
        yield f"{row['n']:,} pictures here, {IMAGES[name]:,} in the paper's list"
