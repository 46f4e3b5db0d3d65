"""`teacher=rules`: observe, compare, identify, evaluate, decide, written from the facts by the
grammar of `wording.yaml`. Nothing is asked, and nothing is said that the facts do not say."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from iad_r1.data.targets import WHOLE_IMAGE, in_text
from iad_r1.expert.grammar import Grammar, Value, read
from iad_r1.expert.teachers import Asked, Draft
from iad_r1.rewards.files import read_yaml
from iad_r1.settings.config import Config
from iad_r1.settings.expert import TeacherSettings
from iad_r1.store.run_folder import RunFolder

Settings = TeacherSettings
FILE = Path(__file__).resolve().parents[1] / "wording.yaml"
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def problems(config: Config) -> Iterator[str]:
    """None: it is told nothing."""
    return iter(())


def require(config: Config) -> None:
    """It needs nothing."""


def announce(config: Config) -> str:
    """It has no more to say."""
    return "rules"


class Rules:
    """Writes by the grammar."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.writer = {"wording": hashlib.sha256(FILE.read_bytes()).hexdigest()}

    def write(self, pictures: Iterable[Sequence[Asked]]) -> Iterator[Sequence[Draft]]:
        """The texts about each picture."""
        for asked in pictures:
            yield [draft(each, self.seed) for each in asked]

    def close(self) -> Mapping[str, Any]:
        """It costs nothing."""
        return {}


def teacher(config: Config, folder: RunFolder) -> Rules:
    """Who writes with the seed of a run."""
    return Rules(config.seed)


def draft(asked: Asked, seed: int) -> Draft:
    """The texts about a picture, drawn from the seed and its id."""
    grammar, values = grammar_of(FILE), known(asked)
    kind = None
    if asked.facts.defect is not None:
        kind = asked.facts.defect.coarse if asked.coarse else None
        kind = kind or grammar.write("finer_type", values, random.Random(0)).lower()
        finer = kind != asked.facts.defect.coarse
        values = {**values, "type": kind, "has_class": finer and bool(values["has_class"])}
    label = "good" if kind is None else "defective"
    description, reasoning = (
        grammar.write(f"{what}_{label}", values, random.Random(f"{what}/{seed}/{asked.sample.id}"))
        for what in ("description", "reasoning")
    )
    return Draft(description, reasoning, kind)


@cache
def grammar_of(file: Path) -> Grammar:
    """The grammar in a file. Raises ConfigError."""
    return read(read_yaml(file), file.name)


def known(asked: Asked) -> Mapping[str, Value]:
    """The facts under the names that the grammar knows them by."""
    facts, defect = asked.facts, asked.facts.defect
    found: dict[str, Value] = {
        "product": facts.product,
        "color": facts.colour,
        "color_share": facts.colour_share,
        "color_change": facts.colour_change,
        "lightness": facts.lightness,
        "spread": facts.spread,
        "lighter_than_good": facts.lighter_than_good,
    }
    if defect is None or asked.place is None:
        return found
    single = len(defect.cells[asked.grid]) == 1 and asked.place != WHOLE_IMAGE
    return found | {
        "at": in_text(asked.place),
        "place": asked.place,
        "has_name": single and not asked.place.startswith("row "),
        "type": defect.fine,
        "coarse": defect.coarse,
        "has_class": defect.coarse is not None and defect.fine != defect.coarse,
        "group": defect.group,
        "share": defect.share,
        "percent": percent(defect.share),
        "width": defect.box[2],
        "height": defect.box[3],
        "at_border": defect.at_border,
        "touched": len(defect.touched[asked.grid]),
        "touched_word": _number(len(defect.touched[asked.grid])),
        "parts": defect.parts,
        "parts_word": _number(defect.parts),
        "elongation": defect.elongation,
        "angle": defect.angle,
        "fill": defect.fill,
        "lighter": defect.lighter,
        "redder": defect.redder,
        "yellower": defect.yellower,
        "redness": defect.redness,
        "yellowness": defect.yellowness,
        "defect_color": defect.colour,
        "color_around": defect.colour_around,
        "colors_differ": defect.colour_around not in (None, defect.colour),
        "unseen": defect.unseen,
        "unseen_around": defect.unseen_around,
    }


def _number(count: int) -> str:
    return _NUMBERS[count] if count < len(_NUMBERS) else "many"


def percent(share: float) -> str:
    """A share in words that hold: "less than 1 percent", "about 3 percent"."""
    whole = round(100 * share)
    return f"about {whole} percent" if whole else "less than 1 percent"
