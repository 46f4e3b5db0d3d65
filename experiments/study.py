"""What studies share: a run is started once and found again, and where its numbers come from."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from iad_r1.command.compose import compose
from iad_r1.store.run_folder import RunFolder
from iad_r1.store.starts import find_finished

REPOSITORY = Path(__file__).resolve().parent.parent
OUTPUTS = REPOSITORY / "outputs"


def run(name: str, seed: int, *settings: str, may_run: bool) -> RunFolder:
    """The finished run with these settings; without one it is carried out now."""
    wanted = [f"name={name}", f"seed={seed}", *settings]
    found = find_finished(OUTPUTS, compose(wanted, REPOSITORY).model_dump(mode="json"))
    if found is not None:
        return found
    if not may_run:
        raise SystemExit(f"no finished run in outputs/{name} has these settings: {wanted}")
    print("\n$ python run.py", *wanted, flush=True)
    command = [sys.executable, "run.py", *wanted, "resume=auto"]
    subprocess.run(command, cwd=REPOSITORY, check=True)
    return run(name, seed, *settings, may_run=False)


def facts(runs: Mapping[int, Mapping[str, RunFolder]]) -> Iterator[dict[str, Any]]:
    """Where the numbers come from: seconds, code revision and hardware of every run."""
    for seed, arms in runs.items():
        for arm, folder in arms.items():
            manifest = folder.read_json("manifest.json")
            known = {key: manifest[key] for key in ("code", "hardware") if key in manifest}
            yield {"arm": arm, "seed": seed, "seconds": folder.summary().get("seconds"), **known}
