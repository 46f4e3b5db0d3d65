"""The mean over benchmarks: which rows it takes, what it is, and how wide its interval is."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from iad_r1.judge import averages, intervals
from iad_r1.judge.compare import paired_difference
from iad_r1.judge.rates import summarise
from iad_r1.report import page, run_data, tables, terminal
from iad_r1.schema import Status
from iad_r1.types import Prediction

# GPT-4o-mini in Table 1 of IAD-R1, whose average is printed as 70.5
TABLE_1 = {"mvtec": 71.3, "mpdd": 67.9, "visa": 65.1, "dagm": 72.6, "dtd": 79.5, "sdd": 66.6}


def answers(split: str, right: float, seed: int, n: int = 200) -> list[Prediction]:
    """Of n pictures, half of them defective, about the share `right` judged correctly."""
    rng = np.random.default_rng(seed)
    found = []
    for index in range(n):
        gold = ("yes", "no")[index % 2]
        said = gold if rng.random() < right else {"yes": "no", "no": "yes"}[gold]
        found.append(
            Prediction(
                id=f"{split}/{index}", dataset=split, split=split, product="part", shots=0,
                gold_answer=gold, gold_location=None, gold_type=None,
                completion=f"<answer>{said}</answer>", status=Status.OK, answer=said,
                location=None, type=None, location_correct=None, type_correct=None,
                p_yes=0.9 if said == "yes" else 0.1, n_tokens=3, stop="stop",
            )
        )  # fmt: skip
    return found


def row(split: str, stage: str = "sft", right: float = 0.8, seed: int = 0) -> dict[str, Any]:
    place = {"stage": stage, "split": split, "shots": 0}
    return {**place, **summarise(answers(split, right, seed), 0)}


def test_the_average_of_the_papers_is_the_unweighted_mean_of_their_six_columns():
    rows = [{**row(split), "balanced_accuracy": value} for split, value in TABLE_1.items()]
    rows[0]["n"] = 100_000  # a large benchmark counts no more than a small one
    (found,) = averages.of_results(rows, TABLE_1)
    assert round(found["balanced_accuracy"], 1) == 70.5
    assert (found["split"], found["of"]) == ("average of 6", list(TABLE_1))
    assert found["n"] == 101_000


def test_stages_and_shots_have_averages_of_their_own_and_other_splits_have_none():
    rows = [row(split, stage) for stage in ("base", "sft") for split in ("mvtec", "visa", "seen")]
    found = averages.of_results(rows, ["mvtec", "visa"])
    assert [(one["stage"], one["of"]) for one in found] == [
        ("base", ["mvtec", "visa"]), ("sft", ["mvtec", "visa"]),
    ]  # fmt: skip
    assert averages.of_results(rows, ["mvtec"]) == [] == averages.of_results(rows, [])


def test_what_one_benchmark_does_not_define_has_no_average():
    rows = [row("mvtec"), row("visa")]
    rows[0]["location_accuracy"], rows[0]["ci95"]["location_accuracy"] = 40.0, [30.0, 50.0]
    (found,) = averages.of_results(rows, ["mvtec", "visa"])
    assert found["location_accuracy"] is None and "location_accuracy" not in found["ci95"]
    assert found["well_formed"] == 100.0


def test_the_interval_of_an_average_is_that_of_a_mean_of_independent_benchmarks():
    """Benchmarks are drawn 400 times; the interval covers the true mean as often as it says, and
    is narrower than that of one benchmark."""
    truth, rng, covered = {"a": 0.9, "b": 0.7, "c": 0.6}, np.random.default_rng(0), 0
    for _ in range(400):
        rows = []
        for split, share in truth.items():
            counts = [(int(rng.binomial(100, share)), 100) for _ in range(2)]
            bounds = {"balanced_accuracy": intervals.of_rates(counts, 0, 200)}
            value = {"balanced_accuracy": sum(k for k, _ in counts) / 2}
            undefined = dict.fromkeys(averages.AVERAGED)
            place = {"stage": "sft", "split": split, "shots": 0, "n": 200}
            rows.append({**place, **undefined, **value, "ci95": bounds})
        (found,) = averages.of_results(rows, truth)
        low, high = found["ci95"]["balanced_accuracy"]
        covered += low <= 100 * np.mean(list(truth.values())) <= high
        assert high - low < np.diff(rows[2]["ci95"]["balanced_accuracy"])
    assert 0.92 <= covered / 400 <= 0.98


def test_differences_are_averaged_like_the_numbers_they_are_of():
    rows, changes = [], []
    for split, before, after in (("mvtec", 0.6, 0.9), ("visa", 0.7, 0.72)):
        old, new = answers(split, before, 1), answers(split, after, 2)
        for stage, side in (("base", old), ("sft", new)):
            rows.append({"stage": stage, "split": split, "shots": 0, **summarise(side, 0)})
        for metric in ("balanced_accuracy", "type_accuracy"):
            found = paired_difference(old, new, metric, 0)
            place = {"from": "base", "to": "sft", "split": split, "shots": 0, "metric": metric}
            changes.append({**place, **found})
    old, new = averages.of_results(rows, ["mvtec", "visa"])
    accuracy, kinds = averages.of_comparisons(changes, ["mvtec", "visa"])
    assert accuracy["delta"] == pytest.approx(new["balanced_accuracy"] - old["balanced_accuracy"])
    assert accuracy["ci95"][0] < accuracy["delta"] < accuracy["ci95"][1]
    assert (accuracy["n"], accuracy["split"]) == (400, "average of 2")
    assert (kinds["delta"], kinds["ci95"]) == (None, None)
    # a metric that not all benchmarks compare has no average under the name of all
    assert len(averages.of_comparisons(changes[:3], ["mvtec", "visa"])) == 1


# --- where it is shown ---------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run that tested two benchmarks before and after PA-SFT."""
    rows: list[dict[str, Any]] = []
    config = {"name": "two", "seed": 0, "benchmark": {"mvtec": {}, "visa": {}}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "predictions").mkdir()
    for stage, right in (("base", 0.6), ("sft", 0.8)):
        for k, split in enumerate(("mvtec", "visa")):
            found = answers(split, right, k)
            path = tmp_path / "predictions" / f"{stage}.{split}.0shot.jsonl"
            path.write_text("".join(json.dumps(asdict(one)) + "\n" for one in found))
            rows.append({"stage": stage, "split": split, "shots": 0, **summarise(found, 0)})
    means = averages.of_results(rows, ["mvtec", "visa"])
    (tmp_path / "summary.json").write_text(json.dumps({"results": [*rows, *means]}))
    return tmp_path


def test_the_report_shows_the_average_below_its_benchmarks_and_checks_the_stored_one(folder):
    summary = json.loads((folder / "summary.json").read_text())
    summary["results"][-1]["balanced_accuracy"] += 1
    (folder / "summary.json").write_text(json.dumps(summary))
    text = page.build(folder).read_text()
    places = [text.index(f'<th colspan="4">{name}, 0-shot') for name in ("mvtec", "visa")]
    places.append(text.index('<th colspan="4">average of 2, 0-shot'))
    assert places == sorted(places)
    assert "unweighted mean of mvtec, visa" in " ".join(text.split())
    (notice,) = re.findall('<p class="notice">(.*summary.json.*)</p>', text)
    assert "average of 2" in notice, "and nothing else differs"
    changes = tables.comparisons(run_data.load(folder))
    mean = [row for row in changes if row["split"] == "average of 2"]
    assert {row["metric"] for row in mean} >= {"balanced_accuracy", "miss_rate", "overkill_rate"}
    assert {row["verdict"] for row in mean if row["metric"] == "miss_rate"} == {"better"}


def test_a_multiple_choice_is_not_averaged_with_verdicts(folder):
    chosen = [replace(one, gold_answer="A", answer="A") for one in answers("mmad", 1.0, 0)]
    for split in ("mmad_VisA", "mmad_GoodsAD"):
        path = folder / "predictions" / f"sft.{split}.0shot.jsonl"
        path.write_text("".join(json.dumps(asdict(one)) + "\n" for one in chosen))
    assert run_data.load(folder).benchmarks == ["mvtec", "visa"]
    for file in [path for path in folder.glob("predictions/*") if "mmad" not in path.name]:
        file.unlink()
    assert run_data.load(folder).benchmarks == ["mmad_GoodsAD", "mmad_VisA"]


def test_the_terminal_shows_the_average_and_says_what_it_is(folder, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(terminal, "PLAIN_WIDTH", 80)
    summary = json.loads((folder / "summary.json").read_text())
    terminal.print_summary(summary, folder)
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    first = [line.split()[0] for line in lines if "0-shot" in line]
    assert first == ["mvtec", "visa", "average"] and "average of 2" in shown
    assert "papers average balanced accuracy" in " ".join(shown.split())
    table = lines[: next(n for n, line in enumerate(lines) if line.startswith("Percent."))]
    assert max(map(len, table)) <= 80
    rows = [row for row in summary["results"] if "of" not in row]
    terminal.print_summary({"results": rows}, folder)
    assert "average" not in capsys.readouterr().out
