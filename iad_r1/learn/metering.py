"""What a step costs: seconds of each part, and the memory that ranks hold."""

from __future__ import annotations

import resource
import sys
import time

import psutil
import torch

from iad_r1.processes import distributed

MIB = 2**20


class Clock:
    """Seconds of each part of a step, from the moment it is made."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        """The time since the last lap was spent on `phase`; a phase may come more than once."""
        now = time.perf_counter()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
        self._last = now

    def scalars(self) -> dict[str, float]:
        """`seconds_<phase>` of every phase, and `seconds_step` of all."""
        named = {f"seconds_{phase}": value for phase, value in self.seconds.items()}
        return {**named, "seconds_step": self._last - self._start}


def peak_memory(device: torch.device) -> float:
    """MiB: on a GPU the most that was allocated since the last call, on the fullest GPU; on a CPU
    the most that a rank's process ever held. Every rank calls it."""
    if device.type == "cuda":
        mine = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
    else:
        unit = 1 if sys.platform == "darwin" else 1024
        mine = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return max(distributed.everyone(mine)) / MIB


def host_memory() -> float:
    """MiB of main memory that the largest rank's process holds now; what rises from step to step is
    a leak. Every rank calls it."""
    return max(distributed.everyone(psutil.Process().memory_info().rss)) / MIB
