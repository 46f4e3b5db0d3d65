"""Runs the cases of `cases.py` one after the other, each as a process with a time limit of its own.

The file of numbers is written again after every case, so whatever ends this process, what was
measured before is there. A case that fails, runs out of memory or of time says so in place of its
numbers, beside those it had found by then; the next one starts. Standard library only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
CASES: Mapping[str, int] = {  # seconds that each may take; first what is worth most
    "agree twins": 75,
    "update qwen25vl_3b group_flash": 60,
    "update qwen25vl_3b group": 60,
    "update llava_ov_05b group_flash": 45,
    "update llava_ov_05b group": 45,
    "agree llava_ov_05b": 45,
    "update qwen25vl_3b off": 60,
    "update llava_ov_05b off": 45,
    "sft qwen25vl_3b": 60,
    "sft llava_ov_05b": 45,
    "step llava_ov_05b": 75,
    "step qwen25vl_3b": 90,
    "gap 24": 60,
    "gap 36": 60,
    "vllm qwen25vl_3b": 150,
    "update qwen25vl_3b group_flash whole": 60,
    "update qwen25vl_3b group_flex": 60,
}
BACKBONES = ("qwen25vl_3b", "llava_ov_05b")
LEAST = 15  # seconds: with less left no case is started
SHARED = ["stage=grpo", "data=synthetic", "tracking=none"]
SMALL = [  # for a rehearsal
    "weights=tiny", "engine.device=cpu", "grpo.prompts_per_step=2", "grpo.group_size=2",
    "rollout.max_tokens=8", "sft.phases.0.batch_size=2",
]  # fmt: skip


# --- before, where Hydra is -----------------------------------------------------------------------


def prepare(carried: Path) -> None:
    """Write the configurations that the cases read."""
    from iad_r1.command.compose import compose

    folder = carried / "configs"
    folder.mkdir(parents=True, exist_ok=True)
    for backbone in BACKBONES:
        for rollout in ("hf", "vllm"):
            chosen = [*SHARED, f"backbone={backbone}", f"rollout={rollout}"]
            for kind, more in {"": ["weights=random"], "-tiny": SMALL}.items():
                config = compose([*chosen, *more]).model_dump(mode="json")
                content = {"conf": digest(), "commit": commit(), "config": config}
                path = folder / f"{backbone}-{rollout}{kind}.json"
                path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(f"composed into {folder}\n")


def digest() -> str:
    """Of all values in conf/: a configuration composed from others is out of date."""
    found = hashlib.sha256()
    for path in sorted((REPOSITORY / "conf").rglob("*.yaml")):
        found.update(f"{path.relative_to(REPOSITORY)}\n".encode() + path.read_bytes())
    return found.hexdigest()


def commit() -> str | None:
    """The checkout's, with a plus if files differ from it; None where git does not know."""
    git = ["git", "-C", str(REPOSITORY)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        )
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return None if head.returncode else head.stdout.strip() + "+" * bool(changed.stdout)


# --- on the GPU -----------------------------------------------------------------------------------


def about(carried: Path) -> dict[str, Any]:
    """Where and of what the numbers are."""
    smi = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        shown = subprocess.run(smi, capture_output=True, text=True).stdout.strip().splitlines()
    except FileNotFoundError:
        shown = []
    device, driver, memory = shown[0].split(", ") if shown else ("cpu", None, None)
    prepared = [json.loads(p.read_text("utf-8")) for p in (carried / "configs").glob("*.json")]
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit() or next((one["commit"] for one in prepared), None),
        "device": device,
        "driver": driver,
        "memory": memory,
        "python": platform.python_version(),
        **{name: installed(name) for name in ("torch", "transformers", "peft", "vllm")},
    }


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def run(options: argparse.Namespace) -> int:
    """All cases; 1 if one of them failed."""
    options.folder.mkdir(parents=True, exist_ok=True)
    name = f"gpu-{'tiny-' if options.tiny else ''}{time.strftime('%Y-%m-%d')}"
    log, numbers = options.folder / f"{name}.log", options.folder / f"{name}.json"
    log.unlink(missing_ok=True)
    end = time.monotonic() + 60 * options.minutes
    result: dict[str, Any] = {"about": about(options.carried), "cases": {}}
    for words in options.only or CASES:
        limit = min(options.limit or CASES[words], end - time.monotonic())
        if limit < min(LEAST, options.limit or LEAST):
            found: dict[str, Any] = {"status": "no_time_left"}
        else:
            found = case(words.split(), limit, log, options)
        result["cases"][words] = found
        write(numbers, result)
        said = {k: v for k, v in found.items() if k in ("status", "reason", "seconds")}
        sys.stdout.write(f"{words}: {json.dumps(said)}\n")
        sys.stdout.flush()
    sys.stdout.write(f"{numbers}\n")
    return int(
        any(found["status"] in ("failed", "timed_out") for found in result["cases"].values())
    )


def case(words: list[str], limit: float, log: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What one case found, and how it ended."""
    with tempfile.TemporaryDirectory() as folder, log.open("a", encoding="utf-8") as shown:
        into = Path(folder) / "found.json"
        command = [sys.executable, str(options.program), *words, "--into", str(into)]
        command += ["--carried", str(options.carried)] + ["--tiny"] * options.tiny
        shown.write(f"\n=== {' '.join(words)}\n")
        shown.flush()
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if options.tiny else {}
        began = time.monotonic()
        process = subprocess.Popen(
            command, stdout=shown, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "TMPDIR": folder} | hidden,
        )  # fmt: skip
        try:
            code = process.wait(limit)
            ended = {"status": "failed", "reason": f"it ended with code {code}; see {log.name}"}
        except subprocess.TimeoutExpired:
            ended = {"status": "timed_out", "reason": f"it took more than {limit:.0f} s"}
        finally:
            kill(process)
        found = json.loads(into.read_text(encoding="utf-8")) if into.is_file() else {}
    if "status" in found:  # it ended as it meant to
        ended = {}
    return {**ended, **found, "seconds": round(time.monotonic() - began, 1)}


def kill(process: subprocess.Popen[bytes]) -> None:
    """The case, with whatever it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def write(path: Path, value: Any) -> None:
    """All of it or nothing."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("task", choices=("prepare", "run"))
    parser.add_argument("folder", type=Path, nargs="?", default=HERE.parent / "results")
    parser.add_argument("--carried", type=Path, default=HERE / "carried")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal with tiny twins")
    parser.add_argument("--only", action="append", help="a case, such as 'agree twins'; repeatable")
    parser.add_argument("--minutes", type=float, default=9.5, help="of all cases together")
    parser.add_argument("--limit", type=float, help="seconds of every case, in place of its own")
    parser.add_argument("--program", type=Path, default=HERE / "cases.py", help=argparse.SUPPRESS)
    options = parser.parse_intermixed_args()
    unknown = set(options.only or ()) - set(CASES)
    if unknown and options.limit is None:
        parser.error(f"there is no case {', '.join(unknown)}; there are {', '.join(CASES)}")
    if options.task == "prepare":
        prepare(options.carried)
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the case at work ends too
    return run(options)


if __name__ == "__main__":
    sys.exit(main())
