"""Whether an answer follows from the reasoning in front of it, by rule.

A reasoning is cut into clauses. A clause speaks of a defect ("a scratch"), of its absence ("no
scratch", "free of", "intact"), or of neither; what it only supposes ("a scratch would be") does
not count. What the reasoning calls the part ("defective", "normal") decides, the last time it does;
else any defect that is stated; else any absence of one. The rest cannot be told.

English only. `docs/evaluation.md` says how often the rule agrees with a reader.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from iad_r1 import schema
from iad_r1.grid import Grid, parse_cells, words
from iad_r1.judge.outcomes import is_yes_no
from iad_r1.rewards.vocabulary import Vocabulary
from iad_r1.types import Prediction

Says = Literal["defective", "sound"]

# --- the rules: regular expressions of whole words, in lower case ---------------------------------

# what a part is called
CALLED_DEFECTIVE = (
    r"defective", r"anomal(?:y|ies|ous)", r"abnormal\w*", r"defects?", r"faulty", r"flawed",
    r"reject(?:ed)?", r"unacceptable", r"damaged", r"not ok", r"fails",
)  # fmt: skip
CALLED_SOUND = (
    r"normal", r"fine(?=\W*$|,| and| here| to me)", r"ok(?:ay)?", r"acceptable", r"good", r"sound",
    r"flawless", r"(?:defect|damage|fault|anomaly)-free", r"undamaged", r"pass(?:es|ed)?",
    r"faultless",
)  # fmt: skip
# what is seen of it
DEFECT = (
    r"scratch(?:es|ed)?", r"crack(?:s|ed)?", r"dent(?:s|ed)?", r"chip(?:s|ped|ping)?", r"holes?",
    r"stain(?:s|ed)?", r"spots?", r"contaminat\w+", r"dirt", r"dirty", r"dust", r"debris",
    r"foreign \w+", r"fib(?:er|re)s?", r"broken", r"fractured?", r"torn", r"cuts?", r"bent",
    r"deform\w*", r"distort\w*", r"warp(?:ed|ing)?", r"twisted", r"melted", r"missing",
    r"misaligned", r"misalignment", r"misplaced", r"askew", r"crooked", r"burn(?:s|t|ed)?",
    r"charred", r"discolou?r\w*", r"rust\w*", r"corro\w+", r"peel(?:ed|ing)", r"fray(?:ed|ing)?",
    r"worn", r"wear", r"poros\w+", r"bubbles?", r"bulg\w+", r"gaps?", r"punctur\w+", r"smudges?",
    r"leak\w*", r"damage", r"flaws?", r"faults?", r"irregular\w*", r"deviat\w+", r"differs?",
    r"stands? out", r"off", r"wrong", r"unusual", r"unexpected", r"uneven", r"incomplete",
    r"problems?", r"issues?", r"imperfect\w*", r"blemish\w*", r"gouge[sd]?", r"hairlines?", r"oily",
    r"patch(?:es)?", r"inconsisten\w+", r"interrupt\w*", r"does not belong", r"is not there",
    r"should not be there",
)  # fmt: skip
SOUND = (
    r"intact", r"clean", r"uniform\w*", r"regular", r"smooth", r"even(?:ly)?", r"unbroken",
    r"legible", r"spotless", r"unremarkable", r"match(?:es)?", r"as expected", r"as it should be",
    r"consistent", r"perfect(?:ly)?", r"complete", r"correct(?:ly)?", r"continuous",
    r"only (?:a|the) reflection", r"(?:a|the) (?:shadow|reflection|lighting)", r"natural variation",
)  # fmt: skip
DENIES = (
    r"no", r"not(?! only)", r"none", r"neither", r"nor", r"never", r"nothing", r"cannot",
    r"\w+n['\u2019]t", r"hardly", r"rather than",
)  # fmt: skip
LACKS = (
    r"without", r"free (?:of|from)", r"lack(?:s|ing)", r"absence of", r"devoid of",
)  # fmt: skip
# after what is denied: "scratches are not visible", "cracks are absent"
DENIED_AFTER = (
    r"(?:not|cannot|n['\u2019]t) (?:be )?(?:visible|present|seen|found|detected|observed|evident)",
    r"absent",
)
# a clause that states nothing
SUPPOSES = (
    r"(?<!i )would", r"should(?! not be there|.{0,80} (?:missing|not there))", r"ought", r"could",
    r"may", r"might", r"if", r"whether", r"possib\w+", r"potential\w*", r"typical\w*", r"normally",
    r"usual(?:ly)?", r"expect(?:s|ing)?", r"look(?:ed|ing)? for", r"check(?:ed|ing)? for",
    r"such as", r"prone to", r"suspect\w*", r"(?:no|any) (?:other|further|more|additional)",
    r"includes?", r"examine",
)  # fmt: skip
UNDECIDED = (
    r"(?:cannot|can['\u2019]t|not|unable to) (?:decide|tell|judge|determine)",
    r"(?:hard|difficult|impossible|too \w+) to (?:say|tell|see|judge)",
)
# another part than the one in the picture: "than a good part", "a normal one has"
OTHER_PART = (
    r"(?:against|with|than|from|like|of|to)(?: what)? (?:an?|the|any) "
    r"(?:good|sound|normal|perfect|complete|defect-free) \w+",
    r"^(?:an?|any|the) (?:good|sound|normal|perfect|complete|defect-free) \w+",
)

_ENDS = re.compile(r"[.!?;](?=\s|$)|\n")
_CLAUSES = re.compile(
    r":|\b(?:but|however|although|though|yet|while|whereas|because|since)\b"
    r"|,? \band (?=(?:an?|there|it|its|the|one|i|we)\b)|, (?=(?:so|which|it|there|this|that)\b)"
)
# "Colour: OK" is about the colour, "Verdict: OK" about the part
_ITEM_IS_FINE = re.compile(
    r"(?<!conclusion)(?<!verdict)(?<!result)(?<!assessment)(?<!overall):"
    r"\s*(?:ok|okay|fine|good|normal)\b"
)
# "Cracks: none", "Dents? No."
_NONE_AFTER = re.compile(r"\b(\w{1,30}(?: \w{1,30}){0,3})\s{0,3}[:?]\s{0,3}(?:none|no|absent)\b")


def _any(rules: Iterable[str]) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w-])(?:{'|'.join(rules)})(?![\w-])")


_Rules = Mapping[Says, re.Pattern[str]]
_CALLED: _Rules = {"defective": _any(CALLED_DEFECTIVE), "sound": _any(CALLED_SOUND)}
_SEEN: _Rules = {"defective": _any(DEFECT), "sound": _any(SOUND)}
_DENIES, _LACKS, _DENIED_AFTER = _any(DENIES), _any(LACKS), _any(DENIED_AFTER)
_SUPPOSES, _UNDECIDED = _any(SUPPOSES), _any(UNDECIDED)
_OTHER_PART = re.compile("|".join(OTHER_PART))


# --- one reasoning -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """What a reasoning says of the part; `says` is None where that cannot be told.

    `clauses` are those that state a defect, and `defects` the words in them that name it.
    """

    says: Says | None
    clauses: tuple[str, ...] = ()
    defects: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Sign:
    """A word of a clause: what it says of the part, once denials are counted."""

    word: str
    says: Says
    denied: bool
    clause: str


def read(reasoning: str) -> Reading:
    """What a reasoning says. Never raises; linear in the length of the text."""
    called: list[list[_Sign]] = []  # by sentence
    seen: list[_Sign] = []
    text = _NONE_AFTER.sub(r"no \1", reasoning.lower().replace("\u2019", "'"))
    text = _ITEM_IS_FINE.sub(": intact", text)
    for sentence in _ENDS.split(text):
        clauses = [_OTHER_PART.sub(" ", part.strip()) for part in _CLAUSES.split(sentence)]
        stated = [clause for clause in clauses if not _SUPPOSES.search(clause)]
        called.append([sign for clause in stated for sign in _signs(clause, _CALLED)])
        seen += [sign for clause in stated for sign in _signs(clause, _SEEN)]
    found = [sign for sign in (*seen, *(s for signs in called for s in signs))
             if sign.says == "defective"]  # fmt: skip
    return Reading(
        None if _UNDECIDED.search(text) else _verdict(called, seen),
        tuple(dict.fromkeys(sign.clause for sign in found)),
        tuple(dict.fromkeys(sign.word for sign in found if not sign.denied)),
    )


def _signs(clause: str, rules: _Rules) -> list[_Sign]:
    """The words of a clause that say something, in no order."""
    denial, lack = _DENIES.search(clause), _LACKS.search(clause)
    end = max((match.start() for match in _DENIED_AFTER.finditer(clause)), default=-1)
    signs = []
    for says, pattern in rules.items():
        for match in pattern.finditer(clause):
            no, lacks = (found is not None and found.end() <= match.start()
                         for found in (denial, lack))  # fmt: skip
            # "cannot be called free of"
            twice = no and lacks and denial and lack and denial.start() < lack.start()
            denied = not twice and (no or lacks or match.end() <= end)
            other: Says = "sound" if says == "defective" else "defective"
            signs.append(_Sign(match[0], other if denied else says, denied, clause))
    return signs


def _verdict(called: Sequence[Sequence[_Sign]], seen: Sequence[_Sign]) -> Says | None:
    last = next((signs for signs in reversed(called) if signs), ())
    if last:
        verdicts: set[Says] = {sign.says for sign in last}
        return verdicts.pop() if len(verdicts) == 1 else None
    stated = {sign.word for sign in seen if not sign.denied}
    if any(sign.denied and sign.word in stated for sign in seen):
        return None  # "there is a scratch", and "there is no scratch"
    if any(sign.says == "defective" for sign in seen):
        return "defective"
    return "sound" if seen else None


def elsewhere(reading: Reading, place: str | None, grid: Grid) -> bool:
    """Whether the reasoning puts its defects into cells by name, and into none of `place`."""
    said = parse_cells(place or "", grid)
    if said is None or grid.cells == 1:
        return False
    text = " / ".join(reading.clauses)
    for other, ours in (("upper", "top"), ("lower", "bottom"), ("centre", "center")):
        text = text.replace(other, ours)
    names, pattern = _cell_names(grid)
    named = {names[found] for found in pattern.findall(text)}
    return bool(named) and named.isdisjoint(said)


@lru_cache
def _cell_names(grid: Grid) -> tuple[Mapping[str, int], re.Pattern[str]]:
    names = {words(cell, grid): cell for cell in range(grid.cells)}
    return names, _any(sorted(names, key=len, reverse=True))  # "top center" before "center"


def of_another_type(reading: Reading, kind: str | None, types: Vocabulary) -> bool:
    """Whether the reasoning names types, and none of the class of `kind`."""
    said = types.find(kind or "")
    named = {
        found.type_class for word in reading.defects if (found := types.find(word)) is not None
    } - {None}
    return (
        bool(named)
        and said is not None
        and said.type_class is not None
        and said.type_class not in named
    )


# --- an evaluation -------------------------------------------------------------------------------


def reasoning_scores(
    predictions: Sequence[Prediction], grid: Grid, types: Vocabulary
) -> dict[str, Any] | None:
    """How answers of yes or no agree with the reasoning in front of them; None without reasoning,
    as of a detector, whose answers are written from its score.

    n          answers of yes or no with a reasoning; `without` is how many have none
    consistent_right, consistent_wrong  the reasoning says what is answered; that is (not) true
    contradictory  it says the opposite: `defect_but_no`, `sound_but_yes`
    untold     the rule cannot tell what it says
    place, type  of the `defects` (consistent, answered "yes"): how many reasonings name only other
               cells, or other classes of types, than the tags do

    Counts. They add up: n is the sum of the two consistent ones, `contradictory` and `untold`.
    """
    judged = [row for row in predictions if row.score is None and is_yes_no(row)]
    asked = [row for row in judged if row.answer in ("yes", "no")]
    thoughts = [(row, schema.parse(row.completion).think) for row in asked]
    found = [(row, read(think)) for row, think in thoughts if think]
    if not found:
        return None
    answer = {"defective": "yes", "sound": "no"}
    told = [(row, said) for row, said in found if said.says is not None]
    same = [(row, said) for row, said in told if answer[said.says or ""] == row.answer]
    defects = [(row, said) for row, said in same if row.answer == "yes"]
    right = sum(row.answer == row.gold_answer for row, _ in same)
    return {
        "n": len(found),
        "without": len(asked) - len(found),
        "consistent_right": right,
        "consistent_wrong": len(same) - right,
        "contradictory": len(told) - len(same),
        "defect_but_no": sum(said.says == "defective" and row.answer == "no" for row, said in told),
        "sound_but_yes": sum(said.says == "sound" and row.answer == "yes" for row, said in told),
        "untold": len(found) - len(told),
        "defects": len(defects),
        "place": sum(elsewhere(said, row.location, grid) for row, said in defects),
        "type": sum(of_another_type(said, row.type, types) for row, said in defects),
    }
