"""How long prompts get, foretold from the sizes of their pictures, by the true processors."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from iad_r1.backbones import published, tiny
from iad_r1.backbones.backbone import Backbone
from iad_r1.backbones.published import build
from iad_r1.boxes import read_marks
from iad_r1.errors import ConfigError
from iad_r1.planner import widths
from iad_r1.planner.widths import picture, widths_of
from iad_r1.rollouts.colocate import sampler as vllm
from iad_r1.rollouts.prompting import Prompter
from iad_r1.settings.base import Pictures
from iad_r1.types import Sample, Solution

CASES = [("qwen2vl_2b", 480_000), ("qwen25vl_3b", None), ("qwen25vl_7b", 480_000),
         ("llava15_7b", None), ("llava16_8b", None), ("llava_ov_05b", None),
         ("llava_ov_7b", 480_000)]  # fmt: skip
STRIPS = [(4100, 20), (20, 4100), (41000, 20), (11190, 55), (5700, 28), (1, 1), (3, 50), (9000, 1)]
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
    shown = Pictures(max_pixels=limit, max_size=None)
    prompter = Prompter(opened(name), "iad_r1_test", pictures=shown)
    small = [(stream.randint(256, 600), stream.randint(256, 600)) for _ in range(4)]
    for shots, size in ((0, stream.choice(SHAPES)), (4, (1024, 400)), (0, stream.choice(STRIPS))):
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
        for size in (*SHAPES, *STRIPS, *shapes):
            planned = picture(model, *size, limit).tokens + marks
            assert planned == backbone.picture_tokens(*size), (size, limit)


sides = st.integers(1, 20_000) | st.integers(1, 60)


@given(sides, sides, st.sampled_from([None, 9216, 150_000, 480_000]))
@settings(max_examples=200)
def test_a_picture_of_any_aspect_is_given_a_size_that_qwens_processor_keeps(
    opened, width, height, limit
):
    backbone = opened("qwen25vl_3b")
    backbone.limit_pixels(limit)
    size = backbone._fitting(width, height)
    assert backbone._fitting(*size) == size and max(size) <= 200 * min(size)
    assert {side % 28 for side in size} == {0} and size[0] * size[1] <= (limit or 16384 * 28 * 28)
    if 200 * min(width, height) >= max(width, height) >= 56 <= min(width, height) and limit is None:
        high, wide = smart_resize(height, width, 28, 3136, 16384 * 28 * 28)
        assert size == (wide, high)  # nothing else is changed


def test_a_strip_is_stretched_so_that_places_stay_where_they_are(opened):
    backbone = opened("qwen25vl_3b")
    backbone.limit_pixels(None)
    strip = Image.new("RGB", (4100, 20))
    strip.paste((255, 0, 0), (3000, 0, 4100, 10))  # from 73 % of the width on, the upper half
    seen = backbone.fit(strip)
    assert seen.size == (4088, 28)
    assert seen.getpixel((3100, 5)) == (255, 0, 0) and seen.getpixel((2900, 5)) == (0, 0, 0)
    assert seen.getpixel((3100, 22)) == (0, 0, 0)


def test_what_llava_15_is_not_shown_is_told(opened):
    """Its processor cuts the middle square out."""
    llava = opened("llava15_7b")
    strip = Image.linear_gradient("L").resize((1200, 20)).convert("RGB")
    assert llava.fit(strip).size == (160, 20)  # 1200 x 20 would be enlarged to 20160 x 336
    assert llava.fit(strip).tobytes() == strip.crop((520, 0, 680, 20)).tobytes()
    made = [
        llava.processor.image_processor(each)["pixel_values"][0]
        for each in (strip, llava.fit(strip))
    ]
    assert (made[0] == made[1]).all()
    assert llava.cut_off(4100, 20) == pytest.approx(1 - 20 / 4100)
    assert llava.cut_off(336, 336) == 0
    assert opened("llava_ov_05b").cut_off(4100, 20) == 0


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
    shown = Pictures(max_pixels=None, max_size=[1000, 800])
    prompter = Prompter(opened("qwen25vl_3b"), "iad_r1_test", pictures=shown)
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


def test_a_token_of_the_tiny_model_is_as_large_as_the_planner_has_it():
    assert widths.TINY_CELL == tiny.CELL


# ------------------------------------------------------------- coordinates of boxes

sides = st.integers(1, 5000)


@settings(max_examples=25, deadline=None)
@given(sides, sides, st.none() | st.integers(60, 2000), st.data())
def test_boxes_of_any_picture_are_turned_back_from_the_size_it_is_shown_in(
    opened, width, height, limit, data
):
    """By the arithmetic of the processor that makes the picture, whatever its limit."""
    backbone = opened("qwen25vl_3b")
    backbone.limit_pixels(limit and limit * 1000)
    frame = backbone.frame((width, height), (width, height))
    assert frame.name == "shown" and frame.size == backbone._fitting(width, height)
    assert all(side % 28 == 0 for side in frame.size)  # whole tokens
    x0, y0 = (data.draw(st.integers(0, side - 1)) for side in frame.size)
    x1 = data.draw(st.integers(x0 + 1, frame.size[0]))
    y1 = data.draw(st.integers(y0 + 1, frame.size[1]))
    (pixels,) = frame.pixels(read_marks(f"[{x0}, {y0}, {x1}, {y1}]")).boxes
    shares = [side / whole for side, whole in zip(pixels, (width, height) * 2, strict=True)]
    again = [share * side for share, side in zip(shares, frame.size * 2, strict=True)]
    assert list(map(round, again)) == [x0, y0, x1, y1]


def test_the_size_that_boxes_are_written_in_is_that_of_the_picture_the_model_is_given(opened):
    for limits in (Pictures(max_pixels=None, max_size=None),
                   Pictures(max_pixels=100_352, max_size=None),
                   Pictures(max_pixels=None, max_size=[300, 200])):  # fmt: skip
        prompter = Prompter(
            opened("qwen25vl_3b"), "iad_r1_test", pictures=limits, location_format="box"
        )
        for size in ((640, 480), (1500, 900), (60, 35), (4100, 20)):
            sample = asked(size, [])
            frame = prompter.frame(sample)
            assert frame is not None and frame.picture == size
            assert frame.size == prompter.picture(sample).size


def test_boxes_of_qwen2_vl_and_internvl_are_thousandths_whatever_is_shown(opened):
    for name in ("qwen2vl_2b", "internvl25_4b"):
        frame = Prompter(opened(name), "iad_r1_test", location_format="box").frame(
            asked((640, 480), [])
        )
        assert frame is not None and (frame.name, frame.size) == ("thousandths", (1000, 1000))
        assert frame.pixels(read_marks("[500, 500, 1000, 1000]")).box == (320, 240, 640, 480)


@pytest.mark.parametrize("name", ["llava15_7b", "llava16_8b", "llava_ov_7b"])
def test_boxes_of_a_family_that_does_not_say_their_coordinates_are_refused(opened, name):
    prompter = Prompter(opened(name), "iad_r1_test", location_format="box")
    with pytest.raises(ConfigError, match="is not documented"):
        prompter.frame(asked((640, 480), []))
    assert Prompter(opened(name), "iad_r1_test").frame(asked((640, 480), [])) is None
