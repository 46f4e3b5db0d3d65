"""The group-packed forward equals the plain one: log-probs and every weight's gradient."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import packing_cases as cases
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForImageTextToText

from iad_r1.backbones import packing
from iad_r1.backbones.flash import FlashPrompt, Plain
from iad_r1.backbones.packing import (
    Packing,
    adapter_off,
    check_packing,
    completion_logprobs,
    micro_batches,
    vision_features,
)
from iad_r1.command import compose
from iad_r1.errors import ConfigError, MismatchError
from iad_r1.loops.opening import open_run
from iad_r1.objective.losses import policy_loss
from iad_r1.store.run_folder import RunFolder

EXACT = 1e-5  # relative, float32: what the order of additions may change


def weighted_sum(
    model: Any, prompts: list, groups: list, packing: Packing, **kwargs: Any
) -> Tensor:
    out = completion_logprobs(model, prompts, groups, packing=packing, **kwargs)
    return (out.logprob * cases.mixture(tuple(out.logprob.shape))).sum()


def assert_same(
    model: Any, prompts: list, groups: list, kind: Packing = "group", **kwargs: Any
) -> None:
    """Packed and unpacked agree in log-probs, entropies, masks and the full gradient."""
    with torch.no_grad():
        packed = completion_logprobs(model, prompts, groups, packing=kind, **kwargs)
        rows = completion_logprobs(model, prompts, groups, packing="off", **kwargs)
    assert torch.equal(packed.mask, rows.mask)
    assert cases.relative(packed.logprob, rows.logprob) < EXACT
    assert cases.relative(packed.entropy, rows.entropy) < EXACT
    got, expected = (
        cases.gradient(model, lambda p=p: weighted_sum(model, prompts, groups, p, **kwargs))
        for p in (kind, "off")
    )
    assert expected.norm() > 0
    assert cases.relative(got, expected) < EXACT


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_both_forwards_equal_the_models_own(family: str) -> None:
    model = cases.model(family)
    prompts, groups = cases.two_groups(family, 3)
    expected = cases.plain_table(model, prompts, groups)
    weights = cases.mixture((6, max(map(len, expected))))

    def oracle() -> Tensor:
        rows = cases.plain_table(model, prompts, groups)
        return torch.stack(
            [(r * w[: len(r)]).sum() for r, w in zip(rows, weights, strict=True)]
        ).sum()

    true_gradient = cases.gradient(model, oracle)
    for kind in ("group", "off"):
        out = completion_logprobs(model, prompts, groups, packing=kind)
        for row, mask, want in zip(out.logprob, out.mask, expected, strict=True):
            assert int(mask.sum()) == len(want) and bool(mask[: len(want)].all())
            assert cases.relative(row[mask], want) < EXACT
            assert torch.count_nonzero(row[~mask]) == 0
        got = cases.gradient(model, lambda kind=kind: weighted_sum(model, prompts, groups, kind))
        assert cases.relative(got, true_gradient) < EXACT


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("family", cases.FAMILIES)
def test_packed_equals_unpacked_with_ragged_completions_and_one_and_two_images(family, size):
    assert_same(cases.model(family), *cases.two_groups(family, size))


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_through_flexattention_packed_equals_unpacked_and_sdpa(family: str) -> None:
    """The mask and the layout, in FlexAttention's own dense arithmetic: no GPU runs the tests."""
    model = cases.model(family)
    prompts, groups = cases.two_groups(family, 4)
    groups[1][2] = groups[1][2][:1]  # nothing of it is fed
    with cases.flex_on_cpu():
        assert_same(model, prompts, groups, "group_flex")
        flex, sdpa = (
            cases.gradient(model, lambda p=p: weighted_sum(model, prompts, groups, p))
            for p in ("group_flex", "group")
        )
    assert cases.relative(flex, sdpa) < EXACT


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_through_flashattention_packed_equals_unpacked(family: str) -> None:
    """Parts, merging and backward pass are those of a GPU; the kernels are plain steps here."""
    model = cases.model(family)
    prompts, groups = cases.two_groups(family, 4)
    groups[1][2] = groups[1][2][:1]  # nothing of it is fed
    assert_same(model, prompts, groups, "group_flash")
    groups[0] = [row[:1] for row in groups[0]]  # nothing of the group
    assert_same(model, prompts, groups, "group_flash")


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_packed_equals_unpacked_under_lora(family: str) -> None:
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    torch.manual_seed(0)
    model = get_peft_model(
        cases.model(family), LoraConfig(r=4, target_modules=targets, init_lora_weights=False)
    )
    prompts, groups = cases.two_groups(family, 4)
    assert_same(model, prompts, groups)
    assert not any(p.requires_grad for n, p in model.named_parameters() if "lora_" not in n)


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_packed_equals_unpacked_with_gradient_checkpointing(family: str) -> None:
    model = cases.model(family)
    prompts, groups = cases.two_groups(family, 4)
    plain = cases.gradient(model, lambda: weighted_sum(model, prompts, groups, "group"))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    assert_same(model, prompts, groups)
    again = cases.gradient(model, lambda: weighted_sum(model, prompts, groups, "group"))
    assert cases.relative(again, plain) < EXACT


@pytest.mark.parametrize("kind", ["group", "group_flash", "group_flex"])
def test_packed_equals_unpacked_with_lora_and_checkpointing_together(kind: Packing) -> None:
    torch.manual_seed(0)
    model = get_peft_model(
        cases.model("qwen2_5_vl"),
        LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False),
    )
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    with cases.flex_on_cpu():  # changes nothing for the other
        assert_same(model, *cases.two_groups("qwen2_5_vl", 3), kind=kind)


def test_a_saved_model_does_not_remember_the_packed_attention(tmp_path: Path) -> None:
    model = cases.model("llava_onevision")
    with torch.no_grad():
        completion_logprobs(model, *cases.two_groups("llava_onevision", 2))
    model.save_pretrained(tmp_path)
    assert packing.ATTENTION not in (tmp_path / "config.json").read_text(encoding="utf-8")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert again.model.language_model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_in_bfloat16_packing_adds_no_error_beyond_the_number_format(family: str) -> None:
    """The floor is what bfloat16 (8 bits of mantissa) itself changes: plain rows in bfloat16
    against plain rows in float32. Packed rows may be as far from float32, not further; the factor
    1.5 is for two draws of the same rounding noise."""
    exact_model, model = cases.model(family), cases.model(family).bfloat16()
    prompts, groups = cases.two_groups(family, 8)

    def run(net: Any, kind: Packing) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            logps = completion_logprobs(net, prompts, groups, packing=kind).logprob
        return logps, cases.gradient(net, lambda: weighted_sum(net, prompts, groups, kind)).float()

    exact, rows, packed = run(exact_model, "off"), run(model, "off"), run(model, "group")
    for true, plain, ours in zip(exact, rows, packed, strict=True):
        floor = cases.relative(plain, true)
        assert 1e-4 < floor < 0.5
        assert cases.relative(ours, true) < 1.5 * floor


def dense_mask(prompt_length: int, lengths: list[int]) -> Tensor:
    """The definition: causal and (same segment or key in prompt), for one group."""
    segment = torch.cat(
        [torch.zeros(prompt_length), *(torch.full((n,), i + 1.0) for i, n in enumerate(lengths))]
    )
    same = segment[:, None] == segment[None, :]
    causal = torch.ones(len(segment), len(segment)).tril().bool()
    return causal & (same | (segment == 0)[None, :])


@pytest.mark.parametrize("kind", ["group", "group_flash", "group_flex"])
def test_packed_attention_equals_the_four_dimensional_mask(kind: Packing) -> None:
    torch.manual_seed(0)
    module: Any = torch.nn.Module()
    module.num_key_value_groups = 2  # what transformers' layers carry
    lengths = [3, 0, 5, 1]  # a completion of one token feeds nothing
    n = 7 + sum(lengths)
    query = torch.randn(1, 4, n, 8)
    key, value = torch.randn(1, 2, n, 8), torch.randn(1, 2, n, 8)
    where = torch.tensor([7]), torch.tensor(lengths), torch.zeros(4, dtype=torch.long)
    with cases.flex_on_cpu():
        layout = {
            "group": lambda: packing.SharedPrompt.build(*where, share=2, dtype=torch.float32),
            "group_flash": lambda: FlashPrompt.build(*where, kernel=Plain()),
            "group_flex": lambda: packing.FlexPrompt.build(*where),
        }[kind]()
        got, _ = packing.shared_prompt_attention(module, query, key, value, None, layout)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query,
        key.repeat_interleave(2, 1),
        value.repeat_interleave(2, 1),
        attn_mask=dense_mask(7, lengths),
    )
    torch.testing.assert_close(got, expected.transpose(1, 2), rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------- the work that is saved


@pytest.mark.parametrize("kind", ["group", "off"])
@pytest.mark.parametrize("family", cases.FAMILIES)
def test_every_image_is_encoded_once_per_group(family: str, kind: Packing) -> None:
    model = cases.model(family)
    prompts, groups = cases.two_groups(family, 4)
    tower = model.model.visual if hasattr(model.model, "visual") else model.model.vision_tower
    rows: list[int] = []
    tower.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(args[0] if args else kwargs["pixel_values"])),
        with_kwargs=True,
    )
    with torch.no_grad():
        once = vision_features(model, prompts)
        encoded = sum(rows)
        rows.clear()
        completion_logprobs(model, prompts, groups, packing=kind)
        assert sum(rows) == encoded  # 4 completions each, yet no image seen twice
        rows.clear()
        completion_logprobs(model, prompts, groups, packing=kind, vision=once)
        assert not rows


def test_the_prompt_is_computed_once_and_only_completion_tokens_reach_the_output_layer() -> None:
    model = cases.model("qwen2_5_vl")
    prompts, groups = cases.two_groups("qwen2_5_vl", 8)
    seen: dict[str, int] = {}
    model.lm_head.register_forward_pre_hook(lambda _, args: seen.update(head=len(args[0])))
    model.model.language_model.register_forward_pre_hook(
        lambda _, __, kwargs: seen.update(layers=kwargs["inputs_embeds"].shape[1]),
        with_kwargs=True,
    )
    with torch.no_grad():
        completion_logprobs(model, prompts, groups)
    tokens = sum(len(c) for group in groups for c in group)
    assert seen["head"] == tokens  # prompt tokens are no targets, so they get no loss
    # every prompt once; the last token of a completion predicts nothing
    assert seen["layers"] == sum(p["input_ids"].shape[1] for p in prompts) + tokens - 16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", cases.FAMILIES)
def test_all_layers_share_one_attention_mask(family: str, dtype: torch.dtype) -> None:
    """The largest tensor of the attention, if every layer kept its own for the backward pass."""
    model = cases.model(family).to(dtype)
    text = model.config.get_text_config()
    prompts, groups = cases.two_groups(family, 3)
    width = max(len(c) for group in groups for c in group) - 1
    keys = max(p["input_ids"].shape[1] for p in prompts) + width
    share = text.num_attention_heads // text.num_key_value_heads
    kept: list[int] = []

    def record(tensor: Tensor) -> Tensor:
        if tensor.shape[-2:] == (share * width, keys):
            kept.append(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        completion_logprobs(model, prompts, groups)
    assert len(kept) == text.num_hidden_layers > 1
    assert len(set(kept)) == 1


@pytest.mark.parametrize("keys", [16, 19])
def test_the_mask_is_laid_out_as_the_kernels_of_a_gpu_want_it(keys: int) -> None:
    """They make an aligned copy of any other, in every layer."""
    visible = torch.rand(3, 1, 5, keys) < 0.5
    bias = packing._bias(visible, 2, torch.bfloat16)
    assert bias.shape == (3, 1, 10, keys) and bias.dtype == torch.bfloat16
    assert all(stride % 8 == 0 for stride in bias.stride()[:-1]) and bias.stride()[-1] == 1
    assert torch.equal(bias == 0, visible.repeat(1, 1, 2, 1))
    assert torch.equal(bias == -torch.inf, ~visible.repeat(1, 1, 2, 1))


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_features_can_be_shared_between_passes(family: str) -> None:
    model = cases.model(family)
    prompts, groups = cases.two_groups(family, 2)
    with torch.no_grad():
        features = vision_features(model, prompts)
        for kind in ("group", "off"):
            fresh = completion_logprobs(model, prompts, groups, packing=kind)
            shared = completion_logprobs(model, prompts, groups, packing=kind, vision=features)
            assert torch.equal(fresh.logprob, shared.logprob)


def test_a_text_only_prompt_works_beside_one_with_images() -> None:
    for family in cases.FAMILIES:
        prompts = [cases.prompt(family, 0), cases.prompt(family, 1)]
        groups = cases.completions(family, [[4, 2], [3, 5]])
        model = cases.model(family)
        assert_same(model, prompts, groups)
        expected = cases.plain_table(model, prompts, groups)
        out = completion_logprobs(model, prompts, groups)
        assert cases.relative(out.logprob[out.mask], torch.cat(expected)) < EXACT


# ------------------------------------------------------------------------------ splits and chunks


@pytest.mark.parametrize("kind", ["group", "off"])
def test_neither_the_chunk_nor_the_token_budget_changes_the_result(kind: Packing) -> None:
    family = "qwen2_5_vl"
    model = cases.model(family)
    prompts, groups = cases.two_groups(family, 3)
    prompts, groups = prompts + prompts[:1], groups + cases.completions(family, [[20]], seed=5)
    whole = cases.gradient(model, lambda: weighted_sum(model, prompts, groups, kind))
    with torch.no_grad():
        expected = completion_logprobs(model, prompts, groups, packing=kind)
    splits: list[dict[str, Any]] = [
        {"chunk": 5},
        {"token_budget": 1},
        {"token_budget": 140, "chunk": 7},
    ]
    for kwargs in splits:
        with torch.no_grad():
            got = completion_logprobs(model, prompts, groups, packing=kind, **kwargs)
        assert torch.equal(got.mask, expected.mask)
        torch.testing.assert_close(got.logprob, expected.logprob, rtol=EXACT, atol=1e-5)
        split = cases.gradient(
            model, functools.partial(weighted_sum, model, prompts, groups, kind, **kwargs)
        )
        assert cases.relative(split, whole) < EXACT


@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean", "fixed_length"])
def test_the_gradient_of_a_step_does_not_depend_on_its_micro_batches(aggregation: Any) -> None:
    """Groups of unequal size and length, one backward each, against one backward of all."""
    family = "llava_onevision"
    model = cases.model(family)
    prompts = [cases.prompt(family, n, seed=n) for n in (1, 2, 1, 0)]
    groups = cases.completions(family, [[4, 9], [1, 2, 3], [12], [7, 7]])
    gains = [
        torch.randn(len(g), generator=torch.Generator().manual_seed(i))
        for i, g in enumerate(groups)
    ]
    n_tokens = sum(len(row) for group in groups for row in group)

    def loss(part: list[int], kind: Packing) -> Tensor:
        out = completion_logprobs(
            model, [prompts[i] for i in part], [groups[i] for i in part], packing=kind
        )
        return policy_loss(
            out.logprob, None, out.logprob.detach() + 0.1, torch.cat([gains[i] for i in part]),
            out.mask, clip_low=0.2, clip_high=0.2, kl_coef=0.04, aggregation=aggregation,
            n_sequences=8, n_tokens=n_tokens, max_tokens=16,
        )[0]  # fmt: skip

    whole = cases.gradient(model, lambda: loss([0, 1, 2, 3], "off"))
    for budget in (1, 150, 300):
        model.zero_grad()
        for part in micro_batches(prompts, groups, budget):
            loss(part, "group").backward()
        grads = (torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters())
        assert cases.relative(torch.cat([g.flatten() for g in grads]), whole) < EXACT


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 4)), min_size=1, max_size=8),
    st.integers(1, 200),
    st.sampled_from(["group", "off"]),
)
def test_micro_batches_hold_whole_groups_in_order_within_the_budget(shapes, budget, kind) -> None:
    prompts = [{"input_ids": torch.zeros(1, length)} for length, _ in shapes]
    groups = [[[1, 2, 3]] * size for _, size in shapes]
    parts = micro_batches(prompts, groups, budget, kind)
    assert [i for part in parts for i in part] == list(range(len(shapes)))
    for part in parts:
        copies = [1 if kind == "group" else shapes[i][1] for i in part]
        tokens = sum(c * shapes[i][0] + 3 * shapes[i][1] for c, i in zip(copies, part, strict=True))
        assert tokens <= budget or len(part) == 1


# ---------------------------------------------------------------------------------- other guards


def test_switching_the_adapter_off_gives_the_base_policy_and_back() -> None:
    base = cases.model("llava_onevision")
    prompts, groups = cases.two_groups("llava_onevision", 2)
    with torch.no_grad():
        expected = completion_logprobs(base, prompts, groups).logprob
        torch.manual_seed(0)
        model = get_peft_model(
            base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        )
        tuned = completion_logprobs(model, prompts, groups).logprob
        with adapter_off(model):
            reference = completion_logprobs(model, prompts, groups).logprob
        again = completion_logprobs(model, prompts, groups).logprob
    assert torch.equal(reference, expected)
    assert torch.equal(again, tuned) and not torch.allclose(tuned, expected, atol=1e-3)
    with pytest.raises(ConfigError, match="no adapter"), adapter_off(cases.model("llava")):
        pass


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_generation_is_unchanged_by_the_packed_forward_and_the_other_way_round(family) -> None:
    model = cases.model(family)
    prompts, groups = cases.two_groups(family, 2)
    sample = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    banned = [model.config.image_token_id]
    with torch.no_grad():
        before = model.generate(**prompts[1], **sample, suppress_tokens=banned)
        packed = completion_logprobs(model, prompts, groups).logprob
        after = model.generate(**prompts[1], **sample, suppress_tokens=banned)
        # generate leaves rope_deltas behind; they must not leak into the next forward
        again = completion_logprobs(model, prompts, groups).logprob
    assert torch.equal(before, after) and torch.equal(packed, again)


def test_a_completion_that_contains_the_image_token_is_read_as_text() -> None:
    model = cases.model("llava")
    prompts, groups = cases.two_groups("llava", 2)
    groups[0][0] = [groups[0][0][0], model.config.image_token_id, 11]
    assert_same(model, prompts, groups)


def test_temperature_divides_the_logits() -> None:
    model = cases.model("qwen2_vl")
    prompts, groups = cases.two_groups("qwen2_vl", 2)
    with torch.no_grad():
        warm = completion_logprobs(model, prompts, groups, temperature=2.0)
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight / 2)
        halved = completion_logprobs(model, prompts, groups)
    torch.testing.assert_close(warm.logprob, halved.logprob)


def test_suppressed_tokens_share_out_their_probability_and_cannot_have_been_sampled() -> None:
    model = cases.model("llava_next")
    prompts, groups = cases.two_groups("llava_next", 2)
    used = {t for group in groups for row in group for t in row}
    banned = [t for t in range(5, 60) if t not in used][:20]
    with torch.no_grad():
        got = completion_logprobs(model, prompts, groups, suppressed=banned)
        free = completion_logprobs(model, prompts, groups)
        # bias of -infinity by hand, on the model's own output layer
        model.lm_head.register_forward_hook(
            lambda _, __, out: out.index_fill(-1, torch.tensor(banned), -torch.inf)
        )
        expected = completion_logprobs(model, prompts, groups, packing="off")
    assert (got.logprob[got.mask] > free.logprob[free.mask]).all()
    torch.testing.assert_close(got.logprob, expected.logprob, rtol=EXACT, atol=1e-5)
    torch.testing.assert_close(got.entropy, expected.entropy, rtol=EXACT, atol=1e-5)
    with pytest.raises(MismatchError, match="must never"):
        completion_logprobs(model, prompts, groups, suppressed=[groups[1][0][0]])


def test_what_does_not_belong_together_is_refused() -> None:
    family = "qwen2_5_vl"
    model = cases.model(family)
    prompts, groups = cases.two_groups(family, 2)
    with pytest.raises(MismatchError, match="2 prompts but 1 groups"):
        completion_logprobs(model, prompts, groups[:1])
    with pytest.raises(MismatchError, match="image features of 1"):
        completion_logprobs(model, prompts, groups, vision=vision_features(model, prompts)[:1])
    with pytest.raises(MismatchError, match=r"image tokens but .* features"):
        swapped = vision_features(model, [prompts[0], prompts[0]])
        completion_logprobs(model, prompts, groups, vision=swapped)
    with pytest.raises(MismatchError, match="without any token"):
        completion_logprobs(model, prompts, [[[1], []], [[1]]])
    padded = dict(prompts[0], attention_mask=torch.zeros_like(prompts[0]["input_ids"]))
    with pytest.raises(MismatchError, match="padded"):
        completion_logprobs(model, [padded], groups[:1])
    unlike = dict(prompts[0], pixel_values=prompts[0]["pixel_values"][:16])
    unlike["image_grid_thw"] = torch.tensor([[1, 4, 4]])
    with pytest.raises(MismatchError, match="same processor"):
        completion_logprobs(model, [unlike], groups[:1])
    model.config.model_type = "unheard_of"
    with pytest.raises(ConfigError, match="unheard_of"):
        completion_logprobs(model, prompts, groups)


def test_a_sliding_window_shorter_than_the_text_is_refused() -> None:
    where = torch.tensor([7]), torch.tensor([3]), torch.tensor([0])
    x = torch.randn(1, 1, 10, 8)
    module = torch.nn.Module()
    with cases.flex_on_cpu():
        for layout in (
            packing.SharedPrompt.build(*where, share=1, dtype=torch.float32),
            packing.FlexPrompt.build(*where),
            FlashPrompt.build(*where, kernel=Plain()),
        ):
            attend = functools.partial(
                packing.shared_prompt_attention, module, x, x, x, None, layout
            )
            assert attend(sliding_window=10)[0].shape == (1, 10, 1, 8)
            with pytest.raises(ConfigError, match="packing=off"):
                attend(sliding_window=9)


def test_flexattention_is_refused_before_anything_is_read_where_it_cannot_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose.compose(["grpo.packing=group_flex", "engine.device=cpu"])
    with pytest.raises(
        ConfigError, match=r"no backward pass on this device \(cpu\).*packing=group,"
    ):
        open_run(config, RunFolder(tmp_path / "never"), None, None)
    gpu = torch.device("cuda")
    monkeypatch.setattr(packing, "find_spec", {"triton": object()}.get)
    check_packing("group_flex", gpu, torch.float32)
    check_packing("off", torch.device("cpu"), torch.float32)
    monkeypatch.setattr(packing, "find_spec", {}.get)
    with pytest.raises(ConfigError, match="Triton, which is not installed"):
        check_packing("group_flex", gpu, torch.float32)
    with pytest.raises(ConfigError, match=r"group_flash needs engine.precision=bfloat16"):
        check_packing("group_flash", gpu, torch.float32)
