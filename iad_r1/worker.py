"""The process that does the work of one run: `python -m iad_r1.worker <run folder>`.

It reads `config.json` from the folder and nothing else of the command line, so a run is
reproducible from its folder.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import sys
import traceback
from contextlib import nullcontext
from types import FrameType

from iad_r1.config import Config, read
from iad_r1.errors import IadError, Terminated
from iad_r1.run_folder import REPOSITORY, RunFolder, manifest, write_text

# The module whose `run(config, folder)` does what `stage=<name>` asks for.
STAGES = {
    "pipeline": "iad_r1.stages.pipeline",
    "pretrain": "iad_r1.stages.pipeline",
    "sft": "iad_r1.stages.pipeline",
    "grpo": "iad_r1.stages.pipeline",
    "evaluate": "iad_r1.stages.pipeline",
    "report": "iad_r1.stages.report",
    "audit": "iad_r1.stages.audit",
}
REFUSED, FAILED, INTERRUPTED = 2, 1, 130


def main(arguments: list[str]) -> int:
    """Carry out the run in the folder named by the one argument; returns the exit code."""
    if len(arguments) != 1:
        print("usage: python -m iad_r1.worker <run folder>", file=sys.stderr)
        return REFUSED
    signal.signal(signal.SIGTERM, _terminate)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
    _end_with_parent()
    try:
        folder = RunFolder.open(arguments[0])
        config = read(folder.config_file)
    except IadError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return REFUSED
    return _carry_out(config, folder)


def _carry_out(config: Config, folder: RunFolder) -> int:
    """Run the stage; record how it ended in `manifest.json` and what went wrong in `error.txt`."""
    try:
        with folder.locked() if _is_main() else nullcontext():
            if _is_main():
                folder.update_manifest(**manifest(REPOSITORY), status="running")
            _prepare_libraries(config)
            importlib.import_module(STAGES[config.stage.name]).run(config, folder)
    except IadError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return _ended(folder, "refused", REFUSED)
    except (KeyboardInterrupt, Terminated) as stop:
        if _is_main():  # the other ranks are stopped by this one, which need not be said again
            print(
                f"\nstopped. What was written stays in {folder.path}; the same command with "
                "resume=auto goes on from there.",
                file=sys.stderr,
            )
        code = 0 if isinstance(stop, Terminated) else INTERRUPTED
        return _ended(folder, "stopped", code, keep_error=False)
    except Exception:  # nobody foresaw it: shown in full, and kept
        traceback.print_exc()
        print(f"\nunexpected error, kept in {folder.path / 'error.txt'}", file=sys.stderr)
        return _ended(folder, "failed", FAILED)
    return _ended(folder, "finished", 0)


def _ended(folder: RunFolder, status: str, code: int, keep_error: bool = True) -> int:
    if not _is_main():
        return code
    if code and keep_error:
        write_text(folder.path / "error.txt", traceback.format_exc())
    folder.update_manifest(status=status)
    return code


def _is_main() -> bool:
    """Whether this is the process that run.py started, not a further rank of it."""
    return os.environ.get("IAD_R1_RANK", "0") == "0"


def _prepare_libraries(config: Config) -> None:
    """Settings that numerical libraries read once, when they are first imported."""
    threads = str(config.engine.threads)
    os.environ.update(OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # it would start threads beside those


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise Terminated


def _end_with_parent() -> None:
    """Get SIGTERM when the process that started this one is gone, even if it was killed."""
    parent = os.environ.pop("IAD_R1_PARENT", None)
    if parent is None or sys.platform != "linux":
        return
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):  # it ended before the line above
        raise Terminated


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
