"""The choice reward of AnomalyR1, strict: a multiple-choice answer is the right letter."""

from __future__ import annotations

import re
from itertools import chain, pairwise

from iad_r1.rewards.case import Case
from iad_r1.schema import Status, parse

_ANSWER = re.compile(r"\(?([A-E])\)?(?:\s*[.:)](.*))?", re.DOTALL)
_NAMED = re.compile(r"(?<![\w'\u2019-])([A-E])(?![\w'\u2019-])")
_WORD = re.compile(r"\S+")
_VERBS = frozenset(("is", "was", "fits", "seems", "matches", "and", "or"))


def score(case: Case) -> float:
    """1.0 for a well-formed completion whose answer is the right letter and names no other.

    "B", "(B)", "B." and "B: scratch" are the letter B; "b", "B or C" and "the answer is B" are
    not: the prompt asks for a single letter. Think and answer must be all there is.
    """
    return float(answered(case.completion) == case.letter)


def answered(completion: str) -> str | None:
    """The letter of the answer tag, or None if the completion or its answer is malformed."""
    parsed = parse(completion)
    # A letter is no yes/no answer; nothing else may be wrong.
    if parsed.answer is None or parsed.status is not Status.BAD_ANSWER:
        return None
    match = _ANSWER.fullmatch(parsed.answer)
    if match is None or set(letters(match[2] or "")) - {match[1]}:
        return None
    return match[1]


def letters(text: str) -> list[str]:
    """The option letters a text names, in order.

    An "A" that opens a sentence and stands before a small word is the article ("A scratch is
    visible"), unless that word makes it the subject ("A is correct").
    """
    named, opens = [], True  # whether the word at hand opens a sentence
    words = (match.group() for match in _WORD.finditer(text))
    for word, after in pairwise(chain(words, ("",))):
        article = word == "A" and opens and after[:1].islower() and after not in _VERBS
        if not article:
            named += _NAMED.findall(word)
        opens = word.endswith((".", "!", "?"))
    return named
