"""What reviewers decide about the items of a build, and what comes of it.

    <build>/review/<name>.jsonl    a line for each decision of one reviewer

Lines are only added, and of an item the last one counts. Each is on disk before the reviewer sees
the next item.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, unquote

from pydantic import TypeAdapter, ValidationError

from iad_r1.errors import DataError
from iad_r1.expert.facts import Facts
from iad_r1.expert.filters import Alike, Rejection, Rules, rejections, target
from iad_r1.expert.teachers import Draft

Row = Mapping[str, Any]  # a line of drafts.jsonl
Verdict = Literal["accept", "edit", "reject"]
VERDICTS: tuple[Verdict, ...] = ("accept", "edit", "reject")
FOLDER = "review"  # of a build
PAUSE = 300.0  # seconds between two decisions from which on nobody was reviewing
MARKED = ("magenta",)  # the colour of masks on the page
LONGEST_NAME = 200  # characters of a file name, in which one of a name may take up to twelve


@dataclass(frozen=True)
class Text:
    """What a reviewer may change; answer and place are those of label and mask."""

    description: str
    reasoning: str
    type: str | None  # None: the picture is good


@dataclass(frozen=True)
class Decision:
    """What a reviewer has decided about an item. `seen` is the digest of what was read, `at` the
    time in seconds since 1970."""

    id: str
    seen: str
    verdict: Verdict
    at: float
    reason: str | None = None  # why it is rejected
    text: Text | None = None  # what it is edited to

    def __post_init__(self) -> None:
        if (self.reason is not None) != (self.verdict == "reject"):
            raise ValueError("a rejection, and nothing else, has a reason")
        if (self.text is not None) != (self.verdict == "edit"):
            raise ValueError("an edit, and nothing else, has a text")


_DECISION, _FACTS = TypeAdapter(Decision), TypeAdapter(Facts)
Standing = Mapping[str, Mapping[str, Decision]]  # by reviewer and id of an item


def text_of(row: Row) -> Text:
    """What an item says."""
    return Text(row["description"], row["reasoning"], row["type"])


def digest(row: Row) -> str:
    """Tells what was read from other texts about the same picture."""
    said = f"{row['description']}\n{row['target']}".encode()
    return hashlib.sha256(said).hexdigest()[:16]


# --- reviewers -----------------------------------------------------------------------------------


def named(typed: str, known: Iterable[str]) -> str:
    """The name of a reviewer, as it is spelled already if only case tells them apart. DataError in
    a sentence if it is none."""
    name = unicodedata.normalize("NFC", " ".join(typed.split()))
    if not name:
        raise DataError("Say who reviews: a name that tells you from the others.")
    if not name.isprintable():
        raise DataError("This name holds signs that cannot be shown. Use letters.")
    if len(_file_name(name)) > LONGEST_NAME:
        raise DataError("This name is too long. Use a shorter one.")
    return next((other for other in known if other.casefold() == name.casefold()), name)


def file_of(folder: Path, name: str) -> Path:
    """Where the decisions of a reviewer are kept."""
    return folder / _file_name(name)


def _file_name(name: str) -> str:
    return f"{quote(name, safe=' ').replace('.', '%2E')}.jsonl"


def _files(folder: Path) -> dict[str, Path]:
    """By reviewer."""
    return {unquote(file.stem): file for file in sorted(folder.glob("*.jsonl"))}


# --- on disk -------------------------------------------------------------------------------------


def append(folder: Path, name: str, decision: Decision) -> None:
    """Add a decision; it is on disk when this returns. A line that a kill has torn is cut off."""
    folder.mkdir(exist_ok=True)
    line = _DECISION.dump_json(decision, exclude_defaults=True) + b"\n"
    path = file_of(folder, name)
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the same name on two pages
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        if size and file.read() != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
    if not size:  # that there is such a file is to be on disk, too
        there = os.open(folder, os.O_RDONLY)
        os.fsync(there)
        os.close(there)


class Decisions:
    """All decisions about a build; what other processes have added is read when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[str, int] = {}  # bytes of each file
        self._standing: dict[str, dict[str, Decision]] = {}
        self._times: dict[str, list[float]] = {}
        self._lock = threading.Lock()

    def standing(self) -> dict[str, dict[str, Decision]]:
        """By reviewer and item, what counts. DataError that names a line that is no decision."""
        with self._lock:
            self._look()
            return {name: dict(found) for name, found in self._standing.items()}

    def times(self) -> dict[str, list[float]]:
        """By reviewer, when decisions were made."""
        with self._lock:
            self._look()
            return {name: list(times) for name, times in self._times.items()}

    def _look(self) -> None:
        for name, path in _files(self.folder).items():
            start = self._read.setdefault(name, 0)
            with path.open("rb") as file:
                file.seek(start)
                added = file.read()
            added = added[: added.rfind(b"\n") + 1]
            standing = self._standing.setdefault(name, {})
            times = self._times.setdefault(name, [])
            for number, line in enumerate(added.split(b"\n")[:-1], start=len(times) + 1):
                try:
                    decision = _DECISION.validate_json(line)
                except ValidationError as error:
                    why = error.errors()[0]["msg"]
                    raise DataError(
                        f"{path}, line {number}: this is no decision ({why}). Mend the line or "
                        "take it out; the others are read as they are."
                    ) from None
                standing[decision.id] = decision
                times.append(decision.at)
                self._read[name] += len(line) + 1


# --- what comes of it ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What reviewers have decided together. `editor` is whose text is taken; None: the writer's."""

    kept: bool
    editor: str | None


def outcome(found: Mapping[str, Decision]) -> Outcome:
    """Of the decisions about one item, by reviewer: it is kept if more keep than reject it. It is
    edited if as many of these edit as accept it, and the last edit is taken."""
    counts = Counter(decision.verdict for decision in found.values())
    if counts["accept"] + counts["edit"] <= counts["reject"]:
        return Outcome(False, None)
    edits = {name: one for name, one in found.items() if one.verdict == "edit"}
    if not edits or counts["edit"] < counts["accept"]:
        return Outcome(True, None)
    return Outcome(True, max(edits, key=lambda name: edits[name].at))


def edited(row: Row, text: Text) -> dict[str, Any]:
    """The item with another text."""
    draft = Draft(text.description, text.reasoning, text.type)
    return {**row, **asdict(text), "target": target(draft, row["location"])}


def broken(row: Row, grid: str, rules: Rules) -> list[Rejection]:
    """The filters that an item does not pass, but that for near-duplicates."""
    draft = Draft(row["description"], row["reasoning"], row["type"], MARKED)
    facts = _FACTS.validate_python(row["facts"])
    found = list(rejections(facts, grid, draft, row["target"], rules))
    if (row["type"] is None) != (row["location"] is None):
        found.append(Rejection("type", "a defect, and nothing else, has a type"))
    return found


def about(row: Row) -> tuple[str, str | None]:
    """What texts are alike or not about: product and type."""
    return row["product"], row["type"]


def reviewed(
    rows: Callable[[], Iterable[Row]],
    standing: Standing,
    grid: str,
    rules: Rules,
    alike: float | None,
) -> Iterator[dict[str, Any]]:
    """The lines of a build as reviewers have left them: those that they reject, and edits that a
    filter refuses, with the reason in `rejected`; edits in the place of texts.

    DataError where a decision is about another text, or about no item.
    """
    near = Alike(alike)
    outcomes, changed = outcomes_of(rows(), standing)
    for row in rows() if changed else ():
        stays = not row["rejected"] and outcomes.get(row["id"], _AS_IT_IS) == _AS_IT_IS
        if stays and about(row) in changed:
            near.add(row["id"], about(row), row["reasoning"])
    for row in rows():
        by = {name: one[row["id"]] for name, one in standing.items() if row["id"] in one}
        if row["rejected"] or not by:
            yield dict(row)
            continue
        found, verdicts = outcomes[row["id"]], {n: one.verdict for n, one in by.items()}
        if not found.kept:
            why = Rejection("review", "; ".join(_said(name, one) for name, one in by.items()))
            yield {**row, "review": verdicts, "rejected": [asdict(why)]}
        elif found.editor is None:
            yield {**row, "review": verdicts}
        else:
            text = by[found.editor].text
            assert text is not None
            new = edited(row, text) | {"review": verdicts, "edited_by": found.editor}
            wrong = broken(new, grid, rules)
            if not wrong and (twin := near.find(about(new), new["reasoning"])) is not None:
                wrong = [twin]
            if not wrong:
                near.add(new["id"], about(new), new["reasoning"])
            yield new | {"rejected": [asdict(why) for why in wrong]}


_AS_IT_IS = Outcome(True, None)


def outcomes_of(
    rows: Iterable[Row], standing: Standing
) -> tuple[dict[str, Outcome], set[tuple[str, str | None]]]:
    """By id, what was decided; and what edited texts are about. DataError where a decision is about
    another text, or about no item."""
    outcomes: dict[str, Outcome] = {}
    changed: set[tuple[str, str | None]] = set()
    for row in rows:
        by = {name: one[row["id"]] for name, one in standing.items() if row["id"] in one}
        for name, decision in by.items():
            if row["rejected"] or decision.seen != digest(row):
                raise DataError(
                    f"{name} has judged another text about {row['id']} than drafts.jsonl now "
                    "holds. Move the folder review/ away to review the new texts."
                )
        if by:
            outcomes[row["id"]] = found = outcome(by)
            text = by[found.editor].text if found.editor is not None else None
            if text is not None:
                changed.add((row["product"], text.type))
    unknown = {id: name for name, found in standing.items() for id in found if id not in outcomes}
    if unknown:
        id, name = next(iter(unknown.items()))
        raise DataError(
            f"{name} has judged {id}, and drafts.jsonl has no such item ({len(unknown):,} such "
            "decisions). Move the folder review/ away if it belongs to another build."
        )
    return outcomes, changed


def _said(name: str, decision: Decision) -> str:
    reason = f" ({decision.reason})" if decision.reason is not None else ""
    return f"{name}: {decision.verdict}{reason}"


# --- how well, and how fast ----------------------------------------------------------------------


@dataclass(frozen=True)
class Agreement:
    """Two reviewers: items that both have judged, of how many they say the same, and Cohen's kappa
    of accept, edit and reject; None: it is not defined, and `why`."""

    first: str
    second: str
    both: int
    same: int
    kappa: float | None
    why: str | None = None


def agreements(standing: Standing) -> list[Agreement]:
    """Of every two reviewers."""
    return [agreement(a, standing[a], b, standing[b]) for a, b in combinations(sorted(standing), 2)]


def agreement(
    first: str, of_first: Mapping[str, Decision], second: str, of_second: Mapping[str, Decision]
) -> Agreement:
    """Of two reviewers, with their decisions by item."""
    from sklearn.metrics import cohen_kappa_score

    shared = sorted(of_first.keys() & of_second.keys())
    ours = [of_first[id].verdict for id in shared]
    theirs = [of_second[id].verdict for id in shared]
    same = sum(a == b for a, b in zip(ours, theirs, strict=True))
    why = None
    if not shared:
        why = "no item was judged by both"
    elif len(said := {*ours, *theirs}) == 1:
        why = f"both always {said.pop()}, as they would without looking"
    kappa = None if why else float(cohen_kappa_score(ours, theirs, labels=list(VERDICTS)))
    return Agreement(first, second, len(shared), same, kappa, why)


def per_hour(times: Sequence[float]) -> float | None:
    """Decisions in an hour of reviewing: pauses do not count, nor does the first decision after
    one. None: there were no two in a row."""
    spent = [b - a for a, b in pairwise(times) if 0 < b - a < PAUSE]
    return len(spent) / sum(spent) * 3600 if spent else None


def told(
    rows: Iterable[Row], standing: Standing, times: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    """What the data card says of the review, from the lines that `reviewed` gives."""
    items = Counter[str]()
    for row in rows:
        if "review" in row:
            reason = row["rejected"][0]["reason"] if row["rejected"] else None
            kind = "edited" if "edited_by" in row else "accepted"
            items[{None: kind, "review": "rejected"}.get(reason, "refused")] += 1
            items["by several"] += len(row["review"]) > 1
            items["disputed"] += len(set(row["review"].values())) > 1
        elif not row["rejected"]:
            items["not judged"] += 1
    kinds = ("accepted", "edited", "rejected", "refused", "not judged", "by several", "disputed")
    return {
        "items": {kind: items[kind] for kind in kinds},
        "reviewers": [
            {"name": name, **_counts(found), "per_hour": per_hour(times[name])}
            for name, found in standing.items()
        ],
        "agreement": [asdict(one) for one in agreements(standing)],
    }


def _counts(found: Mapping[str, Decision]) -> dict[str, int]:
    counts = Counter(decision.verdict for decision in found.values())
    return {"judged": len(found), **{verdict: counts[verdict] for verdict in VERDICTS}}
