"""Data parallelism on one host: every rank holds the weights and a share of each batch.

The loss of a share is divided by counts over the whole batch, so gradients are summed over ranks
and one step is the same step however many ranks take it (up to the order of a float sum).
Without ranks every function here is the identity.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed import FileStore  # pyright: ignore[reportPrivateImportUsage]  documented

from iad_r1 import checkpoint
from iad_r1.errors import IadError, TrainingError

T = TypeVar("T")
RANK, WORLD = "IAD_R1_RANK", "IAD_R1_WORLD"
LAST_WORDS = 5.0  # seconds a failing rank has to print its error
PATIENCE = timedelta(minutes=30)  # a rank may wait this long for the slowest; a dead one is noticed


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes files, prints and logs."""
    return rank() == 0


@contextlib.contextmanager
def ranks(count: int, folder: Path) -> Iterator[None]:
    """Inside, `count` processes work on the run in `folder`; this one is rank 0 and starts the
    others, or is one of those.

    The others run the same worker on the same folder and end with this process. When one fails it
    prints its error, and the next exchange with it fails here.
    """
    mine = int(os.environ.get(RANK, "0"))
    if count == 1:
        yield
        return
    meeting = folder / ".ranks"
    if mine == 0:
        meeting.unlink(missing_ok=True)
    others = [_start(folder, number, count) for number in range(1, count)] if mine == 0 else []
    try:
        store = _meet(meeting, mine, count, others)
        dist.init_process_group("gloo", store=store, rank=mine, world_size=count, timeout=PATIENCE)
        yield
        dist.barrier()
    except BaseException as error:
        # A lost connection means that another rank failed: let it say why before it is stopped.
        lost = isinstance(error, RuntimeError) and not isinstance(error, IadError)
        _stop(others, LAST_WORDS if lost else 0.0)
        failed = [n for n, process in enumerate(others, 1) if (process.poll() or 0) > 0]
        if lost and failed:
            names = ", ".join(map(str, failed))
            raise TrainingError(
                f"failed with rank {names}; the first error stands above"
            ) from error
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        for process in others:
            process.wait()
        if mine == 0:
            meeting.unlink(missing_ok=True)


def _meet(
    meeting: Path, mine: int, count: int, others: Sequence[subprocess.Popen[bytes]]
) -> FileStore:
    """Wait until every rank is here. TrainingError if one ends before it is."""
    store = FileStore(str(meeting), count)
    store.set(f"here/{mine}", "yes")
    while not store.check([f"here/{number}" for number in range(count)]):
        for number, process in enumerate(others, 1):
            if process.poll() is not None:
                raise TrainingError(f"rank {number} ended at its start; its error stands above.")
        time.sleep(0.05)
    return store


def _stop(processes: Sequence[subprocess.Popen[bytes]], patience: float) -> None:
    """End the processes, those that end by themselves within `patience` seconds undisturbed."""
    deadline = time.monotonic() + patience
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.terminate()


def _start(folder: Path, number: int, count: int) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        RANK: str(number),
        WORLD: str(count),
        "IAD_R1_PARENT": str(os.getpid()),
    }
    return subprocess.Popen([sys.executable, "-m", "iad_r1.worker", str(folder)], env=environment)


def barrier() -> None:
    """Wait for every rank."""
    if world() > 1:
        dist.barrier()


@contextlib.contextmanager
def written_together(path: Path) -> Iterator[Path]:
    """`checkpoint.write_folder` for all ranks: each writes its own files into the one folder."""
    if is_main():
        with checkpoint.write_folder(path) as partial:
            everyone(partial)
            yield partial
            barrier()
    else:
        yield everyone(None)[0]  # type: ignore[misc]  # rank 0 gives its path
        barrier()
    barrier()


def share(items: Sequence[T]) -> list[T]:
    """This rank's items: every `world()`-th, so neighbours go to different ranks."""
    return list(items[rank() :: world()])


def gather(items: Sequence[T]) -> list[T]:
    """The inverse of `share`: every rank's items, in the order of the whole, on every rank."""
    if world() == 1:
        return list(items)
    parts: list[list[T]] = [[] for _ in range(world())]
    dist.all_gather_object(parts, list(items))
    return [parts[i % world()][i // world()] for i in range(sum(map(len, parts)))]


def everyone(item: T) -> list[T]:
    """One item of each rank, on every rank."""
    if world() == 1:
        return [item]
    found: list[T | None] = [None] * world()
    dist.all_gather_object(found, item)
    return found  # type: ignore[return-value]  # all filled by the call


def total(value: float) -> float:
    """The sum of a number over ranks."""
    if world() == 1:
        return value
    found = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(found)
    return found.item()


def sum_gradients(model: nn.Module) -> None:
    """Replace every gradient by its sum over ranks; a rank without one contributes zeros.

    A parameter that no rank has a gradient for keeps none, so the optimiser leaves it alone.
    """
    if world() == 1:
        return
    learning = [p for p in model.parameters() if p.requires_grad]
    found = torch.tensor([float(p.grad is not None) for p in learning])
    dist.all_reduce(found)
    learning = [p for p, count in zip(learning, found.tolist(), strict=True) if count]
    if not learning:
        return
    for parameter in learning:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    flat = torch.cat([p.grad.flatten() for p in learning if p.grad is not None])
    dist.all_reduce(flat)
    for parameter, part in zip(learning, flat.split([p.numel() for p in learning]), strict=True):
        parameter.grad = part.view_as(parameter)
