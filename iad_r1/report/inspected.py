"""What is shown of a verdict: a line in the terminal, and the picture with its place marked.

The marked picture is drawn beside what the model sees, never into it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iad_r1.grid import Grid
from iad_r1.judge.verdicts import UNREADABLE, Verdict
from iad_r1.report import overlay

if TYPE_CHECKING:
    from PIL.Image import Image

SIDES = (480, 1024)  # pixels of the longer side: a smaller picture is enlarged, a larger one shrunk
COLOURS: Mapping[str, str] = {
    "defective": "#c62828",
    "good": "#2e7d32",
    "no valid answer": "#b26a00",
    UNREADABLE: "#b26a00",
}
STYLES: Mapping[str, str] = {"defective": "bold red", "good": "green"}  # others: yellow
QUALITY = 88


def line(found: Verdict, number: str, name: str, width: int | None) -> str:
    """A verdict in one line: number, verdict, P(yes) or score, picture, place and type, seconds.

    It is cut to `width` columns; None: it is as long as it has to be.
    """
    word = {"defective": "DEFECTIVE", "no valid answer": "no answer"}.get(
        found.verdict, found.verdict
    )
    what, took = finding(found), f"{found.seconds:.2f} s"
    head = f"{number}  {word:<9}  {measured(found.p_yes, found.score):>5}  "
    if width is None:
        return f"{head}{name}  {what + '  ' if what else ''}{took}"
    room = max(16, width - len(head) - len(took) - 4)
    named = min(len(name), max(room // 2, room - len(what)))
    return f"{head}{shortened(name, named):<{named}}  {_cut(what, room - named)}  {took}"


def measured(p_yes: float | None, score: float | None) -> str:
    """A score, or a probability; of a small one its order, since a threshold may lie there."""
    if score is not None:
        return f"{score:.2f}"
    if p_yes is None:
        return "-"
    return f"{p_yes:.0e}" if 0 < p_yes < 0.01 else f"{p_yes:.2f}"


def measure(score: float | None) -> str:
    """What `measured` is called."""
    return "P(yes)" if score is None else "score"


def finding(found: Verdict) -> str:
    """Where and what: "top left: scratch"; empty for a part that is not defective."""
    return ": ".join(part for part in (found.place, found.type) if part)


def shortened(name: str, most: int) -> str:
    """A path without its middle, where it is longer than `most`: both ends tell it from others."""
    if len(name) <= most:
        return name
    head = (most - 1) // 3
    return f"{name[:head]}…{name[head + 1 - most :]}"


def _cut(text: str, most: int) -> str:
    return f"{text:<{most}}" if len(text) <= most else text[: most - 1] + "…"


def marked(picture: Image, found: Verdict, grid: Grid) -> Image:
    """A copy of the picture with the cells of the place outlined, the verdict written below. A heat
    map colours what is near the threshold of good pictures or above."""
    from PIL import Image, ImageDraw, ImageFont

    scale = min(SIDES[1], max(SIDES[0], *picture.size)) / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    font, small = ImageFont.load_default(22), ImageFont.load_default(15)
    shown = Image.new("RGB", (max(size[0], SIDES[0]), size[1] + 84), "white")
    shown.paste(picture.resize(size), (0, 0))
    if found.heat is not None:
        layer = overlay.heat_layer(found.heat).resize(size, Image.Resampling.BILINEAR)
        shown.paste(layer, (0, 0), layer)
    draw = ImageDraw.Draw(shown)
    for x, y, wide, high in overlay.rectangles(found.cells, grid, *size):
        for inset, colour, width in ((0, "white", 5), (1, COLOURS["defective"], 3)):
            corner = (x + inset, y + inset)
            opposite = (x + wide - 1 - inset, y + high - 1 - inset)
            box = (*corner, *(max(pair) for pair in zip(corner, opposite, strict=True)))
            draw.rectangle(box, outline=colour, width=width)
    number = f"{measure(found.score)} {measured(found.p_yes, found.score)}"
    said = f"{found.verdict.upper()}   {number}"
    draw.text((8, size[1] + 6), said, COLOURS[found.verdict], font)
    rows = filter(None, (finding(found), shortened(Path(found.picture).name, 60)))
    for number, text in enumerate(rows):
        draw.text((8, size[1] + 36 + 22 * number), _fitting(text, small, shown.width - 16),
                  "#333333", small)  # fmt: skip
    return shown


def _fitting(text: str, font: Any, most: float) -> str:
    """As much of a text as fits into a width in pixels."""
    if font.getlength(text) <= most:
        return text
    while text and font.getlength(text + "…") > most:
        text = text[:-1]
    return text + "…"
