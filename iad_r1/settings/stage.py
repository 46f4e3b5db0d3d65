"""The `stage` section. Values: `conf/stage/`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, SerializeAsAny

from iad_r1.settings import modules
from iad_r1.settings.base import Section

Task = Literal["pretrain", "sft", "grpo", "evaluate", "report"]


class StageSettings(Section):
    """What every stage is told; one that is told more adds it in its own module.

    `tasks` are what a stage that opens weights does with them, in this order; others have none.
    """

    name: str
    tasks: list[Task]


class ServedSettings(StageSettings):
    """Where a stage is served, and to whom."""

    host: str
    port: Annotated[int, Field(ge=1, le=65535)]
    key: Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")]  # the variable that holds the token


Stage = Annotated[SerializeAsAny[StageSettings], modules.typed_by("iad_r1.stages")]
