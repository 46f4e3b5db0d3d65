"""The files of MMAD's scripts: what `stage=score` and the released script make of ours."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any, Literal

import pytest
from miniatures import mmad as miniature

from iad_r1 import schema
from iad_r1.command import compose
from iad_r1.data.readers import mmad as reader
from iad_r1.errors import DataError
from iad_r1.grid import Grid
from iad_r1.judge import mmad
from iad_r1.judge.grade import Grader, grade
from iad_r1.loops import score
from iad_r1.rewards import vocabulary
from iad_r1.schema import INVALID
from iad_r1.store.run_folder import RunFolder
from iad_r1.suites import mmad as files
from iad_r1.types import Completion, Prediction, Sample, StopReason

SAID = (  # rightly, wrongly, in tags, unlike in strict and released reading, cut off, nothing
    "A",
    "B.",
    "<think>A scratch.</think><answer>C</answer>",
    "Answer: B because A has none.",
    "It is hard to say.",
    "<think>A",
    "",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniature(tmp_path_factory.mktemp("sets") / "MMAD")


@pytest.fixture(scope="module")
def asked(root: Path) -> list[Sample]:
    return samples(root)


@pytest.fixture(scope="module")
def rows(asked: list[Sample]) -> list[Prediction]:
    return graded(asked)


def samples(root: Path, order: Literal["listed", "drawn"] = "listed") -> list[Sample]:
    settings = reader.Settings(
        name="mmad", root=str(root), subsets=["DS-MVTec", "MVTec-LOCO", "VisA", "GoodsAD"],
        templates="random", knowledge=False, order=order, prompt="mmad",
    )  # fmt: skip
    return list(reader.read(settings, 3))


def graded(asked: Sequence[Sample]) -> list[Prediction]:
    """Every question answered in one of these ways."""
    grader = Grader(Grid(3, 3), vocabulary("default"))
    found = []
    for sample, text in zip(asked, cycle(SAID), strict=False):
        stop = StopReason.LENGTH if text == "<think>A" else StopReason.STOP
        said = Completion(text, (), (), stop)
        found.append(grade(grader, sample, said, split=f"mmad_{sample.dataset}", shots=1))
    return found


def written(folder: Path, rows: Sequence[Prediction], asked: Sequence[Sample]) -> Path:
    (file,) = files.write(folder, "twin", {("sft", "mmad", 1): rows}, asked)
    return file


@pytest.fixture
def scored(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Path], dict[str, Any]]:
    """`scored(file)`: the summary of a run of `stage=score` on it."""
    monkeypatch.setattr(score.report, "build", lambda folder: None)  # its figures take a second

    def run(file: Path) -> dict[str, Any]:
        config = compose.compose(
            ["stage=score", f"predictions={file}", "benchmark=mmad", f"benchmark.mmad.root={root}",
             "tracking=none"]
        )  # fmt: skip
        folder = RunFolder.create(tmp_path / "outputs", config.name)
        folder.write_json("config.json", config.model_dump(mode="json"))
        score.run(config, folder)
        return folder.summary()

    return run


def released_script(file: Path) -> dict[str, dict[str, float]]:
    """What the released script counts in a file of answers, its loop and its faults kept."""
    answers = json.loads(file.read_text())
    right: dict[tuple[str, str], list[bool]] = {}
    for answer in answers:
        if answer["gpt_answer"] not in list("ABCDE"):
            answers.remove(answer)
            continue
        kind = answer["question_type"]
        if kind == mmad.DETECTION:
            kind = "normal" if "good" in answer["image"] else "abnormal"
        place = answer["image"].split("/")[0], kind
        right.setdefault(place, []).append(answer["gpt_answer"] == answer["correct_answer"])
    found: dict[str, dict[str, float]] = {}
    for (name, kind), hits in right.items():
        found.setdefault(name, {})[kind] = 100 * sum(hits) / len(hits)
    return found


def test_a_file_of_answers_is_scored_as_the_evaluation_was(scored, rows, asked, tmp_path):
    expected = mmad.table(rows, 0)
    assert expected["strict"] != expected["released"]["average"]  # they read it differently
    (again,) = scored(written(tmp_path / "mmad", rows, asked))["mmad"]
    assert {key: again[key] for key in expected} == json.loads(json.dumps(expected))


def test_letters_that_were_weighed_are_what_was_said(scored, rows, asked, tmp_path):
    """The text says other things than the likeliest letters, and one came to no letter."""
    weighed = [
        replace(row, letters={row.gold_answer: 1.0}, answer=row.gold_answer,
                released_answer=row.gold_answer, completion="I cannot say.")
        for row in rows
    ]  # fmt: skip
    none = schema.read_answer("", "mmad_compat", options_of(asked, weighed[0].id))
    weighed[0] = replace(weighed[0], letters={}, answer="invalid", released_answer=none)
    expected = mmad.table(weighed, 0)
    assert expected["choices"] == "logprob"
    (again,) = scored(written(tmp_path / "mmad", weighed, asked))["mmad"]
    assert again["strict"] == expected["strict"] < 100
    assert again["released"] == expected["released"]


def options_of(asked: Sequence[Sample], id: str) -> Any:
    return next(sample.question.options for sample in asked if sample.id == id)


def test_completions_about_options_in_another_order_are_refused(scored, root, tmp_path):
    asked = samples(root, "drawn")
    file = written(tmp_path / "mmad", graded(asked), asked)
    with pytest.raises(DataError, match=r"entry \d+: its options have other letters.*order=drawn"):
        scored(file)


def test_the_accuracies_are_what_the_released_script_counts_in_the_answers(rows, asked, tmp_path):
    right = [row.released_answer == row.gold_answer for row in rows]
    at = right.index(True, 1) - 1  # it hides the next question, which is answered rightly
    rows = [*rows[:at], replace(rows[at], released_answer=INVALID), *rows[at + 1 :]]
    file = written(tmp_path / "mmad", rows, asked)
    assert file.name == "answers_1_shot_twin_sft.json"
    with file.with_name("answers_1_shot_twin_sft_accuracy.csv").open() as lines:
        table = {
            row.pop(""): {k: float(v) for k, v in row.items()} for row in csv.DictReader(lines)
        }
    counted = released_script(file)
    assert list(table) == [*counted, "Average"]
    for name, kinds in counted.items():
        row = table[name]
        normal, caught = kinds.pop("normal", 0.0), kinds.pop("abnormal", 0.0)
        assert row[mmad.DETECTION] == pytest.approx((normal + caught) / 2)
        assert (row["Overkill"], row["Miss"]) == pytest.approx((100 - normal, 100 - caught))
        for kind, share in kinds.items():
            assert row[kind] == pytest.approx(share)
        assert row["Average"] == pytest.approx(sum(row[t] for t in mmad.SUBTASKS) / 7)
    for column in table["Average"]:
        assert table["Average"][column] == pytest.approx(
            sum(table[name][column] for name in counted) / len(counted)
        )


def test_the_table_has_the_columns_of_the_published_ones(rows):
    head = files.accuracy(rows).partition("\n")[0]
    assert head == (  # all_result/answers_1_shot_gpt-4o_accuracy.csv of MMAD's repository
        ",Anomaly Detection,Defect Classification,Defect Localization,Defect Description,"
        "Defect Analysis,Object Classification,Object Analysis,Average,Recall,Precision,F1,"
        "Overkill,Miss"
    )


def test_recall_precision_and_f1_by_hand():
    def detection(image: str, gold: str, said: str) -> Prediction:
        return Prediction(
            f"mmad/VisA/{image}#0", "VisA", "mmad", "p", 0, gold, None, None, said, "ok", said,
            None, None, None, None, None, 1, "stop", subtask=mmad.DETECTION,
            gold_option="Yes." if gold == "A" else "No.", released_answer=said,
        )  # fmt: skip

    rows = [detection(f"bad/{i}", "A", said) for i, said in enumerate("AAAB")]
    rows += [detection(f"good/{i}", "B", said) for i, said in enumerate("AB")]
    found = mmad.released_shares(rows)["VisA"]
    # 3 of 4 defects caught, 1 of 2 good parts rejected: 3 of 4 that were called defective are
    assert found == pytest.approx(
        {mmad.DETECTION: 62.5, "Recall": 75, "Precision": 75, "F1": 75, "Overkill": 50, "Miss": 25}
    )


def test_answers_of_other_benchmarks_make_no_files(rows, tmp_path):
    others = [replace(row, subtask="") for row in rows]
    assert files.write(tmp_path / "mmad", "twin", {("sft", "seen", 0): others}, []) == []
    assert not (tmp_path / "mmad").exists()
