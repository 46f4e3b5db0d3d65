"""PA-SFT targets: in the paper's two patterns, true of their sample, and honest about gaps."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from iad_r1 import schema
from iad_r1.data import images, mix
from iad_r1.data.drawn.defects import DEFECT_TYPES
from iad_r1.data.readers import synthetic
from iad_r1.data.targets import UNNAMED, Target, chain_of_thought, direct_answer
from iad_r1.errors import DataError
from iad_r1.grid import Grid, cells_from_mask, parse_cells, words
from iad_r1.types import Question, Sample, Solution

GRID = Grid(3, 3)
PLACES = [words(cell, GRID) for cell in range(9)]
PICTURE = Image.new("RGB", (2, 2))
PATTERN = re.compile(
    r"<think>[^<>]+</think>(<location>[^<>]+</location><type>[^<>]+</type><answer>Yes</answer>"
    r"|<answer>No</answer>)"
)

ids = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12)
seeds = st.integers(0, 2**16)
kinds = st.sampled_from([*DEFECT_TYPES, "pitting", "dark round spot", None])
defects = st.builds(
    lambda place, kind: Solution("Yes", place, kind), st.sampled_from([*PLACES, None]), kinds
)
solutions = st.one_of(st.just(Solution("No")), defects)


def sample(solution: Solution, name: str = "a") -> Sample:
    return Sample(name, "made up", "train", "bolt", PICTURE, solution)


def think(target: Target) -> str:
    text = schema.parse(target.text).think
    assert text is not None
    return text


@given(ids, seeds, solutions)
def test_every_target_has_one_of_the_two_patterns_with_touching_tags(name, seed, solution):
    target = chain_of_thought(sample(solution, name), seed)
    assert PATTERN.fullmatch(target.text)
    parsed = schema.parse(target.text)
    assert parsed.status is schema.Status.OK
    assert parsed.verdict == solution.answer.lower()


@given(ids, seeds, defects)
def test_the_verdict_is_the_first_word_in_which_good_and_defective_differ(name, seed, defect):
    said = []
    for solution in (Solution("No"), defect):
        target = chain_of_thought(sample(solution, name), seed)
        assert target.verdict is not None
        begin, end = target.verdict
        said.append((target.text[:begin], target.text[begin:end]))
    assert said[0][0] == said[1][0] and said[0][1] != said[1][1]
    assert all(word.isalpha() for _, word in said)


@given(ids, seeds, solutions)
def test_a_target_is_the_same_for_a_sample_and_seed(name, seed, solution):
    made = sample(solution, name)
    assert chain_of_thought(made, seed) == chain_of_thought(made, seed)


@given(ids, seeds, defects)
def test_what_is_annotated_stands_in_the_tags_and_is_trained(name, seed, solution):
    target = chain_of_thought(sample(solution, name), seed)
    parsed = schema.parse(target.text)
    gaps = [target.text[start:end] for start, end in target.untrained]
    assert len(gaps) == (solution.location is None) + (solution.type is None)
    if solution.location is not None:
        assert parsed.location == solution.location
        assert solution.location in think(target)
    if solution.type is not None:
        assert parsed.type == solution.type
        assert solution.type in think(target)


@given(ids, seeds, kinds)
def test_an_unknown_place_is_a_cell_of_the_grid_that_no_loss_sees(name, seed, kind):
    target = chain_of_thought(sample(Solution("Yes", None, kind), name), seed)
    (start, end), *_ = target.untrained
    assert target.text[:start].endswith("<location>")
    assert target.text[end:].startswith("</location>")
    assert target.text[start:end] in PLACES
    assert parse_cells(think(target), GRID) is None, "the reasoning names a place nobody annotated"


@given(ids, seeds, st.sampled_from(PLACES))
def test_an_unknown_type_is_called_a_defect_and_no_loss_sees_it(name, seed, place):
    target = chain_of_thought(sample(Solution("Yes", place), name), seed)
    ((start, end),) = target.untrained
    assert target.text[start:end] == UNNAMED
    assert target.text[:start].endswith("<type>")
    assert not any(kind in think(target) for kind in DEFECT_TYPES)


def test_the_invented_places_of_many_samples_cover_the_grid():
    invented = {
        schema.parse(chain_of_thought(sample(Solution("Yes"), str(i)), 0).text).location
        for i in range(200)
    }
    assert invented == set(PLACES)


@pytest.mark.parametrize("text", ["1x1", "2x2", "5x5"])
def test_an_invented_place_is_a_word_of_the_grid_of_the_run(text):
    grid = Grid.parse(text)
    names = {words(cell, grid) for cell in range(grid.cells)}
    for i in range(20):
        target = chain_of_thought(sample(Solution("Yes", None, "dent"), str(i)), 0, grid)
        assert schema.parse(target.text).location in names


@pytest.mark.parametrize("place", [*PLACES, "row 2 of 5, column 4 of 5", "top left, bottom right"])
def test_the_reasoning_names_just_the_annotated_cells(place):
    grid = Grid(5, 5) if place.startswith("row") else GRID
    for i in range(12):
        target = chain_of_thought(sample(Solution("Yes", place, "stain"), str(i)), 0)
        assert parse_cells(think(target), grid) == parse_cells(place, grid)


def test_the_only_cell_of_a_1x1_grid_is_no_place_in_the_reasoning():
    target = chain_of_thought(sample(Solution("Yes", "whole image", "stain")), 0)
    assert schema.parse(target.text).location == "whole image"
    assert "whole image" not in think(target)
    assert target.untrained == ()


@given(ids, seeds)
def test_a_normal_sample_is_never_said_to_show_a_defect(name, seed):
    text = think(chain_of_thought(sample(Solution("No"), name), seed))
    assert parse_cells(text, GRID) is None
    assert not any(word in text for word in ("defective", "stands out", *DEFECT_TYPES))


@given(seeds, solutions)
def test_the_reasoning_is_short(seed, solution):
    n = len(think(chain_of_thought(sample(solution), seed)).split())
    assert 12 <= n <= 24


def test_samples_differ_in_wording_and_so_do_seeds():
    texts = {chain_of_thought(sample(Solution("No"), str(i)), 0).text for i in range(40)}
    assert len(texts) == 3
    by_seed = {chain_of_thought(sample(Solution("No")), seed).text for seed in range(40)}
    assert by_seed == texts


@given(seeds, solutions)
def test_the_file_name_never_reaches_a_target(seed, solution):
    name = "bolt_d_0417"
    assert name not in chain_of_thought(sample(solution, name), seed).text
    assert name not in direct_answer(sample(solution, name), seed).text


def test_a_multiple_choice_has_no_chain_of_thought_by_rule():
    question = Question("What is it?", {"A": "a bolt", "B": "a nut"})
    made = Sample("a", "made up", "train", "bolt", PICTURE, Solution("B"), question=question)
    with pytest.raises(DataError, match="a is a multiple choice"):
        chain_of_thought(made, 0)
    assert direct_answer(made, 0).text == "<answer>B</answer>"


@pytest.mark.parametrize("answer", ["Yes", "No"])
def test_a_direct_answer_is_the_verdict_alone(answer):
    target = direct_answer(sample(Solution(answer)), 0)
    assert target == Target(f"<answer>{answer}</answer>", (), (8, 8 + len(answer)))


def test_targets_of_drawn_pictures_agree_with_their_masks_and_types():
    config = synthetic.Settings(
        name="synthetic",
        image_size=48,
        sizes=synthetic.Sizes(sft=60, rl=1, validation=1, test=1),
        rl_new_share=0.5,
    )
    for drawn in mix.load(config, GRID, "centroid_largest", 0).sft:
        target = chain_of_thought(drawn, 0)
        parsed, mask = schema.parse(target.text), images.open_mask(drawn)
        assert target.untrained == ()
        assert (parsed.verdict == "yes") == (mask is not None)
        if mask is not None:
            cells = cells_from_mask(mask, GRID)
            assert parse_cells(parsed.location or "", GRID) == cells
            assert parse_cells(think(target), GRID) == cells
            assert parsed.type == drawn.solution.type
