"""The files below a folder, walked once: what an export is made of, and the pictures it names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal
from xml.etree.ElementTree import Element, ParseError

from iad_r1.data.folders import PICTURES, SPLIT_NAMES, UNOPENED, is_hidden, raised, words
from iad_r1.errors import DataError

# folders of masks, which are no pictures to judge
MASKS = frozenset(("ground_truth", "mask", "masks", "segmentationclass", "segmentationobject"))
# a name that is no path from here: "/shots/a.png", "C:\\a.png", "s3://bucket/a.png"
_ELSEWHERE = re.compile(r"/|[A-Za-z][\w+.-]*:")


class Tree:
    """All files below `root` that are not hidden, in the order of their paths."""

    def __init__(self, root: Path) -> None:
        self.root, self.name = root, words(root.resolve().name)
        self.folders: set[str] = set()  # their names
        self._by_suffix: dict[str, list[str]] = {}
        self._splits: dict[Path, set[str]] = {}
        self._walk()

    def _walk(self) -> None:
        seen: set[str] = set()  # a folder may be a link to one that holds it
        for folder, inner, files in os.walk(self.root, onerror=raised, followlinks=True):
            inner[:] = sorted(name for name in inner if not is_hidden(name))
            real = os.path.realpath(folder)
            if real in seen:
                inner.clear()
                continue
            seen.add(real)
            self.folders.update(inner)
            for name in files:
                if not name.startswith("."):
                    suffix = os.path.splitext(name)[1].lower()
                    self._by_suffix.setdefault(suffix, []).append(os.path.join(folder, name))

    def of(self, *suffixes: str) -> list[Path]:
        """The files whose name ends in one of these, in lower case with their dots."""
        found = (path for suffix in suffixes for path in self._by_suffix.get(suffix, ()))
        return [Path(path) for path in sorted(found)]

    @cached_property
    def pictures(self) -> list[Path]:
        """The pictures that may be judged."""
        return [p for p in self.of(*PICTURES) if p.parent.name.lower() not in MASKS]

    @cached_property
    def known(self) -> frozenset[Path]:
        """The same pictures."""
        return frozenset(self.pictures)

    @cached_property
    def by_name(self) -> dict[str, list[Path]]:
        """The same, with those of formats that are not read."""
        return _grouped("name", [*self.pictures, *self.of(*UNOPENED)])

    @cached_property
    def by_stem(self) -> dict[str, list[Path]]:
        """The same pictures by their names without extension."""
        return _grouped("stem", self.pictures)

    @cached_property
    def masks(self) -> dict[str, list[Path]]:
        """The pictures in folders of masks, by their names without extension."""
        return _grouped("stem", [p for p in self.of(*PICTURES) if p not in self.known])

    def first_of_each_folder(self, suffix: str) -> Iterable[Path]:
        """Of files that say the same kind of thing for a picture each, one per folder; and all that
        are called like no picture beside them."""
        files = self.of(suffix)
        names = {os.path.splitext(path)[0] for path in self.pictures} if files else set()
        seen: set[Path] = set()
        for path in files:
            is_of_one = os.path.splitext(path)[0] in names
            if not is_of_one or path.parent not in seen:
                yield path
            if is_of_one:
                seen.add(path.parent)

    def relative(self, path: Path) -> Path:
        """A path from the root."""
        return path.relative_to(self.root)

    def splits_of(self, file: Path) -> set[str]:
        """The splits that an annotation file says its pictures are in, by its path; by its folders
        alone if it is called like a picture ("test_3.xml")."""
        if file.stem in self.by_stem:
            return self.splits_in(file.parent)
        return splits(self.relative(file).parent, file.name)

    def splits_in(self, folder: Path) -> set[str]:
        """The splits that a folder's pictures are in, by its path."""
        if folder not in self._splits:
            self._splits[folder] = splits(self.relative(folder))
        return self._splits[folder]

    def at(self, path: Path) -> Path | None:
        """The picture at this very path, which may hold "..", if there is one."""
        exact = Path(os.path.normpath(path))
        return exact if exact in self.known else None

    def find(self, named: str, file: Path, where: str) -> Path:
        """The picture that an annotation `file` names. Raises DataError where there is none, or
        where several may be meant.

        It lies at that path from the file or the root; or else at the longest end of the path that
        is there, because exports name folders of the machine that wrote them. A folder that is
        here too is never left out of the name.
        """
        for start in (file.parent, self.root):
            if exact := self.at(start / named.replace("\\", "/")):
                return exact
        parts = [part for part in re.split(r"[\\/]", named) if part not in ("", ".", "..")]
        alike = self.by_name.get(parts[-1], []) if parts else []
        for start in range(len(parts)):
            left_out = set(parts[:start])
            if not _ELSEWHERE.match(named) and left_out & self.folders:
                break
            tail = tuple(parts[start:])
            found = [path for path in alike if path.parts[-len(tail) :] == tail]
            found = self._meant(found, file)
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

    def paired(self, named: str, file: Path, where: str) -> Path:
        """The picture of an annotation `file` of one picture: the one that it names, else the one
        that is called like it. Raises DataError where these are two."""
        alike = self._meant(self.by_stem.get(file.stem, []), file)
        try:
            found = self.find(named, file, where)
        except DataError:
            if len(alike) != 1:
                raise
            return alike[0]
        if found.stem != file.stem and alike:
            raise DataError(
                f"{where}: it names {found}, but is called like {alike[0]}. Correct the one or the "
                "other."
            )
        return found

    def mask_of(self, file: Path, folder: str) -> Path | None:
        """The mask in a folder of this name that is called like an annotation file."""
        alike = [p for p in self.masks.get(file.stem, ()) if p.parent.name == folder]
        return next(iter(self._meant(alike, file)), None)

    def _meant(self, found: Sequence[Path], file: Path) -> Sequence[Path]:
        """Of several pictures of one name, those in the split of the file that names them; of these
        the one that shares most folders with it, if there is one."""
        if len(found) < 2:
            return found
        said = self.splits_of(file)
        found = [p for p in found if self.splits_in(p.parent) == said] or found
        shared = [len(os.path.commonpath((path, file))) for path in found]
        return [p for p, n in zip(found, shared, strict=True) if n == max(shared)]


def _grouped(attribute: Literal["name", "stem"], paths: Iterable[Path]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in paths:
        found.setdefault(getattr(path, attribute), []).append(path)
    return found


def splits(folder: Path, file: str = "") -> set[str]:
    """The splits that a folder's path from the root is named by ("val2017"), and the name of an
    annotation `file` in it, in any of its words ("instances_val2017.json")."""
    said = [*folder.parts, *re.split(r"[-_. ]", file)]
    plain = (word.lower().rstrip("0123456789") for word in said)
    return {SPLIT_NAMES[word] for word in plain if word in SPLIT_NAMES}


def read_lines(file: Path) -> list[str]:
    """The lines of a text, without the space around them. Raises DataError."""
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text ({error}). Save it as UTF-8.") from None


def read_xml(file: Path) -> Element:
    """What an XML file says. Raises DataError, also for entities and what lies elsewhere."""
    from defusedxml import DefusedXmlException, ElementTree

    try:
        return ElementTree.fromstring(file.read_bytes())
    except ParseError as error:
        raise DataError(f"{file} is not XML: {error}.") from None
    except DefusedXmlException:
        raise DataError(
            f"{file} defines entities, which may grow without end or name other files. Annotations "
            "need none: export it again."
        ) from None
