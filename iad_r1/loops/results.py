"""What `summary.json` holds of answers, whoever gave them. Without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from iad_r1 import data, prompts
from iad_r1.grid import as_grid
from iad_r1.judge import mmad
from iad_r1.judge.grade import Grader
from iad_r1.judge.outcomes import is_yes_no
from iad_r1.judge.places import box_scores, place_scores
from iad_r1.judge.rates import summarise
from iad_r1.judge.reasoning import reasoning_scores
from iad_r1.judge.scores import RANKED
from iad_r1.judge.thresholds import Rule, operating_points
from iad_r1.judge.votes import by_votes
from iad_r1.report.wording import HEADLINE
from iad_r1.rewards import vocabulary
from iad_r1.settings.config import Config
from iad_r1.settings.evaluate import Evaluate
from iad_r1.types import Dataset, Prediction, Sample

Answers = Mapping[tuple[str, str, int], Sequence[Prediction]]  # by stage, split and shots


def splits(config: Config, dataset: Dataset) -> dict[str, Sequence[Sample]]:
    """The samples to judge, by split name; validation splits are named `validation_<name>`."""
    asked = config.evaluate
    found: dict[str, Sequence[Sample]] = {}
    if "validation" in asked.splits:
        found |= {f"validation_{name}": s for name, s in dataset.validation.items()}
    if "test" in asked.splits:
        found |= dict(dataset.test)
    return {name: samples[: asked.limit] for name, samples in found.items() if samples}


def choosing(config: Config, dataset: Dataset) -> list[Sample]:
    """The validation pictures by which SC-GRPO chooses the weights that it ends with. None of them
    where it ends with the last ones, as it has to where only good or only defective ones are kept
    apart."""
    if not config.grpo.choose_on_validation:
        return []
    found = [sample for part in dataset.validation.values() for sample in yes_no(part)]
    return found if len({sample.solution.answer for sample in found}) == 2 else []


def yes_no(samples: Sequence[Sample]) -> list[Sample]:
    """Those that ask whether there is a defect, without options."""
    return [sample for sample in samples if sample.question.options is None]


def tested(config: Config, dataset: Dataset) -> Sequence[str]:
    """The splits of benchmarks that are averaged: a multiple choice only with others."""
    if not data.benchmarks(config):
        return []
    found = dataset.test
    verdicts = [name for name, samples in found.items() if samples[0].question.options is None]
    return verdicts or list(found)


def open_grader(config: Config) -> Grader:
    """How the answers of a run are graded."""
    asked = config.evaluate
    types = vocabulary(config.rewards.vocabulary or "default")
    return Grader(as_grid(config.grid), types, asked.evaluator, prompts.form(asked.prompt))


def result_of(
    config: Config, stage: str, split: str, shots: int, answered: Sequence[Prediction]
) -> dict[str, Any]:
    """One row of `results`, percentages 0-100."""
    found = summarise(answered, config.seed)
    grid, types = as_grid(config.grid), vocabulary(config.rewards.vocabulary or "default")
    return {
        "stage": stage,
        "dataset": answered[0].dataset,
        "split": split,
        "shots": shots,
        **{name: found[name] for name in ("n", *HEADLINE, "ci95")},
        **found,
        "places": place_scores(answered, grid),
        "boxes": box_scores(answered),
        "reasoning": reasoning_scores(answered, grid, types),
        "votes": vote_scores(answered, config.seed),
    }


def vote_scores(answered: Sequence[Prediction], seed: int) -> dict[str, Any] | None:
    """How well the share of votes for "yes" ranks images; None where a picture has one answer, or
    a question has options."""
    if not all(one.votes and is_yes_no(one) for one in answered):
        return None
    ranked = summarise(by_votes(answered), seed)
    return {"samples": len(answered[0].votes), **{name: ranked[name] for name in RANKED}}


def more(asked: Evaluate, answers: Answers, seed: int) -> dict[str, Any]:
    """What `summary.json` holds of all answers beside `results`: `thresholds`, and the tables of
    `mmad` where it was asked."""
    limits: dict[Rule, float | None] = {"miss": asked.at_miss, "overkill": asked.at_overkill}
    found = {"thresholds": operating_points(answers, limits, seed)}
    tables = mmad.of_answers(answers, seed)
    return {**found, "mmad": tables} if tables else found
