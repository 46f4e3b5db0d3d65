"""Sweeps as jobs, of this machine and of a real SLURM: they end with the numbers of plain runs."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import forks
import pytest
import slurm
import torch
from safetensors.torch import load_file

from iad_r1.store.run_folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

AUDIT = ["stage=audit", "tracking=none"]
RIGHT = {
    "completion": "<think>Nothing unusual.</think><answer>No</answer>",
    "solution": "<answer>No</answer>",
}


def start(
    repository: Path, place: Path, *settings: str, env: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """`python run.py -m <settings>` in `place`."""
    return subprocess.Popen(
        [sys.executable, str(repository / "run.py"), "-m", *settings],
        cwd=place, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def sweep(
    repository: Path, place: Path, *settings: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    process = start(repository, place, *settings, env=env)
    out, err = process.communicate(timeout=800)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def jobs(place: Path) -> list[dict]:
    """What the jobs of the only sweep in `place` left for its table."""
    files = place.glob("outputs/sweeps/*/*/job.json")
    return sorted((json.loads(file.read_text()) for file in files), key=lambda job: job["number"])


def test_the_runs_of_a_sweep_are_jobs_of_this_machine_and_one_that_fails_is_reported(
    repository, tmp_path
):
    (tmp_path / "right.jsonl").write_text(json.dumps(RIGHT) + "\n")
    (tmp_path / "torn.jsonl").write_text('{"completion": 1')
    done = sweep(
        repository, tmp_path, "hydra/launcher=submitit_local", *AUDIT,
        "stage.completions=right.jsonl,torn.jsonl",
    )  # fmt: skip
    first, second = jobs(tmp_path)
    assert first["code"] == 0 and (Path(first["folder"]) / "audit.json").is_file(), done.stderr
    assert second["code"] == done.returncode == 2
    assert "error: run 1: it ended with exit code 2." in done.stderr
    assert "torn.jsonl" in done.stderr and "All that it printed: " in done.stderr
    assert "refused" in done.stdout


def test_all_jobs_are_sent_or_none(repository, tmp_path):
    (tmp_path / "right.jsonl").write_text(json.dumps(RIGHT) + "\n")
    done = sweep(
        repository, tmp_path, "hydra/launcher=submitit_local", *AUDIT,
        "stage.completions=right.jsonl", "grpo.kl_coef=0,-1",
    )  # fmt: skip
    assert done.returncode == 2
    assert "grpo.kl_coef=-1: " in done.stderr and "nothing was sent" in done.stderr
    assert not list(tmp_path.glob("outputs/audit*"))


# --- a real SLURM --------------------------------------------------------------------------------

TINY = [
    "stage=sft", "data.sizes.sft=64", "data.sizes.rl=8", "data.sizes.validation=4",
    "data.sizes.test=4", "pretrain.images=16", "pretrain.steps=2", "sft.phases.0.steps=12",
    "sft.phases.0.batch_size=4", "sft.phases.1.steps=3", "sft.phases.1.batch_size=4",
    "evaluate.limit=1", "evaluate.max_tokens=8", "evaluate.shots=[0]", "engine.ranks=1",
    "engine.device=cpu", "engine.picture_threads=0", "tracking=none",
]  # fmt: skip
ON_SLURM = ["hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=15"]
MEASURED = ("seconds", "tokens_per_second", "peak_memory", "host_memory")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of commands that speak to it; skips where SLURM is not installed."""
    if reason := slurm.missing():
        pytest.skip(reason)
    with slurm.cluster(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment


def steps(folder: Path) -> list[dict]:
    """The metrics without what is measured and without a half-written last line."""
    file = folder / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").split("\n")[:-1] if file.exists() else []
    return [
        {k: v for k, v in json.loads(line).items() if not k.startswith(MEASURED)} for line in lines
    ]


def assert_same(folder: Path, wanted: Path) -> None:
    """Metrics, answers and weights, bit for bit."""
    assert steps(folder) == steps(wanted)
    for file in sorted((wanted / "predictions").iterdir()):
        assert (folder / "predictions" / file.name).read_text() == file.read_text(), file.name
    found, known = (
        load_file(RunFolder(run).checkpoint("sft") / "model.safetensors")
        for run in (folder, wanted)
    )
    assert found.keys() == known.keys()
    assert all(torch.equal(found[key], known[key]) for key in known)


@pytest.fixture
def plain(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`plain("seed=1")`: the folder of the same run without any cluster."""

    def run(*settings: str) -> Path:
        place = tmp_path_factory.mktemp("plain")
        process = forks.start_run([*TINY, *settings, "name=run"], place, place / "log.txt")
        process.join()
        assert process.exitcode == 0, (place / "log.txt").read_text()[-3000:]
        (folder,) = (place / "outputs" / "run").iterdir()
        return folder

    return run


def until(true: Callable[[], Any], process: subprocess.Popen[str]) -> Any:
    """Wait for what `true` says, while the command runs."""
    deadline = time.monotonic() + 400
    while not (found := true()):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    return found


def names(environment: dict[str, str]) -> dict[int, str]:
    """Jobs of the array that is waited for, by their number in it."""
    listed = slurm.says(environment, "squeue", "-h", "-r", "-o", "%K %A %F").splitlines()
    return {int(line.split()[0]): f"{line.split()[2]}_{line.split()[0]}" for line in listed}


def test_four_jobs_of_slurm_end_as_plain_runs_also_those_that_had_to_go_in_between(
    repository, cluster, plain, tmp_path
):
    """One is requeued (SLURM sends TERM), one reaches its time limit (USR2)."""
    process = start(
        repository, tmp_path, *ON_SLURM, *TINY, "seed=0,1", "sft.learning_rate=1e-4,1e-3",
        "name=swept", env=cluster,
    )  # fmt: skip
    until(lambda: list(tmp_path.glob("outputs/swept/*/metrics.jsonl")), process)
    folders = [p.parent for p in sorted(tmp_path.glob("outputs/swept/*/config.json"))]
    seeds = [json.loads((folder / "config.json").read_text())["seed"] for folder in folders]
    assert len(folders) == 4 and sorted(seeds) == [0, 0, 1, 1]
    for folder, ask in (
        (folders[0], ["scontrol", "requeue"]),
        (folders[1], ["scancel", "--signal=USR2"]),
    ):
        until(lambda folder=folder: sum(r["stage"] == "sft" for r in steps(folder)) >= 2, process)
        slurm.says(cluster, *ask, names(cluster)[folders.index(folder)])
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, out + err
    found = jobs(tmp_path)
    assert [job["code"] for job in found] == [0, 0, 0, 0]
    assert [Path(job["folder"]) for job in found] == folders, "each went on in its own folder"
    said = {p.name: p.read_text() for p in tmp_path.glob("outputs/sweeps/*/jobs/*/*.out")}
    text = [next(t for name, t in said.items() if f"_{n}_0_log" in name) for n in (0, 1)]
    assert all("sft goes on after step" in t for t in text), said
    shared = ["pre-training of the vision tower: taken from" in t for t in said.values()]
    assert sum(shared) == 2, "each seed is pre-trained once"
    for job in found[:2]:
        swept = [text for text in job["overrides"] if text.startswith(("seed", "sft.learning"))]
        assert_same(Path(job["folder"]), plain(*swept))


def test_a_job_that_was_cancelled_is_reported_and_resume_goes_on_with_it(
    repository, cluster, plain, tmp_path
):
    settings = [*ON_SLURM, *TINY, "name=swept", "sft.save_every=1000"]
    process = start(repository, tmp_path, *settings, env=cluster)
    (file,) = until(lambda: list(tmp_path.glob("outputs/swept/*/metrics.jsonl")), process)
    until(lambda: sum(row["stage"] == "sft" for row in steps(file.parent)) >= 2, process)
    (name,) = slurm.says(cluster, "squeue", "-h", "-o", "%A").split()
    slurm.says(cluster, "scancel", name)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1, out + err
    assert f"run 0: job {name} ended without a result, its state: CANCELLED" in err
    assert "failed (1)" in out and "python run.py " in err
    before = len(steps(file.parent))
    again = sweep(repository, tmp_path, *settings, "resume=auto", env=cluster)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "(goes on)" in again.stdout and len(steps(file.parent)) > before
    assert_same(file.parent, plain())


def test_a_job_of_two_nodes_takes_the_steps_of_two_ranks_on_one(repository, cluster, iad, tmp_path):
    """DeepSpeed, started by srun on each node; one rank for each."""
    wide = [*TINY, "engine=zero2", "sft.phases.0.steps=3"]
    done = sweep(
        repository, tmp_path, *ON_SLURM, *wide, "engine.hosts=2", "engine.ranks=1", "name=wide",
        env=cluster,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (job,) = jobs(tmp_path)
    logs = sorted(file.name for file in tmp_path.glob("outputs/sweeps/*/jobs/*/*.out"))
    assert [name.split("_", 1)[1] for name in logs] == ["0_log.out", "1_log.out"], "a task each"
    one = iad(*wide, "engine.hosts=1", "engine.ranks=2", name="one")
    assert_same(Path(job["folder"]), one.folder)
