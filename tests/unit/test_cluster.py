"""Runs as jobs of a cluster: what they ask for, how they hear that they shall end, what is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from iad_r1.command import cluster, compose, launch
from iad_r1.command.cluster import AHEAD, Shape
from iad_r1.store.run_folder import RunFolder

# batches in which each of sixteen ranks has something to do
WIDE = ["sft.phases.0.batch_size=16", "sft.phases.1.batch_size=16", "grpo.prompts_per_step=16"]


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        (["cluster=gpu"], Shape(hosts=1, gpus=1, cpus=3)),
        (["cluster=node"], Shape(hosts=1, gpus=8, cpus=24)),
        (["cluster=two_nodes"], Shape(hosts=2, gpus=8, cpus=24)),
        (["cluster=node", "engine.ranks=4", "engine.threads=2"], Shape(1, 4, 16)),
        (["cluster=gpu", "engine.device=cpu"], Shape(1, 0, 3)),
        (["cluster=two_nodes", "stage=report", "init=earlier"], Shape(1, 1, 3)),
    ],
)
def test_a_job_asks_for_what_its_engine_needs(settings, wanted):
    assert cluster.shape(compose.compose([*settings, *WIDE])) == wanted


def test_a_profile_wins_over_recipe_and_weights_and_loses_to_what_is_typed():
    config = compose.compose(["cluster=two_nodes", "backbone=qwen25vl_3b", *WIDE[::2]])
    assert (config.engine.name, config.engine.hosts, config.engine.ranks) == ("zero3", 2, 8)
    config = compose.compose(["cluster=node", "engine=zero3", "engine.ranks=2"])
    assert (config.engine.name, config.engine.hosts, config.engine.ranks) == ("zero3", 1, 2)


class Slurm(cluster.Launcher):
    where = "slurm"


def test_what_is_set_for_slurm_reaches_submitit_and_the_rest_follows_from_the_engine(monkeypatch):
    from submitit import SlurmExecutor

    monkeypatch.setattr(SlurmExecutor, "affinity", lambda *_: 2)  # as where there is srun
    launcher = Slurm(
        submitit_folder="jobs", max_num_timeout=3, setup=["module load cuda"], partition="gpu",
        account=None, timeout_min=90, signal_delay_s=60, mem_gb=64, cpus_per_task=None,
        array_parallelism=4, additional_parameters={"exclusive": True},
    )  # fmt: skip
    executor = SlurmExecutor("jobs", 3)
    executor.update_parameters(**launcher._parameters(Shape(hosts=2, gpus=8, cpus=24)))
    said = executor._make_submission_file_text("true", "1")
    for line in (
        "--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=8", "--cpus-per-task=24", "--mem=64GB",
        "--partition=gpu", "--time=90", "--signal=USR2@60", "--exclusive", "--requeue",
        "--job-name=iad_r1",
    ):  # fmt: skip
        assert f"#SBATCH {line}\n" in said, said
    assert "module load cuda" in said and "account" not in said


def test_hosts_meet_where_they_are_told_to(tmp_path):
    config = compose.compose(["engine.hosts=2", "engine.ranks=1"])
    told = launch.command(config, RunFolder(tmp_path), ["--nnodes=2", "--node-rank=1"])
    assert told[3:7] == ["--nnodes=2", "--node-rank=1", f"--rdzv-id={tmp_path.name}",
                         "--nproc-per-node=1"]  # fmt: skip
    assert not any("HOST" in word for word in told)


def host(rank: int) -> Any:
    return SimpleNamespace(job_id="7", num_tasks=2, global_rank=rank)


def test_the_first_host_says_where_and_the_others_read_it(tmp_path):
    folder = RunFolder(tmp_path)
    first, second = cluster._meet(folder, host(0)), cluster._meet(folder, host(1))
    assert first[0] == second[0] == "--nnodes=2"
    assert (first[1], second[1]) == ("--node-rank=0", "--node-rank=1")
    assert first[2:] == second[2:]


def test_a_host_that_does_not_see_the_run_folder_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "MEETING", 0.0)
    with pytest.raises(cluster.ConfigError, match="the run folder on one file system"):
        cluster._meet(RunFolder(tmp_path), host(1))


# --- a job that is asked to end ------------------------------------------------------------------

SAVES = """
import signal, sys, time
heard = []
signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
open(sys.argv[1], "w").close()
while not heard:
    time.sleep(0.01)
time.sleep(0.3)  # it saves
sys.exit(len(heard) - 1)
"""


@pytest.mark.parametrize("sent", [[signal.SIGTERM], [AHEAD], [signal.SIGTERM, AHEAD, AHEAD]])
def test_a_run_is_asked_once_and_may_save_however_often_slurm_asks(sent, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "LOOK", 0.02)
    ready = tmp_path / "ready"

    def slurm() -> None:
        while not ready.exists():
            time.sleep(0.01)
        for number in sent:
            os.kill(os.getpid(), number)
            time.sleep(0.05)

    def never(*_: Any) -> None:
        raise AssertionError("the signal was not taken by the job")

    before = {number: signal.signal(number, never) for number in (signal.SIGTERM, AHEAD)}
    # held back in this thread too, or it would get them before `carry_out` waits for them
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, before)
    thread = threading.Thread(target=slurm)
    thread.start()
    try:
        code, asked = cluster.carry_out([sys.executable, "-c", SAVES, str(ready)], offline=True)
        thread.join()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)
    assert code == 0, "it heard SIGTERM more than once"
    assert asked == sent


def test_a_signal_that_ends_the_worker_is_its_exit_code():
    code, asked = cluster.carry_out(["sh", "-c", "kill -KILL $$"], offline=False)
    assert (code, asked) == (128 + 9, [])


def test_what_works_on_a_run_is_not_ended_by_the_signal_that_the_job_gets_ahead():
    """SLURM may send it to every process of a job, and it ends those that do not expect it."""
    held = "import signal, sys; sys.exit(signal.SIGUSR2 not in signal.pthread_sigmask(0, []))"
    assert cluster.carry_out([sys.executable, "-c", held], offline=False) == (0, [])
    assert AHEAD not in signal.pthread_sigmask(signal.SIG_BLOCK, []), "here it is let in again"


# --- what became of jobs -------------------------------------------------------------------------


def running(name: str, folder: Path) -> Any:
    """A job as submitit has it, of one task, that left nothing."""
    paths = SimpleNamespace(result_pickle=folder / "none.pkl", stderr=folder / f"{name}.err")
    found = SimpleNamespace(job_id=name, num_tasks=1, paths=paths)
    found.task = lambda number: found
    return found


def test_a_job_that_slurm_ended_is_lost_and_one_that_waits_again_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "LOOK", 0.0)
    monkeypatch.setattr(cluster, "ASK", 0.02)
    (tmp_path / "8_1.err").write_text("slurmstepd: killed\n")
    answers = iter(["8_0 RUNNING\n8_1 CANCELLED\n8_2 PENDING\n", "8_0 PENDING\n8_1 CANCELLED\n"])
    last = ["8_0 RUNNING\n8_1 CANCELLED\n"]

    def squeue(*_: Any, **__: Any) -> Any:
        last[:] = [next(answers, last[0])]
        return subprocess.CompletedProcess([], 0, stdout=last[0])

    monkeypatch.setattr(cluster.shutil, "which", lambda name: name)
    monkeypatch.setattr(cluster.subprocess, "run", squeue)
    sent: list[Any] = [(name, running(name, tmp_path)) for name in ("8_0", "8_1", "8_2")]
    found = cluster.ended(sent, "slurm")
    lost = {run.job_id: str(said) for _, run, said in (next(found), next(found))}
    assert set(lost) == {"8_1", "8_2"}
    assert "state: CANCELLED" in lost["8_1"] and "slurmstepd: killed" in lost["8_1"]
    assert "state: unknown to squeue" in lost["8_2"]


def test_a_result_that_a_file_system_shows_late_is_no_lost_job(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "LOOK", 0.0)
    monkeypatch.setattr(cluster, "ASK", 0.02)
    monkeypatch.setattr(cluster.shutil, "which", lambda name: name)
    job, asked = running("8", tmp_path), []
    job.exception, job.result = lambda: None, lambda: 0

    def squeue(*_: Any, **__: Any) -> Any:
        asked.append(1)
        if len(asked) == 2:
            job.paths.result_pickle.touch()
        return subprocess.CompletedProcess([], 0, stdout="8 COMPLETED\n")

    monkeypatch.setattr(cluster.subprocess, "run", squeue)
    sent: list[Any] = [("run", job)]
    ((_, _, lost),) = cluster.ended(sent, "slurm")
    assert lost is None


def test_no_job_is_lost_while_squeue_does_not_answer(tmp_path, monkeypatch):
    silent = subprocess.CompletedProcess([], 1, stdout="")
    monkeypatch.setattr(cluster.shutil, "which", lambda name: name)
    monkeypatch.setattr(cluster.subprocess, "run", lambda *_, **__: silent)
    assert cluster._over([running("8", tmp_path)], "slurm") == {}


@pytest.mark.parametrize(
    ("listed", "refused"),
    [("8_1 PENDING\n", True), ("8_1 CANCELLED\n", False), ("8_2 RUNNING\n", False)],
)
def test_a_run_that_waits_in_the_queue_is_not_sent_a_second_time(
    listed, refused, tmp_path, monkeypatch
):
    said = subprocess.CompletedProcess([], 0, stdout=listed)
    monkeypatch.setattr(cluster.shutil, "which", lambda name: name)
    monkeypatch.setattr(cluster.subprocess, "run", lambda *_, **__: said)
    config = compose.compose(["stage=sft", "name=sent"])
    folder, _ = launch.open_folder(config, tmp_path)
    folder.write_json(cluster.SENT, {"job": "8_1"})
    again = launch.taken_up(config, tmp_path)
    assert again.resume == str(folder.path)
    if refused:
        with pytest.raises(cluster.ConfigError, match="scancel 8_1"):
            cluster._check_not_sent(again, tmp_path)
    else:
        cluster._check_not_sent(again, tmp_path)
