"""The `tracking` section. Values: `conf/tracking/`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from iad_r1.settings.base import Above0, AtLeast0, Count0, Section

Mode = Literal["auto", "online", "offline", "disabled"]
Text = Annotated[str, Field(min_length=1)]


class NoTracking(Section):
    """`metrics.jsonl` and `rollouts/` alone, which are always written."""

    name: Literal["none"]


class Tracked(Section):
    """Where numbers go besides: what every tracker is told."""

    rollout_rows: Count0
    init_timeout: Above0  # seconds
    finish_timeout: Above0  # seconds


class WandbTracking(Tracked):
    """Weights & Biases."""

    name: Literal["wandb"]
    mode: Mode
    project: Text
    entity: str | None
    group: str | None
    tags: list[str]
    upload_mib: AtLeast0


class TensorboardTracking(Tracked):
    """TensorBoard's event files."""

    name: Literal["tensorboard"]


class MlflowTracking(Tracked):
    """MLflow."""

    name: Literal["mlflow"]
    uri: Text | None
    project: Text
    group: str | None
    upload_mib: AtLeast0


Tracking = Annotated[
    NoTracking | WandbTracking | TensorboardTracking | MlflowTracking, Field(discriminator="name")
]
