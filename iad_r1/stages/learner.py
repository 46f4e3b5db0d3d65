"""The weights that learn, with their optimiser and schedule, on one process or several."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from iad_r1 import distributed
from iad_r1.config import Optimiser
from iad_r1.stages import optim

STATE = "optimiser.pt"


class Learner:
    """AdamW on every rank, over gradients summed across ranks.

    One step is any number of `backward`, also none, and one `update` on every rank. The loops use
    nothing else of an optimiser, so how weights and states are kept is this class' business.

    Args:
        model: whose parameters that require a gradient learn.
        settings: learning rate, schedule, decay and clipping.
        steps: of the whole schedule.
        lr_scale: of all learning rates.
        vision_lr_scale: of the vision tower's, on top.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: Optimiser,
        steps: int,
        *,
        lr_scale: float = 1.0,
        vision_lr_scale: float = 1.0,
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
        )
        self.schedule = optim.scheduler(self.adam, settings.schedule, settings.warmup_steps, steps)

    def backward(self, loss: Tensor, where: str) -> None:
        """Add the gradient of this rank's part of the loss; TrainingError if it is not finite."""
        optim.check_finite(loss, where)
        loss.backward()

    def update(self, where: str) -> dict[str, float]:
        """Take the step; its gradient norm before clipping and its learning rate.

        TrainingError if the gradient is not finite: the weights are then left as they were.
        """
        rate = optim.lr(self.adam)
        norm = optim.update(self.model, self.adam, self.schedule, self.max_grad_norm, where)
        return {"grad_norm": norm, "learning_rate": rate}

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Inside, every rank can read all weights of the model."""
        yield

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

    def state(self) -> dict[str, Any]:
        """Optimiser and schedule, equal on every rank."""
        return {"adam": self.adam.state_dict(), "schedule": self.schedule.state_dict()}
