"""The transformers sampler: what it says of a completion is what the trainer computes."""

from __future__ import annotations

import math

import pytest
import torch
from PIL import Image

from iad_r1.backbones import twins
from iad_r1.backbones.backbone import Backbone
from iad_r1.backbones.packing import completion_logprobs
from iad_r1.rollouts.hf import HfSampler
from iad_r1.rollouts.sampling import Sampling
from iad_r1.types import Conversation, StopReason

FAMILIES = sorted(twins.TWINS)


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    built: dict[str, Backbone] = {}

    def get(family: str) -> Backbone:
        if family not in built:
            folder = tmp_path_factory.mktemp(family)
            built[family] = Backbone.load(twins.build_twin(family, folder, seed=1))
        return built[family]

    return get


def picture(seed: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    noise = torch.randint(
        0, 256, (*size[::-1], 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )
    return Image.fromarray(noise.numpy())


def prompts(backbone: Backbone, count: int = 3) -> list:
    """Prompts of two lengths, one of them with two images."""
    one = Conversation("{image}Are there any defects?")
    two = Conversation("{image}A normal sample. {image}Are there any defects in this one?")
    found = [backbone.encode(one, [picture(i)]) for i in range(count - 1)]
    return [*found, backbone.encode(two, [picture(8), picture(9)])]


def seeds(asked: list, seed: int) -> list[tuple[int, int]]:
    return [(seed, number) for number in range(len(asked))]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampler_and_trainer_agree_on_every_token(backbones, family, temperature):
    backbone = backbones(family)
    asked = prompts(backbone)
    sampler = HfSampler(backbone, batch_size=64)
    groups = sampler.generate(asked, Sampling(4, 12, temperature), seeds(asked, 3))
    with torch.no_grad():
        trainer = completion_logprobs(
            backbone.model,
            [prompt.inputs for prompt in asked],
            [[completion.tokens for completion in group] for group in groups],
            temperature=temperature,
            suppressed=backbone.placeholders,
        )
    flat = [completion for group in groups for completion in group]
    for row, completion in enumerate(flat):
        said = torch.tensor(completion.logprobs)
        torch.testing.assert_close(said, trainer.logprob[row, : len(said)], atol=2e-5, rtol=0)


def test_greedy_is_what_transformers_generate_says(backbones):
    backbone = backbones("qwen2_5_vl")
    asked = prompts(backbone)
    drawn = HfSampler(backbone, batch_size=64).generate(
        asked, Sampling(1, 10, 0.0), seeds(asked, 0)
    )
    for prompt, group in zip(asked, drawn, strict=True):
        expected = backbone.model.generate(
            **prompt.inputs,
            max_new_tokens=10,
            do_sample=False,
            suppress_tokens=list(backbone.placeholders),
        )[0, prompt.inputs["input_ids"].shape[1] :]
        assert list(group[0].tokens) == expected.tolist()


def test_the_same_seed_draws_the_same_completions_and_another_seed_others(backbones):
    backbone = backbones("qwen2_5_vl")
    sampler, asked = HfSampler(backbone, batch_size=64), prompts(backbone)
    first = sampler.generate(asked, Sampling(4, 8, 1.0), seeds(asked, 5))
    assert sampler.generate(asked, Sampling(4, 8, 1.0), seeds(asked, 5)) == first
    assert sampler.generate(asked, Sampling(4, 8, 1.0), seeds(asked, 6)) != first


def test_what_is_drawn_for_a_prompt_does_not_depend_on_the_other_prompts(backbones):
    backbone = backbones("qwen2_5_vl")
    sampler, asked = HfSampler(backbone, batch_size=64), prompts(backbone)
    sampling, numbers = Sampling(4, 8, 1.0), seeds(asked, 5)
    together = sampler.generate(asked, sampling, numbers)
    alone = [sampler.generate([p], sampling, [n])[0] for p, n in zip(asked, numbers, strict=True)]
    texts = [[[c.tokens for c in group] for group in run] for run in (together, alone)]
    assert texts[0] == texts[1]


def test_tokens_are_drawn_as_often_as_the_model_says(backbones):
    backbone = backbones("qwen2_5_vl")
    sampler = HfSampler(backbone, batch_size=4096)
    bias = torch.full((backbone.model.lm_head.out_features,), -torch.inf)
    bias[10:14] = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    hook = backbone.model.lm_head.register_forward_hook(lambda _m, _i, logits: 0 * logits + bias)
    try:
        group = sampler.generate(prompts(backbone)[:1], Sampling(4000, 1, 1.0), [(1,)])[0]
    finally:
        hook.remove()
    counts = [sum(c.tokens == (token,) for c in group) for token in range(10, 14)]
    # chi-square with 3 degrees of freedom stays below 16.3 in 99.9 % of fair draws
    wanted = [400, 800, 1200, 1600]
    assert sum((n - w) ** 2 / w for n, w in zip(counts, wanted, strict=True)) < 16.3


@pytest.mark.parametrize("family", FAMILIES)
def test_an_image_placeholder_is_never_drawn(backbones, family):
    backbone = backbones(family)
    with torch.no_grad():  # make placeholders the favourite of the output layer
        head = backbone.model.lm_head
        bias = torch.zeros(head.out_features)
        bias[list(backbone.placeholders)] = 50.0
    hook = head.register_forward_hook(lambda _module, _inputs, logits: logits + bias)
    try:
        asked = prompts(backbone)
        groups = HfSampler(backbone, 64).generate(asked, Sampling(4, 10, 1.0), seeds(asked, 0))
    finally:
        hook.remove()
    drawn = {token for group in groups for completion in group for token in completion.tokens}
    assert drawn.isdisjoint(backbone.placeholders)


def test_a_completion_ends_with_its_end_of_turn_or_at_the_limit(backbones):
    backbone = backbones("qwen2_5_vl")
    bias = torch.zeros(backbone.model.lm_head.out_features)
    bias[backbone.end_of_turn] = 4.0  # so that some end early and some do not
    hook = backbone.model.lm_head.register_forward_hook(lambda _m, _i, logits: logits + bias)
    try:
        asked = prompts(backbone)
        groups = HfSampler(backbone, 64).generate(asked, Sampling(8, 6, 1.0), seeds(asked, 0))
    finally:
        hook.remove()
    flat = [completion for group in groups for completion in group]
    assert {completion.stop for completion in flat} == {StopReason.STOP, StopReason.LENGTH}
    for completion in flat:
        ended = completion.tokens[-1] in backbone.ends
        assert ended == (completion.stop is StopReason.STOP)
        assert set(backbone.ends).isdisjoint(completion.tokens[:-1])
        assert ended or len(completion.tokens) == 6
        assert len(completion.logprobs) == len(completion.tokens)


def test_a_greedy_group_of_several_is_refused():
    with pytest.raises(ValueError, match="same completion"):
        Sampling(group_size=2, max_tokens=4, temperature=0.0)


@pytest.mark.parametrize(
    ("top_p", "top_k", "kept"),
    [
        (1.0, 2, (12, 13)),
        (0.6, 0, (12, 13)),
        (0.5, 3, (12, 13)),
        (0.3, 0, (13,)),
        (0.95, 3, (11, 12, 13)),
    ],
)
def test_cut_off_sampling_says_the_log_probs_of_what_it_draws_from(backbones, top_p, top_k, kept):
    """Top-k first, then top-p of what is left; the kept tokens share out the whole probability."""
    backbone = backbones("qwen2_5_vl")
    bias = torch.full((backbone.model.lm_head.out_features,), -torch.inf)
    true = dict(zip(range(10, 14), (0.1, 0.2, 0.3, 0.4), strict=True))
    for token, probability in true.items():
        bias[token] = math.log(probability)
    hook = backbone.model.lm_head.register_forward_hook(lambda _m, _i, logits: 0 * logits + bias)
    try:
        sampling = Sampling(200, 1, 1.0, top_p=top_p, top_k=top_k)
        group = HfSampler(backbone, 512).generate(prompts(backbone)[:1], sampling, [(1,)])[0]
    finally:
        hook.remove()
    assert {completion.tokens[0] for completion in group} == set(kept)
    mass = sum(true[token] for token in kept)
    for completion in group:
        expected = math.log(true[completion.tokens[0]] / mass)
        assert completion.logprobs[0] == pytest.approx(expected, abs=1e-5)
