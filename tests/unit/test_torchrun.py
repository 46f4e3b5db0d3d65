"""What torchrun's process makes of ranks that fail, and of those that do not end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import forks
import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from iad_r1.processes import torchrun
from iad_r1.store.run_folder import RunFolder


def failures(*codes: int) -> ChildFailedError:
    """As torchrun reports them: all at the time when the last rank had ended."""
    return ChildFailedError(
        "run",
        {rank: ProcessFailure(rank, 100 + rank, code, "none") for rank, code in enumerate(codes)},
    )


@pytest.mark.parametrize(
    ("codes", "first"),
    [
        ((2, -signal.SIGTERM), 0),
        ((-signal.SIGTERM, 2), 1),  # rank 0 was ended because rank 1 had failed
        ((-signal.SIGKILL, 1), 1),  # and was slow to end
        ((-signal.SIGTERM, -signal.SIGKILL), 1),
        ((-signal.SIGSEGV, -signal.SIGTERM), 0),
    ],
)
def test_the_rank_that_failed_first_is_told_from_those_that_were_ended_for_it(codes, first):
    assert torchrun.cause(failures(*codes)).local_rank == first


def test_a_rank_that_spoke_for_itself_is_not_spoken_for(tmp_path, capsys):
    folder = RunFolder(tmp_path)
    assert torchrun.failed(folder, torchrun.cause(failures(-signal.SIGTERM, 2))) == 2
    assert capsys.readouterr().err == ""
    assert torchrun.failed(folder, torchrun.cause(failures(-signal.SIGTERM, -signal.SIGKILL))) == 1
    assert "process 101) was ended by SIGKILL" in capsys.readouterr().err


RANK = """
import os, sys, time
from pathlib import Path
from iad_r1.processes import stopping
from iad_r1.errors import Terminated
folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
(folder / f"ready{rank}").touch()
if rank == 1 and (folder / "stuck").exists():  # as where it waits in native code for the other
    time.sleep(600)
try:
    with stopping.signals_raised():
        time.sleep(600)
except Terminated:
    if rank == 0 and (folder / "full").exists():  # as where the disk is full, and it cannot save
        (folder / "manifest.json").write_text('{"status": "failed"}')
        sys.exit(1)
    if rank == 0 and not (folder / "stuck").exists():
        time.sleep(4)
    (folder / f"ended{rank}").touch()
"""


def stopped_ranks(tmp_path: Path, *files: str, code: int = 0, status: str = "stopped") -> str:
    """What is said when two ranks are told to stop; the files say what they do then."""
    (tmp_path / "ranks.py").write_text(RANK)
    (tmp_path / "config.json").write_text("{}")
    for name in files:
        (tmp_path / name).touch()
    log = tmp_path / "log.txt"
    told = ["--standalone", "--nproc-per-node=2", "-m", "ranks", str(tmp_path)]
    process = forks.start_torchrun(told, tmp_path, log)
    while not all((tmp_path / f"ready{rank}").exists() for rank in (0, 1)):
        assert process.is_alive()
        time.sleep(0.1)
    process.terminate()
    process.join(timeout=300)
    said = log.read_text(encoding="utf-8")
    assert process.exitcode == code, said
    assert json.loads((tmp_path / "manifest.json").read_text())["status"] == status
    return said


@pytest.mark.slow
def test_a_rank_that_waits_for_one_that_has_stopped_is_ended(tmp_path):
    said = stopped_ranks(tmp_path, "stuck")
    assert f"stopped. What was written stays in {tmp_path}" in said
    assert "Traceback" not in said and "error" not in said
    assert (tmp_path / "ended0").exists() and not (tmp_path / "ended1").exists()


@pytest.mark.slow
def test_rank_0_has_time_to_send_its_metrics_away_when_the_others_have_stopped(tmp_path):
    said = stopped_ranks(tmp_path)
    assert said.count("stopped. What was written stays in") == 1
    assert (tmp_path / "ended0").exists() and (tmp_path / "ended1").exists()


def test_a_run_that_cannot_save_when_it_is_stopped_has_failed(tmp_path):
    said = stopped_ranks(tmp_path, "full", code=1, status="failed")
    assert "stopped. What was written" not in said


LEAVING = """
import atexit, ctypes
from iad_r1.processes import ranks
libc = ctypes.CDLL(None)
libc.__cxa_atexit(libc.abort, None, None)  # as libraries do whose threads still run
atexit.register(print, "closed")
print("done")
ranks.leave(3)
"""


@pytest.mark.parametrize(("rank", "code"), [({"TORCHELASTIC_RUN_ID": "x"}, 3), ({}, -6)])
def test_a_rank_whose_work_is_done_is_not_ended_by_what_libraries_leave_running(rank, code):
    plain = {name: value for name, value in os.environ.items() if name != "TORCHELASTIC_RUN_ID"}
    left = subprocess.run(
        [sys.executable, "-c", LEAVING], env=plain | rank, capture_output=True, text=True
    )
    assert (left.returncode, left.stdout.split()) == (code, ["done", "closed"])
