"""The `engine`, `memory` and `checkpoint` sections: processes and precision, what is assumed of a
GPU's memory, and which checkpoints are kept."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from iad_r1.settings.base import AtLeast0, Count, Count0, Section


class Processes(Section):
    """Where and in which precision the model runs: what every engine is told."""

    hosts: Count
    ranks: Count
    threads: Count
    picture_threads: Count0
    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["float32", "bfloat16"]

    @property
    def processes(self) -> int:
        """Ranks on all hosts together."""
        return self.hosts * self.ranks


class SingleEngine(Processes):
    """Every rank holds all weights and optimiser states."""

    name: Literal["single"]


class ZeroEngine(Processes):
    """DeepSpeed: optimiser states and gradients, and in stage 3 weights, are spread over ranks."""

    name: Literal["zero2", "zero3"]
    offload: Literal["none", "cpu"]


Engine = Annotated[SingleEngine | ZeroEngine, Field(discriminator="name")]


class Memory(Section):
    """What is assumed where memory is predicted, whether a run that does not fit is refused, and
    what may be kept."""

    check: bool
    overhead: AtLeast0  # GiB of each GPU: CUDA's context, libraries' workspaces, NCCL
    workspace: AtLeast0  # GiB of a vLLM engine, beside its weights and cache
    margin: Annotated[float, Field(ge=0, lt=1)]  # share of the memory that must stay free
    features: AtLeast0  # GiB of main memory of each rank, for features of a frozen tower


class Checkpoint(Section):
    """Which checkpoints of a stage in training are kept. The end of a stage always is."""

    keep: Count
    best: bool
