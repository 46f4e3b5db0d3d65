"""What is logged of a batch of groups: one line of numbers, and a table of what was said."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from statistics import fmean, pstdev
from typing import Any

from iad_r1 import schema
from iad_r1.data import images
from iad_r1.objective.advantages import is_degenerate
from iad_r1.types import Completion, Group, Sample, Score, StopReason

SIDE = 128  # pixels of a thumbnail


def reward_statistics(
    groups: Sequence[Group], read_answer: Callable[..., str] = schema.read_answer
) -> dict[str, float]:
    """Reward and its parts (all, normal and anomalous images; those there are), the share of
    degenerate groups, lengths in tokens, and how often "Yes" is said against how often it is true.

    read_answer: what a completion answers, as evaluation reads it ("yes", "no", "invalid",
        or with options a letter).
    """
    found = _rewards("", groups)
    for answer, suffix in (("No", "_normal"), ("Yes", "_anomalous")):
        found |= _rewards(suffix, [g for g in groups if g.sample.solution.answer == answer])
    flat = [completion for group in groups for completion in group.completions]
    lengths = [len(completion.tokens) for completion in flat]
    said = [
        read_answer(completion.text, options=group.sample.question.options)
        for group in groups
        for completion in group.completions
    ]
    return {
        **found,
        "degenerate_groups": fmean(is_degenerate(group.rewards()) for group in groups),
        "length_mean": fmean(lengths),
        "length_max": max(lengths),
        "truncated": fmean(completion.stop is StopReason.LENGTH for completion in flat),
        "yes_rate": fmean(answer == "yes" for answer in said),
        "invalid_rate": fmean(answer == "invalid" for answer in said),
        "gold_yes_rate": fmean(group.sample.solution.answer == "Yes" for group in groups),
    }


def _rewards(suffix: str, groups: Sequence[Group]) -> dict[str, float]:
    scores = [score for group in groups for score in group.scores]
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
    groups: Sequence[Group], gains_PG: Sequence[Sequence[float]]
) -> list[dict[str, Any]]:
    """One row per completion that is learned from: who was asked (and in which attempt, 0 being
    the first draw), what was said, what it earned, and a small picture (JPEG)."""
    rows = []
    for group, gains in zip(groups, gains_PG, strict=True):
        picture = _thumbnail(group.sample)
        for completion, score, gain in zip(group.completions, group.scores, gains, strict=True):
            row = {**_row(group, completion, score), "advantage": gain, "attempt": group.attempt}
            rows.append({**row, "thumbnail": picture})
    return rows


def _thumbnail(sample: Sample) -> bytes:
    small = images.open_image(sample).copy()
    small.thumbnail((SIDE, SIDE))
    data = io.BytesIO()
    small.save(data, format="JPEG", quality=85)
    return data.getvalue()


def failed_rows(prompt: str, groups: Sequence[Group]) -> list[dict[str, Any]]:
    """One row per completion of a step that could not be learned from, with all that is needed to
    look into it: the prompt's words, the tokens and the sampler's log-probs as well."""
    return [
        {
            **_row(group, completion, score),
            "prompt": prompt,
            "token_ids": list(completion.tokens),
            "sampler_logprobs": list(completion.logprobs),
        }
        for group in groups
        for completion, score in zip(group.completions, group.scores, strict=True)
    ]


def _row(group: Group, completion: Completion, score: Score) -> dict[str, Any]:
    return {
        "id": group.sample.id,
        "product": group.sample.product,
        "solution": group.sample.solution.as_tags(),
        "completion": completion.text,
        "stop": str(completion.stop),
        "tokens": len(completion.tokens),
        "reward": score.total,
        **{f"reward_{name}": value for name, value in score.parts.items()},
    }
