"""Optimiser, schedule and the checks around one update, shared by all training stages."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import get_scheduler

from iad_r1.backbones.families import PARTS, Part, part_of
from iad_r1.errors import TrainingError
from iad_r1.processes import distributed
from iad_r1.settings.training import Length

T = TypeVar("T")


def is_vision(name: str) -> bool:
    """Whether a parameter belongs to the vision side: the tower, or the projector behind it."""
    return part_of(name) != "language"


def optimizer(
    model: nn.Module,
    *,
    learning_rate: float,
    betas: Sequence[float],
    weight_decay: float,
    vision_lr_scale: float,
    offloaded: bool = False,
) -> torch.optim.AdamW:
    """AdamW over what requires a gradient; the vision tower at `learning_rate * vision_lr_scale`.

    Biases, norms and embeddings of one dimension are not decayed. On a GPU, and where its states
    are `offloaded` from one, it is torch's fused kernel: the default one holds square roots of all
    second moments at once, and works on one thread of a CPU.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((is_vision(name), parameter.ndim > 1), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": learning_rate * (vision_lr_scale if vision else 1.0),
                "weight_decay": weight_decay if decayed else 0.0,
            }
            for (vision, decayed), parameters in groups.items()
        ],
        betas=(betas[0], betas[1]),
        fused=offloaded or next(model.parameters()).is_cuda or None,
    )


def n_steps(length: Length, items: int, batch_size: int) -> int:
    """Optimiser steps until `length.steps` or `length.epochs` ends training, whichever is first."""
    limits = [length.steps] if length.steps is not None else []
    if length.epochs is not None:
        limits.append(max(1, math.ceil(length.epochs * items / batch_size)))
    return min(limits)


def train_only(model: nn.Module, *, vision: bool, parts: Collection[Part] = PARTS) -> None:
    """Let the parameters of these parts learn, those of the vision side only if `vision`.

    Under LoRA the base weights stay frozen: only what peft made trainable is switched.
    """
    lora = any("lora_" in name for name, _ in model.named_parameters())
    for name, parameter in model.named_parameters():
        part = part_of(name)
        learns = part in parts and (vision or part == "language")
        parameter.requires_grad_(learns and (not lora or "lora_" in name))


@contextmanager
def gradient_checkpointing(model: Any, wanted: bool) -> Iterator[None]:
    """Inside, if `wanted`, layers keep their inputs alone and run again in the backward pass."""
    if wanted:
        # non-reentrant: the reentrant one has no gradient where a layer's input needs none (LoRA)
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    yield
    if wanted:
        model.gradient_checkpointing_disable()


def lr(optim: torch.optim.Optimizer) -> float:
    """The learning rate of the language model in the next step."""
    return max(group["lr"] for group in optim.param_groups)


def check_finite(loss: torch.Tensor, where: str) -> None:
    """TrainingError before a NaN or infinite loss can reach the weights."""
    if not torch.isfinite(loss):
        raise TrainingError(
            f"{where}: the loss is {loss.item()}. The weights were not updated; lower the "
            "learning rate or look at the last rows of metrics.jsonl."
        )


def not_finite(norm: float, where: str) -> TrainingError:
    """What to raise instead of taking a step with a NaN or infinite gradient."""
    return TrainingError(
        f"{where}: the gradient norm is {norm}. The weights were not updated; lower the "
        "learning rate or look at the last rows of metrics.jsonl."
    )


def scheduler(
    optim: torch.optim.Optimizer, name: str, warmup_steps: int, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """One of transformers' schedules by name (`cosine`, `linear`, `constant_with_warmup`, ...)."""
    return get_scheduler(name, optim, num_warmup_steps=warmup_steps, num_training_steps=steps)


def update(
    model: nn.Module,
    optim: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    max_grad_norm: float,
    where: str,
    masters: Sequence[tuple[nn.Parameter, torch.Tensor]] = (),
) -> float:
    """Sum over ranks, clip, step and clear; returns the gradient norm before clipping.

    `masters`: weights with the float32 copies that `optim` steps in their place, and that hold
    their gradients.

    TrainingError if the gradient is not finite: the weights are then left as they were.
    """
    copies = {id(weight): master for weight, master in masters}
    learned = [copies.get(id(weight), weight) for weight in model.parameters()]
    distributed.sum_gradients(learned)
    norm = nn.utils.clip_grad_norm_(learned, max_grad_norm)
    if not torch.isfinite(norm):
        raise not_finite(float(norm), where)
    optim.step()
    schedule.step()
    with torch.no_grad():
        for weight, master in masters:
            weight.copy_(master)
    optim.zero_grad(set_to_none=True)
    model.zero_grad(set_to_none=True)
    return float(norm)


def masters(optim: torch.optim.Optimizer) -> list[tuple[nn.Parameter, torch.Tensor]]:
    """Have a fresh optimiser step float32 copies of the weights that are of another precision;
    returns each weight with its copy.
    """
    found = []
    for group in optim.param_groups:
        for index, weight in enumerate(group["params"]):
            if weight.dtype != torch.float32:
                master = weight.detach().float().requires_grad_()
                group["params"][index] = master
                found.append((weight, master))
    return found


def hand_over(weight: nn.Parameter, master: torch.Tensor) -> RemovableHandle:
    """Add every gradient of a weight to that of its float32 copy as soon as a backward pass has it.

    So micro-batches are added in float32, and no gradient stands there twice.
    """

    def move(weight: torch.Tensor) -> None:
        assert weight.grad is not None
        if master.grad is None:
            master.grad = weight.grad.float()
        else:
            master.grad.add_(weight.grad)
        weight.grad = None

    return weight.register_post_accumulate_grad_hook(move)


def batches(items: Sequence[T], size: int, steps: int, seed: int) -> list[list[T]]:
    """`steps` batches; every item once per epoch, each epoch in its own order.

    A batch may span two epochs, so every batch is full and no item is dropped.
    """
    stream = _epochs(items, seed)
    return [[next(stream) for _ in range(size)] for _ in range(steps)]


def _epochs(items: Sequence[T], seed: int) -> Iterator[T]:
    if not items:
        raise TrainingError("there is nothing to train on: the list of samples is empty")
    generator = torch.Generator().manual_seed(seed)
    while True:
        for index in torch.randperm(len(items), generator=generator).tolist():
            yield items[index]
