"""`stage=compare`: what is the same, what differs, and what is refused."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from iad_r1.command import compose
from iad_r1.errors import ConfigError, MismatchError
from iad_r1.judge import compare, predictions
from iad_r1.report import comparison, gallery
from iad_r1.stages import compare as stage
from iad_r1.store.run_folder import RunFolder
from iad_r1.types import Prediction, Sample, Solution

UNHURRIED = settings(deadline=None, max_examples=25)  # a busy machine is not a failure
CONFIG: dict[str, Any] = {
    "name": "made", "seed": 0, "backbone": {"name": "tiny"}, "grid": {"name": "3x3", "rows": 3,
    "cols": 3}, "evaluate": {"prompt": "iad_r1_test", "evaluator": "strict"},
}  # fmt: skip


def answers(said: str, split: str = "seen", prefix: str = "") -> list[Prediction]:
    """One image per letter: y and n are answers to defects, Y and N to good parts."""
    return [
        Prediction(
            id=f"{prefix}{i}", dataset="made", split=split, product="part", shots=0,
            gold_answer="yes" if letter in "yn" else "no", gold_location=None, gold_type=None,
            completion=f"<answer>{letter}</answer>", status="ok",
            answer="yes" if letter in "yY" else "no", location=None, type=None,
            location_correct=None, type_correct=None, p_yes=None, n_tokens=1, stop="stop",
        )
        for i, letter in enumerate(said)
    ]  # fmt: skip


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., str]:
    """`made("a", seen=[...])`: a run folder with these predictions; returns its path."""

    def make(name: str, changed: dict[str, Any] | None = None, **splits: list[Prediction]) -> str:
        folder = RunFolder(tmp_path / name)
        folder.write_json("config.json", {**CONFIG, **(changed or {})})
        for split, rows in splits.items():
            predictions.append(folder.predictions("sft", split, 0), rows)
        return str(folder.path)

    return make


def compared(*folders: str, shared: bool = False) -> dict[str, Any]:
    return comparison.compare(comparison.load(folders), shared, 0).content


# --- statistics ----------------------------------------------------------------------------------


@pytest.mark.slow  # the import of statsmodels alone takes seconds
@UNHURRIED
@given(st.lists(st.tuples(st.sampled_from("yn"), st.sampled_from("yn")), min_size=1, max_size=60))
def test_mcnemar_is_statsmodels(pairs):
    from statsmodels.stats.contingency_tables import mcnemar

    before, after = (answers("".join(side)) for side in zip(*pairs, strict=True))
    cells = [[sum((a, b) == (x, y) for a, b in pairs) for y in "yn"] for x in "yn"]
    found = compare.mcnemar(before, after)
    assert (found["only_before"], found["only_after"]) == (cells[0][1], cells[1][0])
    assert found["p"] == pytest.approx(min(1.0, vars(mcnemar(cells, exact=True))["pvalue"]))


@pytest.mark.slow
@UNHURRIED
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_statsmodels(p_values):
    from statsmodels.stats.multitest import multipletests

    assert compare.holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])


def test_mcnemar_and_holm_by_hand(made):
    # a is wrong on all eight defects; b mends six of them, c one
    a, b, c = made("a", seen=answers("nnnnnnnnNN")), made("b", seen=answers("yyyyyynnNN")), made(
        "c", seen=answers("ynnnnnnnNN")
    )  # fmt: skip
    first, second = compared(a, b, c)["tests"]
    assert (first["only_from"], first["only_to"], first["n"]) == (0, 6, 10)
    assert first["p"] == pytest.approx(2 / 2**6) and second["p"] == 1.0
    assert first["p_holm"] == pytest.approx(2 * first["p"]) and second["p_holm"] == 1.0


# --- what is compared ----------------------------------------------------------------------------


def test_differences_changes_and_results_are_those_of_the_predictions(made):
    a, b = made("a", seen=answers("yynNNN")), made("b", seen=answers("ynyNNY"))
    found = compared(a, b)
    by_metric = {row["metric"]: row for row in found["differences"]}
    assert by_metric["balanced_accuracy"]["delta"] == pytest.approx(-100 / 6)
    assert by_metric["overkill_rate"]["delta"] == pytest.approx(100 / 3)
    assert by_metric["overkill_rate"]["verdict"] == "not clear"
    changes = {row["id"]: row["change"] for row in found["changed"]}
    assert changes == {"1": "spoilt", "2": "mended", "5": "spoilt"}
    assert [row["accuracy"] for row in found["results"]] == pytest.approx([500 / 6, 400 / 6])


def test_the_weights_that_were_evaluated_last_are_compared(made):
    a = made("a", seen=answers("nN"))
    predictions.append(RunFolder(Path(a)).predictions("grpo", "seen", 0), answers("yN"))
    found = compared(a, made("b", seen=answers("yN")))
    assert found["runs"][0]["stage"] == "grpo" and found["changed"] == []


def test_several_benchmarks_have_an_average(made):
    benchmark = {"benchmark": {"mvtec": {}, "visa": {}}}
    sides = [
        made(name, benchmark, mvtec=answers(m), visa=answers(v, prefix="v"))
        for name, m, v in (("a", "ynNN", "nnNN"), ("b", "yyNN", "ynNN"))
    ]
    found = compared(*sides)
    (mean,) = (r for r in found["differences"] if r["split"] == "average of 2"
               and r["metric"] == "balanced_accuracy")  # fmt: skip
    assert mean["delta"] == pytest.approx(25.0) and len(found["tests"]) == 2


# --- what is refused or said ---------------------------------------------------------------------


def test_other_images_are_refused_and_intersected_only_if_that_is_asked_for(made):
    a, b = made("a", seen=answers("ynNN")), made("b", seen=answers("yyN"))
    with pytest.raises(MismatchError, match=r"A 4, B 3; 3 the same.*stage.shared=true"):
        compared(a, b)
    found = compared(a, b, shared=True)
    assert found["tests"][0]["n"] == 3 == found["results"][0]["n"]
    assert any("compared on the 3 that all judged" in note for note in found["notes"])


def test_images_without_a_common_one_are_refused_in_any_case(made):
    a, b = made("a", seen=answers("yN")), made("b", seen=answers("yN", prefix="other"))
    with pytest.raises(MismatchError, match="0 the same"):
        compared(a, b, shared=True)


def test_other_labels_are_refused(made):
    a, b = made("a", seen=answers("yN")), made("b", seen=answers("YN"))
    with pytest.raises(MismatchError, match="another label"):
        compared(a, b)


def test_another_prompt_grid_and_other_references_are_said(made):
    other = {"evaluate": {"prompt": "base_test", "evaluator": "strict"},
             "grid": {"name": "2x2", "rows": 2, "cols": 2}}  # fmt: skip
    shown = [replace(row, references=("good",)) for row in answers("yN")]
    notes = compared(made("a", seen=answers("yN")), made("b", other, seen=shown))["notes"]
    assert any("evaluate.prompt: iad_r1_test and base_test" in note for note in notes)
    assert any("grid (3x3 and 2x2)" in note for note in notes)
    assert any("other references with 2 images" in note for note in notes)


def test_a_split_that_one_run_has_not_judged_is_said_and_none_in_common_is_refused(made):
    a, b = made("a", seen=answers("yN"), new=answers("yN")), made("b", seen=answers("yN"))
    assert any("new, 0-shot: judged by A, not by B" in note for note in compared(a, b)["notes"])
    with pytest.raises(MismatchError, match="no split and number of shots in common"):
        compared(a, made("c", old=answers("yN")))


def test_two_different_run_folders_are_asked_for(made, tmp_path):
    run = made("a", seen=answers("yN"))
    for runs in ("[]", f"[{run}]", f"[{run},{run}]"):
        with pytest.raises(ConfigError, match="needs two or more different runs"):
            compose.compose(["stage=compare", f"runs={runs}"])
    config = compose.compose(["stage=compare", "runs=[a,gone]"], tmp_path)
    assert isinstance(config.stage, stage.Settings)
    assert config.stage.runs == [run, str(tmp_path / "gone")]  # from where it is typed
    with pytest.raises(ConfigError, match="there is no run folder"):
        stage.Stage().check_inputs(config)


# --- what is written -----------------------------------------------------------------------------


def test_the_page_the_table_and_the_lists_say_the_same(made, tmp_path):
    a, b = made("a", seen=answers("nnnnnnnNN")), made("b", seen=answers("yyyyyyyNN"))
    samples = [
        Sample(row.id, "made", "seen", "<part>", Image.fromarray(np.full((8, 8, 3), 90, np.uint8)),
               Solution(row.gold_answer.capitalize()))
        for row in answers("nnnnnnnNN")
    ]  # fmt: skip
    gallery.save(Path(a), samples, 6)
    found = comparison.compare(comparison.load([a, b]), False, 0)
    comparison.write(found, tmp_path, 4)
    content = json.loads((tmp_path / "compare.json").read_text())
    rows = list(csv.DictReader((tmp_path / "compare.csv").open()))
    assert [row["metric"] for row in rows] == [r["metric"] for r in content["differences"]]
    assert (rows[0]["before"], rows[0]["after"], rows[0]["delta"]) == ("50.0", "100.0", "50.0")
    page = (tmp_path / "compare.html").read_text()
    assert page.count('class="card"') == 4 and 'data-change="mended"' in page
    assert "&lt;part&gt;" in page and "<part>" not in page
    console = Console(file=io.StringIO(), width=80)
    comparison.show(found, tmp_path, console)
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "A>B" in shown and "0:7" in shown and "0.016" in shown
    table = [line for line in shown.splitlines() if str(tmp_path) not in line]
    assert max(map(len, table)) <= 80
