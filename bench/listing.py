"""How long it takes to list a large benchmark, and how much memory that needs.

    python bench/listing.py --quick             MVTec AD's layout alone, under 45 s
    python bench/listing.py --json FILE         Real-IAD's layout too

Trees of 150,000 tiny pictures, a third of them defective with a mask each. `ours` is everything
that `benchmark=<name>` does before a picture is opened: listing, checks, order, references. The
peer lists the same tree as data modules of the field do: `rglob`, a pandas
table with a row per file, and a look for every mask. It knows no references and checks nothing.

`ratio` is the peer's processor time over ours, in MVTec AD's layout. Memory is the peak of a fresh
process, less what it had before it listed.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from bench import record

PICTURES = 150_000
PRODUCTS = 30
SIDE = 8  # pixels


def build_mvtec(root: Path) -> None:
    """<product>/{train/good,test/good,test/dent,ground_truth/dent}."""
    content = picture()
    each = PICTURES // PRODUCTS // 3
    for product in range(PRODUCTS):
        top = root / f"product_{product:02}"
        for folder, name in (
            ("train/good", "{:05}.png"), ("test/good", "{:05}.png"), ("test/dent", "{:05}.png"),
            ("ground_truth/dent", "{:05}_mask.png"),
        ):  # fmt: skip
            (top / folder).mkdir(parents=True)
            fill(top / folder, [name.format(i) for i in range(each)], content)


def build_real_iad(root: Path) -> None:
    """realiad_jsons/<object>.json, realiad_256/<object>/."""
    content = picture()
    each = PICTURES // PRODUCTS // 3
    (root / "realiad_jsons").mkdir(parents=True)
    for product in range(PRODUCTS):
        name = f"object_{product:02}"
        rows: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
        for part, kind in (("train", "OK"), ("test", "OK"), ("test", "AK")):
            folder = root / "realiad_256" / name / kind / part
            folder.mkdir(parents=True)
            suffixes = (".jpg",) if kind == "OK" else (".jpg", ".png")
            fill(folder, [f"{i:05}{suffix}" for i in range(each) for suffix in suffixes], content)
            for i in range(each):
                path, mask = f"{kind}/{part}/{i:05}.jpg", f"{kind}/{part}/{i:05}.png"
                rows[part].append(
                    {"anomaly_class": kind, "image_path": path,
                     "mask_path": mask if kind != "OK" else None}
                )  # fmt: skip
        listed = {"meta": {"prefix": "", "normal_class": "OK"}, **rows}
        (root / "realiad_jsons" / f"{name}.json").write_text(json.dumps(listed))


def fill(folder: Path, names: Sequence[str], content: bytes) -> None:
    """Files of this content: one, and links to it, which are made many times as fast."""
    first = folder / names[0]
    first.write_bytes(content)
    for name in names[1:]:
        (folder / name).hardlink_to(first)


BUILD = {"mvtec": build_mvtec, "real_iad": build_real_iad}


def picture() -> bytes:
    """One white PNG; it serves as picture and as mask."""
    with tempfile.NamedTemporaryFile(suffix=".png") as file:
        Image.new("L", (SIDE, SIDE), 255).save(file.name)
        return Path(file.name).read_bytes()


def ours(name: str, root: Path) -> int:
    """What a run does before it opens its benchmark; the number of pictures to show."""
    from iad_r1.command import compose
    from iad_r1.data import mix

    size = ["benchmark.real_iad.size='256'"] if name == "real_iad" else []
    config = compose.compose(
        ["stage=evaluate", "backbone=qwen25vl_3b", "tracking=none", f"benchmark={name}",
         f"benchmark.{name}.root={root}", *size]
    )  # fmt: skip

    def look(_: object) -> mix.Photo:
        raise AssertionError("a benchmark whose parts are said is listed without opening a file")

    begin()
    return len(mix.tested(name, config.benchmark[name], config.seed, None, look)[0])


def peer(_name: str, root: Path) -> int:
    """Every file in a table, and a look for every mask."""
    import pandas

    begin()
    files = [path for path in root.rglob("*") if path.suffix in (".png", ".jpg")]
    rows = [(str(path), *path.parts[-4:-1]) for path in files]
    table = pandas.DataFrame(rows, columns=["path", "product", "split", "label"])
    table = table.sort_values(by="path", ignore_index=True)
    bad = table[~table.label.isin(["good", "train"])]
    return len(table) - sum(not Path(path).exists() for path in bad.path)


_BEGUN: list[float] = []


def begin() -> None:
    """From here on it is measured: imports and settings are not."""
    _BEGUN[:] = [time.perf_counter(), time.process_time(), peak()]


def peak() -> float:
    """MiB that this process had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(who: str, name: str, root: Path) -> dict[str, float]:
    """One way to list, in a fresh process."""
    command = [sys.executable, __file__, "--child", who, name, str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def child(who: str, name: str, root: Path) -> None:
    """Measure, and print it as JSON."""
    WAYS[who](name, root)
    wall, cpu, before = _BEGUN
    found = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu,
             "peak_mib": peak(), "grown_mib": peak() - before}  # fmt: skip
    print(json.dumps({key: round(value, 3) for key, value in found.items()}))


WAYS = {"ours": ours, "peer": peer}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="MVTec AD's layout alone")
    parser.add_argument("--json", type=Path, help="write the numbers to this file too")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child[0], options.child[1], Path(options.child[2]))
        return
    found: dict[str, Any] = {"pictures": PICTURES}
    for name in ("mvtec",) if options.quick else BUILD:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / name
            BUILD[name](root)
            found[name] = {who: measured(who, name, root) for who in WAYS}
        found[name]["ratio"] = round(found[name]["peer"]["cpu_s"] / found[name]["ours"]["cpu_s"], 2)
    print(json.dumps(found, indent=1))
    if options.json:
        record.write(options.json, found["mvtec"]["ratio"], found)


if __name__ == "__main__":
    main()
