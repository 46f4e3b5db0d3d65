"""What an outside model said, kept on disk: nothing that was paid for is asked twice."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any, Literal

from iad_r1.errors import DataError


@dataclass(frozen=True)
class Token:
    """One token of a reply: its text, and the natural log-probs of the likeliest ones there."""

    text: str
    likeliest: Mapping[str, float]


@dataclass(frozen=True)
class Reply:
    """One answer of an outside model. `stop` is "refused" where it or its filter would not answer;
    token counts are those the service charges; `tokens` is empty if log-probs were not asked."""

    text: str
    stop: Literal["stop", "length", "refused"]
    tokens_in: int
    tokens_out: int
    tokens: tuple[Token, ...] = ()


@dataclass(frozen=True)
class Used:
    """How many replies a run has asked for and paid (`replies`, with their tokens), found on disk
    (`kept`) and got as refusals, and how many requests were made again."""

    replies: int
    kept: int
    retries: int
    refused: int
    tokens_in: int
    tokens_out: int


class Replies:
    """A file of replies by the hash of all that was asked: words, pictures, model and settings.

    A reply is on disk before anybody sees it, and with it that `run` has paid for it, so a killed
    process loses neither. Threads and processes may share the file.
    """

    def __init__(self, path: Path, run: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.run = path, run
        self._lock = Lock()
        try:
            self._file = sqlite3.connect(path, timeout=60, check_same_thread=False)
            self._file.execute("PRAGMA journal_mode=WAL")
            self._file.execute("CREATE TABLE IF NOT EXISTS replies (asked TEXT PRIMARY KEY, reply)")
            self._file.execute(
                "CREATE TABLE IF NOT EXISTS used (run TEXT, asked TEXT, replied DEFAULT 0, paid "
                "DEFAULT 0, refused DEFAULT 0, tokens_in DEFAULT 0, tokens_out DEFAULT 0, retries "
                "DEFAULT 0, PRIMARY KEY (run, asked))"
            )
        except sqlite3.DatabaseError as error:
            raise DataError(
                f"{path}: replies of outside models are kept here, but the file cannot be used "
                f"({error}). Move it away to begin a new one; what it holds is paid for again."
            ) from None
        self._used = self._summed()  # counted on from here: a budget asks before every question

    def find(self, asked: str) -> Reply | None:
        """What was said to this before, which counts as kept unless this run has paid for it."""
        with self._lock, self._file:
            row = self._file.execute(
                "SELECT reply FROM replies WHERE asked = ?", (asked,)
            ).fetchone()
            if row is None:
                return None
            found = json.loads(row[0])
            tokens = tuple(Token(**token) for token in found["tokens"])
            reply = Reply(**found | {"tokens": tokens})
            self._use(asked, reply, paid=False)
        return reply

    def keep(self, asked: str, reply: Reply) -> None:
        """Write a reply to disk, and that it is paid for."""
        with self._lock, self._file:
            self._file.execute(
                "INSERT OR REPLACE INTO replies VALUES (?, ?)", (asked, json.dumps(asdict(reply)))
            )
            self._use(asked, reply, paid=True)

    def again(self, asked: str, times: int = 1) -> None:
        """Count requests that had to be made again."""
        with self._lock, self._file:
            self._file.execute(
                "INSERT INTO used (run, asked, retries) VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET "
                "retries = retries + excluded.retries",
                (self.run, asked, times),
            )
            self._count(retries=times)

    def used(self) -> Used:
        """What the run has used so far, in this process and earlier ones."""
        return self._used

    def _summed(self) -> Used:
        sums = ("paid", "replied - paid", "retries", "refused", "tokens_in", "tokens_out")
        with closing(self._file.cursor()) as cursor:
            found = cursor.execute(
                f"SELECT {', '.join(f'total({one})' for one in sums)} FROM used WHERE run = ?",
                (self.run,),
            ).fetchone()
        return Used(*map(int, found))

    def _count(self, **more: int) -> None:
        now = {name: getattr(self._used, name) + number for name, number in more.items()}
        self._used = replace(self._used, **now)

    def _use(self, asked: str, reply: Reply, *, paid: bool) -> None:
        tokens = (reply.tokens_in, reply.tokens_out) if paid else (0, 0)
        refused = reply.stop == "refused"
        written = self._file.execute(
            "INSERT INTO used (run, asked, replied, paid, refused, tokens_in, tokens_out) VALUES "
            "(?, ?, 1, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET replied = 1, paid = excluded.paid, "
            "refused = excluded.refused, tokens_in = excluded.tokens_in, "
            "tokens_out = excluded.tokens_out WHERE NOT replied",
            (self.run, asked, paid, refused, *tokens),
        )
        if written.rowcount:  # else the run has used it already
            self._count(replies=paid, kept=not paid, refused=refused, tokens_in=tokens[0],
                        tokens_out=tokens[1])  # fmt: skip

    def close(self) -> None:
        """Leave the file whole."""
        self._file.close()


def key(request: Mapping[str, Any]) -> str:
    """The hash of a request."""
    text = json.dumps(request, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
