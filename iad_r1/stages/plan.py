"""`stage=plan`: will it fit? Memory of PA-SFT and SC-GRPO on each GPU, predicted by component.

    python run.py stage=plan backbone=qwen25vl_3b gpus=4

Reads a configuration of the model (those of the published backbones come with this project) and
computes; no weights, no torch. Prints a table for each step, what to use with the command to type,
and, where nothing fits, by how much and what would. The same goes to `plan.json`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import yaml
from rich.console import Console

from iad_r1 import prompts, stages
from iad_r1.backbones import hub, published
from iad_r1.errors import ConfigError
from iad_r1.planner import tables
from iad_r1.planner.fits import Question, Tuning
from iad_r1.planner.memory import GIB
from iad_r1.planner.widths import Architecture, picture, widths_of
from iad_r1.settings.backbone import BuiltBackbone, HubBackbone
from iad_r1.settings.base import CONF
from iad_r1.settings.config import Config
from iad_r1.settings.plan import PlanSettings
from iad_r1.store.run_folder import RunFolder

# English words in these models' vocabularies are some 4 characters a token; 3 is on the safe side.
CHARACTERS_PER_TOKEN = 3
TEMPLATE = 40  # tokens of a chat template: roles, a system turn, turn ends


Settings = PlanSettings


class Stage(stages.Stage):
    """Computes; needs no data and no weights."""

    shortcuts = ("gpus", "gpu_memory")

    def announce(self, config: Config, output: str) -> Iterator[str]:
        assert isinstance(config.stage, Settings)
        yield f"memory of {config.backbone.name}, {config.stage.gpus} GPUs"
        yield stages.row("output", output)

    def run(self, config: Config, folder: RunFolder) -> None:
        run(config, folder)


def run(config: Config, folder: RunFolder, console: Console | None = None) -> dict[str, Any]:
    """Predict, print, and write `plan.json`; returns its content.

    ConfigError if nothing is known of the model's architecture.
    """
    assert isinstance(config.stage, PlanSettings)
    question = ask(config, config.stage, architecture(config))
    result = tables.content(config, config.stage, question)
    tables.show(result, question, console or Console(width=150))
    folder.write_json("plan.json", result)
    return result


def architecture(config: Config) -> Architecture:
    """The model's shapes: of the folder that `backbone.path` names, else as published."""
    backbone = config.backbone
    if isinstance(backbone, BuiltBackbone):
        raise ConfigError(
            f"backbone={backbone.name} has 2 million parameters and fits anywhere: there is "
            f"nothing to plan. Choose one of {', '.join(published.names())}."
        )
    if not Path(backbone.path).is_absolute() and backbone.name in published.names():
        about = published.read(backbone.name)
        if about["hub"] == backbone.path:
            return widths_of(about["config"])
    return _from_folder(backbone)


def _from_folder(backbone: HubBackbone) -> Architecture:
    """From the `config.json` of a checkpoint on this machine."""
    folder = Path(backbone.path) if Path(backbone.path).is_absolute() else hub.local(backbone)
    if folder is None or not (folder / "config.json").is_file():
        raise ConfigError(
            f"backbone.path={backbone.path}: nothing is known of this model. It is none of the "
            f"published ones described here ({', '.join(published.names())}), and there is no "
            "config.json of it on this machine. Give a folder that holds one."
        )
    from transformers import AutoConfig  # fills in what the file leaves out; seconds to import

    return widths_of(AutoConfig.from_pretrained(folder).to_dict())


def ask(config: Config, stage: PlanSettings, model: Architecture) -> Question:
    """What is to be planned, from the settings."""
    total = stage.gpu_memory * GIB
    if stage.gpus == 0:
        total = psutil.virtual_memory().total
    full, lora = _tuning(config, "full"), _tuning(config, "lora")
    size = (stage.picture[0], stage.picture[1])
    return Question(
        model=model,
        gpus=stage.gpus,
        limit=int(total * (1 - stage.margin)),
        main=int(stage.main_memory * GIB),
        overhead=int(stage.overhead * GIB),
        workspace=int(stage.workspace * GIB),
        picture={
            "sft": picture(model, *config.sft.within(size), config.sft.max_pixels),
            "grpo": picture(model, *config.grpo.within(size), config.grpo.max_pixels),
        },
        pictures=stage.pictures,
        text={"sft": _tokens(config.sft.prompt), "grpo": _tokens(config.grpo.prompt)},
        length={"sft": stage.answer, "grpo": config.rollout.max_tokens},
        batch={
            "sft": max(phase.batch_size for phase in config.sft.phases),
            "grpo": config.grpo.prompts_per_step,
        },
        group=config.grpo.group_size,
        packed=config.grpo.packing != "off",
        reference=config.grpo.kl_coef > 0,
        train={"full": tuple(full["train"]), "lora": tuple(lora["train"])},
        rank=lora["rank"],
        dropout=lora["dropout"] > 0,
        decoded=config.rollout.batch_size,
        precision="bfloat16" if stage.gpus else "float32",
    )


def _tuning(config: Config, name: Tuning) -> dict[str, Any]:
    """The settings of `tuning=<name>`: as typed if it was chosen, else as in `conf/tuning`."""
    if config.tuning.name == name:
        return config.tuning.model_dump()
    file = CONF / "tuning" / f"{name}.yaml"
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def _tokens(prompt: str) -> int:
    """Tokens of a named prompt, pictures not counted; longer than they will be."""
    asked = prompts.conversation(prompt)
    return TEMPLATE + math.ceil(len(asked.text + (asked.system or "")) / CHARACTERS_PER_TOKEN)
