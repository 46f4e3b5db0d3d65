"""Texts from facts, by a grammar that a person can read and edit.

A file has two parts. `conditions` name what facts may be like: a range `[from, below]` of a number
(null: no limit), a word, a list of words, or true and false; of several facts, all have to be so. A
fact that is not known is like nothing. `phrases` give the ways to say a thing: a text, or
`{when: conditions, say: text}`, where `not` denies a condition. In a text `{name}` stands for
another phrase or for a fact. Every way whose conditions hold is as likely as the others.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from iad_r1.errors import ConfigError

Value = bool | int | float | str | None
Allowed = bool | str | list[str] | list[float | None]
_PLACE = re.compile(r"\{(\w+)\}")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Way(_Part):
    """One way to say a thing; `when` holds the conditions that it needs, joined by commas."""

    when: str = ""
    say: str

    def needs(self) -> tuple[tuple[str, bool], ...]:
        """The name of each condition, and whether it has to hold."""
        terms = [term for part in self.when.split(",") if (term := part.strip())]
        return tuple((term.removeprefix("not ").strip(), term[:4] != "not ") for term in terms)


Said = Annotated[Way, BeforeValidator(lambda v: {"say": v} if isinstance(v, str) else v)]


class Wording(_Part):
    """A file of wordings as it is written."""

    conditions: dict[str, dict[str, Allowed]]
    phrases: dict[str, Annotated[list[Said], Field(min_length=1)]]


class Grammar:
    """A file of wordings, its names checked; `where` is its name for error messages."""

    def __init__(self, wording: Wording, where: str) -> None:
        self.wording, self.where = wording, where
        self.ways = {
            name: [(way.needs(), way.say) for way in ways] for name, ways in wording.phrases.items()
        }
        for name, ways in self.ways.items():
            used = {term for needs, _ in ways for term, _ in needs}
            if unknown := used - set(wording.conditions):
                raise ConfigError(
                    f"{where}: {name} has a way to say it when {min(unknown)}, which is none of "
                    f"its conditions ({', '.join(sorted(wording.conditions))})."
                )
        if loop := next((name for name in self.ways if self._reaches(name, name)), None):
            raise ConfigError(f"{where}: the phrase {loop} holds itself, without an end.")

    def _reaches(self, name: str, other: str) -> bool:
        waiting, seen = [name], set[str]()
        while waiting:
            for _, say in self.ways.get(waiting.pop(), ()):
                found = set(_PLACE.findall(say)) - seen
                if other in found:
                    return True
                seen |= found
                waiting += found
        return False

    def write(self, phrase: str, facts: Mapping[str, Value], stream: random.Random) -> str:
        """One way to say a phrase, whole sentences with capital letters.

        Raises ConfigError where no way fits the facts, or a fact that is asked for is not known.
        """
        holding = {
            name: all(_is_so(facts.get(fact), allowed) for fact, allowed in terms.items())
            for name, terms in self.wording.conditions.items()
        }
        text = " ".join(self._said(phrase, facts, holding, stream).split())
        text = re.sub(r" (?=[.,;:?])", "", text)
        return re.sub(r"(?:^|(?<=[.!?] ))[a-z]", lambda found: found[0].upper(), text)

    def _said(
        self,
        phrase: str,
        facts: Mapping[str, Value],
        holding: Mapping[str, bool],
        stream: random.Random,
    ) -> str:
        fitting = [
            say
            for needs, say in self.ways[phrase]
            if all(holding[term] == wanted for term, wanted in needs)
        ]
        if not fitting:
            raise ConfigError(f"{self.where}: there is no way to say {phrase} of {dict(facts)}.")

        def filled(found: re.Match[str]) -> str:
            name = found[1]
            if name in self.ways:
                return self._said(name, facts, holding, stream)
            if facts.get(name) is None:
                raise ConfigError(
                    f"{self.where}: {phrase} asks for {{{name}}}, which is neither a phrase nor "
                    f"known of {dict(facts)}. Say when it is."
                )
            return str(facts[name])

        return _PLACE.sub(filled, stream.choice(fitting))


def _is_so(value: Value, allowed: Allowed) -> bool:
    if value is None:
        return False
    if not isinstance(allowed, list):
        return value == allowed
    if any(isinstance(item, str) for item in allowed):
        return value in allowed
    least, below = allowed
    assert isinstance(value, int | float) and not isinstance(least, str)
    return (least is None or value >= least) and (
        below is None or (not isinstance(below, str) and value < below)
    )


def read(values: object, where: str) -> Grammar:
    """A grammar from what a YAML file holds. Raises ConfigError."""
    from iad_r1.rewards.files import check

    return Grammar(check(Wording, values, where), where)
