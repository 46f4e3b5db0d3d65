"""`stage=plan`: will it fit? Memory of PA-SFT and SC-GRPO on each GPU, predicted by component.

    python run.py stage=plan backbone=qwen25vl_3b gpus=4

Reads a configuration of the model (those of the published backbones come with this project) and
computes; no weights, no torch. Prints a table for each step, what to use with the command to type,
and, where nothing fits, by how much and what would. The same goes to `plan.json`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import psutil
import yaml
from rich.console import Console
from rich.table import Table

from iad_r1 import prompts, stages
from iad_r1.backbones import hub, published
from iad_r1.command.options import CONF, groups
from iad_r1.errors import ConfigError
from iad_r1.planner import memory
from iad_r1.planner.fits import Option, Question, StepName, Tuning, options, recommended, ways_out
from iad_r1.planner.memory import GIB
from iad_r1.planner.widths import Architecture, describe, picture
from iad_r1.settings.config import BuiltBackbone, Config, HubBackbone
from iad_r1.settings.plan import PlanSettings
from iad_r1.store.run_folder import RunFolder

STEPS: tuple[StepName, ...] = ("sft", "grpo")
TUNINGS: tuple[Tuning, ...] = ("full", "lora")
TITLES = {"sft": "PA-SFT", "grpo": "SC-GRPO"}
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
    result = content(config, config.stage, question)
    show(result, question, console or Console(width=150))
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
            return describe(about["config"])
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

    return describe(AutoConfig.from_pretrained(folder).to_dict())


def ask(config: Config, stage: PlanSettings, model: Architecture) -> Question:
    """What is to be planned, from the settings."""
    total = stage.gpu_memory * GIB
    if stage.gpus == 0:
        total = psutil.virtual_memory().total
    full, lora = _tuning(config, "full"), _tuning(config, "lora")
    width, height = stage.picture
    return Question(
        model=model,
        gpus=stage.gpus,
        limit=int(total * (1 - stage.margin)),
        main=int(stage.main_memory * GIB),
        overhead=int(stage.overhead * GIB),
        workspace=int(stage.workspace * GIB),
        picture=picture(model, width, height, config.backbone.max_pixels),
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
        vllm="vllm" in groups()["rollout"],
        precision="bfloat16" if stage.gpus else "float32",
    )


def _tuning(config: Config, name: Tuning) -> dict[str, Any]:
    """The settings of `tuning=<name>`: as typed if it was chosen, else as in `conf/tuning`."""
    if config.tuning.name == name:
        return config.tuning.model_dump()
    return yaml.safe_load((CONF / "tuning" / f"{name}.yaml").read_text(encoding="utf-8"))


def _tokens(prompt: str) -> int:
    """Tokens of a named prompt, pictures not counted; longer than they will be."""
    asked = prompts.conversation(prompt)
    return TEMPLATE + math.ceil(len(asked.text + (asked.system or "")) / CHARACTERS_PER_TOKEN)


# --------------------------------------------------------------------------- plan.json


def content(config: Config, stage: PlanSettings, question: Question) -> dict[str, Any]:
    """All that is printed, as JSON: memory in GiB, per GPU."""
    chosen = config.tuning.name
    text, vision = question.model.text, question.model.vision
    return {
        "backbone": config.backbone.name,
        "parameters": {
            "language": text.parameters,
            "vision": vision.tower,
            "projector": vision.projector,
        },
        "gpus": stage.gpus,
        "usable_gib": round(question.limit / GIB, 2),
        "assumed": {
            **stage.model_dump(include={"picture", "pictures", "overhead", "workspace", "margin"}),
            "picture_tokens": question.picture.tokens,
            "prompt_tokens": dict(question.text),
            "completion_tokens": dict(question.length),
            "batch": dict(question.batch),
            "group_size": question.group,
            "lora_rank": question.rank,
            "precision": question.precision,
        },
        "options": [
            row(question, option)
            for step in STEPS
            for tuning in TUNINGS
            for option in options(question, step, tuning)
        ],
        "recommended": {step: advice(config, question, step, chosen) for step in STEPS},
        "notes": list(notes()),
    }


def row(question: Question, option: Option) -> dict[str, Any]:
    """One option as a line of `plan.json`."""
    held, setup = option.training.states, option.setup
    other = memory.training(
        question.model,
        option.work,
        _with_checkpointing(option, not setup.checkpointing),
        forwards=option.forwards,
    )
    plain, checkpointed = option.training.activations, other.activations
    if setup.checkpointing:
        plain, checkpointed = checkpointed, plain
    return {
        "step": option.step,
        "tuning": option.tuning,
        "engine": setup.engine,
        "offload": "cpu" if setup.offload else "none",
        "gradient_checkpointing": setup.checkpointing,
        "prompts_per_forward": option.work.groups,
        "tokens_per_forward": option.work.tokens,
        "rollout": option.rollout,
        **memory.gib(
            {
                "weights": held.weights,
                "gradients": held.gradients,
                "optimiser": held.optimiser,
                "master_weights": held.master,
                "reference": held.reference,
                "activations": plain,
                "activations_checkpointed": checkpointed,
                "logprobs": option.training.logprobs,
                "zero_buffers": option.training.buffers,
                "whole_weights": option.whole,
                "rollout_weights": option.sampling.weights,
                "rollout_cache": option.sampling.cache,
                "rollout_rest": option.sampling.rest,
                "overhead": option.overhead,
                "peak": option.peak,
                "main_memory": option.host,
            }
        ),
        "fits": option.fits,
    }


def _with_checkpointing(option: Option, value: bool) -> memory.Setup:
    return replace(option.setup, checkpointing=value)


def advice(
    config: Config, question: Question, step: StepName, tuning: Literal["full", "lora"]
) -> dict[str, Any]:
    """What to use for a step and the command to type, or why nothing fits and what would."""
    if getattr(config.backbone, "evaluation_only", False):
        size = 2 * question.model.parameters / GIB
        why = f"is evaluated here, not trained: its weights take {size:.1f} GiB in bfloat16."
        return {"fits": False, "why": [f"backbone={config.backbone.name} {why}"]}
    option = recommended(question, step, tuning)
    if option is None:
        return {"fits": False, "why": list(ways_out(question, step, tuning))}
    return {
        "fits": True,
        "option": row(question, option),
        "command": command(config, option),
    }


def command(config: Config, option: Option) -> str:
    """The line to type for an option: only settings that differ from what they would be."""
    setup, step = option.setup, option.step
    words = [f"python run.py stage={step}", f"backbone={config.backbone.name}"]
    if config.data.name != "synthetic":
        words.append(f"data={config.data.name}")
        words += [f"data.root={root}"] if (root := getattr(config.data, "root", None)) else []
    words += [f"tuning={option.tuning}"] if option.tuning != "full" else []
    if setup.engine == "single":
        words += [f"engine.ranks={setup.ranks}"] if setup.ranks > 1 else []
        words += ["engine.device=cpu", "engine.precision=float32"] if not setup.cuda else []
    else:
        words += [f"engine={setup.engine}", f"engine.ranks={setup.ranks}"]
        words += ["engine.offload=cpu"] if setup.offload else []
    words += ["tuning.gradient_checkpointing=true"] if setup.checkpointing else []
    words += [f"{step}.token_budget={option.work.budget}"] if option.forwards > 1 else []
    if step == "grpo":
        words += _rollout(option, config)
        words.append(f"init=outputs/sft-{config.backbone.name}-{config.data.name}/<timestamp>")
    return " ".join(words)


def _rollout(option: Option, config: Config) -> Sequence[str]:
    if option.rollout == "vllm":
        total = config.stage.gpu_memory * GIB if isinstance(config.stage, PlanSettings) else GIB
        share = math.ceil(20 * option.sampling.total / total) / 20  # in steps of 5 %
        length = option.work.prompt + option.work.length
        return ["rollout=vllm", f"rollout.memory={share:.2f}"] + (
            [f"rollout.max_model_len={length}"] if length > 4096 else []
        )
    return ["rollout=hf"]


def notes() -> Sequence[str]:
    """What a reader must know of the numbers."""
    return [
        "Components are each at its own highest; they are not all there at once. The peak is.",
        "Activations: all kept, or computed again layer by layer (tuning.gradient_checkpointing); "
        "* where that is what fits, and the peak counts it.",
    ]


# --------------------------------------------------------------------------- printing

COLUMNS = {
    "engine": "engine",
    "offload": "offload",
    "rollout": "rollout",
    "prompts_per_forward": "prompts at once",
    "weights": "weights",
    "gradients": "grads",
    "optimiser": "Adam",
    "master_weights": "master",
    "reference": "refer.",
    "activations": "activ. kept",
    "activations_checkpointed": "activ. again",
    "logprobs": "logits",
    "zero_buffers": "buffers",
    "rollout_weights": "roll. w.",
    "rollout_cache": "KV",
    "peak": "peak",
    "main_memory": "main",
}


def show(result: Mapping[str, Any], question: Question, console: Console) -> None:
    """Print the tables, the recommendation and the notes."""
    count = sum(result["parameters"].values()) / 1e9
    place = f"{question.gpus} GPUs" if question.gpus else "the CPU"
    console.print(
        f"[bold]{result['backbone']}[/bold]: {count:.2f} B parameters on {place}, "
        f"{result['usable_gib']:.1f} GiB usable each; a picture of "
        f"{'x'.join(map(str, result['assumed']['picture']))} is "
        f"{question.picture.tokens:,} tokens"
    )
    for step in STEPS:
        for tuning in TUNINGS:
            console.print(_table(result["options"], step, tuning, question))
    for step in STEPS:
        _advise(result["recommended"][step], step, console)
    for note in result["notes"]:
        console.print(f"[dim]{note}[/dim]")


def _table(
    rows: Sequence[Mapping[str, Any]], step: StepName, tuning: Tuning, question: Question
) -> Table:
    share = f"{_prompts(question.share(step))} on each of {question.ranks(step)}"
    table = Table(title=f"{TITLES[step]}, {tuning}: GiB per {question.place} ({share})")
    for name in COLUMNS.values():
        table.add_column(
            name, justify="left" if name in ("engine", "offload", "rollout") else "right"
        )
    for line in rows:
        if (line["step"], line["tuning"]) != (step, tuning):
            continue
        cells = [_cell(line, key) for key in COLUMNS]
        table.add_row(*cells, style="green" if line["fits"] else "red")
    return table


def _prompts(count: int) -> str:
    return f"{count} prompt{'s' if count != 1 else ''}"


def _cell(line: Mapping[str, Any], key: str) -> str:
    value = line[key]
    if key == "activations_checkpointed" and line["gradient_checkpointing"]:
        return f"*{value:.1f}"
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _advise(found: Mapping[str, Any], step: str, console: Console) -> None:
    if not found["fits"]:
        console.print(f"[bold red]{TITLES[step]}[/bold red]")
        for sentence in found["why"]:
            console.print(f"  {sentence}", soft_wrap=True)
        return
    option = found["option"]
    console.print(
        f"[bold green]{TITLES[step]}[/bold green]: {option['peak']:.1f} GiB, "
        f"{_prompts(option['prompts_per_forward'])} in a forward of "
        f"{option['tokens_per_forward']:,} tokens"
        f"{', layers computed again' if option['gradient_checkpointing'] else ''}"
    )
    console.print(f"  {found['command']}", soft_wrap=True, highlight=False)
