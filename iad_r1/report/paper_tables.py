"""Tables 1, 4 and 7 of IAD-R1's paper in its layout, our numbers below the rows they belong to."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas

from iad_r1.judge import paper
from iad_r1.report import wording

_ORDER = ("MVTec-AD", "DAGM", "DTD-Synthetic", "SDD", "MPDD", "VisA", paper.AVERAGE)
TABLES = {  # the columns of each: set and shots
    "T1": [(name, 0) for name in (*paper.SETS, paper.AVERAGE)],
    "T4": [*((name, 0) for name in _ORDER), *((name, 1) for name in paper.FEW_SHOT_SETS)],
    "T7": [
        *((name, 0) for name in _ORDER),
        *((name, 1) for name in (*paper.FEW_SHOT_SETS, paper.AVERAGE)),
    ],
}
NAMES = re.compile(r"table[147]\.(csv|md|tex)")
TITLES = {
    "T1": "Table 1: zero-shot, against other models",
    "T4": "Table 4: every backbone",
    "T7": "Table 7: against models made for anomaly detection",
}
PAPER, HERE, APART = "paper", "here", "here, not comparable"
NOTES = "where the paper contradicts itself"

Row = Mapping[str, Any]


def table(name: str, beside: Sequence[Row]) -> pandas.DataFrame:
    """The rows that the paper prints in table `name`, in its order, in percent; below them those of
    `beside` (see `judge.paper.beside`). Table 4 prints no average: it is taken of its cells."""
    columns = TABLES[name]
    printed = [row for row in paper.rows() if row["table"] == name]
    found = []
    for asked in dict.fromkeys((r["model"], r["params"], r["method"]) for r in printed):
        of = {
            (row["dataset"], int(row["setting"].removesuffix("-shot"))): row["value"]
            for row in printed
            if (row["model"], row["params"], row["method"]) == asked
        }
        if (paper.AVERAGE, 0) not in of:
            of[paper.AVERAGE, 0] = sum(of[name, 0] for name in paper.SETS) / len(paper.SETS)
        notes = [
            f"{_column(*place)}: {other}"
            for place in columns
            for other in paper.contradictions(of[place], *asked, place[1], place[0])
        ]
        found.append(_line(asked, PAPER, columns, of, "; ".join(notes)))
        same = [r for r in beside if (r["model"], r["method"]) == (_model(asked), asked[2])]
        for run in dict.fromkeys(row.get("run") for row in same):  # one, or several by label
            ours = [row for row in same if row.get("run") == run]
            here = {(row["dataset"], row["shots"]): row["ours"] for row in ours}
            if here.keys() & set(columns):
                source = APART if any(row["incomparable"] for row in ours) else HERE
                source += f": {run}" if run else ""
                found.append(_line(asked, source, columns, here, ""))
    return pandas.DataFrame(found)


def files(beside: Sequence[Row]) -> dict[str, str]:
    """The tables as CSV in full precision, Markdown and LaTeX (for the package booktabs) with one
    decimal, by file name; none without anything of ours."""
    found = {}
    for name in TABLES if beside else ():
        frame, stem = table(name, beside), name.replace("T", "table")
        found[f"{stem}.csv"] = frame.to_csv(index=False, lineterminator="\n")
        found[f"{stem}.md"] = _markdown(shown(frame))
        styler = shown(frame).style.hide(axis="index")
        styler.format(escape="latex")
        styler.format_index(escape="latex", axis=1)
        found[f"{stem}.tex"] = styler.to_latex(hrules=True)
    return found


def of_page(beside: Sequence[Row]) -> list[dict[str, Any]]:
    """The same for the report: a title, columns and rows of text."""
    frames = {TITLES[name]: shown(table(name, beside)) for name in TABLES} if beside else {}
    return [
        {"title": title, "columns": list(frame.columns), "rows": frame.to_numpy().tolist()}
        for title, frame in frames.items()
    ]


def shown(frame: pandas.DataFrame) -> pandas.DataFrame:
    """The same as text: one decimal, a dash where nothing was measured."""
    return frame.map(
        lambda cell: cell if isinstance(cell, str) else wording.percent(_defined(cell))
    )


def _defined(cell: float) -> float | None:
    return None if pandas.isna(cell) else cell


def _line(
    asked: tuple[str, str, str],
    source: str,
    columns: Sequence[tuple[str, int]],
    values: Mapping[tuple[str, int], float],
    notes: str,
) -> dict[str, Any]:
    lead = {"model": _model(asked), "method": asked[2], "source": source}
    cells = {_column(*place): values.get(place, float("nan")) for place in columns}
    return {**lead, **cells, NOTES: notes}


def _model(asked: tuple[str, str, str]) -> str:
    return " ".join(filter(None, asked[:2]))


def _column(name: str, shots: int) -> str:
    return f"{name}, {shots}-shot" if shots else name


def _markdown(frame: pandas.DataFrame) -> str:
    """pandas leaves this to a package that is not needed elsewhere."""
    lines = [list(frame.columns), ["---"] * len(frame.columns), *frame.to_numpy().tolist()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
