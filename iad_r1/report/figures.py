"""Figures as SVG and PNG: no display, no dates, the same input gives the same bytes.

Axes and letters of an SVG are drawn in `currentColor`, so one file reads well on a light and a dark
page; a PNG is dark on white, for slides and papers.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
import pandas
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from iad_r1.report import wording

INK = "#010203"  # replaced by currentColor; no series uses it
STAGE_COLOURS = {"base": "#8b93a1", "pretrain": "#8b93a1", "sft": "#3f86d6", "grpo": "#e0752d"}
SERIES = ("#e0752d", "#3f86d6", "#35a06b", "#b365c9", "#c9a227", "#8b93a1", "#d6506f")
RISE = "#d6303f"
WIDTH = 4.4  # inches; a page scales it to its column
PNG_DPI = 160
SMOOTH_OVER = 40  # steps; longer curves also get a running mean

Curve = tuple[Sequence[float], Sequence[float]]  # steps, values

_STYLE: Any = {
    "axes.axisbelow": True,
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


def colour(stage: str, among: Sequence[str]) -> str:
    """The colour of a stage, the same in every figure; of a model, by its place `among` all that a
    report shows."""
    place = among.index(stage) if stage in among else 3
    return STAGE_COLOURS.get(stage, SERIES[place % len(SERIES)])


@dataclass(frozen=True)
class Drawing:
    """A figure, drawn. `svg` takes the colour of the letters around it."""

    svg: str
    figure: Figure

    def png(self) -> bytes:
        """The same as pixels."""
        found = io.BytesIO()
        FigureCanvasAgg(self.figure)
        self.figure.set_layout_engine("none")  # it is laid out
        with matplotlib.rc_context(_STYLE):
            self.figure.savefig(found, format="png", dpi=PNG_DPI, metadata={"Software": None})
        return found.getvalue()


@contextmanager
def _figure(height: float, name: str, width: float = WIDTH) -> Iterator[tuple[Figure, Axes]]:
    # The salt names the ids inside the SVG, so two figures on a page never share one.
    style = {**_STYLE, "svg.hashsalt": name}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height))
        FigureCanvasSVG(figure)
        yield figure, figure.add_subplot()


def _drawn(figure: Figure) -> Drawing:
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    body = text.getvalue()
    body = body[body.index("<svg") :].replace(INK, "currentColor")
    body = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", body)
    # Let the page decide the size; the viewBox keeps the shape.
    body = re.sub(r'(<svg[^>]*?) width="[^"]*"| height="[^"]*pt"', r"\1", body, count=2)
    return Drawing(body, figure)


def headline(
    rows: Sequence[Mapping[str, Any]], metric: str, chance: float | None, stages: Sequence[str]
) -> Drawing:
    """One metric with its 95 % intervals: {label, stage, value, ci95} per row, top to bottom;
    `stages` in the order in which they are drawn.

    `chance` is the level of a guesser that never looks at the image, in percent.
    """
    labels = list(dict.fromkeys(row["label"] for row in rows))
    drawn = _drawn_of(rows, stages)
    with _figure(0.8 + 0.2 * len(labels) * (len(drawn) + 1), metric) as (figure, axes):
        for row in rows:
            offset = (drawn.index(row["stage"]) - (len(drawn) - 1) / 2) * 0.22
            y = labels.index(row["label"]) + offset
            _interval(axes, row["value"], row["ci95"], y, colour(row["stage"], stages))
        for stage in drawn:
            tint = colour(stage, stages)
            axes.plot([], [], "o", ms=5, color=tint, label=wording.stage_name(stage))
        if chance is not None:
            axes.axvline(chance, color=INK, lw=1, ls=":", alpha=0.6, label="guessing")
        _name_rows(axes, labels)
        axes.set_xlim(0, 100)
        axes.set_title(f"{wording.METRIC_NAMES[metric].capitalize()}, %")
        figure.legend(
            loc="outside lower center",
            ncols=len(drawn) + 1,
            handletextpad=0.2,
            columnspacing=0.9,
            handlelength=1.2,
        )
        return _drawn(figure)


def _drawn_of(rows: Sequence[Mapping[str, Any]], stages: Sequence[str]) -> list[str]:
    """Those of `stages` that have a row, in their order."""
    return [stage for stage in stages if any(row["stage"] == stage for row in rows)]


def _interval(
    axes: Axes, value: float | None, bounds: Sequence[float] | None, y: float, tint: str
) -> None:
    if value is not None:
        if bounds:
            axes.plot(bounds, [y, y], color=tint, lw=2, solid_capstyle="round", alpha=0.55)
        axes.plot([value], [y], "o", ms=5, color=tint)


def _name_rows(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)


def differences(rows: Sequence[Mapping[str, Any]], title: str) -> Drawing:
    """Paired differences as points with intervals around a zero line: {label, delta, ci95}."""
    with _figure(0.7 + 0.26 * len(rows), f"differences {title}") as (figure, axes):
        axes.axvline(0, color=INK, lw=1, alpha=0.7)
        for y, row in enumerate(rows):
            tint = SERIES[0] if wording.clear(row) else SERIES[5]
            _interval(axes, row["delta"], row["ci95"], y, tint)
        _name_rows(axes, [row["label"] for row in rows])
        axes.set_title(title)
        axes.set_xlabel("percentage points (grey: includes zero)")
        return _drawn(figure)


def roc(rows: Sequence[Mapping[str, Any]], title: str, stages: Sequence[str]) -> Drawing:
    """ROC curves: {stage, roc: {false_positive, true_positive}} per row, in percent."""
    with _figure(3.4, f"roc {title}") as (figure, axes):
        axes.plot([0, 100], [0, 100], color=INK, lw=1, ls=":", alpha=0.6)
        for row in rows:
            x, y = row["roc"]["false_positive"], row["roc"]["true_positive"]
            name, tint = wording.stage_name(row["stage"]), colour(row["stage"], stages)
            axes.plot(x, y, color=tint, lw=1.6, label=name)
        axes.set_xlabel("good parts rejected, % (overkill)")
        axes.set_ylabel("defective parts caught, %")
        axes.set_title(title)
        axes.legend(loc="lower right")
        return _drawn(figure)


def calibration(rows: Sequence[Mapping[str, Any]], title: str, stages: Sequence[str]) -> Drawing:
    """Reliability: {stage, calibration: {bins: [{p_yes, anomalous}]}} per row, in percent."""
    with _figure(3.4, f"calibration {title}") as (figure, axes):
        axes.plot([0, 100], [0, 100], color=INK, lw=1, ls=":", alpha=0.6, label="perfect")
        for row in rows:
            x, y = ([b[key] for b in row["calibration"]["bins"]] for key in ("p_yes", "anomalous"))
            name, tint = wording.stage_name(row["stage"]), colour(row["stage"], stages)
            axes.plot(x, y, "o-", ms=3.5, lw=1.2, color=tint, label=name)
        axes.set_xlabel("the model says: probability of a defect, %")
        axes.set_ylabel("really defective, %")
        axes.set_title(title)
        axes.legend(loc="upper left")
        return _drawn(figure)


def bars(
    rows: Sequence[Mapping[str, Any]], title: str, stages: Sequence[str], gains: bool = True
) -> Drawing:
    """Balanced accuracy before and after, as figures 22 to 28 of the paper have it: a group per set
    of images, a bar per stage with its interval, and what the last of `stages` is above the first,
    relatively (`gains`); nothing where one of the two did not judge it.

    Rows are {label, stage, value, ci95, paper}; `paper` is what the paper prints for it, or None.
    """
    labels = list(dict.fromkeys(row["label"] for row in rows))
    drawn = _drawn_of(rows, stages)
    width, shown = 0.8 / len(drawn), []
    with _figure(3.0, f"bars {title}", 2 * WIDTH) as (figure, axes):
        for index, stage in enumerate(drawn):
            here = [row for row in rows if row["stage"] == stage and row["value"] is not None]
            x = [labels.index(row["label"]) + (index - (len(drawn) - 1) / 2) * width
                 for row in here]  # fmt: skip
            tint, name = colour(stage, stages), wording.stage_name(stage)
            values = [row["value"] for row in here]
            shown.append(axes.bar(x, values, 0.92 * width, color=tint, label=name))
            for at, row in zip(x, here, strict=True):
                if row["ci95"]:
                    axes.plot([at, at], row["ci95"], color=INK, lw=0.9, alpha=0.7)
                if row["paper"] is not None:
                    sides = [at - 0.46 * width, at + 0.46 * width]
                    axes.plot(sides, [row["paper"]] * 2, color=INK, lw=1.6)
        for place, label in enumerate(labels if gains else ()):
            values = {row["stage"]: row["value"] for row in rows if row["label"] == label}
            _gain(axes, values.get(drawn[0]), values.get(drawn[-1]), place)
        if any(row["paper"] is not None for row in rows):
            shown += axes.plot([], [], color=INK, lw=1.6, label="the paper")
        shown.append(axes.axhline(50, color=INK, lw=1, ls=":", alpha=0.6, label="guessing"))
        axes.set_xticks(range(len(labels)), labels)
        axes.set_xlim(-0.6, max(len(labels), 4) - 0.4)
        axes.grid(axis="x", visible=False)
        axes.set_ylim(0, 112)
        axes.set_yticks(range(0, 101, 20))
        axes.set_title(title)
        figure.legend(
            handles=shown,
            loc="outside lower center",
            ncols=min(len(shown), 6),
            columnspacing=0.9,
            handlelength=1.2,
        )
        return _drawn(figure)


def _gain(axes: Axes, before: float | None, after: float | None, place: int) -> None:
    """The red arrow of the paper, from the first stage to the last, and the relative change; of
    nothing that is points."""
    if before is None or after is None:
        return
    start, end = (place - 0.46, before), (place - 0.46, after)
    arrow = {"arrowstyle": "->", "color": RISE, "lw": 1.2, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", end, start, arrowprops=arrow)
    change = after - before
    said = (
        f"{wording.points(100 * change / before)} %"
        if before
        else f"{wording.points(change)} points"
    )
    axes.text(place, 104, said, color=RISE, ha="center", fontsize=8)


def dynamics(
    panels: Mapping[str, Mapping[str, Curve]], title: str, among: Sequence[str] = ()
) -> Drawing:
    """How training went, as figure 9 of the paper has it: panels side by side, title to curves."""
    with _figure(2.3, f"dynamics {title}", 2 * WIDTH) as (figure, axes):
        axes.remove()
        for place, (name, series) in enumerate(panels.items(), 1):
            _lines(figure.add_subplot(1, len(panels), place), series, name, among)
        return _drawn(figure)


def curves(series: Mapping[str, Curve], title: str, among: Sequence[str] = ()) -> Drawing:
    """Training curves: name to (steps, values). Long ones faint, with their running mean. Curves of
    runs have the colours of those runs `among` all."""
    with _figure(2.3, f"curve {title}") as (figure, axes):
        _lines(axes, series, title, among)
        return _drawn(figure)


def _lines(axes: Axes, series: Mapping[str, Curve], title: str, among: Sequence[str]) -> None:
    for index, (name, (steps, values)) in enumerate(series.items()):
        tint = colour(name, among) if among else SERIES[index % len(SERIES)]
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


def running_mean(values: Sequence[float]) -> list[float] | None:
    """Mean over a centred window of about a tenth; None where there is little to smooth.

    At the ends the window shrinks, so nothing is invented there. Gaps (NaN) are left out.
    """
    if len(values) <= SMOOTH_OVER:
        return None
    window = 2 * (len(values) // 20) + 1
    return pandas.Series(values).rolling(window, center=True, min_periods=1).mean().tolist()
