"""Can these rewards be trusted? Numbers over scored completions, and flags with examples.

Pure: give it completions with their solutions, and the strict and the loose reward set.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from iad_r1 import schema
from iad_r1.errors import DataError
from iad_r1.rewards.audit_config import AuditLimits
from iad_r1.rewards.case import read_solution
from iad_r1.rewards.components.choice import answered
from iad_r1.rewards.sets import RewardSet
from iad_r1.rewards.vocabulary import Vocabulary
from iad_r1.types import Score

_LETTERS = frozenset("ABCDE")


@dataclass(frozen=True)
class Record:
    """One completion. `solution` is in tag form or a letter; `group` names its prompt, if known."""

    completion: str
    solution: str
    group: str | None


@dataclass(frozen=True)
class Distribution:
    """How a component pays, over the `n` completions it applies to."""

    n: int
    mean: float
    std: float
    low: float
    quartiles: tuple[float, float, float]
    high: float
    zero: float  # share that earns nothing


@dataclass(frozen=True)
class Flag:
    """Something to look at: "collapse", "gaming" or "data", and the completions that show it."""

    kind: str
    message: str
    examples: tuple[Record, ...]


@dataclass(frozen=True)
class Audit:
    """What `audit` found. Shares are of completions, 0 to 1."""

    n: int
    components: Mapping[str, Distribution]  # "total" first
    groups: int  # with two completions or more
    degenerate: float | None  # share of groups that all earn the same; None without groups
    answers: Mapping[str, float]  # "yes", "no", letters, "invalid": share
    gold: Mapping[str, float]
    entropy: float  # of the answers, bits
    group_entropy: float | None  # mean over groups, bits
    distinct: float  # share of completions that no other equals
    statuses: Mapping[str, float]  # of the parser
    tag_only_gain: float  # mean reward of the completions' own tags with all text removed
    disagreement: float  # share that the loose set pays noticeably more than the strict one
    unplaced: Mapping[str, int]  # true types the vocabulary cannot place: completions with them
    flags: tuple[Flag, ...]


def audit(
    records: Sequence[Record],
    rewards: RewardSet,
    loose: RewardSet,
    limits: AuditLimits,
    vocabulary: Vocabulary | None,
    examples: int,
) -> Audit:
    """Score every completion with both sets and look for collapse and gaming.

    `loose` is the set whose faults are known (`sc_grpo_released`); `vocabulary` is what the true
    types are looked up in. Raises DataError without completions or for an unreadable solution.
    """
    if not records:
        raise DataError("there are no completions to audit.")
    scores = [rewards.score(record.completion, record.solution) for record in records]
    groups = _groups(records)
    answers = [_answer(record) for record in records]
    gaps = _gaps(records, scores, rewards, loose)
    paid_more = [record for record, gap in zip(records, gaps, strict=True) if gap > limits.gap]
    bare = [rewards.score(_tags_only(record.completion), record.solution) for record in records]
    result = Audit(
        n=len(records),
        components=_components(records, scores, rewards),
        groups=len(groups),
        degenerate=_mean([_all_equal([scores[i].total for i in group]) for group in groups]),
        answers=_shares(answers),
        gold=_shares(map(_truth, records)),
        entropy=_entropy(answers),
        group_entropy=_mean([_entropy([answers[i] for i in group]) for group in groups]),
        distinct=_distinct(records),
        statuses=_shares(_status(record) for record in records),
        tag_only_gain=statistics.fmean(score.total for score in bare),
        disagreement=len(paid_more) / len(records),
        unplaced=_unplaced(records, vocabulary),
        flags=(),
    )
    gapped = sorted(zip(gaps, range(len(gaps)), strict=True), key=lambda pair: (-pair[0], pair[1]))
    worst = [records[index] for gap, index in gapped[:examples] if gap > limits.gap]
    flags = (*_collapse(result, records, limits, examples), *_gaming(result, limits, worst))
    return Audit(**{**vars(result), "flags": (*flags, *_data(result, records, examples))})


# --- numbers -----------------------------------------------------------------------------------


def _components(
    records: Sequence[Record], scores: Sequence[Score], rewards: RewardSet
) -> dict[str, Distribution]:
    """The total, then every component over the completions it applies to."""
    values: dict[str, list[float]] = defaultdict(list)
    for record, score in zip(records, scores, strict=True):
        values["total"].append(score.total)
        for name in rewards.applicable(record.solution):
            values[name].append(score.parts[name])
    names = ("total", *rewards.names)
    return {name: _distribution(values[name]) for name in names if values[name]}


def _distribution(values: Sequence[float]) -> Distribution:
    ordered = sorted(values)
    return Distribution(
        n=len(ordered),
        mean=statistics.fmean(ordered),
        std=statistics.pstdev(ordered),
        low=ordered[0],
        quartiles=(_quantile(ordered, 0.25), _quantile(ordered, 0.5), _quantile(ordered, 0.75)),
        high=ordered[-1],
        zero=sum(value == 0 for value in ordered) / len(ordered),
    )


def _quantile(ordered: Sequence[float], share: float) -> float:
    """The value below which a share of the sorted values lies, between two values in proportion."""
    at = share * (len(ordered) - 1)
    low, high = ordered[math.floor(at)], ordered[math.ceil(at)]
    return low + (high - low) * (at - math.floor(at))


def _groups(records: Sequence[Record]) -> list[list[int]]:
    """The positions of every group of two completions or more."""
    members: dict[str, list[int]] = defaultdict(list)
    for index, record in enumerate(records):
        if record.group is not None:
            members[record.group].append(index)
    return [indices for indices in members.values() if len(indices) > 1]


def _all_equal(values: Sequence[float]) -> float:
    return float(max(values) - min(values) < 1e-9)


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _shares(values: Iterable[str]) -> dict[str, float]:
    """Each value's share, the most frequent first."""
    counts = Counter(values)
    return {value: count / counts.total() for value, count in counts.most_common()}


def _entropy(values: Iterable[str]) -> float:
    """Shannon entropy of the shares, bits."""
    return -math.fsum(share * math.log2(share) for share in _shares(values).values()) + 0.0


def _distinct(records: Sequence[Record]) -> float:
    counts = Counter(record.completion for record in records)
    return sum(count == 1 for count in counts.values()) / len(records)


def _is_choice(record: Record) -> bool:
    return record.solution.strip() in _LETTERS


def _answer(record: Record) -> str:
    if _is_choice(record):
        return answered(record.completion) or schema.INVALID
    return schema.parse(record.completion).verdict


def _truth(record: Record) -> str:
    if _is_choice(record):
        return record.solution.strip()
    return read_solution(record.solution).answer.lower()


def _status(record: Record) -> str:
    options = {letter: letter for letter in _LETTERS} if _is_choice(record) else None
    return schema.parse(record.completion, options=options).status.value


def _tags_only(completion: str) -> str:
    """A completion's tags with nothing in or around them."""
    return "".join(match.group() for match in schema.TAG.finditer(completion))


def _gaps(
    records: Sequence[Record], scores: Sequence[Score], rewards: RewardSet, loose: RewardSet
) -> list[float]:
    """By how much the loose set pays more, each set as a share of what perfect would earn."""
    gaps = []
    for record, score in zip(records, scores, strict=True):
        perfect = f"<think>Seen.</think>{record.solution}"
        if _is_choice(record):
            perfect = f"<think>Seen.</think><answer>{record.solution.strip()}</answer>"
        strict = score.total / (rewards.score(perfect, record.solution).total or 1.0)
        other = loose.score(record.completion, record.solution).total
        gaps.append(other / (loose.score(perfect, record.solution).total or 1.0) - strict)
    return gaps


def _unplaced(records: Sequence[Record], vocabulary: Vocabulary | None) -> dict[str, int]:
    if vocabulary is None:
        return {}
    solutions = [read_solution(record.solution) for record in records if not _is_choice(record)]
    counts = Counter(solution.type for solution in solutions if solution.type)
    return {label: counts[label] for label in vocabulary.unplaced(counts)}


# --- flags -------------------------------------------------------------------------------------


def _collapse(
    result: Audit, records: Sequence[Record], limits: AuditLimits, examples: int
) -> Iterable[Flag]:
    """The policy says the same whatever it sees."""
    for answer in sorted({*result.answers, *result.gold} - {schema.INVALID}):
        said, true = result.answers.get(answer, 0.0), result.gold.get(answer, 0.0)
        if abs(said - true) > limits.answer_gap:
            shown = [r for r in records if _answer(r) != _truth(r)][:examples]
            yield Flag(
                "collapse",
                f"{said:.0%} of the answers are {answer!r}, which is true of {true:.0%}.",
                tuple(shown),
            )
    if result.entropy < limits.entropy and len(result.gold) > 1:
        yield Flag("collapse", f"the answers vary by {result.entropy:.2f} bits only.", ())
    if result.degenerate is not None and result.degenerate > limits.degenerate:
        message = f"{result.degenerate:.0%} of {result.groups} groups earn one and the same reward"
        yield Flag("collapse", f"{message}: they carry no signal.", ())
    if result.distinct < limits.distinct:
        text, count = Counter(record.completion for record in records).most_common(1)[0]
        shown = [record for record in records if record.completion == text][:1]
        yield Flag(
            "collapse",
            f"only {result.distinct:.0%} of the completions are unique; one occurs {count} times.",
            tuple(shown),
        )


def _gaming(result: Audit, limits: AuditLimits, worst: Sequence[Record]) -> Iterable[Flag]:
    """The reward can be had without the work."""
    mean = result.components["total"].mean
    if result.tag_only_gain > limits.tag_only * mean and result.tag_only_gain > 0:
        yield Flag(
            "gaming",
            f"tags without any text earn {result.tag_only_gain:.2f} of a mean of {mean:.2f}.",
            (),
        )
    if result.disagreement > limits.disagreement:
        yield Flag(
            "gaming",
            f"the loose set pays {result.disagreement:.0%} of the completions more than the strict "
            f"one, by over {limits.gap:.0%} of a perfect score.",
            tuple(worst),
        )


def _data(result: Audit, records: Sequence[Record], examples: int) -> Iterable[Flag]:
    """The truth itself cannot be rewarded."""
    if result.unplaced:
        labels = ", ".join(f"{label} ({count})" for label, count in result.unplaced.items())
        shown = [
            record
            for record in records
            if not _is_choice(record) and read_solution(record.solution).type in result.unplaced
        ]
        yield Flag(
            "data",
            f"the vocabulary cannot place these true types: {labels}. Only their very words earn "
            "a type reward; add them to a copy of the vocabulary (rewards.vocabulary=<file>).",
            tuple(shown[:examples]),
        )
