"""Results of stages that runs share: `outputs/store/<key>/`, one folder for each.

A folder is there whole or not at all (temporary name, flush, rename). Large files are hard links to
those of the run that made them, so they take room once; whoever takes a result links them again.
So nobody may write into such a file in place: that would change it in every run. `entry.json` holds
the SHA-256 of each, which is checked before a result is used.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from iad_r1.store import checkpoints
from iad_r1.store.keys import digest
from iad_r1.store.run_folder import write_json, write_text

FOLDER = "store"  # beside the runs; no run may have this name
ENTRY = "entry.json"
SAID = ("stage", "run", "seconds", "made", "files")  # in it, at least
# where there are no hard links: another file system, one without, a file with too many
UNLINKABLE = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.EACCES)


@dataclass(frozen=True)
class Entry:
    """The result of a stage: its folder, and what its `entry.json` says."""

    path: Path
    about: Mapping[str, Any]

    @property
    def key(self) -> str:
        return self.path.name

    @property
    def bytes(self) -> int:
        """Of its files; on disk they are shared with the runs that still have them."""
        return sum(file["bytes"] for file in self.about["files"].values())

    def files(self, folder: str = "") -> dict[str, Path]:
        """Its files by name, or those in one of its folders by their name there."""
        prefix = f"{folder}/" if folder else ""
        return {
            name.removeprefix(prefix): self.path / name
            for name in self.about["files"]
            if name.startswith(prefix)
        }

    def damage(self) -> str | None:
        """What is wrong with it, if anything is."""
        for name, noted in self.about["files"].items():
            file = self.path / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != noted["bytes"]:
                return f"{name} has {file.stat().st_size:,} bytes instead of {noted['bytes']:,}"
            if digest(file) != noted["sha256"]:
                return f"the content of {name} has changed"
        return None


class Store:
    """The results that the runs in one folder `outputs` share."""

    def __init__(self, outputs: Path) -> None:
        self.path = outputs / FOLDER

    def entry(self, key: str) -> Entry | None:
        """The result of a key as it lies there, unchecked. ValueError if nothing can be read of
        what it is."""
        file = self.path / key / ENTRY
        if not file.parent.is_dir():
            return None
        try:
            about = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{ENTRY} cannot be read ({error})") from None
        if not isinstance(about, dict) or not about.keys() >= {*SAID}:
            raise ValueError(f"{ENTRY} does not say all of {', '.join(SAID)}")
        return Entry(file.parent, about)

    def sound(self, key: str) -> tuple[Entry | None, str | None]:
        """The result of a key if it is there and whole; and, if it is there but damaged, how."""
        try:
            found = self.entry(key)
        except ValueError as error:
            return None, str(error)
        damage = None if found is None else found.damage()
        return (None, damage) if damage else (found, None)

    def publish(self, key: str, files: Mapping[str, Path | str], about: Mapping[str, Any]) -> Entry:
        """Keep a result: files, or what to write into them, by their name in the entry, and what is
        known of it. One of the same key is replaced. OSError where there is no room."""
        with checkpoints.write_folder(self.path / key) as partial:
            noted = {}
            for name, content in files.items():
                file = partial / name
                if isinstance(content, str):
                    write_text(file, content)
                else:
                    link(content, file)
                noted[name] = {"bytes": file.stat().st_size, "sha256": digest(file)}
            made = datetime.now().astimezone().isoformat(timespec="seconds")
            about = {"key": key, "made": made, **about, "files": noted}
            write_json(partial / ENTRY, about)
        return Entry(self.path / key, about)

    def lock(self, key: str) -> Lock:
        """What one process at a time may hold: it looks the key up, makes the result, or removes
        it."""
        folder = self.path / ".locks"
        folder.mkdir(parents=True, exist_ok=True)
        return Lock(folder / key)

    def entries(self) -> Iterator[tuple[str, Entry | None, str | None]]:
        """Every key with its result, or with what is wrong with it; contents are not checked."""
        for folder in sorted(self.path.glob("*/")) if self.path.is_dir() else ():
            if folder.name.startswith("."):
                continue
            try:
                yield folder.name, self.entry(folder.name), None
            except ValueError as error:
                yield folder.name, None, str(error)

    def taken(self) -> Iterator[str]:
        """The key of each result that a run has taken, once for every time."""
        for pattern in ("*/*/manifest.json", "*/*/models/*/manifest.json"):
            for file in self.path.parent.glob(pattern):
                notes = json.loads(file.read_text(encoding="utf-8")).get("store", {})
                yield from (note["key"] for note in notes.values() if "taken" in note)

    def remove(self, key: str) -> bool:
        """Remove a result, unless a process is using it; whether it is gone."""
        lock = self.lock(key)
        try:
            if not lock.tried():
                return False
            hidden = self.path / f"{checkpoints.PARTIAL}{key}"  # gone at once, whole
            shutil.rmtree(hidden, ignore_errors=True)
            (self.path / key).rename(hidden)
            shutil.rmtree(hidden)
            return True
        finally:
            lock.close()


class Lock:
    """A lock on a file, which goes with the process, however it ends; not with its children.

    Whoever holds it may say in it who it is, for those that wait.
    """

    def __init__(self, file: Path) -> None:
        self.file = file.open("a+", encoding="utf-8")

    def tried(self) -> bool:
        """Take it if it is free; whether this process has it."""
        try:
            fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            raise
        self.say("")
        return True

    def say(self, text: str) -> None:
        """Leave word for those that wait."""
        self.file.truncate(0)
        self.file.write(text)
        self.file.flush()

    def said(self) -> str:
        """What the one who holds it has left."""
        self.file.seek(0)
        return self.file.read()

    def close(self) -> None:
        """Give it back."""
        self.file.close()


def link(file: Path, to: Path) -> None:
    """A hard link to a file, or a copy where there can be none."""
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, to)
    except OSError as error:
        if error.errno not in UNLINKABLE:
            raise
        shutil.copyfile(file, to)
