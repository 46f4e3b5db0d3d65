"""The `evaluate` section. Values: `conf/recipe/`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from iad_r1.settings.base import Count, Count0, Percent, Pictures


class Evaluate(Pictures):
    """Answers on held-out images, and what is computed from them.

    With `samples` above 1 that many are drawn at `temperature`; else the one answer is greedy.
    `at_miss` and `at_overkill` are the rates, in percent, that thresholds of the score are to
    keep; null: no such threshold is looked for. `choices` says what answers a question with
    options: the text, or the likeliest of their letters where the answer is written.
    """

    prompt: str
    splits: Annotated[list[Literal["validation", "test"]], Field(min_length=1)]
    shots: Annotated[list[Count0], Field(min_length=1)]
    evaluator: Literal["strict", "iadr1_compat", "mmad_compat"]
    choices: Literal["text", "logprob"]
    max_tokens: Count
    max_length: Count | None
    batch_size: Count
    limit: Count | None
    samples: Count
    temperature: Annotated[float, Field(gt=0, le=2)]
    at_miss: Percent | None
    at_overkill: Percent | None
