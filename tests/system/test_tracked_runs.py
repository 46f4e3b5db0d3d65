"""What a tracker has of a whole run, read back with the tracker's own format."""

from __future__ import annotations

import json

import pytest
import wandb_file

from iad_r1.command import compose
from iad_r1.report.dashboards import dashboards
from iad_r1.store import metrics
from iad_r1.store.trackers.wandb import run_id

TINY = ["backbone=qwen2vl_2b", "weights=tiny", "data.sizes.sft=4", "data.sizes.rl=4",
        "evaluate.limit=2", "evaluate.max_tokens=8", "rollout.max_tokens=8"]  # fmt: skip


@pytest.fixture(scope="module")
def run(forked, tmp_path_factory):
    """PA-SFT, SC-GRPO and evaluations with wandb offline."""
    return forked(*TINY, "tracking.mode=offline", "tracking.group=a group", name="tracked")


@pytest.fixture(scope="module")
def written(run):
    (path,) = run.folder.glob("wandb/offline-run-*/*.wandb")
    return list(wandb_file.records(path))


def names(records) -> set[str]:
    return set().union(*map(wandb_file.logged, records))


@pytest.mark.slow
def test_wandb_has_every_number_of_the_run_and_no_other(run, written):
    ours = {name for name in names(written) if not name.startswith("_")}
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    logged = {
        metrics.key(line["stage"], name)
        for line in lines
        for name in line.keys() - {"stage", "step", "not_finite"}
    }
    steps = {"sft/step", "grpo/step", metrics.EVAL_STAGE}
    tables = {metrics.RESULTS, metrics.completions_key("grpo")}
    evaluations = {name for name in ours if name.startswith("eval/")} - tables - steps
    assert ours == logged | steps | tables | evaluations
    assert "eval/tested/1shot/balanced_accuracy" in evaluations
    assert all(metrics.listed(name) for name in logged | evaluations)
    sections = {name.partition("/")[0] for name in logged | evaluations}
    assert sections == set(metrics.SECTIONS)


@pytest.mark.slow
def test_dashboards_show_what_the_run_wrote_and_nothing_else(written):
    there = names(written)
    for dashboard in dashboards(compose.compose(TINY)):
        assert dashboard.names() <= there, dashboard.name


@pytest.mark.slow
def test_wandb_knows_group_and_stage_and_what_was_made_of_what(run, written):
    (about,) = [one.run for one in written if one.HasField("run")]
    assert (about.run_group, about.job_type) == ("a group", "pipeline")
    assert about.run_id == run_id(run.folder)
    made = {
        one.artifact.name: json.loads(one.artifact.metadata)["made_from"]
        for one in written
        if one.HasField("artifact") and one.artifact.type != "run_table"
    }
    called = f"tracked-{run.folder.name}"
    sft, grpo = f"weights-{called}-sft", f"weights-{called}-grpo"
    assert made[sft] == ["data-synthetic"] and made[grpo] == ["data-synthetic", sft]
    assert made[f"evaluation-{called}-grpo"] == ["data-synthetic", grpo]
    assert f"evaluation-{called}-grpo" in made[f"report-{called}"]
    assert {type(parts) for parts in made.values()} == {list}
    for name, parts in made.items():
        assert set(parts) <= made.keys(), name
