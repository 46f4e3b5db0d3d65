"""`report.html`: one file that opens anywhere, with its pictures, figures and style inside."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from iad_r1.judge import averages, mmad, mmad_published
from iad_r1.judge.outcomes import is_yes_no
from iad_r1.judge.rates import factory_view
from iad_r1.report import (
    cards,
    figures,
    paper_tables,
    published,
    several,
    story,
    tables,
    templating,
    training,
    wording,
)
from iad_r1.report.run_data import Evaluation, RunData, load
from iad_r1.store.manifest import chosen_weights, taken
from iad_r1.store.progress import duration
from iad_r1.store.run_folder import write_text

# What the factory view starts from; a reader changes both on the page.
DEFECT_PRIOR, PARTS = 0.005, 10_000
HEADLINE_FIGURES = ("balanced_accuracy", "location_accuracy")
# All names that figures may have: those of an earlier report are removed.
FIGURES = re.compile(
    rf"({'|'.join(HEADLINE_FIGURES)}|before-and-after|(change|roc|calibration|dynamics|curve)-.+)"
    r"\.(svg|png)"
)
FEW_PRODUCTS = 5  # below this a split says nothing about other products
FORESTED = ("balanced_accuracy", "location_accuracy", "type_accuracy")

Row = dict[str, Any]
Keep = Callable[[str, figures.Drawing], Markup]  # a figure by its name, for files and the page


def build(folder: Path) -> Path:
    """Write `report.html`, `figures/*.svg`, the same as PNG, and `tables/*`; returns the path of
    the report."""
    run = load(folder)
    drawn: dict[str, figures.Drawing] = {}

    def keep(name: str, drawing: figures.Drawing) -> Markup:
        drawn[name] = drawing
        return Markup(drawing.svg)

    context = _context(run, keep)
    html = environment().get_template("report.html.j2").render(context)
    found = paper_tables.files(context["published"])
    for name, text in found.items():
        write_text(folder / "tables" / name, text)
    _clear(folder / "tables", paper_tables.NAMES, found)
    _clear(folder / "figures", FIGURES, [f"{n}{end}" for n in drawn for end in (".svg", ".png")])
    for name, drawing in drawn.items():
        file = write_text(folder / "figures" / f"{name}.svg", drawing.svg)
        file.with_suffix(".png").write_bytes(drawing.png())
    return write_text(folder / "report.html", html)


def _clear(folder: Path, ours: re.Pattern[str], kept: Collection[str]) -> None:
    """Remove what an earlier report left in a folder and this one does not have."""
    for file in folder.glob("*"):
        if ours.fullmatch(file.name) and file.name not in kept:
            file.unlink()


def environment() -> Environment:
    """That of templates which show results: values are written as the terminal writes them."""
    found = templating.environment()
    found.filters |= {
        "percent": wording.percent,
        "points": wording.points,
        "interval": wording.interval,
        "stage": wording.stage_name,
        "model": wording.model_name,
        "split": wording.split_name,
        "rule": wording.rule,
        "metric": lambda name: wording.METRIC_NAMES.get(name, name),
        "count": lambda value: wording.NOTHING if value is None else f"{value:,.1f}",
        "whole": lambda value: f"{value:,}",
        "duration": duration,
    }
    return found


def _context(run: RunData, keep: Keep) -> Row:
    rows = tables.summaries(run)
    means = averages.of_results(rows, run.benchmarks)
    changes = tables.comparisons(run)
    main = tables.main_evaluations(run)
    against = tables.against_patches(run)
    scored = tables.scores(run, rows)
    views = cards.views(run)
    asked = cards.asked(run, views)
    shown = cards.shown(run, asked)
    seconds = training.seconds(run)
    places = [tables.places(item, run.grid) for item in main] if run.grid else []
    of_paper = published.of_paper(run.folder, [*rows, *means])
    of_mmad = mmad.of_answers(
        {(e.stage, e.split, e.shots): e.predictions for e in run.evaluations}, run.seed
    )
    return {
        "title": _title(run),
        "facts": _facts(run),
        "verdict": _verdict(run, rows, means),
        "findings": [] if run.members else list(story.findings(run, rows, changes, against)),
        "members": run.members,
        "warnings": list(story.warnings([*rows, *means], changes, main)) if run.members else [],
        "apart": several.differences(run.members) if run.members else [],
        "asked": run.summary.get("asked") if run.members else None,
        "run": run,
        "few_products": list(
            {item.split: item for item in main if _n_products(item) < FEW_PRODUCTS}.values()
        ),
        "n_products": _n_products,
        "validated": any(wording.is_validation(item.split) for item in run.evaluations),
        "missing": list(
            dict.fromkeys(
                [
                    *run.missing,
                    *tables.disagreements([*rows, *means], run.summary),
                    *tables.unlike(run),
                    *run.summary.get("notes", []),
                ]
            )
        ),
        "groups": _groups(run.stages, [*rows, *means], changes),
        "averaged": means[0]["of"] if means else [],
        "published": of_paper,
        "paper_tables": paper_tables.of_page(of_paper),
        "bars": _bars(run, [*rows, *means], of_paper, keep),
        "headline_figures": list(_headline_figures(run, [*rows, *means], keep)),
        "changes": changes,
        "change_figures": list(_change_figures(changes, keep)),
        "reference_gain": tables.reference_gain(run),
        "against": against,
        "factory": _factory(rows),
        "prior": DEFECT_PRIOR,
        "parts": PARTS,
        "confusions": [row for row in rows if row["gold_yes_rate"] is not None],
        "last_stage": tables.last_stage(run),
        "reasoning": tables.reasoning(run),
        "products": [tables.products(run, e) for e in main if is_yes_no(e.predictions[0])],
        "places": [place for place in places if place],
        "boxes": list(filter(None, map(tables.boxes, run.evaluations))),
        "grid": run.grid,
        "types": [table for item in main if (table := tables.types(item))],
        "scores": scored,
        "thresholds": tables.thresholds(run),
        "mmad": of_mmad,
        "mmad_published": published.of_mmad(run.folder, of_mmad),
        "mmad_without": published.not_of_mmad(run.folder, of_mmad),
        "mmad_standing": mmad_published.standing(of_mmad),
        "subtasks": mmad.SUBTASKS,
        "score_figures": list(_score_figures(run.stages, scored, keep)),
        "curves": _curves(run, keep),
        "chosen": chosen_weights(run.manifest),
        "not_finite": training.not_finite(run),
        "seconds": seconds,
        "taken": list(taken(run.manifest)),
        "total_seconds": sum(row["seconds"] for row in seconds),
        "rollouts": training.rollouts(run),
        "views": views,
        "view": cards.default_view(views),
        "cards": cards.cards(run, views, shown),
        "left_out": len(asked) - len(shown),
        "heat_shown": {i.stage for i in run.evaluations} <= _patches(run),
        "config": wording.flat(run.config),
        "manifest": wording.flat(run.manifest),
    }


def _patches(run: RunData) -> set[str]:
    """What nearest good patches are called here, alone and among several runs."""
    named = (member.label for member in run.members if member.stage == wording.PATCHCORE)
    return {wording.PATCHCORE, *named}


def _facts(run: RunData) -> list[tuple[str, str]]:
    """The line under the title: what was run, on what, when."""
    facts = [] if run.members else [("run", run.folder.name)]
    for section in ("stage", "backbone", "data", "benchmark", "rewards", "grid", "tuning"):
        if name := wording.chosen(run.config, section):
            facts.append((section, name))
    if "seed" in run.config:
        facts.append(("seed", str(run.config["seed"])))
    if spent := sum((run.summary.get("seconds") or {}).values()):
        facts.append(("time", duration(spent)))
    return facts


def _title(run: RunData) -> str:
    labels = [member.label for member in run.members]
    if labels:
        return ", ".join(labels) if len(labels) < 4 else f"{len(labels)} runs side by side"
    return str(run.config.get("name") or run.folder.parent.name)


def _verdict(run: RunData, rows: Sequence[Row], means: Sequence[Row]) -> str | None:
    """What the report begins with: of the average over benchmarks, else of each test split, with
    the fewest reference pictures."""
    main = {(item.stage, item.split, item.shots) for item in tables.main_evaluations(run)}
    found = [row for row in rows if (row["stage"], row["split"], row["shots"]) in main]
    found = [row for row in found if not wording.is_validation(row["split"])] or found
    if run.members:
        few = min((row["shots"] for row in means), default=0)
        return story.ranking(run, [row for row in means if row["shots"] == few] or found)
    averaged = [row for row in means if row["stage"] == tables.last_stage(run)]
    if averaged:
        found = [min(averaged, key=lambda row: row["shots"])]
    return story.verdict(found) if found else None


def _n_products(item: Evaluation) -> int:
    return len({p.product for p in item.predictions})


# ------------------------------------------------------------------------------ headline


def _groups(stages: Sequence[str], rows: Sequence[Row], changes: Sequence[Row]) -> list[Row]:
    """The headline table: per (split, shots), a line per metric with a cell per stage."""
    groups = []
    for split, shots in dict.fromkeys((row["split"], row["shots"]) for row in rows):
        here = {r["stage"]: r for r in rows if (r["split"], r["shots"]) == (split, shots)}
        scored = any(row["auroc"] is not None for row in here.values())
        last = {
            c["metric"]: c
            for c in changes
            if (c["split"], c["shots"], c["to"]) == (split, shots, stages[-1])
        }
        shown = wording.headline(next(iter(here.values())))
        lines = [
            {
                "metric": metric,
                "cells": [here.get(stage, {}).get(metric) for stage in stages],
                "bounds": [here.get(stage, {}).get("ci95", {}).get(metric) for stage in stages],
                "change": last.get(metric),
            }
            for metric in (*shown, *(["auroc"] if scored else []))
        ]
        n = max(row["n"] for row in here.values())
        groups.append({"split": split, "shots": shots, "n": n, "lines": lines, "stages": stages})
    return groups


def _headline_figures(run: RunData, rows: Sequence[Row], keep: Keep) -> Iterator[Markup]:
    for metric in HEADLINE_FIGURES:
        points = [
            {**row, "label": _images(row), "value": row[metric], "ci95": row["ci95"].get(metric)}
            for row in rows
        ]
        if any(point["value"] is not None for point in points):
            chance = 50.0 if metric == "balanced_accuracy" else tables.uniform_chance(run)
            yield keep(metric, figures.headline(points, metric, chance, run.stages))


def _images(row: Row) -> str:
    return f"{row['split']}, {row['shots']}-shot"


def _change_figures(changes: Sequence[Row], keep: Keep) -> Iterator[Markup]:
    """One figure per pair of neighbouring stages."""
    for before, after in dict.fromkeys((row["from"], row["to"]) for row in changes):
        points = [
            {**row, "label": f"{_images(row)}: {row['metric'].replace('_accuracy', '')}"}
            for row in changes
            if (row["from"], row["to"]) == (before, after) and row["metric"] in FORESTED
        ]
        if points:
            title = f"{wording.model_name(after)} against {wording.model_name(before)}"
            yield keep(f"change-{before}-{after}", figures.differences(points, title))


def _bars(run: RunData, rows: Sequence[Row], of_paper: Sequence[Row], keep: Keep) -> Markup | None:
    """Figures 22 to 28 of the paper for the backbone of this run; None of a single stage."""
    shown = {(member.label, member.stage) for member in run.members}
    printed = {
        (row.get("run", row["stage"]), row["split"], row["shots"]): row["published"]
        for row in of_paper
        if not row["incomparable"] and ("run" not in row or (row["run"], row["stage"]) in shown)
    }
    points = [
        {"label": f"{row['split']}\n{row['shots']}-shot", "stage": row["stage"],
         "value": row["balanced_accuracy"], "ci95": row["ci95"].get("balanced_accuracy"),
         "paper": printed.get((row["stage"], row["split"], row["shots"]))}
        for row in rows
        if row["balanced_accuracy"] is not None and not wording.is_validation(row["split"])
    ]  # fmt: skip
    if len({point["stage"] for point in points}) < 2:
        return None
    name = "" if run.members else f"{wording.chosen(run.config, 'backbone') or 'model'}: "
    title = f"{name}balanced accuracy, %"
    drawing = figures.bars(points, title, run.stages, gains=not run.members)
    return keep("before-and-after", drawing)


def _factory(rows: Sequence[Row]) -> list[Row]:
    """Rates with their meaning for PARTS parts at DEFECT_PRIOR, where both are defined."""
    return [
        {
            **row,
            "view": factory_view(row["miss_rate"], row["overkill_rate"], DEFECT_PRIOR, PARTS),
        }
        for row in rows
        if row["miss_rate"] is not None and row["overkill_rate"] is not None
        if row["invalid_rate"] < 100  # it judged nothing, so there is no line to picture
    ]


# ---------------------------------------------------------------------- scores and curves


def _score_figures(stages: Sequence[str], scored: Sequence[Row], keep: Keep) -> Iterator[Markup]:
    for split in dict.fromkeys(row["split"] for row in scored):
        here = [row for row in scored if row["split"] == split]
        title = _images(here[0])
        yield keep(f"roc-{split}", figures.roc(here, f"ROC: {title}", stages))
        sure = [row for row in here if row["calibration"] is not None]
        if sure:
            drawing = figures.calibration(sure, f"Calibration: {title}", stages)
            yield keep(f"calibration-{split}", drawing)


def _curves(run: RunData, keep: Keep) -> list[Row]:
    """Per stage: its leading panels and the folded ones."""
    found, labels = [], [member.label for member in run.members]
    for stage, of_stage in training.panels(run).items():
        row: Row = {"stage": stage, "dynamics": None, "leading": [], "folded": []}
        if both := training.dynamics(of_stage):
            drawing = figures.dynamics(both, f"{stage}: reward and length", labels)
            row["dynamics"] = keep(f"dynamics-{stage}", drawing)
        for title, series in of_stage.items():
            name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
            shown = f"{stage}: {title.replace('_', ' ')}"
            series = series if labels else training.readable(series)
            svg = keep(f"curve-{stage}-{name}", figures.curves(series, shown, labels))
            row["leading" if training.leads(title) else "folded"].append(svg)
        found.append(row)
    return found
