"""The GPU kit rehearsed: `bench/gpu/run.sh` as the GPU's machine runs it, with tiny twins on a CPU,
where the packages that are missing there cannot be imported."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from iad_r1.backbones.packing import completion_logprobs
from iad_r1.planner.widths import widths_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
REPOSITORY = Path(__file__).parents[2]
GPU = REPOSITORY / "bench" / "gpu"
# What docs/gpu.md says that the GPU's machine has; it also has what these bring in
THERE = ("torch", "torchvision", "transformers", "peft", "accelerate", "psutil", "pandas", "scipy",
         "scikit-learn", "pyarrow", "rich", "jinja2")  # fmt: skip
WITHOUT = """
import sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        found = super().find_spec(name, path, target)
        where = found and (found.origin or found.submodule_search_locations)
        installed = "site-packages" in str(where)
        return None if installed and path is None and name not in {there} else found

sys.meta_path[:] = [Without if finder is PathFinder else finder for finder in sys.meta_path]
"""
CASES = ["agree twins", "update qwen25vl_3b group_flash", "update qwen25vl_3b group_flash whole",
         "step llava_ov_05b", "sft qwen25vl_3b", "gap 24", "vllm qwen25vl_3b"]  # fmt: skip


def importable() -> set[str]:
    """What can be imported on the GPU's machine: what is there, and what the kit carries."""
    carried = re.search('^wheels="(.+)"$', (GPU / "run.sh").read_text(), re.MULTILINE)
    assert carried
    found, todo = set(carried[1].split()), list(THERE)
    while todo:
        name = canonicalize_name(todo.pop())
        if name not in found:
            found.add(name)
            with suppress(PackageNotFoundError):
                needs = [Requirement(line) for line in requires(name) or []]
                todo += [n.name for n in needs if not n.marker or n.marker.evaluate({"extra": ""})]
    of = packages_distributions()
    return {module for module in of if any(canonicalize_name(d) in found for d in of[module])}


@pytest.fixture
def cases(monkeypatch: pytest.MonkeyPatch) -> Any:
    for folder in (GPU.parent, GPU):
        monkeypatch.syspath_prepend(str(folder))
    return importlib.import_module("cases")


def test_every_kind_of_case_runs_without_the_packages_that_are_missing_there(tmp_path):
    carried, site, out = tmp_path / "carried", tmp_path / "site", tmp_path / "out"
    site.mkdir()
    (site / "sitecustomize.py").write_text(WITHOUT.replace("{there}", repr(importable())))
    kit = [sys.executable, str(GPU / "kit.py"), "prepare", "--carried", str(carried)]
    subprocess.run(kit, check=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    shell = {"PYTHON": sys.executable, "CARRIED": str(carried), "PYTHONPATH": str(site)}
    tried = [sys.executable, "-c", "import hydra"]  # or the rehearsal would prove nothing
    assert subprocess.run(tried, env={**os.environ, **shell}, capture_output=True).returncode
    only = [word for case in CASES for word in ("--only", case)]
    command = ["bash", str(GPU / "run.sh"), "--tiny", "--limit", "150", str(out), *only]
    run = subprocess.run(command, env={**os.environ, **shell}, capture_output=True, text=True)

    (numbers,) = out.glob("gpu-tiny-*.json")
    found = json.loads(numbers.read_text())["cases"]
    ended = {name: case["status"] for name, case in found.items()}
    assert run.returncode == 0, numbers.with_suffix(".log").read_text()
    assert ended == {name: "skipped" if "vllm" in name else "ok" for name in CASES}
    assert found["agree twins"]["qwen25vl_3b bfloat16 group_flash"]["agrees"]
    assert found["update qwen25vl_3b group_flash"]["packing"] == "group_flash"
    assert found["update qwen25vl_3b group_flash"]["tokens_per_second"] > 0
    assert found["step llava_ov_05b"]["seconds_sample"] > 0
    assert found["sft qwen25vl_3b"]["seconds_update"] > 0
    assert found["gap 24"]["bfloat16"]["mean"] > found["gap 24"]["float32"]["mean"]


def test_a_packing_that_does_not_agree_with_plain_rows_fails_its_case(cases, monkeypatch, tmp_path):
    honest = cases.outcome

    def one_is_off(model: Any, inputs: Any, tokens: Any, packing: str) -> Any:
        logprob, gradients = honest(model, inputs, tokens, packing)
        return (logprob + (packing == "group_flash") * 0.01, gradients)

    monkeypatch.setattr(cases, "outcome", one_is_off)
    code = cases.main(["agree", "twins", "--tiny", "--into", str(tmp_path / "found.json"),
                       "--carried", str(tmp_path)])  # fmt: skip
    found = json.loads((tmp_path / "found.json").read_text())
    assert code == 1 and "qwen25vl_3b float32 group_flash" in found["reason"]
    assert found["qwen25vl_3b float32 group"]["agrees"]


def test_a_configuration_composed_from_other_values_is_refused(cases, tmp_path):
    (tmp_path / "configs").mkdir()
    old = tmp_path / "configs" / "qwen25vl_3b-hf-tiny.json"
    old.write_text(json.dumps({"conf": "of yesterday", "commit": None, "config": {}}))
    with pytest.raises(SystemExit, match="is out of date: run `bash"):
        cases.Here(tiny=True, carried=tmp_path).settings("qwen25vl_3b")


@pytest.mark.parametrize("packing", ["group", "off"])
def test_the_operations_of_mfu_are_those_that_torch_counts(cases, packing):
    """Less what is masked, and less the attention of the tower, which `flop` leaves out."""
    plan = importlib.import_module("plan")
    case = plan.Case("llava_ov_05b", 256, 6, 128, 384, length=60)
    model = plan.narrow(case).train()
    about = widths_of(model.config.to_dict())
    work = replace(plan.work_of(about, case), packing=packing)
    prompt = plan.example(about, work, case.side, model.config.image_token_id)
    rows = [[20 + (i + g) % 100 for i in range(work.length)] for g in range(work.completions)]
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        found = completion_logprobs(model, [prompt], [rows], packing=packing, entropy=False)
        torch.sum(found.logprob).backward()
    p, t, layer = work.prompt, work.fed, 12 * about.text.layers * about.text.attention
    masked = work.rows * (p + t) ** 2 / 2
    if packing == "group":
        masked = p * p / 2 + work.rows * t * t / 2
    tiles = work.patches // about.vision.side**2
    tower = 12 * about.vision.layers * about.vision.hidden * work.patches**2 / tiles
    counted = counter.get_total_flops() - layer * masked - tower
    assert cases.flop(about, work) == pytest.approx(counted, rel=0.01)
