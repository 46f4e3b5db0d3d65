"""What runs inside vLLM: the receiving end of the weights, with a check that none was lost.

`WeightIntake` is mixed into vLLM's worker (`worker_extension_cls`). Nothing here is imported by
training code; it needs vllm.
"""

# vllm is installed only where rollouts go through it
# pyright: reportMissingImports=false

from __future__ import annotations

import base64
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import set_current_vllm_config
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    VocabParallelEmbedding,
)
from vllm.model_executor.model_loader.reload.layerwise import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)
from vllm.multimodal.utils import group_and_batch_mm_kwargs
from vllm.platforms import current_platform

from iad_r1.rollouts.server import stream as weight_stream


@dataclass
class Intake:
    """What one synchronisation did.

    Attributes:
        tensors: how many were received.
        unknown: names that were sent and that no parameter of vLLM's took.
        missing: parameters of vLLM's that were not filled.
        sums: sum of the elements that went into each parameter, by its name in vLLM.
    """

    tensors: int = 0
    unknown: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)


class WeightIntake:
    """Methods that vLLM's worker gains; called through `collective_rpc`."""

    model_runner: Any
    vllm_config: Any
    iad_claimed: tuple[str, int, float] | None = None  # run, rank, until when
    iad_held: dict[str, Any] | None = None  # the last `Intake` from a trainer, with its version

    def iad_load(self, weights: Iterable[tuple[str, Tensor]]) -> Intake:
        """Replace all weights by those of `weights`, named as on the hub."""
        model = self.model_runner.get_model()
        with set_current_vllm_config(self.vllm_config), torch.no_grad():
            shared = shared_names(model)
            initialize_layerwise_reload(model)
            watch = _Watch(model, shared)
            try:
                model.load_weights(watch.passing(weights))
                watch.finish()
            finally:  # puts the layers together again, also those that were not sent
                finalize_layerwise_reload(model, self.vllm_config.model_config)
                repack_tied_head(model)
        return watch.intake

    def iad_sums(self) -> dict[str, float]:
        """Sum of the elements of every parameter as it is now, by name. Parameters that the CPU
        kernels keep in a packed form of their own are left out: they cannot be read."""
        model = self.model_runner.get_model()
        return {
            name: parameter.sum(dtype=torch.float64).item()
            for name, parameter in model.named_parameters()
            if parameter.numel()
        }

    # --- of a server: what is asked over HTTP, so arguments and answers are plain values ---------

    def iad_claim(self, run: str, rank: int, seconds: float) -> dict[str, bool]:
        """Whether a rank may change the weights: no other one of its run is at it, or that one has
        been for longer than it wanted to."""
        now, held = time.monotonic(), self.iad_claimed
        granted = held is None or held[0] != run or held[1] == rank or now > held[2]
        if granted:
            self.iad_claimed = (run, rank, now + seconds)
        return {"granted": granted}

    def iad_release(self) -> None:
        """The rank that changed the weights is done."""
        self.iad_claimed = None

    def iad_receive(
        self, host: str, port: int, token: str, version: str, timeout: float
    ) -> dict[str, Any]:
        """`iad_load` from the trainer that listens at `host:port` (see `weight_stream`); the
        `Intake` as a dictionary. Weights of this version that are there already stay.

        Args:
            timeout: seconds without a byte until the trainer counts as gone.
        """
        held = self.iad_held
        if held is None or held["version"] != version:
            self.iad_held = None  # until all of them are there
            intake = self.iad_load(weight_stream.receive(host, port, token, timeout))
            self.iad_held = held = {"version": version, **asdict(intake)}
        return held

    def iad_watch_pictures(self) -> None:
        """From now on keep what is handed to the vision tower, until `iad_seen_pictures`."""
        self.iad_seen: list[Mapping[str, Any]] = []
        for module in runner_modules():
            module.group_and_batch_mm_kwargs = self._watched_batches

    def _watched_batches(self, items: Any, **how: Any) -> Iterator[Any]:
        self.iad_seen += [item.get_data() for _, item in items]
        return group_and_batch_mm_kwargs(items, **how)

    def iad_seen_pictures(self) -> list[dict[str, Any]]:
        """The tensors of each picture since `iad_watch_pictures`, which this ends: by name, as
        dtype, shape and base64 of their bytes."""
        for module in runner_modules():
            module.group_and_batch_mm_kwargs = group_and_batch_mm_kwargs
        return [
            {key: as_text(torch.as_tensor(value)) for key, value in picture.items()}
            for picture in self.iad_seen
        ]


def runner_modules() -> list[Any]:
    """The modules from which vLLM calls vision towers, of those that this process runs."""
    names = ("vllm.v1.worker.gpu_model_runner", "vllm.v1.worker.gpu.mm.encoder_runner")
    return [sys.modules[name] for name in names if name in sys.modules]


def as_text(tensor: Tensor) -> dict[str, Any]:
    """A tensor as values that JSON can hold."""
    flat = tensor.detach().cpu().contiguous().view(-1)
    return {
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
        "data": base64.b64encode(flat.view(torch.uint8).numpy().tobytes()).decode(),
    }


def repack_tied_head(model: nn.Module) -> None:
    """On a CPU the output layer multiplies a packed copy of its weights, and a tied one is not
    told that the embedding has changed: pack it again."""
    if not current_platform.is_cpu():
        return
    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            head: Any = module
            head.quant_method.process_weights_after_loading(module)


class _Watch:
    """Follows each tensor from the sender into a parameter, by the storage it lies in."""

    def __init__(self, model: nn.Module, shared: Sequence[set[str]]) -> None:
        self.shared = shared
        self.intake = Intake()
        self.taken: set[int] = set()  # storages that a parameter took since the last tensor
        self.pending: list[tuple[str, Tensor]] = []  # kept, so that no storage is used again
        self.parts = {
            f"{path}.{name}".lstrip("."): (module, parameter)
            for path, module in model.named_modules()
            for name, parameter in module.named_parameters(recurse=False)
        }
        self.filled: dict[str, int] = dict.fromkeys(self.parts, 0)
        for name, (_, parameter) in self.parts.items():
            taker: Any = parameter
            taker.weight_loader = self._watched(name, taker.weight_loader)

    def _watched(self, name: str, loader: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(loader)  # keeps the name by which vLLM finds and unwraps its own wrapper
        def watched(parameter: Tensor, loaded: Tensor, *args: Any, **kwargs: Any) -> Any:
            self.taken.add(loaded.untyped_storage().data_ptr())
            self.filled[name] += loaded.numel()
            sums, found = self.intake.sums, loaded.sum(dtype=torch.float64).item()
            sums[name] = sums.get(name, 0.0) + found
            return loader(parameter, loaded, *args, **kwargs)

        return watched

    def passing(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in weights:
            self.intake.tensors += 1
            self.pending.append((name, tensor))
            yield name, tensor
            self._settle()

    def _settle(self) -> None:
        left = [
            (name, tensor)
            for name, tensor in self.pending
            if tensor.untyped_storage().data_ptr() not in self.taken
        ]
        self.pending = left
        if not left:
            self.taken.clear()

    def finish(self) -> None:
        """Name what was lost on the way; called before vLLM puts its layers together again."""
        self._settle()
        self.intake.unknown = [name for name, _ in self.pending]
        self.intake.missing = [
            name
            for name, (module, parameter) in self.parts.items()
            if self._filled(name) < wanted(module, parameter)
        ]

    def _filled(self, name: str) -> int:
        """Elements that went into a parameter, under whichever name it is shared by."""
        same = next((names for names in self.shared if name in names), {name})
        return max(self.filled.get(other, 0) for other in same)


def shared_names(model: nn.Module) -> list[set[str]]:
    """Sets of names of one and the same parameter, as of a tied output layer."""
    names: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), set()).add(name)
    return [same for same in names.values() if len(same) > 1]


def wanted(module: Any, parameter: nn.Parameter) -> int:
    """Elements that a checkpoint holds for a parameter: an embedding is padded beyond them."""
    if isinstance(module, VocabParallelEmbedding):
        return module.org_vocab_size * module.embedding_dim
    return parameter.numel()
