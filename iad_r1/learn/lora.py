"""`tuning=lora`: adapters during a training stage, merged into the weights after it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from iad_r1.backbones.families import Part, part_of
from iad_r1.learn.context import Context
from iad_r1.processes import distributed
from iad_r1.settings.backbone import LoraTuning
from iad_r1.store import checkpoints


@contextmanager
def adapter(context: Context, step: str) -> Iterator[None]:
    """Inside, the model of a fine-tuning step carries a fresh adapter; outside, it is plain again.

    The adapter alone is kept in `checkpoints/<step>-adapter`. Merging once per stage, in the
    weights' own precision, is exact in float32; nothing is merged and unmerged during training.
    Full tuning, and the pre-training of the tiny tower, pass through.
    """
    tuning = context.config.tuning
    if not isinstance(tuning, LoraTuning) or step == "pretrain":
        yield
        return
    # the policy that is trained must be the one that was sampled from, which drops nothing
    wrap(context, tuning, dropout=0.0 if step == "grpo" else tuning.dropout)
    yield
    if distributed.is_main():
        with checkpoints.write_folder(context.folder.checkpoint(f"{step}-adapter")) as partial:
            context.backbone.write(partial)
    context.backbone.model = context.backbone.model.merge_and_unload()


def wrap(context: Context, tuning: LoraTuning, *, dropout: float) -> None:
    """Put a fresh adapter on the model; it changes nothing before it is trained."""
    base = context.backbone.model
    settings = LoraConfig(
        r=tuning.rank,
        lora_alpha=tuning.alpha,
        lora_dropout=dropout,
        target_modules=linear_layers(base, tuning.train),
        init_lora_weights=True,
    )
    _name_base(context, base)
    with torch.random.fork_rng():  # every rank must draw the same adapter
        torch.manual_seed(context.config.seed)
        context.backbone.model = get_peft_model(base, settings)


def _name_base(context: Context, base: Any) -> None:
    """Have the adapter name the hub's id of its base, not where this machine keeps a copy."""
    config = context.config
    published = config.weights.name == "published" and config.backbone.source == "hub"
    if context.stage == "base" and published and config.backbone.source == "hub":
        base.name_or_path = config.backbone.path


def linear_layers(model: nn.Module, parts: Collection[Part]) -> list[str]:
    """Full names of the linear layers of these parts. The output layer stays as it is: in half of
    the models it is the embedding."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not name.endswith("lm_head") and part_of(name) in parts
    ]
