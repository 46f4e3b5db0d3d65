"""Files of predictions survive whatever a model says, and a kill at any instant."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iad_r1.errors import DataError
from iad_r1.judge.predictions import append, read_predictions, repair
from iad_r1.types import Prediction

ONE = Prediction(
    id="a",
    dataset="synthetic",
    split="seen",
    product="bolt head",
    shots=0,
    gold_answer="yes",
    gold_location="top left",
    gold_type="scratch",
    completion="<answer>Yes</answer>",
    status="ok",
    answer="yes",
    location=None,
    type=None,
    location_correct=False,
    type_correct=False,
    p_yes=0.5,
    n_tokens=4,
    stop="stop",
)
said = st.text(st.characters(exclude_categories=("Cs",)))  # a decoder never gives lone surrogates


@given(st.lists(said, min_size=1, max_size=4))
def test_any_text_comes_back_as_it_was_said(texts):
    rows = [replace(ONE, id=str(i), completion=text) for i, text in enumerate(texts)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "predictions" / "sft.jsonl"
        append(path, rows[:1])
        append(path, rows[1:])
        assert list(read_predictions(path).values()) == rows


def test_a_line_separator_inside_a_completion_does_not_end_the_line(tmp_path):
    row = replace(ONE, completion="a\u2028b\x85c\x0bd\x1ce")
    append(tmp_path / "p" / "x.jsonl", [row])
    assert read_predictions(tmp_path / "p" / "x.jsonl")["a"].completion == row.completion


def test_what_a_kill_left_half_written_is_cut_off_and_asked_again(tmp_path):
    path = tmp_path / "p" / "x.jsonl"
    append(path, [ONE, replace(ONE, id="b", completion="a dent of 3 \u00d7 4 mm\u00b2")])
    whole = path.read_bytes()  # also within a letter of two bytes
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        found = read_predictions(path)
        assert set(found) == {"a", "b"} if whole[:end].count(b"\n") == 2 else set(found) <= {"a"}
        assert path.read_bytes() == whole[:end], "reading changes nothing"
        repair(path)
        assert path.read_bytes() == whole[: whole[:end].rfind(b"\n") + 1]


def test_a_kill_while_a_file_is_made_whole_leaves_its_lines(tmp_path, monkeypatch):
    path = tmp_path / "p" / "x.jsonl"
    append(path, [ONE, replace(ONE, id="b")])
    with path.open("a") as file:
        file.write('{"id": "c')

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "truncate", killed)
    with pytest.raises(KeyboardInterrupt):
        repair(path)
    assert set(read_predictions(path)) == {"a", "b"}


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("\udcff", "can't decode byte 0xff"),
        ('{"id": "b"}', "missing"),
        ('{"colour": 1}', "colour"),
        ("[]", "a list, not an object"),
        ('{"id": ', "Expecting value"),
        (json.dumps(asdict(ONE)), "a is answered already"),
    ],
)
def test_a_line_that_is_no_prediction_is_named(tmp_path, line, fault):
    path = tmp_path / "p" / "x.jsonl"
    append(path, [ONE])
    with path.open("a", encoding="utf-8", errors="surrogateescape") as file:
        file.write(f"{line}\n")
    with pytest.raises(DataError, match=rf"x\.jsonl, line 2: not a prediction \(.*{fault}"):
        read_predictions(path)
