"""Data parallelism: every rank holds the weights (or its part of them) and a share of each batch.

The loss of a share is divided by counts over the whole batch, so gradients are summed over ranks
and one step is the same step however many ranks take it (up to the order of a float sum).
Without ranks every function here is the identity.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import torch
from torch import distributed as dist

from iad_r1.errors import ConfigError, MismatchError
from iad_r1.settings.engine import Processes
from iad_r1.store import checkpoints

T = TypeVar("T")
BUCKET = 2**26  # elements of gradients that are summed at once
PATIENCE = timedelta(minutes=30)  # a rank may wait this long for the slowest; a dead one is noticed


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes files, prints and logs."""
    return rank() == 0


@contextlib.contextmanager
def joined(engine: Processes) -> Iterator[None]:
    """Inside, the processes that torchrun started are the ranks of one run.

    They stay joined when the block fails: a rank's error is printed before the others hear that
    it is gone. ConfigError if torchrun did not start as many as the settings ask for.
    """
    wanted = engine.processes
    started = int(os.environ["WORLD_SIZE"]) if dist.is_torchelastic_launched() else 1
    if started != wanted:
        raise ConfigError(
            f"engine.hosts={engine.hosts} engine.ranks={engine.ranks} are {wanted} processes, but "
            f"{started} were started. Start the run with run.py, which does it, or prints how."
        )
    # DeepSpeed would look by itself, and say so, whenever a library looks whether it is there.
    os.environ.setdefault("DS_ACCELERATOR", device(engine).type)
    if not dist.is_torchelastic_launched():
        yield
        return
    backend = "gloo"
    if device(engine).type == "cuda":
        torch.cuda.set_device(device(engine))
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=PATIENCE)
    yield
    barrier()
    dist.destroy_process_group()


def device(engine: Processes) -> torch.device:
    """Where this rank's model lives. ConfigError if it should have a GPU and there is none left."""
    local = int(os.environ.get("LOCAL_RANK", "0"))
    gpus = torch.cuda.device_count()
    if engine.device == "cpu" or (engine.device == "auto" and gpus < engine.ranks):
        return torch.device("cpu")
    if gpus < engine.ranks:
        raise ConfigError(
            f"engine.device=cuda engine.ranks={engine.ranks}, but this host has {gpus} GPU(s), and "
            f"each rank needs one. Use engine.ranks={max(gpus, 1)}, or engine.device=cpu."
        )
    return torch.device("cuda", local)


def barrier() -> None:
    """Wait for every rank."""
    total(0.0)


@contextlib.contextmanager
def written_together(path: Path) -> Iterator[Path]:
    """`checkpoint.write_folder` for all ranks: each writes its own files into the one folder."""
    if is_main():
        with checkpoints.write_folder(path) as partial:
            everyone(partial)
            yield partial
            barrier()
    else:
        places: list[Any] = everyone(None)
        yield places[0]  # rank 0's
        barrier()
    barrier()


def check_same_folder(folder: Path, patience: float = 30.0) -> None:
    """ConfigError, on every rank, if one of them does not see within `patience` seconds what rank 0
    writes into `folder`: checkpoints are written together and read by all."""
    if world() == 1:
        return
    file: Path = folder / f".seen-{everyone(uuid4().hex)[0]}"
    if is_main():
        file.touch()
    barrier()
    deadline = time.monotonic() + patience
    while not (seen := file.exists()) and time.monotonic() < deadline:
        time.sleep(0.1)
    blind = [host for host, seen in everyone((socket.gethostname(), seen)) if not seen]
    if is_main():
        file.unlink()
    if blind:
        raise ConfigError(
            f"what rank 0 writes into the run folder {folder} is not seen on "
            f"{', '.join(dict.fromkeys(blind))}: checkpoints need one file system for all hosts. "
            "Start the run in a folder that they share, or on one host (engine.hosts=1)."
        )


def share(items: Sequence[T]) -> list[T]:
    """This rank's items: every `world()`-th, so neighbours go to different ranks."""
    return list(items[rank() :: world()])


def everyone(item: T) -> list[T]:
    """One item of each rank, on every rank.

    MismatchError if it holds a tensor on a device: another rank would get it on a device of its
    own, or of this rank, and could not compute with it. One rank alone refuses it as well.
    """
    _Sendable(io.BytesIO()).dump(item)
    if world() == 1:
        return [item]
    found: list[Any] = [None] * world()
    dist.all_gather_object(found, item)
    return found


class _Sendable(pickle.Pickler):
    """Goes through an object as if to send it, and stops at a tensor that is not in main memory."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, torch.Tensor) and obj.device.type != "cpu":
            raise MismatchError(
                f"a rank would send the others a tensor on {obj.device}. Only numbers, and tensors "
                "on the CPU, may cross ranks: it is a fault of ours, please report it."
            )
        return NotImplemented


def total(value: float) -> float:
    """The sum of a number over ranks."""
    if world() == 1:
        return value
    found = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(found)
    return found.item()


def sum_gradients(parameters: Iterable[torch.Tensor]) -> None:
    """Replace every gradient by its sum over ranks; a rank without one contributes zeros.

    A parameter that no rank has a gradient for keeps none, so the optimiser leaves it alone.
    """
    if world() == 1:
        return
    learning = [p for p in parameters if p.requires_grad]
    found = torch.tensor([float(p.grad is not None) for p in learning])
    dist.all_reduce(found)
    learning = [p for p, count in zip(learning, found.tolist(), strict=True) if count]
    if not learning:
        return
    for parameter in learning:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for bucket in _buckets(learning):
        flat = torch.cat([p.grad.flatten() for p in bucket if p.grad is not None])
        dist.all_reduce(flat)
        for parameter, part in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
            parameter.grad = part.view_as(parameter)


def _buckets(parameters: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Neighbours of together `BUCKET` elements, or a single larger one: what is summed at once is
    copied first."""
    bucket: list[torch.Tensor] = []
    for parameter in parameters:
        if bucket and sum(p.numel() for p in bucket) + parameter.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket
