"""The files below a folder, walked once: what an export is made of, and the pictures it names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from iad_r1.data.folders import PICTURES, SPLIT_NAMES, UNOPENED
from iad_r1.errors import DataError

# a name that is no path from here: "/home/me/a.png", "C:\\a.png", "s3://bucket/a.png"
_ELSEWHERE = re.compile(r"/|[A-Za-z][\w+.-]*:")


class Tree:
    """All files below `root` that are not hidden, in the order of their names."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.by_suffix: dict[str, list[Path]] = {}
        self.by_name: dict[str, list[Path]] = {}  # pictures only
        self.folders: set[str] = set()  # their names
        self._walk()
        self.pictures = sorted(path for suffix in PICTURES for path in self.of(suffix))
        for path in (*self.pictures, *(path for suffix in UNOPENED for path in self.of(suffix))):
            self.by_name.setdefault(path.name, []).append(path)
        self.known = set(self.pictures)

    def _walk(self) -> None:
        seen: set[str] = set()  # a folder may be a link to one that holds it
        for folder, inner, files in os.walk(self.root, followlinks=True):
            inner[:] = sorted(name for name in inner if not name.startswith("."))
            real = os.path.realpath(folder)
            if real in seen:
                inner.clear()
                continue
            seen.add(real)
            self.folders.update(inner)
            here = Path(folder)
            for name in sorted(files):
                if not name.startswith("."):
                    suffix = os.path.splitext(name)[1].lower()
                    self.by_suffix.setdefault(suffix, []).append(here / name)

    def of(self, suffix: str) -> list[Path]:
        """The files whose name ends like this, in lower case with its dot; by path."""
        return sorted(self.by_suffix.get(suffix, ()))

    def first_of_each_folder(self, suffix: str) -> Iterable[Path]:
        """Of files that say the same kind of thing for a picture each, one per folder; and all that
        are called like no picture beside them."""
        seen: set[Path] = set()
        names = {path.with_suffix("") for path in self.pictures}
        for path in self.of(suffix):
            if path.parent not in seen or path.with_suffix("") not in names:
                yield path
            if path.with_suffix("") in names:
                seen.add(path.parent)

    def relative(self, path: Path) -> Path:
        """A path from the root."""
        return path.relative_to(self.root)

    def splits_of(self, file: Path) -> set[str]:
        """The splits that an annotation file says its pictures are in, by its path."""
        return splits(self.relative(file).parent, file.name)

    def find(self, named: str, file: Path, where: str) -> Path:
        """The picture that an annotation `file` names. Raises DataError where there is none, or
        where several may be meant.

        It lies at that path from the file or the root; or else at the longest end of the path that
        is there, because exports name folders of the machine that wrote them. A folder that is
        here too is never left out of the name.
        """
        for start in (file.parent, self.root):
            exact = Path(os.path.normpath(start / named.replace("\\", "/")))
            if exact in self.known:
                return exact
        parts = [part for part in re.split(r"[\\/]", named) if part not in ("", ".", "..")]
        alike = self.by_name.get(parts[-1], []) if parts else []
        for start in range(len(parts)):
            left_out = set(parts[:start])
            if not _ELSEWHERE.match(named) and left_out & self.folders:
                break
            tail = tuple(parts[start:])
            found = [path for path in alike if path.parts[-len(tail) :] == tail]
            found = _narrowed(found, self.splits_of(file), self)
            if len(found) > 1:
                raise DataError(
                    f"{where}: {named!r} may be {found[0]} or {found[1]}. Name it by its path "
                    f"from {self.root}."
                )
            if found and found[0].suffix.lower() in UNOPENED:
                raise DataError(
                    f"{where}: {found[0]}: pictures of this format are not read. Save them as PNG "
                    "or JPEG."
                )
            if found:
                return found[0]
        raise DataError(
            f"{where}: the picture {named!r} is not below {self.root}. Put it there, or take the "
            "entry out."
        )


def _narrowed(found: Sequence[Path], said: set[str], tree: Tree) -> Sequence[Path]:
    """Of several pictures of one name, those in the split of the file that names them."""
    fitting = [p for p in found if splits(tree.relative(p).parent) == said] if found[1:] else []
    return fitting or found


def splits(folder: Path, file: str = "") -> set[str]:
    """The splits that a folder's path from the root is named by ("val2017"), and the name of an
    annotation `file` in it, in any of its words ("instances_val2017.json")."""
    words = [*folder.parts, *re.split(r"[-_. ]", file)]
    plain = (word.lower().rstrip("0123456789") for word in words)
    return {SPLIT_NAMES[word] for word in plain if word in SPLIT_NAMES}
