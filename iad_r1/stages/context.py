"""What the stages of one run share."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from iad_r1.backbones.backbone import Backbone
from iad_r1.config import Config
from iad_r1.run_folder import RunFolder
from iad_r1.tracking import Tracker
from iad_r1.types import Dataset


@dataclass
class Context:
    """One run in flight.

    `backbone` is replaced as stages train it; `stage` names the last one that did
    (base, pretrain, sft or grpo).
    """

    config: Config
    folder: RunFolder
    tracker: Tracker
    dataset: Dataset
    backbone: Backbone
    stage: str

    @property
    def model(self) -> nn.Module:
        return self.backbone.model

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the time spent inside to `seconds` of summary.json."""
        start = time.perf_counter()
        yield
        self.folder.add_seconds(phase, time.perf_counter() - start)
