"""Whether a run fits on its GPUs, said before its weights load.

What its longest prompts take comes from the sizes of its pictures and `planner/`, what is free from
the GPUs. On a CPU nothing is compared: what may be used there is the operating system's to say.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import psutil
import torch

from iad_r1.backbones import flash
from iad_r1.backbones.shapes import architecture
from iad_r1.boxes import longest_place
from iad_r1.data import images
from iad_r1.errors import ConfigError
from iad_r1.grid import as_grid
from iad_r1.loops import lengths
from iad_r1.loops.lengths import Stage
from iad_r1.loops.sft import TARGETS
from iad_r1.planner import questions, runs
from iad_r1.planner.fits import Shown
from iad_r1.planner.runs import Gpu
from iad_r1.planner.widths import Architecture, Picture, picture
from iad_r1.processes import distributed
from iad_r1.rollouts.prompting import conversation, shown
from iad_r1.settings.config import Config
from iad_r1.settings.training import Packing
from iad_r1.types import Dataset


def check(config: Config, dataset: Dataset) -> None:
    """ConfigError, on every rank alike, if a part of the run is predicted not to fit on the GPU of
    some rank; it names settings that do. What cannot be predicted is said, and passed over."""
    device = distributed.device(config.engine)
    tiny = config.backbone.source == "built" or config.weights.name == "tiny"
    if device.type != "cuda" or not config.memory.check or tiny:
        return
    try:
        model = architecture(config)
    except ConfigError as error:
        if distributed.is_main():
            print(f"memory is not predicted: {error}", flush=True)
        return
    mine = (*free_memory(device), psutil.virtual_memory().available, packing(config, model, device))
    free, totals, main, packings = zip(*distributed.everyone(mine), strict=True)
    gpus = [Gpu(rank, *found) for rank, found in enumerate(zip(free, totals, strict=True))]
    prompts_of: dict[Stage, Shown | None] = {
        stage: longest(config, dataset, model, stage) for stage in lengths.STAGES
    }
    question = questions.question(
        config,
        model,
        gpus=config.engine.processes,
        hosts=config.engine.hosts,
        total=min(totals),
        limit=min(gpu.usable(config.memory) for gpu in gpus),
        main=min(main) * config.engine.hosts,
        shown=prompts_of,
        precision=config.engine.precision,
        packing=packings[0] if len(set(packings)) == 1 else "group",
    )
    problem = runs.problem(config, question, gpus)
    if problem is not None:
        raise ConfigError(problem)


def free_memory(device: torch.device) -> tuple[int, int]:
    """Bytes of a GPU that are free, and that there are."""
    return torch.cuda.mem_get_info(device)


def packing(config: Config, model: Architecture, device: torch.device) -> Packing:
    """How groups will be computed here: `auto` takes FlashAttention if a kernel passes."""
    if config.grpo.packing != "auto":
        return config.grpo.packing
    text, dtype = model.text, getattr(torch, config.engine.precision)
    try:
        flash.kernel_for(text.heads, text.key_heads, text.head_dim, dtype, device)
    except ConfigError:
        return "group"
    return "group_flash"


def longest(config: Config, dataset: Dataset, model: Architecture, stage: Stage) -> Shown | None:
    """The longest prompt of a stage, its pictures taken together; None if the stage has none.

    Words are counted by their letters, which is more than they take: there is no tokenizer yet.
    """
    if stage not in config.tasks():
        return None
    settings, format = getattr(config, stage), config.location_format
    samples, shots = lengths.asked(config, dataset, stage)

    @cache
    def part(size: tuple[int, int]) -> Picture:
        width, height = settings.within(size)
        return picture(model, width, height, settings.max_pixels)

    most: Shown | None = None
    for sample in samples:
        count = lengths.references(stage, sample, shots)
        parts = [part(images.size(each)) for each in shown(sample, count)]
        whole = Picture(sum(p.patches for p in parts), sum(p.tokens for p in parts))
        words = questions.prompt_tokens(conversation(settings.prompt, sample, count, format))
        found = Shown(words, whole, 1, 0)
        if most is None or found.tokens > most.tokens:
            most = found
    if most is None:
        return None
    if stage == "sft":
        target, grid = TARGETS[config.sft.target], as_grid(config.grid)
        place = None if format == "words" else longest_place(format)
        said = (target(sample, config.seed, grid, place).text for sample in samples)
        return replace(most, answer=1 + max(map(questions.tokens, said)))
    answer = config.rollout.max_tokens if stage == "grpo" else config.evaluate.max_tokens
    return replace(most, answer=answer)
