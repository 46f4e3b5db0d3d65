"""Expert-AD: its two lists, learned from word for word, or refused by file and item."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from miniatures import GOOD, QUESTION, SCRATCHED, expert_ad, picture, sft_row, view

from iad_r1 import data
from iad_r1.command import compose
from iad_r1.data.targets import Target, chain_of_thought, direct_answer
from iad_r1.errors import ConfigError, DataError
from iad_r1.settings.config import Config
from iad_r1.types import Dataset, Sample, Solution

LISTS = {"sft": "PA-SFT/Expert_AD_Stage_1.json", "rl": "SC-GRPO/Expert_AD_Stage_2.json"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return expert_ad(tmp_path)


@cache
def made(*more: str) -> Config:
    chosen = ["backbone=qwen25vl_3b", "tracking=none", "data=expert_ad", "data.root=somewhere"]
    return compose.compose([*chosen, "stage.tasks=[sft,grpo]", *more])


def read(root: Path, *more: str) -> Dataset:
    config = made(*more)
    there = config.data.model_copy(update={"root": str(root)})
    return data.for_run(config.model_copy(update={"data": there}))


def edit(root: Path, part: str, change: Callable[[list[dict[str, Any]]], object]) -> None:
    file = root / LISTS[part]
    rows = json.loads(file.read_text())
    change(rows)
    file.write_text(json.dumps(rows))


def test_both_lists_are_read_in_their_order_with_labels_places_and_types_of_their_tags(root):
    found = read(root)
    assert [s.id for s in found.sft] == [f"expert_ad/sft/{i}" for i in range(10)]
    assert [s.id for s in found.rl] == [f"expert_ad/rl/{i}" for i in range(8)]
    for part, good, defective in ((found.sft, 6, 4), (found.rl, 4, 4)):
        assert Counter(s.solution for s in part) == {
            Solution("No"): good, Solution("Yes", "top right", "score mark"): defective,
        }  # fmt: skip
        assert {s.product for s in part} == {"audiojack", "toy brick"}
    assert not found.test and not found.validation
    assert found.counts == {
        "sft": 10, "sft.defective": 4, "rl": 8, "rl.defective": 4, "leaks": 0, "leaks_dropped": 0,
    }  # fmt: skip


def test_pa_sft_learns_what_its_list_says_word_for_word(root):
    targets = {chain_of_thought(sample, 0) for sample in read(root).sft}
    assert targets == {Target(GOOD), Target(SCRATCHED)}
    sample = read(root).sft[1]
    assert direct_answer(sample, 0).text == "<answer>Yes</answer>"
    assert "score mark" in chain_of_thought(read(root).rl[1], 0).text  # by rule: it has no text


def test_an_item_with_a_reference_is_shown_with_it_and_others_without(root):
    found = read(root)
    for sample in (*found.sft, *found.rl):
        own = [r.id for r in sample.references[: sample.shots]]
        assert own in ([], [f"expert_ad/{view(sample.product.replace(' ', '_'), 90)}"])
        assert sample.references, "another good picture of its product, for k-shot"
        assert all(r.image != sample.image for r in sample.references)
    assert [s.shots for s in found.rl] == [0, 0, 1, 1] * 2
    assert [s.shots for s in found.sft] == [0, 0, 0, 0, 1] * 2


def test_a_question_of_its_own_is_kept_and_the_usual_one_is_the_prompts(root):
    usual = {sample.question.text for sample in (*read(root).sft, *read(root).rl)}
    assert usual == {None}
    edit(root, "rl", lambda rows: rows[2].update(problem="Is the lid sound?"))
    edit(root, "sft", lambda rows: rows[0].update(sft_row(view("audiojack", 0), GOOD, "Is it ok?")))
    found = read(root)
    assert (found.rl[2].question.text, found.sft[0].question.text) == (
        "Is the lid sound?", "Is it ok?",
    )  # fmt: skip


def test_whole_objects_are_kept_apart_on_demand(root):
    for camera in (2, 3):  # other views of an object, of which one does not show the defect
        for product in ("audiojack", "toy_brick"):
            path = view(product, 1, "HS", camera)
            picture(root / path)
            row = sft_row(path, SCRATCHED if camera == 2 else GOOD)
            edit(root, "sft", lambda rows, row=row: rows.append(row))
    rows = json.loads((root / LISTS["sft"]).read_text())
    for number, row in enumerate(rows[:4], 90):  # these pictures are in both lists
        tags = row["messages"][1]["content"].partition("</think>")[2]
        twin = {"id": number, "image": row["images"], "problem": QUESTION, "solution": tags}
        edit(root, "rl", lambda rows, twin=twin: rows.append(twin))
    chosen = ["stage.tasks=[sft,grpo,evaluate]", "evaluate.splits=[validation]"]
    found = read(root, "data.validation_share=0.5", *chosen)
    kept, trained = found.validation["seen"], [*found.sft, *found.rl]
    pictures = [sample.image for sample in kept]
    assert len(set(pictures)) == len(pictures) < 26 - len(trained)  # once, if it is in both lists

    def objects(samples: Iterable[Sample]) -> set[str]:
        return {str(sample.image).rpartition("_C")[0] for sample in samples}

    assert len(objects(kept)) == 8 and {s.solution.answer for s in kept} == {"Yes", "No"}
    assert not objects(kept) & objects(trained)
    assert not objects(kept) & objects(r for s in trained for r in s.references)
    assert read(root, "data.validation_share=0.5", "seed=1").sft != found.sft


def test_a_run_needs_something_to_test_on():
    with pytest.raises(ConfigError, match=r"data=expert_ad trains and has no test part\. Choose"):
        made("stage.tasks=[sft,evaluate]")
    made("stage.tasks=[sft,evaluate]", "evaluate.splits=[validation]")
    made("stage.tasks=[sft,evaluate]", "benchmark=mpdd", "benchmark.mpdd.root=there")


def test_the_fingerprint_is_of_all_that_is_learned(root):
    before = read(root).fingerprint
    assert read(root).fingerprint == before
    seen = {before}
    changes: list[tuple[str, Callable[[list[dict[str, Any]]], object]]] = [
        ("sft", lambda rows: rows[0].update(sft_row(view("audiojack", 0), GOOD.replace("T", "t")))),
        ("rl", lambda rows: rows[1].update(solution=rows[1]["solution"].replace("Top", "Bottom"))),
        ("rl", lambda rows: rows[1].update(problem="Is the lid sound?")),
    ]
    for part, change in changes:
        edit(root, part, change)
        seen.add(read(root).fingerprint)
    assert len(seen) == 4


# --- refused -------------------------------------------------------------------------------------

TAGS = "<location>top left</location><type>dent</type>"


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("sft", {"images": "a/b.jpg"}, r"_1\.json, item 1: .*a/b\.jpg is not there\. data\.im"),
        ("rl", {"image": [view("audiojack", 91), view("audiojack", 3, "HS")]}, "0091_OK.* is not"),
        ("rl", {"id": 0}, r"Stage_2\.json, item 1: its id is that of .*json, item 0 too"),
        ("rl", {"solution": f"{TAGS}<answer>No</answer>"}, r"_2\.json, item 1: unexpected tag"),
        ("rl", {"solution": "<answer>Yes</answer>"}, "item 1: missing tag in '<answer>Yes</answ"),
        ("rl", {"solution": f"{TAGS}<answer>maybe</answer>"}, "item 1: answer not yes/no"),
        ("rl", {"solution": f"{TAGS}<answer>Yes</answer>."}, "item 1: text outside tags"),
        ("rl", {"solution": None}, "item 1: solution: input should be a valid string"),
        ("rl", {"image": []}, "item 1: it has 0 pictures"),
        ("rl", {"problem": f"<image><image>{QUESTION}"}, "holds <image> 2 times, but its"),
        ("rl", {"solution": f"{TAGS}<answer>Yes</answer>".replace("top left", "the lid")},
         r"item 1: the location 'the lid' is no place on a 3x3 grid\. Correct it, or choose"),
        ("sft", {"messages": []}, r"item 1: expected a message of user and .*\[\]"),
        ("sft", sft_row("x", f"{TAGS}<answer>Yes</answer>"), "item 1: missing tag .* <think>"),
        ("sft", sft_row("x", SCRATCHED.replace("Yes", "No")), "item 1: unexpected tag"),
    ],
)  # fmt: skip
def test_an_item_that_cannot_be_right_is_named(part, change, said, root):
    path = view("audiojack", 1 if part == "sft" else 3, "HS")
    change = {**change, **({"images": path} if change.get("images") == "x" else {})}
    edit(root, part, lambda rows: rows[1].update(change))
    with pytest.raises(DataError, match=said):
        read(root)


def test_how_many_items_are_wrong_is_said(root):
    edit(root, "rl", lambda rows: [row.update(solution="") for row in rows[:3]])
    with pytest.raises(DataError, match=r"item 0: missing tag .*\(3 of 8 items of this list are"):
        read(root)


def test_a_picture_may_be_in_both_lists_but_not_with_two_answers(root):
    path = view("audiojack", 1, "HS")
    row = {"id": 99, "image": path, "problem": QUESTION, "solution": SCRATCHED.split("</think>")[1]}
    edit(root, "rl", lambda rows: rows.append(row))
    assert len(read(root).rl) == 9
    edit(root, "rl", lambda rows: rows[-1].update(solution="<answer>No</answer>"))
    with pytest.raises(DataError, match=r"Stage_2\.json, item 8: the same picture as in .*item 1,"):
        read(root)
    edit(root, "rl", lambda rows: rows[-1].update(row, image=rows[0]["image"]))
    with pytest.raises(DataError, match=r"item 8: .*0002_OK.* is listed already in .*item 0"):
        read(root)


def test_the_grid_of_the_data_has_to_be_the_grid_of_the_run(root):
    words = "row 2 of 5, column 4 of 5"
    edit(root, "sft", lambda rows: rows[1].update(
        sft_row(view("audiojack", 1, "HS"), SCRATCHED.replace("Top right", words))
    ))  # fmt: skip
    with pytest.raises(DataError, match=rf"item 1: the location '{words}' is no place on a 3x3 gr"):
        read(root)
    assert read(root, "grid=5x5").sft[1].solution.location == words


def test_where_it_is_obtained_is_said_if_it_is_not_there(root):
    with pytest.raises(DataError, match=r"nowhere is not a folder\. Expert-AD: yanhui01/Expert-AD"):
        read(root / "nowhere")
    (root / LISTS["rl"]).unlink()
    with pytest.raises(DataError, match=r"Stage_2\.json is not there\. Expert-AD"):
        read(root)
    (root / LISTS["sft"]).write_text("{}")
    with pytest.raises(DataError, match=r"Stage_1\.json is no list of items"):
        read(root)


def test_lists_and_pictures_may_lie_elsewhere(root):
    (root / "realiad_1024").rename(root / "moved")
    (root / LISTS["sft"]).rename(root / "mine.json")
    for part in ("sft", "rl"):
        name = "mine.json" if part == "sft" else LISTS[part]
        text = (root / name).read_text().replace("realiad_1024/", "")
        (root / name).write_text(text)
    assert len(read(root, "data.images=moved", "data.sft=mine.json").sft) == 10
