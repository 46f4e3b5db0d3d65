"""What a run may be told, with types and the rules between settings.

The values live in `conf/`, and only there: no setting has a default here. Every option that
exists is read by something; an unknown one is an error. Standard library and pydantic only, so
that a mistake is reported before anything heavy is imported.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic import NonNegativeFloat as AtLeast0
from pydantic import NonNegativeInt as Count0
from pydantic import PositiveFloat as Above0
from pydantic import PositiveInt as Count

from iad_r1.errors import ConfigError
from iad_r1.grid import GridConfig
from iad_r1.settings.audit import AuditStage
from iad_r1.settings.data import DataConfig
from iad_r1.settings.plan import PlanStage
from iad_r1.settings.rewards import RewardsConfig
from iad_r1.settings.tracking import TrackingConfig

Share = Annotated[float, Field(ge=0, le=1)]
Schedule = Literal["cosine", "linear", "constant_with_warmup"]


class Section(BaseModel):
    """A group of settings: typed, complete, nothing else accepted, never changed later."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


HINTS = {
    "data.root": "data=photos reads a folder: data.root=<folder that holds meta.csv, or "
    "<product>/train/good/ and <product>/test/<defect>/>.",
}

# --- what the run does -------------------------------------------------------------------------

Step = Literal["pretrain", "sft", "grpo", "evaluate", "report", "audit", "plan", "parity", "serve"]


class RunStage(Section):
    """`stage=...`: one job, as the steps it takes in order."""

    name: Literal["pipeline", "pretrain", "sft", "grpo", "evaluate", "report", "parity", "serve"]
    steps: Annotated[list[Step], Field(min_length=1)]


Stage = Annotated[RunStage | AuditStage | PlanStage, Field(discriminator="name")]


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
    augment: bool


class Sft(Optimiser):
    """PA-SFT: supervised fine-tuning on answers that perceive before they judge."""

    prompt: str
    target: Literal["chain_of_thought", "direct"]
    samples: Literal["sft", "rl"]
    one_shot_share: Share
    token_budget: Count | None
    max_length: Count | None
    phases: Annotated[list[SftPhase], Field(min_length=1)]


class Importance(Section):
    """Correction of SC-GRPO for completions that another policy drew than the one it trains."""

    level: Literal["off", "token", "sequence"]
    mode: Literal["truncate", "mask"]
    cap: Above0


class Collapse(Section):
    """When a policy counts as collapsed: one answer whatever it sees, or no exploration left."""

    answer_share: Annotated[float, Field(ge=0.5, le=1)]
    entropy: AtLeast0
    steps: Count
    stop: bool


class Grpo(Optimiser, Length):
    """SC-GRPO: group relative policy optimisation with a structured reward."""

    prompt: str
    from_base: bool
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
    importance: Importance
    aggregation: Literal["sequence_mean", "token_mean", "fixed_length"]
    advantage: Literal["group_std", "no_std", "leave_one_out", "batch_std"]
    degenerate_groups: Literal["keep", "skip", "resample"]
    resample_limit: Count
    truncated: Literal["keep", "mask"]
    packing: Literal["group", "group_flex", "off"]
    token_budget: Count | None
    collapse: Collapse
    rollouts_every: Count


class Evaluate(Section):
    """Greedy answers on held-out images, and what is computed from them."""

    prompt: str
    splits: Annotated[list[Literal["validation", "test"]], Field(min_length=1)]
    shots: Annotated[list[Count0], Field(min_length=1)]
    evaluator: Literal["strict", "iadr1_compat", "mmad_compat"]
    max_tokens: Count
    max_length: Count | None
    batch_size: Count
    limit: Count | None


# --- what it works with ------------------------------------------------------------------------


class BuiltBackbone(Section):
    """A model that is built here, weights and all."""

    source: Literal["built"]
    name: str
    vocab_size: Count
    max_pixels: Annotated[int, Field(ge=1024)]  # one image token


class HubBackbone(Section):
    """A published model, read from a folder, an earlier run or the Hugging Face cache."""

    source: Literal["hub"]
    name: str
    path: Annotated[str, Field(min_length=1)]
    revision: Annotated[str, Field(min_length=1)]
    trust_remote_code: bool
    evaluation_only: bool
    license: str
    max_pixels: Count | None
    sft_max_length: Count
    grpo_max_length: Count
    sft_learning_rate: Above0
    sft_save_every: Count
    released_test_prompt: str


Backbone = Annotated[BuiltBackbone | HubBackbone, Field(discriminator="source")]


class WeightsKind(Section):
    """Whose weights a run begins with: `weights=...`."""

    name: Literal["published", "tiny", "random"]


class AnyTuning(Section):
    """What learns, in PA-SFT and SC-GRPO alike."""

    train: Annotated[list[Literal["vision", "projector", "language"]], Field(min_length=1)]
    gradient_checkpointing: bool


class FullTuning(AnyTuning):
    """The weights themselves are trained."""

    name: Literal["full"]


class LoraTuning(AnyTuning):
    """Low-rank adapters are trained; the reference policy is the model without them."""

    name: Literal["lora"]
    rank: Count
    alpha: Count
    dropout: Annotated[float, Field(ge=0, lt=1)]


Tuning = Annotated[FullTuning | LoraTuning, Field(discriminator="name")]


class Rollout(Section):
    """How completions are sampled during SC-GRPO: what every engine is told."""

    temperature: Annotated[float, Field(gt=0, le=2)]
    top_p: Annotated[float, Field(gt=0, le=1)]
    top_k: Count0
    max_tokens: Count
    batch_size: Count


class HfRollout(Rollout):
    """transformers, with the training weights themselves."""

    name: Literal["hf"]


class Parity(Section):
    """When and how the rollout engine is compared with the trainer (`rollouts/parity.py`)."""

    every: Count
    probes: Count
    tokens: Count
    limit: Above0 | None


class AnyVllmRollout(Rollout):
    """vLLM, wherever it runs."""

    max_num_seqs: Count
    max_model_len: Count
    max_images: Count
    memory: Annotated[float, Field(gt=0, lt=1)]
    kv_cache_gib: Above0 | None
    eager: bool
    patience: Above0
    parity: Parity


class VllmRollout(AnyVllmRollout):
    """vLLM in the training processes, one engine each."""

    name: Literal["vllm"]
    sleep: bool


class VllmServerRollout(AnyVllmRollout):
    """vLLM servers on GPUs or hosts of their own, started with `stage=serve`."""

    name: Literal["vllm_server"]
    servers: Annotated[
        list[Annotated[str, Field(pattern=r"^https?://[^/\s]+$")]], Field(min_length=1)
    ]
    host: str
    port: Annotated[int, Field(ge=1, le=65535)]


RolloutEngine = Annotated[HfRollout | VllmRollout | VllmServerRollout, Field(discriminator="name")]


class Processes(Section):
    """Where and in which precision the model runs: what every engine is told."""

    hosts: Count
    ranks: Count
    threads: Count
    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["float32", "bfloat16"]

    @property
    def processes(self) -> int:
        """Ranks on all hosts together."""
        return self.hosts * self.ranks


class SingleEngine(Processes):
    """Every rank holds all weights and optimiser states."""

    name: Literal["single"]


class ZeroEngine(Processes):
    """DeepSpeed: optimiser states and gradients, and in stage 3 weights, are spread over ranks."""

    name: Literal["zero2", "zero3"]
    offload: Literal["none", "cpu"]


Engine = Annotated[SingleEngine | ZeroEngine, Field(discriminator="name")]


class Checkpoint(Section):
    """Which checkpoints of a stage in training are kept. The end of a stage always is."""

    keep: Count
    best: bool


class Config(Section):
    """One run, complete: `config.json` in its run folder."""

    name: Annotated[str, Field(pattern=r"^[\w.=,+-]+$")]
    seed: Count0
    init: str | None
    resume: str | None
    dry_run: bool
    stage: Stage
    backbone: Backbone
    weights: WeightsKind
    data: DataConfig
    rewards: RewardsConfig
    grid: GridConfig
    tuning: Tuning
    rollout: RolloutEngine
    engine: Engine
    checkpoint: Checkpoint
    tracking: TrackingConfig
    pretrain: Pretrain | None
    sft: Sft
    grpo: Grpo
    evaluate: Evaluate

    def steps(self) -> list[Step]:
        """The steps this run takes: those of the stage, less pre-training where it has no place
        (a published backbone can see, and an earlier run was pre-trained already)."""
        grows_eyes = self.backbone.source == "built" and self.init is None
        return [step for step in self.stage.steps if step != "pretrain" or grows_eyes]


def load(text: str) -> Config:
    """Parse, type-check and cross-check the JSON of a resolved configuration.

    Raises ConfigError naming every setting that is wrong.
    """
    try:
        config = Config.model_validate_json(text)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(error, json.loads(text)))) from None
    problems = list(contradictions(config))
    if problems:
        raise ConfigError("\n".join(problems))
    return config


def read(path: Path) -> Config:
    """The configuration in a `config.json`."""
    return load(path.read_text(encoding="utf-8"))


def _explain(error: ValidationError, values: Any) -> Iterator[str]:
    for item in error.errors():
        where = [str(part) for part in item["loc"]]
        key = ".".join(_without_union_tags(where, values))
        if item["type"] == "extra_forbidden":
            yield f"{key}: there is no such setting."
        elif item["type"] == "missing":
            yield f"{key}: this setting is missing."
        elif item["type"] == "union_tag_invalid":
            tag = item.get("ctx", {})
            name = str(tag.get("discriminator")).strip("'")
            yield f"{key}.{name}={tag.get('tag')}: must be one of {tag.get('expected_tags')}."
        elif item["input"] is None:
            yield f"{key} has no value. {HINTS.get(key, f'Set it: {key}=<value>.')}"
        else:
            shown = json.dumps(item["input"]) if not isinstance(item["input"], dict) else "{...}"
            yield f"{key}={shown}: {_lower(item['msg'])}."


def _without_union_tags(where: list[str], values: Any) -> Iterator[str]:
    """The path as a user types it: pydantic adds the chosen variant of a union to it."""
    for index, part in enumerate(where):
        if isinstance(values, dict) and part not in values and index + 1 < len(where):
            continue
        yield part
        if isinstance(values, dict):
            values = values.get(part)
        elif isinstance(values, list) and part.isdigit() and int(part) < len(values):
            values = values[int(part)]


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


# --- rules between settings --------------------------------------------------------------------


def contradictions(config: Config) -> Iterator[str]:
    """One sentence for each pair of settings that cannot go together: what, why, what to type."""
    steps = config.steps()
    if not steps:
        yield (
            f"stage={config.stage.name} has nothing to do: only backbone=tiny is pre-trained, and "
            "only without init. Choose another stage, e.g. stage=sft."
        )
    yield from _training_length(config, steps)
    yield from _ranks(config, steps)
    if "pretrain" in steps and config.pretrain is None:
        yield (
            f"pretrain=null, but stage={config.stage.name} of backbone={config.backbone.name} "
            "pre-trains its vision tower first. Use recipe=tiny."
        )
    if "grpo" in steps:
        yield from _grpo_rules(config)
    yield from _tuning_rules(config, steps)
    yield from _weights_rules(config, steps)
    yield from _vllm_rules(config, steps)
    if config.stage.name == "report" and config.init is None:
        yield "stage=report needs the run to report on: init=outputs/<name>/<timestamp>."
    if config.stage.name == "audit" and config.init is None and config.stage.completions is None:
        yield (
            "stage=audit needs completions: those of a run, init=outputs/<name>/<timestamp>, or "
            "stage.completions=<JSONL or parquet file, or a folder of them>."
        )


def _training_length(config: Config, steps: list[Step]) -> Iterator[str]:
    lengths: list[tuple[str, Length]] = []
    if "sft" in steps:
        lengths += [(f"sft.phases.{i}", phase) for i, phase in enumerate(config.sft.phases)]
    if "grpo" in steps:
        lengths.append(("grpo", config.grpo))
    for key, length in lengths:
        if length.steps is None and length.epochs is None:
            yield (
                f"{key}.steps and {key}.epochs are both null, so training would never end. "
                f"Set one, e.g. {key}.epochs=1."
            )


def _ranks(config: Config, steps: list[Step]) -> Iterator[str]:
    ranks = config.engine.processes
    batches: dict[str, int] = {}
    if "pretrain" in steps and config.pretrain is not None:
        batches["pretrain.batch_size"] = config.pretrain.batch_size
    if "sft" in steps:
        phases = enumerate(config.sft.phases)
        batches |= {f"sft.phases.{i}.batch_size": phase.batch_size for i, phase in phases}
    if "grpo" in steps:
        batches["grpo.prompts_per_step"] = config.grpo.prompts_per_step
    for key, size in batches.items():
        if size < ranks:
            yield (
                f"{key}={size} with {ranks} ranks (engine.hosts x engine.ranks): some would have "
                f"nothing to do. Use {key}={ranks} or more, or fewer ranks."
            )


def _grpo_rules(config: Config) -> Iterator[str]:
    grpo, rollout = config.grpo, config.rollout
    if (rollout.top_p < 1 or rollout.top_k > 0) and grpo.importance.level == "off":
        yield (
            f"rollout.top_p={rollout.top_p:g} rollout.top_k={rollout.top_k}: truncated sampling "
            "draws from another policy than the one whose log-probabilities are trained, and "
            "nothing corrects for it. Use rollout.top_p=1 rollout.top_k=0, or correct for it: "
            "grpo.importance.level=token."
        )
    if grpo.minibatches > grpo.prompts_per_step:
        yield (
            f"grpo.minibatches={grpo.minibatches} with grpo.prompts_per_step="
            f"{grpo.prompts_per_step}: some optimiser steps would have no group to learn from. "
            f"Use grpo.minibatches={grpo.prompts_per_step} or fewer."
        )
    if grpo.reference_refresh is not None and grpo.kl_coef == 0:
        yield (
            f"grpo.reference_refresh={grpo.reference_refresh} with grpo.kl_coef=0: without a KL "
            "term there is no reference to refresh. Use grpo.reference_refresh=null."
        )


def _tuning_rules(config: Config, steps: list[Step]) -> Iterator[str]:
    """Something must learn in every leg."""
    frozen = []
    if "sft" in steps:
        phases = enumerate(config.sft.phases)
        frozen += [f"sft.phases.{i}.freeze_vision=true" for i, p in phases if p.freeze_vision]
    if "grpo" in steps and config.grpo.vision_lr_scale == 0:
        frozen.append("grpo.vision_lr_scale=0")
    if frozen and "language" not in config.tuning.train:
        parts = ",".join(config.tuning.train)
        yield (
            f"tuning.train=[{parts}] with {frozen[0]}: nothing would learn. Add language to "
            "tuning.train, or let the vision side learn."
        )


def _vllm_rules(config: Config, steps: list[Step]) -> Iterator[str]:
    rollout = config.rollout
    if "serve" in steps and not isinstance(rollout, VllmServerRollout):
        yield (
            f"stage=serve starts a vLLM server, and rollout={rollout.name} has none. Use "
            "stage=serve rollout=vllm_server."
        )
    if isinstance(rollout, HfRollout):
        return
    if "grpo" in steps and config.grpo.group_size > rollout.max_num_seqs:
        yield (
            f"grpo.group_size={config.grpo.group_size} with rollout.max_num_seqs="
            f"{rollout.max_num_seqs}: a group is sampled as one request. Use "
            f"rollout.max_num_seqs={config.grpo.group_size} or more."
        )
    pictures = 1 + max(config.evaluate.shots) if "evaluate" in steps else 1
    if pictures > rollout.max_images:
        yield (
            f"evaluate.shots={config.evaluate.shots} with rollout.max_images={rollout.max_images}: "
            f"a prompt holds {pictures} pictures. Use rollout.max_images={pictures}."
        )


def _weights_rules(config: Config, steps: list[Step]) -> Iterator[str]:
    backbone, kind = config.backbone, config.weights.name
    if backbone.source == "built":
        if kind != "published":
            yield (
                f"weights={kind} with backbone={backbone.name}: it is built here and has no other "
                "weights. Leave weights out, or choose a published backbone."
            )
        return
    training = [step for step in steps if step in ("sft", "grpo")]
    if backbone.evaluation_only and training:
        yield (
            f"stage={config.stage.name} would train backbone={backbone.name}, which is here for "
            "evaluation only: the papers compare with it and give no recipe. Use stage=evaluate."
        )
