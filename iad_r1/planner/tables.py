"""What a plan says: the content of `plan.json`, and the tables that are printed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.table import Table

from iad_r1.errors import setting
from iad_r1.planner.fits import Option, Question, StepName, Tuning, options, recommended, ways_out
from iad_r1.planner.memory import GIB
from iad_r1.settings.config import Config
from iad_r1.settings.plan import PlanSettings

TITLES: dict[StepName, str] = {"sft": "PA-SFT", "grpo": "SC-GRPO"}
TUNINGS: tuple[Tuning, ...] = ("full", "lora")
NOTES = [
    "Components are each at its own highest; they are not all there at once. The peak is.",
    "Activations: all kept, or computed again layer by layer (tuning.gradient_checkpointing); "
    "* where that is what fits, and the peak counts it.",
]
COLUMNS = {  # of the printed tables: keys of an option in plan.json
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


def content(config: Config, stage: PlanSettings, question: Question) -> dict[str, Any]:
    """All that is printed, as JSON: memory in GiB, per GPU."""
    asked = question.shown
    return {
        "backbone": config.backbone.name,
        "parameters": question.model.sizes,
        "gpus": stage.gpus,
        "usable_gib": round(question.limit / GIB, 2),
        "assumed": {
            **stage.model_dump(include={"picture", "pictures"}),
            **config.memory.model_dump(exclude={"check", "features"}),
            "picture_tokens": {step: shown.picture.tokens for step, shown in asked.items()},
            "prompt_tokens": {step: shown.text for step, shown in asked.items()},
            "completion_tokens": {step: shown.answer for step, shown in asked.items()},
            "batch": dict(question.batch),
            "group_size": question.group,
            "lora_rank": question.rank,
            "precision": question.precision,
            "packing": question.packing,
        },
        "options": [
            row(option)
            for step in TITLES
            for tuning in TUNINGS
            for option in options(question, step, tuning)
        ],
        "recommended": {step: advice(config, question, step) for step in TITLES},
        "notes": NOTES,
    }


def row(option: Option) -> dict[str, Any]:
    """One option as a line of `plan.json`."""
    setup, held, sampling = option.setup, option.training.states, option.sampling
    kept, again = (
        replace(option, setup=replace(setup, checkpointing=value)).training.activations
        for value in (False, True)
    )
    sizes = {
        "weights": held.weights,
        "gradients": held.gradients,
        "optimiser": held.optimiser,
        "master_weights": held.master,
        "reference": held.reference,
        "activations": kept,
        "activations_checkpointed": again,
        "logprobs": option.training.logprobs,
        "zero_buffers": option.training.buffers,
        "whole_weights": option.whole,
        "rollout_weights": sampling.weights,
        "rollout_cache": sampling.cache,
        "rollout_rest": sampling.rest,
        "overhead": option.question.overhead,
        "peak": option.peak,
        "main_memory": option.host,
    }
    return {
        "step": option.step,
        "tuning": option.tuning,
        "engine": setup.engine,
        "offload": "cpu" if setup.offload else "none",
        "gradient_checkpointing": setup.checkpointing,
        "prompts_per_forward": option.work.groups,
        "tokens_per_forward": option.work.tokens,
        "rollout": option.rollout,
        **{name: round(size / GIB, 2) for name, size in sizes.items()},
        "fits": option.fits,
    }


def advice(config: Config, question: Question, step: StepName) -> dict[str, Any]:
    """What to use for a step and the command to type, or why nothing fits and what would."""
    backbone, tuning = config.backbone, config.tuning.name
    if backbone.source == "hub" and backbone.evaluation_only:
        size = 2 * question.model.parameters / GIB
        why = f"is evaluated here, not trained: its weights take {size:.1f} GiB in bfloat16."
        return {"fits": False, "why": [f"backbone={backbone.name} {why}"]}
    option = recommended(question, step, tuning)
    if option is None:
        return {"fits": False, "why": list(ways_out(question, step, tuning))}
    words = ["python run.py", *command(config, option)]
    return {"fits": True, "option": row(option), "command": " ".join(words)}


def command(config: Config, option: Option) -> Iterator[str]:
    """What to type for an option: only settings that differ from what they would be."""
    step, data = option.step, config.data
    yield f"stage={step}"
    yield f"backbone={config.backbone.name}"
    if data.name != "synthetic":
        yield f"data={data.name}"
        if root := getattr(data, "root", None):
            yield setting("data.root", root)
    before = {**PLAIN, f"{step}.token_budget": word(getattr(config, step).token_budget)}
    yield from settings(option, before | {"engine.precision": config.engine.precision})
    if step == "grpo":
        yield f"init=outputs/sft-{config.backbone.name}-{data.name}/<timestamp>"


PLAIN = {  # as composed where nothing is typed
    "tuning": "full",
    "engine": "single",
    "engine.ranks": "1",
    "engine.offload": "none",
    "tuning.gradient_checkpointing": "false",
}


def settings(option: Option, before: Mapping[str, str]) -> Iterator[str]:
    """What to type for an option where `before` is set, as it is typed."""
    setup, step = option.setup, option.step
    wanted = {"tuning": option.tuning, "engine": setup.engine}
    wanted["engine.ranks"] = str(setup.ranks // option.question.hosts)
    if not setup.cuda:
        wanted["engine.device"] = "cpu"
    wanted["engine.precision"] = setup.precision
    if setup.engine != "single":
        wanted["engine.offload"] = "cpu" if setup.offload else "none"
    wanted["tuning.gradient_checkpointing"] = word(setup.checkpointing)
    wanted[f"{step}.token_budget"] = word(_budget(option))
    if option.rollout != "none":
        wanted["rollout"] = option.rollout
    if option.rollout == "vllm":
        wanted["rollout.memory"] = f"{option.rollout_memory:.2f}"
    other_engine = before["engine"] != setup.engine  # it has a number of ranks of its own
    for key, value in wanted.items():
        if before.get(key) != value or (key == "engine.ranks" and other_engine):
            yield f"{key}={value}"


def word(value: bool | int | None) -> str:
    """A value as it is typed."""
    return json.dumps(value)


def _budget(option: Option) -> int | None:
    """`token_budget` of an option; None: all prompts of a rank in one forward."""
    if option.forwards == 1 and option.work.groups > 1:
        return None
    return 1 if option.work.groups == 1 else option.work.budget


# --------------------------------------------------------------------------- printing


def show(result: Mapping[str, Any], question: Question, console: Console) -> None:
    """Print the tables, the recommendation and the notes."""
    count = sum(result["parameters"].values()) / 1e9
    place = f"{question.gpus} GPUs" if question.gpus else "the CPU"
    console.print(
        f"[bold]{result['backbone']}[/bold]: {count:.2f} B parameters on {place}, "
        f"{result['usable_gib']:.1f} GiB usable each; a picture of "
        f"{'x'.join(map(str, result['assumed']['picture']))} is {_sizes(question)}"
    )
    for step in TITLES:
        for tuning in TUNINGS:
            console.print(_table(result, step, tuning, question))
    for step, title in TITLES.items():
        _advise(result["recommended"][step], title, console)
    for note in result["notes"]:
        console.print(f"[dim]{note}[/dim]")


def _sizes(question: Question) -> str:
    """What the picture becomes in each step, which may limit it differently."""
    tokens = {title: question.shown[step].picture.tokens for step, title in TITLES.items()}
    if len(set(tokens.values())) == 1:
        return f"{tokens[TITLES['sft']]:,} tokens"
    return " and ".join(f"{count:,} tokens in {title}" for title, count in tokens.items())


def _table(result: Mapping[str, Any], step: StepName, tuning: Tuning, question: Question) -> Table:
    share = f"{_prompts(question.share(step))} on each of {question.ranks(step)}"
    table = Table(title=f"{TITLES[step]}, {tuning}: GiB per {question.place} ({share})")
    for key, name in COLUMNS.items():
        words = key in ("engine", "offload", "rollout")
        table.add_column(name, justify="left" if words else "right")
    for line in result["options"]:
        if (line["step"], line["tuning"]) == (step, tuning):
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


def _advise(found: Mapping[str, Any], title: str, console: Console) -> None:
    if not found["fits"]:
        console.print(f"[bold red]{title}[/bold red]")
        for sentence in found["why"]:
            console.print(f"  {sentence}", soft_wrap=True)
        return
    option = found["option"]
    console.print(
        f"[bold green]{title}[/bold green]: {option['peak']:.1f} GiB, "
        f"{_prompts(option['prompts_per_forward'])} in a forward of "
        f"{option['tokens_per_forward']:,} tokens"
        f"{', layers computed again' if option['gradient_checkpointing'] else ''}"
    )
    console.print(f"  {found['command']}", soft_wrap=True, highlight=False)
