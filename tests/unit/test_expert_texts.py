"""Texts from facts: the grammar says what facts say, and filters refuse what is not so."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as given_settings
from hypothesis import strategies as st

from iad_r1.command import compose
from iad_r1.errors import ConfigError
from iad_r1.expert import filters, grammar
from iad_r1.expert.facts import GRIDS, Defect, Facts
from iad_r1.expert.filters import (
    Alike,
    Rules,
    Variety,
    elsewhere,
    forbidden,
    foreign,
    rejections,
    target,
)
from iad_r1.expert.teachers import Asked, Draft, rules
from iad_r1.grid import Grid, cells_on, cells_touched, describe
from iad_r1.rewards.vocabulary import vocabulary
from iad_r1.settings.expert import ExpertSettings
from iad_r1.types import Sample, Solution

TYPES = vocabulary("default")
KINDS = {
    "scratch": ("scratch", "surface", "scratch"),
    "cracked": ("damage", "structural", "crack"),
    "missing": ("missing parts", "surface", "missing parts"),
    "dark_round_spot": ("contamination", "surface", "stain"),
    "fiber": ("foreign objects", "surface", "fiber"),
    "bent": ("deformation", "structural", "bend"),
    "hole": ("hole", "structural", "hole"),
    "worn": ("abrasion", "structural", "wear"),
    "eye defect": (None, None, "eye defect"),
}


def settings() -> ExpertSettings:
    found = compose.compose(["stage=expert_ad"]).stage
    assert isinstance(found, ExpertSettings)
    return found


STAGE = settings()
RULES = Rules(tuple(STAGE.forbidden), STAGE.words[0], STAGE.words[1], TYPES)


def facts(kind: str | None = "cracked", **changed: Any) -> Facts:
    """A picture of 90 x 90 pixels; a defect lies at the top left, `at` moves it."""
    left, top, width, height = changed.pop("at", (5, 5, 15, 10))
    picture = Facts("brass nut", (90, 90), "tan", 0.6, 3.0, 55.0, 12.0, 0.0, None)
    if kind is None:
        return replace(picture, **changed)
    mask = np.zeros((90, 90), np.bool_)
    mask[top : top + height, left : left + width] = True
    coarse, group, fine = KINDS[kind]
    lying = cells_on(mask, GRIDS, "centroid_largest")
    found = Defect(
        type=kind, coarse=coarse, group=group, fine=fine,
        cells={str(g): tuple(c) for g, c in zip(GRIDS, lying, strict=True)},
        touched={str(g): tuple(cells_touched(mask, g)) for g in GRIDS},
        pixels=int(mask.sum()), share=float(mask.mean()), box=(left, top, width, height),
        at_border=False, parts=1, elongation=1.5, angle=0.0, fill=0.9, lighter=-12.0, redder=0.0,
        yellower=0.0, redness=0.0, yellowness=0.0, colour="dark gray", colour_around="tan",
        unseen=0.9, unseen_around=0.0,
    )  # fmt: skip
    return replace(picture, defect=replace(found, **changed))


def pictured(id: str) -> Sample:
    return Sample(id, "made", "train", "brass nut", Path(f"{id}.png"), Solution("No"))


def asked(found: Facts, grid: str = "3x3", id: str = "nut/1", coarse: bool = False) -> Asked:
    place = found.defect and describe(found.defect.cells[grid], grid)
    return Asked(pictured(id), pictured("good"), found, grid, place, coarse)


def written(about: Asked, seed: int = 0) -> tuple[Draft, str]:
    draft = rules.draft(about, seed)
    return draft, target(draft, about.place)


def reasons(about: Asked, **changed: str) -> list[str]:
    """Why a text by rule is refused once this was `changed` in it."""
    draft = replace(rules.draft(about, 0), **changed)
    text = target(draft, about.place)
    return [why.reason for why in rejections(about.facts, about.grid, draft, text, RULES)]


# --- what the packaged wordings say --------------------------------------------------------------

numbers = st.floats(-60, 60)


@given(
    kind=st.sampled_from([None, *KINDS]),
    grid=st.sampled_from(["1x1", "2x2", "3x3", "4x4", "5x5"]),
    at=st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(1, 30), st.integers(1, 30)),
    picture=st.fixed_dictionaries(
        {
            "lightness": st.floats(0, 100), "spread": st.floats(0, 50),
            "lighter_than_good": numbers, "colour_share": st.floats(0, 1),
            "colour_change": st.floats(0, 60),
        }
    ),
    defect=st.fixed_dictionaries(
        {
            "parts": st.integers(1, 14), "elongation": st.floats(1, 20), "angle": st.floats(0, 90),
            "fill": st.floats(0, 1),
            "lighter": st.none() | numbers, "redder": st.none() | numbers,
            "yellower": st.none() | numbers, "redness": numbers, "yellowness": numbers,
            "colour_around": st.sampled_from([None, "tan", "red"]),
            "unseen": st.floats(0, 1), "share": st.floats(0.0001, 1), "at_border": st.booleans(),
        }
    ),
    id=st.text("abc", max_size=4),
    coarse=st.booleans(),
)  # fmt: skip
@given_settings(max_examples=60)
def test_whatever_the_facts_are_the_packaged_wordings_pass_every_filter(
    kind, grid, at, picture, defect, id, coarse
):
    found = replace(facts(kind, **({} if kind is None else {"at": at, **defect})), **picture)
    about = asked(found, grid, id, coarse)
    draft, text = written(about)
    assert not list(rejections(about.facts, about.grid, draft, text, RULES))
    assert "{" not in draft.description + text


def test_a_text_depends_on_the_picture_and_the_seed_and_not_on_what_came_before():
    one, other = asked(facts(), id="nut/1"), asked(facts(), id="nut/2")
    first = written(one)
    assert written(other) != first
    assert written(one) == first
    assert written(one, seed=1) != first


def test_what_facts_do_not_say_is_not_said():
    texts = [written(asked(facts(elongation=1.0, lighter=15.0), id=str(i)))[0] for i in range(100)]
    words = {word for draft in texts for word in f"{draft.description} {draft.reasoning}".split()}
    assert "brighter" in words  # than what surrounds it
    assert words.isdisjoint(("darker", "thin", "elongated", "horizontally", "separate", "border"))


def test_a_good_part_matches_in_color_only_where_the_good_one_beside_it_has_that_color():
    def matched(change: float) -> list[str]:
        found = facts(None, colour_change=change)
        whole = " ".join(written(asked(found, id=str(i)))[0].reasoning for i in range(100))
        return re.findall("in form and color|in shape as in color", whole)

    assert matched(3.0)
    assert not matched(30.0)


def test_a_scratch_is_a_linear_one_only_if_it_is_thin_and_no_label_is_changed_else():
    assert written(asked(facts("scratch", elongation=8.0)))[0].type == "linear scratch"
    assert written(asked(facts("scratch", elongation=3.0)))[0].type == "scratch"
    assert written(asked(facts("cracked", elongation=8.0)))[0].type == "crack"
    assert written(asked(facts("cracked"), coarse=True))[0].type == "damage"
    assert written(asked(facts("eye defect"), coarse=True))[0].type == "eye defect"


def test_texts_are_varied():
    variety, alike = Variety(), Alike(STAGE.alike)
    for i in range(150):
        draft, _ = written(asked(facts(), id=str(i)))
        assert alike.find(("brass nut", draft.type), draft.reasoning) is None, draft.reasoning
        alike.add(str(i), ("brass nut", draft.type), draft.reasoning)
        variety.add(draft.reasoning)
    found = variety.found()
    assert found["texts"] == 150
    assert found["sentence_share"] < 0.1
    assert found["distinct_3"] > 0.15


# --- grammars of one's own -----------------------------------------------------------------------


def of(phrases: dict[str, Any], **conditions: Any) -> grammar.Grammar:
    return grammar.read({"conditions": conditions, "phrases": phrases}, "mine.yaml")


def said(found: grammar.Grammar, **values: grammar.Value) -> set[str]:
    return {found.write("all", values, random.Random(i)) for i in range(30)}


def test_a_way_to_say_a_thing_is_open_only_when_its_conditions_hold():
    ways = [{"when": "small, not red", "say": "it is {size}"}, {"when": "red", "say": "it is red"}]
    found = of({"all": ways}, small={"size": [None, 5]}, red={"color": "red"})
    assert said(found, size=3, color="blue") == {"It is 3"}
    assert said(found, size=3, color="red") == {"It is red"}
    with pytest.raises(ConfigError, match="no way to say all"):
        said(found, size=5, color="blue")  # 5 is not below 5
    with pytest.raises(ConfigError, match="no way to say all"):
        said(found, color=None)  # a fact that is not known is like nothing


def test_phrases_hold_phrases_and_sentences_begin_with_a_capital():
    found = of({"all": ["{a}. {a}, and {b}."], "a": ["one"], "b": ["two", "three"]})
    assert said(found) == {"One. One, and two.", "One. One, and three."}


@pytest.mark.parametrize(
    ("phrases", "message"),
    [
        ({"all": [{"when": "huge", "say": "x"}]}, "all has a way to say it when huge, which is no"),
        ({"all": ["{a}"], "a": ["so {b}"], "b": ["{a}"]}, "the phrase a holds itself"),
        ({"all": []}, "mine.yaml: phrases.all"),
    ],
)
def test_a_broken_file_of_wordings_is_refused_by_name(phrases, message):
    with pytest.raises(ConfigError, match=message):
        of(phrases)


def test_a_fact_that_is_asked_for_and_not_known_is_named():
    with pytest.raises(ConfigError, match=r"all asks for \{size\}, which is neither"):
        said(of({"all": ["it is {size}"]}))


# --- filters -------------------------------------------------------------------------------------

SOUND = "I look at all of it, piece by piece, and compare it with a good one, and all of it agrees."


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({}, []),
        ({"type": "scratch"}, ["type", "another type"]),
        ({"type": "fracture"}, []),  # of the same class
        ({"type": ""}, ["schema"]),
        ({"reasoning": "There is a crack.</think><think>So the part is defective."}, ["schema"]),
        ({"reasoning": f"{SOUND} So the part is sound."}, ["verdict"]),
        ({"reasoning": f"{SOUND} I cannot decide."}, ["verdict"]),
        ({"reasoning": f"{SOUND} There is a scratch, so the part is defective."}, ["another type"]),
        ({"reasoning": f"{SOUND} A highlighted crack: it is defective."}, ["forbidden word"]),
        ({"description": "As the annotation says, a crack."}, ["forbidden word"]),
        ({"description": "Unlike in the REFERENCE image, a crack."}, ["forbidden word"]),
        ({"description": "By the ground truth a crack."}, ["forbidden word"]),
        ({"description": "A crack in the bottom right."}, ["another place"]),
        ({"reasoning": f"{SOUND} A crack to the right: it is defective."}, ["another place"]),
        ({"reasoning": f"{SOUND} A crack in the upper left: it is defective."}, []),
        ({"reasoning": "There is a crack, so the part is defective."}, ["length"]),
        ({"reasoning": f"{'very ' * 160}cracked, so the part is defective."}, ["length"]),
    ],
)
def test_a_planted_fault_is_refused_with_its_reason(changed, reason):
    assert reasons(asked(facts("cracked")), **changed) == reason


def test_a_good_part_must_be_called_one():
    assert reasons(asked(facts(None))) == []
    wrong = f"{SOUND} But there is a crack at the top left, so the part is defective."
    assert reasons(asked(facts(None)), reasoning=wrong) == ["verdict"]


def test_place_and_answer_of_the_tags_are_compared_with_the_mask():
    about = asked(facts("cracked"))
    draft = rules.draft(about, 0)
    elsewhere_tagged = target(draft, "bottom right")
    (why,) = rejections(about.facts, about.grid, draft, elsewhere_tagged, RULES)
    assert (why.reason, "'bottom right'" in why.found) == ("place", True)
    (why, *_) = rejections(about.facts, about.grid, draft, target(draft, None), RULES)
    assert (why.reason, why.found) == ("answer", "no of a picture that says yes")


def test_the_name_of_a_product_may_hold_a_word_that_is_forbidden_else():
    product = "left printed label"
    about = asked(replace(facts("cracked", at=(70, 70, 10, 10)), product=product))
    assert reasons(about) == []
    assert reasons(about, description="A label of a crack.") == ["forbidden word"]


def test_the_name_of_a_product_is_no_part_of_other_words():
    about = asked(replace(facts("cracked"), product="a"))
    assert reasons(about, description="As the annotation says, it is bad.") == ["forbidden word"]


@pytest.mark.parametrize(
    ("text", "cells", "grid", "wrong"),
    [
        ("at the top left", {0}, "3x3", []),
        ("at the top left", {1}, "3x3", ["top left"]),
        ("at the top", {0}, "3x3", []),
        ("at the top", {3}, "3x3", ["top"]),  # the row in the middle is no top
        ("in the center", {4}, "3x3", []),
        ("in the center", {0}, "3x3", ["center"]),
        ("top center", {1}, "3x3", []),  # the name of a cell, not of the center
        ("left and bottom", {0}, "3x3", ["bottom"]),
        ("at row 2 of 5, column 4 of 5", {8}, "5x5", []),
        ("at row 2 of 5, column 4 of 5", {7}, "5x5", ["row 2 of 5, column 4 of 5"]),
        ("on the right", {8}, "5x5", []),
        ("on the left", {8}, "5x5", ["left"]),
        ("upper and left", {3}, "2x2", ["upper", "left"]),
        ("leftover stoppers", {8}, "3x3", []),  # whole words only
        ("at the top left", {0}, "1x1", []),  # one cell has no sides
    ],
)
def test_words_for_other_places_than_the_defects_are_found(text, cells, grid, wrong):
    assert elsewhere(text, cells, Grid.parse(grid)) == wrong


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", None),
        ("No defect.", None),  # too short to tell
        ("Looks fine.", None),
        ("I look at it from edge to edge. No area deviates. The part passes.", None),
        ("Die Oberfläche zeigt einen Kratzer, also ist das Teil defekt.", "de"),
        ("I scan it. La surface montre une rayure, la pièce est donc défectueuse. It fails.", "fr"),
        ("I scan the nut. 表面有划痕。 So it is defective.", "letters of another script"),
    ],
)
def test_what_is_not_english_is_found(text, found):
    assert foreign(text) is None if found is None else (foreign(text) or "").startswith(found)


def test_names_of_products_and_types_may_be_of_any_language():
    about = asked(replace(facts("eye defect", type="划痕", fine="划痕"), product="螺母"))
    assert "language" not in reasons(about)


def test_forbidden_words_are_whole_words_or_beginnings():
    assert forbidden("An Annotation, masked.", ["annotat*", "mask"]) == ["annotation"]
    assert forbidden("anything", []) == []


def test_texts_alike_are_found_only_among_those_about_the_same():
    text = " ".join(f"word{i}" for i in range(40))
    one_word_less = text.rpartition(" ")[0]
    alike = Alike(0.9)
    alike.add("a", ("nut", "crack"), text)
    found = alike.find(("nut", "crack"), one_word_less)
    assert found is not None
    assert (found.reason, found.found) == ("near-duplicate text", "0.97 like a")  # 35 of 36
    assert alike.find(("nut", "dent"), one_word_less) is None
    half = " ".join([*text.split()[:20], *(f"other{i}" for i in range(20))])
    assert alike.find(("nut", "crack"), half) is None
    never = Alike(None)
    never.add("a", ("nut", "crack"), text)
    assert never.find(("nut", "crack"), text) is None


def test_variety_counts_n_grams_and_the_sentence_that_most_texts_hold():
    variety = Variety()
    variety.add("One two. It is so.")
    variety.add("One three. It is so. It is so.")
    found = variety.found()
    assert (found["texts"], found["words"]) == (2, 5 + 8)
    assert found["distinct_1"] == 6 / 13  # one two it is so three
    # of the first: one two, two it, it is, is so; of the second: one three, three it, so it
    assert found["distinct_2"] == 7 / (4 + 7)
    assert (found["sentence"], found["sentence_share"]) == ("It is so.", 1.0)


def test_the_filters_know_no_shingle_of_an_empty_text():
    assert len(filters.shingled("")) == 1
