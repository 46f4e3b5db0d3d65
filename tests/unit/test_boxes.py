"""Places as boxes: read, turned into another frame and back, written, and what they are worth."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from iad_r1 import prompts, rewards
from iad_r1.boxes import Frame, Marks, Place, around, iou, longest_place, read_marks
from iad_r1.data.marked import marked, outline, pixel_f1
from iad_r1.data.targets import chain_of_thought
from iad_r1.errors import ConfigError, DataError
from iad_r1.grid import Grid
from iad_r1.judge.grade import Grader, grade
from iad_r1.judge.places import box_scores
from iad_r1.judge.predictions import append, read_predictions
from iad_r1.types import Completion, Sample, Solution, StopReason

SAID = "<think>Look.</think><location>{}</location><type>scratch</type><answer>Yes</answer>"
SHOWN = Frame("shown", (100, 50), (200, 100))  # a picture shown at half its size
DEFECTIVE = Sample(
    "bolt/1", "made", "test", "bolt", Image.new("RGB", (200, 100)),
    Solution("Yes", "top left", "scratch"),
)  # fmt: skip


def mask_of(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    """[100, 200] True in this box."""
    found = np.zeros((100, 200), bool)
    found[top:bottom, left:right] = True
    return found


# ------------------------------------------------------------------------------- reading


@pytest.mark.parametrize(
    "text",
    [
        '{"bbox_2d": [1, 2, 30, 4]}',
        '```json\n[{"bbox_2d": [1, 2, 30, 4], "label": "scratch"}]\n```',  # Qwen2.5-VL
        "(1,2),(30,4)",  # Qwen2-VL, without its control tokens
        "<box>[[1, 2, 30, 4]]</box>",  # InternVL
        "[1, 2, 30, 4]",  # AnomalyR1
    ],
)
def test_a_box_is_read_as_each_family_writes_it(text):
    assert read_marks(text) == Marks(boxes=((1, 2, 30, 4),))


def test_points_and_outlines_are_read_by_their_names():
    text = '{"point_2d": [7, 8]}, {"polygon_2d": [0, 0, 4.5, 0, 4, 3]}'
    assert read_marks(text) == Marks(points=((7, 8),), outlines=((0, 0, Fraction(9, 2), 0, 4, 3),))


@pytest.mark.parametrize(
    "text",
    [
        "top left",
        "[1, 2, 3]",
        "[4, 2, 4, 9]",  # no width
        "[9, 2, 4, 9]",  # from right to left
        "[1, 2, 30, four]",
        "[1, 2, 30, ]",
        '{"bbox_2d": [1, 2]}',
        '{"polygon_2d": [1, 2, 3, 4, 5]}',
        '{"point_2d": [1, 2, 3]}',
        "[1e9, 2, 3, 4]",
        "[99999999, 2, 100000000, 4]",
    ],
)
def test_what_is_no_box_is_not_made_one(text):
    assert read_marks(text) == Marks()


@given(st.text('[](){}",.:0123456789-+ \n_2bdxpoint', max_size=80))
def test_no_text_breaks_the_reader(text):
    found = SHOWN.pixels(read_marks(text))
    assert found.box is None or found.box[0] <= found.box[2]


def test_several_boxes_are_one_around_them_all_which_is_pointed_at_in_its_middle():
    found = read_marks("[0, 0, 10, 10] and [30, 20, 40, 60]")
    assert found.box == (0, 0, 40, 60) and found.point == (20, 30)
    assert read_marks('[0, 0, 10, 10] {"point_2d": [3, 4]}').point == (3, 4)
    assert read_marks('{"polygon_2d": [5, 1, 9, 4, 5, 7]}').box == (5, 1, 9, 7)


# ------------------------------------------------------------------------------- frames


sides = st.integers(1, 6000)


@st.composite
def frames(draw) -> Frame:
    size = (1000, 1000) if draw(st.booleans()) else (draw(sides), draw(sides))
    return Frame(
        "thousandths" if size == (1000, 1000) else "shown", size, (draw(sides), draw(sides))
    )


@st.composite
def boxes_within(draw, size: tuple[int, int]) -> tuple[int, int, int, int]:
    left, top = (draw(st.integers(0, side - 1)) for side in size)
    return left, top, draw(st.integers(left + 1, size[0])), draw(st.integers(top + 1, size[1]))


@settings(max_examples=40)
@given(st.data())
def test_what_a_model_writes_is_turned_back_to_pixels_without_any_loss(data):
    frame = data.draw(frames())
    box = data.draw(boxes_within(frame.size))
    pixels = frame.pixels(Marks(boxes=(box,))).boxes[0]
    scale = [Fraction(to, of) for to, of in zip(frame.picture, frame.size, strict=True)]
    assert pixels == tuple(side * scale[i % 2] for i, side in enumerate(box))
    back = Frame(frame.name, frame.picture, frame.size)  # the same two sizes, the other way round
    assert back.pixels(Marks(boxes=(pixels,))).boxes[0] == box


@settings(max_examples=40)
@given(st.data())
def test_a_box_keeps_all_that_it_holds_and_grows_by_less_than_a_unit(data):
    frame = data.draw(frames())
    box = data.draw(boxes_within(frame.picture))
    left, top, right, bottom = frame.box(box)
    found = frame.pixels(Marks(boxes=((left, top, right, bottom),)))
    (back,) = found.boxes
    assert back[0] <= box[0] and back[1] <= box[1] and back[2] >= box[2] and back[3] >= box[3]
    for i, (one, other) in enumerate(zip(back, box, strict=True)):
        assert abs(one - other) < Fraction(frame.picture[i % 2], frame.size[i % 2])
        if frame.size[i % 2] % frame.picture[i % 2] == 0:  # every pixel has a number of its own
            assert one == other


def test_what_lies_beyond_the_picture_is_cut_off():
    found = SHOWN.pixels(read_marks("[-5, 10, 500, 20], [150, 10, 160, 20]"))
    assert found.boxes == ((0, 20, 200, 40),)


# ------------------------------------------------------------------------------- worth


@pytest.mark.parametrize(
    ("box", "worth"),
    [
        ((0, 0, 10, 10), 1.0),
        ((5, 0, 15, 10), 50 / 150),
        ((0, 0, 5, 5), 25 / 100),
        ((10, 0, 20, 10), 0.0),  # they touch
        ((40, 40, 50, 50), 0.0),
    ],
)
def test_the_overlap_of_two_boxes(box, worth):
    assert iou((0, 0, 10, 10), box) == iou(box, (0, 0, 10, 10)) == pytest.approx(worth)


@settings(max_examples=40)
@given(st.data())
def test_an_overlap_is_the_same_in_every_frame(data):
    frame = data.draw(frames())
    one, other = data.draw(boxes_within(frame.size)), data.draw(boxes_within(frame.size))
    pixels = frame.pixels(Marks(boxes=(one, other))).boxes
    assert iou(one, other) == pytest.approx(iou(*pixels), abs=1e-12)


GOLD = '<location>{"bbox_2d": [0, 0, 10, 10]}</location><type>scratch</type><answer>Yes</answer>'


@pytest.mark.parametrize(
    ("said", "gold", "part"),
    [
        (SAID.format('{"bbox_2d": [0, 0, 10, 10]}'), GOLD, 1.0),
        (SAID.format("[5, 0, 15, 10]"), GOLD, 1 / 3),
        (SAID.format("top left"), GOLD, 0.0),
        (SAID.format("[0, 0, 10, 10], [90, 90, 100, 100]"), GOLD, 0.01),  # not the better of them
        ("<think>[0, 0, 10, 10]</think><answer>Yes</answer>", GOLD, 0.0),  # in the tag alone
        (SAID.format("[0, 0, 10, 10]").replace("Yes", "No"), GOLD, 0.0),  # gated by the answer
        ("<think>Fine.</think><answer>No</answer>", "<answer>No</answer>", 0.0),
    ],
)
def test_the_reward_is_the_overlap_where_the_answer_is_right(said, gold, part):
    found = rewards.load("sc_grpo_box", location_format="box").score(said, gold)
    assert found.parts["iou"] == pytest.approx(part)


def test_the_reward_does_not_apply_where_there_is_no_box_and_refuses_words():
    scores = rewards.load("sc_grpo_box")
    assert "iou" not in scores.applicable("<type>scratch</type><answer>Yes</answer>")
    assert "iou" not in scores.applicable("<answer>No</answer>")
    with pytest.raises(DataError, match="'top left' is no box"):
        scores.score(
            SAID.format("[0, 0, 1, 1]"), GOLD.replace('{"bbox_2d": [0, 0, 10, 10]}', "top left")
        )


@pytest.mark.parametrize(
    ("name", "format", "message"),
    [
        ("sc_grpo", "box", "components.location reads places as words.*Use rewards=sc_grpo_box"),
        ("sc_grpo_released", "box+mask", "components.accuracy reads places as words"),
        ("sc_grpo_box", "words", "reads places as box or box.mask.*Use location_format=box"),
    ],
)
def test_rewards_that_cannot_read_the_places_are_refused(name, format, message):
    with pytest.raises(ConfigError, match=message):
        rewards.load(name, location_format=format)
    rewards.load(name, location_format="words" if format != "words" else "box+mask")


# ------------------------------------------------------------------------------- masks


def test_the_outline_of_a_rectangle_is_its_corners():
    assert sorted(zip(*[iter(outline(mask_of(3, 5, 9, 6)) or ())] * 2, strict=True)) == [
        (3, 5), (3, 6), (9, 5), (9, 6)]  # fmt: skip


@settings(max_examples=40)
@given(arrays(bool, (9, 13)))
def test_an_outline_has_at_most_eight_corners_and_the_box_of_all_that_is_marked(mask):
    corners, (rows, cols) = outline(mask), np.nonzero(mask)
    if corners is None:
        assert not mask.any()
        return
    assert len(corners) <= 16
    assert around(corners) == (cols.min(), rows.min(), cols.max() + 1, rows.max() + 1)


def test_what_an_answer_marks_is_compared_with_the_mask():
    truth = mask_of(20, 10, 40, 30)  # 400 pixels
    found = marked(SAID.format('{"bbox_2d": [10, 5, 20, 10]}'), SHOWN, truth)
    assert found.boxes == ((20.0, 10.0, 40.0, 20.0),) and found.gold_box == (20, 10, 40, 30)
    assert (found.iou, found.pointed) == (0.5, True)
    assert found.pixel_f1 == pytest.approx(2 * 200 / (200 + 400))
    assert (found.frame, found.size, found.picture) == ("shown", (100, 50), (200, 100))


def test_an_outline_is_drawn_where_there_is_one_and_boxes_together_where_not():
    truth = mask_of(20, 10, 40, 30)
    corners = '{"bbox_2d": [0, 0, 100, 50], "polygon_2d": [10, 5, 20, 5, 20, 15, 10, 15]}'
    assert marked(corners, SHOWN, truth).pixel_f1 == 1.0
    two = marked("[10, 5, 20, 10], [10, 10, 20, 15]", SHOWN, truth)
    assert (two.pixel_f1, two.iou) == (1.0, 1.0)


def test_a_point_is_a_hit_but_covers_nothing():
    found = marked('{"point_2d": [15, 8]}', SHOWN, mask_of(20, 10, 40, 30))
    assert (found.pointed, found.iou, found.pixel_f1) == (True, 0.0, 0.0)
    assert marked('{"point_2d": [99, 49]}', SHOWN, mask_of(20, 10, 40, 30)).pointed is False


def test_only_the_location_of_a_tagged_answer_is_read():
    aside = "<think>[10, 5, 20, 15]</think><answer>Yes</answer>"
    assert marked(aside, SHOWN, None).boxes == ()
    assert marked("Yes: [10, 5, 20, 15]", SHOWN, None).boxes == ((20.0, 10.0, 40.0, 30.0),)


def test_the_f1_of_pixels_counts_what_both_mark_twice():
    one, other = mask_of(0, 0, 10, 10), mask_of(5, 0, 10, 10)
    assert pixel_f1(one, other) == 2 * 50 / 150
    assert pixel_f1(one & ~one, other & ~other) == 0.0


# ------------------------------------------------------------------------------- judging


def judged(text: str, mask: np.ndarray | None, answer: str = "Yes"):
    drawn = Completion(SAID.format(text).replace("Yes", answer), (1,), (0.0,), StopReason.STOP)
    grader = Grader(Grid(3, 3), rewards.vocabulary("default"))
    found = marked(drawn.text, SHOWN, mask)
    return grade(grader, DEFECTIVE, drawn, split="s", mask=mask, marked=found)


def test_a_box_is_placed_in_the_cell_of_its_middle():
    found = judged("[10, 5, 20, 15]", mask_of(20, 10, 40, 30))
    assert (found.location, found.location_correct) == ("top left", True)
    assert judged("[80, 40, 90, 49]", None).location == "bottom right"
    assert judged("somewhere", None).location is None


def test_a_prediction_keeps_its_boxes_on_disk(tmp_path):
    rows = [judged("[10, 5, 20, 15]", mask_of(20, 10, 40, 30)), replace(judged("", None), id="2")]
    append(tmp_path / "p" / "x.jsonl", rows)
    assert list(read_predictions(tmp_path / "p" / "x.jsonl").values()) == rows


def test_scores_of_boxes_count_a_missed_defect_as_nothing():
    truth = mask_of(20, 10, 40, 30)
    rows = [
        judged("[10, 5, 20, 15]", truth),  # all of it
        judged("[10, 5, 20, 10]", truth),  # half of it
        judged("nowhere", truth),
        judged("[10, 5, 20, 15]", truth, answer="No"),  # missed
        judged("[10, 5, 20, 15]", None),  # no mask
    ]
    found = box_scores(rows)
    assert found is not None and (found["n"], found["n_detected"], found["unread"]) == (4, 3, 1)
    assert (found["iou"], found["iou_detected"]) == (37.5, 50.0)
    assert (found["hit_30"], found["hit_50"], found["hit_50_detected"]) == (
        50,
        50,
        pytest.approx(200 / 3),
    )
    assert (found["pointed"], found["pointed_detected"]) == (50, pytest.approx(200 / 3))
    assert found["pixel_f1"] == pytest.approx(100 * (1 + 2 / 3) / 4)
    assert found["frames"] == ["shown"]
    # 400 of 20,000 pixels; the middle half of both sides, 50 to 150, does not reach the defect
    assert found["chance"] == {"whole": pytest.approx(2.0), "middle": 0.0}
    assert box_scores(rows[4:]) is None


# ------------------------------------------------------------------------------- writing


@pytest.mark.parametrize(
    ("format", "text"),
    [
        ("box", '{"bbox_2d": [10, 5, 21, 16]}'),
        ("box+mask", '{"bbox_2d": [10, 5, 21, 16], "polygon_2d": [10, 5, 20, 5, 20, 16, 10, 16]}'),
    ],
)
def test_a_place_is_written_in_the_models_frame(format, text):
    place = Place(format, SHOWN, (20, 10, 41, 10, 41, 31, 20, 31))
    assert place.text == text
    assert SHOWN.pixels(read_marks(text)).box == (20, 10, 42, 32)
    target = chain_of_thought(DEFECTIVE, 0, place=place)
    assert f"<location>{text}</location>" in target.text and target.untrained == ()
    assert "top left" in target.text.partition("<location>")[0]


def test_a_place_that_is_not_annotated_is_filled_in_and_never_trained():
    unknown = replace(DEFECTIVE, solution=Solution("Yes", None, "scratch"))
    place = Place("box", SHOWN, None)
    target = chain_of_thought(unknown, 0, place=place)
    ((start, end),) = target.untrained
    box = json.loads(target.text[start:end])["bbox_2d"]
    assert 0 <= box[0] < box[2] <= 100 and 0 <= box[1] < box[3] <= 50


def test_an_answer_that_its_data_set_has_written_in_words_is_refused():
    written = replace(DEFECTIVE, target=SAID.format("top left"))
    with pytest.raises(DataError, match="bolt/1: its data set has written its answer, with the pl"):
        chain_of_thought(written, 0, place=Place("box", SHOWN, None))


def test_no_place_is_longer_than_the_longest():
    whole = (0, 0, 4000, 0, 8000, 3000, 8000, 6000, 4000, 6000, 3000, 6000, 0, 5000, 0, 3000)
    place = Place("box+mask", Frame("shown", (8000, 6000), (8000, 6000)), whole)
    assert len(place.text or "") <= len(longest_place("box+mask").text or "")


def test_prompts_ask_for_the_place_in_the_form_it_is_read_in():
    words = prompts.conversation("iad_r1_test").text
    asked = {f: prompts.conversation("iad_r1_test", location_format=f).text
             for f in ("words", "box", "box+mask")}  # fmt: skip
    assert asked["words"] == words and all(text.startswith(words) for text in asked.values())
    assert '"bbox_2d"' in asked["box"] and "polygon_2d" not in asked["box"]
    assert '"polygon_2d"' in asked["box+mask"]
    letters = {"question": "Which?", "options": {"A": "Yes", "B": "No"}}
    choice = prompts.conversation("mmad", **letters, location_format="box")
    assert choice == prompts.conversation("mmad", **letters)
