"""torchrun, for the ranks of one run: `python -m iad_r1.processes.torchrun <its own arguments>`.

It starts the ranks, finds them a free port and ends all when one fails, as `torchrun` does. Three
things are its own: SIGTERM and Ctrl-C are passed on and waited for, so that ranks can save and end
by themselves, and those that are left waiting are ended; a failed rank's own words are not buried
under torchrun's report; and it ends, with its ranks, when the process that started it is gone.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import threading
import time
from contextlib import suppress

import psutil
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SubprocessContext
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from iad_r1.processes import ranks, stopping
from iad_r1.store.run_folder import RunFolder

GRACE = 5  # seconds that the other ranks get when one has failed: nothing is left to save
BEHIND = 2  # the same when one has stopped: all is saved by then
LAST = 90  # the same for rank 0, which may still send metrics away (tracking.finish_timeout)
LOOK = 0.1  # seconds between two looks for signals to pass on, and for ranks to pass them to
INTERRUPTED, FAILED = 130, 1


def main(arguments: list[str]) -> int:
    """Start the ranks, wait for them and return the run's exit code. The last argument is the run
    folder."""
    signal.pthread_sigmask(signal.SIG_BLOCK, stopping.ENDING)  # ranks let them in when they can
    ranks.end_with_parent()
    os.environ[ranks.PARENT] = str(os.getpid())  # the ranks end with this process
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torchrun would warn; each rank sets its own
    folder = RunFolder.open(arguments[-1])
    given = torchrun.parse_args(
        # SIGQUIT: the one signal that torchrun answers by itself; see `pass_on`
        ["--signals-to-handle=SIGQUIT", f"--shutdown-timeout={GRACE}", *arguments]
    )
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    asked: list[int] = []
    threading.Thread(target=pass_on, args=(asked,), daemon=True).start()
    ranks.forget(folder.path)
    end_soon()
    try:
        torchrun.run(given)
    except ChildFailedError as error:
        if not asked or status(folder) in ("failed", "refused"):
            return failed(folder, cause(error))
    finally:
        ranks.forget(folder.path)
    if not asked or status(folder) == "finished":
        return 0
    folder.update_manifest(status="stopped")  # rank 0 may have had to be ended
    stopping.say_stopped(folder.path)
    return INTERRUPTED if asked[:1] == [signal.SIGINT] else 0


def end_soon() -> None:
    """Give the others GRACE seconds when a rank has failed. torchrun's `--shutdown-timeout` is not
    asked there, and half a minute is long for those that wait for a rank that never comes."""
    end = SubprocessContext.close
    SubprocessContext.close = lambda self, death_sig=None, timeout=GRACE: end(
        self, death_sig, min(timeout, GRACE)
    )


def pass_on(asked: list[int]) -> None:
    """Pass Ctrl-C and SIGTERM on to every rank, also to those that are started later, and end those
    that wait in native code for a rank that has stopped; for a thread of its own, in a process that
    blocks both signals."""
    told: set[int] = set()
    first_end = math.inf
    while True:
        if signal.sigpending() & stopping.ENDING:
            asked.append(signal.sigwait(stopping.ENDING))
            told.clear()
        living = {child.pid: child for child in psutil.Process().children()} if asked else {}
        if told - living.keys():
            first_end = min(first_end, time.monotonic())
        for pid, child in living.items():
            with suppress(psutil.NoSuchProcess):  # it ended by itself just now
                grace = LAST if child.environ().get("RANK") == "0" else BEHIND
                if time.monotonic() > first_end + grace:
                    child.kill()
                elif pid not in told:
                    told.add(pid)
                    child.send_signal(asked[-1])
        time.sleep(LOOK)


def status(folder: RunFolder) -> str | None:
    """How the run ended, as far as rank 0 could say."""
    return folder.read_json("manifest.json").get("status")


def cause(error: ChildFailedError) -> ProcessFailure:
    """The failure of the rank that failed first: one with an exit code of its own if there is one,
    for torchrun ends the others by signals, and notes the time of all when they have ended."""
    return min(
        error.failures.values(),
        key=lambda it: (it.exitcode < 0, it.exitcode == -signal.SIGTERM, it.timestamp),
    )


def failed(folder: RunFolder, failure: ProcessFailure) -> int:
    """The exit code of a run whose first failure this is; says so if the rank itself could not."""
    if failure.exitcode >= 0:
        return failure.exitcode
    name = signal.Signals(-failure.exitcode).name
    print(
        f"\nerror: a rank (process {failure.pid}) was ended by {name}, and the others with it."
        " If nobody sent it, memory ran out: see the kernel's log, and use smaller batches or"
        " engine.offload=cpu. The same command with resume=auto goes on from the last checkpoint.",
        file=sys.stderr,
    )
    folder.update_manifest(status="failed")
    return FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
