"""Settings of `stage=audit` (`conf/stage/audit.yaml`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from iad_r1.schema import Evaluator

_Share = Annotated[float, Field(ge=0, le=1)]


class AuditLimits(BaseModel):
    """From where on a number is flagged. Shares are of completions unless said otherwise."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    answer_gap: _Share  # |share of an answer - share of that truth|
    entropy: Annotated[float, Field(ge=0)]  # of the answers, bits; below is a collapse
    degenerate: _Share  # share of groups whose completions all earn the same
    distinct: _Share  # share of completions that differ from every other; below is a collapse
    tag_only: _Share  # of the mean reward: what the tags earn without their text
    disagreement: _Share  # share that the loose set pays noticeably more than the strict one
    gap: _Share  # what "noticeably" is, as a share of what a perfect completion earns


class AuditStage(BaseModel):
    """`stage=audit`: what completions earn, and whether that can be trusted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: Literal["audit"]
    steps: list[Literal["audit"]]
    completions: str | None
    loose: str
    evaluator: Evaluator
    examples: Annotated[int, Field(ge=0)]
    limits: AuditLimits
