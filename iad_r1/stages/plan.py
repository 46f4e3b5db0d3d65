"""`stage=plan`: will it fit? Memory of PA-SFT and SC-GRPO on each GPU, predicted by component.

    python run.py stage=plan backbone=qwen25vl_3b gpus=4

Reads a configuration of the model (those of the published backbones come with this project) and
computes; no weights, no torch. Prints a table for each step, what to use with the command to type,
and, where nothing fits, by how much and what would. The same goes to `plan.json`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psutil
from rich.console import Console

from iad_r1 import prompts, stages
from iad_r1.backbones.shapes import architecture
from iad_r1.planner import questions, tables
from iad_r1.planner.fits import Question, Shown
from iad_r1.planner.memory import GIB
from iad_r1.planner.widths import Architecture, picture
from iad_r1.settings.config import Config
from iad_r1.settings.plan import PlanSettings
from iad_r1.settings.training import Grpo, Sft
from iad_r1.store.run_folder import RunFolder

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


def ask(config: Config, stage: PlanSettings, model: Architecture) -> Question:
    """What is to be planned, from the settings."""
    total = int(stage.gpu_memory * GIB)
    if stage.gpus == 0:
        total = psutil.virtual_memory().total
    width, height = stage.picture

    def shown(settings: Sft | Grpo, answer: int) -> Shown:
        size = settings.within((width, height))
        words = questions.prompt_tokens(
            prompts.conversation(settings.prompt, location_format=config.location_format)
        )
        one = picture(model, *size, settings.max_pixels)
        return Shown(words, one, stage.pictures, answer)

    return questions.question(
        config,
        model,
        gpus=stage.gpus,
        total=total,
        limit=int(total * (1 - config.memory.margin)),
        main=int(stage.main_memory * GIB),
        shown={
            "sft": shown(config.sft, stage.answer),
            "grpo": shown(config.grpo, config.rollout.max_tokens),
        },
        precision="bfloat16" if stage.gpus else "float32",
        # what a GPU's kernels are good for is known only there; SDPA needs more
        packing="group" if config.grpo.packing == "auto" else config.grpo.packing,
    )
