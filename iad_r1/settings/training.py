"""The `pretrain`, `sft` and `grpo` sections: how each of them learns. Values: `conf/recipe/`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from iad_r1.settings.base import Above0, AtLeast0, Count, Count0, Pictures, Section, Share

Schedule = Literal["cosine", "linear", "constant_with_warmup"]
Packing = Literal["group", "group_flash", "group_flex", "off"]


class Length(Section):
    """How long to train: whichever of the two comes first ends it; null is no limit."""

    steps: Count | None
    epochs: Above0 | None


class Optimiser(Section):
    """AdamW, its schedule, and how often the stage is saved."""

    learning_rate: Above0
    adam_betas: Annotated[
        list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)
    ]
    schedule: Schedule
    warmup_steps: Count0
    weight_decay: AtLeast0
    max_grad_norm: Above0
    save_every: Count


class Pretrain(Optimiser):
    """Supervised pre-training of the tiny vision tower on drawn defects and their masks."""

    images: Count
    photographs: bool
    centre: bool
    normal_weight: Above0
    steps: Count
    batch_size: Count


class SftPhase(Length):
    """One leg of PA-SFT."""

    batch_size: Count
    lr_scale: Above0
    vision_lr_scale: AtLeast0
    freeze_vision: bool
    location_weight: Above0
    verdict_weight: Above0
    augment: bool


class Sft(Optimiser, Pictures):
    """PA-SFT: supervised fine-tuning on answers that perceive before they judge."""

    prompt: str
    target: Literal["chain_of_thought", "direct"]
    samples: Literal["sft", "rl"]
    one_shot_share: Share
    loss_normalisation: Literal["token", "sample"]
    token_budget: Count | None
    max_length: Count | None
    phases: Annotated[list[SftPhase], Field(min_length=1)]


class Importance(Section):
    """Correction of SC-GRPO for completions that another policy drew than the one it trains."""

    level: Literal["off", "token", "sequence"]
    mode: Literal["truncate", "mask"]
    cap: Above0


class GapLimit(Section):
    """The largest |sampler - trainer| of a token's log-prob that is taken for rounding, in nats
    (`rollouts/gap.py`)."""

    mean: Above0 | None
    high: Above0 | None


class Collapse(Section):
    """When a policy counts as collapsed: one answer whatever it sees, or no exploration left."""

    answer_share: Annotated[float, Field(ge=0.5, le=1)]
    entropy: AtLeast0
    steps: Count
    stop: bool


class Grpo(Optimiser, Length, Pictures):
    """SC-GRPO: group relative policy optimisation with a structured reward."""

    prompt: str
    from_base: bool
    choose_on_validation: bool
    max_length: Count | None
    prompts_per_step: Count
    group_size: Annotated[int, Field(ge=2)]
    vision_lr_scale: AtLeast0
    clip_low: Annotated[float, Field(gt=0, lt=1)]
    clip_high: Above0
    kl_coef: AtLeast0
    kl_kind: Literal["k1", "k2", "k3"]
    reference_refresh: Count | None
    updates_per_batch: Count
    minibatches: Count
    overlap: Count0
    importance: Importance
    gap_limit: GapLimit
    aggregation: Literal["sequence_mean", "token_mean", "fixed_length"]
    advantage: Literal["group_std", "no_std", "leave_one_out", "batch_std"]
    degenerate_groups: Literal["keep", "skip", "resample"]
    resample_limit: Count
    truncated: Literal["keep", "mask"]
    packing: Literal["auto", Packing]
    token_budget: Count | None
    collapse: Collapse
    rollouts_every: Count
