"""Checkpoints of a stage while it trains, and the way back into it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import nn

from iad_r1.errors import Terminated
from iad_r1.learn import guards
from iad_r1.learn.context import Context
from iad_r1.learn.learner import Learner
from iad_r1.processes import distributed
from iad_r1.store import checkpoints
from iad_r1.store.checkpoints import Unfinished
from iad_r1.store.progress import Bar
from iad_r1.store.run_folder import write_json

# What "best" means: the mean of this metric over the steps since the checkpoint before.
BEST = {"pretrain": ("loss", min), "sft": ("loss", min), "grpo": ("reward", max)}


class Batches(Protocol):
    """What a loop has made of batches that are still to be learned."""

    def save(self, folder: Path) -> None:
        """Write it into a checkpoint; rank 0 calls it."""

    def load(self, folder: Path, step: int) -> None:
        """Take it up from the checkpoint after `step` steps; every rank calls it."""


class Saver:
    """Writes the checkpoints of one leg of a stage, and takes the leg up from the newest of them.

    A stage has one leg, or several with an optimiser of their own (the phases of PA-SFT); its
    steps are numbered through. A checkpoint falls between two batches, so of rollouts those alone
    have to be kept that were drawn ahead.

    Args:
        learner: of this leg.
        first, last: the leg's steps are `range(first, last)`.
        extra: modules beside the model that learn too, by name.
        batches: what was drawn ahead, if anything is.
        judge: the score of the weights as they are, higher is better, with what else is known of
            it. The weights before the first step and those of every checkpoint are judged, and
            of the best, the earliest of equals, `take_best` makes the model.
    """

    def __init__(
        self,
        context: Context,
        stage: str,
        learner: Learner,
        first: int,
        last: int,
        *,
        leg: int = 0,
        extra: Mapping[str, nn.Module] | None = None,
        batches: Batches | None = None,
        judge: Callable[[], Mapping[str, float]] | None = None,
    ) -> None:
        self.context, self.stage, self.learner = context, stage, learner
        self.first, self.last, self.leg = first, last, leg
        self.extra, self.batches, self.judge = extra or {}, batches, judge
        self.settings = context.config.checkpoint
        self.every = learner.settings.save_every
        self.asked_to_stop: list[int] = []
        self.folder = context.folder.path / "checkpoints"
        self.best: dict[str, Any] = {"step": None, "value": None, "judged": []}
        self.since: list[float] = []  # of the metric that decides what is best
        self.frozen: dict[str, int] = {}  # what does not learn in the leg, as it began

    def steps(self, bar: Bar) -> Iterator[int]:
        """The steps of the leg that are still to be taken, from the newest checkpoint on.

        While they last, SIGTERM waits for the end of a step, and the run is saved then.
        """
        with _terminate_later() as self.asked_to_stop:
            start = self._resume()
            bar.skip(start - self.first)
            with self.learner.whole():
                self.frozen = guards.frozen_bits(self.learner.model)
            if self.judge is not None and not self.best["judged"]:
                self.save(self.first)
            yield from range(start, self.last)
            with self.learner.whole():
                self._check_frozen(self.last)

    def done(self, step: int, values: Mapping[str, float]) -> None:
        """Say that `step` was taken, with its metrics; writes a checkpoint when one is due.

        Raises Terminated, after writing one, if the run was asked to stop.
        """
        self.since.append(values[BEST[self.stage][0]])
        stopping = distributed.total(float(bool(self.asked_to_stop))) > 0
        due = (step + 1 - self.first) % self.every == 0
        due |= self.judge is not None and step + 1 == self.last
        if due or stopping:
            self.save(step + 1, candidate=due)
        if stopping:
            raise Terminated

    def save(self, step: int, candidate: bool = True) -> None:
        """Write the checkpoint after `step` steps of the stage. One that is written because the run
        was asked to stop is no `candidate` to be judged: an undisturbed run has none there."""
        if self.judge is None:
            self._note_best(step)
        elif candidate:
            self._note_judged(step, self.judge())
        path = checkpoints.unfinished_path(self.folder, self.stage, step)
        if distributed.is_main():
            self.context.flush()
        with distributed.written_together(path) as partial:
            self._write(partial, step)
        if distributed.is_main():
            checkpoints.retire(self.folder, self.stage, self.settings.keep, self._kept_best())
        distributed.barrier()

    def _write(self, partial: Path, step: int) -> None:
        self.learner.save(partial)
        torch.save(checkpoints.random_state(), partial / _random_file())
        with self.learner.whole(self.learner.model, *self.extra.values()):
            self._check_frozen(step)
            if not distributed.is_main():
                return
            self.context.backbone.write(partial)
            for name, module in self.extra.items():
                torch.save(module.state_dict(), partial / f"{name}.pt")
        if self.batches is not None:
            self.batches.save(partial)
        write_json(
            partial / checkpoints.STATE,
            {"step": step, "leg": self.leg, "ranks": distributed.world(), "best": self.best},
        )

    def _check_frozen(self, step: int) -> None:
        where = f"after {step} steps of {self.stage}"
        guards.check_frozen(self.learner.model, self.frozen, where)

    def _note_best(self, step: int) -> None:
        if not self.since:
            return
        value, better = sum(self.since) / len(self.since), BEST[self.stage][1]
        self.since = []
        if self.best["value"] is None or better(value, self.best["value"]) == value:
            self.best = {**self.best, "step": step, "value": value}

    def _note_judged(self, step: int, found: Mapping[str, float]) -> None:
        judged = [*self.best["judged"], {"step": step, **found}]
        best = max(judged, key=itemgetter("score"))  # the first of equals
        self.best = {"step": best["step"], "value": best["score"], "judged": judged}

    def _kept_best(self) -> int | None:
        return self.best["step"] if self.settings.best or self.judge is not None else None

    def take_best(self) -> None:
        """Make the model, whole on every rank again, that of the checkpoint that was judged best;
        without a judge it stays as it is."""
        if self.judge is not None:
            path = checkpoints.unfinished_path(self.folder, self.stage, self.best["step"])
            self.context.backbone.read(path)

    # --- the way back ---------------------------------------------------------------------------

    def _resume(self) -> int:
        found = checkpoints.unfinished(self.folder, self.stage)
        if not found:
            self.context.rewind(self.stage, self.first)  # a run killed before its first checkpoint
            return self.first
        newest = found[-1]
        state = newest.state
        if state["leg"] > self.leg:
            return self.last
        if newest.step < self.first:  # of an earlier leg, which has gone on since
            return self.first
        self._load_weights(newest)
        self.best = state["best"]
        if state["leg"] == self.leg:
            self.learner.load(newest.path)
            if self.batches is not None:
                self.batches.load(newest.path, newest.step)
            self._load_random(newest)
        self.context.rewind(self.stage, newest.step)
        if distributed.is_main():
            print(f"{self.stage} goes on after step {newest.step}", flush=True)
        return newest.step

    def _load_weights(self, found: Unfinished) -> None:
        device = self.context.model.device
        with self.learner.whole(self.learner.model, *self.extra.values(), change=True):
            self.context.backbone.read(found.path)
            for name, module in self.extra.items():
                path = found.path / f"{name}.pt"
                module.load_state_dict(torch.load(path, map_location=device, weights_only=True))

    def _load_random(self, found: Unfinished) -> None:
        """Of as many ranks as were saved; a further rank keeps the streams it was started with."""
        path = found.path / _random_file()
        if path.is_file():
            checkpoints.set_random_state(torch.load(path, weights_only=False))


def _random_file() -> Path:
    return Path(f"random-rank{distributed.rank()}.pt")


@contextmanager
def _terminate_later() -> Iterator[list[int]]:
    """Inside, SIGTERM only leaves its number in the list. Raises Terminated at the end if it came
    and nobody has looked since."""
    asked: list[int] = []

    def remember(number: int, _frame: FrameType | None) -> None:
        asked.append(number)

    before = signal.signal(signal.SIGTERM, remember)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)
    if asked:
        raise Terminated
