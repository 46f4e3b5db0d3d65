"""The reward functions released with AnomalyR1, faults included (golden/roam_rewards.jsonl).

The solution is a letter. Linear in the length of the completion, as the released ones are not.
"""

from __future__ import annotations

import re
from collections import Counter

from iad_r1.rewards.case import Case

_JOINT = re.compile(r"</think>\s*<answer>")
_LETTER = re.compile(r"(?<![a-z])[A-D](?![a-z])")
_CONTEXT = 20  # characters before and after a letter in which a keyword counts
_TAIL = 0.7  # a letter after this share of the text counts as a conclusion
_SENTENCE_ENDS = "。.!！,，"
# Upper case because the released code compares upper-cased keywords with the text as it is, so
# the English ones all but never fire.
_KEYWORDS = (
    *("答案", "选择", "正确", "是", "对", "认为", "应该", "觉得"),
    *("ANSWER", "CORRECT", "CHOOSE", "SELECT", "RIGHT", "THINK", "BELIEVE", "SHOULD"),
)


def roam(case: Case) -> float:
    """Reasoned outcome alignment: think and answer are read as letters and compared.

    1.0 both right; 0.8 answer right, no letter in think; 0.1 both the same wrong letter; 0.05
    answer wrong, no letter in think; else 0.0.
    """
    if not _structured(case.completion):
        return 0.0
    reasoned, answered = (_last_choice(case.completion, tag) for tag in ("think", "answer"))
    if reasoned is None:
        return 0.0 if answered is None else 0.8 if answered == case.letter else 0.05
    if reasoned != answered:
        return 0.0
    return 1.0 if answered == case.letter else 0.1


def choice(case: Case) -> float:
    """1.0 if think and answer stand in order and the letter read from the answer is right."""
    right = _structured(case.completion) and _last_choice(case.completion, "answer") == case.letter
    return float(right)


def _structured(text: str) -> bool:
    """`<think>…</think>`, white space, `<answer>…</answer>`, anywhere."""
    start = text.find("<think>")
    joint = _JOINT.search(text, start) if start >= 0 else None
    return joint is not None and "</answer>" in text[joint.end() :]


def _last_choice(text: str, tag: str) -> str | None:
    """The letter read from the last pair of tags, searched from left to right; None for none."""
    opening, closing = f"<{tag}>", f"</{tag}>"
    last, start = "", text.find(opening)
    while start != -1 and (end := text.find(closing, start + len(opening))) != -1:
        last = text[start + len(opening) : end]
        start = text.find(opening, end + len(closing))
    return read_choice(last.strip())


def read_choice(text: str) -> str | None:
    """The letter AnomalyR1 reads from a text.

    Of a text shorter than 3 the first character, whatever it is. Else a capital A to D without a
    small letter beside it ("A scratch" counts as A); of several the one that scores highest, once
    for each time it occurs: 1 for every keyword around its last occurrence in the text (even
    inside a word), 2 if that lies in the last 30 %, 1 if punctuation follows.
    """
    text = re.sub(r"\s+", " ", text)
    if len(text) < 3:
        return re.sub(r"[^\w\s]", "", text)[:1] or None
    counts = Counter(_LETTER.findall(text))
    return max(counts, key=lambda letter: counts[letter] * _weight(text, letter), default=None)


def _weight(text: str, letter: str) -> int:
    at = text.rfind(letter)
    context = text[max(0, at - _CONTEXT) : at + _CONTEXT]
    weight = sum(keyword in context for keyword in _KEYWORDS)
    weight += 2 * (at > len(text) * _TAIL)
    return weight + (text[at + 1 : at + 2] in tuple(_SENTENCE_ENDS))
