"""What the stages of one run share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from iad_r1.backbones.backbone import Backbone
from iad_r1.backbones.packing import Packing, choose_packing
from iad_r1.processes import distributed
from iad_r1.settings.config import Config
from iad_r1.store.products import Product
from iad_r1.store.progress import Bar, progress
from iad_r1.store.run_folder import RunFolder
from iad_r1.store.tracking import Tracker
from iad_r1.types import Dataset


@dataclass
class Run:
    """One run in flight. Only rank 0 has a tracker, prints and writes.

    `stage` names the last stage that trained (base, pretrain, sft or grpo). `backbone` is None
    where an outside model is asked.
    """

    config: Config
    folder: RunFolder
    tracker: Tracker | None
    dataset: Dataset
    backbone: Backbone | None
    stage: str

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """One line of metrics.jsonl."""
        if self.tracker is not None:
            self.tracker.log(stage, step, values)

    def log_rollouts(self, stage: str, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """One table of completions in rollouts/."""
        if self.tracker is not None:
            self.tracker.rollouts(stage, step, rows)

    def made(self, product: Callable[[], Product]) -> None:
        """Show what was made to a tracker (`store/products.py`)."""
        if self.tracker is not None:
            self.tracker.made(product)

    def rewind(self, stage: str, step: int) -> None:
        """Forget what was logged of a stage from `step` on: those steps are taken again."""
        if self.tracker is not None:
            self.tracker.rewind(stage, step)

    def flush(self) -> None:
        """Have the disk hold what was logged so far."""
        if self.tracker is not None:
            self.tracker.flush()

    def progress(self, name: str, total: int) -> AbstractContextManager[Bar]:
        """A progress bar, on rank 0."""
        return progress(name, total) if distributed.is_main() else nullcontext(Bar())

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the time spent inside to `seconds` of summary.json."""
        start = time.perf_counter()
        yield
        if distributed.is_main():
            self.folder.add_seconds(phase, time.perf_counter() - start)


@dataclass
class Context(Run):
    """One run that holds the weights: `backbone` is replaced as stages train it."""

    backbone: Backbone

    @property
    def model(self) -> Any:
        return self.backbone.model

    @cached_property
    def packing(self) -> Packing:
        """How groups are computed, `grpo.packing=auto` decided: on every rank alike, and written
        to the manifest with the kernels. ConfigError if no kernel does what was asked for."""
        wanted = self.config.grpo.packing
        chosen, through = choose_packing(wanted, self.model)
        if any(other != chosen for other in distributed.everyone(chosen)):
            chosen, through = "group", "SDPA, because kernels fail on another rank"
        if distributed.is_main():
            self.folder.update_manifest(packing={"chosen": chosen, "through": through})
            if self.model.device.type != "cpu":
                print(f"attention: grpo.packing={chosen}, through {through}", flush=True)
        return chosen
