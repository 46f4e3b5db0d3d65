"""Rules between settings of different sections. What one stage alone asks for is in its module."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from iad_r1.settings.predict import JudgingSettings
from iad_r1.settings.rollout import HfRollout, VllmServerRollout
from iad_r1.settings.training import Length

if TYPE_CHECKING:
    from iad_r1.settings.config import Config


def contradictions(config: Config) -> Iterator[str]:
    """A sentence for each, with what to type instead."""
    yield from _training_length(config)
    yield from _ranks(config)
    yield from _test_part(config)
    yield from _named_once(config)
    if config.name == "store":
        yield "name=store: outputs/store holds what runs share (docs/store.md). Use another name."
    if "pretrain" in config.tasks() and config.pretrain is None:
        yield (
            f"pretrain=null, but stage={config.stage.name} of backbone={config.backbone.name} "
            "pre-trains its vision tower first. Use recipe=tiny."
        )
    if "grpo" in config.tasks():
        yield from _grpo_rules(config)
    yield from _tuning_rules(config)
    yield from _augmentation(config)
    yield from _weights_rules(config)
    yield from _outside(config)
    yield from _vllm_rules(config)
    yield from _method(config)


def _method(config: Config) -> Iterator[str]:
    if config.method.name != "patchcore":
        return
    judges = "evaluate" in config.tasks() or isinstance(config.stage, JudgingSettings)
    if set(config.tasks()) & {"pretrain", "sft", "grpo"} or not judges:
        yield (
            f"method=patchcore with stage={config.stage.name}: nearest good patches judge and do "
            "not learn. Use stage=evaluate, predict or app."
        )
    if config.init is not None:
        yield (
            f"method=patchcore with init={config.init}: nearest good patches need no weights of a "
            "run. Leave init out; a model is compared with them anyway (patchcore.beside)."
        )


def _training_length(config: Config) -> Iterator[str]:
    lengths: list[tuple[str, Length]] = []
    if "sft" in config.tasks():
        lengths += [(f"sft.phases.{i}", phase) for i, phase in enumerate(config.sft.phases)]
    if "grpo" in config.tasks():
        lengths.append(("grpo", config.grpo))
    for key, length in lengths:
        if length.steps is None and length.epochs is None:
            yield (
                f"{key}.steps and {key}.epochs are both null, so training would never end. "
                f"Set one, e.g. {key}.epochs=1."
            )


def _test_part(config: Config) -> Iterator[str]:
    asked = "evaluate" in config.tasks() and "test" in config.evaluate.splits
    parts = config.data.members().values()
    if asked and not config.benchmark and not any(part.tests for part in parts):
        yield (
            f"data={config.data.name} trains and has no test part. Choose what to test on "
            "(benchmark=...), use evaluate.splits=[validation] with data.validation_share=0.05, or "
            "take evaluate out of stage.tasks."
        )


def _named_once(config: Config) -> Iterator[str]:
    """What is asked for twice would be counted twice."""
    asked = config.evaluate
    for key, named in (("shots", asked.shots), ("splits", asked.splits)):
        once = list(dict.fromkeys(named))
        if len(once) < len(named):
            yield (
                f"evaluate.{key}=[{','.join(map(str, named))}] names one twice. Use "
                f"evaluate.{key}=[{','.join(map(str, once))}]."
            )


def _ranks(config: Config) -> Iterator[str]:
    ranks = config.engine.processes
    batches: dict[str, int] = {}
    if "pretrain" in config.tasks() and config.pretrain is not None:
        batches["pretrain.batch_size"] = config.pretrain.batch_size
    if "sft" in config.tasks():
        phases = enumerate(config.sft.phases)
        batches |= {f"sft.phases.{i}.batch_size": phase.batch_size for i, phase in phases}
    if "grpo" in config.tasks():
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
    if grpo.overlap:
        yield from _overlap(config)


def _overlap(config: Config) -> Iterator[str]:
    grpo, rollout = config.grpo, config.rollout
    if grpo.overlap > 1:
        yield (
            f"grpo.overlap={grpo.overlap}: a batch is drawn at most one step ahead of the one that "
            "is learned. Use grpo.overlap=1."
        )
    if not isinstance(rollout, VllmServerRollout):
        yield (
            f"grpo.overlap={grpo.overlap} with rollout={rollout.name}: completions are drawn in "
            "the training process, which cannot learn meanwhile. Use rollout=vllm_server, or "
            "grpo.overlap=0."
        )
    if grpo.importance.level == "off":
        yield (
            f"grpo.overlap={grpo.overlap} with grpo.importance.level=off: the weights that draw a "
            "batch are one step older than those that learn it, and nothing corrects for it. Use "
            "grpo.importance.level=token, or grpo.overlap=0."
        )
    if grpo.importance.cap <= 1:
        yield (
            f"grpo.overlap={grpo.overlap} with grpo.importance.cap={grpo.importance.cap:g}: the "
            "tokens that a step makes likelier would not be corrected for. Use "
            "grpo.importance.cap=2."
        )


def _tuning_rules(config: Config) -> Iterator[str]:
    """Something must learn in every leg."""
    frozen = []
    if "sft" in config.tasks():
        phases = enumerate(config.sft.phases)
        frozen += [f"sft.phases.{i}.freeze_vision=true" for i, p in phases if p.freeze_vision]
    if "grpo" in config.tasks() and config.grpo.vision_lr_scale == 0:
        frozen.append("grpo.vision_lr_scale=0")
    if frozen and "language" not in config.tuning.train:
        parts = ",".join(config.tuning.train)
        yield (
            f"tuning.train=[{parts}] with {frozen[0]}: nothing would learn. Add language to "
            "tuning.train, or let the vision side learn."
        )


def _augmentation(config: Config) -> Iterator[str]:
    """Under a frozen tower the features of a picture are computed once, however it is changed."""
    for i, phase in enumerate(config.sft.phases if "sft" in config.tasks() else []):
        if phase.freeze_vision and phase.augment:
            yield (
                f"sft.phases.{i}.augment=true with sft.phases.{i}.freeze_vision=true: under a "
                "frozen vision tower the features of a picture are computed once, so its changes "
                f"would not be seen. Use sft.phases.{i}.augment=false."
            )


def _vllm_rules(config: Config) -> Iterator[str]:
    rollout = config.rollout
    if isinstance(rollout, HfRollout):
        return
    if "grpo" in config.tasks() and config.grpo.group_size > rollout.max_num_seqs:
        yield (
            f"grpo.group_size={config.grpo.group_size} with rollout.max_num_seqs="
            f"{rollout.max_num_seqs}: a group is sampled as one request. Use "
            f"rollout.max_num_seqs={config.grpo.group_size} or more."
        )
    if "evaluate" in config.tasks() and config.evaluate.samples > rollout.max_num_seqs:
        yield (
            f"evaluate.samples={config.evaluate.samples} with rollout.max_num_seqs="
            f"{rollout.max_num_seqs}: the answers to a picture are sampled as one request. Use "
            f"rollout.max_num_seqs={config.evaluate.samples} or more."
        )
    pictures = 1 + max(config.evaluate.shots) if "evaluate" in config.tasks() else 1
    if pictures > rollout.max_images:
        yield (
            f"evaluate.shots={config.evaluate.shots} with rollout.max_images={rollout.max_images}: "
            f"a prompt holds {pictures} pictures. Use rollout.max_images={pictures}."
        )


def _weights_rules(config: Config) -> Iterator[str]:
    backbone, kind = config.backbone, config.weights.name
    if backbone.source == "built":
        if kind != "published":
            yield (
                f"weights={kind} with backbone={backbone.name}: it is built here and has no other "
                "weights. Leave weights out, or choose a published backbone."
            )
        return
    training = [task for task in config.tasks() if task in ("sft", "grpo")]
    if backbone.source == "hub" and backbone.evaluation_only and training:
        yield (
            f"stage={config.stage.name} would train backbone={backbone.name}, which is here for "
            "evaluation only: the papers compare with it and give no recipe. Use stage=evaluate."
        )


def _outside(config: Config) -> Iterator[str]:
    """An outside model is asked, and shown pictures whose size it limits itself."""
    asked, pictures = config.backbone, config.evaluate
    if asked.source != "api":
        return
    if config.stage.name not in ("evaluate", "report"):
        yield (
            f"stage={config.stage.name} with backbone={asked.name}: an outside model is only asked "
            f"about test pictures, by stage=evaluate. stage={config.stage.name} needs weights that "
            "are here: choose another backbone, or leave it out and say init=<run or hub id>."
        )
    if config.init is not None or config.weights.name != "published":
        yield (
            f"backbone={asked.name} has no weights here. Leave init and weights out; "
            "backbone.model says which model is asked."
        )
    if config.engine.processes > 1:
        yield (
            f"backbone={asked.name} is asked by one process, with backbone.concurrency requests at "
            "once. Use engine.ranks=1 engine.hosts=1."
        )
    if pictures.max_pixels is not None:
        yield (
            f"evaluate.max_pixels={pictures.max_pixels} with backbone={asked.name}: that is a "
            "limit of processors here. Use evaluate.max_size=[width,height]."
        )
    if config.location_format != "words":
        yield (
            f"location_format={config.location_format} with backbone={asked.name}: in which "
            "coordinates an outside model writes boxes is not known. Use location_format=words."
        )
    if pictures.choices == "logprob":
        yield (
            f"evaluate.choices=logprob with backbone={asked.name}: an outside model tells the "
            "log-probs of a few tokens, and a letter may be none of them. Use "
            "evaluate.choices=text."
        )
    yield from asked.problems("backbone")
