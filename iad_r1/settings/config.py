"""What a run may be told, as one typed object: `config.json` in its run folder.

The options of `stage`, `data` and `benchmark` are modules: see `settings/modules.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from iad_r1.boxes import LocationFormat
from iad_r1.errors import ConfigError
from iad_r1.settings import rules
from iad_r1.settings.backbone import Backbone, Tuning, WeightsKind
from iad_r1.settings.base import Count0, Section
from iad_r1.settings.data import Reader
from iad_r1.settings.engine import Checkpoint, Engine, Memory
from iad_r1.settings.evaluate import Evaluate
from iad_r1.settings.grid import GridConfig
from iad_r1.settings.patchcore import Method, Patchcore
from iad_r1.settings.predict import JudgingSettings
from iad_r1.settings.rewards import RewardsConfig
from iad_r1.settings.rollout import RolloutEngine, VllmRollout
from iad_r1.settings.stage import ServedSettings, Stage, Task
from iad_r1.settings.store import StoreConfig
from iad_r1.settings.study import StudyRun
from iad_r1.settings.tracking import Tracking
from iad_r1.settings.training import Grpo, Pretrain, Sft


class Config(Section):
    """One run, complete."""

    name: Annotated[str, Field(pattern=r"^[\w.=,+-]+$")]
    seed: Count0
    protocol: Literal["any", "zero_shot"]
    init: str | None
    resume: str | None
    dry_run: bool
    study: StudyRun | None
    stage: Stage
    method: Method
    reference_choice: Literal["drawn", "nearest"]
    patchcore: Patchcore
    backbone: Backbone
    weights: WeightsKind
    data: Reader
    benchmark: dict[str, Reader]
    rewards: RewardsConfig
    grid: GridConfig
    location_format: LocationFormat
    tuning: Tuning
    rollout: RolloutEngine
    engine: Engine
    memory: Memory
    checkpoint: Checkpoint
    store: StoreConfig
    tracking: Tracking
    pretrain: Pretrain | None
    sft: Sft
    grpo: Grpo
    evaluate: Evaluate

    def tasks(self) -> list[Task]:
        """The tasks of this run: those of the stage, less pre-training where it has no place
        (a published backbone can see, and an earlier run was pre-trained already)."""
        grows_eyes = self.backbone.source == "built" and self.init is None
        return [task for task in self.stage.tasks if task != "pretrain" or grows_eyes]

    @property
    def engine_alone(self) -> bool:
        """Whether vLLM answers by itself, with weights that it reads from disk: nothing trains, so
        no model of transformers is loaded beside it. Random weights are on no disk."""
        only_asks = set(self.tasks()) in ({"evaluate"}, {"evaluate", "report"})
        only_asks = only_asks or isinstance(self.stage, JudgingSettings | ServedSettings)
        on_disk = self.weights.name != "random" or self.init is not None
        return only_asks and on_disk and isinstance(self.rollout, VllmRollout)


def load(text: str) -> Config:
    """Parse, type-check and cross-check the JSON of a resolved configuration.

    Raises ConfigError naming every setting that is wrong.
    """
    try:
        config = Config.model_validate_json(text)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(error, json.loads(text)))) from None
    problems = list(rules.contradictions(config))
    if problems:
        raise ConfigError("\n".join(problems))
    return config


def read(path: Path) -> Config:
    """The configuration in a `config.json`."""
    return load(path.read_text(encoding="utf-8"))


def _explain(error: ValidationError, values: Any) -> Iterator[str]:
    for item in error.errors():
        where = [str(part) for part in item["loc"]]
        key = ".".join(_without_union_tags(where, values))
        if item["type"] == "extra_forbidden":
            yield f"{key}: there is no such setting."
        elif item["type"] == "missing":
            yield f"{key}: this setting is missing."
        elif item["type"] == "union_tag_invalid":
            tag = item.get("ctx", {})
            name = str(tag.get("discriminator")).strip("'")
            yield f"{key}.{name}={tag.get('tag')}: must be one of {tag.get('expected_tags')}."
        elif item["input"] is None:
            what = item["msg"] if item["type"] == "no_value" else "value"
            source = item.get("ctx", {}).get("source", "")
            yield f"{key} has no value. Set it: {key}=<{what}>. {source}".rstrip()
        else:
            shown = json.dumps(item["input"]) if not isinstance(item["input"], dict) else "{...}"
            yield f"{key}={shown}: {_lower(item['msg'])}."


def _without_union_tags(where: list[str], values: Any) -> Iterator[str]:
    """The path as a user types it: pydantic adds the chosen variant of a union to it."""
    for index, part in enumerate(where):
        if isinstance(values, dict) and part not in values and index + 1 < len(where):
            continue
        yield part
        if isinstance(values, dict):
            values = values.get(part)
        elif isinstance(values, list) and part.isdigit() and int(part) < len(values):
            values = values[int(part)]


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
