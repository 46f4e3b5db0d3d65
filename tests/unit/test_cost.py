"""Predicted seconds beside those that an H100 took, and what has to follow from the arithmetic."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from iad_r1.planner import cost
from iad_r1.planner.memory import Work
from iad_r1.planner.widths import Architecture, picture, widths_of

REPOSITORY = Path(__file__).resolve().parents[2]
MEASURED = json.loads((REPOSITORY / "bench/results/gpu-2026-11-27.json").read_text())
ALONE = next(run["cases"] for run in MEASURED["runs"] if run["note"] == "alone on the GPU")


def model(name: str) -> Architecture:
    file = REPOSITORY / "iad_r1/backbones/published" / f"{name}.json"
    found = json.loads(file.read_text())
    return widths_of(found.get("config", found))


def step(name: str) -> Work:
    """What bench/gpu timed: 6 prompts of a picture of 672 x 672, 4 completions of 512 tokens."""
    return Work(6, 108, picture(model(name), 672, 672, None), 1, 4, 512)


@pytest.mark.parametrize("name", ["qwen25vl_3b", "llava_ov_05b"])
def test_an_update_is_predicted_as_it_was_measured(name):
    timed = ALONE[f"update {name} group"]
    operations = cost.flop(model(name), step(name))
    assert operations / 1e12 == pytest.approx(timed["tflop"], rel=0.01)
    assert cost.update(model(name), step(name)) == pytest.approx(timed["seconds_update"], rel=0.3)
    found = cost.reference(model(name), step(name))
    assert found == pytest.approx(timed["seconds_reference"], rel=0.5)


def test_a_step_of_pa_sft_is_predicted_as_it_was_measured():
    work = Work(8, 60, picture(model("qwen25vl_3b"), 672, 672, None), 1, 1, 68)
    timed = ALONE["sft qwen25vl_3b"]["seconds_update"]
    assert cost.sft(model("qwen25vl_3b"), work) == pytest.approx(timed, rel=0.05)


def test_costs_grow_as_what_is_computed_and_read_grows():
    of, work = model("qwen25vl_3b"), step("qwen25vl_3b")
    assert cost.update(of, replace(work, groups=12)) == pytest.approx(2 * cost.update(of, work))
    larger = replace(work, completions=8)
    assert 1.5 < cost.update(of, larger) / cost.update(of, work) < 2, "the prompt is shared"
    assert cost.sampling(of, larger) < 1.3 * cost.sampling(of, work), "rows share the weights"
    longer = replace(work, length=1024)
    assert 1.8 < cost.sampling(of, longer) / cost.sampling(of, work) < 2.2
    whole = cost.sampling(of, work) + cost.reference(of, work) + cost.update(of, work)
    assert cost.grpo(of, work) == pytest.approx(whole)


def test_a_gpu_alone_sends_nothing_and_of_many_each_sends_gradients_and_weights_once():
    of = model("qwen25vl_3b")
    assert cost.traffic(of, 1) == 0
    assert cost.traffic(of, 8) == pytest.approx(4 * of.parameters * 7 / 8)
