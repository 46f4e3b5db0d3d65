"""`report.html`: one file that opens anywhere, with its pictures, figures and style inside."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from iad_r1.judge.rates import factory_view
from iad_r1.report import cards, figures, story, tables, training, wording
from iad_r1.report.run_data import RunData, load
from iad_r1.store.progress import duration
from iad_r1.store.run_folder import write_text

# What the factory view starts from; a reader changes both on the page.
DEFECT_PRIOR, PARTS = 0.005, 10_000
HEADLINE_FIGURES = ("balanced_accuracy", "location_accuracy")
FORESTED = ("balanced_accuracy", "location_accuracy", "type_accuracy")

Row = dict[str, Any]


def build(folder: Path) -> Path:
    """Write `report.html` and `figures/*.svg`; returns the path of the report."""
    run = load(folder)
    drawn: dict[str, str] = {}

    def keep(name: str, svg: str) -> Markup:
        drawn[name] = svg
        return Markup(svg)

    html = _environment().get_template("report.html.j2").render(_context(run, keep))
    for name, svg in drawn.items():
        write_text(folder / "figures" / f"{name}.svg", svg)
    return write_text(folder / "report.html", html)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("iad_r1.report", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {
        "percent": wording.percent,
        "points": wording.points,
        "interval": wording.interval,
        "stage": wording.stage_name,
        "model": wording.model_name,
        "split": wording.split_name,
        "metric": lambda name: wording.METRIC_NAMES.get(name, name),
        "count": lambda value: wording.NOTHING if value is None else f"{value:,.1f}",
        "whole": lambda value: f"{value:,}",
        "duration": duration,
    }
    return environment


def _context(run: RunData, keep: Callable[[str, str], Markup]) -> Row:
    rows = tables.summaries(run)
    changes = tables.comparisons(run)
    main = tables.main_evaluations(run)
    found = cards.views(run)
    places = [tables.places(item, run.grid) for item in main] if run.grid else []
    return {
        "title": _title(run),
        "facts": _facts(run),
        "findings": list(story.findings(run, rows, changes)),
        "caveats": list(story.caveats(run)),
        "missing": [*run.missing, *tables.disagreements(rows, run.summary)],
        "groups": _groups(rows, changes),
        "headline_figures": _headline_figures(run, rows, keep),
        "changes": changes,
        "change_figures": _change_figures(changes, keep),
        "reference_gain": tables.reference_gain(run),
        "factory": _factory(rows),
        "prior": DEFECT_PRIOR,
        "parts": PARTS,
        "confusions": rows,
        "last_stage": tables.last_stage(run),
        "products": [tables.products(run, item) for item in main],
        "places": [place for place in places if place],
        "grid": run.grid,
        "types": [table for item in main if (table := tables.types(item))],
        **_score_context(tables.scores(run), rows, keep),
        "curves": _curves(run, keep),
        "not_finite": training.not_finite(run),
        "seconds": training.seconds(run),
        "total_seconds": sum((run.summary.get("seconds") or {}).values()),
        "rollouts": training.rollouts(run),
        "views": found,
        "view": cards.default_view(found),
        "cards": cards.cards(run, found),
        "config": training.flat(run.config),
        "manifest": training.flat(run.manifest),
    }


def _title(run: RunData) -> str:
    return str(run.config.get("name") or run.folder.parent.name)


def _facts(run: RunData) -> list[tuple[str, str]]:
    """The line under the title: what was run, on what, when."""
    facts = [("run", run.folder.name)]
    for section in ("stage", "backbone", "data", "rewards", "grid", "tuning"):
        value = run.config.get(section)
        if isinstance(value, Mapping) and value.get("name"):
            facts.append((section, str(value["name"])))
    if "seed" in run.config:
        facts.append(("seed", str(run.config["seed"])))
    if spent := sum((run.summary.get("seconds") or {}).values()):
        facts.append(("time", duration(spent)))
    return facts


# ------------------------------------------------------------------------------ headline


def _groups(rows: Sequence[Row], changes: Sequence[Row]) -> list[Row]:
    """The headline table: per (split, shots), a line per metric with a cell per stage."""
    stages = sorted({row["stage"] for row in rows}, key=wording.stage_order)
    groups = []
    for split, shots in dict.fromkeys((row["split"], row["shots"]) for row in rows):
        here = {r["stage"]: r for r in rows if (r["split"], r["shots"]) == (split, shots)}
        last = [
            c for c in changes if (c["split"], c["shots"], c["to"]) == (split, shots, stages[-1])
        ]
        shown = wording.headline(next(iter(here.values())))
        lines = [
            {
                "metric": metric,
                "cells": [here.get(stage, {}).get(metric) for stage in stages],
                "bounds": [here.get(stage, {}).get("ci95", {}).get(metric) for stage in stages],
                "change": next((c for c in last if c["metric"] == metric), None),
            }
            for metric in (*shown, *(["auroc"] if _scored(here) else []))
        ]
        n = max(row["n"] for row in here.values())
        groups.append({"split": split, "shots": shots, "n": n, "lines": lines, "stages": stages})
    return groups


def _scored(here: Mapping[str, Row]) -> bool:
    return any(row["auroc"] is not None for row in here.values())


def _headline_figures(
    run: RunData, rows: Sequence[Row], keep: Callable[[str, str], Markup]
) -> list[Markup]:
    drawn = []
    for metric in HEADLINE_FIGURES:
        points = [
            {
                "label": f"{row['split']}, {row['shots']}-shot",
                "stage": row["stage"],
                "value": row[metric],
                "ci95": row["ci95"].get(metric),
            }
            for row in rows
        ]
        if any(point["value"] is not None for point in points):
            chance = 50.0 if metric == "balanced_accuracy" else tables.uniform_chance(run)
            drawn.append(keep(metric, figures.headline(points, metric, chance)))
    return drawn


def _change_figures(changes: Sequence[Row], keep: Callable[[str, str], Markup]) -> list[Markup]:
    """One figure per pair of neighbouring stages."""
    drawn = []
    for before, after in dict.fromkeys((row["from"], row["to"]) for row in changes):
        points = [
            {**row, "label": f"{row['split']}, {row['shots']}-shot: {_short(row['metric'])}"}
            for row in changes
            if (row["from"], row["to"]) == (before, after) and row["metric"] in FORESTED
        ]
        if points:
            title = f"{wording.model_name(after)} against {wording.model_name(before)}"
            name = f"change-{before}-{after}"
            drawn.append(keep(name, figures.differences(points, title)))
    return drawn


def _short(metric: str) -> str:
    return metric.replace("_accuracy", "")


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


def _score_context(
    scored: Sequence[Row], rows: Sequence[Row], keep: Callable[[str, str], Markup]
) -> Row:
    areas = {(row["stage"], row["split"], row["shots"]): row for row in rows}
    drawn = []
    for split in dict.fromkeys(row["split"] for row in scored):
        here = [row for row in scored if row["split"] == split]
        title = f"{split}, {here[0]['shots']}-shot"
        lines = [(wording.stage_name(r["stage"]), r["stage"], r["roc"]) for r in here]
        bins = [
            (wording.stage_name(r["stage"]), r["stage"], r["calibration"]["bins"]) for r in here
        ]
        drawn.append(keep(f"roc-{split}", figures.roc(lines, f"ROC: {title}")))
        drawn.append(
            keep(f"calibration-{split}", figures.calibration(bins, f"Calibration: {title}"))
        )
    table = [{**areas[row["stage"], row["split"], row["shots"]], **row} for row in scored]
    return {"scores": table, "score_figures": drawn}


def _curves(run: RunData, keep: Callable[[str, str], Markup]) -> list[Row]:
    """Per stage: its leading panels and the folded ones."""
    found = []
    for stage, of_stage in training.panels(run).items():
        drawn = {
            title: keep(
                f"curve-{stage}-{re.sub(r'[^a-z0-9]+', '-', title.lower()).strip('-')}",
                figures.curves(training.readable(series), f"{stage}: {title.replace('_', ' ')}"),
            )
            for title, series in of_stage.items()
        }
        leading = [svg for title, svg in drawn.items() if training.leads(title)]
        folded = [svg for title, svg in drawn.items() if not training.leads(title)]
        found.append({"stage": stage, "leading": leading, "folded": folded})
    return found
