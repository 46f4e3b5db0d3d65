"""How fast rewards are scored, and the slowest completion a search can find.

    python bench/rewards.py                 two tables; one thread, two minutes
    python bench/rewards.py --quick         a small search, some seconds
    python bench/rewards.py --json FILE     also write the numbers, date and hardware to a file
    python bench/rewards.py --length 400000 --rounds 200

Ours against a straightforward scorer of the same released rewards (`Naive`): one regular
expression per question and completion, as one would write them down from their description. The
tests hold the two equal. The search builds completions out of nested, unclosed and repeated tags
and keeps what takes longest. Times are processor time, the best of several runs in this process,
so that other work on the machine counts little.
"""

from __future__ import annotations

import argparse
import random
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from bench import record
from iad_r1 import rewards, schema
from iad_r1.rewards.sets import RewardSet

SETS = ("sc_grpo", "sc_grpo_released", "roam", "roam_released", "choice_released")


# --- the straightforward scorer ------------------------------------------------------------------


class Naive:
    """The rewards released with IAD-R1, one pattern for each question. Quadratic on bad input."""

    def __init__(self) -> None:
        file = record.REPOSITORY / "iad_r1" / "rewards" / "vocabularies" / "released.yaml"
        self.groups = yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]

    def consistency(self, completion: str, solution: str) -> float:
        if self.truth(solution) == "yes":
            tags = r"<think>.*?</think><location>.*?</location><type>.*?</type><answer>.*?</answer>"
            return float(re.search(tags, completion, re.DOTALL) is not None)
        if re.search("<location>|<type>", completion):
            return 0.0
        return self.format_base(completion, solution)

    def format_base(self, completion: str, solution: str) -> float:
        tags = r"<think>.*?</think><answer>.*?</answer>"
        return float(re.search(tags, completion, re.DOTALL) is not None)

    def accuracy(self, completion: str, solution: str) -> float:
        right = self.answer_only(completion, solution)
        if self.truth(solution) == "no":
            return right
        parts = (self.type(completion, solution), self.location(completion, solution))
        return sum(part or 0.0 for part in parts) / 2 + right

    def accuracy_without_type(self, completion: str, solution: str) -> float:
        return self.alone(self.location, completion, solution)

    def accuracy_without_location(self, completion: str, solution: str) -> float:
        return self.alone(self.type, completion, solution)

    def alone(
        self, part: Callable[[str, str], float | None], completion: str, solution: str
    ) -> float:
        right = self.answer_only(completion, solution)
        if self.truth(solution) == "no":
            return right
        value = part(completion, solution)
        return 0.0 if value is None else value + right

    def answer_only(self, completion: str, solution: str) -> float:
        said = self.tag("answer", completion)
        return float(said is not None and said.strip().lower() == self.truth(solution))

    def truth(self, solution: str) -> str:
        return (self.tag("answer", solution) or solution).strip().lower()

    def tag(self, name: str, text: str) -> str | None:
        match = re.search(f"<{name}>(.*?)</{name}>", text)
        return match[1] if match else None

    def location(self, completion: str, solution: str) -> float | None:
        said, true = self.tag("location", completion), self.tag("location", solution)
        if said is None or true is None:
            return None
        return float(self.region(said) == self.region(true))

    def region(self, text: str) -> tuple[int, int]:
        column = 1 if re.search("left", text, re.I) else 3 if re.search("right", text, re.I) else 2
        upper, lower = re.search("top|upper", text, re.I), re.search("bottom|lower", text, re.I)
        return (1 if upper else 3 if lower else 2), column

    def type(self, completion: str, solution: str) -> float | None:
        said, true = self.tag("type", completion), self.tag("type", solution)
        if said is None or true is None:
            return None
        return self.type_score(said.strip().lower(), true.strip().lower())

    def type_score(self, predicted: str, actual: str) -> float:
        if not predicted or not actual:
            return 0.0
        said, true = self.normal(predicted), self.normal(actual)
        (said_group, said_class, said_fit) = self.look_up(said)
        (true_group, true_class, true_fit) = self.look_up(true)
        group_of = {c: g for g, members in self.groups.items() for c in members["classes"]}
        a, b = said_group or group_of.get(said_class), true_group or group_of.get(true_class)
        if a and b and a != b:
            return 0.0
        if (said_group and not true_group and b == said_group) or (
            true_group and not said_group and a == true_group
        ):
            return 0.3
        if said == true:
            return 1.0
        if said in true or true in said:
            return 0.85
        if said_class and true_class:
            if said_class == true_class:
                return 0.6 + (0.85 - 0.6) * min(said_fit, true_fit)
            if group_of[said_class] == group_of[true_class]:
                return 0.3
        ratio = SequenceMatcher(None, said, true).ratio()
        return ratio * 0.4 if ratio >= 0.7 else 0.0

    def normal(self, text: str) -> str:
        return re.sub(r"[^\w\s-]", "", re.sub(r"\s+", " ", text.lower().strip()))

    def look_up(self, text: str) -> tuple[str | None, str | None, float]:
        """(group if the text names one, class, how well it fits)."""
        named, terms = None, []
        for group, members in self.groups.items():
            if text and text in (self.normal(t) for t in (group, *members["terms"])):
                named = group
            for name, words in members["classes"].items():
                terms += [(self.normal(word), name) for word in (name, *words)]
        if text in dict(terms):
            return named, dict(terms)[text], 1.0
        partial = [
            (min(len(text), len(t)) / max(len(text), len(t)), c)
            for t, c in terms
            if text in t or t in text
        ]
        similar = [(SequenceMatcher(None, text, t).ratio(), c) for t, c in terms]
        for scored, least in ((partial, 1e-9), (similar, 0.7)):
            best = max((score for score, _ in scored), default=0.0)
            if best >= least:
                return named, next(c for score, c in scored if score == best), best
        return named, None, 0.0


# --- completions ---------------------------------------------------------------------------------

THINK = "I compare the part with a normal one. " * 6
PLACES = ("top left", "center", "bottom right", "near the top edge", "nowhere special")
TYPES = ("scratch", "stain on the surface", "hole", "bent component", "scrach", "unknown")


def typical(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Completions as a policy in training writes them, with their solutions."""
    chance = random.Random(seed)
    pairs = []
    for _ in range(count):
        place, kind = chance.choice(PLACES), chance.choice(TYPES)
        defect = f"<location>{place}</location><type>{kind}</type><answer>Yes</answer>"
        body = chance.choice((defect, "<answer>No</answer>", "<answer>Yes</answer>"))
        truth = chance.choice((defect.replace(place, "top left"), "<answer>No</answer>"))
        pairs.append((f"<think>{THINK}{chance.random()}</think>{body}", truth))
    return pairs


PIECES = (
    *(f"<{slash}{tag}>" for tag in schema.TAGS for slash in ("", "/")),
    *("</think><answer>", "</think><location>", "</location><type>", "</type><answer>"),
    *(
        "<",
        "<think",
        "</",
        "\n",
        " ",
        "\t",
        "A",
        "A ",
        "a",
        "B.",
        "top ",
        "left, ",
        "and ",
        "row 1 ",
    ),
    *("Yes", "No", "no ", "scratch ", "surface ", ".", ",", "é", "0", "<answer>No</answer>"),
)


def grow(unit: str, length: int, ending: str) -> str:
    """A unit repeated to a length, and an ending in place of its last characters."""
    body = unit * (length // len(unit) + 1)
    return body[: length - len(ending)] + ending


def best_of(call: Callable[[], object], repeats: int = 3) -> float:
    """The shortest of several runs, seconds of processor time."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times)


def per_second(score: Callable[[str, str], object], pairs: Sequence[tuple[str, str]]) -> float:
    """Completions scored per second."""
    return len(pairs) / best_of(lambda: [score(*pair) for pair in pairs])


# --- the search ----------------------------------------------------------------------------------


def solution_for(rewards_set: RewardSet) -> str:
    """A solution that makes every component of a set work."""
    if any("roam" in name or "choice" in name for name in rewards_set.names):
        return "A"
    return "<location>top left</location><type>scratch</type><answer>Yes</answer>"


CONTEXTS = (
    *((f"<{tag}>", f"</{tag}>") for tag in schema.TAGS),
    ("<think>", "</think><answer>A</answer>"),
    ("<think>B</think><answer>", "</answer>"),
    ("<think>x</think><location>", "</location><type>hole</type><answer>Yes</answer>"),
    ("<think>x</think><location>top left</location><type>", "</type><answer>Yes</answer>"),
)

Recipe = tuple[str, str, str]  # what is repeated, what stands before it, what after


def build(recipe: Recipe, length: int) -> str:
    unit, before, after = recipe
    return before + grow(unit, length - len(before), after)


def recipes(rounds: int, seed: int) -> Iterable[Recipe]:
    """Every piece by itself and in every context, then random combinations."""
    for piece in PIECES:
        yield piece, "", ""
        for before, after in CONTEXTS:
            yield piece, before, after
    chance = random.Random(seed)
    for _ in range(rounds):
        unit = "".join(chance.choices(PIECES, k=chance.randint(1, 6)))
        loose = chance.choice(("", *PIECES)), chance.choice(("", *PIECES))
        yield unit, *chance.choice((loose, *CONTEXTS))


def slowest(rewards_set: RewardSet, length: int, rounds: int, seed: int) -> tuple[float, Recipe]:
    """The recipe whose completion of `length` takes longest, and its seconds.

    Tried at a tenth of the length; the worst twenty are timed in full.
    """
    truth = solution_for(rewards_set)

    def seconds(recipe: Recipe, size: int) -> float:
        text = build(recipe, size)
        return best_of(lambda: rewards_set.score(text, truth), repeats=1)

    tried = {recipe: seconds(recipe, length // 10) for recipe in recipes(rounds, seed)}
    worst = sorted(tried, key=tried.__getitem__)[-20:]
    return max((seconds(recipe, length), recipe) for recipe in worst)


def growth(rewards_set: RewardSet, recipe: Recipe, length: int) -> float:
    """Time at `length` over time at half of it: 2 when linear."""
    truth = solution_for(rewards_set)
    long, short = (build(recipe, size) for size in (length, length // 2))
    ratios = []
    for _ in range(5):  # pairs, so that a busy machine slows both
        slow = best_of(lambda: rewards_set.score(long, truth))
        ratios.append(slow / best_of(lambda: rewards_set.score(short, truth)))
    return sorted(ratios)[2]


# --- the report ----------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of rewards, and the worst case.")
    parser.add_argument(
        "--length", type=int, default=200_000, help="characters of a bad completion"
    )
    parser.add_argument(
        "--rounds", type=int, default=300, help="random recipes to try for each set"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a tenth of the rounds")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    options = parser.parse_args()
    rounds = options.rounds // 10 if options.quick else options.rounds
    result = {
        "typical": measure_typical(1000),
        "worst": measure_worst(options.length, rounds, options.seed),
        "environment": environment(),
    }
    _print(Console(width=110), result)
    if options.json:
        record.write(options.json, ratio(result), result)


def ratio(result: dict[str, Any]) -> float:
    """Regular expressions' time over ours, for the same rewards."""
    speed = {name: found["per_second"] for name, found in result["typical"]["scorers"].items()}
    return round(speed["ours, sc_grpo_released"] / speed["regular expressions"], 2)


def measure_typical(count: int) -> dict[str, Any]:
    """Completions per second of every scorer, and milliseconds for 4 groups of 8."""
    pairs, naive = typical(count), Naive()
    scorers: dict[str, Callable[[str, str], object]] = {
        "regular expressions": lambda c, s: (naive.consistency(c, s), naive.accuracy(c, s)),
        "ours, sc_grpo_released": rewards.load("sc_grpo_released").score,
        "ours, sc_grpo": rewards.load("sc_grpo").score,
    }
    speeds = {name: per_second(scorer, pairs) for name, scorer in scorers.items()}
    return {
        "completions": count,
        "characters": len(pairs[0][0]),
        "scorers": {
            name: {"per_second": round(speed), "ms_for_32": round(32e3 / speed, 3)}
            for name, speed in speeds.items()
        },
    }


def measure_worst(length: int, rounds: int, seed: int) -> dict[str, Any]:
    """The slowest completion found for every set, and what doubling its length does."""
    found = {}
    for name in SETS:
        rewards_set = rewards.load(name)
        seconds, recipe = slowest(rewards_set, length, rounds, seed)
        ratio = growth(rewards_set, recipe, length)
        found[name] = {
            "ms": round(seconds * 1e3, 1),
            "ratio_of_doubling": round(ratio, 2),
            "repeated_before_after": list(recipe),
        }
    return {"characters": length, "rounds": rounds, "seed": seed, "sets": found}


def environment() -> dict[str, Any]:
    """What the numbers depend on, the files that are measured among it."""
    sources = ["iad_r1/rewards", "iad_r1/grid.py", "iad_r1/schema.py", "bench/rewards.py"]
    git = ["git", "-C", str(record.REPOSITORY), "status", "--short", *sources]
    changed = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    return record.environment(threads=1, uncommitted_changes=bool(changed))


def _print(console: Console, result: dict[str, Any]) -> None:
    speed, worst = result["typical"], result["worst"]
    table = Table(
        "scorer",
        title=f"{speed['completions']:,} typical completions of {speed['characters']} characters",
    )
    table.add_column("per second", justify="right")
    table.add_column("4 groups x 8, ms", justify="right")
    for name, found in speed["scorers"].items():
        table.add_row(name, f"{found['per_second']:,}", f"{found['ms_for_32']:.2f}")
    console.print(table)
    length = worst["characters"]
    table = Table("set", title=f"slowest completion of {length:,} characters found")
    table.add_column("ms", justify="right")
    table.add_column(f"{length // 2:,} to {length:,}", justify="right")
    table.add_column("repeated, before, after")
    for name, found in worst["sets"].items():
        recipe = ascii(tuple(found["repeated_before_after"]))
        table.add_row(name, f"{found['ms']:.1f}", f"x {found['ratio_of_doubling']:.2f}", recipe)
    console.print(table)


if __name__ == "__main__":
    main()
