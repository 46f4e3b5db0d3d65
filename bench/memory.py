"""Peak memory of one GRPO update, beside TRL's GRPOTrainer: same model and data, fresh processes.

    python bench/memory.py --quick               G=4: this project against TRL, under 45 s
    python bench/memory.py --json FILE           G=4 and 8, and our plain rows (packing=off)

What is measured is the growth of the process's resident memory from right before the loss to its
highest point until the optimiser step is done (Linux: VmHWM, reset in between). Weights are there
before and not counted; gradients and AdamW's two moments are counted on every side alike, and are
also given alone (`fixed_mib`), so that what depends on the method can be told apart.

The workload is that of bench/grpo_step.py: one group, 576 image and about 45 text tokens, 120-token
completions, a random 8M-parameter Qwen2.5-VL in float32.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from grpo_step import AfterStep, Ours, Workload, environment, on_update_start, quiet, trl_trainer

from bench import record

SIDES = ("ours", "trl", "off")


def resident(kind: str) -> float:
    """MiB of this process: `VmRSS` now, `VmHWM` the most since the last reset."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(rf"{kind}:\s+(\d+) kB", status)
    if found is None:
        raise SystemExit(f"/proc/self/status has no {kind}; this benchmark needs Linux")
    return int(found.group(1)) / 1024


class Peak:
    """Growth of resident memory between `start` and `stop`."""

    growth = 0.0

    def start(self) -> None:
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # give freed pages back, so growth shows
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets VmHWM
        self.before = resident("VmRSS")

    def stop(self) -> None:
        self.growth = resident("VmHWM") - self.before


def measure_here(side: str, size: int) -> dict[str, float]:
    """One update of one side in this process, in MiB."""
    work, peak = Workload(groups=1, size=size), Peak()
    weights = sum(p.numel() * p.element_size() for p in work.model.parameters()) / 2**20
    if side == "trl":
        trainer = trl_trainer(work, 1, beta=0.0, fixed=True)
        on_update_start(trainer, peak.start)
        trainer.add_callback(AfterStep(peak.stop))
        trainer.train()
    else:
        ours = Ours(work)
        peak.start()
        ours.update("group" if side == "ours" else "off")
        peak.stop()
    return {"peak_mib": round(peak.growth, 1), "fixed_mib": round(3 * weights, 1)}


def measure(side: str, size: int, threads: int) -> dict[str, float]:
    """`measure_here` in a process of its own, so that no side inherits another's memory."""
    command = [sys.executable, __file__, "--side", side, "--size", str(size)]
    run = subprocess.run(
        [*command, "--threads", str(threads)], capture_output=True, text=True, check=False
    )
    if run.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{run.stderr[-2000:]}")
    return json.loads(run.stdout.splitlines()[-1])


def compare(size: int, sides: Sequence[str], threads: int) -> dict[str, Any]:
    with ThreadPoolExecutor() as pool:  # beside each other: memory is measured, not time
        peaks = pool.map(lambda side: measure(side, size, threads), sides)
        found = dict(zip(sides, peaks, strict=True))
    return {"ratio": round(found["trl"]["peak_mib"] / found["ours"]["peak_mib"], 2), **found}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="G=4, ours and TRL only")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--side", choices=SIDES, help="measure this side in this process")
    parser.add_argument("--size", type=int, default=4, help="group size, with --side")
    options = parser.parse_args(arguments)
    quiet()
    torch.set_num_threads(options.threads)
    if options.side:
        sys.stdout.write("\n" + json.dumps(measure_here(options.side, options.size)) + "\n")
        return
    about = environment(options.threads)
    sides = SIDES[:2] if options.quick else SIDES
    sizes = (4,) if options.quick else (4, 8)
    found = {f"update_g{size}": compare(size, sides, options.threads) for size in sizes}
    result = {"ratio": found["update_g4"]["ratio"], **found, "environment": about}
    text = json.dumps(result, indent=2)
    if options.json:
        record.write(options.json, result["ratio"], result)
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
