"""How long prompts get, foretold from the sizes of their pictures, by the true processors."""

from __future__ import annotations

import random
from typing import Any

import pytest
from PIL import Image

from iad_r1.backbones import published
from iad_r1.backbones.backbone import Backbone
from iad_r1.backbones.published import build
from iad_r1.planner.widths import picture, widths_of
from iad_r1.rollouts.colocate import sampler as vllm
from iad_r1.rollouts.prompting import Prompter
from iad_r1.settings.base import Pictures
from iad_r1.types import Sample, Solution

CASES = [("qwen2vl_2b", 480_000), ("qwen25vl_3b", None), ("qwen25vl_7b", 480_000),
         ("llava15_7b", None), ("llava16_8b", None), ("llava_ov_05b", None),
         ("llava_ov_7b", 480_000)]  # fmt: skip
SHAPES = [(256, 256), (700, 700), (1024, 1024), (1600, 1600), (256, 1600), (1600, 300), (900, 1100)]


@pytest.fixture(scope="module")
def opened() -> Any:
    """`opened(name)`: the true processor and configuration of a backbone, and no weights."""
    known: dict[str, Backbone] = {}

    def get(name: str) -> Backbone:
        if name not in known:
            model = build.build_random(name, device="meta")
            known[name] = Backbone(model, build.build_processor(name))
        return known[name]

    return get


def asked(query: tuple[int, int], references: list[tuple[int, int]]) -> Sample:
    normal = tuple(
        Sample(f"r{i}", "d", "train", "p", Image.new("RGB", size), Solution("No"))
        for i, size in enumerate(references)
    )
    picture = Image.new("RGB", query)
    return Sample("query", "d", "test", "p", picture, Solution("No"), references=normal)


@pytest.mark.parametrize(("name", "limit"), CASES)
def test_the_length_of_a_prompt_is_what_the_processor_makes_of_it(opened, name, limit):
    """Of pictures, not of their sizes alone, with 0 and 4 references."""
    stream = random.Random(name)
    settings = Pictures(max_pixels=limit, max_size=None)
    prompter = Prompter(opened(name), "iad_r1_test", pictures=settings)
    small = [(stream.randint(256, 600), stream.randint(256, 600)) for _ in range(4)]
    for shots, size in ((0, stream.choice(SHAPES)), (4, (1024, 400))):
        sample = asked(size, small)
        made = prompter.encode(sample, shots).inputs["input_ids"].shape[-1]
        assert prompter.length(sample, shots) == made


@pytest.mark.parametrize("name", published.names())
def test_the_plan_counts_pictures_as_the_processors_do(opened, name):
    """Of every shape between 256 and 1600 pixels a side."""
    backbone, model = opened(name), widths_of(published.read(name)["config"])
    marks = 2 if model.model_type == "internvl" else 0  # around a picture; the plan's text has them
    stream = random.Random(name)
    shapes = [(stream.randint(256, 1600), stream.randint(256, 1600)) for _ in range(20)]
    for limit in (None, 480_000, 150_000):
        backbone.limit_pixels(limit)
        for size in (*SHAPES, *shapes):
            planned = picture(model, *size, limit).tokens + marks
            assert planned == backbone.picture_tokens(*size), (size, limit)


def test_onevision_takes_as_many_tokens_as_the_old_limits_refused(opened):
    backbone = opened("llava_ov_05b")
    backbone.limit_pixels(None)
    assert [backbone.picture_tokens(side, side) for side in (700, 1024)] == [3699, 7371]


def test_pictures_that_must_fit_into_a_size_keep_their_proportions_and_never_grow():
    fitted = Pictures(max_pixels=None, max_size=[1000, 800])
    assert fitted.within((2000, 400)) == (1000, 200)
    assert fitted.within((1600, 1600)) == (800, 800)
    assert fitted.within((999, 800)) == (999, 800)
    assert fitted.within((60, 40)) == (60, 40)


def test_a_size_that_pictures_must_fit_into_is_counted_and_shown(opened):
    settings = Pictures(max_pixels=None, max_size=[1000, 800])
    prompter = Prompter(opened("qwen25vl_3b"), "iad_r1_test", pictures=settings)
    sample = asked((1600, 1600), [])
    assert prompter.picture(sample).size == (812, 812)  # 800 x 800 in whole tokens
    assert prompter.length(sample) == prompter.encode(sample).inputs["input_ids"].shape[-1]


# --- what vLLM is told ---------------------------------------------------------------------------


def described(backbone: Backbone, folder: Any, length: int | None) -> dict[str, Any]:
    from transformers import AutoConfig, AutoProcessor

    vllm.write_description(backbone, folder, length)
    pictures = AutoProcessor.from_pretrained(folder).image_processor
    return {"pictures": pictures, "config": AutoConfig.from_pretrained(folder)}


def test_vllm_takes_a_qwen_picture_of_any_stage_and_reserves_no_more_than_a_prompt_holds(
    opened, tmp_path
):
    backbone = opened("qwen25vl_3b")
    backbone.limit_pixels(480_000)  # the stage that opens it
    longest = described(backbone, tmp_path / "a", None)["pictures"].size["longest_edge"]
    assert longest == 16384 * 28 * 28  # evaluation comes later, and shows larger ones
    short = described(backbone, tmp_path / "b", 2000)["pictures"].size["longest_edge"]
    assert short == 2000 * 28 * 28
    assert backbone.processor.image_processor.size["longest_edge"] == 480_000


def test_vllm_cuts_tiles_within_the_limit_of_the_stage_and_is_started_again_for_another(
    opened, tmp_path
):
    backbone = opened("llava_ov_05b")
    sampler: Any = object.__new__(vllm.VllmSampler)
    settings: Any = None  # the same
    sampler.backbone, sampler.settings, sampler.tiles = backbone, settings, None
    backbone.limit_pixels(None)
    assert sampler.serves(backbone, settings)
    backbone.limit_pixels(480_000)
    assert not sampler.serves(backbone, settings)
    found = described(backbone, tmp_path / "a", 4096)
    assert found["pictures"].image_grid_pinpoints == found["config"].image_grid_pinpoints
    assert max(h * w for h, w in found["config"].image_grid_pinpoints) <= 480_000
    qwen = opened("qwen25vl_3b")
    sampler.backbone = qwen
    qwen.limit_pixels(480_000)
    assert sampler.serves(qwen, settings)  # it is handed pictures at their final size
