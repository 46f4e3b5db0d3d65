"""What `python run.py` and torchrun do, in a fork of a process that has imported the trainers.

A fresh Python imports for six seconds; a fork starts at once and knows nothing of the runs before
it, for the process it is forked from imports and does nothing else. `multiprocessing` keeps that
process. What the command line, a fresh process or several ranks are tested for starts as users
start it.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any
from unittest import mock

from iad_r1 import stages
from iad_r1.command import launch, worker
from iad_r1.processes import torchrun

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
SERVER = multiprocessing.get_context("forkserver")
IMPORTED = [__name__, *stages.find("pipeline").imports, "iad_r1.report", "matplotlib.pyplot"]


def import_once() -> None:
    """Have the process that is forked import what runs need, unless it is there already."""
    # in it, `sys.path` holds what this variable says and no more; what is not found there is passed
    # over without a word
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join([str(HERE), str(REPOSITORY)])):
        SERVER.set_forkserver_preload(IMPORTED)
        forkserver.ensure_running()


def start_worker(folder: Path, log: Path) -> ForkServerProcess:
    """A process that does the work of the run in `folder`."""
    return start(_work, folder, log)


def start_run(overrides: Sequence[str], place: Path, log: Path) -> ForkServerProcess:
    """A process that does what `python run.py <overrides>` does in `place`, with one rank."""
    return start(_run, list(overrides), place, log)


def start_torchrun(arguments: Sequence[str], place: Path, log: Path) -> ForkServerProcess:
    """A process that does what `python -m iad_r1.processes.torchrun <arguments>` does with `place`
    among the folders that modules are looked for in; its ranks are fresh processes."""
    return start(_torchrun, list(arguments), place, log)


def start(target: Callable[..., None], *given: Any) -> ForkServerProcess:
    """A process that calls `target`, a function of a module."""
    import_once()
    process = SERVER.Process(target=target, args=given)
    process.start()
    return process


def _work(folder: Path, log: Path) -> None:
    _say_into(log)
    sys.exit(worker.main([str(folder)]))


def _run(overrides: list[str], place: Path, log: Path) -> None:
    _say_into(log)
    os.chdir(place)
    sys.argv = ["run.py", *overrides]
    launch.carry_out = _carry_out
    sys.exit(launch.main())


def _torchrun(arguments: list[str], place: Path, log: Path) -> None:
    _say_into(log)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), str(place)])
    sys.exit(torchrun.main(arguments))


def _carry_out(command: list[str], offline: bool, saves: bool) -> int:
    """In this process, where `run.py` starts another one."""
    _, *module, folder = command
    assert module == ["-m", worker.__name__], command
    return worker.main([folder])


def _say_into(log: Path) -> None:
    with log.open("a") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
