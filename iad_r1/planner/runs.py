"""Whether a run fits on the GPUs it has: what its settings need, and which others would fit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from iad_r1.planner import memory, tables
from iad_r1.planner.fits import ZERO, Asked, Option, Question, StepName, Tuning, more_gpus
from iad_r1.planner.memory import GIB, EngineName, Sampling
from iad_r1.settings.config import Config
from iad_r1.settings.engine import Memory
from iad_r1.settings.rollout import HfRollout, VllmRollout

TITLES: Mapping[Asked, str] = {**tables.TITLES, "evaluate": "evaluation"}


@dataclass(frozen=True)
class Gpu:
    """The GPU of a rank: bytes of it that are free, and that there are."""

    rank: int
    free: int
    total: int

    @property
    def used(self) -> int:
        return self.total - self.free

    def usable(self, assumed: Memory) -> int:
        """What a run may take of it. What is in use already is taken for this process' own context
        up to `memory.overhead`, which a run's need includes."""
        own = min(self.used, int(assumed.overhead * GIB))
        return self.free + own - int(assumed.margin * self.total)


@dataclass(frozen=True)
class Need:
    """Bytes that a part of a run is predicted to take on each GPU, and of main memory for all its
    ranks; and what to type to have it so."""

    peak: int
    host: int = 0
    words: tuple[str, ...] = ()


def problem(config: Config, question: Question, gpus: Sequence[Gpu]) -> str | None:
    """The sentences that refuse a run of which a part does not fit; None if all of it does.

    The limit of `question` are the usable bytes of the fullest of `gpus`.
    """
    fullest = min(gpus, key=lambda gpu: gpu.usable(config.memory))
    for part in question.shown:
        evaluating = part == "evaluate"
        if config.engine_alone and (problem := _small_share(config, question)):
            return problem
        needs = evaluation(config, question) if evaluating else training(config, question, part)
        first = next(needs)
        if not _fits(first, question):
            better = next((need for need in needs if _fits(need, question)), None)
            return " ".join(_sentences(config, question, part, first, better, fullest))
    return None


def _fits(need: Need, question: Question) -> bool:
    return need.peak <= question.limit and need.host <= question.main


def _sentences(
    config: Config, question: Question, part: Asked, need: Need, better: Need | None, gpu: Gpu
) -> Iterator[str]:
    what = f"{TITLES[part]} of {config.backbone.name} is predicted to need"
    if need.peak > question.limit:
        yield (
            f"{what} {need.peak / GIB:.1f} GiB on each GPU, and the GPU of rank {gpu.rank} has "
            f"{gpu.free / GIB:.1f} of {gpu.total / GIB:.1f} GiB free, of which "
            f"{question.limit / GIB:.1f} may be used (memory.margin={config.memory.margin:g})."
        )
        if gpu.used > config.memory.overhead * GIB:
            yield f"{gpu.used / GIB:.1f} GiB are in use there already; nvidia-smi lists by whom."
    else:
        yield (
            f"{what} {need.host / GIB:.0f} GiB of main memory, and {question.main / GIB:.0f} GiB "
            "are available."
        )
    if better is not None:
        yield f"These settings fit: {' '.join(better.words)} ({better.peak / GIB:.1f} GiB)."
    else:
        yield "No other settings were found to fit on these GPUs."
        if part != "evaluate" and (more := more_gpus(question, part, config.tuning.name)):
            yield f"{more} such GPUs would do (stage=plan gpus={more} says how)."
    yield "This is a prediction; memory.check=false starts the run all the same."


# --------------------------------------------------------------------------- training


def training(config: Config, question: Question, step: StepName) -> Iterator[Need]:
    """What a training step needs as it is set, then with other settings, the nearest first."""
    if _sees_nothing(config, step):
        question = replace(question, train=dict.fromkeys(question.train, ("language",)))
    first = as_set(config, question, step)
    yield Need(first.peak, first.host)
    before = _set(config, step)
    for option in (first, *_others(first)):
        for sampled in _smaller(config, option):
            words = tuple(tables.settings(sampled, before))
            yield Need(sampled.peak, sampled.host, words)


def _sees_nothing(config: Config, step: StepName) -> bool:
    """Whether the vision side is frozen throughout a step, whatever `tuning.train` says."""
    if step == "sft":
        return all(phase.freeze_vision for phase in config.sft.phases)
    return config.grpo.vision_lr_scale == 0


def as_set(config: Config, question: Question, step: StepName) -> Option:
    """The option that the settings of a run are."""
    tuning, budget = config.tuning, getattr(config, step).token_budget
    offload = getattr(config.engine, "offload", "none") == "cpu"
    setup = question.setup(step, tuning.name, config.engine.name, offload)
    setup = replace(setup, checkpointing=tuning.gradient_checkpointing)
    groups = question.learned(step)
    if budget is not None:
        groups = max(1, min(groups, budget // question.work(step, 1).budget))
    option = Option(question, step, tuning.name, setup, question.work(step, groups))
    return option if step == "sft" else _sampled(config, option)


def _sampled(config: Config, option: Option) -> Option:
    """With the sampler that is set."""
    rollout, question = config.rollout, option.question
    if isinstance(rollout, VllmRollout):
        engine = _engine(config, question, option.work)
        return replace(
            option,
            rollout="vllm",
            sampling=engine,
            rollout_memory=rollout.memory,
            awake=not rollout.sleep,
        )
    if isinstance(rollout, HfRollout):
        rows = question.decoded_at_once()
        own = memory.hf_sampling(question.model, option.work, rows, option.setup)
        return replace(option, rollout="hf", sampling=own)
    return replace(option, rollout="vllm_server")


def _engine(config: Config, question: Question, work: memory.Work) -> Sampling:
    """vLLM in the training process: the share of the GPU that it is given, or what
    `rollout.kv_cache_gib` makes of it."""
    rollout = config.rollout
    assert isinstance(rollout, VllmRollout)
    least = memory.vllm_sampling(question.model, work, work.completions, question.workspace)
    if rollout.kv_cache_gib is not None:
        return replace(least, cache=int(rollout.kv_cache_gib * GIB))
    return least.filled(int(rollout.memory * question.total))


def _smaller(config: Config, option: Option) -> Iterator[Option]:
    """An option, and the same with a smaller engine of vLLM, as long as a group has room. The same
    engine answers, so those are left out beside which answers could not be scored."""
    question = option.question
    if option.rollout != "vllm":
        yield option
        return
    room = question.limit
    if "evaluate" in question.shown:
        room -= _scoring(question, config.evaluate.batch_size)
    if option.sampling.total <= room:
        yield option
    if getattr(config.rollout, "kv_cache_gib", None) is not None:
        return
    work = option.work
    least = memory.vllm_sampling(question.model, work, work.completions, question.workspace)
    for share in _shares(option.rollout_memory):
        if least.total <= share * question.total <= room:
            engine = least.filled(int(share * question.total))
            yield replace(option, sampling=engine, rollout_memory=share)


def _shares(below: float) -> Iterator[float]:
    """Shares of a GPU's memory in steps of 5 %, from the first below one on."""
    return (twentieth / 20 for twentieth in range(19, 0, -1) if twentieth / 20 < below)


def _others(option: Option) -> Iterator[Option]:
    """Other options for a step: fewer prompts at once, layers computed again, another engine, and
    at last LoRA."""
    question, step, setup = option.question, option.step, option.setup
    own: tuple[EngineName, bool] = (setup.engine, setup.offload)
    tunings: list[Tuning] = list(dict.fromkeys((option.tuning, "lora")))
    for tuning in tunings:
        for name, offload in dict.fromkeys((own, *ZERO)):
            other = question.setup(step, tuning, name, offload)
            for checkpointing in sorted({setup.checkpointing, True}):
                for groups in range(option.work.groups, 0, -1):
                    yield replace(
                        option,
                        tuning=tuning,
                        setup=replace(other, checkpointing=checkpointing),
                        work=question.work(step, groups),
                    )


def _set(config: Config, step: StepName) -> dict[str, str]:
    """What is set already of what `tables.settings` says of an option."""
    engine, tuning, rollout = config.engine, config.tuning, config.rollout
    return {
        "tuning": tuning.name,
        "engine": engine.name,
        "engine.ranks": str(engine.ranks),
        "engine.precision": engine.precision,
        "engine.offload": getattr(engine, "offload", "none"),
        "tuning.gradient_checkpointing": tables.word(tuning.gradient_checkpointing),
        f"{step}.token_budget": tables.word(getattr(config, step).token_budget),
        "rollout": rollout.name,
        "rollout.memory": f"{getattr(rollout, 'memory', 0.0):.2f}",
    }


# --------------------------------------------------------------------------- evaluation


def evaluation(config: Config, question: Question) -> Iterator[Need]:
    """What answering needs as it is set, then with less: prompts at once, or memory of vLLM."""
    rollout, model, shown = config.rollout, question.model, question.shown["evaluate"]
    batch = config.evaluate.batch_size
    if isinstance(rollout, HfRollout):
        setup = memory.Setup(precision=question.precision)
        while batch:
            sampling = memory.hf_sampling(model, shown.work(batch), batch, setup).total
            words = (f"evaluate.batch_size={batch}",)
            yield Need(_scoring(question, batch) + sampling, words=words)
            batch //= 2
        return
    beside = question.overhead if config.engine_alone else _scoring(question, batch)
    if not isinstance(rollout, VllmRollout):
        yield Need(beside)
        return
    least = _least(question)
    yield Need(beside + max(least, _engine(config, question, shown.work(1)).total))
    for share in _shares(rollout.memory):
        if share * question.total >= least and rollout.kv_cache_gib is None:
            words = (f"rollout.memory={share:.2f}",)
            yield Need(beside + int(share * question.total), words=words)


def _least(question: Question) -> int:
    """What vLLM takes with room for one answer at a time."""
    work = question.shown["evaluate"].work(1)
    return memory.vllm_sampling(question.model, work, 1, question.workspace).total


def _small_share(config: Config, question: Question) -> str | None:
    """The sentences that refuse a share of the GPU in which vLLM has no room for an answer, where
    nothing but vLLM takes the rest."""
    rollout, least = config.rollout, _least(question)
    assert isinstance(rollout, VllmRollout)
    share = math.ceil(20 * least / question.total) / 20
    wanted = question.overhead + int(share * question.total)
    if rollout.kv_cache_gib is not None or share <= rollout.memory or wanted > question.limit:
        return None
    return (
        f"vLLM with {config.backbone.name} is predicted to need {least / GIB:.1f} GiB for weights, "
        f"workspace and one answer, and rollout.memory={rollout.memory:g} gives it "
        f"{rollout.memory * question.total / GIB:.1f}. Use rollout.memory={share:.2f} or more. "
        "This is a prediction; memory.check=false starts the run all the same."
    )


def _scoring(question: Question, batch: int) -> int:
    """What P(yes) of a batch of answers takes, while vLLM goes on with the next. The weights are
    whole on every rank, whatever trained them."""
    model, work = question.model, question.shown["evaluate"].work(batch, completions=2)
    setup = memory.Setup(precision=question.precision, train=())
    weights = memory.states(model, setup).weights
    return weights + question.overhead + memory.scoring(model, work, setup)
