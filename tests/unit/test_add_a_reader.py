"""A data set is added by one file and one YAML file each for training and for testing on it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SQUARES = '''"""Squares, drawn on grey: with a dark corner or without."""

from collections.abc import Iterator
from typing import Literal

from pydantic import PositiveInt

from iad_r1.settings.data import TrainingSplit
from iad_r1.types import Sample, Solution


class Settings(TrainingSplit):
    name: Literal["squares"]
    edge: PositiveInt

    def announce(self) -> str:
        return f"squares of {self.edge} px"


def read(settings: Settings, seed: int) -> Iterator[Sample]:
    import numpy as np
    from PIL import Image

    edge = settings.edge
    for split, size in (("train", 20), ("test", 6)):
        for index in range(size):
            levels = np.random.default_rng([seed, size, index]).integers(90, 200, (edge, edge))
            mask = np.zeros((edge, edge), np.uint8)
            if index % 2:
                mask[: edge // 4, : edge // 4] = 255
            image = Image.fromarray(np.where(mask > 0, 0, levels).astype(np.uint8))
            yield Sample(
                id=f"squares/{split}/{index}",
                dataset="squares",
                split=split,
                product="square",
                image=image,
                solution=Solution("Yes", None, "hole") if index % 2 else Solution("No"),
                mask=Image.fromarray(mask) if index % 2 else None,
            )
'''
SQUARES_YAML = """# Squares with holes
name: squares
edge: 32
validation_share: 0.2
near_duplicate_bits: 0
drop_leaks: false
"""
BENCHMARK_YAML = """# @package benchmark.squares
# Squares with holes
defaults:
  - /data/squares@_here_
"""
LOAD = """
import json, sys
from iad_r1 import data
from iad_r1.command import compose
dataset = data.for_run(compose.compose(sys.argv[1:]))
parts = {"sft": dataset.sft, "rl": dataset.rl, **dataset.validation, **dataset.test}
json.dump({
    "sizes": {name: len(samples) for name, samples in parts.items()},
    "places": sorted({s.solution.location for p in parts.values() for s in p if s.mask}),
    "references": min(len(s.references) for p in parts.values() for s in p),
}, sys.stdout)
"""


@pytest.fixture(scope="module")
def copy(project_with) -> Path:
    """The project with a reader more."""
    return project_with(
        {
            "iad_r1/data/readers/squares.py": SQUARES,
            "conf/data/squares.yaml": SQUARES_YAML,
            "conf/benchmark/squares.yaml": BENCHMARK_YAML,
        }
    )


def python(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=root, capture_output=True, text=True, check=False
    )


def test_an_added_data_set_trains_and_tests(copy):
    loaded = python(copy, "-c", LOAD, "stage=sft", "data=squares")
    assert loaded.returncode == 0, loaded.stderr
    found = json.loads(loaded.stdout)
    # `seen` is the name of the validation and the test part alike; the test part is the last
    assert found["sizes"] == {"sft": 16, "rl": 16, "seen": 6}
    assert found["places"] == ["top left"] and found["references"] == 4


def test_an_added_data_set_is_a_benchmark_beside_others(copy):
    chosen = ["stage=evaluate", "backbone=qwen25vl_3b", "benchmark=squares"]
    loaded = python(copy, "-c", LOAD, *chosen)
    assert loaded.returncode == 0, loaded.stderr
    assert json.loads(loaded.stdout)["sizes"] == {"sft": 0, "rl": 0, "squares": 6}


def test_the_plan_of_a_run_says_what_an_added_data_set_is(copy):
    chosen = ["dry_run=true", "stage=sft", "data=squares", "data.edge=48", "benchmark=squares"]
    shown = python(copy, "run.py", *chosen, "tracking=none")
    assert shown.returncode == 0, shown.stderr
    assert "sft on tiny, data squares, benchmark squares" in shown.stdout
    assert "data      squares of 48 px" in shown.stdout
    assert "benchmark squares of 32 px" in shown.stdout
    refused = python(copy, "run.py", "data=squares", "data.edge=0")
    assert refused.returncode == 2 and "data.edge=0" in refused.stderr


def test_a_memory_plan_knows_an_added_data_set(copy):
    planned = python(copy, "run.py", "stage=plan", "backbone=qwen25vl_3b", "data=squares")
    assert planned.returncode == 0, planned.stderr
    assert "data=squares" in planned.stdout
