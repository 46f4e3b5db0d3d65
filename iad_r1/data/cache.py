"""What was found by opening files, kept between runs, so that a second run need not open them.

An answer about some files is kept for as long as they have the sizes and times of change that they
had, and as long as the code and the libraries that found it are the same. It lies in one file in
the user's cache folder, which several runs may read and write at once. Whatever is wrong with that
file is said once; then files are opened as if nothing were kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import Any

from iad_r1.processes import ranks

VARIABLE = "IAD_CACHE"  # names the folder
NAME = "found-1.sqlite"  # by the layout of its table
PATIENCE = 5.0  # seconds to wait for another run that writes
SETTLED = 2.0  # seconds since a file changed: some disks do not tell times apart by less
_AT_ONCE = 1024  # answers written at a time
_ROOM = Path(__file__).parent
# what finds the answers
_CODE = [_ROOM / name for name in ("mix.py", "images.py", "duplicates.py", "shapes.py")]
_CODE += [_ROOM.parent / "grid.py"]
_LIBRARIES = ("numpy", "pillow", "pycocotools", "scipy")

Answer = Mapping[str, Any]  # as JSON has it


def folder() -> Path:
    """Where is kept what can be made again: IAD_CACHE, else `iad_r1` in the user's cache folder."""
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "iad_r1"


class Kept:
    """The answers of earlier runs, and a place for new ones; used in a `with` statement, by any
    number of threads.

    Args:
        trusted: False opens every file whatever is kept, and keeps what was found.
    """

    def __init__(self, trusted: bool = True) -> None:
        self.trusted, self.lock = trusted, Lock()
        self.new: dict[bytes, tuple[bytes, str]] = {}  # stamp and answer by what was asked
        self.table: sqlite3.Connection | None = None  # None: it cannot be used
        self.file: Path | None = None
        try:
            self.file = folder() / NAME
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.table = sqlite3.connect(self.file, timeout=PATIENCE, check_same_thread=False)
            self.table.execute(
                "CREATE TABLE IF NOT EXISTS found "
                "(asked BLOB PRIMARY KEY, stamp BLOB, answer TEXT, crc INTEGER) WITHOUT ROWID"
            )
        except (OSError, RuntimeError, sqlite3.Error) as error:
            self._give_up(error)

    def found(
        self, files: Sequence[Path], asked: Sequence[object], find: Callable[[], Answer]
    ) -> Answer:
        """What `find` finds by opening `files`, or found when they were as they are now. `asked`
        says all else that the answer depends on, as JSON can hold it."""
        stamp = _stamp(files)
        if stamp is None:
            return find()
        question = json.dumps([[os.path.abspath(file) for file in files], asked])
        key = hashlib.sha256(question.encode()).digest()
        known = self._get(key, stamp) if self.trusted else None
        if known is not None:
            return known
        answer = find()
        if _stamp(files) == stamp:
            self._put(key, stamp, json.dumps(answer))
        return answer

    def _get(self, key: bytes, stamp: bytes) -> Answer | None:
        with self.lock:
            if self.table is None:
                return None
            try:
                row = self.table.execute(
                    "SELECT stamp, answer, crc FROM found WHERE asked = ?", (key,)
                ).fetchone()
                if row is None or row[0] != stamp:
                    return None
                if row[2] != _crc(key, stamp, row[1]):
                    raise sqlite3.DatabaseError("an entry is damaged")
                return json.loads(row[1])
            except (sqlite3.Error, UnicodeDecodeError) as error:
                self._give_up(error)
                return None

    def _put(self, key: bytes, stamp: bytes, answer: str) -> None:
        with self.lock:
            self.new[key] = stamp, answer
            if len(self.new) >= _AT_ONCE:
                self._write()

    def _write(self) -> None:
        rows = [(key, *of, _crc(key, *of)) for key, of in self.new.items()]
        self.new.clear()
        if self.table is None or not rows:
            return
        try:
            with self.table:
                self.table.executemany("INSERT OR REPLACE INTO found VALUES (?, ?, ?, ?)", rows)
        except sqlite3.Error as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        if self.table is not None:
            self.table.close()
        self.table = None
        if ranks.is_main():
            print(
                f"{self.file or 'The cache folder'} cannot be used ({error}), so pictures are "
                "opened that need not be. If the file is broken, delete it; if its folder cannot "
                f"be written, name another one by the environment variable {VARIABLE}.",
                flush=True,
            )

    def __enter__(self) -> Kept:
        return self

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self._write()
            if self.table is not None:
                self.table.close()


def _stamp(files: Sequence[Path]) -> bytes | None:
    """What changes when one of the files does, or what finds answers; None where a file is not
    there, or so new that a change to it may not show."""
    found: list[int] = []
    for file in files:
        try:
            said = os.stat(file)
        except OSError:
            return None
        if time.time() - said.st_mtime < SETTLED:
            return None
        found += [said.st_size, said.st_mtime_ns, said.st_ctime_ns]
    return hashlib.sha256(f"{_finder()} {found}".encode()).digest()


@cache
def _finder() -> str:
    """The code that finds answers, and the libraries below it."""
    code = hashlib.sha256()
    for file in _CODE:
        code.update(file.read_bytes())
    return f"{code.hexdigest()} {[version(library) for library in _LIBRARIES]}"


def _crc(key: bytes, stamp: bytes, answer: str) -> int:
    return zlib.crc32(key + stamp + answer.encode())
