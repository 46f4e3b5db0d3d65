"""The reference policy: what the KL term of SC-GRPO holds the trained policy to."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from iad_r1.backbones.packing import adapter_off


class Reference:
    """The policy as it was: when training began, or at the last `refresh`.

    Full tuning keeps a frozen copy. Under LoRA it is the model itself with its adapter off, or, if
    it is to be refreshed, with a copy of the adapter.

    Args:
        policy: the model under training.
        lora: whether it carries an adapter.
        refreshed: whether `refresh` will be called; its state is then to be saved (`state`).
    """

    def __init__(self, policy: Any, *, lora: bool, refreshed: bool) -> None:
        self.policy, self.refreshed = policy, refreshed
        self.copy: nn.Module | None = None
        if not lora:
            self.copy = copy.deepcopy(policy).eval().requires_grad_(False)
        elif refreshed:
            self.copy = _Adapter(policy)

    @property
    def model(self) -> nn.Module:
        """Whose weights `active` reads, which have to be whole then: the copy's or the policy's."""
        own = self.copy is None or isinstance(self.copy, _Adapter)
        return self.policy if own or self.copy is None else self.copy

    @contextmanager
    def active(self) -> Iterator[nn.Module]:
        """The model to ask; inside, under LoRA, the policy is not itself."""
        if self.copy is None:
            with adapter_off(self.policy):
                yield self.policy
        elif isinstance(self.copy, _Adapter):
            with self.copy.exchanged(self.policy):
                yield self.policy
        else:
            yield self.copy

    def refresh(self) -> None:
        """Let the policy as it is now be the reference. Its weights must be whole on this rank."""
        if isinstance(self.copy, _Adapter):
            self.copy.take(self.policy)
        elif self.copy is not None:
            self.copy.load_state_dict(self.policy.state_dict())

    def state(self) -> Mapping[str, nn.Module]:
        """What a checkpoint must hold, by name: nothing while the start of the stage tells it."""
        return {"reference": self.copy} if self.refreshed and self.copy is not None else {}


class _Adapter(nn.Module):
    """The values of a model's LoRA weights, beside those it trains."""

    def __init__(self, policy: nn.Module) -> None:
        super().__init__()
        self.values = nn.ParameterList(w.detach().clone() for w in _lora(policy))
        self.values.requires_grad_(False)

    @torch.no_grad()
    def take(self, policy: nn.Module) -> None:
        for value, weight in zip(self.values, _lora(policy), strict=True):
            value.copy_(weight)

    @contextmanager
    def exchanged(self, policy: nn.Module) -> Iterator[None]:
        self._exchange(policy)
        try:
            yield
        finally:
            self._exchange(policy)

    def _exchange(self, policy: nn.Module) -> None:
        for value, weight in zip(self.values, _lora(policy), strict=True):
            value.data, weight.data = weight.data, value.data


def _lora(policy: nn.Module) -> list[Tensor]:
    return [weight for name, weight in policy.named_parameters() if "lora_" in name]
