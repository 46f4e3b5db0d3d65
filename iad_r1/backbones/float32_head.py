"""The output layer in float32, whatever the precision of the weights.

In bfloat16 a logit of 20 is rounded to a multiple of 0.125, and sampler and trainer, whose kernels
round in another order, are that far apart on a token. So the product of states and weights keeps
the float32 it is summed in. The backward pass stays in the precision of the weights, as it was.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Float32Head(nn.Linear):
    """A linear layer [*, H] -> [*, V] that answers in float32.

    With float32 weights it computes what `nn.Linear` does, bit for bit.
    """

    def forward(self, input: Tensor) -> Tensor:
        if self.weight.dtype == torch.float32:
            return super().forward(input)
        product: Any = _Product.apply
        logits = product(input, self.weight)
        return logits if self.bias is None else logits + self.bias.float()


def use_float32_head(model: Any) -> None:
    """Let the model's output layer answer in float32: for the trainer, the transformers sampler
    and evaluation alike. Weights, names and hooks stay."""
    head = model.get_output_embeddings()
    if type(head) is nn.Linear:
        head.__class__ = Float32Head


class _Product(torch.autograd.Function):
    """states [*, H] and weight [V, H] of one low precision -> [*, V] in float32."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(states, weight)
        if not states.is_cuda:
            return nn.functional.linear(states.float(), weight.float())
        flat = torch.mm(states.flatten(0, -2), weight.t(), out_dtype=torch.float32)
        return flat.view(*states.shape[:-1], -1)  # no float32 copy of the weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        states, weight = ctx.saved_tensors
        low = grad.to(weight.dtype)
        above = low.flatten(0, -2).t() @ states.flatten(0, -2) if ctx.needs_input_grad[1] else None
        return low @ weight, above
