"""The paper's numbers beside ours, by hand, and what the paper says of itself."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pandas
import pytest

from iad_r1.judge import averages, paper
from iad_r1.report import paper_tables, published, terminal
from iad_r1.store.run_folder import RunFolder

CONFIG = {
    "backbone": {"name": "llava_ov_05b"}, "weights": {"name": "published"},
    "benchmark": {"mvtec": {}, "visa": {}, "mpdd": {}, "dagm": {}, "dtd": {}, "sdd": {}},
    "evaluate": {"limit": None}, "rewards": {"name": "sc_grpo"}, "grpo": {"from_base": False},
}  # fmt: skip

HUB = "llava-hf/llava-onevision-qwen2-0.5b-si-hf"


def result(split: str, value: float, stage: str = "base", shots: int = 0, **more: Any) -> dict:
    name = paper.NAMES.get(split, "")
    ci95 = {"balanced_accuracy": [value - 2, value + 1]}
    row = {"stage": stage, "split": split, "shots": shots, "n": paper.IMAGES.get(name, 100)}
    row |= {"balanced_accuracy": value, "ci95": ci95}
    return {**row, **more}


def beside(rows: list[dict], config: dict = CONFIG, trained: Any = None, hub: str = HUB) -> Any:
    return paper.beside(rows, config, trained or {}, hub)


def one(row: dict, **changed: Any) -> dict[str, Any]:
    (found,) = beside([row], {**CONFIG, **changed})
    return found


# ----------------------------------------------------------------------------- the table


def test_the_printed_averages_are_those_of_the_cells_except_where_the_paper_is_known_to_err():
    cells: dict[tuple, dict[str, float]] = {}
    for row in paper.rows():
        if row["table"] in ("T1", "T6", "T7") and row["setting"] == "0-shot":
            key = tuple(row[name] for name in ("table", "model", "params", "method"))
            cells.setdefault(key, {})[row["dataset"]] = row["value"]
    wrong = []
    for key, of_row in cells.items():
        assert {*of_row} == {*paper.SETS, paper.AVERAGE}, key
        mean = sum(of_row[name] for name in paper.SETS) / 6
        if abs(mean - of_row[paper.AVERAGE]) > paper.ROUNDING:
            wrong.append(key)
    assert len(cells) == 22 + 5 + 8
    assert wrong == [("T1", "LLaVA-OneVision-SI", "7B", "Anomaly-OV")]


def test_a_cell_that_the_paper_prints_twice_says_where_they_differ():
    sdd = paper.printed("LLaVA-OneVision-SI", "0.5B", paper.SFT, 0, "SDD")
    assert sdd == paper.Printed(90.7, "T4", ("T10 prints 96.0",))
    visa = paper.printed("LLaVA-OneVision-SI", "0.5B", paper.GRPO, 1, "VisA")
    assert visa == paper.Printed(66.9, "T4"), "66.8 elsewhere is a matter of rounding"
    assert paper.printed("Qwen2.5-VL-Instruct", "3B", "PA-SFT+SC-GRPO(never)", 0, "SDD") is None


def test_every_backbone_that_has_a_name_in_the_paper_has_numbers_in_it():
    for name, model in paper.MODELS.items():
        assert all(paper.printed(*model, paper.BASE, 0, of) for of in paper.SETS), name


# ------------------------------------------------------------------------- beside ours


def test_the_difference_is_ours_less_the_papers_and_so_is_its_interval():
    printed = paper.printed("LLaVA-OneVision-SI", "0.5B", paper.BASE, 0, "SDD")
    assert printed is not None
    row = one(result("sdd", printed.value + 1.5))
    assert row["difference"] == pytest.approx(1.5) and row["ci95"] == pytest.approx([-0.5, 2.5])
    assert row["table"] == "T4" and row["incomparable"] is None and row["notes"] == []


def test_a_set_of_another_size_is_said_and_still_compared():
    row = one(result("mvtec", 80.0, n=1725))
    assert row["notes"] == ["1,725 pictures here, 1,691 in the paper's list"]
    assert row["difference"] is not None


def test_a_lora_is_said_and_still_compared():
    trained, base = result("sdd", 80.0, stage="sft"), result("sdd", 80.0)
    lora = {"tuning": {"name": "lora"}}
    assert one(trained, **lora)["notes"][-1].startswith("LoRA here")
    assert one(trained, **lora)["difference"] is not None
    assert not any("LoRA" in note for note in one(base, **lora)["notes"])


@pytest.mark.parametrize("kind", ["tiny", "random"])
def test_weights_that_know_nothing_have_no_difference(kind):
    row = one(result("sdd", 50.0), weights={"name": kind})
    assert row["difference"] is None and row["ci95"] is None
    assert row["incomparable"] == f"the weights are {kind}, not the published ones"


def test_a_part_of_a_set_has_no_difference_and_neither_has_an_average_with_it():
    # The smallest set is tested whole, the others in part.
    rows = [result(name, 70.0, n=min(350, paper.IMAGES[paper.NAMES[name]]))
            for name in CONFIG["benchmark"]]  # fmt: skip
    rows += averages_of(rows)
    found = beside(rows, {**CONFIG, "evaluate": {"limit": 350}})
    whole = {row["dataset"] for row in found if row["difference"] is not None}
    assert whole == {"SDD"} and {row["dataset"] for row in found} == {*paper.SETS, "Average"}


def averages_of(rows: list[dict]) -> list[dict]:
    full = [{name: None for name in averages.AVERAGED} | row for row in rows]
    return averages.of_results(full, [row["split"] for row in rows])


def test_the_average_is_compared_over_the_papers_sets_alone():
    rows = [result(name, 70.0) for name in CONFIG["benchmark"]]
    average = beside([*rows, *averages_of(rows)], CONFIG)[-1]
    cells = [row["published"] for row in beside(rows, CONFIG)]
    assert average["dataset"] == "Average" and average["published"] == pytest.approx(sum(cells) / 6)
    some = rows[:3]
    assert all(r["dataset"] != "Average" for r in beside([*some, *averages_of(some)], CONFIG))


@pytest.mark.parametrize(
    ("stages", "changed", "method"),
    [
        (("sft",), {}, "PA-SFT"),
        (("grpo",), {}, "PA-SFT+SC-GRPO"),
        (("grpo",), {"grpo": {"from_base": True}}, "SC-GRPO(no PA-SFT)"),
        (("sft", "grpo"), {"grpo": {"from_base": True}}, "PA-SFT+SC-GRPO"),
        (("grpo",), {"rewards": {"name": "answer"}}, None),
        (("scored",), {}, None),
    ],
)
def test_a_stage_is_compared_with_the_method_that_trained_it(stages, changed, method):
    rows = [result("sdd", 80.0, stage) for stage in stages]
    found = beside(rows, {**CONFIG, **changed})
    assert (found[-1]["method"] if found else None) == method


def test_weights_of_an_earlier_run_are_named_after_what_trained_them(tmp_path):
    """Settings of the run that evaluates say nothing of it: they may be all defaults."""

    def run(name: str, tasks: list[str], init: Path | None = None, **changed: Any) -> RunFolder:
        folder = RunFolder(tmp_path / name / "2026")
        stage = {"tasks": [*tasks, "evaluate"]}
        config = {**CONFIG, **changed, "stage": stage, "init": init and str(init)}
        folder.write_json("config.json", config)
        for task in tasks:
            folder.checkpoint(task).mkdir(parents=True)
            (folder.checkpoint(task) / "config.json").write_text("{}")
        return folder

    alone: dict[str, Any] = {"grpo": {"from_base": True}}
    lora: dict[str, Any] = {"tuning": {"name": "lora"}}
    both = run("both", ["sft", "grpo"], **alone)
    only = run("only", ["grpo"], **alone, **lora)
    answer = run("answer", ["grpo"], both.path, rewards={"name": "answer"})
    named = []
    for init in (both.path, only.path, both.checkpoint("sft"), answer.path):
        judged = run("judged", [], init)
        stage = "sft" if init.name == "sft" else "grpo"
        (judged.path / "summary.json").write_text("{}")
        rows = published.of_paper(judged.path, [result("sdd", 80.0, stage)])
        named += [(row["method"], [n for n in row["notes"] if "LoRA" in n] != []) for row in rows]
    assert named == [(paper.GRPO, False), (paper.GRPO_ALONE, True), (paper.SFT, False)]
    only.config_file.rename(tmp_path / "elsewhere.json")
    gone = run("judged", [], only.path)
    (row,) = published.of_paper(gone.path, [result("sdd", 80.0, "grpo")])
    assert "the run that trained these weights is gone" in row["notes"][-1]


def test_other_weights_under_a_backbones_name_are_not_taken_for_the_papers():
    def read_from(path: str) -> dict[str, Any]:
        return one(result("sdd", 80.0), backbone={"name": "llava_ov_05b", "path": path})

    assert read_from(HUB)["notes"] == [] == read_from(f"/models/{HUB}")["notes"]
    other = read_from("me/my-llava")
    assert other["incomparable"] == f"the weights are those of me/my-llava, not of {HUB}"
    assert other["difference"] is None
    folder = read_from("/models/llava")
    assert folder["difference"] is not None
    assert folder["notes"] == [f"weights read from /models/llava, taken for those of {HUB}"]


def test_the_papers_own_lists_count_as_its_benchmarks_and_other_sets_do_not():
    assert one(result("industrial_test_DTD", 80.0), benchmark={"industrial_test": {}})[
        "dataset"
    ] == "DTD-Synthetic"  # fmt: skip
    photos = {**CONFIG, "benchmark": {"photos": {}}}
    assert beside([result("sdd", 80.0), result("photos", 80.0)], photos) == []
    tiny = {**CONFIG, "backbone": {"name": "tiny"}}
    assert beside([result("sdd", 80.0)], tiny) == []


def test_the_terminal_shows_them_and_why_not(tmp_path, capsys):
    row = {**result("sdd", 91.0, "sft"), "location_accuracy": None, "type_accuracy": None,
           "well_formed": None}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    terminal.print_summary({"results": [row]}, tmp_path)
    text = capsys.readouterr().out
    assert "90.7" in text and "~ +0.3 [−1.7, 1.3]" in text and "T10 prints 96.0" in text
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "weights": {"name": "tiny"}}))
    terminal.print_summary({"results": [row]}, tmp_path)
    text = capsys.readouterr().out
    assert "not comparable" in text and "the weights are tiny" in text and "+0.3" not in text


# ------------------------------------------------------------------- tables 1, 4 and 7


def lines_of(name: str, beside: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{str(k): v for k, v in row.items()}
            for row in paper_tables.table(name, beside).to_dict("records")]  # fmt: skip


def test_table_4_has_the_papers_rows_in_its_order_and_ours_below_their_own():
    rows = [result("sdd", 92.34, "sft"), result("visa", 60.0, "sft", shots=1)]
    lines = lines_of("T4", beside(rows, CONFIG))
    assert len(lines) == 7 * 3 + 1 and {line["source"] for line in lines} == {"paper", "here"}
    (at,) = (index for index, line in enumerate(lines) if line["source"] == "here")
    above, ours = lines[at - 1], lines[at]
    assert (above["model"], above["method"]) == ("LLaVA-OneVision-SI 0.5B", "PA-SFT")
    assert (above["SDD"], ours["SDD"], ours["VisA, 1-shot"]) == (90.7, 92.34, 60.0)
    assert above["Average"] == pytest.approx(82.68, abs=0.01) and math.isnan(ours["Average"])
    assert above[paper_tables.NOTES] == "SDD: T10 prints 96.0"


def test_table_1_says_which_of_its_cells_another_table_contradicts():
    lines = lines_of("T1", [])
    noted = {(r["model"], r["method"]): r for r in lines if r[paper_tables.NOTES]}
    assert len(lines) == 22 and {*noted} == {("LLaVA-OneVision-SI 7B", "Anomaly-OV")}
    (row,) = noted.values()
    assert row["VisA"] == 74.3 and row[paper_tables.NOTES] == "VisA: T7 prints 71.8"


def test_table_7_has_the_papers_columns_and_says_where_it_is_contradicted():
    rows = [result("sdd", 92.34, "grpo"), result("sdd", 50.0)]
    lines = lines_of("T7", beside(rows, CONFIG))
    names = list(lines[0])[3:-1]
    assert names == ["MVTec-AD", "DAGM", "DTD-Synthetic", "SDD", "MPDD", "VisA", "Average",
                     "MVTec-AD, 1-shot", "VisA, 1-shot", "Average, 1-shot"]  # fmt: skip
    assert [line["source"] for line in lines].count("paper") == 8
    (at,) = (index for index, line in enumerate(lines) if line["source"] == "here")
    assert lines[at - 1]["method"] == lines[at]["method"] == paper.GRPO, "it prints no base model"
    assert (lines[at - 1]["SDD"], lines[at]["SDD"]) == (88.6, 92.34)
    seven = {(r["model"], r["method"]): r for r in lines}["LLaVA-OneVision-SI 7B", "Anomaly-OV"]
    assert seven["VisA"] == 71.8 and "VisA: T1 prints 74.3" in seven[paper_tables.NOTES]
    for line in lines:  # the averages that it prints are those of its cells
        if line["source"] == "paper":
            for cells, mean in ((names[:6], "Average"), (names[7:9], "Average, 1-shot")):
                assert sum(line[n] for n in cells) / len(cells) == pytest.approx(
                    line[mean], abs=0.0501
                )


def test_the_tables_are_written_in_three_formats_with_the_same_rows():
    found = paper_tables.files(beside([result("sdd", 92.34, "sft")]))
    assert {*found} == {f"table{n}.{kind}" for n in (1, 4, 7) for kind in ("csv", "md", "tex")}
    read = pandas.read_csv(io.StringIO(found["table4.csv"]), keep_default_na=False)
    assert "92.34" in set(read["SDD"].astype(str))
    lines = found["table4.md"].splitlines()
    assert len(lines) == len(read) + 2 and len({line.count("|") for line in lines}) == 1
    latex = found["table4.tex"]
    assert latex.count("\\\\") == len(read) + 1 and " 92.3 " in latex
    assert paper_tables.files([]) == {}


def test_a_row_that_cannot_be_compared_says_so_in_the_table():
    found = beside([result("sdd", 50.0)], {**CONFIG, "weights": {"name": "tiny"}})
    sources = [line["source"] for line in lines_of("T4", found)]
    assert sources.count("here, not comparable") == 1 and "here" not in sources
