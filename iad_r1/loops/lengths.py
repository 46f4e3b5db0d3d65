"""How long the prompts of a run get, before any of them is made.

From the sizes of the pictures, the words of the prompts and the processor's own arithmetic. What
does not fit is said before the first step is taken, and vLLM is given room for the longest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

from iad_r1.data import images
from iad_r1.errors import ConfigError, DataError
from iad_r1.grid import as_grid
from iad_r1.learn.context import Context
from iad_r1.loops import evaluate, results
from iad_r1.loops.sft import TARGETS
from iad_r1.processes import distributed
from iad_r1.rollouts.prompting import open_prompter
from iad_r1.settings.config import Config
from iad_r1.settings.rollout import AnyVllmRollout
from iad_r1.types import Dataset, Sample

Stage = Literal["sft", "grpo", "evaluate"]
STAGES: tuple[Stage, ...] = ("sft", "grpo", "evaluate")
MUCH = 0.25  # of a picture, to be cut off
AGAIN = 8  # tokens by which an answer that vLLM reads again, for P(yes), may have become longer
LOOKED_AT = 64  # answers whose length is compared with the limits


@dataclass(frozen=True)
class Longest:
    """The longest prompt of a stage, in tokens, and those kept free for its answer."""

    stage: Stage
    sample: Sample
    shots: int
    prompt: int
    answer: int

    @property
    def tokens(self) -> int:
        return self.prompt + self.answer

    def __str__(self) -> str:
        shown = f" with {self.shots} reference picture{'s' * (self.shots > 1)}" * bool(self.shots)
        answer = f" and its answer takes {self.answer:,}" * bool(self.answer)
        return f"{self.sample.id}{shown}: its prompt has {self.prompt:,} tokens{answer}"


def derived(context: Context) -> Config:
    """The settings with `rollout.max_model_len=null` replaced by what the longest prompt that vLLM
    will be asked takes with its completion.

    ConfigError if a prompt is longer than the model was made for, DataError if it is longer than a
    limit that was set.
    """
    config, rollout = context.config, context.config.rollout
    _check_answers(context)
    found = list(_found(context, config))
    for longest in found:
        _check_positions(context, longest)
        _check(longest, f"{longest.stage}.max_length", getattr(config, longest.stage).max_length)
    if distributed.is_main():
        context.folder.update_manifest(
            longest_prompts={
                one.stage: {"tokens": one.prompt, "of": one.sample.id} for one in found
            }
        )
    asked = [longest for longest in found if longest.stage != "sft"]
    if not asked or not isinstance(rollout, AnyVllmRollout):
        return config
    if any(longest.stage == "grpo" for longest in asked):
        _check_pictures(context.dataset.rl, rollout.max_images)
    longest = max(asked, key=lambda one: one.tokens)
    _check(longest, "rollout.max_model_len", rollout.max_model_len)
    again = AGAIN if config.engine_alone else 0
    room = rollout.max_model_len or min(longest.tokens + again, context.backbone.positions)
    return config.model_copy(update={"rollout": rollout.model_copy(update={"max_model_len": room})})


def _found(context: Context, config: Config) -> Iterator[Longest]:
    """The longest prompt of every stage of the run; `stage=parity` has the prompts of SC-GRPO."""
    chosen: list[Stage] = [stage for stage in STAGES if stage in config.tasks()]
    if not chosen:
        chosen = ["grpo"]
    for stage in chosen:
        samples, shots = asked(context.config, context.dataset, stage)
        if samples:
            _say_what_is_cut_off(context, stage, samples)
            yield _longest(context, config, stage, samples, shots)


def _check_answers(context: Context) -> None:
    """ConfigError if answers that PA-SFT teaches would be cut off where the model is to give them.

    Those that hold places in numbers, or that a data set has written, are longer than those by rule
    in words. Looked at are targets that are spread over the samples.
    """
    config, tasks = context.config, context.config.tasks()
    samples, grid = getattr(context.dataset, config.sft.samples), as_grid(config.grid)
    written = config.sft.target == "chain_of_thought" and any(s.target for s in samples)
    if "sft" not in tasks or not (written or config.location_format != "words"):
        return
    prompter = open_prompter(config, context.backbone, "sft")
    spread = samples[:: max(1, len(samples) // LOOKED_AT)]
    said = [TARGETS[config.sft.target](s, config.seed, grid, prompter.place(s)) for s in spread]
    lengths = [len(context.backbone.encode_target(target.text).tokens) for target in said]
    needed = max(lengths, default=0)
    limits = {"evaluate": config.evaluate.max_tokens, "grpo": config.rollout.max_tokens}
    names = {"evaluate": "evaluate.max_tokens", "grpo": "rollout.max_tokens"}
    short = [task for task, limit in limits.items() if task in tasks and limit < needed]
    if short:
        raise ConfigError(
            f"{' and '.join(f'{names[task]}={limits[task]}' for task in short)} would cut off "
            f"answers as PA-SFT teaches them: some take {needed} tokens. Use "
            f"{' '.join(f'{names[task]}={needed + needed // 4}' for task in short)}."
        )


def asked(config: Config, dataset: Dataset, stage: Stage) -> tuple[Sequence[Sample], int]:
    """What a stage shows, and the most references beside it, but for those that belong to a sample
    in training."""
    if stage == "sft":
        return getattr(dataset, config.sft.samples), int(config.sft.one_shot_share > 0)
    if stage == "grpo":
        return [*dataset.rl, *results.choosing(config, dataset)], 0
    judged = chain.from_iterable(evaluate.splits(config, dataset).values())
    return list(judged), max(config.evaluate.shots)


def references(stage: Stage, sample: Sample, shots: int) -> int:
    """The most references that a stage which shows `shots` shows with this sample."""
    return shots if stage == "evaluate" else max(shots, sample.shots)


def _longest(
    context: Context, config: Config, stage: Stage, samples: Sequence[Sample], shots: int
) -> Longest:
    prompter = open_prompter(config, context.backbone, stage)
    shown = [references(stage, sample, shots) for sample in samples]
    lengths = list(map(prompter.length, samples, shown))
    prompt = max(lengths)
    at = lengths.index(prompt)
    return Longest(stage, samples[at], shown[at], prompt, prompter.room.answer)


def _say_what_is_cut_off(context: Context, stage: Stage, samples: Sequence[Sample]) -> None:
    if not context.backbone.cut_off(1, 2) or not distributed.is_main():
        return
    shares = {s.id: context.backbone.cut_off(*images.size(s)) for s in samples}
    much = [share for share in shares.values() if share > MUCH]
    if much:
        most = max(shares, key=shares.__getitem__)
        print(
            f"{stage}: {context.config.backbone.name} is shown the middle square of a picture. "
            f"{len(much)} of {len(shares)} pictures lose more than {MUCH:.0%} to that; {most} "
            f"loses {shares[most]:.0%}. Defects there are not seen: cut such pictures into "
            "squares, or take another backbone",
            flush=True,
        )


def _check(longest: Longest, setting: str, most: int | None) -> None:
    if most is not None and longest.tokens > most:
        raise DataError(
            f"{longest}, more than {setting}={most:,}. Set {setting}=null, which is as long as is "
            f"needed, or {setting}={longest.tokens}, or show smaller pictures "
            f"({longest.stage}.max_pixels)."
        )


def _check_pictures(samples: Sequence[Sample], most: int) -> None:
    for sample in samples:
        if sample.shots >= most:
            raise DataError(
                f"{sample.id} is shown with {sample.shots} reference pictures, more than "
                f"rollout.max_images={most} leaves room for. Set rollout.max_images="
                f"{sample.shots + 1}."
            )


def _check_positions(context: Context, longest: Longest) -> None:
    most = context.backbone.positions
    if longest.tokens > most:
        ways = list(_ways_out(context, longest.stage, most))
        raise ConfigError(
            f"{longest}, more than the {most:,} positions of {context.config.backbone.name}. "
            + (f"What fits: {', or '.join(ways)}." if ways else "Ask for shorter answers.")
        )


def _ways_out(context: Context, stage: Stage, most: int) -> Iterator[str]:
    """Fewer references, and smaller pictures: the first of each that fits."""
    config = context.config
    samples, shots = asked(context.config, context.dataset, stage)
    for fewer in range(shots - 1, -1, -1):
        if _longest(context, config, stage, samples, fewer).tokens <= most:
            kept = [count for count in config.evaluate.shots if count <= fewer] or [fewer]
            of = f"evaluate.shots={kept}" if stage == "evaluate" else "sft.one_shot_share=0"
            yield of.replace(" ", "")
            break
    pixels = 2**24
    while pixels >= 2**12:
        pixels //= 2
        settings = getattr(config, stage).model_copy(update={"max_pixels": pixels})
        smaller = config.model_copy(update={stage: settings})
        if _longest(context, smaller, stage, samples, shots).tokens <= most:
            yield f"{stage}.max_pixels={pixels}"
            return
