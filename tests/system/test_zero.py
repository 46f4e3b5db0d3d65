"""DeepSpeed takes the steps of one process, goes on after a kill, and ends when a rank does.

Every group of cases is one start of Python: the same program as one process, and on two ranks.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pandas
import pytest
import torch

from iad_r1.backbones import tiny, twins
from iad_r1.command import compose
from iad_r1.data import mix
from iad_r1.grid import as_grid
from iad_r1.loops.opening import corpus

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PROGRAM = Path(__file__).with_name("zero_program.py")
SMALL = [
    "data.sizes.sft=16",
    "data.sizes.rl=8",
    "data.sizes.validation=4",
    "data.sizes.test=4",
    "sft.phases.0.steps=2",
    "sft.phases.0.batch_size=4",
    "sft.phases.1.steps=2",  # a frozen tower, whose features are kept
    "sft.phases.1.batch_size=4",
    "sft.save_every=100",
    "grpo.steps=3",
    "grpo.prompts_per_step=5",  # three on one rank, two on the other
    "grpo.group_size=2",
    "grpo.kl_coef=0.1",
    "grpo.learning_rate=1e-3",
    "grpo.degenerate_groups=skip",
    "grpo.token_budget=60",  # one group in a forward
    "rollout.max_tokens=8",
    "engine.device=cpu",
    "tracking=none",
]
ONE, TWO = ["engine.ranks=1"], ["engine.ranks=2"]
ZERO2, ZERO3 = ["engine=zero2", *TWO], ["engine=zero3", *TWO]
LORA = ["tuning=lora", "tuning.rank=4", "tuning.dropout=0", "sft.learning_rate=1e-3"]
CASES = {
    "sft": (["sft.token_budget=250"], ["sft"]),
    "grpo": ([], ["grpo"]),
    "refreshed": (["grpo.reference_refresh=1", "grpo.vision_lr_scale=0", "grpo.minibatches=2"],
                  ["grpo"]),
    "lora": ([*LORA, "tuning.gradient_checkpointing=true"], ["sft", "grpo"]),
}  # fmt: skip
ENGINES = {
    "two": TWO,
    "zero2": ZERO2,
    "zero3": ZERO3,
    "zero2-offload": [*ZERO2, "engine.offload=cpu"],
    "zero3-offload": [*ZERO3, "engine.offload=cpu"],
}
LLAVA = ["llava", "llava_next", "llava_onevision"]  # twins; the other cases have a Qwen2.5-VL


class Case(NamedTuple):
    """One run of the program, from the weights in the folder `base`."""

    name: str
    settings: list[str]
    stages: list[str]
    base: str = "base"


def start(folder: Path, cases: list[Case], ranks: int, fault: str = "") -> subprocess.Popen[str]:
    """The program on so many ranks, under torchrun if the cases are of several or of DeepSpeed."""
    alone = ranks == 1 and not any("engine=zero" in o for case in cases for o in case.settings)
    torchrun = ["-m", "iad_r1.processes.torchrun", "--standalone", f"--nproc-per-node={ranks}"]
    given = [case._replace(settings=[*SMALL, *case.settings]) for case in cases]
    return subprocess.Popen(
        [
            sys.executable,
            *([] if alone else torchrun),
            str(PROGRAM),
            json.dumps(given),
            str(folder),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "IAD_R1_TEST_FAULT": fault},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(folder: Path, cases: list[Case], ranks: int) -> None:
    process = start(folder, cases, ranks)
    said, _ = process.communicate(timeout=800)
    assert process.returncode == 0, said[-4000:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A run folder with the weights that every case begins with."""
    path = tmp_path_factory.mktemp("zero")
    config = compose.compose(SMALL)
    dataset = mix.load(config.data, as_grid(config.grid), config.grid.mask_rule, config.seed)
    tiny.build(path / "base", corpus(config, dataset), 400, 9216, seed=0)
    for family in LLAVA:
        twins.build_twin(family, path / family)
    (path / "config.json").write_text("{}")
    return path


@pytest.fixture(scope="module")
def results(folder) -> dict[str, dict[str, Any]]:
    """What came of every case, under one process and under every engine."""
    both = ["sft", "grpo"]
    run(
        folder,
        [Case(f"one-{case}", [*ONE, *given], stages) for case, (given, stages) in CASES.items()]
        + [Case(f"one-{family}", ONE, both, family) for family in LLAVA],
        1,
    )
    run(
        folder,
        [
            Case(f"{engine}-{case}", [*how, *given], stages)
            for engine, how in ENGINES.items()
            for case, (given, stages) in CASES.items()
        ]
        + [Case(f"zero3-{family}", ZERO3, both, family) for family in LLAVA]
        + [Case("zero3-bfloat16", [*ZERO3, "engine.precision=bfloat16"], both)],
        2,
    )
    return {path.parent.name: torch.load(path) for path in folder.glob("*/result.pt")}


def apart(one: dict[str, Any], other: dict[str, Any], key: str) -> float:
    """The largest relative difference of a number in any step."""
    assert len(one["rows"]) == len(other["rows"]) > 0
    pairs = [(a[key], b[key]) for a, b in zip(one["rows"], other["rows"], strict=True)]
    return max(abs(a - b) / max(abs(a), abs(b), 0.1) for a, b in pairs)


def moved(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest difference of a weight."""
    assert one["weights"].keys() == other["weights"].keys()
    return max((one["weights"][k] - other["weights"][k]).abs().max().item() for k in one["weights"])


def assert_same_steps(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Losses and gradient norms agree to 1e-4 of their size (losses below 0.1: to 1e-5): what the
    steps make of float32 sums in another order, 6e-8. Weights agree to a tenth of the learning rate
    of 1e-3, because Adam divides a gradient by its own size, and where it is all but zero only
    rounding is left of it. Seen: 3e-6, 9e-6 and 2e-5. A forgotten pass, rank or factor shows in the
    first digit, and moves weights by whole learning rates."""
    assert apart(one, other, "loss") < 1e-4
    assert apart(one, other, "grad_norm") < 1e-4
    assert moved(one, other) < 1e-4


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("engine", ENGINES)
def test_the_steps_are_those_of_one_process(results, engine, case):
    assert_same_steps(results[f"one-{case}"], results[f"{engine}-{case}"])


@pytest.mark.parametrize("family", LLAVA)
def test_under_zero3_the_llava_families_take_the_steps_of_one_process(results, family):
    """Their towers have layers that nothing asks for, and weights that no layer owns."""
    assert_same_steps(results[f"one-{family}"], results[f"zero3-{family}"])


def test_the_cases_are_what_they_claim(results):
    """Weights did learn; ranks had unequal work, some none; ZeRO-3 kept a part of the weights."""
    start = results["one-sft"]["before"]
    for case in CASES:
        after = results[f"one-{case}"]["weights"]
        assert max((after[k] - start[k]).abs().max().item() for k in start) > 1e-4
    uneven = [ranks for ranks in results["zero3-grpo"]["passes"] if len(set(ranks)) > 1]
    assert uneven and any(0 in ranks for ranks in uneven), results["zero3-grpo"]["passes"]
    for name, result in results.items():
        kind = {"one": "Learner", "two": "Learner"}.get(name.partition("-")[0], "ZeroLearner")
        assert result["learner"] == kind
        parted = name.startswith("zero3")
        assert (result["held"] < 0.05 * result["whole"]) == parted, name


def test_bfloat16_trains_with_float32_states(results):
    rows = results["zero3-bfloat16"]["rows"]
    assert all(math.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in rows[:4])
    plain = results["one-sft"]["rows"]
    assert rows[0]["loss"] == pytest.approx(plain[0]["loss"], rel=2e-2)  # 8 bits of mantissa


# ------------------------------------------------------------------------------ ranks that fail


class Failed(NamedTuple):
    """A start of the program of which one rank was made to fail: its folder, what it printed, and
    how many seconds it went on after the fault."""

    folder: Path
    said: str
    seconds: float


@pytest.fixture(scope="module")
def fails(folder) -> Callable[..., Failed]:
    """`fails("kill", "sft")`: two ranks under ZeRO-3, one of which fails in step 1; once for each
    fault and stage."""
    found: dict[tuple[str, str], Failed] = {}

    def of(fault: str, stage: str) -> Failed:
        if (fault, stage) not in found:
            name = f"fails-{fault}-{stage}"
            case = Case(name, RESUMED[stage], [stage])
            process = start(folder, [case], 2, fault=f"{fault} {stage} 1")
            said, _ = process.communicate(timeout=400)
            seconds = time.time() - float((folder / "fault-at").read_text())
            assert process.returncode not in (0, None)
            found[fault, stage] = Failed(folder / name, said, seconds)
        return found[fault, stage]

    return of


# as in `CASES`, which are not interrupted
RESUMED = {stage: [*ZERO3, *CASES[stage][0], f"{stage}.save_every=1"] for stage in ("sft", "grpo")}


@pytest.fixture(scope="module")
def resumed(folder, fails) -> Callable[[int], None]:
    """`resumed(1)`: both killed runs, taken up by so many ranks in one start."""
    done: set[int] = set()

    def on(ranks: int) -> None:
        if ranks in done:
            return
        cases = []
        for stage, settings in RESUMED.items():
            name = f"resumed-{stage}-{ranks}"
            shutil.copytree(fails("kill", stage).folder, folder / name)
            cases.append(Case(name, [*settings, f"engine.ranks={ranks}"], [stage]))
        run(folder, cases, ranks)
        done.add(ranks)

    return on


@pytest.mark.parametrize("ranks", [2, 1])
@pytest.mark.parametrize("stage", RESUMED)
def test_a_killed_run_goes_on_also_on_another_number_of_ranks(
    results, folder, fails, resumed, stage, ranks
):
    """With as many ranks to the last bit of a sum of two; with another number within what one
    process and two differ by (see above)."""
    assert "ended by SIGKILL" in fails("kill", stage).said
    resumed(ranks)
    other = torch.load(folder / f"resumed-{stage}-{ranks}" / "result.pt")
    one, taken = dict(results[f"zero3-{stage}"]), other["rows"]
    assert 0 < len(taken) < len(one["rows"]), "it went on, and did not begin anew"
    one["rows"] = one["rows"][-len(taken) :]
    assert apart(one, other, "loss") < (1e-6 if ranks == 2 else 1e-4)
    assert moved(one, other) < (1e-7 if ranks == 2 else 3e-4)


FAULTS = {  # what the first line about an error says, and what is said once
    "kill": ("ended by SIGKILL", "ended by SIGKILL"),
    "refuse": ("error: sft step 1: planted", "planted"),
    "break": ("planted", "RuntimeError: planted"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_rank_that_fails_ends_the_run_within_a_minute_and_is_heard_first(fails, fault):
    _, said, seconds = fails(fault, "sft")
    assert seconds < 60, f"{seconds:.0f} s"
    errors = [line for line in said.splitlines() if "error" in line.lower()]
    first, once = FAULTS[fault]
    assert errors and first in errors[0], said[-3000:]
    assert said.count(once) == 1, said[-3000:]


@pytest.mark.parametrize(
    ("engine", "stage", "fault", "said"),
    [
        (ZERO2, "grpo", "nan-gradient", "grpo step 1: the gradient norm is inf"),
        (ZERO3, "sft", "nan-gradient", "sft step 1: the gradient norm is inf"),
        (ZERO3, "grpo", "nan-loss", "grpo step 1: the loss is nan"),
    ],
)
def test_a_loss_or_gradient_that_is_no_number_on_one_rank_stops_all_and_keeps_the_step(
    folder, engine, stage, fault, said
):
    name = f"{fault}-{stage}"
    settings = [*engine, "grpo.degenerate_groups=keep"]  # so that every rank has a loss
    (folder / "weights-after-error").unlink(missing_ok=True)
    process = start(folder, [Case(name, settings, [stage])], 2, fault=f"{fault} {stage} 1")
    printed, _ = process.communicate(timeout=400)
    assert process.returncode not in (0, None)
    assert printed.count(f"error: {said}") == 1, printed[-3000:]
    (path,) = (folder / name / "failed").iterdir()
    assert path.name == f"{stage}-00001.parquet" and str(path) in printed
    # all of the step: 4 targets, or 2 completions of each of 5 prompts, and not one rank's part
    assert len(pandas.read_parquet(path)) == {"sft": 4, "grpo": 10}[stage]
    if fault == "nan-gradient":
        assert (folder / "weights-after-error").read_text() == "same"


def test_a_policy_that_collapses_ends_all_ranks_when_asked(folder):
    settings = [*ZERO2, "grpo.collapse.stop=true", "grpo.collapse.steps=2",
                "grpo.collapse.entropy=100", "grpo.degenerate_groups=keep"]  # fmt: skip
    process = start(folder, [Case("collapses", settings, ["grpo"])], 2)
    printed, _ = process.communicate(timeout=400)
    assert process.returncode not in (0, None)
    said = "error: grpo step 1: for 2 steps the entropy was below 100 nats"
    assert printed.count(said) == printed.count("error:") == 1, printed[-3000:]


def test_what_every_rank_finds_wrong_is_said_once(repository, tmp_path):
    (tmp_path / "photos" / "meta").mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, str(repository / "run.py"), "data=photos", "engine.ranks=2",
         f"data.root={tmp_path / 'photos'}", "tracking=none"],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("error:") == 1 and "Traceback" not in done.stderr, done.stderr


def test_a_run_of_several_ranks_saves_when_it_is_asked_to_stop(repository, tmp_path):
    process = subprocess.Popen(
        [sys.executable, str(repository / "run.py"), *SMALL, *ZERO3, "name=stopped",
         "stage=sft", "pretrain.images=8", "pretrain.steps=1", "sft.phases.0.steps=1000"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        logged = [file.read_text() for file in tmp_path.glob("outputs/stopped/*/metrics.jsonl")]
        if any('"sft"' in text for text in logged):
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said[-3000:]
    assert said.count("stopped. What was written stays in") == 1 and "Traceback" not in said
    (run_folder,) = (tmp_path / "outputs" / "stopped").iterdir()
    assert list((run_folder / "checkpoints").glob("sft-step-*/state.json"))
    assert json.loads((run_folder / "manifest.json").read_text())["status"] == "stopped"
