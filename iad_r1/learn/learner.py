"""The weights that learn, with their optimiser and schedule, on one process or several."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from iad_r1.learn import optim
from iad_r1.processes import distributed
from iad_r1.settings.engine import Engine
from iad_r1.settings.training import Optimiser

STATE = "optimiser.pt"
Part = Callable[[], Tensor]  # computes a loss


class Learner:
    """AdamW on every rank, over gradients summed across ranks.

    Weights of another precision than float32 are learned as float32 copies and rounded after every
    step: the papers' learning rate of 1e-6 is smaller than what bfloat16 can add to a weight.

    One step is one `accumulate` and one `update`, on every rank. The loops use nothing else of an
    optimiser, so how weights and states are kept is this class' business; what reads weights
    outside `accumulate` does so inside `whole`.

    Args:
        model: whose parameters that require a gradient learn.
        settings: learning rate, schedule, decay and clipping.
        steps: of the whole schedule.
        lr_scale: of all learning rates.
        vision_lr_scale: of the vision tower's, on top.
        offloaded: whether AdamW's states will be moved to main memory.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: Optimiser,
        steps: int,
        *,
        lr_scale: float = 1.0,
        vision_lr_scale: float = 1.0,
        offloaded: bool = False,
    ) -> None:
        self.model = model
        self.settings = settings
        self.max_grad_norm = settings.max_grad_norm
        self.adam = optim.optimizer(
            model,
            learning_rate=settings.learning_rate * lr_scale,
            betas=settings.adam_betas,
            weight_decay=settings.weight_decay,
            vision_lr_scale=vision_lr_scale,
            offloaded=offloaded,
        )
        self.schedule = optim.scheduler(self.adam, settings.schedule, settings.warmup_steps, steps)
        self.masters = self.begin_masters()
        self.hooks = [optim.hand_over(weight, master) for weight, master in self.masters]

    def begin_masters(self) -> list[tuple[nn.Parameter, Tensor]]:
        """Weights that are not float32, each with the float32 copy that learns in its place."""
        return optim.masters(self.adam)

    def accumulate(self, parts: Sequence[Part], where: str, idle: Part | None = None) -> float:
        """Add the gradient of this rank's part of the loss; its value, summed over `parts`.

        Args:
            parts: each computes the loss of one micro-batch, and may be called only once.
            idle: some computation with the model that a rank makes when another has more parts:
                learners that keep weights in parts need all ranks to make as many. None: a rank
                always has as many as the others.

        TrainingError if a loss is not finite.
        """
        return sum(self.backward(part(), where) for part in parts)

    def backward(self, loss: Tensor, where: str) -> float:
        """Add the gradient of one loss. TrainingError if it is not finite."""
        optim.check_finite(loss, where)
        loss.backward()
        return loss.item()

    def update(self, where: str) -> dict[str, float]:
        """Take the step; its gradient norm before clipping and its learning rate.

        TrainingError if the gradient is not finite: the weights are then left as they were.
        """
        rate = optim.lr(self.adam)
        norm = optim.update(
            self.model, self.adam, self.schedule, self.max_grad_norm, where, self.masters
        )
        return {"grad_norm": norm, "learning_rate": rate}

    @contextmanager
    def whole(self, *modules: nn.Module, change: bool = False) -> Iterator[None]:
        """Inside, every rank can read all weights of the modules (none given: of the model); with
        `change` also write them, each rank the same. All ranks enter it together."""
        yield
        if change:
            for weight, master in self.masters:
                master.data.copy_(weight.data)

    def store(self, module: nn.Module) -> None:
        """Take care of a module that never learns, such as a reference, from now on."""

    def close(self) -> None:
        """After the last update: the model is an ordinary one again, whole on every rank."""
        for hook in self.hooks:
            hook.remove()

    def save(self, folder: Path) -> None:
        """Write optimiser and schedule into `folder`; every rank calls it."""
        if distributed.is_main():
            torch.save(self.state(), folder / STATE)

    def load(self, folder: Path) -> None:
        """Take optimiser and schedule up where `save` left them."""
        device = next(self.model.parameters()).device
        state = torch.load(folder / STATE, map_location=device, weights_only=True)
        self.adam.load_state_dict(state["adam"])
        self.schedule.load_state_dict(state["schedule"])
        for (_, master), saved in zip(self.masters, state["masters"], strict=True):
            master.data.copy_(saved)

    def state(self) -> dict[str, Any]:
        """Optimiser and schedule, equal on every rank."""
        return {
            "adam": self.adam.state_dict(),
            "schedule": self.schedule.state_dict(),
            "masters": [master.detach() for _, master in self.masters],
        }


def open_learner(
    engine: Engine,
    model: nn.Module,
    settings: Optimiser,
    steps: int,
    *,
    lr_scale: float = 1.0,
    vision_lr_scale: float = 1.0,
) -> Learner:
    """The learner that `engine=...` names; the arguments are `Learner`'s."""
    if engine.name == "single":
        return Learner(model, settings, steps, lr_scale=lr_scale, vision_lr_scale=vision_lr_scale)
    from iad_r1.learn.zero import ZeroLearner  # needs DeepSpeed, which others may not have

    return ZeroLearner(
        model, settings, steps, engine, lr_scale=lr_scale, vision_lr_scale=vision_lr_scale
    )
