"""What the processes of one run know of each other before (and without) torch.

torchrun tells a process its rank through environment variables; a file in the run folder settles
which rank may speak when several fail at once, and processes end with the one that started them.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

from iad_r1.errors import Terminated

PARENT = "IAD_R1_PARENT"  # the process to end with
FAILED = ".failed"  # in the run folder, while its processes end: a rank has said why
LAST_WORDS = 15.0  # seconds to wait for a word, or the end, from where a lost connection led


def started_by_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_main() -> bool:
    """Whether this process is rank 0, or the only one."""
    return not started_by_torchrun() or os.environ["RANK"] == "0"


def may_speak(folder: Path, error: BaseException) -> bool:
    """Whether this rank is the first to fail, and should say why; the others stay silent.

    A lost connection means that another rank failed: that one is given time to say why, and
    torchrun to end this one.
    """
    if not started_by_torchrun():
        return True
    deadline = time.monotonic() + (LAST_WORDS if is_lost_connection(error) else 0.0)
    while time.monotonic() < deadline and not somebody_failed(folder):
        time.sleep(0.1)
    try:
        (folder / FAILED).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def somebody_failed(folder: Path) -> bool:
    """Whether a rank has said why it failed; torchrun then stops the others."""
    return (folder / FAILED).exists()


def is_lost_connection(error: BaseException) -> bool:
    """Whether a collective operation failed: gloo and NCCL raise plain RuntimeErrors."""
    text = f"{type(error).__name__} {error}".lower()
    signs = ("gloo", "nccl", "connection reset", "connection closed", "broken pipe", "distbackend")
    return isinstance(error, RuntimeError) and any(sign in text for sign in signs)


def forget(folder: Path) -> None:
    """Before and after a run's processes: nobody has failed."""
    (folder / FAILED).unlink(missing_ok=True)


def leave(code: int) -> NoReturn:
    """End this process. One that torchrun started is not taken apart first: threads of libraries
    may still run then, and C++ aborts a rank whose work is done and saved ("terminate called
    without an active exception", after 1 of 21 short runs with DeepSpeed on a busy machine)."""
    if started_by_torchrun():
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def end_with_parent() -> None:
    """Get SIGTERM when the process that started this one is gone, even if it was killed. Linux sees
    to that, also after this process has become another program; elsewhere a thread does."""
    parent = int(os.environ.pop(PARENT, "0"))
    if not parent:
        return
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it ended before the line above
            raise Terminated
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)
