"""`stage=report runs=[...]`: several runs on one page, what they share and in what they differ."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markupsafe import Markup
from PIL import Image

from iad_r1.command import compose
from iad_r1.errors import ConfigError, DataError, MismatchError
from iad_r1.judge import averages, paper, predictions
from iad_r1.judge.rates import summarise
from iad_r1.report import (
    cards,
    comparison,
    figures,
    gallery,
    joined,
    overlay,
    page,
    paper_tables,
    published,
    run_data,
    several,
    story,
    tables,
    training,
)
from iad_r1.report.wording import MINUS
from iad_r1.stages import find
from iad_r1.store.run_folder import RunFolder
from iad_r1.types import Prediction, Sample, Solution

CONFIG: dict[str, Any] = {
    "name": "made", "seed": 0, "backbone": {"name": "tiny", "source": "built"},
    "data": {"name": "photos"}, "grid": {"name": "3x3", "rows": 3, "cols": 3},
    "evaluate": {"limit": None},
}  # fmt: skip


def answers(said: str) -> list[Prediction]:
    """One image per letter: y and n are answers to defects, Y and N to good parts."""
    return [
        Prediction(
            id=f"{i}", dataset="made", split="seen", product="part", shots=0,
            gold_answer="yes" if letter in "yn" else "no", gold_location=None, gold_type=None,
            completion="<think>It is clean.</think>", status="ok",
            answer="yes" if letter in "yY" else "no", location=None, type=None,
            location_correct=None, type_correct=None, p_yes=None, n_tokens=1, stop="stop",
        )
        for i, letter in enumerate(said)
    ]  # fmt: skip


def write(folder: RunFolder, stage: str, rows: list[Prediction]) -> dict[str, Any]:
    predictions.append(folder.predictions(stage, "seen", 0), rows)
    return {"stage": stage, "split": "seen", "shots": 0, **summarise(rows, 0)}


Make = Callable[..., str]


@pytest.fixture
def made(tmp_path: Path) -> Make:
    """`made("a", "yyNN")`: a run that answers so; returns its path."""

    def make(name: str, said: str, changed: dict[str, Any] | None = None) -> str:
        folder = RunFolder(tmp_path / name / "2026-01-01")
        folder.write_json("config.json", {**CONFIG, **(changed or {})})
        rows = [write(folder, "sft", answers("nnNN")), write(folder, "grpo", answers(said))]
        folder.update_summary(results=rows, seconds={"evaluate": 1.5}, **(
            {"thresholds": [{"stage": stage, "split": "seen"} for stage in ("sft", "grpo")]}
        ))  # fmt: skip
        samples = [
            Sample(row.id, "made", "seen", "part",
                   Image.fromarray(np.full((8, 8, 3), 90, np.uint8)),
                   Solution(row.gold_answer.capitalize()))
            for row in answers(said)
        ]  # fmt: skip
        gallery.save(folder.path, samples, 3)
        steps = [{"stage": "grpo", "step": n, "reward": n / 10, "length_mean": 9, "lr": 1}
                 for n in range(3)]  # fmt: skip
        (folder.path / "metrics.jsonl").write_text("".join(json.dumps(s) + "\n" for s in steps))
        return str(folder.path)

    return make


@pytest.fixture
def together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., run_data.RunData]:
    """The runs put together and read back; the page is not drawn."""
    monkeypatch.setattr(joined.report, "build", lambda folder: folder)

    def put(*runs: str) -> run_data.RunData:
        folder = RunFolder(tmp_path / "joined")
        folder.write_json("config.json", {"name": "report-tiny", "backbone": {"name": "other"}})
        joined.gather(folder, runs)
        return run_data.load(folder.path)

    return put


def test_each_run_stands_under_its_label_with_the_last_weights_it_has_evaluated(made, together):
    run = together(made("b", "yyNN"), made("a", "ynNN"))
    assert [item.stage for item in run.evaluations] == ["b_grpo", "a_grpo"], "as they were named"
    assert [row["stage"] for row in run.summary["results"]] == ["b_grpo", "a_grpo"]
    assert [row["stage"] for row in run.summary["thresholds"]] == ["b_grpo", "a_grpo"]
    assert run.summary["results"][0]["balanced_accuracy"] == 100.0
    assert run.summary["seconds"] == {"b_grpo": 1.5, "a_grpo": 1.5}
    assert len(run.pictures) == 3, "those of both runs once"
    assert not run.missing


def test_what_the_runs_do_not_share_is_listed_and_is_no_setting_of_the_page(made, together):
    other = {"seed": 1, "grid": {"name": "2x2", "rows": 2, "cols": 2}, "name": "else"}
    run = together(made("a", "yyNN"), made("b", "yyNN", other))
    assert "seed" not in run.config and run.grid is None and run.config["data"] == CONFIG["data"]
    assert dict(several.differences(run.members)) == {
        "seed": ["0", "1"], "grid.name": ["3x3", "2x2"], "grid.rows": ["3", "2"],
        "grid.cols": ["3", "2"],
    }  # fmt: skip
    rows = [row["metric"] for row in tables.comparisons(run)]
    assert "balanced_accuracy" in rows and "location_accuracy" not in rows


def test_every_run_is_compared_with_the_first_on_the_same_images(made, together):
    run = together(made("a", "nnNN"), made("b", "yyNN"), made("c", "yyNY"))
    changes = [row for row in tables.comparisons(run) if row["metric"] == "balanced_accuracy"]
    assert [(row["from"], row["to"], row["delta"]) for row in changes] == [
        ("a_grpo", "b_grpo", 50.0), ("a_grpo", "c_grpo", 25.0)
    ]  # fmt: skip
    views = cards.views(run)
    assert [view["before"] for view in views] == [None, 0, 0]
    changed = [
        [answer["change"] for answer in card["answers"]]
        for card in cards.cards(run, views, cards.asked(run, views))
    ]
    assert ["", "mended", "mended"] in changed
    assert not list(tables.unlike(run))


def test_a_picture_that_the_first_run_was_not_asked_about_is_not_mended(made, together):
    runs = [made(name, said) for name, said in (("a", "yyNN"), ("b", "nnNN"), ("c", "yyNN"))]
    for run in runs[1:]:
        source = Path(run) / "predictions" / "grpo.seen.0shot.jsonl"
        source.rename(source.with_name("grpo.seen.1shot.jsonl"))
    views = cards.views(together(*runs))
    assert [(view["stage"], view["before"]) for view in views] == [
        ("a_grpo", None), ("b_grpo", None), ("c_grpo", None)
    ]  # fmt: skip


def test_without_a_common_image_reference_pictures_change_nothing(made, together):
    run = together(made("a", "yyNN"), made("b", "yyNN"))
    item = run.evaluations[0]
    rows = tuple(replace(row, id=f"other{row.id}", shots=1) for row in item.predictions)
    more = replace(item, shots=1, predictions=rows)
    assert tables.reference_gain(replace(run, evaluations=(item, more))) == []


def test_each_run_has_the_thresholds_that_it_was_asked_for(made, together):
    runs = [made(name, "yyNN", {"evaluate": {"at_miss": limit, "limit": None}})
            for name, limit in (("a", 1.0), ("b", 20.0))]  # fmt: skip
    for run in runs:
        file = Path(run) / "predictions" / "grpo.seen.0shot.jsonl"
        file.unlink()
        predictions.append(file, [replace(row, p_yes=0.5) for row in answers("yyNN")])
    limits = {(r["stage"], r["rule"]): r["limit"] for r in tables.thresholds(together(*runs))}
    assert limits["a_grpo", "miss"] == 1.0 and limits["b_grpo", "miss"] == 20.0


def test_other_images_are_left_out_of_a_comparison_and_counted(made, together):
    first, second = made("a", "nnNN"), made("b", "yyNNN")
    run = together(first, second)
    (row,) = (r for r in tables.comparisons(run) if r["metric"] == "balanced_accuracy")
    assert (row["n"], row["delta"]) == (4, 50.0)
    (said,) = tables.unlike(run)
    assert "(4 and 5); compared on the 4 that both judged" in said
    best = story.ranking(run, tables.summaries(run))
    assert best and "judged different images, and on the 4 of both it is better" in best


def test_without_a_common_image_there_is_no_difference_and_that_is_said(made, together):
    first, second = made("a", "yyNN"), made("b", "yyNN")
    file = Path(second) / "predictions" / "grpo.seen.0shot.jsonl"
    rows = [replace(row, id=f"other{row.id}") for row in answers("yyNN")]
    file.unlink()
    predictions.append(file, rows)
    run = together(first, second)
    assert tables.comparisons(run) == []
    assert "so they are not compared" in " ".join(tables.unlike(run))
    assert tables.products(run, run.evaluations[1])["rows"][0]["change"]["delta"] is None


def test_the_same_images_with_other_labels_are_refused(made, together):
    with pytest.raises(MismatchError, match="another label"):
        together(made("a", "yyNN"), made("b", "yYNN"))


def test_curves_of_all_runs_share_a_panel(made, together):
    run = together(made("a", "yyNN"), made("b", "yyNN"))
    panels = training.panels(run)["grpo"]
    assert set(panels) == {"reward", "length_mean"}
    assert list(panels["reward"]) == ["a_grpo", "b_grpo"]
    assert list(training.dynamics(panels)["total reward"]) == ["a_grpo", "b_grpo"]


def test_a_broken_line_of_a_runs_curves_is_named(made, together):
    file = Path(made("a", "yyNN")) / "metrics.jsonl"
    file.write_text(file.read_text() + '{"stage": "gr')
    with pytest.raises(DataError, match=r"metrics.jsonl, line 4: not JSON"):
        together(str(file.parent), made("b", "yyNN"))


def test_the_first_sentence_says_which_is_best_and_whether_it_may_be_chance(made, together):
    run = together(made("a", "yyNN"), made("b", "ynNN"), made("c", "nnNN"))
    said = story.ranking(run, tables.summaries(run))
    assert said == (
        "3 runs: on products seen in training the best balanced accuracy is that of a_grpo "
        "100.0\xa0%, next is b_grpo 75.0\xa0%, which may be chance."
    )
    alike = [row for row in tables.summaries(run) if row["stage"] != "b_grpo"]
    said = story.ranking(run, [{**row, "balanced_accuracy": 50.0} for row in alike])
    assert said and "a_grpo and c_grpo have the same balanced accuracy, 50.0\xa0%" in said


def test_the_first_sentence_says_of_a_mean_over_benchmarks_too_whether_it_may_be_chance(
    made, together
):
    """Two benchmarks of the same answers: the mean is as sure as they are, and both count."""
    both = {"benchmark": {"seen": {}, "other": {}}}
    runs = [made(name, said, both) for name, said in (("a", "y" * 40 + "N" * 40),
                                                      ("b", "n" * 40 + "N" * 40))]  # fmt: skip
    for run in runs:
        file = Path(run) / "predictions" / "grpo.seen.0shot.jsonl"
        shutil.copyfile(file, file.with_name("grpo.other.0shot.jsonl"))
    run = together(*runs)
    means = averages.of_results(tables.summaries(run), run.benchmarks)
    assert story.ranking(run, means) == (
        "2 runs: on average of 2 the best balanced accuracy is that of a_grpo 100.0\xa0%, next is "
        "b_grpo 50.0\xa0%, and that is clear."
    )
    changes = tables.comparisons(run)
    said = list(story.warnings([*tables.summaries(run), *means], changes, run.evaluations))
    assert any("average of 2, 0-shot: b_grpo differs from a_grpo by" in line for line in said)
    same = [replace(row, answer="yes") for row in run.evaluations[0].predictions]
    alike = replace(run, evaluations=tuple(replace(e, predictions=tuple(same)) if e.split == "seen"
                                           else e for e in run.evaluations))  # fmt: skip
    far = [{**row, "balanced_accuracy": value} for row, value in zip(means, (80, 79), strict=True)]
    assert "and that is clear" in (story.ranking(alike, far) or ""), "one of the two still tells"
    nothing = replace(run, evaluations=tuple(replace(e, predictions=tuple(same))
                                             for e in run.evaluations))  # fmt: skip
    assert "which may be chance" in (story.ranking(nothing, far) or "")


def test_what_the_first_run_did_not_judge_is_compared_with_nothing_and_that_is_said(made, together):
    """Not with whichever run comes next, which no sentence would name."""
    runs = [made(name, said) for name, said in (("a", "yyNN"), ("b", "nnNN"), ("c", "yyNN"))]
    file = Path(runs[0]) / "predictions" / "grpo.seen.0shot.jsonl"
    file.rename(file.with_name("grpo.elsewhere.0shot.jsonl"))
    run = together(*runs)
    assert run.stages == ["a_grpo", "b_grpo", "c_grpo"], "as named, whoever judged the first split"
    assert tables.comparisons(run) == []
    seen = [item for item in run.evaluations if item.split == "seen"]
    assert [tables.products(run, item)["before"] for item in seen] == [None, None]
    said = "seen, 0-shot: a_grpo did not judge it, so the other runs are not compared there."
    assert list(tables.unlike(run)) == [said] and run.summary["notes"] == [said]
    groups = page._groups(run.stages, tables.summaries(run), [])
    assert all(group["stages"] == run.stages for group in groups)


def test_the_terminal_says_how_each_run_differs_from_the_first(made, together, capsys):
    together(made("a", "yyNN"), made("b", "ynNN"), made("c", "nnNN"))
    said = " ".join(capsys.readouterr().out.split())
    for label, points in (("b_grpo", "25.0"), ("c_grpo", "50.0")):
        assert f"{label} differs from a_grpo by {MINUS}{points} points of balanced" in said
    assert "last change" not in said and "marked ~" not in said
    together(made("d", "yyNN"), made("e", "yyNN"))
    said = " ".join(capsys.readouterr().out.split())
    assert "seen, 0-shot: e_grpo and d_grpo judge no image differently." in said


def test_a_run_of_several_models_keeps_its_label_beside_others(made, together, tmp_path):
    source = Path(made("a", "yyNN"))
    for label in ("qwen25vl_3b", "mine"):
        shutil.copytree(source, tmp_path / "both" / "2026" / "models" / label)
    (tmp_path / "both" / "2026" / "config.json").write_text("{}")
    models = [str(tmp_path / "both" / "2026" / "models" / n) for n in ("qwen25vl_3b", "mine")]
    run = together(*models, str(source))
    assert [member.label for member in run.members] == ["qwen25vl_3b", "mine", "a_grpo"]


def test_nearest_good_patches_that_are_left_out_are_said_and_none_of_another_split_is(
    made, together
):
    """They are the same beside every run on the same pictures; on others they are not."""
    runs = [made(name, "yyNN") for name in "abc"]
    for run, said, split in zip(runs, ("ynNN", "ynNNNN", "ynNN"), ("seen", "seen", "new"),
                                strict=True):  # fmt: skip
        folder = RunFolder(Path(run))
        predictions.append(folder.predictions("patchcore", split, 0), answers(said))
        folder.update_summary(baselines=[{"stage": "patchcore", "split": split, "n": len(said)}])
    run = together(*runs)
    assert [(row["split"], row["n"]) for row in run.summary["baselines"]] == [
        ("seen", 4),
        ("new", 4),
    ]
    (said,) = run.summary["notes"]
    assert "seen: beside b_grpo nearest good patches judged other pictures" in said
    assert len(run.baselines["seen"].predictions) == 4, "those of a stay"
    other = replace(run, baselines={"seen": replace(run.baselines["seen"], predictions=())})
    assert "nearest good patches and a_grpo judged different images (0 and 4)" in " ".join(
        tables.unlike(other)
    )


def test_every_stage_of_every_run_stands_beside_the_papers_numbers(made, together):
    """Each as its own folder calls it, so that a PA-SFT before counts though it is not shown."""
    chosen = {"backbone": {"name": "llava_ov_05b"}, "benchmark": {"sdd": {}},
              "rewards": {"name": "sc_grpo"}, "grpo": {"from_base": True},
              "stage": {"tasks": ["sft", "grpo"]}}  # fmt: skip
    runs = []
    for name in "ab":
        runs.append(made(name, "yyNN", chosen))
        folder = RunFolder(Path(runs[-1]))
        rows = [{**row, "split": "sdd"} for row in folder.summary()["results"]]
        folder.update_summary(results=rows)
        for file in (folder.path / "predictions").glob("*"):
            file.rename(file.with_name(file.name.replace(".seen.", ".sdd.")))
    run = together(*runs)
    rows = published.of_paper(run.folder, [])
    assert [(row["run"], row["stage"], row["method"]) for row in rows] == [
        (f"{name}_grpo", stage, method) for name in "ab"
        for stage, method in (("sft", paper.SFT), ("grpo", paper.GRPO))
    ]  # fmt: skip
    drawn: list[Any] = []

    def keep(_name: str, drawing: Any) -> Markup:
        drawn.append(drawing)
        return Markup()

    page._bars(run, tables.summaries(run), rows, keep)
    assert "the paper" in drawn[0].svg
    sources = set(paper_tables.table("T4", rows)["source"])
    assert {"here: a_grpo", "here: b_grpo"} <= sources


def test_a_heat_map_of_any_run_is_shown_with_the_picture(made, together):
    runs = [made(name, "yyNN") for name in "ab"]
    one = gallery.read(Path(runs[1]))[0]
    heat = Path(runs[1]) / Path(one["image"]).with_suffix(".heat.png")
    overlay.heat_layer(np.ones((4, 4))).save(heat)
    run = together(*runs)
    views = cards.views(run)
    heated = [c["heat"] != "" for c in cards.cards(run, views, cards.asked(run, views))]
    assert heated == [picture["id"] == one["id"] for picture in run.pictures]
    apart = comparison._as_one(comparison.compare(comparison.load(runs), False, 0))
    assert [bool(p["heat"]) for p in apart.pictures].count(True) == 1


def test_the_page_names_the_runs_their_folders_and_what_asking_cost(made, together, monkeypatch):
    monkeypatch.setattr(figures.Drawing, "png", lambda drawing: b"")
    runs = made("a", "yyNN"), made("b", "yyNN", {"seed": 7})
    for number, run in enumerate(runs):
        RunFolder(Path(run)).update_summary(asked={"replies": 40 + number, "dollars": 0.25})
    folder = together(*runs).folder
    html = page.build(folder).read_text(encoding="utf-8")
    text = " ".join(html.split())
    for said in (*runs, "<h1>Inspection report: a_grpo, b_grpo</h1>", "<td>seed</td><td>0</td>",
                 "wrong by a_grpo, right here",
                 "<td>b_grpo</td><td>41</td><td>0.25</td>"):  # fmt: skip
        assert said in text, said
    assert "last change" not in text and 'class="notice"' not in text


def test_what_cannot_stand_side_by_side_is_refused_before_anything_starts(made, together, tmp_path):
    one, two = made("a", "yyNN"), made("b", "yyNN")
    for typed, said in (
        ([f"runs=[{one}]"], "two or more different runs"),
        ([f"runs=[{one},{one}]"], "two or more different runs"),
        ([f"runs=[{one},{two}]", f"init={one}"], "add it to runs instead"),
    ):
        with pytest.raises(ConfigError, match=said):
            compose.compose(["stage=report", *typed])
    stage = find("report")
    stage.check_inputs(compose.compose(["stage=report", f"runs=[{one},{two}]"]))
    holds_both = str(together(one, two).folder)
    RunFolder(Path(two)).update_summary(results=[])
    for other, said in ((two, "was not evaluated"), (holds_both, "holds several runs already")):
        with pytest.raises(DataError, match=said):
            stage.check_inputs(compose.compose(["stage=report", f"runs=[{one},{other}]"]))
    with pytest.raises(DataError, match="holds several runs already"):
        comparison.load([one, holds_both])
