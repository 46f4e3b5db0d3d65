"""What a spreadsheet makes of text that looks like a number or a date to it: 001 becomes 1, and 1-2
becomes 02-Jan or 2026-02-01. The table has lost what was meant; names on the disk have not."""

from __future__ import annotations

import re
from collections.abc import Iterable

_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?(e[+-]?\d+)?", re.IGNORECASE)
_TIME = re.compile(r"[ T]\d{1,2}:\d{2}(:\d{2}(\.\d*)?)?$")
_SHOWN = re.compile(r"\w+\.?[-./ ]+\w+\.?([-./ ]+\w+)?")
_DIGITS = 15  # that a spreadsheet keeps of a number
_MONTHS = {
    name: number
    for number, names in enumerate(
        ("jan january januar", "feb february februar", "mar march mrz mär märz", "apr april",
         "may mai", "jun june juni", "jul july juli", "aug august", "sep sept september",
         "oct october okt oktober", "nov november", "dec december dez dezember"), 1
    )
    for name in names.split()
}  # fmt: skip


def meant(shown: str, names: Iterable[str]) -> list[str]:
    """Of names, those that a spreadsheet shows as this text."""
    if is_date(shown):
        day, month, *year = _date(shown)
        found = ((name, _date(name)) for name in names)
        return [
            name
            for name, numbers in found
            if sorted(numbers[:2]) == sorted((day, month)) and numbers[2:] in ([], year)
        ]
    return [name for name in names if _is_number(shown, name)]


def is_date(shown: str) -> bool:
    """Whether a text is a date as spreadsheets write it: with a month in letters, a year of four
    digits, or strokes."""
    text = _TIME.sub("", shown)
    if "_" in text or not _SHOWN.fullmatch(text) or not _date(text):
        return False
    if any(map(str.isalpha, text)) or text.count("/") == 2:
        return True
    return len(re.findall(r"\d+", text)) == 3 and len(re.findall(r"\d{4}", text)) == 1


def _date(text: str) -> list[int]:
    """Day and month, in any order, and the last digits of the year if there is one; of what is no
    date, nothing."""
    words = re.findall(r"\d+|[^\W\d_]+", _TIME.sub("", text).lower())
    numbers = [int(word) if word.isdigit() else _MONTHS.get(word, -1) for word in words]
    if len(numbers) == 3 and numbers[0] > 31:
        numbers = [*numbers[1:], numbers[0]]
    if len(numbers) not in (2, 3) or not all(1 <= n <= 31 for n in numbers[:2]):
        return []
    if min(numbers[:2]) > 12 or numbers[-1] < 0:
        return []
    return [*numbers[:2], *(n % 100 for n in numbers[2:])]


def _is_number(shown: str, name: str) -> bool:
    """Whether a name is this number as typed."""
    if not (_NUMBER.fullmatch(shown) and _NUMBER.fullmatch(name)):
        return False
    mantissa, scientific, _ = shown.lower().partition("e")
    digits = len(re.sub(r"\D", "", mantissa)) if scientific else _DIGITS
    return f"{float(shown):.{digits - 1}e}" == f"{float(name):.{digits - 1}e}"
