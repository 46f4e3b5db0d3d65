"""What a run prints: progress while it works, a table when it is done."""

from __future__ import annotations

import io
import json
import re
import shlex
import sys

import pytest
from rich.console import Console

from iad_r1.report import terminal, wording
from iad_r1.store import progress


class Clock:
    """A clock that only moves when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


def run(clock: Clock, steps: int, seconds: float, **scalars: float) -> None:
    with progress.progress("SC-GRPO [x]", steps) as bar:
        for _ in range(steps):
            clock.now += seconds
            bar.advance(1, **scalars)


# ------------------------------------------------------------------------------ progress


def test_a_log_file_gets_about_ten_lines_with_the_time_left(clock, capsys):
    run(clock, 100, 1.0, reward=0.512345, kl=0.00012)
    lines = capsys.readouterr().out.splitlines()
    assert 9 <= len(lines) <= 11
    assert lines[4].startswith("SC-GRPO [x] 50/100  50 s, 50 s left")
    assert lines[4].endswith("reward 0.512  kl 1.2e-04")
    assert "100/100" in lines[-1] and not any("\x1b" in line for line in lines)


def test_slow_steps_are_heard_of_every_half_minute(clock, capsys):
    run(clock, 1000, 16.0)
    lines = capsys.readouterr().out.splitlines()
    assert 480 <= len(lines) <= 520, "one line in 32 s"


def test_a_quick_loop_does_not_flood_the_log(clock, capsys):
    run(clock, 1000, 0.001)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 and "1000/1000" in lines[0]


def test_several_steps_may_be_done_at_once(clock, capsys):
    with progress.progress("evaluate", 130) as bar:
        for _ in range(3):
            clock.now += 3
            bar.advance(64)
    assert "192/130" in capsys.readouterr().out.splitlines()[-1]


def test_nothing_to_do_is_no_error(capsys):
    with progress.progress("evaluate", 0) as bar:
        bar.advance(0)
    assert capsys.readouterr().out == ""


def test_a_terminal_gets_a_bar_with_live_numbers(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(
        progress, "Console", lambda: Console(file=screen, force_terminal=True, width=120)
    )
    with progress.progress("PA-SFT [x]", 4) as bar:
        for step in range(4):
            bar.advance(loss=0.5 * step)
    shown = re.sub(r"\x1b\[[^A-Za-z]*[A-Za-z]", "", screen.getvalue())
    assert "PA-SFT [x]" in shown and "4/4" in shown and "loss 1.5" in shown and "━" in shown


def test_an_error_inside_is_not_swallowed(clock):
    with pytest.raises(ZeroDivisionError), progress.progress("x", 2) as bar:
        bar.advance(reward=1 / 0)


# ------------------------------------------------------------------------------- summary


def result(stage: str, split: str, balanced: float | None) -> dict[str, object]:
    return {
        "stage": stage, "dataset": "made", "split": split, "shots": 0, "n": 1234,
        "balanced_accuracy": balanced, "location_accuracy": None, "type_accuracy": 30.0,
        "well_formed": 100.0,
        "ci95": {} if balanced is None else {"balanced_accuracy": [balanced - 2, balanced + 2]},
    }  # fmt: skip


def test_what_nearest_good_patches_reach_is_said_below_the_table(tmp_path, capsys):
    patches = {**result("patchcore", "new", 92.7), "auroc": 97.9}
    patches["ci95"] = {"balanced_accuracy": [88.6, 96.7], "auroc": [96.0, 99.3]}
    said = (
        "new: nearest good patches, untrained, reach balanced accuracy 92.7 [88.6, 96.7], AUROC "
        "97.9 [96.0, 99.3]."
    )
    for summary in (
        {"results": [result("grpo", "new", 70.0)], "baselines": [patches]},
        {"results": [patches]},
    ):
        terminal.print_summary(summary, tmp_path)
        assert said in " ".join(capsys.readouterr().out.split())


def change(split: str, delta: float, low: float, high: float) -> dict[str, object]:
    return {"from": "sft", "to": "grpo", "split": split, "shots": 0,
            "metric": "balanced_accuracy", "delta": delta, "ci95": [low, high]}  # fmt: skip


SUMMARY = {
    "results": [
        result("sft", "seen", 93.04), result("grpo", "seen", 93.44),
        result("sft", "new", 58.4), result("grpo", "new", 66.8),
    ],
    "comparisons": [change("seen", 0.4, -0.6, 1.4), change("new", 8.4, 5.5, 11.2)],
    "seconds": {"sft": 200.0, "grpo": 292.0},
}  # fmt: skip


def printed(capsys, summary, folder) -> str:
    terminal.print_summary(summary, folder)
    return capsys.readouterr().out


def test_before_and_after_stand_side_by_side_with_their_intervals(tmp_path, capsys):
    text = printed(capsys, SUMMARY, tmp_path)
    lines = [line for line in text.splitlines() if "balanced accuracy" in line]
    assert "after PA-SFT" in text and "after SC-GRPO" in text and "1,234" in text
    assert "93.0 [91.0, 95.0]" in lines[0] and "93.4 [91.4, 95.4]" in lines[0]
    assert "58.4 [56.4, 60.4]" in lines[1] and "66.8 [64.8, 68.8]" in lines[1]


def test_a_change_that_may_be_chance_is_marked(tmp_path, capsys):
    lines = printed(capsys, SUMMARY, tmp_path).splitlines()
    seen, new = (line for line in lines if "balanced accuracy" in line)
    assert f"~ +0.4 [{wording.MINUS}0.6, 1.4]" in seen
    assert "+8.4 [5.5, 11.2]" in new and "~" not in new


def test_what_guessing_the_place_would_give_is_said_once_for_each_set(tmp_path, capsys):
    hit = {"uniform": 11.11, "always_center": 9, "best_cell": "top left", "best_constant": 20.0}
    rows = [
        result(stage, "seen", 80) | {"places": {"chance": {"hit": hit}}}
        for stage in ("sft", "grpo")
    ]
    text = printed(capsys, {"results": rows}, tmp_path)
    assert text.count("random cell") == 1
    assert (
        "seen: a random cell is the right place for 11.1 %, the center for 9.0 %, top left" in text
    )


def test_answers_that_their_own_reasoning_contradicts_are_said(tmp_path, capsys):
    found = dict(n=50, consistent_right=30, consistent_wrong=8, contradictory=7, defect_but_no=5,
                 sound_but_yes=2, untold=5, defects=20, place=3, type=1)  # fmt: skip
    text = printed(
        capsys, {"results": [result("sft", "seen", 80) | {"reasoning": found}]}, tmp_path
    )
    said = " ".join(text.split())
    assert "7 contradict their answer (5 find a defect before No, 2 find none before Yes)" in said
    assert "of 20 reasoned defects 3 name another place and 1 name another type" in said


def test_it_says_what_was_run_where_it_is_and_what_to_type_next(tmp_path, capsys):
    config = {"name": "pipeline", "seed": 4, "backbone": {"name": "tiny"}, "data": {"name": "x"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "checkpoints" / "grpo").mkdir(parents=True)
    (tmp_path / "report.html").touch()
    text = printed(capsys, SUMMARY, tmp_path)
    assert "pipeline backbone=tiny data=x seed=4" in text and "8 min 12 s" in text
    assert f"report   {tmp_path}/report.html" in text
    assert f"weights  {tmp_path}/checkpoints/grpo" in text
    assert f"next     python run.py stage=evaluate init={tmp_path} backbone=tiny" in text


def test_what_to_type_next_holds_where_the_path_has_a_space(tmp_path, capsys):
    folder = tmp_path / "my runs, old"
    (folder / "checkpoints" / "grpo").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"backbone": {"name": "tiny"}}))
    text = printed(capsys, SUMMARY, folder)
    [typed] = [line for line in text.splitlines() if line.startswith("next")]
    assert shlex.split(typed)[4:6] == [f'init="{folder}"', "backbone=tiny"]


def test_a_run_without_results_still_says_where_it_is(tmp_path, capsys):
    (tmp_path / "checkpoints" / "sft").mkdir(parents=True)
    assert f"weights  {tmp_path}/checkpoints/sft" in printed(capsys, {}, tmp_path)


# ------------------------------------------------------------------------------- wording


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.96, "10 s"), (59.6, "1 min 0 s"), (372, "6 min 12 s"),
     (3599.9, "1 h 0 min"), (22_320, "6 h 12 min")],
)  # fmt: skip
def test_durations_read_naturally(seconds, text):
    assert progress.duration(seconds) == text


def test_differences_carry_a_sign_and_zero_has_none():
    assert wording.points(8.44) == "+8.4" and wording.points(-0.06) == f"{wording.MINUS}0.1"
    assert wording.points(0.01) == wording.points(-0.01) == "0.0"
    assert wording.points(None) == wording.NOTHING


def test_a_difference_is_clear_only_if_zero_lies_outside():
    assert wording.clear({"ci95": [0.1, 2.0]}) and wording.clear({"ci95": [-2.0, -0.1]})
    assert not wording.clear({"ci95": [0.0, 2.0]}) and not wording.clear({"ci95": None})


def test_validation_images_are_never_passed_off_as_test_images():
    assert wording.split_name("validation_new").startswith("validation images")
    assert not wording.is_validation("new")


def test_the_terminal_module_needs_no_figures():
    """Stages import it in every worker: it must not bring matplotlib along."""
    import subprocess

    code = "import sys, iad_r1.report.terminal; print('matplotlib' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_the_head_of_a_summary_names_the_benchmarks_there_are():
    config = {"data": {"name": "synthetic"}, "benchmark": {"mvtec": {}, "photos": {}}}
    assert wording.chosen(config, "benchmark") == "mvtec+photos"
    assert wording.chosen({"benchmark": {}}, "benchmark") == ""
    assert wording.chosen(config, "data") == "synthetic" and wording.chosen({}, "data") == ""
