"""Which pictures are judged: those that are named, and those that land in a folder.

A folder is looked at again and again. Being notified would not work on network drives, where
another machine writes.
"""

from __future__ import annotations

import glob
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from iad_r1 import nearest
from iad_r1.data import folders
from iad_r1.errors import DataError
from iad_r1.settings.config import Config
from iad_r1.settings.predict import JudgingSettings

SUFFIXES = folders.PICTURES | folders.UNOPENED  # the latter are named as unreadable
Key = tuple[str, int, int]


@dataclass(frozen=True)
class Arrival:
    """A picture to judge, its file as it was when it was looked at.

    `whole`: nobody is writing it any more, so if it cannot be read, it is broken.
    """

    path: Path
    bytes: int
    modified: int  # nanoseconds
    whole: bool = True

    @property
    def key(self) -> Key:
        """What tells it from all others, and from itself once it is written again."""
        return (str(self.path), self.bytes, self.modified)


def listed(named: str | Sequence[str]) -> list[Path]:
    """The pictures that files, folders and globs name, each once; those of a folder or a glob in
    the order of their names. Raises DataError where one of them names none."""
    found: dict[Path, None] = {}
    for text in [named] if isinstance(named, str) else named:
        path = Path(text)
        if path.is_dir():
            with folders.readable():
                pictures = sorted(_below(path))
        elif path.exists():
            pictures = [path]
        else:
            files = map(Path, glob.glob(text, recursive=True))
            pictures = sorted(file for file in files if _is_picture(file) and file.is_file())
        if not pictures:
            what = "folder holds no pictures" if path.is_dir() else "leads to no picture"
            raise DataError(f"{text}: this {what}. Give a file, a folder or a glob.")
        found |= dict.fromkeys(pictures)
    return list(found)


def references(config: Config) -> list[Path]:
    """The good pictures that are shown: the first of those that are named, as many as
    `evaluate.shots` has at most; with nearest good patches, those that are remembered. Raises
    DataError as `listed` does."""
    stage = config.stage
    assert isinstance(stage, JudgingSettings)
    found = [] if stage.references is None else listed(stage.references)
    if config.method.name == "patchcore":
        return list(nearest.chosen(found, config.patchcore, config.seed))
    return found[: max(config.evaluate.shots)]


def arrivals(paths: Iterable[Path]) -> Iterator[Arrival]:
    """Pictures as they are now. One that went away since it was listed is there with 0 bytes."""
    for path in paths:
        yield _look(path) or Arrival(path, 0, 0)


def landing(
    folder: Path,
    known: Callable[[Key], bool],
    poll: float,
    patience: float,
    wait: Callable[[float], None] = time.sleep,
) -> Iterator[list[Arrival]]:
    """The pictures in a folder and those that land there, the oldest first, without end.

    One is handed out once two looks, `poll` seconds apart, find it the same, and at every look from
    then on until it is `known`. It counts as whole when it was the same for `patience` seconds.
    """
    since: dict[Key, float] = {}  # when each file was first seen as it is
    reached = True
    while True:
        try:
            found = [one for path in _below(folder) if (one := _look(path)) and not known(one.key)]
            reached = True
        except OSError as error:
            if reached:
                print(f"{folder} cannot be looked into ({error}); trying again", flush=True)
            found, reached = [], False
        before, now = since, time.monotonic()
        since = {one.key: before.get(one.key, now) for one in found}
        ready = [
            replace(one, whole=now - before[one.key] >= patience)
            for one in found
            if one.key in before
        ]
        if ready:
            yield sorted(ready, key=lambda one: (one.modified, one.path))
        wait(poll)


def _look(path: Path) -> Arrival | None:
    """A file as it is now; None if it is not there."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return Arrival(path, found.st_size, found.st_mtime_ns)


def _below(folder: Path) -> Iterator[Path]:
    """The pictures in a folder and those below it, but for hidden ones; links are followed. Raises
    OSError."""
    seen: set[str] = set()  # a folder may be a link to one that holds it
    for place, inner, files in os.walk(folder, onerror=folders.raised, followlinks=True):
        inner[:] = sorted(name for name in inner if not folders.is_hidden(name))
        real = os.path.realpath(place)
        if real in seen:
            inner.clear()
            continue
        seen.add(real)
        yield from (path for name in files if _is_picture(path := Path(place, name)))


def _is_picture(path: Path) -> bool:
    return not path.name.startswith(".") and path.suffix.lower() in SUFFIXES
