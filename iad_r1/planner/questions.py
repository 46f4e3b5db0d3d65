"""What is to be planned, from the settings: the same for `stage=plan` and for a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import yaml

from iad_r1.planner.fits import Asked, Question, Shown, Tuning
from iad_r1.planner.memory import GIB
from iad_r1.planner.widths import Architecture
from iad_r1.settings.base import CONF
from iad_r1.settings.config import Config
from iad_r1.settings.training import Packing
from iad_r1.types import Conversation

# English words in these models' vocabularies are some 4 characters a token; 3 is on the safe side.
CHARACTERS_PER_TOKEN = 3
TEMPLATE = 40  # tokens of a chat template: roles, a system turn, turn ends


def question(
    config: Config,
    model: Architecture,
    *,
    gpus: int,
    total: int,
    limit: int,
    main: int,
    shown: Mapping[Asked, Shown | None],
    precision: Literal["float32", "bfloat16"],
    packing: Packing,
    hosts: int = 1,
) -> Question:
    """The settings of a run, or of a plan, on `gpus` GPUs of `total` bytes, of which `limit` may be
    used, and with `main` bytes of main memory. gpus=0: on the CPU. `packing` is that of SC-GRPO."""
    full, lora = _tuning(config, "full"), _tuning(config, "lora")
    return Question(
        model=model,
        gpus=gpus,
        total=total,
        limit=limit,
        main=main,
        overhead=int(config.memory.overhead * GIB),
        workspace=int(config.memory.workspace * GIB),
        shown={asked: one for asked, one in shown.items() if one is not None},
        batch={
            "sft": max(phase.batch_size for phase in config.sft.phases),
            "grpo": config.grpo.prompts_per_step,
        },
        group=config.grpo.group_size,
        packing=packing,
        reference=config.grpo.kl_coef > 0,
        train={"full": tuple(full["train"]), "lora": tuple(lora["train"])},
        rank=lora["rank"],
        dropout=lora["dropout"] > 0,
        decoded=config.rollout.batch_size,
        precision=precision,
        hosts=hosts,
        minibatches=config.grpo.minibatches,
    )


def _tuning(config: Config, name: Tuning) -> dict[str, Any]:
    """The settings of `tuning=<name>`: as typed if it was chosen, else as in `conf/tuning`."""
    if config.tuning.name == name:
        return config.tuning.model_dump()
    file = CONF / "tuning" / f"{name}.yaml"
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def prompt_tokens(asked: Conversation) -> int:
    """Tokens of a prompt, pictures not counted; more than they will be."""
    return TEMPLATE + tokens(asked.text + (asked.system or ""))


def tokens(text: str) -> int:
    """Of words, without a tokenizer; more than they will be."""
    return math.ceil(len(text) / CHARACTERS_PER_TOKEN)
