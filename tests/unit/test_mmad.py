"""MMAD's table: right, and as the released script counts, with its faults pinned beside."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pytest
from rich.console import Console

from iad_r1.judge import mmad
from iad_r1.report import terminal
from iad_r1.schema import INVALID
from iad_r1.types import Prediction


def question(
    image: str, index: int, subtask: str, gold: str, said: str, released: str | None = None
) -> Prediction:
    return Prediction(
        id=f"mmad/{image}#{index}", dataset=image.partition("/")[0], split="mmad", product="part",
        shots=1, gold_answer=gold, gold_location=None, gold_type=None, completion="",
        status="ok", answer=said, location=None, type=None, location_correct=None,
        type_correct=None, p_yes=None, n_tokens=1, stop="stop", subtask=subtask,
        gold_option={"A": "Yes.", "B": "No."}[gold] if subtask == mmad.DETECTION else "a text",
        released_answer=said if released is None else released,
    )  # fmt: skip


def detection(image: str, gold: str, said: str) -> Prediction:
    return question(image, 0, mmad.DETECTION, gold, said)


GOOD, BAD = "VisA/candle/test/good/1.JPG", "VisA/candle/test/bad/1.JPG"


def script(rows: Sequence[Prediction]) -> dict[tuple[str, str], float]:
    """The released script's counting, line for line what it does to its list."""
    entries = [{"row": row, "said": row.released_answer} for row in rows]
    counts: dict[tuple[str, str], list[int]] = {}
    for entry in entries:
        row = entry["row"]
        if entry["said"] not in list("ABCDE"):
            entries.remove(entry)
            continue
        column = row.subtask
        if column == mmad.DETECTION:
            column += "/good" if "good" in row.id else "/bad"
        right = counts.setdefault((row.dataset, column), [0, 0])
        right[0] += entry["said"] == row.gold_answer
        right[1] += 1
    return {key: 100 * k / n for key, (k, n) in counts.items()}


def test_the_table_by_hand():
    rows = [
        detection(GOOD, "B", "B"),
        detection(BAD, "A", "B"),
        detection(BAD.replace("1", "2"), "A", "A"),
        question(BAD, 1, "Defect Analysis", "C", "C"),
        question(BAD, 2, "Object Analysis", "C", INVALID),
        question(GOOD, 3, "Object Analysis", "C", "C"),
    ]
    found = mmad.table(rows, 0)
    visa = found["sets"]["VisA"]
    assert visa["strict"] == {
        mmad.DETECTION: 75.0, "Defect Analysis": 100.0, "Object Analysis": 50.0, "average": 75.0,
    }  # fmt: skip
    assert visa["lenient"]["Object Analysis"] == 100.0
    assert (found["strict"], found["lenient"]) == pytest.approx((75, 275 / 3))
    assert (visa["n"], visa["invalid"]) == (6, 1)
    low, high = found["ci95"]
    assert low < 75 < high


def test_a_set_counts_once_however_many_questions_it_has():
    rows = [question(f"VisA/a/test/bad/{i}", 1, "Defect Analysis", "A", "A") for i in range(9)]
    rows.append(question("GoodsAD/b/test/bad/0", 1, "Defect Analysis", "A", "B"))
    found = mmad.table(rows, 0)
    assert found["strict"] == found["average"]["Defect Analysis"] == 50.0
    assert found["average"]["Object Analysis"] is None  # nobody asked


def test_an_unreadable_answer_hides_the_next_question_from_the_released_script():
    rows = [
        question(BAD, 1, "Defect Analysis", "A", "A"),
        question(BAD, 2, "Defect Analysis", "A", INVALID),
        question(BAD, 3, "Defect Analysis", "A", "B"),  # wrong, and never seen
        question(BAD, 4, "Defect Analysis", "A", "A"),
    ]
    assert mmad.released(rows)["average"] == 100.0
    assert mmad.table(rows, 0)["strict"] == 50.0


def test_the_released_script_takes_a_picture_for_good_by_its_path():
    rows = [detection("VisA/candle/test/good/0944.JPG", "A", "A"), detection(GOOD, "B", "A")]
    assert mmad.table(rows, 0)["strict"] == 50.0  # one half right, one wrong
    assert mmad.released(rows)["average"] == 25.0  # the defect counts as good; no bad one: 0


def test_a_subtask_without_a_question_is_zero_in_the_released_script_alone():
    rows = [
        question("VisA/a/test/bad/0", 1, "Defect Analysis", "A", "A"),
        question("GoodsAD/b/test/bad/0", 1, "Object Analysis", "A", "A"),
    ]
    assert mmad.released(rows)["average"] == 50.0 and mmad.table(rows, 0)["strict"] == 100.0


def test_released_counts_are_those_of_the_scripts_own_loop():
    letters = ["A", "B", "C", INVALID, "A", INVALID, INVALID, "X", "D", "A", "B", "E", "A"]
    rows = [
        question(BAD if i % 3 else GOOD, i, ("Defect Analysis", mmad.DETECTION)[i % 2], "A", said)
        for i, said in enumerate(letters)
    ]
    expected = script(rows)
    visa = mmad.released(rows)["sets"]["VisA"]
    assert visa["Defect Analysis"] == pytest.approx(expected["VisA", "Defect Analysis"])
    halves = [expected.get(("VisA", f"{mmad.DETECTION}/{half}"), 0) for half in ("good", "bad")]
    assert visa[mmad.DETECTION] == pytest.approx(sum(halves) / 2)


def test_questions_about_one_picture_are_drawn_together():
    """Forty pictures of five equal answers are forty facts, not two hundred."""
    rows = [
        question(f"VisA/a/test/bad/{i}", j, "Defect Analysis", "A", "AB"[i % 2])
        for i in range(40)
        for j in range(5)
    ]
    apart = [
        question(f"VisA/a/test/bad/{i}-{j}", j, "Defect Analysis", "A", "AB"[i % 2])
        for i in range(40)
        for j in range(5)
    ]
    widths = [high - low for low, high in (mmad.table(side, 0)["ci95"] for side in (rows, apart))]
    assert widths[0] / widths[1] == pytest.approx(5**0.5, rel=0.15)


def test_both_totals_are_printed():
    rows = [
        question(BAD, 1, "Defect Analysis", "A", "A"),
        question(BAD, 2, "Defect Analysis", "A", INVALID),
        question(BAD, 3, "Defect Analysis", "A", "B"),
    ]
    (row,) = mmad.of_answers({("grpo", "mmad_VisA", 1): rows}, 0)
    said = terminal._mmad_totals(row)
    assert "in all 33.3" in said and "released script counts: 100.0" in said
    console = Console(file=io.StringIO(), width=140)
    console.print(terminal._mmad(row))
    assert isinstance(console.file, io.StringIO)
    assert "1 of 3" in console.file.getvalue()


def test_answers_of_other_benchmarks_make_no_table():
    other = question(BAD, 1, "", "A", "A")
    assert mmad.of_answers({("grpo", "seen", 0): [other]}, 0) == []
