"""Pictures prepared beside the training thread: those of the next batch while a batch is worked on.

On threads, for decoding, resizing and scaling let other threads run meanwhile
(`bench/pictures.py`). Nothing is copied from one process to another, nothing is forked beside a
GPU, and threads end with their process, however it ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Asked = TypeVar("Asked")
Made = TypeVar("Made")


class Ahead(Generic[Asked, Made]):
    """Makes something of every item of a batch. What is made, and which error ends it, does not
    depend on the number of threads. At most one batch beside the one in use is held.

    Args:
        make: called on several threads at once.
        threads: 0 makes everything on the caller's own, when it is asked for.
    """

    def __init__(self, make: Callable[[Asked], Made], threads: int) -> None:
        self.make = make
        self.pool = ThreadPoolExecutor(threads, "pictures") if threads else None
        self.next: list[Asked] = []
        self.begun: list[Future[Made]] = []  # of `next`

    def take(self, asked: Sequence[Asked], then: Sequence[Asked] = ()) -> list[Made]:
        """What is made of each item `asked` for, in their order; that of the items of `then` is
        begun, to be asked for next. Raises what `make` raises for the first item that fails.
        """
        if self.pool is None:
            return [self.make(item) for item in asked]
        if self.next == list(asked):
            making, self.next, self.begun = self.begun, [], []
        else:
            making = self._begin(self.pool, asked)
        made = [one.result() for one in making]
        if then:
            self._forget()
            self.next, self.begun = list(then), self._begin(self.pool, then)
        return made

    def close(self) -> None:
        """Make nothing more; what is being made at this moment is waited for."""
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)
            self._forget()

    def _begin(self, pool: ThreadPoolExecutor, items: Sequence[Asked]) -> list[Future[Made]]:
        return [pool.submit(self.make, item) for item in items]

    def _forget(self) -> None:
        for one in self.begun:
            one.cancel()
        self.next, self.begun = [], []

    def __enter__(self) -> Ahead[Asked, Made]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
