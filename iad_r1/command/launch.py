"""From a composed configuration to a running process: one fresh process per run.

`run.py` hands over here. Each run, also each run of a sweep, gets its folder, its `config.json`
and a process of its own, so no run inherits another's threads, seeds or memory.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from iad_r1 import stages
from iad_r1.command import compose, inherit
from iad_r1.errors import UNWRITABLE, ConfigError, IadError
from iad_r1.processes import ranks, stopping
from iad_r1.settings.base import CONF
from iad_r1.settings.config import Config, read
from iad_r1.settings.tracking import MlflowTracking, WandbTracking
from iad_r1.store.run_folder import REPOSITORY, RunFolder, write_json
from iad_r1.store.starts import find_finished, find_interrupted, find_resumable

REFUSED = 2  # exit code when nothing was started because a setting, data or weights are wrong
STOPPED = 130  # exit code after Ctrl-C, as shells have it
GRACE = 30.0  # seconds a stopped run gets to end by itself
_codes: list[int] = []  # exit codes of this process' runs


def main() -> int:
    """Read the command line, run what it asks for, and return the exit code."""
    # Hydra would print its own errors and exit; ours say what to type instead.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    sys.argv[1:] = inherit.with_backbone(compose.quoted(sys.argv[1:]))
    app = hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(job)
    try:
        app()
    except compose.ComposeError as error:
        complain(compose.explain(error, sys.argv[1:]))
        return REFUSED
    except IadError as error:  # of a whole sweep
        complain(str(error))
        return REFUSED
    except KeyboardInterrupt:  # before anything was started
        return STOPPED
    return max(_codes, default=0)


def complain(message: str) -> None:
    """One block on stderr, without a traceback."""
    print(f"\nerror: {message}", file=sys.stderr)


def job(composed: DictConfig) -> int:
    """One run: check, announce, start, wait. The exit code of its process, or REFUSED."""
    sweeping = HydraConfig.get().mode == RunMode.MULTIRUN
    if sweeping:
        task = ", ".join(HydraConfig.get().overrides.task)
        print(f"\n--- run {HydraConfig.get().job.num}: {task}", flush=True)
    folder: RunFolder | None = None
    problem: str | None = None
    try:
        typed = list(HydraConfig.get().overrides.task)
        config = compose.resolve(composed, Path.cwd(), typed)
        launcher = HydraConfig.get().runtime.choices["hydra/launcher"]
        if launcher != "basic" and not (sweeping or config.dry_run):
            raise ConfigError(
                f"hydra/launcher={launcher} sends the runs of a sweep as jobs, and this is no "
                "sweep: it would start here. Add -m, also for a single run."
            )
        if sweeping:
            config = grouped(config, Path(HydraConfig.get().sweep.dir).name)
            config = taken_up(config, Path.cwd() / "outputs")
        folder, code = run(config, Path.cwd() / "outputs")
    except IadError as error:
        problem, code = str(error), REFUSED
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        problem, code = (
            f"{error.filename or Path.cwd() / 'outputs'}: {error.strerror}. Make room or allow it, "
            "or start in another folder: runs are written to outputs/ there.",
            REFUSED,
        )
    if problem is not None:
        complain(problem)
    if sweeping:
        hydra_settings = HydraConfig.get()
        record(
            Path(hydra_settings.runtime.output_dir),
            hydra_settings.job.num,
            hydra_settings.overrides.task,
            folder,
            code,
            problem,
        )
    _codes.append(code)
    return code


def grouped(config: Config, sweep: str) -> Config:
    """The settings of a run of a sweep: trackers show its runs as one group, unless they are told
    of another."""
    tracking = config.tracking
    if not isinstance(tracking, WandbTracking | MlflowTracking) or tracking.group is not None:
        return config
    return config.model_copy(update={"tracking": tracking.model_copy(update={"group": sweep})})


def taken_up(config: Config, outputs: Path) -> Config:
    """The settings of a run of a sweep. One that is typed again goes on with its runs that have not
    ended, if the code is still the same; what those had ended, new runs find in the store."""
    if config.resume is not None or config.dry_run:
        return config
    found = find_interrupted(outputs, config.model_dump(mode="json"))
    return config if found is None else config.model_copy(update={"resume": str(found.path)})


def run(config: Config, outputs: Path) -> tuple[RunFolder | None, int]:
    """Print the plan, check that the run can start, and carry it out in a fresh process.

    With `dry_run`: print the settings, the plan and what is missing, and start nothing.
    """
    if config.dry_run:
        _rehearse(config, outputs)
        return None, 0
    if (done := finished_before(config, outputs)) is not None:
        return done, 0
    stage, offline = stages.find(config.stage.name), checked(config, outputs)
    folder, news = open_folder(config, outputs)
    print(f"  {'run':<9} {folder.path}{news}\n", flush=True)
    if config.engine.hosts > 1:
        print(f"Start it with this command on each of the {config.engine.hosts} hosts:\n")
        print(f"  {shlex.join(command(config, folder))}\n", flush=True)
        return folder, 0
    with folder.locked():
        for part in stage.parts(config, folder):
            print(f"\n--- {part.path.name}", flush=True)
            carry_out(command(read(part.config_file), part), offline, stage.saves)
    return folder, carry_out(command(config, folder), offline, stage.saves)


def finished_before(config: Config, outputs: Path) -> RunFolder | None:
    """The run of a study that an earlier sweep has brought to its end; says so."""
    done = find_finished(outputs, config.model_dump(mode="json")) if config.study else None
    if done is not None:
        print(f"  {'run':<9} {done.path}  (of this study, finished before)", flush=True)
    return done


def checked(config: Config, outputs: Path) -> bool:
    """Print the plan of a run and make sure that it can start; whether all its weights are here."""
    stage = stages.find(config.stage.name)
    stage.check_inputs(config)
    _print_plan(config, outputs)
    return stage.check_weights(config, outputs)


def command(config: Config, folder: RunFolder, meeting: Sequence[str] | None = None) -> list[str]:
    """What works on a run: one worker, or torchrun and a worker for each rank of this host.

    For several hosts it is typed on each of them; all need to see the run folder, and `HOST` is
    the name of one of them. `meeting` says instead where they meet, in torchrun's words.
    """
    engine, worker = config.engine, ["-m", "iad_r1.command.worker", str(folder.path)]
    ranked = stages.find(config.stage.name).ranked
    if not ranked or (engine.processes == 1 and engine.name == "single"):
        return [sys.executable, *worker]
    name = f"--rdzv-id={folder.path.name}"  # torchrun makes it part of a file's name
    if meeting is not None:
        meeting = [*meeting, name]
    elif engine.hosts > 1:
        meeting = [f"--nnodes={engine.hosts}", "--rdzv-backend=c10d", "--rdzv-endpoint=HOST:29400"]
        meeting.append(name)
    else:
        meeting = ["--standalone"]  # torchrun finds a free port
    processes = f"--nproc-per-node={engine.ranks}"
    return [sys.executable, "-m", "iad_r1.processes.torchrun", *meeting, processes, *worker]


def open_folder(config: Config, outputs: Path) -> tuple[RunFolder, str]:
    """The folder of the run, new or taken up again, and what there is to say of it."""
    values = config.model_dump(mode="json")
    found = find_resumable(outputs, values) if config.resume is not None else None
    folder = found or RunFolder.create(outputs, config.name)
    folder.write_json("config.json", values)
    if found:
        return folder, "  (goes on)"
    return folder, "  (new: no unfinished run of these settings)" if config.resume else ""


def _rehearse(config: Config, outputs: Path) -> None:
    print(OmegaConf.to_yaml(OmegaConf.create(config.model_dump(mode="json"))))
    _print_plan(config, outputs)
    try:
        stage = stages.find(config.stage.name)
        stage.check_inputs(config)
        stage.check_weights(config, outputs)
    except IadError as error:
        print(f"\nIt would not start: {error}")


def _print_plan(config: Config, outputs: Path) -> None:
    lines = stages.find(config.stage.name).announce(config, str(outputs / config.name))
    print("\n".join(lines), flush=True)


def carry_out(command: list[str], offline: bool, saves: bool) -> int:
    """Start what works on a run, wait for it, and return its exit code.

    Ctrl-C and SIGTERM are passed on; after Ctrl-C, and if nothing is saved also after SIGTERM, the
    worker has GRACE seconds to end; a second signal ends it at once, and this process exits too
    (a sweep does not go on to its next run).
    """
    signals: list[int] = []

    def forward(number: int, _frame: FrameType | None) -> None:
        signals.append(number)
        if len(signals) > 1:
            process.kill()
            return
        process.send_signal(number)
        if number == signal.SIGINT or not saves:  # saving may take minutes
            last_resort.start()

    with stopping.signals_held_back():
        # Its own session, so that Ctrl-C in a terminal reaches it once, from here.
        process = subprocess.Popen(command, env=environment(offline), start_new_session=True)
        last_resort = threading.Timer(GRACE, process.kill)
        before = {s: signal.signal(s, forward) for s in stopping.ENDING}
    try:
        code = process.wait()
    finally:
        last_resort.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)
    if not saves:
        with suppress(ProcessLookupError):  # vLLM's engine outlives a server that was killed
            os.killpg(process.pid, signal.SIGKILL)
    if signals:  # a run that was asked to end and saved itself is no failure
        raise SystemExit(0 if code == 0 else 128 + signals[0])
    return 128 - code if code < 0 else code


def environment(offline: bool) -> dict[str, str]:
    """Of the process that works on a run."""
    paths = [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    added = {
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        ranks.PARENT: str(os.getpid()),
    }
    if offline:
        added["HF_HUB_OFFLINE"] = "1"  # all that is needed is here: no library need ask the hub
    return {**os.environ, **added}


# --- sweeps --------------------------------------------------------------------------------------


def record(
    directory: Path,
    number: int,
    overrides: Sequence[str],
    folder: RunFolder | None,
    code: int,
    problem: str | None = None,
) -> None:
    """Leave for the table what became of a run of a sweep; it may be on another machine. `problem`:
    why it was not started."""
    write_json(
        directory / "job.json",
        {
            "number": number,
            "overrides": list(overrides),
            "code": code,
            "folder": None if folder is None else str(folder.path),
            "problem": problem,
        },
    )


class SweepTable(Callback):
    """Prints the runs of a sweep and their headline numbers when the last one has ended."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra in the process that started the sweep."""
        files = Path(config.hydra.sweep.dir).glob("*/job.json")
        jobs = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        _codes.extend(job["code"] for job in jobs)  # they may have run on another machine
        if jobs:
            jobs.sort(key=lambda job: job["number"])
            _print_table(jobs)
            for line in failures(jobs):
                print(line, file=sys.stderr, flush=True)


def failures(jobs: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Of each run of a sweep that failed: why, and what to type for that run alone."""
    for job in jobs:
        if job["code"] != 0:
            yield f"\nrun {job['number']}: {_why(job)}"
            sent = any(text.startswith("cluster=") for text in job["overrides"])
            yield f"  python run.py {'-m ' * sent}{shlex.join(job['overrides'])}"


def _why(job: dict[str, Any]) -> str:
    """The error of a run that failed, as far as it could leave one."""
    if job["problem"] is not None:
        return job["problem"]
    ended = f"it ended with exit code {job['code']}"
    if job["folder"] is None:
        return f"{ended}."
    folder = RunFolder(Path(job["folder"]))
    file = folder.path / "error.txt"
    if folder.read_json("manifest.json").get("status") in ("refused", "failed") and file.is_file():
        said = file.read_text(encoding="utf-8").strip().splitlines()
        return f"{said[-1]} (in full: {file})"
    return f"{ended}, and left no error in {folder.path}: it was killed, or its disk is full."


def _print_table(jobs: Sequence[dict[str, Any]]) -> None:
    """First what was set differently in each run, in full; then the numbers of each run."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shared = set.intersection(*(set(job["overrides"]) for job in jobs))
    settings = Table(title="Runs of this sweep", box=None, show_header=False)
    settings.add_column(justify="right", no_wrap=True)
    settings.add_column(overflow="fold")
    for job in jobs:
        differing = " ".join(text for text in job["overrides"] if text not in shared)
        settings.add_row(str(job["number"]), Text(differing))  # as Text, [brackets] are no markup

    rows = [headline(job) for job in jobs]
    splits = list(dict.fromkeys(split for row in rows for split in row))
    numbers = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
        caption="balanced / location accuracy, %",
    )
    for column in ("run", "ended", "minutes", *splits):
        numbers.add_column(column, overflow="fold")
    for job, row in zip(jobs, rows, strict=True):
        ended = {0: "ok", REFUSED: "refused"}.get(job["code"], f"failed ({job['code']})")
        cells = [row.get(split, "-") for split in splits]
        numbers.add_row(str(job["number"]), ended, _minutes(job), *cells)
    console = Console()
    console.print(settings, "", numbers, sep="\n")


def headline(job: dict[str, Any]) -> dict[str, str]:
    """`split, shots` to `balanced / location` of the last weights a run evaluated."""
    results = _summary(job).get("results", [])
    last = results[-1]["stage"] if results else None
    return {
        f"{r['stage']}: {r['split']}, {r['shots']}-shot": " / ".join(
            "-" if r[metric] is None else f"{r[metric]:.1f}"
            for metric in ("balanced_accuracy", "location_accuracy")
        )
        for r in results
        if r["stage"] == last
    }


def _minutes(job: dict[str, Any]) -> str:
    seconds = _summary(job).get("seconds", {})
    return f"{sum(seconds.values()) / 60:.1f}" if seconds else "-"


def _summary(job: dict[str, Any]) -> dict[str, Any]:
    return {} if job["folder"] is None else RunFolder(Path(job["folder"])).summary()
