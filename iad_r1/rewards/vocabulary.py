"""Defect types: which words mean the same, which are near, and what that is worth (Eq. 5).

A vocabulary is data (`vocabularies/*.yaml`, or a file of the user's own): groups of classes of
types, every one with its synonyms. Labels are matched whole. A label that merely contains a known
word, or lists several, is not in the vocabulary and earns nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from iad_r1.errors import ConfigError
from iad_r1.rewards.files import check, read_yaml

_FOLDER = Path(__file__).parent / "vocabularies"
_LONGEST_LABEL = 100  # characters; no label is longer, and long text is not worth normalising
_Value = Annotated[float, Field(ge=0, le=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TypeScores(_Part):
    """What a named type is worth, by how near it is to the true one."""

    same_type: _Value  # the same words, or a synonym
    within_class: _Value  # the truth names only the class, and the type is one of that class
    same_class: _Value  # another type of that class, or only the class where a type is known
    same_group: _Value  # another class of that group

    @model_validator(mode="after")
    def _nearer_is_worth_more(self) -> TypeScores:
        values = (self.same_type, self.within_class, self.same_class, self.same_group)
        if list(values) != sorted(values, reverse=True):
            raise ValueError(f"a nearer type must not be worth less; these are {values}")
        return self


class _Class(_Part):
    names: list[str]
    types: dict[str, list[str]]


class _Group(_Part):
    names: list[str]
    classes: dict[str, _Class]


class _File(_Part):
    ignored: list[str]
    scores: TypeScores
    groups: dict[str, _Group]


@dataclass(frozen=True)
class Place:
    """Where a term stands: a class has no `kind`, a group neither `type_class` nor `kind`."""

    group: str
    type_class: str | None
    kind: str | None


class Vocabulary:
    """Terms and their places. Read one with `vocabulary(name_or_path)`."""

    def __init__(self, values: object, where: str) -> None:
        file = check(_File, values, where)
        self.scores = file.scores
        self._ignored = frozenset(file.ignored)
        self._places: dict[str, Place] = {}
        for term, place in _terms(file):
            if not self.normalise(term):
                raise ConfigError(f"{where}: {term!r} has no word in it that is not ignored.")
            known = self._places.setdefault(self.normalise(term), place)
            if known != place:
                raise ConfigError(f"{where}: {term!r} stands in two places: {known} and {place}.")

    def normalise(self, label: str) -> str:
        """Lower-case words, single spaces; without punctuation and the `ignored` words."""
        if len(label) > _LONGEST_LABEL:
            return ""
        words = re.findall(r"[^\W_]+", label.casefold())
        return " ".join(word for word in words if word not in self._ignored)

    def find(self, label: str) -> Place | None:
        """Where a label, or its singular, stands. None if the vocabulary does not hold it."""
        term = self.normalise(label)
        for ending in ("", "s", "es"):
            if term.endswith(ending) and (term[: len(term) - len(ending)] in self._places):
                return self._places[term[: len(term) - len(ending)]]
        return None

    def score(self, predicted: str, actual: str) -> float:
        """What naming `predicted` is worth when `actual` is true: 0 to 1 (see `TypeScores`).

        Labels that are equal but for case, punctuation and ignored words score in full, known or
        not. Otherwise both must be in the vocabulary: a list of types, a part of a word, or text
        around a word scores 0.
        """
        said, true = self.normalise(predicted), self.normalise(actual)
        if said and said == true:
            return self.scores.same_type
        place, truth = self.find(predicted), self.find(actual)
        if place is None or truth is None or place.group != truth.group:
            return 0.0
        if place == truth:
            return self.scores.same_type
        if place.type_class is None or place.type_class != truth.type_class:
            return self.scores.same_group
        return self.scores.within_class if truth.kind is None else self.scores.same_class

    def kinds(self, type_class: str) -> list[str]:
        """The types of a class, without synonyms, in the order of the file."""
        found = (p.kind for p in self._places.values() if p.type_class == type_class and p.kind)
        return list(dict.fromkeys(found))

    def unplaced(self, labels: Iterable[str]) -> list[str]:
        """The distinct labels this vocabulary cannot place, sorted: a data set's blind spots."""
        return sorted({label for label in labels if self.find(label) is None})

    def __len__(self) -> int:
        return len(self._places)


def _terms(file: _File) -> Iterator[tuple[str, Place]]:
    for group, members in file.groups.items():
        for name in members.names:
            yield name, Place(group, None, None)
        for type_class, parts in members.classes.items():
            for name in parts.names:
                yield name, Place(group, type_class, None)
            for kind, synonyms in parts.types.items():
                for term in (kind, *synonyms):
                    yield term, Place(group, type_class, kind)


@lru_cache(maxsize=16)
def vocabulary(name: str) -> Vocabulary:
    """A packaged vocabulary ("default"), or the one in a YAML file.

    Raises ConfigError if there is no such file, or it is not a vocabulary.
    """
    packaged = _FOLDER / f"{name}.yaml"
    path = packaged if re.fullmatch(r"\w+", name) and packaged.is_file() else Path(name)
    if not path.is_file():
        raise ConfigError(
            f"rewards.vocabulary={name!r} is neither a packaged vocabulary nor a file. "
            "Use default, or the path of a YAML file like iad_r1/rewards/vocabularies/default.yaml."
        )
    return Vocabulary(read_yaml(path), str(name))
