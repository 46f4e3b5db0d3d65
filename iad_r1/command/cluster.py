"""A sweep as jobs of a cluster: every run is one job, sent by submitit to SLURM, or started here.

All that can be checked is checked before the first job is sent, on the machine where the command
was typed: settings, data and weights of every run. There, too, each run gets its folder, and the
job works on that folder alone. So nothing that is edited while jobs wait in a queue changes them,
and a job that SLURM takes away and starts again goes on with the run it had begun.

Of a run on several hosts, a job has one task on each; every task starts the ranks of its host.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from omegaconf import DictConfig, OmegaConf

from iad_r1 import stages
from iad_r1.command import compose, launch
from iad_r1.errors import ConfigError, IadError
from iad_r1.processes import stopping
from iad_r1.settings.config import Config, read
from iad_r1.store.run_folder import RunFolder
from iad_r1.store.starts import find_resumable

AHEAD = signal.SIGUSR2  # submitit has SLURM send it some time before a job's limit
LOOK = 1.0  # seconds between two looks at what has ended
ASK = 15.0  # seconds between two questions to SLURM, and before a job without a result is lost
MEETING = 600.0  # seconds that hosts of one job wait for the first of them
GONE = "unknown to squeue"
SENT = ".sent.json"  # in the folder of a run: the job that was sent to work on it
LOST = 1  # exit code of a run whose job ended without one
# How SLURM calls jobs that will not run again (squeue, JOB STATE CODES).
OVER = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
        "TIMEOUT"}  # fmt: skip
ENDED = {*OVER, GONE}


@dataclass(frozen=True)
class Shape:
    """What a job asks for: hosts, and what it needs on each of them."""

    hosts: int
    gpus: int
    cpus: int


@dataclass(frozen=True)
class Job:
    """One run as a job: what submitit sends. It is all that the job knows."""

    folder: Path
    offline: bool
    number: int
    overrides: tuple[str, ...]
    record: Path  # where the sweep's table looks for what became of it
    shape: Shape

    def __call__(self) -> int:
        """Do the work of the run, on every host; its exit code.

        Asked to end, it has the run saved and then ends without a result; if the time limit is
        the reason, it queues again before.
        """
        import submitit

        here = submitit.JobEnvironment()
        folder = RunFolder.open(self.folder)
        code, asked = self._work(read(folder.config_file), folder, here)
        if asked and code == 0 and folder.read_json("manifest.json").get("status") != "finished":
            if AHEAD in asked:
                os.kill(os.getpid(), AHEAD)  # submitit's answer to it is `checkpoint`, and requeue
            sys.exit(128 + asked[0])  # no result: who sent SIGTERM decides whether it runs again
        if here.global_rank == 0:
            self.ended(code)
        return code

    def checkpoint(self) -> Any:
        """What submitit queues again: the same, since the folder holds the state."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)

    def ended(self, code: int, problem: str | None = None) -> None:
        """Note it for the table of the sweep."""
        run = RunFolder(self.folder)
        launch.record(self.record, self.number, self.overrides, run, code, problem)

    def _work(self, config: Config, folder: RunFolder, here: Any) -> tuple[int, list[int]]:
        stage = stages.find(config.stage.name)
        if here.global_rank == 0:
            with folder.locked():
                for part in stage.parts(config, folder):
                    _, asked = carry_out(launch.command(read(part.config_file), part), self.offline)
                    if asked:
                        return 0, asked
        meeting = _meet(folder, here) if self.shape.hosts > 1 else None
        return carry_out(launch.command(config, folder, meeting), self.offline)


def _meet(folder: RunFolder, here: Any) -> list[str]:
    """What tells torchrun where the ranks of all hosts meet: at a port that the first host found
    free. ConfigError where another host does not see, in the run folder, which one that is."""
    once = f"{here.job_id}-{os.environ.get('SLURM_RESTART_COUNT', 0)}"
    name, nodes = f".meeting-{once}.json", here.num_tasks
    if here.global_rank == 0:
        with socket.socket() as free:
            free.bind(("", 0))
            place = {"host": socket.gethostname(), "port": free.getsockname()[1]}
        folder.write_json(name, place)
    deadline = time.monotonic() + MEETING
    while not (place := folder.read_json(name)):
        if time.monotonic() > deadline:
            raise ConfigError(
                f"{socket.gethostname()} has not seen {name} in {folder.path} within "
                f"{MEETING:.0f} seconds: all hosts of a job need the run folder on one file system."
            )
        time.sleep(LOOK)
    return [
        f"--nnodes={nodes}",
        f"--node-rank={here.global_rank}",
        f"--master-addr={place['host']}",
        f"--master-port={place['port']}",
    ]


def carry_out(command: Sequence[str], offline: bool) -> tuple[int, list[int]]:
    """Start what works on a run inside a job and wait for it: its exit code, and the signals that
    asked it to end.

    SIGTERM and AHEAD reach it as SIGTERM, once: SLURM repeats itself, and a run that saves must
    not be ended by that. AHEAD stays blocked in it, because SLURM may send it to every process.
    """
    heard, asked = {signal.SIGTERM, AHEAD}, []
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*heard, *stopping.ENDING})
    try:
        process = subprocess.Popen(command, env=launch.environment(offline), start_new_session=True)
        while process.poll() is None:
            if came := signal.sigtimedwait(heard, LOOK):
                if not asked:
                    process.send_signal(signal.SIGTERM)
                asked.append(came.si_signo)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    code = process.returncode
    return 128 - code if code < 0 else code, asked


# --- where the command was typed -----------------------------------------------------------------


class Launcher(BasicLauncher):
    """Hydra's launcher of jobs. The arguments are those of `conf/hydra/launcher/submitit_*.yaml`;
    what is not named there goes to submitit, and from there to sbatch."""

    where = ""  # as submitit calls it: slurm or local

    def __init__(
        self, submitit_folder: str, max_num_timeout: int, setup: Sequence[str], **parameters: Any
    ) -> None:
        super().__init__()
        self.folder, self.most, self.lines = submitit_folder, max_num_timeout, list(setup)
        self.parameters: dict[str, Any] = {
            key: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            for key, value in parameters.items()
        }

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Check all runs, send all or none, wait, and return their exit codes."""
        self.task_function = planned
        returned = list(super().launch(job_overrides, initial_job_idx))
        plans: list[Plan | int] = [found.return_value for found in returned]
        wanted = [plan for plan in plans if isinstance(plan, Plan)]
        refused = any(plan == launch.REFUSED for plan in plans)
        if refused:
            raise ConfigError("nothing was sent, because of what is said above.")
        if wanted:
            self._carry_out(wanted)
        for found in returned:
            found.return_value = 0  # job.json has the code
        return returned

    def _carry_out(self, plans: Sequence[Plan]) -> None:
        jobs = [plan.job() for plan in plans]
        sent = [
            pair
            for shape, alike in groupby(sorted(jobs, key=_by_shape), lambda job: job.shape)
            for pair in self._send(list(alike), shape)
        ]
        names = " ".join(dict.fromkeys(running.job_id.split("_")[0] for _, running in sent))
        end = f"{'scancel' if self.where == 'slurm' else 'kill'} {names}"
        print(f"\n{len(sent)} jobs were sent; `{end}` ends them, Ctrl-C the waiting alone.")
        try:
            for job, running, lost in ended(sent, self.where):
                if lost is not None and not (job.record / "job.json").exists():
                    job.ended(LOST, lost)
                if lost is not None:
                    launch.complain(f"run {job.number}: {lost}")
                print(f"run {job.number} has ended: job {running.job_id}, {job.folder}", flush=True)
        except KeyboardInterrupt:
            print(f"\nThe jobs go on. To end them: {end}")
            raise SystemExit(launch.STOPPED) from None

    def _send(self, jobs: Sequence[Job], shape: Shape) -> list[tuple[Job, Any]]:
        """The jobs, each with what submitit knows of it. ConfigError where SLURM takes none."""
        try:
            from submitit import LocalExecutor, SlurmExecutor
            from submitit.core.utils import FailedJobError
        except ImportError:
            raise ConfigError(
                f"hydra/launcher=submitit_{self.where} needs the package submitit, which is not "
                'installed. Type: pip install -e ".[cluster]"'
            ) from None
        # Jobs start with this environment: they take the project from here too.
        os.environ["PYTHONPATH"] = launch.environment(False)["PYTHONPATH"]
        try:
            kind = SlurmExecutor if self.where == "slurm" else LocalExecutor
            executor = kind(self.folder, self.most)
            executor.update_parameters(**self._parameters(shape))
            with executor.batch():
                sent = [executor.submit(job) for job in jobs]
        except (FailedJobError, RuntimeError, ValueError, OSError) as error:
            raise ConfigError(
                f"the jobs could not be sent to {self.where}: {str(error).strip()} (nodes "
                f"{shape.hosts}, GPUs of each {shape.gpus}, CPUs of each {shape.cpus}). Settings "
                "are hydra.launcher.partition=... and the like; engine.device=cpu asks for no GPU."
            ) from None
        if self.where == "slurm":
            for job, running in zip(jobs, sent, strict=True):
                RunFolder(job.folder).write_json(SENT, {"job": running.job_id})
        return list(zip(jobs, sent, strict=True))

    def _parameters(self, shape: Shape) -> dict[str, Any]:
        """Those of submitit's executors, which call them as sbatch does."""
        given: dict[str, Any] = {k: v for k, v in self.parameters.items() if v not in (None, {})}
        asked: dict[str, Any] = {"setup": self.lines}
        if shape.gpus:
            asked["gpus_per_node"] = shape.gpus
        if self.where == "local":
            return {**asked, **given}
        asked |= {"job_name": "iad_r1", "nodes": shape.hosts, "ntasks_per_node": 1}
        asked |= {"cpus_per_task": shape.cpus, "time": given.pop("timeout_min")}
        if "mem_gb" in given:
            asked["mem"] = f"{given.pop('mem_gb')}GB"
        more = dict(given.pop("additional_parameters", {}))
        return {**asked, **given, "additional_parameters": {"requeue": True, **more}}


@dataclass(frozen=True)
class Plan:
    """A run that has been checked and has no folder yet."""

    config: Config
    offline: bool
    number: int
    overrides: tuple[str, ...]
    record: Path

    def job(self) -> Job:
        """It has a folder now."""
        folder, news = launch.open_folder(self.config, Path.cwd() / "outputs")
        print(f"  run {self.number}: {folder.path}{news}", flush=True)
        return Job(
            folder.path, self.offline, self.number, self.overrides, self.record, shape(self.config)
        )


def planned(composed: DictConfig) -> Plan | int:
    """Check one run of the sweep. Where nothing is to be sent, an exit code instead."""
    settings, outputs = HydraConfig.get(), Path.cwd() / "outputs"
    typed = list(settings.overrides.task)
    print(f"\n--- run {settings.job.num}: {', '.join(typed)}", flush=True)
    try:
        resolved = compose.resolve(composed, Path.cwd(), typed)
        config = launch.grouped(resolved, Path(settings.sweep.dir).name)
        if config.dry_run:
            launch.run(config, outputs)
            return 0
        if (done := launch.finished_before(config, outputs)) is not None:
            launch.record(Path(settings.runtime.output_dir), settings.job.num, typed, done, 0)
            return 0
        config = launch.taken_up(config, outputs)
        _check_not_sent(config, outputs)
        offline = launch.checked(config, outputs)
    except IadError as error:
        launch.complain(str(error))
        return launch.REFUSED
    return Plan(config, offline, settings.job.num, tuple(typed), Path(settings.runtime.output_dir))


def _check_not_sent(config: Config, outputs: Path) -> None:
    """ConfigError if the run would go on with one that a job in SLURM's queue is to work on."""
    if config.resume is None:
        return
    found = find_resumable(outputs, config.model_dump(mode="json"))
    sent = None if found is None else found.read_json(SENT).get("job")
    if found is not None and sent is not None and (states() or {}).get(sent, GONE) not in ENDED:
        raise ConfigError(
            f"job {sent} of SLURM is to work on {found.path}, which has these settings. Wait for "
            f"it, or end it first: scancel {sent}"
        )


def shape(config: Config) -> Shape:
    """What a job of this run asks for: a GPU for each rank of a host, and CPUs for its threads."""
    engine, ranked = config.engine, stages.find(config.stage.name).ranked
    ranks = engine.ranks if ranked else 1
    return Shape(
        hosts=engine.hosts if ranked else 1,
        gpus=0 if engine.device == "cpu" else ranks,
        cpus=ranks * (engine.threads + engine.picture_threads),
    )


def _by_shape(job: Job) -> tuple[tuple[int, ...], int]:
    return dataclasses.astuple(job.shape), job.number


def ended(sent: Sequence[tuple[Job, Any]], where: str) -> Iterator[tuple[Job, Any, str | None]]:
    """Each job as it ends: itself, what submitit knows of it, and why it left no result if so."""
    waiting, first, asked, over = list(sent), dict[str, float](), 0.0, dict[str, str]()
    while waiting:
        time.sleep(LOOK)
        if time.monotonic() - asked > ASK:
            over, asked = _over([running for _, running in waiting], where), time.monotonic()
        for pair in list(waiting):
            job, running = pair
            if all(task.paths.result_pickle.exists() for task in _tasks(running)):
                waiting.remove(pair)
                yield job, running, _raised(running)
            elif (state := over.get(running.job_id)) is None:
                first.pop(running.job_id, None)
            elif asked - first.setdefault(running.job_id, asked) >= ASK:  # files may come late
                waiting.remove(pair)
                yield job, running, _lost(running, state)


def _over(running: Sequence[Any], where: str) -> dict[str, str]:
    """The jobs that will not run again, and how they ended in SLURM's words; none of them while it
    cannot be asked. It keeps no accounts everywhere, so squeue is asked and not sacct."""
    if where == "local":
        return {job.job_id: job.state for job in running if job.done()}
    if (found := states()) is None:
        return {}
    known = {job.job_id: found.get(job.job_id, GONE) for job in running}
    return {name: state for name, state in known.items() if state in ENDED}


def states() -> dict[str, str] | None:
    """The jobs that SLURM knows of this user, and their states; None if it cannot be asked."""
    if shutil.which("squeue") is None:
        return None
    said = subprocess.run(
        ["squeue", "--me", "--noheader", "--array", "--states=all", "--format=%i %T"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if said.returncode:
        return None
    lines = (line.split(maxsplit=1) for line in said.stdout.splitlines() if line.strip())
    return {name: state.strip() for name, state in lines}


def _tasks(running: Any) -> list[Any]:
    return [running.task(number) for number in range(running.num_tasks)]


def _raised(running: Any) -> str | None:
    """What a job that left a result has to say of its failure."""
    for task in _tasks(running):
        if (error := task.exception()) is not None:
            trace = [line for line in str(error).splitlines() if "Error" in line]
            return _with_log(running, trace[-1] if trace else str(error))
    codes = [code for task in _tasks(running) if (code := task.result())]
    return _with_log(running, f"it ended with exit code {codes[0]}.") if codes else None


def _lost(running: Any, state: str) -> str:
    return _with_log(running, f"job {running.job_id} ended without a result, its state: {state}.")


def _with_log(running: Any, text: str) -> str:
    log = running.task(0).paths.stderr
    said = log.read_text(errors="replace").splitlines() if log.exists() else []
    last = [line for line in said if line.strip()][-3:]
    return "\n".join([text, *last, f"All that it printed: {shlex.quote(str(log))} (and .out)"])
