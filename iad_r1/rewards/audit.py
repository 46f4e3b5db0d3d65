"""Can these rewards be trusted? Numbers over scored completions, and flags with examples.

Pure: give it completions with their solutions, and the strict and the loose reward set.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from iad_r1 import schema
from iad_r1.errors import DataError
from iad_r1.rewards.case import read_letter, read_solution
from iad_r1.rewards.components.choice import answered
from iad_r1.rewards.sets import RewardSet
from iad_r1.rewards.vocabulary import Vocabulary
from iad_r1.settings.base import AtLeast0, Section, Share
from iad_r1.types import Score

_LETTERS = {letter: letter for letter in "ABCDE"}


class AuditLimits(Section):
    """From where on a number is flagged. Shares are of completions unless said otherwise."""

    answer_gap: Share  # |share of an answer - share of that truth|
    entropy: AtLeast0  # of the answers, bits; below is a collapse
    degenerate: Share  # share of groups whose completions all earn the same
    distinct: Share  # share of completions that differ from every other; below is a collapse
    tag_only: Share  # of the mean reward: what the tags earn without their text
    disagreement: Share  # share that the loose set pays noticeably more than the strict one
    gap: Share  # what "noticeably" is, as a share of what a perfect completion earns


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
    flags: tuple[Flag, ...] = ()


@dataclass(frozen=True)
class _Seen:
    """A record and what is asked of it more than once."""

    record: Record
    score: Score
    answer: str
    truth: str
    type: str | None  # the true one
    gap: float  # by how much the loose set pays more, each as a share of what perfect would earn
    bare: float  # reward of its tags with all text removed


def audit(
    records: Sequence[Record],
    rewards: RewardSet,
    loose: RewardSet,
    limits: AuditLimits,
    vocabulary: Vocabulary | None,
    examples: int,
    evaluator: schema.Evaluator = "strict",
) -> Audit:
    """Score every completion with both sets and look for collapse and gaming.

    `loose` is the set whose faults are known (`sc_grpo_released`); `vocabulary` is what the true
    types are looked up in; `evaluator` reads the answers (not the rewards). Raises DataError
    without completions or for an unreadable solution.
    """
    if not records:
        raise DataError("there are no completions to audit.")
    seen = [_see(record, rewards, loose, evaluator) for record in records]
    groups = _groups(seen)
    answers = [one.answer for one in seen]
    result = Audit(
        n=len(seen),
        components=_components(seen, rewards),
        groups=len(groups),
        degenerate=_mean([float(_is_degenerate(group)) for group in groups]),
        answers=_shares(answers),
        gold=_shares(one.truth for one in seen),
        entropy=_entropy(answers),
        group_entropy=_mean([_entropy(one.answer for one in group) for group in groups]),
        distinct=_distinct(seen),
        statuses=_shares(_status(record) for record in records),
        tag_only_gain=statistics.fmean(one.bare for one in seen),
        disagreement=sum(one.gap > limits.gap for one in seen) / len(seen),
        unplaced=_unplaced(seen, vocabulary),
    )
    flags = [*_collapse(result, seen, limits), *_gaming(result, seen, limits), *_data(result, seen)]
    return replace(
        result, flags=tuple(replace(flag, examples=flag.examples[:examples]) for flag in flags)
    )


def _see(
    record: Record, rewards: RewardSet, loose: RewardSet, evaluator: schema.Evaluator
) -> _Seen:
    score = rewards.score(record.completion, record.solution)
    return _Seen(
        record,
        score,
        answer=_answer(record, evaluator),
        truth=_truth(record),
        type=None if _is_choice(record) else read_solution(record.solution).type,
        gap=_gap(record, score, rewards, loose),
        bare=rewards.score(_tags_only(record.completion), record.solution).total,
    )


# --- numbers -----------------------------------------------------------------------------------


def _components(seen: Sequence[_Seen], rewards: RewardSet) -> dict[str, Distribution]:
    """The total, then every component over the completions it applies to."""
    values: dict[str, list[float]] = defaultdict(list)
    for one in seen:
        values["total"].append(one.score.total)
        for name in rewards.applicable(one.record.solution):
            values[name].append(one.score.parts[name])
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


def _groups(seen: Sequence[_Seen]) -> list[list[_Seen]]:
    """Every group of two completions or more."""
    members: dict[str, list[_Seen]] = defaultdict(list)
    for one in seen:
        if one.record.group is not None:
            members[one.record.group].append(one)
    return [group for group in members.values() if len(group) > 1]


def _is_degenerate(group: Sequence[_Seen]) -> bool:
    """Whether all earned the same, so that the group carries no signal."""
    return len({one.score.total for one in group}) == 1


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _shares(values: Iterable[str]) -> dict[str, float]:
    """Each value's share, the most frequent first."""
    counts = Counter(values)
    return {value: count / counts.total() for value, count in counts.most_common()}


def _entropy(values: Iterable[str]) -> float:
    """Shannon entropy of the shares, bits."""
    return -math.fsum(share * math.log2(share) for share in _shares(values).values()) + 0.0


def _distinct(seen: Sequence[_Seen]) -> float:
    counts = Counter(one.record.completion for one in seen)
    return sum(count == 1 for count in counts.values()) / len(seen)


def _is_choice(record: Record) -> bool:
    return read_letter(record.solution) is not None


def _answer(record: Record, evaluator: schema.Evaluator) -> str:
    if not _is_choice(record):
        return schema.read_answer(record.completion, evaluator)
    if evaluator == "strict":  # as the strict rewards read letters, whatever stands beside them
        return answered(record.completion) or schema.INVALID
    return schema.read_answer(record.completion, evaluator, _LETTERS)


def _truth(record: Record) -> str:
    return read_letter(record.solution) or read_solution(record.solution).answer.lower()


def _status(record: Record) -> str:
    options = _LETTERS if _is_choice(record) else None
    return schema.parse(record.completion, options=options).status.value


def _tags_only(completion: str) -> str:
    """A completion's tags with nothing in or around them."""
    return "".join(match.group() for match in schema.TAG.finditer(completion))


def _gap(record: Record, score: Score, rewards: RewardSet, loose: RewardSet) -> float:
    """By how much the loose set pays more, each set as a share of what perfect would earn.

    0 where one of them pays nothing at all for perfect: there is nothing to compare.
    """
    letter = read_letter(record.solution)
    tagged = f"<answer>{letter}</answer>" if letter else record.solution
    perfect = f"<think>Seen.</think>{tagged}"
    best, loose_best = (set_.score(perfect, record.solution).total for set_ in (rewards, loose))
    if best <= 0 or loose_best <= 0:
        return 0.0
    return loose.score(record.completion, record.solution).total / loose_best - score.total / best


def _unplaced(seen: Sequence[_Seen], vocabulary: Vocabulary | None) -> dict[str, int]:
    if vocabulary is None:
        return {}
    counts = Counter(one.type for one in seen if one.type is not None)
    return {label: counts[label] for label in vocabulary.unplaced(counts)}


# --- flags -------------------------------------------------------------------------------------


def _flag(kind: str, message: str, seen: Iterable[_Seen]) -> Flag:
    return Flag(kind, message, tuple(one.record for one in seen))


def _collapse(result: Audit, seen: Sequence[_Seen], limits: AuditLimits) -> Iterable[Flag]:
    """The policy says the same whatever it sees."""
    wrong = [one for one in seen if one.answer != one.truth]
    for answer in sorted({*result.answers, *result.gold} - {schema.INVALID}):
        said, true = result.answers.get(answer, 0.0), result.gold.get(answer, 0.0)
        if abs(said - true) > limits.answer_gap:
            message = f"{said:.0%} of the answers are {answer!r}, which is true of {true:.0%}."
            yield _flag("collapse", message, wrong)
    if result.entropy < limits.entropy and len(result.gold) > 1:
        commonest = next(iter(result.answers))
        message = f"the answers vary by {result.entropy:.2f} bits only."
        yield _flag("collapse", message, (one for one in seen if one.answer == commonest))
    if result.degenerate is not None and result.degenerate > limits.degenerate:
        message = f"{result.degenerate:.0%} of {result.groups} groups earn one and the same reward"
        first = next(group for group in _groups(seen) if _is_degenerate(group))
        yield _flag("collapse", f"{message}: they carry no signal.", first)
    if result.distinct < limits.distinct:
        counts = Counter(one.record.completion for one in seen)
        text, count = max(counts.items(), key=lambda item: item[1])
        message = f"only {result.distinct:.0%} of the completions are unique; one occurs {count}"
        first = next(one for one in seen if one.record.completion == text)
        yield _flag("collapse", f"{message} times.", [first])


def _gaming(result: Audit, seen: Sequence[_Seen], limits: AuditLimits) -> Iterable[Flag]:
    """The reward can be had without the work."""
    mean, bare = result.components["total"].mean, result.tag_only_gain
    if bare > limits.tag_only * max(mean, 0.0):
        message = f"tags without any text earn {bare:.2f} of a mean of {mean:.2f}."
        best_first = sorted(seen, key=lambda one: one.bare, reverse=True)
        yield _flag("gaming", message, (one for one in best_first if one.bare > 0))
    if result.disagreement > limits.disagreement:
        message = f"the loose set pays {result.disagreement:.0%} of the completions more than the"
        message += f" strict one, by over {limits.gap:.0%} of a perfect score."
        worst_first = sorted(seen, key=lambda one: one.gap, reverse=True)
        yield _flag("gaming", message, (one for one in worst_first if one.gap > limits.gap))


def _data(result: Audit, seen: Sequence[_Seen]) -> Iterable[Flag]:
    """The truth itself cannot be rewarded."""
    if result.unplaced:
        labels = ", ".join(f"{label} ({count})" for label, count in result.unplaced.items())
        message = f"the vocabulary cannot place these true types: {labels}. Only their very words "
        message += "earn a type reward; add them to a copy of it (rewards.vocabulary=<file>)."
        yield _flag("data", message, (one for one in seen if one.type in result.unplaced))
