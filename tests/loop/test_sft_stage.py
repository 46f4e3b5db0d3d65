"""PA-SFT: the loss falls on the target's trained tokens, and nowhere else."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import packing_cases as cases
import pandas
import pytest
import torch

from iad_r1.backbones.packing import completion_logprobs
from iad_r1.data.targets import Target, chain_of_thought
from iad_r1.errors import TrainingError
from iad_r1.loops import sft
from iad_r1.rollouts.prompting import open_prompter


def phase_of(context, index: int = 0):
    return sft._Phase(context, context.config.sft.phases[index], index)


def loss_of(phase, batch) -> float:
    return sum(part().item() for part in phase.losses(batch, 0))


@pytest.fixture
def context(make_context):
    return make_context(
        "sft.one_shot_share=0",
        "sft.phases.0.augment=false",
        "sft.phases.0.location_weight=1.0",
        "sft.phases.0.steps=3",
        "sft.phases.1.steps=2",
        "sft.phases.1.location_weight=1.0",
    )


def test_the_loss_is_the_mean_negative_log_likelihood_of_the_target_tokens(context):
    batch = list(context.dataset.sft[:5])
    prompter = open_prompter(context.config, context.backbone, "sft")
    total, count = 0.0, 0
    with torch.no_grad():
        found = loss_of(phase_of(context), batch)
        for sample in batch:  # one at a time, through the model's own forward
            target = context.backbone.encode_target(chain_of_thought(sample, 0).text).tokens
            prompt = prompter.encode(sample)
            ids = torch.cat([prompt.inputs["input_ids"], torch.tensor([target])], 1)
            inputs = {**prompt.inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
            types = torch.zeros_like(ids)
            known = prompt.inputs["mm_token_type_ids"]
            types[:, : known.shape[1]] = known
            logits = context.model(**{**inputs, "mm_token_type_ids": types}).logits[0]
            start = known.shape[1] - 1
            logprobs = torch.log_softmax(logits[start:-1], -1)
            total -= logprobs.gather(1, torch.tensor(target)[:, None]).sum().item()
            count += len(target)
    assert found == pytest.approx(total / count, rel=1e-5)


def test_an_untrained_span_gets_no_loss_and_a_place_counts_as_often_as_asked(make_context):
    context = make_context("sft.phases.0.location_weight=3.0")
    decode = context.backbone.decode
    sample = next(s for s in context.dataset.sft if s.solution.location)
    place = sample.solution.location
    encoded, weights = phase_of(context).target(sample, 0)
    heavy = [t for t, weight in zip(encoded.tokens, weights, strict=True) if weight == 3.0]
    assert set(weights) == {1.0, 3.0}
    assert decode(heavy).replace(" ", "") == 2 * place.replace(" ", "")  # in the text and the tag
    unplaced = replace(sample, solution=replace(sample.solution, location=None))
    encoded, weights = phase_of(context).target(unplaced, 0)
    silent = [t for t, weight in zip(encoded.tokens, weights, strict=True) if weight == 0.0]
    assert f"<location>{decode(silent)}</location>" in decode(encoded.tokens)


def test_the_word_that_decides_the_verdict_counts_as_often_as_asked(make_context):
    context = make_context("sft.phases.0.verdict_weight=7.0")
    for sample in context.dataset.sft[:6]:
        encoded, weights = phase_of(context).target(sample, 0)
        heavy = [t for t, weight in zip(encoded.tokens, weights, strict=True) if weight == 7.0]
        said = context.backbone.decode(heavy).strip()
        good = sample.solution.answer == "No"
        assert said in (("It", "Nothing", "All") if good else ("At", "Something", "Somewhere"))


def test_a_normal_image_names_no_place(context):
    assert (
        sft.location_spans(Target("<think>At the top left too.</think><answer>No</answer>")) == []
    )


def test_training_lowers_the_loss_and_a_frozen_tower_stays_as_it_was(context, monkeypatch):
    phase, batch = phase_of(context), list(context.dataset.sft[:8])
    before = loss_of(phase, batch)
    sft.train(context)
    assert loss_of(phase, batch) < before
    tower = {k: v.clone() for k, v in context.model.model.visual.state_dict().items()}
    phase_of(context, 1).run(first_step=0)
    for name, value in context.model.model.visual.state_dict().items():
        assert torch.equal(value, tower[name]), name


def test_a_nan_loss_stops_before_the_weights_change(context, monkeypatch):
    weights = [p.clone() for p in context.model.parameters()]
    monkeypatch.setattr(
        sft._Phase,
        "losses",
        lambda self, *batch: [lambda: torch.tensor(math.nan, requires_grad=True)],
    )
    with pytest.raises(TrainingError, match=r"sft step 0: the loss is nan.*sft-00000\.parquet"):
        sft.train(context)
    table = pandas.read_parquet(context.folder.path / "failed" / "sft-00000.parquet")
    assert len(table) == context.config.sft.phases[0].batch_size
    assert all(
        context.backbone.decode(row["token_ids"].tolist()) == row["target"] != ""
        for _, row in table.iterrows()
    )
    assert all(torch.equal(a, b) for a, b in zip(weights, context.model.parameters(), strict=True))


def test_cached_features_give_the_same_loss_as_encoding_the_pictures(context):
    frozen, batch = phase_of(context, 1), list(context.dataset.sft[:6])
    first = loss_of(frozen, batch)
    assert loss_of(frozen, batch) == first  # now from the cache
    assert len(frozen.features.kept) == 6
    live = loss_of(phase_of(context, 0), batch)
    assert live == pytest.approx(first, rel=1e-5)


def test_features_that_there_is_no_room_for_are_forgotten_and_found_again_to_the_bit(context):
    samples = context.dataset.sft
    whole, cramped = phase_of(context, 1), phase_of(context, 1)

    def features(phase, batch) -> Any:
        prompts = [phase.prompt((sample, 0)) for sample in batch]
        return phase.vision(batch, [0] * len(batch), prompts)

    (one,) = features(whole, samples[:1])
    cramped.features.limit = 3 * one.numel() * one.element_size()
    asked = [(samples[:4], [1, 2, 3]), (samples[2:6], [3, 4, 5]), (samples[:4], [0, 1, 2])]
    for batch, kept in asked:
        pairs = zip(features(cramped, batch), features(whole, batch), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        assert [name for name, _ in cramped.features.kept] == [samples[i].id for i in kept]
    assert len(whole.features.kept) == 6


# ------------------------------------------------- several samples in one sequence, and in several


def gradient_of(context, batch, *, phase=None) -> torch.Tensor:
    """Of the batch's loss, part by part as the stage does it."""
    phase = phase or phase_of(context)
    context.model.zero_grad(set_to_none=True)
    for part in phase.losses(batch, 0):
        part().backward()
    return torch.cat(
        [
            (torch.zeros_like(p) if p.grad is None else p.grad).flatten().clone()
            for p in context.model.parameters()
        ]
    )


def test_packed_samples_have_the_gradient_of_each_alone(context):
    """Samples of unequal length, in one sequence, against the model's own forward one by one."""
    batch = [*context.dataset.sft[:4], *context.dataset.sft[10:13]]
    packed = gradient_of(context, batch)
    prompter = open_prompter(context.config, context.backbone, "sft")
    targets = [context.backbone.encode_target(chain_of_thought(s, 0).text).tokens for s in batch]
    assert len({len(target) for target in targets}) > 1
    context.model.zero_grad(set_to_none=True)
    for sample, target in zip(batch, targets, strict=True):
        inputs = prompter.encode(sample).inputs
        alone = cases.plain_logprobs(context.model, inputs, list(target))
        (-alone.sum() / sum(map(len, targets))).backward()
    grads = (torch.zeros_like(p) if p.grad is None else p.grad for p in context.model.parameters())
    assert cases.relative(packed, torch.cat([g.flatten() for g in grads])) < 1e-5


def test_flash_attention_gives_the_gradient_of_sdpa(make_context):
    found = {}
    for packing in ("group", "group_flash"):
        context = make_context(f"grpo.packing={packing}", "sft.phases.0.augment=false")
        found[packing] = gradient_of(context, list(context.dataset.sft[:4]))
    assert not torch.equal(found["group_flash"], found["group"])  # another order of additions
    assert cases.relative(found["group_flash"], found["group"]) < 1e-5


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_no_sample_of_a_packed_batch_reaches_another(family):
    """The gradient of one sample's loss is exactly zero in the inputs of the others."""
    model = cases.model(family)
    prompts = [cases.prompt(family, n, seed=n) for n in (1, 2, 1)]
    targets = cases.completions(family, [[6], [9], [4]])
    seen: list[torch.Tensor] = []

    def keep(_module, _inputs, output):
        output.retain_grad()
        seen.append(output)

    model.get_input_embeddings().register_forward_hook(keep)
    logprob = completion_logprobs(model, prompts, targets).logprob
    lengths = [p["input_ids"].shape[1] for p in prompts]
    fed = [len(group[0]) - 1 for group in targets]  # the last token predicts nothing
    for own in range(3):
        for output in seen:
            output.grad = None
        logprob[own].sum().backward(retain_graph=True)
        for output, sizes in zip(seen, (lengths, fed), strict=True):
            assert output.grad is not None
            parts = output.grad.split(sizes)
            for other, part in enumerate(parts):
                assert bool(part.any()) is (other == own), (own, other)


def test_only_the_trained_tokens_of_the_answer_have_a_loss(context):
    sample = next(s for s in context.dataset.sft if s.solution.location)
    unplaced = replace(sample, solution=replace(sample.solution, location=None))
    phase, logits = phase_of(context), []

    def keep(_module, _inputs, output):
        output.retain_grad()
        logits.append(output)

    hook = context.model.lm_head.register_forward_hook(keep)
    try:
        for part in phase.losses([unplaced, sample], 0):
            part().backward()
    finally:
        hook.remove()
    weights = [phase.target(s, 0)[1] for s in (unplaced, sample)]
    assert 0.0 in weights[0] and 0.0 not in weights[1]
    moved = logits[0].grad.abs().sum(-1) > 0  # one row for each answer token, none for prompts
    assert moved.tolist() == [weight > 0 for row in weights for weight in row]


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])  # a tower that learns, and a frozen one
def test_a_token_budget_changes_how_a_step_is_computed_and_not_what_it_is(
    context, make_context, index
):
    batch = list(context.dataset.sft[:8])
    whole = gradient_of(context, batch, phase=phase_of(context, index))
    for budget, parts in ((1, 8), (250, None)):
        split = make_context(
            f"sft.token_budget={budget}",
            "sft.one_shot_share=0",
            "sft.phases.0.augment=false",
            "sft.phases.0.location_weight=1.0",
            "sft.phases.1.location_weight=1.0",
        )
        phase = phase_of(split, index)
        found = phase.losses(batch, 0)
        assert len(found) == parts if parts else 1 < len(found) < 8
        assert cases.relative(gradient_of(split, batch, phase=phase), whole) < 1e-5


def test_by_sample_the_loss_is_the_mean_of_the_samples_own_means(make_context, monkeypatch):
    """Whole, sample by sample, and in the shares of two ranks; longer answers count no more."""
    context = make_context(
        "sft.loss_normalisation=sample", "sft.one_shot_share=0", "sft.phases.0.augment=false"
    )
    batch = [*context.dataset.sft[:3], *context.dataset.sft[10:13]]
    phase = phase_of(context)
    found = gradient_of(context, batch, phase=phase)
    context.model.zero_grad(set_to_none=True)
    means, sizes = [], set()
    for sample in batch:  # one at a time, through the model's own forward
        target = context.backbone.encode_target(chain_of_thought(sample, 0).text).tokens
        inputs = open_prompter(context.config, context.backbone, "sft").encode(sample).inputs
        alone = cases.plain_logprobs(context.model, inputs, list(target))
        weight = torch.tensor(phase.target(sample, 0)[1])
        means.append(-(alone * weight).sum() / weight.sum())
        sizes.add(len(target))
    assert len(sizes) > 1
    loss = torch.stack(means).mean()
    loss.backward()
    grads = (torch.zeros_like(p) if p.grad is None else p.grad for p in context.model.parameters())
    expected = torch.cat([grad.flatten() for grad in grads])
    assert loss_of(phase, batch) == pytest.approx(loss.item(), rel=1e-5)
    assert cases.relative(found, expected) < 1e-5

    alone = phase.sft.model_copy(update={"token_budget": 1})
    monkeypatch.setattr(phase, "sft", alone)
    assert cases.relative(gradient_of(context, batch, phase=phase), expected) < 1e-5

    monkeypatch.setattr(sft.distributed, "total", lambda _: float(len(batch)))
    halves = []
    for rank in range(2):
        monkeypatch.setattr(sft.distributed, "share", lambda items, rank=rank: items[rank::2])
        halves.append(gradient_of(context, batch, phase=phase))
    assert cases.relative(halves[0] + halves[1], expected) < 1e-5
