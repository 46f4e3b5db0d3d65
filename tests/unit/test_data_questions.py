"""Data sets of multiple-choice questions: MMAD to test on, AnomalyR1's to train on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
from miniatures import SIZE, anomaly_r1, mmad

from iad_r1 import data
from iad_r1.command import compose
from iad_r1.data import images
from iad_r1.data.readers import mmad as reader
from iad_r1.errors import ConfigError, DataError
from iad_r1.grid import Grid
from iad_r1.judge.grade import Grader, grade
from iad_r1.rewards import vocabulary
from iad_r1.rollouts.prompting import Prompter
from iad_r1.settings.config import Config
from iad_r1.types import Completion, Dataset, Sample, Solution, StopReason

SUBSETS = ["DS-MVTec", "MVTec-LOCO", "VisA", "GoodsAD"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return mmad(tmp_path)


@cache
def made(*more: str) -> Config:
    chosen = ["stage=evaluate", "backbone=qwen25vl_3b", "tracking=none", "benchmark=mmad"]
    return compose.compose([*chosen, "benchmark.mmad.root=somewhere", *more])


def read(root: Path, **chosen: Any) -> Dataset:
    config = made()
    there = config.benchmark["mmad"].model_copy(update={"root": str(root), **chosen})
    return data.for_run(config.model_copy(update={"benchmark": {"mmad": there}}))


def every(dataset: Dataset) -> list[Sample]:
    return [sample for part in dataset.test.values() for sample in part]


def edit(root: Path, path: str, change: Callable[[dict[str, Any]], object]) -> None:
    file = root / "mmad.json"
    content = json.loads(file.read_text())
    change(content[path])
    file.write_text(json.dumps(content))


def test_every_question_of_every_set_is_a_sample_of_its_set_and_subtask(root):
    found = read(root)
    assert list(found.test) == [f"mmad_{subset}" for subset in SUBSETS]
    assert len({sample.id for sample in every(found)}) == 4 * 10
    for subset, (name, samples) in zip(SUBSETS, found.test.items(), strict=True):
        assert {(s.dataset, s.split) for s in samples} == {(subset, f"test.{name}")}
        assert Counter(s.question.subtask for s in samples) == {
            "Anomaly Detection": 2, "Defect Classification": 1, "Defect Localization": 1,
            "Defect Description": 1, "Defect Analysis": 1, "Object Classification": 1,
            "Object Analysis": 3,
        }  # fmt: skip
    assert {s.product for s in every(found)} == {"bottle", "pushpins", "candle", "drink can"}
    assert found.counts == {f"test.mmad_{subset}": 10 for subset in SUBSETS}


def test_a_path_without_a_product_is_named(root):
    file = root / "mmad.json"
    listed = json.loads(file.read_text())
    listed["candle.JPG"] = next(iter(listed.values()))
    file.write_text(json.dumps(listed))
    with pytest.raises(DataError, match=r"mmad\.json: 'candle\.JPG' is no <set>/<product>"):
        read(root)


def test_the_key_of_a_question_is_its_answer_whatever_the_path_says(root):
    good = "VisA/candle/test/good/0007.JPG"
    edit(root, good, lambda entry: entry["conversation"][0].update(Answer="A"))
    found = {sample.id: sample for sample in every(read(root))}
    sample = found[f"mmad/{good}#0"]
    assert sample.solution == Solution("A")
    assert sample.question.options == {"A": "Yes.", "B": "No."}
    assert sample.question.text == "Anomaly Detection?"


def test_questions_under_several_keys_are_one_after_the_other(root):
    path = "VisA/candle/test/bad/000.JPG"
    edit(root, path, lambda entry: entry.update(conversation_2=entry["conversation"][:1]))
    ids = [s.id for s in every(read(root)) if path in s.id]
    assert ids == [f"mmad/{path}#{i}" for i in range(9)]


@pytest.mark.parametrize("nothing", [None, 5, {}, "none"])
def test_a_conversation_that_is_none_is_refused_by_name(nothing, root):
    path = "VisA/candle/test/bad/000.JPG"
    edit(root, path, lambda entry: entry.update(conversation=nothing))
    with pytest.raises(DataError, match=r"mmad\.json, VisA/candle/test/bad/000\.JPG: turns\.0"):
        read(root)


def test_sets_are_chosen_by_name(root):
    chosen = read(root, subsets=["VisA", "GoodsAD"])
    assert list(chosen.test) == ["mmad_VisA", "mmad_GoodsAD"]
    with pytest.raises(ConfigError, match=r"benchmark\.mmad\.subsets\.0=\"Visa\".*'VisA'"):
        made("benchmark.mmad.subsets=[Visa]")


def test_the_mask_of_a_picture_is_found_by_either_rule(root):
    masked = {s.dataset: s for s in every(read(root)) if s.mask is not None}
    assert list(masked) == SUBSETS
    for sample in masked.values():
        values = images.open_mask(sample)
        assert values is not None and values.shape == (SIZE, SIZE) and values[2, 20]
    assert all("good" not in s.id for s in every(read(root)) if s.mask is not None)


@pytest.mark.parametrize(("templates", "first"), [("random", "000"), ("similar", "002")])
def test_references_are_those_of_the_protocol_in_its_order_and_recorded(templates, first, root):
    found = every(read(root, templates=templates))
    for sample in found:
        product = sample.product.replace(" ", "_")
        shown = [f"mmad/MVTec-AD/{product}/train/good/{first}.png"]
        assert [reference.id for reference in sample.references[:1]] == shown
        assert len(sample.references) == (4 if templates == "random" else 2)
        assert list(answered(sample, "A", shots=1).references) == shown


def test_references_behind_a_missing_one_are_not_shown_in_its_place(root):
    (root / "MVTec-AD/candle/train/good/001.png").unlink()
    numbers = {s.product: len(s.references) for s in every(read(root))}
    assert numbers == {"bottle": 4, "pushpins": 4, "candle": 1, "drink can": 4}


def answered(sample: Sample, text: str, shots: int = 0):
    grader = Grader(Grid(3, 3), vocabulary("default"))
    said = Completion(text, (1,), (0.0,), StopReason.STOP)
    return grade(grader, sample, said, split=sample.split, shots=shots)


def test_an_answer_is_judged_and_noted_with_what_its_subtask_is_scored_by(root):
    sample = next(s for s in every(read(root)) if "good" in s.id)
    right, wrong = answered(sample, "B."), answered(sample, "A")
    assert (right.gold_answer, right.answer, wrong.answer) == ("B", "B", "A")
    assert (right.subtask, right.gold_option) == ("Anomaly Detection", "No.")


class Words:
    """A backbone of which only the words of prompts are asked."""

    def limit_pixels(self, most: int | None) -> None:
        pass


def words(sample: Sample, shots: int = 0, template: str = "iad_r1_test") -> str:
    return Prompter(Words(), template).conversation(sample, shots).text  # pyright: ignore[reportArgumentType]


def test_a_question_is_asked_as_mmad_does_whatever_the_prompt_of_the_run_is(root):
    sample = next(s for s in every(read(root)) if "broken" in s.id)
    text = words(sample, shots=2)
    assert text.count("{image}") == 3 and "Following is/are 2 image" in text
    assert text.endswith("Question 1: Anomaly Detection? \nA. Yes.\nB. No.\n")
    assert "domain knowledge" not in text


def test_what_is_known_of_a_product_is_put_before_its_questions_on_demand(root):
    for sample in every(read(root, knowledge=True)):
        product = sample.product.replace(" ", "_")
        assert f"\n A scratch on a {product}.\nA sound {product}." in words(sample)
    (root / "domain_knowledge.json").write_text(json.dumps({"MVTec": {}}))
    with pytest.raises(DataError, match=r"says nothing of MVTec, bottle\. Use .*knowledge=fal"):
        read(root, knowledge=True)
    (root / "domain_knowledge.json").unlink()
    with pytest.raises(DataError, match=r"domain_knowledge\.json is not there\. MMAD: "):
        read(root, knowledge=True)


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("mmat", r"benchmark\.mmad\.prompt='mmat' is unknown"),
        ("iad_r1_test", r"benchmark\.mmad\.prompt='iad_r1_test' has no place for options"),
    ],
)
def test_a_prompt_that_cannot_ask_is_refused_before_anything_is_read(prompt, said):
    with pytest.raises(ConfigError, match=said):
        made(f"benchmark.mmad.prompt={prompt}")
    made("benchmark.mmad.prompt=anomaly_r1_released")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"Answer": "E"}, r"mmad\.json, VisA/.*0007\.JPG, question 0: .*answer is 'E', but the qu"),
        ({"Answer": "Yes"}, "question 0: .*answer is 'Yes', but the question allows A, B"),
        ({"Options": {"a": "Yes"}}, "question 0: options are named by capital letters"),
        ({"Options": None}, r"0007\.JPG: turns\.0\.Options: input should be a valid dictionary"),
        ({"type": "Defects"}, r"0007\.JPG: turns\.0\.type: input should be 'anomaly detection'"),
    ],
)
def test_a_question_that_cannot_be_right_is_named(change, said, root):
    path = "VisA/candle/test/good/0007.JPG"
    edit(root, path, lambda entry: entry["conversation"][0].update(change))
    with pytest.raises(DataError, match=said):
        read(root)


def test_what_is_not_there_is_named(root):
    (root / "VisA/candle/test/bad/000.JPG").unlink()
    with pytest.raises(DataError, match=r"mmad\.json, VisA/candle/test/bad/000\.JPG, question 0"):
        read(root)
    (root / "mmad.json").unlink()
    with pytest.raises(DataError, match=r"mmad\.json is not there\. MMAD: jiang-cc/MMAD"):
        read(root)
    with pytest.raises(DataError, match=r"nowhere is not a folder\. MMAD"):
        read(root / "nowhere")


def test_the_subtasks_are_those_of_the_benchmark():
    kinds = get_args(reader.Turn.model_fields["type"].annotation)
    assert len({reader.MERGED.get(kind, kind) for kind in kinds}) == 7


# --- AnomalyR1 -----------------------------------------------------------------------------------


@cache
def made_to_train() -> Config:
    return compose.compose(
        ["stage=grpo", "evaluate.splits=[validation]", "recipe=anomaly_r1", "tracking=none",
         "backbone=qwen25vl_3b", "data=anomaly_r1", "data.root=somewhere"]
    )  # fmt: skip


def trained(root: Path) -> Dataset:
    config = made_to_train()
    there = config.data.model_copy(update={"root": str(root)})
    return data.for_run(config.model_copy(update={"data": there}))


def test_the_lists_of_anomaly_r1_train_and_validate_by_letters(tmp_path):
    found = trained(anomaly_r1(tmp_path))
    assert sorted((s.id, s.solution.answer) for s in found.rl) == [
        (f"anomaly_r1/train/{i + 1}", "ABC"[i % 3]) for i in range(6)
    ]
    assert len(found.validation["seen"]) == 2
    assert {s.product for s in found.rl} == {"VisA candle"}
    sample = next(s for s in found.rl if s.id.endswith("/2"))
    text = words(sample, template="anomaly_r1_train")
    assert "{image}Question 1: which defect is it?\nA. scratch\nB. dent\nC. hole A conver" in text
    assert sample.solution.as_tags() == "<answer>B</answer>"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"solution": "scratch"}, r"train\.jsonl, line 2: the solution 'scratch' is no letter"),
        ({"problem": None}, r"train\.jsonl, line 2: problem: input should be a valid string"),
        ({"image": "VisA/candle/none.JPG"}, r"train\.jsonl, line 2: .*none\.JPG"),
    ],
)
def test_a_line_that_cannot_be_right_is_named(change, said, tmp_path):
    file = anomaly_r1(tmp_path) / "fewshot-ad-train.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[1].update(change)
    file.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=said):
        trained(tmp_path)


def test_options_are_in_their_own_order_or_in_one_that_the_seed_draws(root):
    listed, drawn, again = (every(read(root, order=o)) for o in ("listed", "drawn", "drawn"))
    assert [s.question for s in drawn] == [s.question for s in again]
    moved = 0
    for before, after in zip(listed, drawn, strict=True):
        old, new = before.question.options, after.question.options
        assert (
            old
            and new
            and list(new) == sorted(old)
            and Counter(new.values()) == Counter(old.values())
        )
        assert new[after.solution.answer] == old[before.solution.answer]
        moved += after.solution.answer != before.solution.answer
    assert moved > 5
