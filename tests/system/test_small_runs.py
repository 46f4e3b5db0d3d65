"""Short runs of every stage: what is written, what is repeatable, what ranks may not change."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

SHORT = [
    "data.sizes.sft=160",
    "data.sizes.rl=64",
    "data.sizes.validation=8",
    "data.sizes.test=16",
    "pretrain.images=64",
    "pretrain.steps=3",
    "sft.phases.0.steps=6",
    "sft.phases.1.steps=3",
    "grpo.steps=2",
    "grpo.prompts_per_step=4",
    "grpo.group_size=4",
    "rollout.max_tokens=24",
    "evaluate.max_tokens=24",
]
RESULT_KEYS = {
    "stage",
    "dataset",
    "split",
    "shots",
    "n",
    "balanced_accuracy",
    "location_accuracy",
    "type_accuracy",
    "well_formed",
    "ci95",
}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]


def metrics(folder: Path) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def without_seconds(rows: list[dict]) -> list[dict]:
    measured = re.compile(r"seconds_.+|tokens_per_second|(peak|host)_memory_mib")
    return [{k: v for k, v in row.items() if not measured.fullmatch(k)} for row in rows]


@pytest.fixture(scope="module")
def default(iad):
    """The whole pipeline, on two ranks."""
    return iad(*SHORT, name="default")


@pytest.fixture(scope="module")
def one_rank(forked):
    """The same on one."""
    return forked(*SHORT, "engine.ranks=1", name="one")


@pytest.fixture(scope="module")
def other_seed(forked):
    """PA-SFT of another seed, on one rank."""
    return forked(*SHORT, "engine.ranks=1", "seed=1", "stage=sft", name="sft")


def test_the_pipeline_leaves_everything_a_run_folder_promises(default):
    folder, output, summary = default
    for name in ("config.json", "manifest.json", "metrics.jsonl", "summary.json", "report.html"):
        assert (folder / name).stat().st_size > 0, name
    for stage in ("base", "pretrain", "sft", "grpo"):
        assert (folder / "checkpoints" / stage / "model.safetensors").is_file(), stage
        assert (folder / "checkpoints" / stage / "processor_config.json").is_file(), stage
    assert list((folder / "rollouts").glob("grpo-*.parquet"))
    assert json.loads((folder / "manifest.json").read_text())["status"] == "finished"
    rows = summary["results"]
    assert {(r["stage"], r["split"], r["shots"]) for r in rows} == {
        (stage, split, shots)
        for stage in ("pretrain", "sft", "grpo")
        for split in ("seen", "new")
        for shots in (0, 1)
    }
    assert all(set(row) >= RESULT_KEYS and row["n"] == 16 for row in rows)
    assert set(summary["seconds"]) >= {"pretrain", "sft", "grpo", "evaluate"}
    assert [row["stage"] for row in metrics(folder)] == ["pretrain"] * 3 + ["sft"] * 9 + [
        "grpo"
    ] * 2
    assert "report" in output and not (folder / ".failed").exists()


def test_the_same_seed_gives_the_same_numbers_and_another_seed_does_not(
    default, one_rank, other_seed, iad
):
    again = iad(*SHORT, name="again")
    assert without_seconds(metrics(default.folder)) == without_seconds(metrics(again.folder))
    assert default.summary["results"] == again.summary["results"]
    of_sft = [row["loss"] for row in metrics(one_rank.folder) if row["stage"] == "sft"]
    assert of_sft != [row["loss"] for row in metrics(other_seed.folder) if row["stage"] == "sft"]


def test_two_ranks_take_the_steps_of_one(default, one_rank):
    one, two = metrics(one_rank.folder), metrics(default.folder)
    assert len(one) == len(two)
    for single, double in zip(one, two, strict=True):
        assert single["stage"] == double["stage"]
        for key in {"loss", "reward", "kl", "length_mean", "degenerate_groups"} & set(single):
            # float32 sums in another order, through Adam's division by a small root
            assert double[key] == pytest.approx(single[key], rel=2e-3, abs=1e-5), (single, key)


def test_a_stage_starts_from_an_earlier_run(other_seed, forked):
    settings = [*SHORT, "engine.ranks=1", "seed=1"]
    then = forked(*settings, "stage=grpo", f"init={other_seed.folder}", "tuning=lora",
                  "tuning.rank=4", name="grpo")  # fmt: skip
    assert [row["stage"] for row in metrics(then.folder)] == ["grpo", "grpo"]
    assert (then.folder / "checkpoints" / "grpo-adapter" / "adapter_config.json").is_file()
    again = forked(*settings, "stage=evaluate", f"init={then.folder}", name="evaluate")
    of_grpo = [row for row in then.summary["results"] if row["stage"] == "grpo"]
    assert again.summary["results"] == of_grpo


def test_a_set_of_photographs_goes_through_the_same_pipeline(iad, shared):
    run = iad(
        *(setting for setting in SHORT if not setting.startswith("data.")),
        "data=photos",
        f"data.root={shared / 'data' / 'real' / 'ballscrew'}",
        "evaluate.limit=16",
    )
    assert {row["dataset"] for row in run.summary["results"]} == {"ballscrew"}
    assert {row["split"] for row in run.summary["results"]} == {"seen"}
