"""MMAD's published accuracies, and ours beside them."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from iad_r1.judge import mmad, mmad_published
from iad_r1.report import terminal

MODEL = "Qwen2.5-VL-7B-Instruct"
CONFIG: dict[str, Any] = {"backbone": {"name": "qwen25vl_7b"}, "weights": {"name": "published"}}

HUB = "Qwen/Qwen2.5-VL-7B-Instruct"


def beside(found: list[Any], config: dict[str, Any], hub: str = HUB) -> list[dict[str, Any]]:
    return mmad_published.beside(found, config, hub)


def table(sets: tuple[str, ...] = tuple(mmad_published.QUESTIONS), add: float = 2.0) -> Any:
    """A table that is so many points above the published one, give or take 1."""
    theirs = mmad_published.cells()[MODEL, 1]

    def rates(name: str) -> dict[str, float]:
        return {
            task: theirs[name, mmad.AVERAGE if task == "average" else task] + add
            for task in (*mmad.SUBTASKS, "average")
        }

    intervals = {
        name: {task: [value - 1, value + 1] for task, value in rates(name).items()}
        for name in (*sets, mmad.AVERAGE)
    }
    questions = mmad_published.QUESTIONS
    return {
        "stage": "base", "shots": 1, "average": rates(mmad.AVERAGE), "intervals": intervals,
        "sets": {n: {"n": sum(questions[n]), "invalid": 0, "strict": rates(n)} for n in sets},
    }  # fmt: skip


def test_the_published_averages_recompute():
    for (model, shots), cells in mmad_published.cells().items():
        for name in (*mmad_published.QUESTIONS, mmad.AVERAGE):
            mean = sum(cells[name, task] for task in mmad.SUBTASKS) / len(mmad.SUBTASKS)
            assert cells[name, mmad.AVERAGE] == pytest.approx(mean), (model, shots, name)
        for task in mmad.SUBTASKS:
            of_sets = [cells[name, task] for name in mmad_published.QUESTIONS]
            assert cells[mmad.AVERAGE, task] == pytest.approx(sum(of_sets) / 4)


def test_four_models_left_questions_out_and_all_others_answered_all():
    found = {model: mmad_published.broken(model, shots) for model, shots in mmad_published.cells()}
    assert {model: n for model, n in found.items() if n} == {
        "claude-3-5-sonnet-20241022": 30, "gemini-1.5-pro": 26, "gemini-1.5-flash": 18, "gpt-4o": 8,
    }  # fmt: skip
    assert sum(map(sum, mmad_published.QUESTIONS.values())) == 39_672


def test_a_difference_is_ours_less_the_published_with_our_interval():
    (found,) = beside([table()], CONFIG)
    assert (found["model"], found["incomparable"], found["notes"]) == (MODEL, None, [])
    assert len(found["rows"]) == 5 * 8
    for row in found["rows"]:
        assert row["difference"] == pytest.approx(2.0) and row["ci95"] == pytest.approx([1, 3])
    whole = next(r for r in found["rows"] if (r["dataset"], r["subtask"]) == ("Average", "average"))
    assert whole["published"] == pytest.approx(72.19, abs=0.01)


def test_some_of_the_sets_have_no_average_and_other_weights_no_difference():
    (found,) = beside([table(("VisA",))], CONFIG)
    assert {row["dataset"] for row in found["rows"]} == {"VisA"}
    (tiny,) = beside([table()], {**CONFIG, "weights": {"name": "tiny"}})
    assert "not the published ones" in tiny["incomparable"]
    assert all(row["difference"] is row["ci95"] is None for row in tiny["rows"])
    (cut,) = beside([table()], {**CONFIG, "evaluate": {"limit": 100}})
    assert "evaluate.limit" in cut["incomparable"]
    assert not beside([table() | {"stage": "sft"}, table() | {"shots": 0}], CONFIG)


def test_a_published_model_is_known_by_its_hub_id_and_other_weights_are_not_taken_for_it():
    def named(path: str) -> list[tuple[str, bool]]:
        config = {**CONFIG, "backbone": {"name": "qwen25vl_7b", "path": path}}
        notes = [(found["model"], found["notes"] != []) for found in beside([table()], config)]
        assert bool(notes) == (mmad_published.without([table()], config, HUB) is None)
        return notes

    assert named(HUB) == named(f"/models/{HUB}") == [(MODEL, False)]
    assert named("Qwen/Qwen2-VL-7B-Instruct") == [("Qwen2-VL-7B-Instruct", False)]
    assert named("me/my-qwen") == []
    assert named("/models/mine") == [(MODEL, True)], "it may be a copy: that is said"


def test_why_no_published_table_stands_beside_ours():
    said = f"MMAD has published {MODEL} untrained and 1-shot only."
    for other in ({"stage": "sft"}, {"shots": 0}):
        assert mmad_published.without([table(), table() | other], CONFIG, HUB) == said
    assert mmad_published.without([table()], CONFIG, HUB) is None
    assert mmad_published.without([], {"backbone": {"name": "tiny"}}, None) is None


def test_our_averages_stand_among_those_of_all_published_models():
    ours = table(add=0.0) | {"stage": "grpo"}
    rows = mmad_published.standing([ours, table(("VisA",))])
    assert len(rows) == 22 + 1, "the average of some sets is no average of all"
    at = next(place for place, row in enumerate(rows) if row["stage"] == "grpo")
    same = next(row for row in rows if row["model"] == MODEL)
    assert rows[at]["rates"] == pytest.approx(same["rates"])
    assert [row["average"] for row in rows] == sorted([r["average"] for r in rows], reverse=True)
    assert {row["model"] for row in rows if row["shots"] == 0} == {"SPHINX-v2-1k", "cambrian-8b"}
    assert sum(row["flatters"] for row in rows) == 4
    assert mmad_published.standing([table(("VisA",))]) == []


def test_what_differs_from_the_published_protocol_is_said():
    other = table()
    other["sets"]["VisA"] |= {"n": 10_000, "invalid": 3}
    other["choices"] = "logprob"
    api = {"backbone": {"name": "api", "model": "gpt-4o"},
           "benchmark": {"mmad": {"knowledge": True, "templates": "random"}}}  # fmt: skip
    (found,) = beside([other], api)
    said = "; ".join(found["notes"])
    for words in ("8 of 32 published cells", "3 answers could not be read", "knowledge=True",
                  "likeliest letter",
                  "VisA: 10,000 questions here, 10,622 published"):  # fmt: skip
        assert words in said
    lines = list(terminal._mmad_published_notes(found))
    assert len(lines) == len(found["notes"])


def test_the_terminal_shows_the_average_of_all_sets_or_those_that_were_asked():
    def shown(*sets: str, **config: Any) -> str:
        (found,) = beside([table(sets)], {**CONFIG, **config})
        console = Console(file=io.StringIO(), width=120)
        console.print(terminal._mmad_published(found))
        assert isinstance(console.file, io.StringIO)
        return " ".join(console.file.getvalue().split())

    whole = shown(*mmad_published.QUESTIONS)
    assert "all Defect Classification 56.0 58.0 +2.0 [1.0, 3.0]" in whole
    assert "all average 72.2 74.2" in whole and "VisA" not in whole
    assert "VisA average 70.6 72.6 not comparable" in shown("VisA", weights={"name": "tiny"})
