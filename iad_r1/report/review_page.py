"""An item of a build on the page of `stage=review`, and how its review goes. What a writer, a file
or a reviewer says is text there, never HTML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from iad_r1.expert import review
from iad_r1.expert.review import Decision, Row, Standing
from iad_r1.report import templating

DONE = {"accept": "accepted", "edit": "edited", "reject": "rejected"}


@dataclass(frozen=True)
class Picture:
    """A picture as text that a page can embed, its size in pixels, the outline of its mask as an
    SVG path, and in place of all that why it cannot be shown."""

    data: str | None
    size: tuple[int, int]
    outline: str
    wrong: str | None


def style() -> str:
    """The style sheet of the page."""
    return "\n".join(_file(name) for name in ("app.css", "review.css"))


def script() -> str:
    """The function that listens to keys."""
    return _file("review.js")


def _file(name: str) -> str:
    return (files("iad_r1.report") / "templates" / name).read_text(encoding="utf-8")


def notice(said: str) -> str:
    """HTML: what is wrong with what was done; "" if nothing is."""
    return _fill("notice.html.j2", said=said) if said else ""


def head(name: str, total: int, own: Sequence[Decision]) -> str:
    """HTML: who reviews, and how far that is."""
    counts = Counter(DONE[decision.verdict] for decision in own)
    return _fill("review_head.html.j2", name=name, total=total, judged=len(own), counts=counts)


def empty(all_done: bool) -> str:
    """HTML: there is no item to show."""
    return _fill("review_item.html.j2", row=None, all_done=all_done)


def item(
    row: Row, number: int, total: int, decision: Decision | None, picture: Picture, good: Picture
) -> str:
    """HTML: an item, and what the reviewer has decided about it."""
    answer = [("Answer", "No" if row["location"] is None else "Yes"),
              ("Place", row["location"]), ("Type", row["type"])]  # fmt: skip
    return _fill(
        "review_item.html.j2", row=row, number=number + 1, total=total, decision=decision,
        done=DONE, picture=picture, good=good, answer=[pair for pair in answer if pair[1]],
    )  # fmt: skip


def team(standing: Standing, times: Mapping[str, Sequence[float]]) -> str:
    """HTML: every reviewer's counts and speed, and how every two agree."""
    reviewers = [
        {
            "name": name,
            "judged": len(found),
            "counts": Counter(decision.verdict for decision in found.values()),
            "per_hour": review.per_hour(times[name]),
        }
        for name, found in standing.items()
    ]
    return _fill("review_team.html.j2", reviewers=reviewers, pairs=review.agreements(standing))


def _fill(template: str, **values: Any) -> str:
    return templating.environment().get_template(template).render(**values)
