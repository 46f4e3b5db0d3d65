"""Verdicts on the page of `stage=app`: a card each, and the table of a session. What a model or a
file says is text there, never HTML."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from iad_r1.grid import Grid
from iad_r1.judge import verdicts
from iad_r1.judge.verdicts import Row, Verdict
from iad_r1.report import inspected, overlay, templating
from iad_r1.settings.predict import AppSettings

if TYPE_CHECKING:
    from PIL.Image import Image


def style() -> str:
    """The style sheet of the page."""
    return (files("iad_r1.report") / "templates" / "app.css").read_text(encoding="utf-8")


def complaint(
    stage: AppSettings, pictures: int, references: int, shown: int, needed: int = 0
) -> str | None:
    """The sentence on what was dropped if it is too little, or too much; `shown` is how many
    references the model is shown at most, `needed` at least."""
    if not pictures:
        return "Drop a photograph first."
    if pictures > stage.most_pictures:
        return f"{pictures} photographs at once are more than {stage.most_pictures}. Drop fewer."
    if references < needed:
        return f"Drop {needed} good pictures of the same product or more, to compare with."
    if references > shown:
        return f"{references} good pictures are more than {shown}. Drop fewer."
    return None


def jpeg(picture: Image, found: Verdict, grid: Grid) -> str:
    """The marked picture, as text that a page can embed."""
    buffer = io.BytesIO()
    inspected.marked(picture, found, grid).save(buffer, "JPEG", quality=inspected.QUALITY)
    return overlay.data_uri(buffer.getvalue())


def cards(judged: Sequence[tuple[Row, str | None]], notices: Sequence[str] = ()) -> str:
    """HTML: what is wrong with what was dropped, then a card for each row and its marked picture,
    which one that cannot be read does not have."""
    shown = [_card(row, picture) for row, picture in judged]
    return _fill("verdicts.html.j2", cards=shown, notices=notices)


def session(rows: Sequence[Row]) -> str:
    """HTML: the table of all rows, the last one first, and the same as CSV to download."""
    encoded = base64.b64encode(csv(rows).encode()).decode("ascii")
    shown = [
        {
            **{name: row.get(name) or "" for name in ("picture", "verdict", "place", "type")},
            "kind": _kind(row),
            "measured": inspected.measured(row.get("p_yes"), row.get("score")),
            "seconds": f"{row['seconds']:.2f}" if "seconds" in row else "",
        }
        for row in rows
    ]
    scores = [row["score"] for row in rows if row.get("score") is not None]
    measure = inspected.measure(scores[0] if scores else None)
    table = f"data:text/csv;charset=utf-8;base64,{encoded}"
    return _fill("session.html.j2", rows=shown, measure=measure, csv=table)


def csv(rows: Sequence[Row]) -> str:
    """The table that `stage=predict` writes of such rows."""
    buffer = io.StringIO()
    verdicts.write_table(buffer, rows)
    return buffer.getvalue()


def _card(row: Row, picture: str | None) -> dict[str, Any]:
    facts, texts = [], []
    if "p_yes" in row:
        measured = inspected.measured(row["p_yes"], row["score"])
        facts = [(inspected.measure(row["score"]), measured), ("place", row["place"]),
                 ("type", row["type"]), ("seconds", f"{row['seconds']:.2f}")]  # fmt: skip
        whole = None if row["reasoning"] else row["completion"]
        texts = [("Reasons", row["reasoning"]), ("The whole answer", whole)]
    texts.append(("Why", row.get("error")))
    return {
        "name": row["picture"],
        "verdict": row["verdict"].upper(),
        "kind": _kind(row),
        "picture": picture,
        "facts": [pair for pair in facts if pair[1]],
        "texts": [pair for pair in texts if pair[1]],
    }


def _kind(row: Row) -> str:
    return row["verdict"] if row["verdict"] in ("defective", "good") else "odd"


def _fill(template: str, **values: Any) -> str:
    return templating.environment().get_template(template).render(**values)
