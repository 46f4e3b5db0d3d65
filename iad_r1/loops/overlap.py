"""Drawing a batch while the batch before it is learned (`grpo.overlap`): one step off-policy.

A step synchronises the sampler, starts the draw of the next batch in a thread, learns its own
batch, and waits for the draw. So weights are never sent while completions are drawn. Between two
steps nothing is under way: a checkpoint holds the batch that is drawn already, and a resumed run
learns what an undisturbed one would.

The thread asks the sampler and nothing else. What ranks tell each other, rewards, and what is drawn
anew for groups without a signal, follow when it has ended.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from iad_r1.errors import MismatchError
from iad_r1.learn.metering import Clock
from iad_r1.loops.collect import Asked, Collected, Collector
from iad_r1.store.run_folder import write_json
from iad_r1.types import Sample

FILE = "drawn.json"  # in a checkpoint


class DrawFailed(Exception):
    """The draw beside the learning has failed, with an error that is told when this arrives."""


class Overlap:
    """The batches of SC-GRPO in their order, each drawn `overlap` steps before it is learned.

    Args:
        collector: draws and scores; closed when a step fails while a draw is under way.
        batches: of the whole stage.
        overlap: 0: every batch is drawn when its step begins; 1: beside the step before.
    """

    def __init__(
        self, collector: Collector, batches: Sequence[Sequence[Sample]], overlap: int
    ) -> None:
        self.collector, self.batches, self.overlap = collector, batches, overlap
        self.next: Collected | None = None  # drawn, and not learned yet
        self._drawing: Future[Asked] | None = None

    def take(self, step: int, clock: Clock) -> Collected:
        """The batch of a step: as it was drawn beside the step before, or drawn now.

        MismatchError if weights drew it that are older than `overlap` batches, or if sampler and
        trainer disagree on its prompts now that both hold the same weights.
        """
        drawn, self.next = self.next, None
        if drawn is None:
            drawn = self.collector.collect(self.batches[step], step, clock, self._after(step))
        ages = [step - group.version for group in drawn.groups]
        if not 0 <= min(ages) <= max(ages) <= self.overlap:
            raise MismatchError(
                f"grpo step {step}: a group was drawn by weights that are {max(ages)} batches old "
                f"(at least {min(ages)}; grpo.overlap={self.overlap} allows 0 to {self.overlap}). "
                "It is not learned from. Use grpo.overlap=0, and report this."
            )
        if not self.overlap:
            return drawn
        found = self.collector.agree(drawn.prompts, step, clock)
        return replace(drawn, statistics={**drawn.statistics, **found, "staleness": max(ages)})

    @contextmanager
    def beside(self, step: int, clock: Clock) -> Iterator[None]:
        """Inside, the batch before `step` is learned; at the end that of `step` is drawn.

        What goes wrong inside ends the draw; what goes wrong with the draw is raised here, as soon
        as `check` is called or the block ends.
        """
        if not self.overlap or step >= len(self.batches):
            yield
            return
        self.collector.let_weights_move()
        with ThreadPoolExecutor(max_workers=1) as thread:
            self._drawing = thread.submit(self._ask, step)
            try:
                with suppress(DrawFailed):
                    yield
                asked = self._drawing.result()
            except BaseException:
                self.collector.close()  # ends the thread, which is waited for
                raise
            finally:
                self._drawing = None
        clock.lap("sample")
        self.next = self.collector.collect(self.batches[step], step, clock, asked=asked)

    def check(self) -> None:
        """DrawFailed if the draw that is under way has failed."""
        drawing = self._drawing
        if drawing is not None and drawing.done() and drawing.exception() is not None:
            raise DrawFailed

    def _ask(self, step: int) -> Asked:
        asked = dict(enumerate(self.batches[step]))
        return self.collector.ask(asked, step, 0, Clock(), self._after(step))

    def _after(self, step: int) -> Sequence[Sample]:
        """The batch whose pictures are prepared meanwhile."""
        return self.batches[step + 1] if step + 1 < len(self.batches) else ()

    # --- checkpoints ----------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write the batch that is drawn and not learned yet; rank 0 calls it, and knows all of
        it."""
        if self.next is not None:
            write_json(folder / FILE, self.next.as_json())

    def load(self, folder: Path, step: int) -> None:
        """Take up what `save` wrote after `step` steps, on any number of ranks. Before the first
        nothing is drawn."""
        if self.overlap and 0 < step < len(self.batches):
            found = json.loads((folder / FILE).read_text(encoding="utf-8"))
            self.next = self.collector.collected(found, self.batches[step], step)
