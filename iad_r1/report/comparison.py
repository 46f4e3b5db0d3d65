"""What `stage=compare` found, as numbers, for the terminal and as a page.

Runs are named A, B, ... in the order they were given. A is compared with each of the others, by
the last weights that each has evaluated.
"""

from __future__ import annotations

import csv
import io
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from iad_r1.errors import MismatchError, setting
from iad_r1.judge import averages
from iad_r1.judge.compare import holm, mcnemar
from iad_r1.judge.rates import summarise
from iad_r1.report import cards, figures, page, run_data, several, tables, wording
from iad_r1.report.run_data import Evaluation, RunData
from iad_r1.store.run_folder import write_json, write_text
from iad_r1.types import Prediction

CHANGED_SHOWN = 500  # rows of the page's table of changed images; compare.json has all
ASKED = ("prompt", "evaluator", "choices", "max_tokens", "max_pixels", "max_size", "limit")
FORESTED = ("accuracy", "balanced_accuracy", "overkill_rate", "location_accuracy")
COLUMNS: tuple[str, ...] = (
    "from", "to", "split", "shots", "metric", "before", "after", "delta", "low", "high", "n",
    "n_changed", "verdict", "only_from", "only_to", "p", "p_holm",
)  # fmt: skip

Row = dict[str, Any]
Group = tuple[str, int]  # split, shots


@dataclass(frozen=True)
class Named:
    """A run with its letter, and the answers of the last weights it has evaluated."""

    name: str
    run: RunData
    evaluations: Mapping[Group, Evaluation]


@dataclass(frozen=True)
class Comparison:
    """`content` is that of `compare.json`; `runs` hold the answers that were compared."""

    content: Row
    runs: Sequence[Named]


def load(folders: Sequence[str]) -> list[Named]:
    """The runs, named by letters. Raises DataError if one cannot be read or holds several,
    MismatchError if it was not evaluated."""
    found = []
    for name, folder in zip(string.ascii_uppercase, folders, strict=False):
        several.refuse(Path(folder))
        run = run_data.load(Path(folder))
        evaluations = {item.group: item for item in tables.last_evaluations(run)}
        if not evaluations:
            raise MismatchError(
                f"{folder} was not evaluated, so there is nothing to compare. Evaluate it first: "
                f"python run.py stage=evaluate {setting('init', folder)}."
            )
        found.append(Named(name, run, evaluations))
    return found


def compare(runs: Sequence[Named], shared: bool, seed: int) -> Comparison:
    """The first run against each of the others on the same images.

    With `shared`, only images that all runs judged are compared where they did not judge the same.
    Raises MismatchError if images or labels differ, or no split was judged by both.
    """
    notes: list[str] = []
    runs = list(_aligned(runs, shared, notes))
    first, *others = runs
    notes += [note for other in others for note in _differences(first, other)]
    tests = [
        _tested(first, other, group, seed)
        for other in others
        for group in first.evaluations
        if group in other.evaluations
    ]
    for test, p in zip(tests, holm([test["p"] for test in tests]), strict=True):
        test["p_holm"] = p
    rows = [
        {**{key: test[key] for key in ("from", "to", "split", "shots")}, **row}
        for test in tests
        for row in test.pop("metrics")
    ]
    common = {split for split, _ in first.evaluations}.intersection(
        *({split for split, _ in other.evaluations} for other in others)
    )
    means = averages.of_comparisons(rows, [s for s in first.run.benchmarks if s in common])
    rows += [{**row, "verdict": tables.verdict(row["metric"], row)} for row in means]
    return Comparison(
        {
            "runs": [
                {"name": of.name, "folder": str(of.run.folder), "stage": _stage(of),
                 "chosen": _chosen(of.run)}
                for of in runs
            ],
            "notes": notes,
            "tests": tests,
            "differences": rows,
            "results": [
                {"run": of.name, "split": split, "shots": shots,
                 **summarise(item.predictions, seed)}
                for of in runs
                for (split, shots), item in of.evaluations.items()
            ],
            "changed": [row for other in others for row in _changed(first, other)],
        },
        runs,
    )  # fmt: skip


def _stage(of: Named) -> str:
    return next(iter(of.evaluations.values())).stage


def _chosen(run: RunData) -> str:
    sections = ("backbone", "data", "benchmark", "rewards", "tuning")
    parts = [f"{s}={wording.chosen(run.config, s)}" for s in sections]
    return " ".join(part for part in parts if not part.endswith("="))


# --- the same images, asked the same way ---------------------------------------------------------


def _aligned(runs: Sequence[Named], shared: bool, notes: list[str]) -> Iterator[Named]:
    """The runs, on the images that they share where that is asked for."""
    first, *others = runs
    for other in others:
        if not set(first.evaluations) & set(other.evaluations):
            raise MismatchError(
                f"{first.run.folder} and {other.run.folder} have no split and number of shots in "
                f"common ({_groups(first)}; {_groups(other)}). Evaluate both on the same benchmark."
            )
        for alone in set(first.evaluations) ^ set(other.evaluations):
            has, lacks = (first, other) if alone in first.evaluations else (other, first)
            notes.append(f"{alone[0]}, {alone[1]}-shot: judged by {has.name}, not by {lacks.name}.")
    kept: dict[Group, set[str]] = {}
    for group in first.evaluations:
        sets = {
            of.name: {row.id for row in of.evaluations[group].predictions}
            for of in runs
            if group in of.evaluations
        }
        kept[group] = set.intersection(*sets.values())
        most = max(map(len, sets.values()))
        if len(kept[group]) == most:
            continue
        counts = ", ".join(f"{name} {len(ids):,}" for name, ids in sets.items())
        where = f"{group[0]}, {group[1]}-shot: the runs judged different images ({counts}"
        if not shared or not kept[group]:
            also = " Use stage.shared=true to compare on those." if kept[group] else ""
            raise MismatchError(f"{where}; {len(kept[group]):,} the same).{also}")
        notes.append(f"{where}); compared on the {len(kept[group]):,} that all judged.")
    for of in runs:
        yield replace(
            of,
            evaluations={
                group: replace(
                    item, predictions=tuple(r for r in item.predictions if r.id in kept[group])
                )
                for group, item in of.evaluations.items()
                if group in kept
            },
        )


def _groups(of: Named) -> str:
    return f"{of.name}: " + ", ".join(f"{split} {shots}-shot" for split, shots in of.evaluations)


def _differences(first: Named, other: Named) -> Iterator[str]:
    """What was not the same but the weights: prompts, how answers are read, grids, references and
    data."""
    pair = f"{first.name} and {other.name}"
    for key in ASKED:
        # an older version always read the text
        a, b = (
            {"choices": "text", **(of.run.config.get("evaluate") or {})}.get(key)
            for of in (first, other)
        )
        if a != b:
            yield f"{pair} differ in evaluate.{key}: {a} and {b}."
    if first.run.grid != other.run.grid:
        grids = " and ".join(wording.chosen(of.run.config, "grid") for of in (first, other))
        yield f"{pair} differ in the grid ({grids}), so their places cannot be compared."
    prints = [(of.run.manifest.get("data") or {}).get("fingerprints") or {}
              for of in (first, other)]  # fmt: skip
    for section in sorted(set(prints[0]) & set(prints[1])):
        if prints[0][section] != prints[1][section]:
            yield (
                f"{pair} read other files, settings or a seed of {section}: images were matched by "
                "their names."
            )
    for (split, shots), old, new in _pairs(first, other):
        shown = sum(new[id].references != row.references for id, row in old.items())
        if shown:
            yield f"{pair} showed other references with {shown:,} images ({split}, {shots}-shot)."


def _pairs(
    first: Named, other: Named
) -> Iterator[tuple[Group, Mapping[str, Prediction], Mapping[str, Prediction]]]:
    """The answers of both to each split, by image."""
    for group in first.evaluations:
        if group in other.evaluations:
            old, new = (
                {row.id: row for row in of.evaluations[group].predictions} for of in (first, other)
            )
            yield group, old, new


# --- the numbers ---------------------------------------------------------------------------------


def _tested(first: Named, other: Named, group: Group, seed: int) -> Row:
    old, new = first.evaluations[group], other.evaluations[group]
    found = mcnemar(old.predictions, new.predictions)
    rows = tables.compared(old.predictions, new.predictions, seed)
    if first.run.grid != other.run.grid:
        rows = [row for row in rows if row["metric"] != "location_accuracy"]
    return {
        "from": first.name,
        "to": other.name,
        "split": group[0],
        "shots": group[1],
        "n": len(old.predictions),
        "only_from": found["only_before"],
        "only_to": found["only_after"],
        "p": found["p"],
        "metrics": rows,
    }


def _changed(first: Named, other: Named) -> Iterator[Row]:
    """Every image that the two answer differently, those first whose verdict changed."""
    for (split, shots), old, new in _pairs(first, other):
        rows = []
        for id, before in old.items():
            after = new[id]
            if before.answer != after.answer:
                was, now = (row.answer == row.gold_answer for row in (before, after))
                change = "other" if was == now else "mended" if now else "spoilt"
                rows.append(
                    {"from": first.name, "to": other.name, "split": split, "shots": shots,
                     "id": id, "product": before.product, "gold": before.gold_answer,
                     "before": before.answer, "after": after.answer, "change": change}
                )  # fmt: skip
        yield from sorted(rows, key=lambda row: (row["change"] == "other", row["id"]))


# --- files ---------------------------------------------------------------------------------------


def write(found: Comparison, folder: Path, pictures: int) -> None:
    """Write `compare.json`, `compare.csv` and `compare.html`."""
    write_json(folder / "compare.json", found.content)
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    table.writerows(_flat(found.content))
    write_text(folder / "compare.csv", text.getvalue())
    write_text(folder / "compare.html", _page(found, pictures))


def _flat(content: Row) -> Iterator[Row]:
    """A row per metric, with the values of both runs and the test of its split."""
    places = ("split", "shots")
    results = {(row["run"], *(row[key] for key in places)): row for row in content["results"]}
    tests = {(t["from"], t["to"], *(t[key] for key in places)): t for t in content["tests"]}
    for row in content["differences"]:
        place = tuple(row[key] for key in places)
        before, after = (results.get((row[key], *place), {}) for key in ("from", "to"))
        low, high = row["ci95"] or (None, None)
        yield {
            **tests.get((row["from"], row["to"], *place), {}),
            **row,
            "before": before.get(row["metric"]),
            "after": after.get(row["metric"]),
            "low": low,
            "high": high,
        }


def _page(found: Comparison, pictures: int) -> str:
    content = found.content
    views = [
        {"key": f"v{index}", "stage": of.name, "shots": shots,
         "label": f"{of.name}, {shots}-shot",
         "before": None if of is found.runs[0] else _view_of_first(found, shots)}
        for index, (of, shots) in enumerate(_views(found))
    ]  # fmt: skip
    run = _as_one(found)
    shown = cards.cards(run, views, cards.asked(run, views))
    shown.sort(key=lambda card: not any(answer["change"] for answer in card["answers"]))
    return (
        page.environment()
        .get_template("compare.html.j2")
        .render(
            title=" and ".join(of.name for of in found.runs),
            content=content,
            lines=list(_flat(content)),
            figures=[Markup(drawing.svg) for drawing in _figures(content)],
            changed=content["changed"][:CHANGED_SHOWN],
            views=views,
            view=views[-1]["key"] if views else None,
            cards=shown[:pictures],
            left_out=len(shown[pictures:]),
            heat_shown=False,
        )
    )


def _views(found: Comparison) -> list[tuple[Named, int]]:
    return [
        (of, shots) for of in found.runs for shots in sorted({shots for _, shots in of.evaluations})
    ]


def _view_of_first(found: Comparison, shots: int) -> int | None:
    """Which view the answers of a run are compared with: those of the first run, asked alike."""
    places = [(of.name, k) for of, k in _views(found)]
    wanted = (found.runs[0].name, shots)
    return places.index(wanted) if wanted in places else None


def _as_one(found: Comparison) -> RunData:
    """All runs as one run folder whose stages are the letters: the gallery shows it as such."""
    pictures: dict[str, Row] = {}
    for of in found.runs:
        for row in of.run.pictures:
            files = {
                key: row[key] and str((of.run.folder / row[key]).absolute())
                for key in ("image", "mask", "heat")
            }
            one = pictures.setdefault(row["id"], {**row, **files})
            one["heat"] = one["heat"] or files["heat"]  # another run may have one
    return replace(
        found.runs[0].run,
        evaluations=tuple(
            replace(item, stage=of.name) for of in found.runs for item in of.evaluations.values()
        ),
        pictures=tuple(pictures.values()),
    )


def _figures(content: Row) -> Iterator[figures.Drawing]:
    for to in dict.fromkeys(row["to"] for row in content["differences"]):
        points = [
            {**row, "label": f"{row['split']}, {row['shots']}-shot: "
             f"{row['metric'].replace('_accuracy', '')}"}
            for row in content["differences"]
            if row["to"] == to and row["metric"] in FORESTED
        ]  # fmt: skip
        if points:
            yield figures.differences(points, f"{to} against {content['runs'][0]['name']}")


# --- the terminal --------------------------------------------------------------------------------


def show(found: Comparison, folder: Path, console: Console) -> None:
    """The runs, what differed between them, and a row per pair of runs and split: 80 columns."""
    content = found.content
    console.print()
    for run in content["runs"]:
        text = f"{run['name']}  {run['folder']} ({wording.stage_name(run['stage'])})"
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    for note in content["notes"]:
        console.print(note, style="yellow", markup=False, highlight=False)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("images", overflow="fold")
    for column in ("", "n", "change, points", "right alone", "p", "Holm"):
        table.add_column(column, justify="right", no_wrap=True)
    for test in content["tests"]:
        row = next(r for r in content["differences"]
                   if all(r[k] == test[k] for k in ("from", "to", "split", "shots")))  # fmt: skip
        change = f"{wording.points(row['delta'])} {wording.interval(row['ci95'])}"
        table.add_row(
            escape(f"{test['split']} {test['shots']}-shot"),
            f"{test['from']}>{test['to']}",
            f"{test['n']:,}",
            escape(change if wording.clear(row) else f"~ {change}"),
            f"{test['only_from']}:{test['only_to']}",
            _p(test["p"]),
            _p(test["p_holm"]),
        )
    console.print(table)
    firsts = dict.fromkeys(
        next(r["metric"] for r in content["differences"] if r["split"] == test["split"])
        for test in content["tests"]
    )
    console.print(
        f"Change of {', '.join(wording.METRIC_NAMES[name] for name in firsts)} with its 95 % "
        "interval; ~: it includes zero. Right alone: images that one run alone judged rightly. "
        "p: McNemar's exact test of those; Holm: adjusted for the number of rows.",
        style="dim", highlight=False,
    )  # fmt: skip
    for name in ("compare.html", "compare.json", "compare.csv"):
        console.print(f"  {folder / name}", markup=False, highlight=False, soft_wrap=True)


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"
