"""The multi-level type matcher released with IAD-R1, faults included (golden/type_scores.jsonl).

Kept to reproduce published training runs, and to measure what its faults are worth. It matches
substrings both ways, so "s" or a list of every class earns 0.85 against "scratch".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from iad_r1.rewards.files import read_yaml

_EXACT, _CONTAINS, _CLASS, _FUZZY, _GROUP = 1.0, 0.85, 0.6, 0.4, 0.3
_CACHED_LENGTH = 200  # characters; longer pairs of labels are not remembered
_SIMILAR = 0.7  # from this share of matching characters on, two labels count as similar


@dataclass(frozen=True)
class _Label:
    """A label as the matcher sees it."""

    text: str
    named_group: str | None  # set when the label is the name of a group
    type_class: str | None
    confidence: float  # how well the label fits its class, 0 to 1
    group: str | None


class ReleasedTypes:
    """The matcher over one word list (`vocabularies/released.yaml`)."""

    def __init__(self, groups: Mapping[str, Mapping[str, Any]]) -> None:
        self._classes: dict[str, str] = {}  # in the order they are tried
        self._groups: dict[str, str] = {}
        self._group_names: dict[str, str] = {}
        self._score_cached = lru_cache(maxsize=4096)(self._score)
        for group, members in groups.items():
            self._group_names |= {_normal(term): group for term in (group, *members["terms"])}
            for type_class, terms in members["classes"].items():
                self._groups[type_class] = group
                self._classes |= {_normal(term): type_class for term in (type_class, *terms)}

    def score(self, predicted: str, actual: str) -> float:
        """0 to 1, as the released code computes it."""
        if len(predicted) + len(actual) <= _CACHED_LENGTH:
            return self._score_cached(predicted, actual)
        return self._score(predicted, actual)

    def _score(self, predicted: str, actual: str) -> float:
        if not predicted or not actual:
            return 0.0
        said, true = self._read(predicted), self._read(actual)
        if said.group and true.group and said.group != true.group:
            return 0.0
        if bool(said.named_group) != bool(true.named_group) and said.group == true.group:
            return _GROUP
        if said.text == true.text:
            return _EXACT
        if said.text in true.text or true.text in said.text:
            return _CONTAINS
        if said.type_class and said.type_class == true.type_class:
            return _CLASS + (_CONTAINS - _CLASS) * min(said.confidence, true.confidence)
        if (
            said.type_class
            and true.type_class
            and self._groups[said.type_class] == self._groups[true.type_class]
        ):
            return _GROUP
        return _similarity(said.text, true.text) * _FUZZY

    def _read(self, label: str) -> _Label:
        text = _normal(label)
        type_class, confidence = self._fit(text)
        named = self._group_names.get(text)
        group = named or (self._groups[type_class] if type_class else None)
        return _Label(text, named, type_class, confidence, group)

    def _fit(self, text: str) -> tuple[str | None, float]:
        """The class a text fits best, and how well: as a whole, in part, or by its letters."""
        if text in self._classes:
            return self._classes[text], 1.0
        for fit in (_contained, _similarity):
            best, type_class = 0.0, None
            for term, candidate in self._classes.items():
                if (value := fit(text, term)) > best:
                    best, type_class = value, candidate
            if type_class:
                return type_class, best
        return None, 0.0


def _normal(text: str) -> str:
    """Lower case and single spaces, then no punctuation but hyphens: in this order, so that
    "a - b" keeps two spaces and a full stop between spaces leaves them doubled."""
    text = re.sub(r"\s+", " ", text.lower().strip())
    return re.sub(r"[^\w\s-]", "", text)


def _contained(text: str, term: str) -> float:
    """The length ratio if one contains the other, else 0."""
    if text in term or term in text:
        return min(len(text), len(term)) / max(len(text), len(term))
    return 0.0


def _similarity(text: str, term: str) -> float:
    """difflib's ratio from 0.7 on, else 0. Its two cheap upper bounds are asked first: they keep
    a text of any length linear."""
    matcher = SequenceMatcher(None, text, term)
    if matcher.real_quick_ratio() < _SIMILAR or matcher.quick_ratio() < _SIMILAR:
        return 0.0
    ratio = matcher.ratio()
    return ratio if ratio >= _SIMILAR else 0.0


@cache
def released_types() -> ReleasedTypes:
    """The matcher with the released word list."""
    path = Path(__file__).parent / "vocabularies" / "released.yaml"
    return ReleasedTypes(read_yaml(path)["groups"])
