"""A run that is killed or asked to stop, and goes on, ends where an undisturbed one ends."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import forks
import pandas
import pytest
import torch
from safetensors.torch import load_file

from iad_r1.command import compose, launch
from iad_r1.store import checkpoints
from iad_r1.store.run_folder import RunFolder

SHORT = [
    "data.sizes.sft=96",
    "data.sizes.rl=32",
    "data.sizes.validation=4",
    "data.sizes.test=4",
    "pretrain.images=64",
    "pretrain.steps=4",
    "pretrain.save_every=2",
    "sft.phases.0.steps=24",
    "sft.phases.0.batch_size=4",
    "sft.phases.1.steps=12",
    "sft.phases.1.batch_size=4",
    "sft.save_every=2",
    "grpo.steps=16",
    "grpo.prompts_per_step=4",
    "grpo.group_size=4",
    "grpo.save_every=2",
    "grpo.rollouts_every=1",
    "rollout.max_tokens=24",
    "evaluate.max_tokens=24",
    "evaluate.batch_size=4",
    "engine.ranks=1",
    "tracking=none",
    "store.reuse=false",  # each run is to take all steps
]
TIMED = ("seconds", "tokens_per_second", "peak_memory", "host_memory")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def begin(outputs: Path, name: str, *overrides: str) -> RunFolder:
    """The folder that run.py would make for these settings, or take up again."""
    config = compose.compose([*SHORT, f"name={name}", "resume=auto", *overrides])
    return launch.open_folder(config, outputs)[0]


def work(folder: RunFolder) -> ForkServerProcess:
    """A process that does the work of the run, as the one that run.py would start."""
    return forks.start_worker(folder.path, folder.path.parent / "log.txt")


def finish(folder: RunFolder) -> None:
    process = work(folder)
    process.join()
    assert process.exitcode == 0, (folder.path.parent / "log.txt").read_text()[-3000:]


def lines(folder: RunFolder) -> list[dict]:
    """The metrics, without a half-written last line."""
    path = folder.path / "metrics.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def kill_after(folder: RunFolder, stage: str, step: int, luck: random.Random) -> None:
    """SIGKILL a process that works on the run at a random instant of the two steps after `step`,
    or of what comes instead of them: a checkpoint, an evaluation."""
    child, before, until = work(folder), None, None
    while (code := child.exitcode) is None:
        now, last = time.monotonic(), last_step(folder, stage)
        if before is None and last >= step - 1:
            before = now
        if until is None and before is not None and last >= step:
            until = now + luck.uniform(0, 2) * (now - before)
        if until is not None and (now >= until or last >= step + 2):
            child.kill()
            child.join()
            return
        time.sleep(0.005)
    log = (folder.path.parent / "log.txt").read_text()
    raise AssertionError(
        f"ended with {code} before it was killed after {stage} step {step}:\n{log}"
    )


def last_step(folder: RunFolder, stage: str) -> int:
    return max((row["step"] for row in lines(folder) if row["stage"] == stage), default=-1)


def results(folder: RunFolder) -> Iterator[tuple[str, object]]:
    """Everything a run leaves that must not depend on how often it was killed."""
    for row in lines(folder):
        kept = {k: v for k, v in row.items() if not k.startswith(TIMED)}
        yield f"{row['stage']} step {row['step']}", kept
    for file in sorted((folder.path / "predictions").iterdir()):
        yield file.name, file.read_text(encoding="utf-8")
    for file in sorted((folder.path / "rollouts").glob("*.parquet")):
        yield file.name, pandas.read_parquet(file).to_csv()
    summary = folder.summary()
    yield "results", summary["results"]
    yield "chosen", folder.read_json("manifest.json").get("chosen")
    yield "comparisons", summary["comparisons"]


def assert_same_run(folder: RunFolder, other: RunFolder) -> None:
    for (name, value), (wanted_name, wanted) in zip(results(folder), results(other), strict=True):
        assert name == wanted_name
        assert value == wanted, name
    for stage in ("pretrain", "sft", "grpo"):
        weights, wanted = (
            load_file(run.checkpoint(stage) / "model.safetensors") for run in (folder, other)
        )
        assert weights.keys() == wanted.keys()
        assert all(torch.equal(weights[key], wanted[key]) for key in wanted), stage


def tuned(how: str) -> list[str]:
    """The settings of a run; with LoRA it also chooses the weights that it ends with."""
    return [f"tuning={how}", f"grpo.choose_on_validation={str(how == 'lora').lower()}"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], RunFolder]:
    """`undisturbed("lora")`: a run of this tuning from a command line, in a process of its own,
    that nothing interrupts."""
    found: dict[str, RunFolder] = {}

    def of(tuning: str) -> RunFolder:
        if tuning not in found:
            place = tmp_path_factory.mktemp(f"undisturbed-{tuning}")
            process = run(place, *tuned(tuning))
            said, _ = process.communicate()
            assert process.returncode == 0, said
            (folder,) = (place / "outputs" / "run").iterdir()
            found[tuning] = RunFolder(folder)
        return found[tuning]

    return of


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_killed_at_random_instants_it_ends_with_the_same_numbers_bit_for_bit(
    undisturbed, tmp_path, tuning
):
    """Ten kills for each way of tuning, twenty in all: two runs, each killed three times in PA-SFT
    and twice in SC-GRPO."""
    luck = random.Random(tuning)
    for name in ("killed-1", "killed-2"):
        for stage, last, kills in (("sft", 35, 3), ("grpo", 13, 2)):
            for step in sorted(luck.sample(range(3, last + 1), kills)):
                kill_after(begin(tmp_path, name, *tuned(tuning)), stage, step, luck)
        finish(folder := begin(tmp_path, name, *tuned(tuning)))
        assert [folder.path] == [p for p in (tmp_path / name).iterdir() if p.is_dir()]
        assert_same_run(folder, undisturbed(tuning))
        said = (tmp_path / name / "log.txt").read_text()
        for stage in ("sft", "grpo"):  # both were taken up in their middle
            assert f"{stage} goes on after step" in said


# where what is claimed is about SC-GRPO alone
BRIEF = ["sft.phases.0.steps=2", "sft.phases.1.steps=1", "evaluate.limit=1"]


def test_only_the_newest_and_the_best_checkpoint_are_kept_and_half_written_ones_go(tmp_path):
    folder = begin(tmp_path, "kept", *BRIEF, "checkpoint.keep=2", "checkpoint.best=false")
    torn = folder.path / "checkpoints" / f"{checkpoints.PARTIAL}grpo-step-000004"
    torn.mkdir(parents=True)
    finish(folder)
    kept = [c.step for c in checkpoints.unfinished(folder.path / "checkpoints", "grpo")]
    assert kept == [14, 16]
    assert not torn.exists()


def run(cwd: Path, *overrides: str) -> subprocess.Popen[str]:
    repository = Path(launch.__file__).parents[2]
    command = [sys.executable, str(repository / "run.py"), *SHORT, "name=run", *overrides]
    return subprocess.Popen(
        command, cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def test_sigterm_saves_the_step_and_exits_with_0_and_auto_goes_on_from_it(tmp_path):
    settings = [*BRIEF, "grpo.save_every=1000", "sft.save_every=1000"]
    process = run(tmp_path, *settings)
    deadline, folder = time.monotonic() + 300, None
    while time.monotonic() < deadline and process.poll() is None:
        found = [p for p in (tmp_path / "outputs").glob("run/*") if p.is_dir()]
        if found and any(r["stage"] == "grpo" for r in lines(RunFolder(found[0]))):
            folder = RunFolder(found[0])
            break
        time.sleep(0.02)
    assert folder is not None, process.communicate()[0][-3000:]
    process.terminate()
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    assert "resume=auto" in said
    assert folder.read_json("manifest.json")["status"] == "stopped"
    (saved,) = checkpoints.unfinished(folder.path / "checkpoints", "grpo")
    before = [row["step"] for row in lines(folder) if row["stage"] == "grpo"]
    assert saved.step == before[-1] + 1
    again = run(tmp_path, *settings, "resume=auto")
    said = again.communicate(timeout=600)[0]
    assert again.returncode == 0, said
    assert f"grpo goes on after step {saved.step}" in said
    assert [row["step"] for row in lines(folder) if row["stage"] == "grpo"] == list(range(16))
    assert folder.read_json("manifest.json")["status"] == "finished"


def test_a_run_goes_on_only_with_the_settings_it_was_started_with(undisturbed, tmp_path):
    wrong = run(tmp_path, f"resume={undisturbed('full').path}", "grpo.kl_coef=0.5")
    said = wrong.communicate(timeout=120)[0]
    assert wrong.returncode == 2
    assert "grpo.kl_coef=" in said and "now 0.5" in said and "init=" in said
