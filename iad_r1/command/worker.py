"""The process that does the work of one run: `python -m iad_r1.command.worker <run folder>`.

It reads `config.json` from the folder and nothing else of the command line, so a run is
reproducible from its folder.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from contextlib import nullcontext
from typing import NoReturn

from iad_r1 import stages
from iad_r1.errors import UNWRITABLE, IadError, Terminated
from iad_r1.processes import ranks, stopping
from iad_r1.settings.config import Config, read
from iad_r1.store.manifest import manifest
from iad_r1.store.run_folder import REPOSITORY, RunFolder, write_text

REFUSED, FAILED, INTERRUPTED = 2, 1, 130


def main(arguments: list[str]) -> int:
    """Carry out the run in the folder named by the one argument; returns the exit code."""
    if len(arguments) != 1:
        print("usage: python -m iad_r1.command.worker <run folder>", file=sys.stderr)
        return REFUSED
    ranks.end_with_parent()
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
        with stopping.signals_raised(), folder.locked() if ranks.is_main() else nullcontext():
            if ranks.is_main():
                folder.update_manifest(**manifest(REPOSITORY), status="running")
            _prepare_libraries(config)
            with stopping.signals_answered(lambda number: _leave(folder, number)):
                stage = stages.find(config.stage.name)
                for module in stage.imports:
                    importlib.import_module(module)
            code = stage.run(config, folder)
    except IadError as error:
        if ranks.may_speak(folder.path, error):
            print(f"\nerror: {error}", file=sys.stderr, flush=True)
            _record(folder, "refused", keep_error=True)
        return REFUSED
    except (KeyboardInterrupt, Terminated) as stop:
        return _stopped(folder, 0 if isinstance(stop, Terminated) else INTERRUPTED)
    except OSError as error:
        if error.errno not in UNWRITABLE:
            return _failed(folder, error)
        if ranks.may_speak(folder.path, error):
            print(f"\nerror: {_refused(folder, error)}", file=sys.stderr, flush=True)
        return FAILED
    except Exception as error:
        return _failed(folder, error)
    if ranks.is_main():
        _record(folder, "finished")
    return code or 0


def _failed(folder: RunFolder, error: Exception) -> int:
    """Nobody foresaw it: shown in full, and kept."""
    if ranks.may_speak(folder.path, error):
        traceback.print_exc()
        print(f"\nunexpected error, kept in {folder.path / 'error.txt'}", file=sys.stderr)
        _record(folder, "failed", keep_error=True)
    return FAILED


def _refused(folder: RunFolder, error: OSError) -> str:
    """What to say where the operating system lets nothing be written, or a file not be read."""
    where = error.filename or folder.path
    return (
        f"{where}: {error.strerror}. What was written before stays. Make room or allow it; the "
        "same command with resume=auto goes on from there."
    )


def _stopped(folder: RunFolder, code: int) -> int:
    if not ranks.started_by_torchrun():  # of several ranks, the process above them speaks
        stopping.say_stopped(folder.path)
    if ranks.is_main() and not ranks.somebody_failed(folder.path):
        _record(folder, "stopped")
    return code


def _leave(folder: RunFolder, number: int) -> NoReturn:
    code = _stopped(folder, 0 if number == signal.SIGTERM else INTERRUPTED)
    os._exit(code)


def _record(folder: RunFolder, status: str, keep_error: bool = False) -> None:
    if keep_error:
        write_text(folder.path / "error.txt", traceback.format_exc())
    folder.update_manifest(status=status)


def _prepare_libraries(config: Config) -> None:
    """Settings that numerical libraries read once, when they are first imported."""
    threads = str(config.engine.threads)
    os.environ.update(OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # it would start threads beside those


if __name__ == "__main__":
    ranks.leave(main(sys.argv[1:]))
