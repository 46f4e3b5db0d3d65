"""PA-SFT: the loss falls on the target's trained tokens, and nowhere else."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from iad_r1.data.targets import Target, chain_of_thought
from iad_r1.stages import sft
from iad_r1.stages.prompting import Prompter


def phase_of(context, index: int = 0):
    return sft._Phase(context, context.config.sft.phases[index], index)


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
    prompter = Prompter(context.backbone, context.config.sft.prompt)
    total, count = 0.0, 0
    with torch.no_grad():
        found = phase_of(context).loss(batch, step=0).item()
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


def test_a_normal_image_names_no_place(context):
    assert (
        sft.location_spans(Target("<think>At the top left too.</think><answer>No</answer>")) == []
    )


def test_training_lowers_the_loss_and_a_frozen_tower_stays_as_it_was(context, monkeypatch):
    phase, batch = phase_of(context), list(context.dataset.sft[:8])
    before = phase.loss(batch, 0).item()
    sft.train(context)
    assert phase.loss(batch, 0).item() < before
    tower = {k: v.clone() for k, v in context.model.model.visual.state_dict().items()}
    phase_of(context, 1).run(first_step=0)
    for name, value in context.model.model.visual.state_dict().items():
        assert torch.equal(value, tower[name]), name


def test_a_nan_loss_stops_before_the_weights_change(context, monkeypatch):
    weights = [p.clone() for p in context.model.parameters()]
    monkeypatch.setattr(
        sft._Phase, "loss", lambda self, batch, step: torch.tensor(math.nan, requires_grad=True)
    )
    with pytest.raises(Exception, match="the loss is nan"):
        sft.train(context)
    assert all(torch.equal(a, b) for a, b in zip(weights, context.model.parameters(), strict=True))


def test_cached_features_give_the_same_loss_as_encoding_the_pictures(context):
    frozen, batch = phase_of(context, 1), list(context.dataset.sft[:6])
    first = frozen.loss(batch, 0).item()
    assert frozen.loss(batch, 0).item() == first  # now from the cache
    assert len(frozen.features) == 6
    live = phase_of(context, 0).loss(batch, 0).item()
    assert live == pytest.approx(first, rel=1e-5)
