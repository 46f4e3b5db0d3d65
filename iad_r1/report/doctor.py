"""What `stage=doctor` found, for the terminal and as a page."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL.Image import Image
from PIL.Image import fromarray as picture_of
from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from iad_r1.data import images
from iad_r1.data.checkup import KINDS, MASKS, NOTED, STOPPING, Problem, Source, said
from iad_r1.report.overlay import data_uri
from iad_r1.report.templating import environment
from iad_r1.store.run_folder import write_text

MOST_CLASSES = 40  # rows of the table that is printed
MOST_CARDS = 12  # problems of a kind that the page shows
THUMBNAIL = (240, 160)  # pixels
COSTS = (("tokens", "fewest"), ("", "median"), ("", "most"), ("defect", "pixels"), ("", "tokens"),
         ("under", "token"), ("too", "small"), ("cut", "off"))  # fmt: skip
JOINED = "\u00a0"  # the space before a number, at which no line ends


def show(
    found: Mapping[str, Any],
    sources: Sequence[Source],
    shown: int,
    folder: Path,
    console: Console,
) -> None:
    """Counts, then what is worth a look, then what stops a run, then whether one may start."""
    console.print()
    for line in _counts(found):
        for row in textwrap.wrap(line, console.width, subsequent_indent="  "):
            console.print(row.replace(JOINED, " "), markup=False, highlight=False, soft_wrap=True)
    if found["classes"]:
        console.print()
        console.print(_classes(found["classes"]))
    if found["costs"]:
        console.print()
        console.print(_costs(found["costs"]))
    for headings, style in ((NOTED, "yellow"), (STOPPING, "red")):
        for kind, heading in headings.items():
            here = [problem for problem in found["problems"] if problem["kind"] == kind]
            if here:
                console.print(Text(f"\n{heading} ({len(here):,})", style=f"bold {style}"))
            for problem in here[:shown]:
                say = Text(shortened(problem["say"], sources))
                console.print(Padding(say, (0, 0, 0, 2)))
            if len(here) > shown:
                console.print(f"  and {len(here) - shown:,} more in doctor.json", style="dim")
    console.print()
    console.print(Text(verdict(found), style="bold green" if found["ok"] else "bold red"))
    for name in ("doctor.html", "doctor.json"):
        console.print(f"  {folder / name}", markup=False, highlight=False, soft_wrap=True)


def page(found: Mapping[str, Any], sources: Sequence[Source], title: str, folder: Path) -> Path:
    """Write `doctor.html`, one file with small copies of the pictures inside; returns its path."""
    groups = []
    for kind, heading in KINDS.items():
        here = [p for source in sources for p in source.problems if p.kind == kind]
        cards = [
            {"say": shortened(problem.say, sources), "pictures": list(_thumbnails(problem))}
            for problem in here[:MOST_CARDS]
        ]
        if cards:
            stops = kind in STOPPING
            groups.append({"heading": heading, "stops": stops, "n": len(here), "cards": cards})
    template = environment().get_template("doctor.html.j2")
    html = template.render(
        title=title,
        facts=[(source.section, said(source.settings)) for source in sources],
        found=found,
        verdict=verdict(found),
        counts=list(_counts(found)),
        groups=groups,
        costs=alike(found["costs"]),
    )
    return write_text(folder / "doctor.html", html)


def _thumbnails(problem: Problem) -> Iterator[str]:
    """Small copies of the files that a problem is about, as far as they can be opened."""
    for file in filter(None, (problem.file, problem.beside)):
        try:
            is_mask = problem.kind in MASKS and file == problem.file
            small = _mask(Path(file)) if is_mask else images.upright(Path(file))
            small.thumbnail(THUMBNAIL)
            content = io.BytesIO()
            small.convert("RGB").save(content, "JPEG", quality=80)
            yield data_uri(content.getvalue())
        except Exception:  # broken as it is, or no picture: the sentence says so
            continue


def _mask(file: Path) -> Image:
    return picture_of(images.marked(file).astype("uint8") * 255)


def verdict(found: Mapping[str, Any]) -> str:
    """Whether a run may start, in a sentence."""
    stopping = sum(problem["stops"] for problem in found["problems"])
    noted = len(found["problems"]) - stopping
    also = f" {noted:,} thing{'s' * (noted > 1)} to know." if noted else ""
    if found["ok"]:
        return f"A run on this data may start.{also}"
    one = stopping == 1
    return f"No run on this data can start: {stopping:,} problem{'' if one else 's'} to mend.{also}"


def shortened(say: str, sources: Iterable[Source]) -> str:
    """A sentence with its paths from the roots on."""
    for source in sources:
        if source.root is not None:
            say = say.replace(f"{source.root}/", "")
    return say


def _counts(found: Mapping[str, Any]) -> Iterator[str]:
    masks, kinds, skipped = found["masks"], found["kinds"], found["skipped"]
    yield (
        f"{found['pictures']:,} pictures: {found['good']:,} good, {found['defective']:,} "
        f"defective. {masks['used']:,} masks."
    )
    if kinds:
        untyped = found["defective"] - sum(kinds.values())
        rest = {"without a type": untyped} if untyped else {}
        yield "types: " + ", ".join(_numbered(kinds | rest))
    if found["places"]:
        yield "places: " + ", ".join(_numbered(found["places"]))
    if found["near_duplicates"]:
        yield (
            f"{found['near_duplicates']:,} pictures have near-duplicates; training and validation "
            "keep those together."
        )
    if skipped:
        yield "left alone: " + ", ".join(f"{n:,}{JOINED}{reason}" for reason, n in skipped.items())


def _numbered(names: Mapping[str, int]) -> Iterator[str]:
    for name, n in names.items():
        yield f"{name} {n:,}".replace(" ", JOINED)


def _classes(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    several = len({row["source"] for row in rows}) > 1
    for name in (*(["from"] if several else []), "product", "part"):
        table.add_column(name, overflow="fold")
    for name in ("good", "defective"):
        table.add_column(name, justify="right")
    for row in rows[:MOST_CLASSES]:
        cells = [row["source"]] if several else []
        cells += [row["product"], row["split"], f"{row['good']:,}", f"{row['defective']:,}"]
        table.add_row(*map(Text, cells))
    if len(rows) > MOST_CLASSES:
        table.caption = f"and {len(rows) - MOST_CLASSES:,} more in doctor.json"
    return table


def _costs(rows: Mapping[str, Mapping[str, Any]]) -> Table:
    """A row for all backbones alike: what a picture costs, and what is left of a defect."""
    title = (
        "Tokens of a picture; what is left of the median defect where the model sees it; how many "
        "defects are under a token, and too small to be seen; how much of a picture is cut off"
    )
    table = Table(title=title, title_justify="left", title_style="", box=box.SIMPLE_HEAD,
                  show_edge=False, pad_edge=False)  # fmt: skip
    table.add_column("backbone", overflow="fold")
    for name in COSTS:
        table.add_column("\n".join(name), justify="right", vertical="top")
    for cells, names in alike(rows).items():
        table.add_row(*map(Text, (", ".join(names), *cells)))
    return table


def alike(rows: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, ...], list[str]]:
    """The backbones for which all numbers of a row are the same, by what stands under `COSTS`; a
    limit of picture size is named where it changes something."""
    found: dict[tuple[str, ...], list[str]] = {}
    for name, row in rows.items():
        cells = [f"{n:,}" for n in row["tokens"]]
        if row["median_pixels"] is None:
            cells += [""] * 4
        else:
            cells += [f"{row['median_pixels']:,}", f"{row['median_tokens']:,.2f}"]
            cells += [f"{row[key]:,}" for key in ("under_a_token", "too_small")]
        cells.append(f"{row['cut_off']:.0%}")
        names = found.setdefault(tuple(cells), [])
        if name.partition(" (")[0] not in {other.partition(" (")[0] for other in names}:
            names.append(name)
    return found
