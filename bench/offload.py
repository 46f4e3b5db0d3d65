"""AdamW on a CPU, where `engine.offload=cpu` has it: torch's fused kernel beside its default one.

    python bench/offload.py --json FILE

The optimisers are those of the product (`learn/optim.py`), with states of 100 million float32
parameters, as many as a rank has of a 3B model on 32 ranks; time is in proportion to their number.
Each is timed by itself, alternating, best of three.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench import record
from iad_r1.learn import optim

WIDTH, LAYERS = 4096, 6


def stepped(offloaded: bool) -> float:
    """Seconds of one step, once the moments are there."""
    model = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS))
    adam = optim.optimizer(
        model, learning_rate=1e-6, betas=(0.9, 0.999), weight_decay=0.1, vision_lr_scale=1.0,
        offloaded=offloaded,
    )  # fmt: skip
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    adam.step()
    start = time.perf_counter()
    adam.step()
    return time.perf_counter() - start


def measured(threads: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    times = [(stepped(True), stepped(False)) for _ in range(3)]
    fused, plain = (min(column) for column in zip(*times, strict=True))
    return {"ratio": round(plain / fused, 2), "fused": round(fused, 3), "plain": round(plain, 3)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    options = parser.parse_args(arguments)
    found = {f"threads_{threads}": measured(threads) for threads in (1, 2)}
    result = {
        "ratio": found["threads_1"]["ratio"],
        "parameters": LAYERS * WIDTH**2,
        **found,
        "torch": torch.__version__,
    }
    if options.json:
        record.write(options.json, result["ratio"], result)
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
