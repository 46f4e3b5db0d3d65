"""Faults that real trainers shipped, planted on purpose: the proof below must catch each.

The proof compares one SC-GRPO loss and its gradient with an oracle that shares no code with the
project: the model's own forward, one completion at a time, and the equations as loops over tokens.
Every fault is planted from outside, around or into the running forward.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import packing_cases as cases
import pytest
import torch
from torch import Tensor

from iad_r1.backbones import packing
from iad_r1.backbones.packing import Logprobs, completion_logprobs
from iad_r1.objective.losses import policy_loss

FAMILY_WITH_3D_POSITIONS = "qwen2_5_vl"
FAMILIES = [FAMILY_WITH_3D_POSITIONS, "llava_onevision"]
ADVANTAGES = [0.7, -1.2, 0.5, 1.1, -0.4, -0.7]  # 2 groups of 3
CLIP, KL = 0.2, 0.04


@pytest.fixture(params=FAMILIES)
def case(request: pytest.FixtureRequest) -> Any:
    family = request.param
    prompts, groups = cases.two_groups(family, 3)
    # the two groups' lengths differ, so that a wrong pairing cannot cancel out
    return cases.model(family), prompts, groups


def shift(table: Tensor, by: float) -> Tensor:
    """Old and reference log-probs, made from the policy's own so that nothing is trivial."""
    return table.detach() + by * torch.cos(torch.arange(table.numel())).view(table.shape)


def oracle_loss(model: Any, prompts: list, groups: list) -> Tensor:
    rows = cases.plain_table(model, prompts, groups)
    width = max(map(len, rows))
    table = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    old, reference = shift(table, 0.2), shift(table, -0.3)
    loss = torch.zeros(())
    for i, row in enumerate(rows):
        terms = []
        for t in range(len(row)):
            ratio = (row[t] - old[i, t]).exp()
            plain, clipped = ratio * ADVANTAGES[i], ratio.clamp(1 - CLIP, 1 + CLIP) * ADVANTAGES[i]
            d = reference[i, t] - row[t]
            terms.append(-torch.minimum(plain, clipped) + KL * (d.exp() - d - 1))
        loss = loss + torch.stack(terms).mean() / len(rows)
    assert width == table.shape[1]
    return loss


Pass = Callable[..., Logprobs]


def our_loss(model: Any, prompts: list, groups: list, forward: Pass) -> Tensor:
    out = forward(model, prompts, groups)
    true = torch.nn.utils.rnn.pad_sequence(
        [row.detach() for row in cases.plain_table(model, prompts, groups)], batch_first=True
    )
    loss, _ = policy_loss(
        out.logprob,
        shift(true, 0.2),
        shift(true, -0.3),
        torch.tensor(ADVANTAGES),
        out.mask,
        clip_low=CLIP,
        clip_high=CLIP,
        kl_coef=KL,
        n_sequences=len(ADVANTAGES),
        n_tokens=int(out.mask.sum()),
    )
    return loss


def prove(case: Any, forward: Pass) -> None:
    """The loss and its full gradient equal the oracle's."""
    model, prompts, groups = case
    expected = cases.gradient(model, lambda: oracle_loss(model, prompts, groups))
    got = cases.gradient(model, lambda: our_loss(model, prompts, groups, forward))
    loss = our_loss(model, prompts, groups, forward)
    torch.testing.assert_close(loss, oracle_loss(model, prompts, groups), rtol=1e-5, atol=1e-6)
    assert cases.relative(got, expected) < 1e-4


def caught(case: Any, forward: Pass) -> bool:
    try:
        prove(case, forward)
    except AssertionError:
        return True
    return False


@pytest.fixture(params=["group", "group_flex"])
def forward(request: pytest.FixtureRequest) -> Iterator[Pass]:
    """The packed forward, through SDPA and through FlexAttention."""
    with cases.flex_on_cpu():
        yield functools.partial(completion_logprobs, packing=request.param)


def on_language_model(model: Any, change: Callable[[dict[str, Any]], None]) -> Any:
    """Let `change` alter the packed inputs right before the language model reads them."""

    def hook(_: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if kwargs.get("shared_prompt") is not None:  # leave the oracle's own forward alone
            change(kwargs)
        return args, kwargs

    return model.model.language_model.register_forward_pre_hook(hook, with_kwargs=True)


def test_without_a_fault_the_proof_holds(case: Any, forward: Pass) -> None:
    prove(case, forward)
    prove(case, functools.partial(completion_logprobs, packing="off"))


def prompt_tokens(case: Any) -> int:
    """Tokens of all prompts, which lie before all completions."""
    return sum(prompt["input_ids"].shape[1] for prompt in case[1])


@pytest.mark.parametrize("by", [1, -1])
def test_a_completion_mask_shifted_by_one_is_caught(case: Any, forward: Pass, by: int) -> None:
    def shifted(*args: Any) -> Logprobs:
        out = forward(*args)
        return dataclasses.replace(out, mask=out.mask.roll(by, dims=-1))

    assert caught(case, shifted)


def test_targets_shifted_by_one_are_caught(
    case: Any, forward: Pass, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = packing._predictors
    monkeypatch.setattr(packing, "_predictors", lambda batch: true(batch) - 1)
    assert caught(case, forward)


def test_prompts_tiled_instead_of_interleaved_are_caught(
    case: Any, forward: Pass, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = packing._Batch.build

    def tiled(*args: Any) -> packing._Batch:
        batch = build(*args)
        order = torch.arange(len(batch.group_of)) % len(batch.prompt_lengths)
        return dataclasses.replace(batch, group_of=order)

    monkeypatch.setattr(packing._Batch, "build", staticmethod(tiled))
    assert caught(case, forward)


def test_positions_that_continue_instead_of_restarting_are_caught(case: Any, forward: Pass) -> None:
    n_prompt = prompt_tokens(case)

    def run_on(kwargs: dict[str, Any]) -> None:
        positions = kwargs["position_ids"].clone()
        rest = positions.shape[-1] - n_prompt
        first = positions[..., n_prompt:].min()
        positions[..., n_prompt:] = first + torch.arange(rest)
        kwargs["position_ids"] = positions

    on_language_model(case[0], run_on)
    assert caught(case, forward)


def test_positions_counted_from_the_number_of_tokens_are_caught_with_3d_positions(
    forward: Pass,
) -> None:
    """Under mRoPE an image of many tokens advances the position only by its longer side."""
    prompts, groups = cases.two_groups(FAMILY_WITH_3D_POSITIONS, 3)
    case = cases.model(FAMILY_WITH_3D_POSITIONS), prompts, groups

    n_prompt = prompt_tokens(case)

    def flat(kwargs: dict[str, Any]) -> None:
        kwargs["position_ids"] = kwargs["position_ids"].clone()
        kwargs["position_ids"][..., n_prompt:] += 3

    on_language_model(case[0], flat)
    assert caught(case, forward)


def test_a_mask_that_leaks_between_completions_is_caught(
    case: Any, forward: Pass, monkeypatch: pytest.MonkeyPatch
) -> None:
    def causal(kwargs: dict[str, Any]) -> None:
        if isinstance(kwargs["shared_prompt"], packing.FlexPrompt):
            return
        n = kwargs["inputs_embeds"].shape[1]
        kwargs["attention_mask"] = torch.ones(1, 1, n, n, dtype=torch.bool).tril()
        del kwargs["shared_prompt"]

    on_language_model(case[0], causal)
    monkeypatch.setattr(packing, "_sees", lambda *_: lambda _row, _head, query, key: key <= query)
    assert caught(case, forward)


def test_a_mask_that_shows_the_next_token_is_caught(
    case: Any, forward: Pass, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = packing._visible

    def peeking(lengths: Tensor, longest: int, width: int) -> Tensor:
        mask = true(lengths, longest, width).clone()
        mask[..., longest:] |= torch.ones(width, width).tril(1).bool()
        return mask

    def peeking_too(segment: Tensor, prompt: Tensor) -> Callable[..., Tensor]:
        return lambda _row, _head, query, key: (
            (key <= query + 1)
            & ((segment[query] == segment[key]) | (prompt[query] == segment[key]))
        )

    monkeypatch.setattr(packing, "_visible", peeking)
    monkeypatch.setattr(packing, "_sees", peeking_too)
    assert caught(case, forward)


def test_a_mask_that_shows_what_is_not_of_the_prompt_is_caught(
    case: Any, forward: Pass, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Padding beside a shorter prompt, or all prompts."""
    n_prompt = prompt_tokens(case)
    true, truly = packing._visible, packing._sees

    def seeing(*args: Any) -> Callable[..., Tensor]:
        sees = truly(*args)
        return lambda row, head, query, key: (
            sees(row, head, query, key) | ((query >= n_prompt) & (key < n_prompt))
        )

    monkeypatch.setattr(packing, "_sees", seeing)
    monkeypatch.setattr(packing, "_visible", lambda lengths, longest, width: true(
        torch.full_like(lengths, longest), longest, width))  # fmt: skip
    assert caught(case, forward)


def test_a_prompt_without_gradient_is_caught(
    case: Any, forward: Pass, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packing that detaches the shared prompt has the right loss and the wrong gradient."""
    true = packing._prompt_embeds
    monkeypatch.setattr(packing, "_prompt_embeds", lambda *args: true(*args).detach())
    assert caught(case, forward)


def test_images_given_to_the_wrong_prompt_are_caught(
    case: Any, forward: Pass, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = packing.vision_features

    def swapped(*args: Any) -> list[Tensor | None]:
        flat = torch.cat([f for f in true(*args) if f is not None]).flip(0)
        sizes = [len(f) for f in true(*args) if f is not None]
        return list(flat.split(sizes))

    monkeypatch.setattr(packing, "vision_features", swapped)
    assert caught(case, forward)
