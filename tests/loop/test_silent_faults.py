"""Faults under which the loss falls all the same, each planted, and each found.

Trained without the picture, or with another one's tiles; weights that should stay and learn, or
carry adapters; exports that lack what was trained; adapters counted twice; other pixels.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, combinations, cycle, product
from pathlib import Path
from typing import Any
from unittest import mock

import packing_cases as cases
import pytest
import torch
from PIL import Image
from small_run import SMALL
from transformers import AutoModelForImageTextToText

from iad_r1.backbones import packing, processors
from iad_r1.backbones.backbone import Backbone, Prompt
from iad_r1.backbones.families import PARTS, Part
from iad_r1.command import compose
from iad_r1.data import images, mix
from iad_r1.errors import MismatchError, TrainingError
from iad_r1.grid import as_grid
from iad_r1.learn import guards, lora, optim
from iad_r1.learn.context import Context
from iad_r1.learn.learner import Learner
from iad_r1.loops import evaluate, pipeline, sft
from iad_r1.loops.opening import note_pictures
from iad_r1.loops.policy import Policy
from iad_r1.rollouts.colocate.weights import hub_names, hub_weights
from iad_r1.rollouts.hf import HfSampler
from iad_r1.rollouts.parity import Gate
from iad_r1.rollouts.prompting import open_prompter
from iad_r1.rollouts.sampling import Sampling
from iad_r1.settings.config import Config
from iad_r1.settings.rollout import Parity
from iad_r1.settings.training import GapLimit
from iad_r1.store.run_folder import RunFolder
from iad_r1.types import Completion, Conversation, Dataset, Group, Sample, Score, StopReason

LORA = ("tuning=lora", "tuning.rank=2")


@functools.cache
def composed(*overrides: str) -> Config:
    few = ("data.sizes.rl=4", "data.sizes.sft=4")
    return compose.compose([*SMALL, *few, "sft.phases.0.augment=false", *overrides])


@pytest.fixture(scope="module")
def drawn() -> Dataset:
    config = composed()
    return mix.load(config.data, as_grid(config.grid), config.grid.mask_rule, config.seed)


@pytest.fixture
def twin_run(drawn: Dataset, tmp_path: Path) -> Callable[..., Context]:
    """`twin_run("llava_next", "tuning=lora")`: the twin of an architecture in a run that has drawn
    pictures."""

    def make(family: str, *overrides: str) -> Context:
        config = composed(*overrides)
        processor = copy.deepcopy(cases.processor(family))  # a stage sets the limit of its pictures
        backbone = Backbone(cases.model(family), processor)
        folder = RunFolder.create(tmp_path, family)
        return Context(config, folder, None, drawn, backbone, "base")

    return make


# --- trained without the picture -----------------------------------------------------------------


def said(context: Context) -> dict[str, torch.Tensor]:
    """What each part of a run says of answers to the first sample, as numbers."""
    backbone, config = context.backbone, context.config
    sample = context.dataset.sft[0]
    found: dict[str, torch.Tensor] = {}
    for index, name in enumerate(("PA-SFT", "PA-SFT under a frozen tower")):
        phase = sft._Phase(context, config.sft.phases[index], index)
        (part,) = phase.losses([sample], 0)
        found[name] = part().detach()

    prompt = open_prompter(config, backbone, "grpo").encode(sample)
    tokens = [backbone.encode_target(text).tokens for text in ("<answer>Yes", "<answer>No")]
    group = [Completion("", t, (0.0,) * len(t), StopReason.STOP) for t in tokens]
    policy = Policy(context, steps=1)
    scores = [Score(1.0, {}), Score(0.0, {})]
    batch = policy.batch([prompt], [Group(sample, group, scores)], [[1.0, -1.0]])
    batch = policy.with_reference(batch)
    assert batch.reference is not None
    found["the reference"] = batch.reference
    for policy.packing in ("group", "off"):
        found[f"SC-GRPO, {policy.packing}"] = policy.gradient(batch, None, [0], "here").logprobs

    asked = open_prompter(config, backbone, "evaluate").encode(sample)
    answered = dataclasses.replace(group[0], text="<think>It is.</think><answer>Yes</answer>")
    found["P(yes)"] = torch.tensor(evaluate.p_yes(backbone, [asked], [answered]))
    ((drawn,),) = HfSampler(backbone, 1).generate([asked], Sampling(1, 1, 0.0), [()])
    found["the sampler"] = torch.tensor([*drawn.tokens, *drawn.logprobs])
    return found


def moved_by_the_picture(context: Context) -> dict[str, bool]:
    """Whether each part of a run says something else when every picture file is blank."""
    seen = said(context)
    true = images.open_image

    def blank(sample: Sample) -> Image.Image:
        return guards.blanked(true(sample))

    with mock.patch.object(images, "open_image", blank):
        unseen = said(context)
    return {name: bool((value - unseen[name]).abs().max() > 1e-5) for name, value in seen.items()}


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_with_a_blank_picture_every_part_of_a_run_says_something_else(twin_run, family):
    context = twin_run(family)
    guards.check_pictures(context, "grpo")
    moved = moved_by_the_picture(context)
    assert len(moved) == 7 and all(moved.values()), moved


def without_pictures(self: Backbone, *given: Any) -> Any:
    """A prompt as it would be if its pictures were lost on the way."""
    prompt = ENCODE(self, *given)
    return dataclasses.replace(
        prompt, inputs={**prompt.inputs, "pixel_values": 0 * prompt.inputs["pixel_values"]}
    )


ENCODE = Backbone.encode


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_a_run_whose_pictures_are_lost_ends_before_its_first_step(twin_run, monkeypatch, stage):
    monkeypatch.setattr(Backbone, "encode", without_pictures)
    context = twin_run("llava_onevision")
    if stage == "sft":
        assert not any(moved_by_the_picture(context).values())  # the measure above can fail
    monkeypatch.setitem(pipeline.TRAIN, stage, lambda context: pytest.fail("it began"))
    with pytest.raises(TrainingError, match=rf"{stage}: the model says the same of \S+ with a bl"):
        pipeline.train(context, stage)


def test_blank_is_never_what_the_picture_was_already():
    for colour in ("black", "white", "gray"):
        picture = Image.new("RGB", (5, 4), colour)
        blank = guards.blanked(picture)
        assert blank.size == picture.size and blank.tobytes() != picture.tobytes()


# --- parts that should stay ----------------------------------------------------------------------

QWEN = {"vision": "model.visual.", "projector": "model.visual.merger."}
LLAVA = {"vision": "model.vision_tower.", "projector": "model.multi_modal_projector."}
PREFIXES = {family: QWEN if family.startswith("qwen") else LLAVA for family in cases.FAMILIES}
MIXES: list[Sequence[Part]] = list(chain.from_iterable(combinations(PARTS, n) for n in (1, 2, 3)))


def part(family: str, name: str) -> Part:
    """Read off where transformers hangs the parts, without `families.part_of`."""
    prefixes = PREFIXES[family]
    if name.startswith((prefixes["projector"], "model.image_newline")):
        return "projector"
    if name.startswith(prefixes["vision"]):
        return "vision"
    assert name.startswith(("model.language_model.", "lm_head.")), name
    return "language"


def learning(model: Any) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_under_full_tuning_the_parts_of_tuning_train_learn_and_no_other_weight(family):
    model = cases.model(family)
    names = [name for name, _ in model.named_parameters()]
    for parts in MIXES:
        for vision in (True, False):
            optim.train_only(model, vision=vision, parts=parts)
            wanted = set(parts) if vision else set(parts) & {"language"}
            assert learning(model) == {name for name in names if part(family, name) in wanted}


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_under_lora_the_parts_of_tuning_train_carry_adapters_and_nothing_else_learns(
    twin_run, family
):
    context = twin_run(family, *LORA)
    tuning: Any = context.config.tuning
    for parts in MIXES:
        context.backbone.model = cases.model(family)
        layers = {
            name
            for name, module in context.model.named_modules()
            if isinstance(module, torch.nn.Linear)
            and name != "lm_head"
            and part(family, name) in parts
        }
        lora.wrap(context, tuning.model_copy(update={"train": parts}), dropout=0.0)
        for vision in (True, False):
            optim.train_only(context.model, vision=vision, parts=parts)
            own = layers if vision else {n for n in layers if part(family, n) == "language"}
            assert learning(context.model) == {
                f"base_model.model.{name}.lora_{matrix}.default.weight"
                for name in own
                for matrix in "AB"
            }
        adapted = {n for n, _ in context.model.named_parameters() if "lora_" in n}
        assert len(adapted) == 2 * len(layers)


@pytest.fixture
def meddling(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An optimiser that moves a weight which should stay, by its last bit."""
    honest = Learner.update

    def update(self: Learner, where: str) -> dict[str, float]:
        frozen = [p for p in self.model.parameters() if not p.requires_grad]
        for weight in frozen[:1]:
            bits = weight.data.view(torch.int32).view(-1)
            bits[0] ^= 1
        return honest(self, where)

    monkeypatch.setattr(Learner, "update", update)
    yield


@pytest.mark.parametrize(
    ("settings", "stage", "step"),
    [(["tuning.train=[language]", "sft.phases.0.steps=1"], "sft", 1), (LORA, "grpo", 1)],
)
def test_a_frozen_weight_that_moves_by_one_bit_ends_the_run(
    twin_run, meddling, settings, stage, step
):
    few = ["sft.phases.0.batch_size=2", "grpo.prompts_per_step=2", "rollout.max_tokens=4"]
    context = twin_run("qwen2_vl", *settings, *few, "grpo.save_every=1")
    with pytest.raises(TrainingError, match=rf"after {step} steps of {stage}: \S*visual\S* does"):
        pipeline.train(context, stage)
    assert not list((context.folder.path / "checkpoints").glob(f"{stage}*"))


# --- tiles and grids -----------------------------------------------------------------------------

# Of each prompt the sizes of its pictures: tilings, grids and numbers of tiles that all differ.
SHOWN = [[(100, 50)], [(50, 110), (100, 100)], [(40, 40)], [(110, 60), (60, 80), (112, 112)]]


def noise(width: int, height: int, seed: int) -> Image.Image:
    stream = torch.Generator().manual_seed(seed)
    return Image.fromarray(
        torch.randint(0, 256, (height, width, 3), generator=stream, dtype=torch.uint8).numpy()
    )


def mixed_prompts(backbone: Backbone) -> list[Prompt]:
    found = []
    for sizes in SHOWN:
        pictures = [noise(*size, seed) for seed, size in enumerate(sizes, len(found))]
        words = Conversation("{image} and " * len(sizes) + "is one of them defective?")
        found.append(backbone.encode(words, [backbone.fit(picture) for picture in pictures]))
    return found


def completions(backbone: Backbone, seed: int) -> list[Completion]:
    stream = torch.Generator().manual_seed(seed)
    drawn = [
        torch.randint(10, len(backbone.tokenizer), (n,), generator=stream).tolist() for n in (5, 3)
    ]
    return [Completion("", (*t,), (0.0,) * len(t), StopReason.LENGTH) for t in drawn]


def learned(
    policy: Policy, prompts: Sequence[Prompt], numbers: Sequence[int], sample: Sample
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Log-probs of what the policy learns from these prompts, and the gradient of each of its
    optimiser steps."""
    groups = [
        Group(sample, completions(policy.backbone, n), [Score(1.0, {}), Score(0.0, {})])
        for n in numbers
    ]
    batch = policy.batch([prompts[n] for n in numbers], groups, [[1.0, -1.0]] * len(numbers))
    batch = policy.with_old(batch)
    gradients = []
    for part in policy.minibatches(batch):
        policy.model.zero_grad(set_to_none=True)
        if part:
            policy.gradient(batch, batch.old, part, "here")
            gradients.append(gradient_vector(policy.model))
    assert batch.old is not None
    return batch.old, gradients


def gradient_vector(model: Any) -> torch.Tensor:
    weights = (p for p in model.parameters() if p.requires_grad)
    return torch.cat(
        [torch.zeros(w.numel()) if w.grad is None else w.grad.flatten() for w in weights]
    )


def apart(context: Context) -> float:
    """How far log-probs and gradients of a batch in two minibatches are from those of each sample
    alone, relative."""
    policy, sample = Policy(context, steps=1), context.dataset.rl[0]
    prompts = mixed_prompts(context.backbone)
    logprobs, gradients = learned(policy, prompts, range(4), sample)
    alone = [learned(policy, prompts, [n], sample) for n in range(4)]
    said = torch.zeros_like(logprobs)
    for n, (own, _) in enumerate(alone):
        said[2 * n : 2 * n + 2, : own.shape[1]] = own
    halves = [(alone[n][1][0] + alone[n + 1][1][0]) / 2 for n in (0, 2)]
    assert len(gradients) == 2 and halves[0].norm() > 0
    return max(map(cases.relative, [logprobs, *gradients], [said, *halves]))


MIXED = ["grpo.minibatches=2", "grpo.kl_coef=0", "grpo.prompts_per_step=4", "grpo.max_pixels=null"]


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_pictures_of_mixed_sizes_are_learned_in_minibatches_as_each_sample_alone(twin_run, family):
    context = twin_run(family, *MIXED)
    context.backbone.limit_pixels(None)
    assert apart(context) < 1e-5
    prompts = mixed_prompts(context.backbone)
    sampler = HfSampler(context.backbone, 8)
    together = sampler.generate(prompts, Sampling(1, 2, 0.0), [()] * 4)
    for prompt, (found,) in zip(prompts, together, strict=True):
        ((own,),) = sampler.generate([prompt], Sampling(1, 2, 0.0), [()])
        assert own.tokens == found.tokens
        assert own.logprobs == pytest.approx(found.logprobs, abs=1e-5)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_next", "llava_onevision"])
def test_sizes_taken_by_sample_where_there_are_several_pictures_are_found(
    twin_run, monkeypatch, family
):
    honest = packing._stacked

    def by_sample(values: Sequence[torch.Tensor]) -> torch.Tensor:
        """The first picture of a sample stands for all of them."""
        if values[0].dim() > 2 or values[0].is_floating_point():
            return honest(values)
        return honest([value[:1].expand_as(value) for value in values])

    monkeypatch.setattr(packing, "_stacked", by_sample)
    context = twin_run(family, *MIXED)
    with pytest.raises((MismatchError, RuntimeError, ValueError)):
        apart(context)


def test_pictures_of_another_sample_of_the_batch_are_found(twin_run, monkeypatch):
    """As many tokens for each, so that nothing fails of itself."""
    monkeypatch.setitem(globals(), "SHOWN", [[(100, 50)]] * 4)
    context = twin_run("llava_next", *MIXED)
    honest = packing._stacked
    assert apart(context) < 1e-5
    monkeypatch.setattr(packing, "_stacked", lambda values: honest(values[::-1]))
    assert apart(context) > 1e-2


# --- exports -------------------------------------------------------------------------------------

# Every mix of parts, fully and under LoRA, dealt out over the architectures.
EXPORTS = [
    (family, kind, parts)
    for family, (kind, parts) in zip(
        cycle(cases.FAMILIES), product(("full", "lora"), MIXES), strict=False
    )
]


def disturb(context: Context) -> None:
    """In place of a training stage: move all that learns."""
    optim.train_only(context.model, vision=True, parts=context.config.tuning.train)
    stream = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in context.model.parameters():
            if weight.requires_grad:
                weight.add_(0.1 * torch.randn(weight.shape, generator=stream))


def logits(model: Any, family: str) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**cases.prompt(family)).logits


def exported(
    context: Context, family: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, torch.Tensor]:
    """What plain transformers reads of a stage's weights, and what the model said when the stage
    ended, an adapter still active."""
    said: list[torch.Tensor] = []

    def train(context: Context) -> None:
        disturb(context)
        said.append(logits(context.model, family))

    monkeypatch.setitem(pipeline.TRAIN, "sft", train)
    monkeypatch.setattr(guards, "check_pictures", lambda context, stage: None)  # seen above
    pipeline.train(context, "sft")
    folder = context.folder.checkpoint("sft")
    return AutoModelForImageTextToText.from_pretrained(folder), said[0]


def tuned(
    twin_run: Callable[..., Context], family: str, kind: str, parts: Sequence[Part]
) -> Context:
    context = twin_run(family, "sft.max_pixels=null", *(LORA if kind == "lora" else ()))
    tuning = context.config.tuning.model_copy(update={"train": list(parts)})
    context.config = context.config.model_copy(update={"tuning": tuning})
    return context


@pytest.mark.slow
@pytest.mark.parametrize(("family", "kind", "parts"), EXPORTS)
def test_an_export_says_what_the_trained_model_said_and_has_every_weight_that_moved(
    twin_run, monkeypatch, family, kind, parts
):
    found, said = exported(tuned(twin_run, family, kind, parts), family, monkeypatch)
    assert cases.relative(logits(found, family), said) < 1e-4
    before = cases.model(family)
    linear = {f"{n}.weight" for n, m in found.named_modules() if isinstance(m, torch.nn.Linear)}
    for name, weight in found.named_parameters():
        learns = part(family, name) in parts
        if kind == "lora":
            learns = learns and name in linear - {"lm_head.weight"}
        assert torch.equal(weight, before.get_parameter(name)) is not learns, name


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_an_export_without_the_trained_tower_is_found(twin_run, monkeypatch, kind):
    """A tower that is written as it was before training."""
    before, honest = cases.model("qwen2_5_vl"), Backbone.save

    def save(self: Backbone, path: Path) -> None:
        self.model.model.visual.load_state_dict(before.model.visual.state_dict())
        honest(self, path)

    monkeypatch.setattr(Backbone, "save", save)
    context = tuned(twin_run, "qwen2_5_vl", kind, ["vision"])
    found, said = exported(context, "qwen2_5_vl", monkeypatch)
    assert cases.relative(logits(found, "qwen2_5_vl"), said) > 1e-2


# --- adapters counted twice ----------------------------------------------------------------------


class OtherEngine(HfSampler):
    """A sampler with weights of its own, which `sync` brings under their names on the hub."""

    shared = False
    sums: Mapping[str, float] | None = None

    def __init__(self, trainer: Backbone, own: Backbone) -> None:
        super().__init__(own, 8)
        self.trainer, self.twice = trainer, False

    @torch.no_grad()
    def sync(self, change: Any = None) -> None:
        model = self.backbone.model
        mine = {theirs: name for name, theirs in hub_names(model).items()}
        for name, tensor in hub_weights(self.trainer.model):
            held = model.get_parameter(mine[name])
            added = tensor - unwrap_weight(self.trainer.model, mine[name])
            tensor = tensor + added if self.twice else tensor
            held.copy_(tensor if change is None else change(name, tensor))

    def processed(self, prompt: Prompt) -> tuple[list[int], list[Mapping[str, Any]]]:
        return prompt.inputs["input_ids"][0].tolist(), []

    def weight_sums(self) -> dict[str, float]:
        return {}

    def reset_prefix_cache(self) -> None: ...
    def reset_encoder_cache(self) -> None: ...


def unwrap_weight(model: Any, name: str) -> torch.Tensor:
    """A weight without what adapters add."""
    module, _, last = name.rpartition(".")
    layer = packing.unwrap(model).get_submodule(module)
    return getattr(layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer, last)


def test_an_adapter_counted_twice_from_the_second_step_after_a_resume_is_found_there(
    twin_run, tmp_path
):
    """Weights with the adapter merged in, sent to an engine whose adapter is still active."""
    context = twin_run("qwen2_5_vl", *LORA)
    own = Backbone(cases.model("qwen2_5_vl"), copy.deepcopy(context.backbone.processor))
    tuning: Any = context.config.tuning
    lora.wrap(context, tuning, dropout=0.0)
    disturb(context)  # what the checkpoint held
    engine: Any = OtherEngine(context.backbone, own)
    prompter = open_prompter(context.config, context.backbone, "grpo")
    gate = Gate(
        engine,
        context.backbone,
        [prompter.encode(context.dataset.rl[0])],
        Parity(every=20, probes=1, tokens=4),
        GapLimit(mean=None, high=None),
        temperature=1.0,
        packing="group",
        path=None,
    )
    steps = []
    with pytest.raises(MismatchError, match="parity gate, grpo step 8: sampler and trainer disag"):
        for step in range(7, 20):
            engine.twice = step > 7
            engine.sync()
            if gate.due(step):
                gate.check("grpo", step)
                steps.append(step)
    assert steps == [7]
    engine.twice = False
    engine.sync()
    gate.check("grpo", 8)


# --- what makes tensors of pictures --------------------------------------------------------------


def test_weights_say_what_made_their_pictures_and_no_other_pixels_are_shown_to_them(
    twin_run, tmp_path
):
    context = twin_run("llava_next")
    backbone = context.backbone
    assert backbone.pictures == {
        "image_processor": "LlavaNextImageProcessor",
        "backend": "torchvision",
    }
    backbone.check_pictures(cases.twin_folder("llava_next"))  # published weights do not say
    backbone.save(tmp_path / "sft")
    assert Backbone.load(tmp_path / "sft").pictures == backbone.pictures

    record = tmp_path / "sft" / "pictures.json"
    slow = {"image_processor": "LlavaNextImageProcessorPil", "backend": "pil"}
    record.write_text(json.dumps(slow))
    said = (
        r"sft belong to pictures made by LlavaNextImageProcessorPil \(pil\), and here LlavaNextIm"
    )
    for reads in (lambda: Backbone.load(tmp_path / "sft"), lambda: backbone.read(tmp_path / "sft")):
        with pytest.raises(MismatchError, match=said):
            reads()
    record.unlink()  # as the message says
    backbone.read(tmp_path / "sft")


def test_a_checkpoint_of_an_adapter_says_it_too(twin_run, tmp_path):
    context = twin_run("llava_next", *LORA)
    lora.wrap(context, context.config.tuning, dropout=0.0)
    context.backbone.save(tmp_path / "step")
    context.backbone.read(tmp_path / "step")
    (tmp_path / "step" / "pictures.json").write_text('{"image_processor": "A", "backend": "pil"}')
    with pytest.raises(MismatchError, match=r"made by A \(pil\)"):
        context.backbone.read(tmp_path / "step")


def test_a_run_goes_on_only_with_what_made_its_pictures_before(twin_run):
    context = twin_run("llava_next")
    note_pictures(context.folder, context.backbone)
    note_pictures(context.folder, context.backbone)
    assert context.folder.read_json("manifest.json")["pictures"] == context.backbone.pictures
    context.folder.update_manifest(pictures={"image_processor": "A", "backend": "pil"})
    with pytest.raises(
        MismatchError, match=r"the steps of \S+ belong to pictures made by A \(pil\)"
    ):
        note_pictures(context.folder, context.backbone)


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_a_processor_without_a_checkpoint_makes_pictures_as_one_that_was_read(family):
    """`weights=random` builds it; a checkpoint of that run is read."""
    assert processors._CLASSES[family].pictures is type(cases.processor(family).image_processor)
