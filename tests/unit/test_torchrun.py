"""What torchrun's process makes of ranks that fail, and of those that do not end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from iad_r1 import torchrun
from iad_r1.run_folder import RunFolder

REPOSITORY = Path(__file__).resolve().parents[2]


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


STUBBORN = """
import os, sys, time
from pathlib import Path
from iad_r1 import stopping
from iad_r1.errors import Terminated
rank = int(os.environ["RANK"])
(Path(sys.argv[1]) / f"ready{rank}").touch()
if rank == 0:  # as where it waits in native code for the other
    time.sleep(600)
try:
    with stopping.signals_raised():
        time.sleep(600)
except Terminated:
    sys.exit(0)
"""


def test_a_rank_that_waits_for_one_that_has_stopped_is_ended(tmp_path):
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    (tmp_path / "config.json").write_text("{}")
    process = subprocess.Popen(
        [sys.executable, "-m", "iad_r1.torchrun", "--standalone", "--nproc-per-node=2",
         "-m", "stubborn", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{tmp_path}"}, text=True,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    while not all((tmp_path / f"ready{rank}").exists() for rank in (0, 1)):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert f"stopped. What was written stays in {tmp_path}" in said
    assert "Traceback" not in said and "error" not in said
    assert json.loads((tmp_path / "manifest.json").read_text())["status"] == "stopped"
