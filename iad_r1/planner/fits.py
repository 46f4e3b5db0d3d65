"""Which engine, batch and rollout mode fit: every option that a step has, predicted and judged."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from iad_r1.planner import memory
from iad_r1.planner.memory import GIB, EngineName, Lora, Part, Setup, Work
from iad_r1.planner.widths import Architecture, Picture
from iad_r1.settings.training import Packing

StepName = Literal["sft", "grpo"]
Asked = Literal["sft", "grpo", "evaluate"]
Tuning = Literal["full", "lora"]

# Fastest first. `single` holds everything on every GPU: first where there is one GPU, or where
# little is trained (LoRA), else last.
ZERO: list[tuple[EngineName, bool]] = [
    ("zero2", False), ("zero3", False), ("zero2", True), ("zero3", True)
]  # fmt: skip


@dataclass(frozen=True)
class Shown:
    """The longest prompt of a step: tokens of its words, its pictures, which are alike, and tokens
    of its answer (in SC-GRPO of the longest completion)."""

    text: int
    picture: Picture
    pictures: int
    answer: int

    @property
    def tokens(self) -> int:
        """Of the prompt."""
        return self.text + self.pictures * self.picture.tokens

    def work(self, groups: int, completions: int = 1, packing: Packing = "group") -> Work:
        """A forward pass of that many prompts."""
        return Work(
            groups=groups,
            text=self.text,
            picture=self.picture,
            pictures=self.pictures,
            completions=completions,
            length=self.answer,
            packing=packing,
        )


@dataclass(frozen=True)
class Question:
    """What is to be planned: a model, the GPUs (0: the CPU), and what a step carries."""

    model: Architecture
    gpus: int
    total: int  # bytes of each
    limit: int  # bytes that may be used of them
    main: int  # bytes of the host's main memory, for offloading
    overhead: int
    workspace: int  # of a vLLM engine
    shown: Mapping[Asked, Shown]
    batch: dict[StepName, int]  # prompts of a batch, on all ranks
    group: int  # completions per prompt in SC-GRPO
    packing: Packing  # of SC-GRPO
    reference: bool  # whether SC-GRPO has a KL term
    train: dict[Tuning, tuple[Part, ...]]
    rank: int  # of LoRA
    dropout: bool  # of LoRA, in PA-SFT
    decoded: int  # completions decoded at once by rollout=hf
    precision: Literal["float32", "bfloat16"]
    hosts: int = 1  # that the GPUs are spread over
    minibatches: int = 1  # optimiser steps in which SC-GRPO learns a batch

    @property
    def place(self) -> str:
        """Where a rank works."""
        return "GPU" if self.gpus else "CPU"

    def ranks(self, step: StepName) -> int:
        """One per GPU, but no more than there are prompts to share."""
        return max(1, min(self.gpus, self.batch[step]))

    def packing_of(self, step: StepName) -> Packing:
        """PA-SFT packs through FlashAttention where SC-GRPO does, else through SDPA."""
        return self.packing if step == "grpo" or self.packing == "group_flash" else "group"

    def work(self, step: StepName, groups: int) -> Work:
        """A forward pass of that many prompts, with their groups of completions in SC-GRPO."""
        completions = self.group if step == "grpo" else 1
        return self.shown[step].work(groups, completions, self.packing_of(step))

    def setup(self, step: StepName, tuning: Tuning, engine: EngineName, offload: bool) -> Setup:
        """How the model is trained under an engine, without checkpointing."""
        lora = Lora(self.rank, self.dropout and step == "sft")
        return Setup(
            engine=engine,
            offload=offload,
            ranks=self.ranks(step),
            precision=self.precision,
            lora=lora if tuning == "lora" else None,
            train=self.train[tuning],
            reference=step == "grpo" and tuning == "full" and self.reference,
            cuda=self.gpus > 0,
        )

    def decoded_at_once(self) -> int:
        """Completions that rollout=hf decodes at once."""
        return max(self.group, min(self.share("grpo") * self.group, self.decoded))

    def share(self, step: StepName) -> int:
        """Prompts of a rank in a batch."""
        return math.ceil(self.batch[step] / self.ranks(step))

    def learned(self, step: StepName) -> int:
        """Prompts of a rank in one optimiser step."""
        return math.ceil(self.share(step) / (self.minibatches if step == "grpo" else 1))


@dataclass(frozen=True)
class Option:
    """One way to take a step, with its predicted memory."""

    question: Question
    step: StepName
    tuning: Tuning
    setup: Setup
    work: Work
    rollout: Literal["none", "vllm", "vllm_server", "hf"] = "none"
    sampling: memory.Sampling = memory.UNSAMPLED
    rollout_memory: float = 0.0  # the share of the GPU that vLLM is given
    awake: bool = False  # whether vLLM keeps its memory while the trainer works

    @property
    def forwards(self) -> int:
        """Of one optimiser step."""
        return math.ceil(self.question.learned(self.step) / self.work.groups)

    @cached_property
    def training(self) -> memory.Training:
        return memory.training(
            self.question.model,
            self.work,
            self.setup,
            forwards=self.forwards,
            entropy=self.step == "grpo",
        )

    @property
    def whole(self) -> int:
        """Weights that are gathered where ranks do different things."""
        return memory.whole(self.question.model, self.setup)

    @property
    def peak(self) -> int:
        """The most on each GPU: while training; beside the states, while sampling, or while a
        model is asked without gradient, as the reference is and by the parity gate."""
        awake = self.sampling.total if self.awake else 0
        most = self.training.peak + awake
        if self.step == "grpo":
            beside = self.training.states.standing + self.training.buffers + self.whole
            scoring = memory.scoring(self.question.model, self.work, self.setup)
            most = max(most, beside + max(self.sampling.total, awake + scoring))
        return most + self.question.overhead

    @property
    def host(self) -> int:
        """In main memory, for all ranks of one host."""
        return self.training.states.host * self.setup.ranks

    @property
    def fits(self) -> bool:
        return self.peak <= self.question.limit and self.host <= self.question.main


def options(question: Question, step: StepName, tuning: Tuning) -> list[Option]:
    """The best variant under each engine, in the order in which they are to be preferred."""
    plain = best(question, step, tuning, "single", False)
    if question.gpus == 0:
        return [plain]
    spread = [best(question, step, tuning, *engine) for engine in ZERO]
    return [plain, *spread] if tuning == "lora" or question.gpus == 1 else [*spread, plain]


def recommended(question: Question, step: StepName, tuning: Tuning) -> Option | None:
    """The first option that fits."""
    return next((option for option in options(question, step, tuning) if option.fits), None)


def best(
    question: Question, step: StepName, tuning: Tuning, engine: EngineName, offload: bool
) -> Option:
    """As many prompts per forward as fit, with checkpointing only where it has to be; the least
    there is where nothing fits."""
    setup = question.setup(step, tuning, engine, offload)
    tried = None
    for checkpointing in (False, True):
        for groups in range(question.learned(step), 0, -1):
            tried = Option(
                question,
                step,
                tuning,
                replace(setup, checkpointing=checkpointing),
                question.work(step, groups),
            )
            if step == "grpo":
                tried = _sampled(tried)
            if tried.fits:
                return tried
    assert tried is not None
    return tried


def _sampled(option: Option) -> Option:
    """With the sampler: vLLM beside the trainer if both fit, else transformers, which needs
    no weights of its own but decodes slowly (and gathers them for every token under ZeRO-3)."""
    question = option.question
    rows = question.share(option.step) * question.group
    engine = memory.vllm_sampling(question.model, option.work, rows, question.workspace)
    share = math.ceil(20 * engine.total / question.total) / 20  # rollout.memory in steps of 5 %
    engine = engine.filled(int(share * question.total))
    colocated = replace(option, rollout="vllm", sampling=engine, rollout_memory=share)
    if question.gpus and share < 1 and colocated.fits:
        return colocated
    decoded = question.decoded_at_once()
    own = memory.hf_sampling(question.model, option.work, decoded, option.setup)
    return replace(option, rollout="hf", sampling=own)


# --------------------------------------------------------------------------- if nothing fits


def ways_out(question: Question, step: StepName, tuning: Tuning) -> Iterator[str]:
    """What would make a step fit that does not: more GPUs, larger ones, or adapters alone."""
    for option in _nearest(question, step, tuning):
        yield _why(question, option)
    if question.gpus:
        more = more_gpus(question, step, tuning)
        yield (
            "No number of GPUs of this size up to 64 would do."
            if more is None
            else f"{more} GPUs of this size would do: gpus={more}{_larger(question, step, more)}."
        )
    if tuning == "full" and recommended(question, step, "lora") is not None:
        yield "LoRA fits: tuning=lora."


def _nearest(question: Question, step: StepName, tuning: Tuning) -> list[Option]:
    """The options that need least, without and with offloading."""
    found = options(question, step, tuning)
    kinds = [[o for o in found if o.setup.offload is offload] for offload in (False, True)]
    return [min(kind, key=lambda option: option.peak) for kind in kinds if kind]


def _why(question: Question, option: Option) -> str:
    """By how much an option does not fit."""
    setup, reasons = option.setup, []
    if option.peak > question.limit:
        reasons.append(
            f"{option.peak / GIB:.1f} GiB on each {question.place}, "
            f"{(option.peak - question.limit) / GIB:.1f} GiB more than may be used"
        )
    if option.host > question.main:
        reasons.append(
            f"{option.host / GIB:.0f} GiB of main memory, "
            f"{(option.host - question.main) / GIB:.0f} GiB more than there is (stage.main_memory)"
        )
    if not reasons:  # it fits, but is never recommended
        reasons.append("bfloat16 without float32 weights, where small updates are lost")
    offload = " engine.offload=cpu" if setup.offload else ""
    what = f"{option.tuning} tuning with engine={setup.engine}{offload}"
    return f"{what} needs {', and '.join(reasons)}."


def _larger(question: Question, step: StepName, gpus: int) -> str:
    """The setting that gives every GPU a prompt, if there are fewer now."""
    key = {"sft": "sft.phases.0.batch_size", "grpo": "grpo.prompts_per_step"}[step]
    return f" {key}={gpus}" if gpus > question.batch[step] else ""


def more_gpus(question: Question, step: StepName, tuning: Tuning) -> int | None:
    """The smallest number of such GPUs, 8 to a host and a prompt for each, that would do; None if
    64 would not."""
    for gpus in (2, 3, 4, 6, 8, 16, 32, 64):
        batch = {**question.batch, step: max(gpus, question.batch[step])}
        main = question.main // question.hosts * max(1, gpus // 8)
        larger = replace(question, gpus=gpus, batch=batch, main=main)
        if gpus > question.gpus and recommended(larger, step, tuning):
            return gpus
    return None
