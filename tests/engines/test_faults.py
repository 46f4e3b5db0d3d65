"""Faults that other trainers shipped, planted one by one: the parity gate finds each."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from vllm_cases import LONG, gated, leave_out, move, picture, prompts

from bench import sampler_gap
from iad_r1.errors import MismatchError, TrainingError
from iad_r1.types import Conversation

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def started(request: pytest.FixtureRequest, twin: Any, engines: Any) -> Any:
    """A twin and its engine; in bfloat16 as peaked as a trained policy, and trained itself."""
    backbone = twin("qwen2_5_vl")
    if request.param == "bfloat16":
        sampler_gap.teach(backbone)
        backbone.model.bfloat16()
        sampler_gap.sharpen(backbone)
    return backbone, engines(backbone)


@pytest.fixture
def case(started: Any, tmp_path: Any) -> Iterator[Any]:
    """Twin, engine and gate in order; afterwards the gate has to be green again."""
    backbone, engine = started
    engine.sync()
    resets = engine.resets
    with gated(engine, backbone, tmp_path / "parity.csv") as gate:
        yield backbone, engine, gate
        engine.resets = resets


def test_without_a_fault_the_gate_is_green_and_keeps_its_history(case):
    backbone, _, gate = case
    row = gate.check("grpo", 3)
    assert 4 * row.mean < row.shown  # processors round bfloat16 in their own ways
    assert (row.gap < 1e-4) == (backbone.model.dtype == torch.float32), "nothing was rounded"
    assert row.weights > 20 and row.sums == 0
    lines = gate.path.read_text().splitlines()
    assert len(lines) == 2 and lines[1].startswith("grpo,3,2,8,")


def test_no_sync(case):
    backbone, _, gate = case
    move(backbone, 1)
    with pytest.raises(MismatchError, match=r"disagree by .* were not sent to the sampler"):
        gate.check("grpo", 1)


def test_no_prefix_reset(case):
    backbone, engine, gate = case
    engine.resets = (engine.reset_encoder_cache, engine.reset_processor_cache)
    move(backbone, 1)
    engine.sync()
    with pytest.raises(MismatchError, match=r"disagree by .*prefix cache"):
        gate.check("grpo", 1)


def test_no_encoder_reset(case):
    """Without the reset, features of the old tower stay under the picture's hash."""
    backbone, engine, gate = case
    engine.resets = (engine.reset_processor_cache, engine.reset_prefix_cache)
    move(backbone, 1)
    engine.sync()
    with pytest.raises((MismatchError, TrainingError), match="cache"):
        gate.check("grpo", 1)
    engine.reset_encoder_cache()


def test_an_adapter_counted_twice_from_the_second_step_after_a_resume(case, monkeypatch):
    """Weights with the adapter merged in, sent to an engine whose adapter is still active."""
    from iad_r1.rollouts.colocate import weights

    backbone, engine, gate = case
    plain = backbone.model
    gate.every = 20
    torch.manual_seed(0)  # of the adapter, half of which is random from the start
    backbone.model = get_peft_model(plain, LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    try:
        move(backbone, 1, by=0.2)  # what the checkpoint held
        engine.sync()
        assert gate.due(7)
        gate.check("grpo", 7)
        merged = weights.merged

        def twice(layer: Any, path: str) -> Iterator[tuple[str, torch.Tensor]]:
            base = layer.get_base_layer().weight
            for name, tensor in merged(layer, path):
                yield name, 2 * tensor - base if name == "weight" else tensor

        monkeypatch.setattr(weights, "merged", twice)
        engine.sync()
        assert gate.due(8)
        with pytest.raises(MismatchError, match="grpo step 8: sampler and trainer disagree by"):
            gate.check("grpo", 8)
    finally:
        monkeypatch.undo()
        backbone.model = backbone.model.unload().requires_grad_(True)


def test_tied_head_not_repacked(case, monkeypatch):
    backbone, engine, gate = case
    monkeypatch.setattr("iad_r1.rollouts.colocate.worker.repack_tied_head", lambda _model: None)
    move(backbone, 1)
    engine.sync()
    if backbone.model.dtype == torch.bfloat16:  # a float32 head reads the weight: nothing to repack
        gate.check("grpo", 1)
        return
    with pytest.raises(MismatchError, match="disagree by"):
        gate.check("grpo", 1)


def test_another_pixel_limit(case):
    """The trainer's processor shrinks the picture, the engine's does not."""
    backbone, _, gate = case
    size = backbone.processor.image_processor.size
    limit = size["longest_edge"]
    size["longest_edge"] = 56 * 56
    try:
        gate.probes = [
            backbone.encode(Conversation("{image}Any defect?"), [picture(0, (112, 112))])
        ]
    finally:
        size["longest_edge"] = limit
    with pytest.raises(MismatchError, match="limit on picture sizes"):
        gate.check("grpo", 1)
    gate.probes = prompts(backbone, LONG)


def test_another_picture(case):
    """As many tokens, other pixels: as after another resampling filter on one side."""
    backbone, _, gate = case
    good = gate.probes[0]
    gate.probes = [dataclasses.replace(good, images=(picture(77),))]
    with pytest.raises(MismatchError, match="different pixel_values"):
        gate.check("grpo", 1)
    gate.probes = prompts(backbone, LONG)


def test_expanded_ids_sent(case):
    backbone, engine, gate = case
    good = gate.probes[0]
    expanded = backbone.tokenizer.decode(good.inputs["input_ids"][0])
    gate.probes = [dataclasses.replace(good, text=expanded)]
    with pytest.raises((MismatchError, TrainingError), match="prompt"):
        gate.check("grpo", 1)
    gate.probes = prompts(backbone, LONG)
    engine.reset_processor_cache()


def test_one_weight_name_unmapped(case, monkeypatch):
    from iad_r1.rollouts.colocate import weights as vllm_weights

    _, engine, _ = case
    names = vllm_weights.hub_names

    def renamed(base: Any) -> dict[str, str]:
        found = names(base)
        wrong = next(name for name in found if name.endswith("layers.1.mlp.down_proj.weight"))
        return {**found, wrong: "model.layers.1.mlp.renamed_proj.weight"}

    monkeypatch.setattr(vllm_weights, "hub_names", renamed)
    with pytest.raises((MismatchError, TrainingError), match="renamed_proj"):
        engine.sync()


def test_one_weight_not_sent(case, monkeypatch):
    from iad_r1.rollouts.colocate import sampler as vllm_engine

    _, engine, _ = case
    leave_out(monkeypatch, vllm_engine, "layers.1.self_attn.k_proj")
    with pytest.raises(MismatchError, match=r"nothing was sent for vLLM's .*layers\.1.*qkv_proj"):
        engine.sync()


def test_truncated_sampling_without_correction(case, monkeypatch):
    _, engine, gate = case
    parameters = engine.parameters

    def truncated(*args: Any) -> Any:
        found = parameters(*args)
        found.top_p = 0.6
        return found

    monkeypatch.setattr(engine, "parameters", truncated)
    with pytest.raises(MismatchError, match="disagree by"):
        gate.check("grpo", 1)


def test_old_weights_put_back_behind_the_engines_back(case):
    _, engine, gate = case
    model = engine.llm.llm_engine.model_executor.driver_worker.worker.model_runner.get_model()
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if n.endswith("norm.weight")).add_(0.5)
    with pytest.raises(MismatchError, match=r"holds other weights than it was sent.*sleep"):
        gate.check("grpo", 1)


def test_a_dead_engine_stops_the_run_with_its_own_words(case, monkeypatch):
    _, engine, gate = case

    def dies() -> Any:
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(engine.llm.llm_engine, "step", dies)
    with pytest.raises(TrainingError, match=r"failed while sampling.*Tried to allocate 20"):
        gate.check("grpo", 1)


def test_a_hanging_engine_stops_the_run(case, monkeypatch):
    import time

    _, engine, gate = case
    patient = engine.settings
    engine.settings = patient.model_copy(update={"patience": 0.2})
    monkeypatch.setattr(engine.llm.llm_engine, "step", lambda: time.sleep(30))
    try:
        with pytest.raises(TrainingError, match=r"did not answer for 0\.2 s"):
            gate.check("grpo", 1)
    finally:
        engine.settings = patient
