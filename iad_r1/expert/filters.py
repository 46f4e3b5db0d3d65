"""What a text must not do, whoever has written it. Every rejection has a reason and what caused it.

A text that is kept names the true place and type and no other ones, decides as the label does, and
does not speak of what only its writer was shown.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import numpy as np
from datasketch import MinHash, MinHashLSH
from numpy.typing import NDArray
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from iad_r1 import schema
from iad_r1.expert.facts import Defect, Facts
from iad_r1.expert.teachers import Draft, Rejection
from iad_r1.grid import Grid, parse_cells, words
from iad_r1.judge import reasoning
from iad_r1.rewards.vocabulary import Vocabulary

SHINGLE = 5  # words
BANDS, ROWS = 32, 4  # of a MinHash: a pair of index j is found with 1 - (1 - j**ROWS)**BANDS
SURE = 0.9  # probability from which on a few words are said to be in another language
TELLING = 20  # words, from which on a language can be told


@dataclass(frozen=True)
class Rules:
    """What is asked of a text."""

    forbidden: tuple[str, ...]  # words and beginnings of words ("annotat*")
    fewest_words: int
    most_words: int
    types: Vocabulary


def target(draft: Draft, place: str | None) -> str:
    """The answer in the papers' pattern, without white space between its tags."""
    if place is None:
        return f"<think>{draft.reasoning}</think><answer>No</answer>"
    return (
        f"<think>{draft.reasoning}</think><location>{place}</location>"
        f"<type>{draft.type}</type><answer>Yes</answer>"
    )


def rejections(
    facts: Facts, grid: str, draft: Draft, text: str, rules: Rules
) -> Iterator[Rejection]:
    """All that is wrong with a text, which is a `target`, by what is known of its picture; `grid`
    ("3x3") is the one that places are named on."""
    said = schema.parse(text)
    if said.status is not schema.Status.OK:
        yield Rejection("schema", str(said.status))
        return
    yield from _against_label(facts.defect, grid, said, rules.types)
    yield from _verdict(facts.defect, draft, rules.types)
    both = f"{draft.description} {draft.reasoning}"
    # the name of a product may hold such a word: "printed label"
    product = _named(facts.product)
    if found := forbidden(product.sub(" ", both), (*rules.forbidden, *draft.shown)):
        yield Rejection("forbidden word", ", ".join(found))
    defect = facts.defect
    if defect is not None:
        # the centroid of a ring lies in a cell that the ring may not touch
        cells = {*defect.touched[grid], *defect.cells[grid]}
        if strayed := elsewhere(product.sub(" ", both), cells, Grid.parse(grid)):
            yield Rejection("another place", ", ".join(strayed))
    # names are those of the data set, in any language
    names = _named(facts.product, draft.type, defect and defect.type)
    for part in filter(None, (draft.description, draft.reasoning)):  # not all describe
        if strange := foreign(names.sub(" ", part)):
            yield Rejection("language", strange)
    length = len(draft.reasoning.split())
    if not rules.fewest_words <= length <= rules.most_words:
        yield Rejection("length", f"{length} words")


def _named(*names: str | None) -> re.Pattern[str]:
    """Names as whole words."""
    found = "|".join(re.escape(name) for name in names if name)
    return re.compile(rf"(?<!\w)(?:{found})(?!\w)", re.IGNORECASE)


def _against_label(
    defect: Defect | None, grid: str, said: schema.Parsed, types: Vocabulary
) -> Iterator[Rejection]:
    """Answer, place and type are those of label and mask."""
    expected = "no" if defect is None else "yes"
    if said.verdict != expected:
        yield Rejection("answer", f"{said.verdict} of a picture that says {expected}")
        return
    if defect is None:
        return
    true = frozenset(defect.cells[grid])
    if parse_cells(said.location or "", grid) != true:
        yield Rejection("place", f"{said.location!r}, where the mask lies in cells {sorted(true)}")
    if not _same_class(said.type or "", defect, types):
        yield Rejection("type", f"{said.type!r} of a {defect.type!r}")


def _same_class(said: str, defect: Defect, types: Vocabulary) -> bool:
    """Whether a type is the labelled one, its class, or a kind of it."""
    if types.normalise(said) == types.normalise(defect.type):
        return True
    found = types.find(said)
    return found is not None and defect.coarse is not None and found.type_class == defect.coarse


def _verdict(defect: Defect | None, draft: Draft, types: Vocabulary) -> Iterator[Rejection]:
    """The reasoning decides as the label does, and names no type of another class."""
    expected = "sound" if defect is None else "defective"
    reading = reasoning.read(draft.reasoning)
    if reading.says != expected:
        yield Rejection("verdict", f"reads as {reading.says or 'undecided'}, not as {expected}")
    if reasoning.of_another_type(reading, draft.type, types):
        yield Rejection("another type", ", ".join(reading.defects))


def forbidden(text: str, terms: Collection[str]) -> list[str]:
    """Which of the terms a text holds, as whole words; a final * stands for any ending."""
    patterns = [re.escape(term).replace(r"\*", r"\w*") for term in terms]
    found = re.findall(rf"(?<!\w)(?:{'|'.join(patterns)})(?!\w)", text, re.IGNORECASE)
    return sorted({word.lower() for word in found}) if patterns else []


# --- language ------------------------------------------------------------------------------------


def foreign(text: str) -> str | None:
    """What of a text is not English, if anything: letters of another script, or the text or a
    sentence by py3langid, where it is long enough to tell, or that is sure."""
    scripts = [c for c in text if c.isalpha() and not _latin(c)]
    if scripts:
        return f"letters of another script: {''.join(dict.fromkeys(scripts))}"
    for part in (text, *_sentences(text)) if text.strip() else ():
        language, share = _languages().classify(part)
        if language != "en" and (len(part.split()) >= TELLING or share >= SURE):
            return f"{language}: {part}"
    return None


@cache
def _languages() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


@cache
def _latin(letter: str) -> bool:
    return "LATIN" in unicodedata.name(letter, "") or letter == "\N{MICRO SIGN}"


def _sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.!?])\s+", text.strip())


# --- places --------------------------------------------------------------------------------------

_SIDES = {
    **dict.fromkeys(("top", "upper", "uppermost", "topmost"), (0, -1)),
    **dict.fromkeys(("bottom", "lower", "lowermost", "bottommost"), (0, 1)),
    **dict.fromkeys(("left", "leftmost"), (1, -1)),
    **dict.fromkeys(("right", "rightmost"), (1, 1)),
}
_CENTER = ("center", "centre", "central", "middle")


def elsewhere(text: str, allowed: Collection[int], grid: Grid) -> list[str]:
    """The words of a text that place something where none of the `allowed` cells is: names of cells
    ("top left"), sides ("left") and the center. A side is good for its half of the picture and, of
    three or more rows or columns, not for the one in the middle."""
    rest, found = f" {text.lower()} ", []
    names = sorted(((words(cell, grid), cell) for cell in range(grid.cells)), key=_longest)
    for name, cell in names if grid.cells > 1 else ():
        rest, times = re.subn(rf"(?<![\w-]){name}(?![\w-])", " ; ", rest)
        if times and cell not in allowed:
            found.append(name)
    cells = [divmod(cell, grid.cols) for cell in allowed]
    parts = (grid.rows, grid.cols)
    for word in dict.fromkeys(re.findall(r"[a-z]+", rest)):
        if word in _SIDES:
            axis, side = _SIDES[word]
            there = any((2 * cell[axis] + 1 - parts[axis]) * side > 0 for cell in cells)
            if parts[axis] > 1 and not there:
                found.append(word)
        elif word in _CENTER and not any(_is_central(cell, parts) for cell in cells):
            found.append(word)
    return found


def _longest(named: tuple[str, int]) -> int:
    return -len(named[0])


def _is_central(cell: tuple[int, int], parts: tuple[int, int]) -> bool:
    """Whether a cell touches the middle of the picture in rows or in columns."""
    return any(abs(2 * at + 1 - n) <= 1 for at, n in zip(cell, parts, strict=True))


# --- texts alike ---------------------------------------------------------------------------------


class Alike:
    """Texts about the same product and type, for near-duplicates: MinHash finds those that may be
    (datasketch), and the exact Jaccard index of their shingles decides.

    Args:
        most: from this index on two texts are near-duplicates; None: no two are. Of an index of
            0.5, MinHash misses 13 %; of 0.8, 5 in 10**8.
    """

    def __init__(self, most: float | None) -> None:
        self.most = most
        self.texts: dict[tuple[object, ...], MinHashLSH] = {}  # by what they are about
        self.shingles: list[NDArray[np.uint64]] = []
        self.ids: list[str] = []

    def find(self, about: Sequence[object], text: str) -> Rejection | None:
        """The first text that this one nearly equals, if there is one."""
        if self.most is None:
            return None
        said = shingled(text)
        texts = self.texts.get(tuple(about))
        found = [] if texts is None else texts.query(_minhash(said))
        for number in sorted(cast(list[int], found)):
            other = self.shingles[number]
            joint = len(np.intersect1d(said, other, assume_unique=True))
            index = joint / (len(said) + len(other) - joint)
            if index >= self.most:
                return Rejection("near-duplicate text", f"{index:.2f} like {self.ids[number]}")
        return None

    def add(self, id: str, about: Sequence[object], text: str) -> None:
        """One more text, of the picture `id`."""
        if self.most is None:
            return
        said = shingled(text)
        texts = self.texts.setdefault(tuple(about), _index())
        texts.insert(len(self.ids), _minhash(said))
        self.shingles.append(said)
        self.ids.append(id)


def shingled(text: str) -> NDArray[np.uint64]:
    """The hashes of all runs of `SHINGLE` words of a text, sorted, each once; of a shorter text,
    that of all its words."""
    said = re.findall(r"\w+", text.lower())
    runs = (" ".join(said[at : at + SHINGLE]) for at in range(max(1, len(said) - SHINGLE + 1)))
    found = (hashlib.blake2b(run.encode(), digest_size=8).digest() for run in runs)
    return np.unique(np.frombuffer(b"".join(found), np.uint64))


def _index() -> MinHashLSH:
    return MinHashLSH(num_perm=BANDS * ROWS, params=(BANDS, ROWS))


def _minhash(shingles: NDArray[np.uint64]) -> MinHash:
    found = MinHash(num_perm=BANDS * ROWS, hashfunc=_low)
    found.update_batch(shingles.tolist())
    return found


def _low(shingle: int) -> int:
    return shingle & 0xFFFFFFFF


# --- variety -------------------------------------------------------------------------------------


class Variety:
    """How varied texts are: distinct n-grams, and the sentence that most texts hold."""

    def __init__(self) -> None:
        self.texts = 0
        self.grams: dict[int, set[int]] = {n: set() for n in (1, 2, 3)}
        self.total = Counter[int]()
        self.sentences = Counter[str]()

    def add(self, text: str) -> None:
        """One more text."""
        self.texts += 1
        said = re.findall(r"\w+", text.lower())
        for n, grams in self.grams.items():
            runs = [hash(tuple(said[at : at + n])) for at in range(len(said) - n + 1)]
            grams.update(runs)
            self.total[n] += len(runs)
        self.sentences.update(set(_sentences(text)))

    def found(self) -> dict[str, Any]:
        """`distinct_1`, `_2`, `_3`: the share of n-grams that are not repetitions of earlier ones;
        `words` and `texts` they are counted over; `sentence` and `sentence_share`: the sentence
        that most texts hold, and how many of them do, as a share."""
        (sentence, count), *_ = self.sentences.most_common(1) or [("", 0)]
        return {
            "texts": self.texts,
            "words": self.total[1],
            **{f"distinct_{n}": len(g) / max(1, self.total[n]) for n, g in self.grams.items()},
            "sentence": sentence,
            "sentence_share": count / max(1, self.texts),
        }
