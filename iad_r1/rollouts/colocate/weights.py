"""A model's weights as vLLM wants them: under the names of the hub, adapters folded in.

Weights come one module at a time, so that with ZeRO-3 only one is ever whole. An adapter is added
out of place, `W + s * BA` in float32: merging into the training weights and subtracting again
would drift in bfloat16, a little with every synchronisation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from torch import Tensor, nn
from transformers.core_model_loading import revert_weight_conversion

from iad_r1.backbones.backbone import Backbone
from iad_r1.backbones.packing import unwrap
from iad_r1.errors import MismatchError


def hub_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every weight once, under its name in the checkpoint on the hub.

    A weight that two layers share (a tied output layer) comes under its first name alone. Weights
    that the model never reads (the layers of a LLaVA tower behind the one whose features are used)
    do not come. Each tensor is valid until the next one is asked for.
    """
    base = unwrap(model)
    names = hub_names(base)
    seen: set[int] = set()
    for path, module in modules(base):
        mine = list(module.parameters(recurse=adapted(module)))
        fresh = [p for p in mine if id(p) not in seen]
        seen.update(map(id, fresh))
        if not fresh:
            continue
        with gathered(fresh):
            with torch.no_grad():  # not around the yield: a reader that stops would leave it on
                found = list(_weights(path, module, fresh))
            for name, tensor in found:
                if not unread(base, name):
                    yield names[name], tensor.detach()


def weights_on_disk(backbone: Backbone) -> Iterator[tuple[str, Tensor]]:
    """What `hub_weights` would give, in the precision of the run, read from the checkpoint of a
    model that has no weights of its own (`Backbone.folder`).

    MismatchError names what is missing there.
    """
    assert backbone.folder is not None, "the model has its weights"
    wanted = {name for name, _ in hub_weights(backbone.model)}
    for file in sorted(backbone.folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as found:
            for name in wanted.intersection(found.keys()):
                wanted.remove(name)
                yield name, found.get_tensor(name).to(backbone.model.dtype)
    if wanted:
        raise MismatchError(
            f"{backbone.folder} holds no {', '.join(sorted(wanted)[:5])} ({len(wanted)} weights "
            "are not found under the names that vLLM knows). Get these weights again, or read them "
            "with rollout=hf."
        )


def modules(base: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules with weights of their own; an adapted layer counts as one."""
    inside: str | None = None
    for path, module in base.named_modules():
        if inside is not None and path.startswith(inside):
            continue
        inside = f"{path}." if adapted(module) else inside
        yield path, module


def adapted(module: Any) -> bool:
    """Whether a layer carries adapters."""
    return isinstance(module, BaseTunerLayer)


def _weights(
    path: str, module: nn.Module, fresh: Sequence[nn.Parameter]
) -> Iterator[tuple[str, Tensor]]:
    prefix = f"{path}." if path else ""
    if adapted(module):
        for name, tensor in merged(module, path):
            yield prefix + name, tensor
        return
    wanted = set(map(id, fresh))
    for name, parameter in module.named_parameters(recurse=False):
        if id(parameter) in wanted:
            yield prefix + name, parameter.detach()


def merged(layer: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    """Weight and bias of an adapted layer, with what its active adapters add."""
    if not isinstance(layer, LoraLinear) or any(layer.use_dora.values()):
        raise MismatchError(
            f"{path}: the sampler cannot be given the weights of a {type(layer).__name__} "
            "adapter; only plain LoRA on linear layers is understood. Use tuning=lora or "
            "tuning=full, or rollout=hf."
        )
    plain: Any = layer  # peft's containers are untyped
    base = plain.get_base_layer()
    added = torch.zeros((), device=base.weight.device)
    for adapter in plain.active_adapters:
        low, high = plain.lora_A[adapter].weight, plain.lora_B[adapter].weight
        added = added + plain.scaling[adapter] * (high.float() @ low.float())
    yield "weight", (base.weight.float() + added).to(base.weight.dtype)
    if base.bias is not None:
        yield "bias", base.bias.detach()


def hub_names(base: Any) -> dict[str, str]:
    """The name on the hub of every parameter, by its name in `base` without adapters.

    Names are mapped by the model's own mapper, the one that `save_pretrained` uses.
    """
    found: dict[str, str] = {}
    for path, module in modules(base):
        layer: Any = module
        inner = layer.get_base_layer() if adapted(module) else module
        for name, _ in inner.named_parameters(recurse=False):
            mine = f"{path}.{name}" if path else name
            theirs = list(revert_weight_conversion(base, {mine: torch.empty(0)}))
            if len(theirs) != 1:
                raise MismatchError(
                    f"{mine} of {type(base).__name__} is kept as {theirs} on the hub, which the "
                    "weight synchronisation does not understand. Use rollout=hf."
                )
            found[mine] = theirs[0]
    return found


def unread(base: Any, name: str) -> bool:
    """Whether a weight lies in a LLaVA vision tower behind the layer whose features are read."""
    layer = getattr(base.config, "vision_feature_layer", None)
    if not isinstance(layer, int) or "vision_tower." not in name:
        return False
    depth = base.config.vision_config.num_hidden_layers
    read = layer if layer >= 0 else depth + 1 + layer  # hidden state `read` is layer read-1's
    if "post_layernorm" in name or ".head." in name:
        return True
    parts = name.split(".")
    return "layers" in parts and int(parts[parts.index("layers") + 1]) >= read


def gathered(parameters: Sequence[nn.Parameter]) -> AbstractContextManager[Any]:
    """Put the parts of ZeRO-3 parameters together on every rank; nothing to do for whole ones, as
    all are inside `Learner.whole`."""
    parted: list[Any] = [p for p in parameters if hasattr(p, "ds_id")]
    if not parted:
        return nullcontext()
    # only where DeepSpeed is used
    from deepspeed.runtime.zero.partition_parameters import GatheredParameters, ZeroParamStatus

    split = [p for p in parted if p.ds_status is not ZeroParamStatus.AVAILABLE]
    return GatheredParameters(split, enabled=bool(split))
