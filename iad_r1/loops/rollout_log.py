"""What is logged of a batch of groups: one line of numbers, and a table of what was said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean, pstdev
from typing import Any

from iad_r1 import schema
from iad_r1.objective.advantages import is_degenerate
from iad_r1.types import Completion, Sample, Score, StopReason

Groups = Sequence[Sequence[Completion]]
Scores = Sequence[Sequence[Score]]


def reward_statistics(
    batch: Sequence[Sample],
    groups: Groups,
    scores: Scores,
    judge: Callable[[str], str] = schema.read_answer,
) -> dict[str, float]:
    """Reward and its parts (all, normal and anomalous images; those there are), the share of
    degenerate groups, lengths in tokens, and how often "Yes" is said against how often it is true.

    judge: what a completion answers, as evaluation reads it ("yes", "no" or "invalid").
    """
    found = _rewards("", [score for group in scores for score in group])
    for answer, suffix in (("No", "_normal"), ("Yes", "_anomalous")):
        chosen = [
            score
            for sample, group in zip(batch, scores, strict=True)
            if sample.solution.answer == answer
            for score in group
        ]
        found |= _rewards(suffix, chosen)
    flat = [completion for group in groups for completion in group]
    lengths = [len(completion.tokens) for completion in flat]
    said = [judge(completion.text) for completion in flat]
    degenerate = [is_degenerate([score.total for score in group]) for group in scores]
    return {
        **found,
        "degenerate_groups": fmean(degenerate),
        "length_mean": fmean(lengths),
        "length_max": max(lengths),
        "truncated": fmean(completion.stop is StopReason.LENGTH for completion in flat),
        "yes_rate": fmean(answer == "yes" for answer in said),
        "invalid_rate": fmean(answer == "invalid" for answer in said),
        "gold_yes_rate": fmean(sample.solution.answer == "Yes" for sample in batch),
    }


def _rewards(suffix: str, scores: Sequence[Score]) -> dict[str, float]:
    if not scores:
        return {}
    totals = [score.total for score in scores]
    found = {f"reward{suffix}": fmean(totals)}
    if not suffix:
        found["reward_std"] = pstdev(totals)
    names = dict.fromkeys(name for score in scores for name in score.parts)
    for name in names:
        found[f"reward_{name}{suffix}"] = fmean(score.parts.get(name, 0.0) for score in scores)
    return found


def rollout_rows(
    batch: Sequence[Sample],
    groups: Groups,
    scores: Scores,
    advantage: Sequence[Sequence[float]],
    attempts: Sequence[int],
) -> list[dict[str, Any]]:
    """One row per completion that is learned from: who was asked (and in which attempt, 0 being
    the first draw), what was said, what it earned."""
    return [
        {**_row(sample, completion, score), "advantage": advantaged, "attempt": attempt}
        for sample, group, earned, gains, attempt in zip(
            batch, groups, scores, advantage, attempts, strict=True
        )
        for completion, score, advantaged in zip(group, earned, gains, strict=True)
    ]


def failed_rows(
    prompt: str, batch: Sequence[Sample], groups: Groups, scores: Scores
) -> list[dict[str, Any]]:
    """One row per completion of a step that could not be learned from, with all that is needed to
    look into it: the prompt's words, the tokens and the sampler's log-probs as well."""
    return [
        {
            **_row(sample, completion, score),
            "prompt": prompt,
            "token_ids": list(completion.tokens),
            "sampler_logprobs": list(completion.logprobs),
        }
        for sample, group, earned in zip(batch, groups, scores, strict=True)
        for completion, score in zip(group, earned, strict=True)
    ]


def _row(sample: Sample, completion: Completion, score: Score) -> dict[str, Any]:
    return {
        "id": sample.id,
        "product": sample.product,
        "solution": sample.solution.as_tags(),
        "completion": completion.text,
        "stop": str(completion.stop),
        "tokens": len(completion.tokens),
        "reward": score.total,
        **{f"reward_{name}": value for name, value in score.parts.items()},
    }
