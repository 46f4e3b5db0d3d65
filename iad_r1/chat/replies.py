"""What an outside model said, kept on disk: nothing that was paid for is asked twice."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
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


class Replies:
    """A file of replies by the hash of all that was asked: words, pictures, model and settings.

    A reply is on disk before anybody sees it, so a killed process loses none. Threads and processes
    may share the file.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._lock = Lock()
        try:
            self._file = sqlite3.connect(path, timeout=60, check_same_thread=False)
            self._file.execute("PRAGMA journal_mode=WAL")
            self._file.execute("CREATE TABLE IF NOT EXISTS replies (asked TEXT PRIMARY KEY, reply)")
        except sqlite3.DatabaseError as error:
            raise DataError(
                f"{path}: replies of outside models are kept here, but the file cannot be used "
                f"({error}). Move it away to begin a new one; what it holds is paid for again."
            ) from None

    def find(self, asked: str) -> Reply | None:
        """What was said to this before."""
        with self._lock, closing(self._file.cursor()) as cursor:
            row = cursor.execute("SELECT reply FROM replies WHERE asked = ?", (asked,)).fetchone()
        if row is None:
            return None
        found = json.loads(row[0])
        return Reply(**found | {"tokens": tuple(Token(**token) for token in found["tokens"])})

    def keep(self, asked: str, reply: Reply) -> None:
        """Write a reply to disk."""
        with self._lock, self._file:
            self._file.execute(
                "INSERT OR REPLACE INTO replies VALUES (?, ?)", (asked, json.dumps(asdict(reply)))
            )

    def close(self) -> None:
        """Leave the file whole."""
        self._file.close()


def key(request: Mapping[str, Any]) -> str:
    """The hash of a request."""
    text = json.dumps(request, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
