"""Predicted bytes: by hand where a hand can, by counting what autograd keeps elsewhere."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForImageTextToText

from iad_r1.backbones import published
from iad_r1.backbones.backbone import Backbone
from iad_r1.backbones.float32_head import Float32Head
from iad_r1.backbones.packing import completion_logprobs
from iad_r1.backbones.published import build
from iad_r1.errors import ConfigError
from iad_r1.objective.losses import token_logprobs
from iad_r1.planner import memory
from iad_r1.planner.memory import GIB, Lora, Setup, Work
from iad_r1.planner.widths import Architecture, Picture, picture, widths_of
from iad_r1.settings.training import Packing

NAMES = published.names()
QWEN_3B = widths_of(published.read("qwen25vl_3b")["config"])
ONEVISION = widths_of(published.read("llava_ov_05b")["config"])
LANGUAGE: tuple[memory.Part, ...] = ("language",)
STEP = Work(2, 200, Picture(2436, 609), 1, 4, 512)  # 2 prompts with a picture of 800 x 600


# --- shapes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_parameters_counted_from_the_configuration_are_those_of_the_model(name: str) -> None:
    model = build.build_random(name, device="meta")
    found = widths_of(published.read(name)["config"])
    text = ("model.language_model.", "lm_head.")
    sizes = {key: p.numel() for key, p in model.named_parameters()}
    assert found.parameters == sum(sizes.values())
    assert found.text.parameters == sum(n for key, n in sizes.items() if key.startswith(text))


@pytest.mark.parametrize("name", NAMES)
def test_a_configuration_saved_by_transformers_reads_the_same(name: str) -> None:
    saved = build.model_config(name).to_dict()
    assert widths_of(saved) == widths_of(published.read(name)["config"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["qwen25vl_3b", "llava15_7b", "llava16_8b", "llava_ov_05b", "internvl25_4b"]
)
def test_a_picture_is_counted_as_its_processor_cuts_it(name: str) -> None:
    backbone = Backbone(build.build_random(name, device="meta"), build.build_processor(name))
    processor, config = backbone.processor, backbone.model.config
    model = widths_of(published.read(name)["config"])
    stream = random.Random(name)
    for limit in (None, 480_000, 480_000, 200_000):
        backbone.limit_pixels(limit)
        size = (stream.randint(60, 1400), stream.randint(60, 1400))
        word = processor.tokenizer.decode([config.image_token_id])
        out = processor(text=[word], images=[Image.new("RGB", size)], return_tensors="pt")
        tokens = int((out["input_ids"] == config.image_token_id).sum())
        pixels = out["pixel_values"]
        tiles = pixels.flatten(0, -4).shape[0] if pixels.ndim > 2 else 1
        per_tile = model.vision.side**2 + model.vision.class_token
        patches = tiles * per_tile if per_tile else pixels.shape[0]
        assert picture(model, *size, limit) == Picture(patches, tokens), (size, limit)


def test_a_model_of_another_type_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="'gemma3'"):
        widths_of({"model_type": "gemma3"})


# --- states, by hand -----------------------------------------------------------------------------


def total(found: memory.States) -> int:
    return found.weights + found.gradients + found.optimiser + found.master


def test_full_bfloat16_training_with_master_weights_takes_16_bytes_per_parameter() -> None:
    for engine in ("zero2", "zero3"):
        found = memory.states(QWEN_3B, Setup(engine=engine, ranks=1))
        assert total(found) == 16 * QWEN_3B.parameters


def test_one_process_has_float32_gradients_in_either_precision_and_float32_copies_in_bfloat16():
    half = memory.states(QWEN_3B, Setup())
    assert total(half) == 18 * QWEN_3B.parameters and half.master == 4 * QWEN_3B.parameters
    assert half.gradients == 4 * QWEN_3B.parameters
    full = memory.states(QWEN_3B, Setup(precision="float32"))
    assert total(full) == 16 * QWEN_3B.parameters and full.master == 0


def test_zero3_over_4_gpus_divides_all_of_it_by_4() -> None:
    one, four = (memory.states(QWEN_3B, Setup(engine="zero3", ranks=n)) for n in (1, 4))
    assert total(four) == pytest.approx(total(one) / 4, abs=4)


def test_zero2_divides_all_but_the_weights() -> None:
    four = memory.states(QWEN_3B, Setup(engine="zero2", ranks=4))
    assert four.weights == 2 * QWEN_3B.parameters
    assert total(four) == pytest.approx((2 + 14 / 4) * QWEN_3B.parameters, abs=4)


def test_offloading_leaves_the_weights_and_zero3_not_even_those() -> None:
    two, three = (
        memory.states(QWEN_3B, Setup(engine=engine, ranks=4, offload=True, reference=True))
        for engine in ("zero2", "zero3")
    )
    assert total(two) == two.weights == 2 * QWEN_3B.parameters
    assert total(three) == three.reference == 0
    assert two.host == pytest.approx(16 * QWEN_3B.parameters / 4, abs=4)
    assert three.host == pytest.approx((16 + 2 + 2) * QWEN_3B.parameters / 4, abs=4)


def test_lora_keeps_gradients_and_moments_for_the_adapter_alone() -> None:
    """Rank 64 on Qwen2.5-VL-3B: q and o of 2048 x 2048, k and v of 2048 x 256, gate, up and down
    of 2048 x 11008, in 36 layers."""
    count = 36 * 64 * (2 * (2048 + 2048) + 2 * (2048 + 256) + 3 * (2048 + 11008))
    setup = Setup(lora=Lora(rank=64), train=LANGUAGE)
    found = memory.states(QWEN_3B, setup)
    assert memory.adapter(QWEN_3B, setup) == count
    assert found.weights == 2 * QWEN_3B.parameters + 4 * count
    assert (found.gradients, found.optimiser) == (4 * count, 8 * count)


def test_the_adapter_is_counted_as_peft_builds_it() -> None:
    from peft import LoraConfig, get_peft_model

    from iad_r1.learn.lora import linear_layers

    for name in ("qwen2vl_2b", "qwen25vl_3b", "llava15_7b", "llava_ov_05b"):
        for parts in (LANGUAGE, memory.ALL):
            model = small(name, device="meta")
            targets = linear_layers(model, parts)
            found = get_peft_model(model, LoraConfig(r=4, target_modules=targets))
            counted = sum(p.numel() for p in found.parameters() if p.requires_grad)
            setup = Setup(lora=Lora(4), train=parts)
            assert counted == memory.adapter(widths_of(model.config.to_dict()), setup), (
                name,
                parts,
            )


def test_a_frozen_tower_has_neither_gradients_nor_moments() -> None:
    found = memory.states(QWEN_3B, Setup(train=LANGUAGE))
    assert found.gradients == 4 * QWEN_3B.text.parameters
    assert found.weights == 2 * QWEN_3B.parameters


def test_the_cache_of_grouped_query_attention_counts_key_heads() -> None:
    """Qwen2.5-VL-3B: 36 layers, 2 key heads of 128 (for 16 query heads), bfloat16."""
    assert memory.kv_cache(QWEN_3B.text, 1, 2) == 2 * 36 * 2 * 128 * 2
    llava = widths_of(published.read("llava15_7b")["config"]).text  # every head has its own key
    assert memory.kv_cache(llava, 1, 2) == 2 * 32 * 4096 * 2


def test_the_logits_are_bounded_whatever_the_length() -> None:
    long = replace(STEP, length=4096)
    setup = Setup()
    assert memory.logprobs(QWEN_3B, STEP, setup, True) == memory.logprobs(
        QWEN_3B, long, setup, True
    )
    assert memory.logprobs(QWEN_3B, STEP, setup, True) < 2 * GIB


# --- activations, against what autograd keeps ----------------------------------------------------


def small(name: str, device: str = "cpu", dtype: torch.dtype = torch.float32, **width: int) -> Any:
    """The classes of a published backbone, a few narrow layers of each part."""
    config = dict(published.read(name)["config"])
    text = dict(config.get("text_config") or config)
    text |= {"hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 3}
    text |= {"num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 256, **width}
    text |= {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    vision = dict(config["vision_config"])
    if "depth" in vision:
        section = text["hidden_size"] // text["num_attention_heads"] // 2
        text["rope_scaling"] = {"type": "mrope", "mrope_section": [section - 4, 2, 2]}
        vision |= {"depth": 3, "num_heads": 2, "embed_dim": 48}
        vision["hidden_size"] = 48 if "out_hidden_size" in vision else text["hidden_size"]
        if "out_hidden_size" in vision:
            vision |= {"out_hidden_size": text["hidden_size"], "intermediate_size": 80}
            vision |= {"window_size": 56, "fullatt_block_indexes": [2]}
        config |= text
    else:
        vision |= {"num_hidden_layers": 4, "hidden_size": 48, "intermediate_size": 80}
        vision |= {"num_attention_heads": 2, "image_size": 56}
        config["text_config"] = text
    tokens = {key: 5 for key in config if key in ("image_token_id", "image_token_index")}
    if "image_grid_pinpoints" in config:
        config["image_grid_pinpoints"] = [[56, 112], [112, 56], [112, 112]]
    config |= {**tokens, "vision_config": vision}
    made = AutoConfig.for_model(config.pop("model_type"), **config)
    with torch.device(device):
        torch.manual_seed(0)
        return AutoModelForImageTextToText.from_config(made, dtype=dtype).train()


def example(model: Any) -> dict[str, torch.Tensor]:
    """A prompt with one picture of 112 x 112 (56 x 56 for LLaVA-1.5) and 20 words."""
    about = widths_of(model.config.to_dict())
    counted = picture(about, 112, 112, None)
    ids = torch.tensor([[5] * counted.tokens + list(range(10, 30))])
    if about.vision.kind.startswith("qwen"):
        values = torch.randn(counted.patches, about.vision.inputs)
        return {"input_ids": ids, "pixel_values": values,
                "image_grid_thw": torch.tensor([[1, 8, 8]])}  # fmt: skip
    if about.model_type == "llava":
        return {"input_ids": ids, "pixel_values": torch.randn(1, 3, 56, 56)}
    found = {
        "pixel_values": torch.randn(1, 5, 3, 56, 56),
        "image_sizes": torch.tensor([[112, 112]]),
    }
    batch = {"batch_num_images": torch.tensor([1])} if about.max_tiles else {}
    return {"input_ids": ids, **found, **batch}


class Kept:
    """What autograd holds on to: distinct storages that are no weights, in bytes."""

    def __init__(self, model: torch.nn.Module) -> None:
        given = [*model.parameters(), *model.buffers()]
        self.given = {tensor.untyped_storage().data_ptr() for tensor in given}
        self.boxes: weakref.WeakSet = weakref.WeakSet()

    class Box:
        def __init__(self, tensor: torch.Tensor) -> None:
            self.tensor = tensor.detach()  # an output would hold its own graph, and never go

    def pack(self, tensor: torch.Tensor) -> Kept.Box:
        box = self.Box(tensor)
        self.boxes.add(box)
        return box

    def count(self, forward: Callable[[], Any]) -> int:
        with torch.autograd.graph.saved_tensors_hooks(self.pack, lambda box: box.tensor):
            result = forward()
        gc.collect()  # layers whose output is not used
        storages = [box.tensor.untyped_storage() for box in self.boxes]
        found = {s.data_ptr(): s.nbytes() for s in storages if s.data_ptr() not in self.given}
        del result
        return sum(found.values())


def work_of(
    model: Any, groups: int, completions: int, length: int, packing: Packing = "group"
) -> Work:
    about = widths_of(model.config.to_dict())
    return Work(groups, 20, picture(about, 112, 112, None), 1, completions, length, packing)


def measure(model: Any, work: Work) -> int:
    prompts = [example(model) for _ in range(work.groups)]
    rows = [[[30 + i % 100 for i in range(work.length)]] * work.completions] * work.groups
    return Kept(model).count(
        lambda: completion_logprobs(model, prompts, rows, packing=work.packing)
    )


def predict(model: Any, work: Work, setup: Setup) -> int:
    """Activations and the float32 log-probabilities of every target over the vocabulary."""
    about = widths_of(model.config.to_dict())
    kept = memory.vision_activations(about, work, setup) + memory.text_activations(
        about, work, setup
    )
    return kept + 4 * work.targets * about.text.vocab


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "name", ["qwen2vl_2b", "qwen25vl_3b", "llava15_7b", "llava16_8b", "llava_ov_05b"]
)
def test_activations_are_what_autograd_keeps(name: str, precision: Any) -> None:
    model = small(name, dtype=getattr(torch, precision))
    setup = Setup(precision=precision, cuda=False)
    for groups, completions, length in ((1, 4, 25), (2, 3, 9), (2, 1, 30)):
        work = work_of(model, groups, completions, length)
        assert predict(model, work, setup) == pytest.approx(measure(model, work), rel=0.01), work


@pytest.mark.parametrize("name", ["qwen25vl_3b", "llava_ov_05b"])
def test_activations_of_plain_rows_are_what_autograd_keeps(name: str) -> None:
    model = small(name)
    work = work_of(model, 2, 3, 12, "off")
    predicted = predict(model, work, Setup(precision="float32", cuda=False))
    assert predicted == pytest.approx(measure(model, work), rel=0.02)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_activations_through_flash_attention_are_what_autograd_keeps(precision: Any) -> None:
    model = small("llava_ov_05b", dtype=getattr(torch, precision), num_key_value_heads=6)
    setup = Setup(precision=precision, cuda=False)
    work = work_of(model, 1, 4, 25, "group_flash")
    predicted = predict(model, work, setup)
    assert predicted == pytest.approx(measure(model, work), rel=0.01)
    through_sdpa = predict(model, work_of(model, 1, 4, 25), setup)  # gathers keys and values
    assert through_sdpa > 1.04 * predicted


@pytest.mark.parametrize("name", ["qwen25vl_3b", "llava_ov_05b"])
def test_with_checkpointing_a_layer_keeps_its_input(name: str) -> None:
    model = small(name, dtype=torch.bfloat16)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    setup = Setup(checkpointing=True, cuda=False)
    work = work_of(model, 1, 4, 25)
    # rotary angles and the mask are arguments of the layers, which checkpointing holds without
    # these hooks
    about = widths_of(model.config.to_dict())
    angles = 2 * 2 * work.tokens * about.text.head_dim
    if about.vision.kind.startswith("qwen"):
        angles += 2 * 4 * work.patches * about.vision.hidden // about.vision.heads
    found = measure(model, work) + angles + memory.attention_mask(about.text, work, 2)
    assert predict(model, work, setup) == pytest.approx(found, rel=0.015)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "dropout", "packing"),
    [
        ("float32", False, "group"),
        ("float32", True, "group"),
        ("bfloat16", False, "group"),
        ("bfloat16", True, "group"),
        ("bfloat16", False, "group_flash"),
    ],
)
def test_activations_under_lora_are_what_autograd_keeps(
    precision: Any, dropout: bool, packing: Any
) -> None:
    from peft import LoraConfig, get_peft_model

    from iad_r1.learn.lora import linear_layers

    base = small("qwen25vl_3b", dtype=getattr(torch, precision), num_hidden_layers=6)
    targets = linear_layers(base, LANGUAGE)
    lora = LoraConfig(r=8, target_modules=targets, lora_dropout=0.05 if dropout else 0.0)
    model = get_peft_model(base, lora)
    setup = Setup(precision=precision, lora=Lora(8, dropout), train=LANGUAGE, cuda=False)
    work = work_of(base, 1, 4, 25, packing)
    # the first layer's inputs need no gradient, which the prediction does not know
    assert predict(base, work, setup) == pytest.approx(measure(model, work), rel=0.04)


# --- log-probabilities, against torch's allocator -------------------------------------------------


def allocated(action: Callable[[], Any]) -> int:
    """The most bytes that are there at once for `action`, beside what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as log:
        action()
    assert log.profiler is not None and log.profiler.kineto_results is not None
    events: list[Any] = [e for e in log.profiler.kineto_results.events() if e.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(accumulate(sizes))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("chunks", [1, 3])
@pytest.mark.parametrize("wide", [16, 256])  # the output layer's gradient is small, or is the most
def test_log_probabilities_take_for_a_moment_what_the_allocator_counts(
    precision: Any, entropy: bool, chunks: int, wide: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocab, tokens = 5000, 64
    monkeypatch.setattr(memory, "CHUNK", vocab * tokens)
    head = Float32Head(wide, vocab, bias=False, dtype=getattr(torch, precision))
    states = torch.randn(chunks * tokens, wide, dtype=head.weight.dtype, requires_grad=True)
    targets = torch.arange(chunks * tokens)
    text = replace(ONEVISION.text, hidden=wide, vocab=vocab, intermediate=1)
    model = replace(ONEVISION, text=text)
    work = Work(1, 20, Picture(0, 0), 0, chunks, tokens)
    setup = Setup(precision=precision, cuda=False)

    def found() -> torch.Tensor:
        return token_logprobs(states, head, targets, chunk=tokens, entropy=entropy)[0]

    predicted = memory.logprobs(model, work, setup, entropy)
    assert predicted == pytest.approx(allocated(lambda: found().sum().backward()), rel=0.03)
    if not entropy and wide == 16:  # the reference's pass
        with torch.no_grad():
            assert memory.scoring(model, work, setup) == pytest.approx(allocated(found), rel=0.03)


# --- properties ----------------------------------------------------------------------------------

setups = st.builds(
    Setup,
    engine=st.sampled_from(["single", "zero2", "zero3"]),
    ranks=st.integers(1, 8),
    precision=st.sampled_from(["float32", "bfloat16"]),
    lora=st.none() | st.builds(Lora, rank=st.integers(1, 128)),
    train=st.sampled_from([memory.ALL, LANGUAGE, ("projector", "language")]),
    reference=st.booleans(),
    checkpointing=st.booleans(),
)
works = st.builds(
    Work,
    groups=st.integers(1, 8),
    text=st.integers(1, 500),
    picture=st.builds(lambda n: Picture(4 * n, n), st.integers(1, 2000)),
    pictures=st.integers(0, 2),
    completions=st.integers(1, 16),
    length=st.integers(2, 1024),
    packing=st.sampled_from(["group", "group_flash", "off"]),
)
models = st.sampled_from([widths_of(published.read(name)["config"]) for name in NAMES])


def peak(model: Architecture, work: Work, setup: Setup, forwards: int = 1) -> int:
    return memory.training(model, work, setup, forwards=forwards).peak


@given(models, works, setups)
@settings(max_examples=60)
def test_more_work_never_needs_less(model: Architecture, work: Work, setup: Setup) -> None:
    here = peak(model, work, setup)
    for more in (
        replace(work, groups=work.groups + 1),
        replace(work, completions=work.completions + 1),
        replace(work, length=work.length + 1),
        replace(work, text=work.text + 1),
    ):
        assert peak(model, more, setup) >= here
    assert peak(model, work, setup, forwards=2) >= here


@given(models, works, setups)
@settings(max_examples=60)
def test_more_ranks_never_need_more_on_each(model: Architecture, work: Work, setup: Setup) -> None:
    assert peak(model, work, replace(setup, ranks=setup.ranks + 1)) <= peak(model, work, setup)


@given(models, works, setups)
@settings(max_examples=60)
def test_what_saves_memory_does(model: Architecture, work: Work, setup: Setup) -> None:
    """Checkpointing, offloading, and doing without a reference."""
    plain = replace(setup, checkpointing=False, offload=False)
    here = memory.training(model, work, plain)
    saving = memory.training(model, work, replace(plain, checkpointing=True))
    assert saving.activations <= here.activations
    assert peak(model, work, replace(plain, reference=False)) <= here.peak
    if setup.engine != "single":
        assert peak(model, work, replace(plain, offload=True)) <= here.peak


@given(models, works, st.integers(1, 64))
@settings(max_examples=30)
def test_a_token_budget_lets_exactly_its_groups_into_one_forward(model, work, completions) -> None:
    from iad_r1.backbones.packing import micro_batches

    work = replace(work, completions=completions)
    prompt = {"input_ids": torch.zeros(1, work.prompt, dtype=torch.long)}
    group = [[1] * work.length] * work.completions
    for count, expected in ((work.groups, 1), (work.groups + 1, 2)):
        parts = micro_batches([prompt] * count, [group] * count, work.budget, work.packing)
        assert len(parts) == expected


def test_the_group_packed_forward_needs_less_than_plain_rows_and_flash_attention_less_still():
    rows, flash = replace(STEP, packing="off"), replace(STEP, packing="group_flash")
    found = [peak(QWEN_3B, work, Setup()) for work in (flash, STEP, rows)]
    assert found == sorted(found) and len(set(found)) == 3


def test_the_3b_of_the_paper_fits_four_80_gib_gpus_under_zero3() -> None:
    """As the authors ran it: full bfloat16, ZeRO-3 on 3 of 4 A100, one prompt per forward."""
    setup = Setup(engine="zero3", ranks=3, reference=True)
    assert peak(QWEN_3B, replace(STEP, groups=1), setup, forwards=2) < 75 * GIB
