"""What the doctor does in a second on one core, beside a plain loop that opens and hashes files.

    python bench/doctor.py --quick             48 pictures and their masks, under 45 s
    python bench/doctor.py --json FILE         160, three rounds
    python bench/doctor.py --many 150000       that many of 64 x 64 pixels, one round: minutes

Half of the pictures are PNG, half JPEG, of 1024 x 1024 pixels if not said otherwise; half are
defective and have a PNG mask. The plain loop decodes every file with PIL and takes the SHA-256 of
its bytes. The doctor does that too, and also turns, hashes for likeness, places the masks, compares
all with all and looks for files that nothing names; on one thread here. `ratio` is the plain loop's
seconds divided by the doctor's, of CPU time, which other people's work on the machine lengthens
less than the clock's. `peak_mib` is what the resident memory of the process grew by while the
doctor worked.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from bench import record
from iad_r1.command import compose
from iad_r1.data import checkup
from iad_r1.grid import Grid

SIDE, SMALL = 1024, 64


def make(root: Path, count: int, side: int) -> None:
    """A folder of photographs that no two of are alike."""
    rng = np.random.default_rng(0)
    for i in range(count):
        kind, part = ("good", "cut")[i // 2 % 2], ("train", "test")[i // 4 % 2]
        file = root / "part" / part / kind / f"{i:06}{('.png', '.jpg')[i % 2]}"
        file.parent.mkdir(parents=True, exist_ok=True)
        shapes = Image.fromarray(rng.integers(0, 255, (24, 24, 3), np.uint8))
        smooth = np.asarray(shapes.resize((side, side), Image.Resampling.BICUBIC), np.int16)
        noisy = smooth + rng.integers(-3, 4, smooth.shape, np.int16)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, quality=90)
        if kind == "cut":
            mask = root / "part" / "ground_truth" / kind / f"{file.stem}_mask.png"
            mask.parent.mkdir(parents=True, exist_ok=True)
            marked = np.zeros((side, side), np.uint8)
            marked[side // 5 : side // 4, side // 3 : side // 2] = 255
            Image.fromarray(marked).save(mask)


def plain(root: Path) -> None:
    """Decode and hash every file."""
    for file in sorted(root.rglob("*.*")):
        with Image.open(file) as picture:
            picture.load()
        hashlib.sha256(file.read_bytes()).hexdigest()


def doctor(root: Path) -> None:
    """Everything that `stage=doctor` finds, before it is written down."""
    config = compose.compose(["stage=doctor", "data=photos", f"data.root={root}", "tracking=none"])
    source = checkup.listed("data", config.data, 0)
    checkup.opened(source, Grid(3, 3), "centroid_largest", 1, lambda: None)
    checkup.compared(source, checkup.distinct(source))
    checkup.judged(source, Grid(3, 3), "centroid_largest", 0, alone=True, defects=False)
    checkup.passed_over(source)
    if any(problem.stops for problem in source.problems):
        raise SystemExit(f"the pictures made here are not sound: {source.problems[0].say}")


def seconds(work: Callable[[Path], None], root: Path) -> float:
    begun = time.process_time()
    work(root)
    return time.process_time() - begun


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def compare(count: int, rounds: int, side: int = SIDE) -> dict[str, Any]:
    """Medians of rounds that take turns."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make(root, count, side)
        plain(root)  # files into the cache of the system, and PIL's decoders into memory
        before, runs = peak(), []
        for _ in range(rounds):
            runs.append((seconds(plain, root), seconds(doctor, root)))
        looped, checked = (median(values) for values in zip(*runs, strict=True))
    return {
        "ratio": round(looped / checked, 2),
        "pictures": count,
        "pictures_per_core_second": round(count / checked, 1),
        "plain_pictures_per_core_second": round(count / looped, 1),
        "peak_mib": round(peak() - before, 1),
        "environment": record.environment(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small, under 45 s")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--many", type=int, help="this many small pictures, one round")
    options = parser.parse_args()
    if options.many:
        found = compare(options.many, 1, SMALL)
    else:
        found = compare(48, 1) if options.quick else compare(160, 3)
    if options.json:
        record.write(options.json, found["ratio"], found)
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
