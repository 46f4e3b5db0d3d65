"""Figures as SVG text: no display, no dates, the same input gives the same bytes.

Axes and letters are drawn in `currentColor`, so one file reads well on a light and a dark page.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from iad_r1.report import wording

INK = "#010203"  # replaced by currentColor; no series uses it
STAGE_COLOURS = {"base": "#8b93a1", "pretrain": "#8b93a1", "sft": "#3f86d6", "grpo": "#e0752d"}
SERIES = ("#e0752d", "#3f86d6", "#35a06b", "#b365c9", "#c9a227", "#8b93a1", "#d6506f")
WIDTH = 4.4  # inches; a page scales it to its column
SMOOTH_OVER = 40  # steps; longer curves also get a running mean

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.12,
    "grid.linewidth": 0.6,
    "axes.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.constrained_layout.use": True,
}


def colour(stage: str) -> str:
    """The colour of a stage, the same in every figure."""
    return STAGE_COLOURS.get(stage, SERIES[3])


@contextmanager
def _figure(height: float, name: str) -> Iterator[tuple[Figure, Axes]]:
    # The salt names the ids inside the SVG, so two figures on a page never share one.
    style: Any = {**_STYLE, "svg.hashsalt": name}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(WIDTH, height))
        FigureCanvasSVG(figure)
        yield figure, figure.add_subplot()


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    body = text.getvalue()
    body = body[body.index("<svg") :].replace(INK, "currentColor")
    body = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", body)
    # Let the page decide the size; the viewBox keeps the shape.
    return re.sub(r'(<svg[^>]*?) width="[^"]*"| height="[^"]*pt"', r"\1", body, count=2)


def headline(rows: Sequence[Mapping[str, Any]], metric: str, chance: float | None) -> str:
    """One metric with its 95 % intervals: {label, stage, value, ci95} per row, top to bottom.

    `chance` is the level of a guesser that never looks at the image, in percent.
    """
    labels = list(dict.fromkeys(row["label"] for row in rows))
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    with _figure(0.8 + 0.2 * len(labels) * (len(stages) + 1), metric) as (figure, axes):
        for row in rows:
            offset = (stages.index(row["stage"]) - (len(stages) - 1) / 2) * 0.22
            _interval(axes, row, labels.index(row["label"]) + offset, colour(row["stage"]))
        for stage in stages:
            axes.plot([], [], "o", ms=5, color=colour(stage), label=wording.stage_name(stage))
        if chance is not None:
            axes.axvline(chance, color=INK, lw=1, ls=":", alpha=0.6, label="guessing")
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.set_xlim(0, 100)
        axes.grid(axis="y", visible=False)
        axes.set_title(f"{wording.METRIC_NAMES[metric].capitalize()}, %")
        figure.legend(
            loc="outside lower center",
            ncols=len(stages) + 1,
            handletextpad=0.2,
            columnspacing=0.9,
            handlelength=1.2,
        )
        return _svg(figure)


def _interval(axes: Axes, row: Mapping[str, Any], y: float, tint: str) -> None:
    if row["value"] is None:
        return
    if row["ci95"]:
        axes.plot(row["ci95"], [y, y], color=tint, lw=2, solid_capstyle="round", alpha=0.55)
    axes.plot([row["value"]], [y], "o", ms=5, color=tint)


def differences(rows: Sequence[Mapping[str, Any]], title: str) -> str:
    """Paired differences as points with intervals around a zero line: {label, delta, ci95}."""
    with _figure(0.7 + 0.26 * len(rows), f"differences {title}") as (figure, axes):
        axes.axvline(0, color=INK, lw=1, alpha=0.7)
        for y, row in enumerate(rows):
            tint = SERIES[0] if wording.clear(row) else SERIES[5]
            _interval(axes, {"value": row["delta"], "ci95": row["ci95"]}, y, tint)
        axes.set_yticks(range(len(rows)), [row["label"] for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.set_title(title)
        axes.set_xlabel("percentage points (grey: includes zero)")
        return _svg(figure)


def roc(curves: Sequence[tuple[str, str, Mapping[str, Sequence[float]]]], title: str) -> str:
    """ROC curves: (label, stage, {false_positive, true_positive} in percent)."""
    with _figure(3.4, f"roc {title}") as (figure, axes):
        axes.plot([0, 100], [0, 100], color=INK, lw=1, ls=":", alpha=0.6)
        for label, stage, curve in curves:
            x, y = curve["false_positive"], curve["true_positive"]
            axes.plot(x, y, color=colour(stage), lw=1.6, label=label)
        axes.set_xlabel("good parts rejected, % (overkill)")
        axes.set_ylabel("defective parts caught, %")
        axes.set_title(title)
        axes.legend(loc="lower right")
        return _svg(figure)


def calibration(
    curves: Sequence[tuple[str, str, Sequence[Mapping[str, float]]]], title: str
) -> str:
    """Reliability: (label, stage, bins of {p_yes, anomalous, n}); percent on both axes."""
    with _figure(3.4, f"calibration {title}") as (figure, axes):
        axes.plot([0, 100], [0, 100], color=INK, lw=1, ls=":", alpha=0.6, label="perfect")
        for label, stage, bins in curves:
            x, y = [row["p_yes"] for row in bins], [row["anomalous"] for row in bins]
            axes.plot(x, y, "o-", ms=3.5, lw=1.2, color=colour(stage), label=label)
        axes.set_xlabel("the model says: probability of a defect, %")
        axes.set_ylabel("really defective, %")
        axes.set_title(title)
        axes.legend(loc="upper left")
        return _svg(figure)


def curves(series: Mapping[str, tuple[Sequence[float], Sequence[float]]], title: str) -> str:
    """Training curves: name to (steps, values). Long ones faint, with their running mean."""
    with _figure(2.3, f"curve {title}") as (figure, axes):
        for index, (name, (steps, values)) in enumerate(series.items()):
            tint = SERIES[index % len(SERIES)]
            smooth = running_mean(values)
            if smooth is not None:
                axes.plot(steps, values, color=tint, lw=0.7, alpha=0.3)
            marker = "o" if len(steps) < 3 else None  # a line needs two points to be seen
            shown = values if smooth is None else smooth
            axes.plot(steps, shown, color=tint, lw=1.5, marker=marker, ms=3, label=name)
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if len(series) > 1:
            axes.legend(loc="best", ncols=2 if len(series) > 3 else 1)
        return _svg(figure)


def running_mean(values: Sequence[float]) -> list[float] | None:
    """Mean over a centred window of about a tenth; None where there is little to smooth.

    At the ends the window shrinks, so nothing is invented there. Gaps (NaN) are left out.
    """
    if len(values) <= SMOOTH_OVER:
        return None
    half = len(values) // 20
    array = np.asarray(values, dtype=np.float64)
    windows = [array[max(0, i - half) : i + half + 1] for i in range(len(array))]
    return [float(np.nanmean(w)) if not np.isnan(w).all() else math.nan for w in windows]
