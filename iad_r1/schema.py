"""What a completion is: one parser for its tags, and the evaluators that read its answer.

A completion is `<think>…</think><location>…</location><type>…</type><answer>Yes</answer>` for a
defect and `<think>…</think><answer>No</answer>` for none; a multiple-choice answer (MMAD) holds
a letter instead. Nothing here raises on any text, and everything takes time linear in its length.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from types import MappingProxyType
from typing import Literal, get_args

from iad_r1.errors import ConfigError

TAGS = ("think", "location", "type", "answer")
CLEAN = ("think", "answer")
YES_NO: Mapping[str, str] = MappingProxyType({"A": "Yes", "B": "No"})
INVALID = "invalid"

Evaluator = Literal["strict", "iadr1_compat", "mmad_compat"]
Form = Literal["tagged", "free", "free_lower", "free_stripped"]


class Status(StrEnum):
    """What is wrong with a completion; the first that applies, in this order."""

    TRUNCATED = "truncated"  # the token limit cut it off
    REPEATED_TAG = "repeated tag"  # opened or closed more than once, wherever it stands
    MISSING_TAG = "missing tag"  # absent, or not opened and then closed
    WRONG_ORDER = "wrong order"  # not think, location, type, answer; or one inside another
    OUTSIDE_TEXT = "text outside tags"  # anything but white space around or between the tags
    EMPTY_TAG = "empty tag"  # a tag with nothing in it
    BAD_ANSWER = "answer not yes/no"  # nor an offered option, where options are given
    UNEXPECTED_TAG = "unexpected tag"  # a location or a type without a "Yes"
    OK = "ok"


@dataclass(frozen=True)
class Parsed:
    """A completion taken apart.

    Each part is the stripped text of its tag, or None unless that tag was opened once and closed
    once after it: a tag that is repeated says nothing. `verdict` is "yes", "no", an option letter,
    or "invalid".
    """

    think: str | None
    location: str | None
    type: str | None
    answer: str | None
    verdict: str
    status: Status


def parse(
    text: str,
    truncated: bool = False,
    options: Mapping[str, str] | None = None,
    optional: Collection[str] = (),
) -> Parsed:
    """Take a completion apart. Never raises.

    truncated  the token limit cut the text off
    options    letter to text of a multiple-choice question; the answer must be one of them
    optional   tags a "Yes" may leave out (its data set has no places, or no types)
    """
    marks = _marks(text)
    parts = {tag: _content(text, marks[tag]) for tag in TAGS}
    answer = parts["answer"]
    verdict = INVALID if answer is None else label(answer, options)
    if truncated:
        status = Status.TRUNCATED
    else:
        defect = options is None and verdict == "yes"
        required = [tag for tag in TAGS if tag not in optional] if defect else CLEAN
        allowed = TAGS if defect else CLEAN
        status = _tag_status(text, marks, parts, required)
        if status is Status.OK and verdict == INVALID:
            status = Status.BAD_ANSWER
        if status is Status.OK and any(marks[tag] for tag in TAGS if tag not in allowed):
            status = Status.UNEXPECTED_TAG
    return Parsed(**parts, verdict=verdict, status=status)


# --- tags --------------------------------------------------------------------------------------

TAG = re.compile(r"<(/?)(think|location|type|answer)>")
_Mark = tuple[int, int, bool]  # start, end, closes
_Marks = Mapping[str, list[_Mark]]


def _marks(text: str) -> _Marks:
    """Where each tag is opened and closed, in reading order; of each tag the first three marks,
    for three are a repetition already."""
    marks: dict[str, list[_Mark]] = {tag: [] for tag in TAGS}
    for match in TAG.finditer(text):
        if len(of_tag := marks[match[2]]) < 3:
            of_tag.append((match.start(), match.end(), bool(match[1])))
    return marks


def _content(text: str, marks: list[_Mark]) -> str | None:
    """The stripped text of a tag that was opened once and closed once after it."""
    if [closes for _, _, closes in marks] != [False, True]:
        return None
    (_, start, _), (end, _, _) = marks
    return text[start:end].strip()


def _tag_status(
    text: str, marks: _Marks, parts: Mapping[str, str | None], required: Collection[str]
) -> Status:
    """The verdict on everything but what the answer says."""
    closings = {tag: sum(closes for _, _, closes in marks[tag]) for tag in TAGS}
    if any(max(closings[tag], len(marks[tag]) - closings[tag]) > 1 for tag in TAGS):
        return Status.REPEATED_TAG
    if any(parts[tag] is None and (marks[tag] or tag in required) for tag in TAGS):
        return Status.MISSING_TAG
    # From here on every tag that occurs is one opening and one closing tag.
    edges = [edge for tag in TAGS for start, end, _ in marks[tag] for edge in (start, end)]
    if edges != sorted(edges):
        return Status.WRONG_ORDER
    if _outside(text, marks).strip():
        return Status.OUTSIDE_TEXT
    return Status.EMPTY_TAG if "" in parts.values() else Status.OK


def _outside(text: str, marks: _Marks) -> str:
    """What stands before, between and after the tags, which come in order."""
    pieces, at = [], 0
    for opens, closes in (marks[tag] for tag in TAGS if marks[tag]):
        pieces.append(text[at : opens[0]])
        at = closes[1]
    return "".join((*pieces, text[at:]))


# --- labels ------------------------------------------------------------------------------------


def label(text: str, options: Mapping[str, str] | None = None) -> str:
    """The label that a whole text is: "yes", "no", or with `options` a letter; else "invalid".

    Case does not matter for words, nor white space around or a final "." or "!". A letter may be
    written "B", "B.", "(B)", "B)" or "B:", an option may be written out, and both may be given
    ("B: scratch") if they agree.
    """
    said = _plain(text)
    if options is None:
        return said if said in ("yes", "no") else INVALID
    matches = {letter for letter, option in options.items() if _is_option(text, letter, option)}
    return matches.pop() if len(matches) == 1 else INVALID


def _plain(text: str) -> str:
    return text.strip().rstrip(".!").rstrip().casefold()


_LETTERED = re.compile(r"\(?([A-Z])\)?(?:\s*[.:)](.*))?", re.DOTALL)


def _is_option(text: str, letter: str, option: str) -> bool:
    if _plain(text) == _plain(option):
        return True
    match = _LETTERED.fullmatch(text.strip())
    return (
        match is not None and match[1] == letter and _plain(match[2] or "") in ("", _plain(option))
    )


# --- evaluators --------------------------------------------------------------------------------


def read_answer(
    text: str,
    evaluator: Evaluator = "strict",
    options: Mapping[str, str] | None = None,
    form: Form = "tagged",
    truncated: bool = False,
) -> str:
    """What a completion answers: "yes", "no" or "invalid"; with `options`, a letter or "invalid".

    strict        One `<answer>` tag whose whole text is a label; without any answer tag, text that
                  opens (or, for letters, closes) with a label. Anything else is invalid, and so is
                  a text that the token limit cut off before its answer tag closed.
    iadr1_compat  The scripts released with IAD-R1, faults included. `form` says which: "tagged"
                  (its own models), "free" (base Qwen and the APIs: case matters in the second
                  look), "free_lower" (base LLaVA-1.5), "free_stripped" (InternVL).
    mmad_compat   The MMAD helper: the last stand-alone capital A to E, else the closest option.

    Raises ConfigError for an unknown evaluator or form.
    """
    if evaluator == "strict":
        return _strict(text, options, truncated)
    offered = YES_NO if options is None else options
    if evaluator == "iadr1_compat":
        letter = _iadr1_letter(text, offered, form)
    elif evaluator == "mmad_compat":
        letter = _mmad_letter(text, offered)
    else:
        known = ", ".join(get_args(Evaluator))
        raise ConfigError(f"evaluator={evaluator!r} is unknown. Use {known}.")
    if options is None:
        return YES_NO[letter].lower() if letter in YES_NO else INVALID
    return letter


def _strict(text: str, options: Mapping[str, str] | None, truncated: bool) -> str:
    parsed = parse(text, options=options)
    if parsed.answer is not None:
        return parsed.verdict
    if truncated or TAG.search(text):
        return INVALID
    return _opening_label(text) if options is None else _edge_letter(text, options)


# "No. 3 pin is bent" counts pins
_OPENING = re.compile(
    r"\s*(yes|no(?!\.?\s*\d))\b(?!\s*(?:/|\b(?:or|and)\b))(?!['\u2019-]\w)", re.IGNORECASE
)


def _opening_label(text: str) -> str:
    """The word "yes" or "no" that a free text starts with ("Yes, there is", not "Yes or no")."""
    match = _OPENING.match(text)
    return match[1].lower() if match else INVALID


_FIRST_LETTER = re.compile(r"\s*\(?([A-Z])(?:[).:]|\s*\Z)")
_LAST_LETTER = re.compile(r"(?:\A|[\s(:])([A-Z])[).!]*\Z")
_LAST_LOOK = 16  # characters in which a final letter and its punctuation must lie


def _edge_letter(text: str, options: Mapping[str, str]) -> str:
    """The option a free text is, starts with ("B. …") or ends with ("… is B."), if just one."""
    whole = label(text, options)
    if whole != INVALID:
        return whole
    edges = (_FIRST_LETTER.match(text), _LAST_LETTER.search(text.rstrip()[-_LAST_LOOK:]))
    letters = {match[1] for match in edges if match} & set(options)
    return letters.pop() if len(letters) == 1 else INVALID


def first_line_tag(text: str, tag: str) -> str | None:
    """What the pattern `<tag>(.*?)</tag>` finds first: the tags must stand on one line.

    Equal to a regular expression without DOTALL, but linear however often the tag is opened.
    """
    opening, closing = f"<{tag}>", f"</{tag}>"
    for line in text.split("\n"):
        if opening in line:
            inside, closed, _ = line.partition(opening)[2].partition(closing)
            if closed:
                return inside
    return None


def _iadr1_letter(text: str, options: Mapping[str, str], form: Form) -> str:
    """The `get_ans` of the released scripts: whole text, then either contains the other, else E."""
    if form not in get_args(Form):
        raise ConfigError(f"form={form!r} is unknown. Use {', '.join(get_args(Form))}.")
    said: str | None = text
    if form == "tagged":
        said = first_line_tag(text, "answer")
        if said is None:
            return "E"
        said = said.strip().lower()
    for letter, option in options.items():
        if option.lower().strip(".") in _released_exact(said, form):
            return letter
    said = said.lower() if form in ("free_lower", "free_stripped") else said
    said = said.strip(".").strip() if form == "free_stripped" else said
    for letter, option in options.items():
        clean = option.lower().strip(".").strip()
        if said in clean or clean in said:
            return letter
    return "E"


def _released_exact(said: str, form: Form) -> set[str]:
    """The spellings of an answer that the released scripts compare with a whole option."""
    if form == "tagged":
        return {said}
    spellings = {said.lower().strip(".")}
    return spellings if form == "free_lower" else spellings | {said.lower().strip("!")}


_STANDALONE_LETTER = re.compile(r"\b([A-E])\b")


def _mmad_letter(text: str, options: Mapping[str, str]) -> str:
    """MMAD's `parse_answer`: the last stand-alone capital A to E, else the closest option."""
    letters = _STANDALONE_LETTER.findall(text)
    if letters:
        return letters[-1]
    closest = get_close_matches(text, list(options.values()), n=1, cutoff=0.0)
    return next((letter for letter, option in options.items() if [option] == closest), INVALID)
