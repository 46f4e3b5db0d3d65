"""What SC-GRPO writes down of every step, and when it stops."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pandas
import pytest
import torch

from iad_r1.errors import MismatchError, TrainingError
from iad_r1.learn import guards
from iad_r1.learn.learner import Learner
from iad_r1.loops import grpo, policy
from iad_r1.loops.collect import Collector
from iad_r1.settings.training import Collapse
from iad_r1.store.tracking import Tracker

PARTS = ("consistency", "answer", "location", "type")
LOGGED = {
    "reward", "reward_std", *(f"reward_{part}" for part in PARTS),
    *(f"reward{kind}" for kind in ("_normal", "_anomalous")),
    *(f"reward_{part}{kind}" for part in PARTS for kind in ("_normal", "_anomalous")),
    "advantage_std", "advantage_min", "advantage_max", "degenerate_groups",
    "kl", "clip_fraction_low", "clip_fraction_high", "ratio_min", "ratio_mean", "ratio_max",
    "entropy", "length_mean", "length_max", "truncated", "yes_rate", "gold_yes_rate",
    "invalid_rate", "loss", "grad_norm", "learning_rate", "sampler_gap", "sampler_gap_mean",
    "sampler_gap_high", "sampler_gap_max", "importance_min", "importance_mean", "importance_max",
    "importance_capped", "tokens_per_second", "peak_memory_mib", "host_memory_mib",
    "seconds_step", "seconds_sync",
    "seconds_pictures", "seconds_sample", "seconds_score", "seconds_reference", "seconds_update",
}  # fmt: skip


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_every_step_logs_every_number(make_context):
    context = make_context(
        "grpo.degenerate_groups=keep", "grpo.prompts_per_step=8", "grpo.rollouts_every=1"
    )
    answers = [{s.solution.answer for s in context.dataset.rl}]
    assert answers == [{"Yes", "No"}]
    with Tracker(context.config.tracking, context.folder.path, {}) as context.tracker:
        grpo.train(context)
    for step, line in enumerate(lines(context.folder.path)):
        assert line["step"] == step and line["stage"] == "grpo"
        assert set(line) - {"step", "stage"} == LOGGED
        assert all(math.isfinite(line[name]) for name in LOGGED)
        names = ("sync", "pictures", "sample", "score", "reference", "update")
        phases = [line[f"seconds_{name}"] for name in names]
        assert sum(phases) == pytest.approx(line["seconds_step"], rel=1e-6)
        table = pandas.read_parquet(context.folder.path / "rollouts" / f"grpo-{step:05d}.parquet")
        tokens = table["tokens"].sum()
        assert line["tokens_per_second"] == pytest.approx(tokens / line["seconds_step"], rel=1e-6)
        assert line["length_mean"] == pytest.approx(table["tokens"].mean())
        assert line["reward"] == pytest.approx(table["reward"].mean(), abs=1e-9)
        assert line["advantage_std"] == pytest.approx(table["advantage"].std(ddof=0), abs=1e-9)
        assert 100 < line["peak_memory_mib"] < 100_000 and line["host_memory_mib"] > 100


def failed(context, error) -> pandas.DataFrame:
    """The table that an error's message names."""
    found = re.search(r"What the step was made of is in (\S+\.parquet)\.", str(error.value))
    assert found, error.value
    path = Path(found[1])
    assert path.parent == context.folder.path / "failed"
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    return pandas.read_parquet(path)


def assert_whole(context, table: pandas.DataFrame) -> None:
    """All 16 completions of the step, with everything needed to compute it again."""
    assert len(table) == 16 and set(table["id"]) <= {s.id for s in context.dataset.rl}
    assert table["prompt"].str.contains("{image}", regex=False).all()
    for _, row in table.iterrows():
        assert len(row["token_ids"]) == len(row["sampler_logprobs"]) == row["tokens"] > 0
        assert context.backbone.decode(row["token_ids"].tolist()) == row["completion"]


def test_a_loss_that_is_no_number_stops_before_the_weights_change_and_keeps_the_step(
    make_context, monkeypatch
):
    context = make_context("grpo.kl_coef=0")
    before = [p.detach().clone() for p in context.model.parameters()]
    honest = policy.policy_loss
    monkeypatch.setattr(
        policy, "policy_loss", lambda *a, **k: (math.nan * honest(*a, **k)[0], honest(*a, **k)[1])
    )
    monkeypatch.setattr(policy, "is_degenerate", lambda gains: False)
    with pytest.raises(TrainingError, match=r"grpo step 0: the loss is nan") as error:
        grpo.train(context)
    assert_whole(context, failed(context, error))
    now = context.model.parameters()
    assert all(torch.equal(a, b) for a, b in zip(before, now, strict=True))


def test_an_infinite_gradient_stops_and_keeps_the_step(make_context, monkeypatch):
    honest = Learner.backward

    def exploding(self, loss, where):
        value = honest(self, loss, where)
        next(p for p in self.model.parameters() if p.grad is not None).grad.fill_(torch.inf)
        return value

    monkeypatch.setattr(Learner, "backward", exploding)
    context = make_context("grpo.degenerate_groups=keep")
    with pytest.raises(TrainingError, match=r"grpo step 0: the gradient norm is") as error:
        grpo.train(context)
    assert_whole(context, failed(context, error))


def test_a_sampler_that_disagrees_keeps_the_step_too(make_context, monkeypatch):
    honest = Collector.sample

    def lying(self, *args):
        groups = honest(self, *args)
        for group in groups:
            for i, c in enumerate(group):
                group[i] = type(c)(c.text, c.tokens, tuple(x - 0.1 for x in c.logprobs), c.stop)
        return groups

    monkeypatch.setattr(Collector, "sample", lying)
    context = make_context("grpo.degenerate_groups=keep")
    with pytest.raises(MismatchError, match=r"disagree by 0\.1 nats on average") as error:
        grpo.train(context)
    said = str(error.value)
    assert "grpo step 0" in said and "(limit 1e-05)" in said and "(limit 0.0001)" in said
    assert "same weights on the same prompt" in said
    assert "grpo.packing=off" in said and "grpo.gap_limit.mean" in said
    assert_whole(context, failed(context, error))


# ------------------------------------------------------------------------------------- collapse

HEALTHY = {"yes_rate": 0.5, "invalid_rate": 0.0, "gold_yes_rate": 0.5, "entropy": 0.3}
ALL_YES = HEALTHY | {"yes_rate": 0.97}
ALL_NO = HEALTHY | {"yes_rate": 0.01, "invalid_rate": 0.02}
RIGIDLY = HEALTHY | {"entropy": 0.001}


def watch(stop: bool = False, steps: int = 3) -> guards.CollapseWatch:
    return guards.CollapseWatch(Collapse(answer_share=0.95, entropy=0.01, steps=steps, stop=stop))


@pytest.mark.parametrize(
    ("values", "word"), [(ALL_YES, '"Yes"'), (ALL_NO, '"No"'), (RIGIDLY, "entropy was below 0.01")]
)
def test_collapse_is_said_once_when_it_has_lasted(values, word, capsys):
    watching = watch()
    for step in range(2):
        watching.see("grpo", step, values)
    assert capsys.readouterr().out == ""
    for step in range(2, 8):
        watching.see("grpo", step, values)
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and word in said and said.startswith("grpo step 2: for 3 steps")


@pytest.mark.parametrize(
    "values",
    [
        HEALTHY,
        ALL_YES | {"gold_yes_rate": 0.97},  # a batch of defects, answered rightly
        ALL_NO | {"gold_yes_rate": 0.02},
        HEALTHY | {"yes_rate": 0.95},
        HEALTHY | {"yes_rate": 0.0, "invalid_rate": 0.5},  # unreadable is not "No"
        HEALTHY | {"entropy": 0.01},
        {name: value for name, value in HEALTHY.items() if name != "entropy"},
    ],
)
def test_what_is_no_collapse_is_not_said(values, capsys):
    watching = watch(stop=True, steps=1)
    watching.see("grpo", 0, values)
    assert capsys.readouterr().out == ""


def test_a_healthy_step_begins_the_count_anew(capsys):
    watching = watch(stop=True)
    for step, values in enumerate([ALL_YES, ALL_YES, HEALTHY, ALL_YES, ALL_YES, ALL_NO, ALL_NO]):
        watching.see("grpo", step, values)
    with pytest.raises(TrainingError, match=r'grpo step 7: .*"No".*grpo\.collapse\.stop'):
        watching.see("grpo", 7, ALL_NO)


def test_a_resumed_run_goes_on_counting_and_says_nothing_twice(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    rows = [
        {"stage": "sft", "step": 0, "loss": 1.0},
        *({"stage": "grpo", "step": step, **RIGIDLY} for step in range(3)),
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    early, late = watch(), watch()
    early.recall(path, "grpo", 2)
    early.see("grpo", 2, RIGIDLY)
    assert "entropy" in capsys.readouterr().out
    late.recall(path, "grpo", 3)
    late.recall(path, "grpo", 3)  # only the first call counts
    assert late.lasted == {next(iter(late.said)): 3}
    late.see("grpo", 3, RIGIDLY)
    assert capsys.readouterr().out == ""


def test_a_run_that_collapses_ends_when_asked(make_context, monkeypatch):
    context = make_context(
        "grpo.collapse.stop=true", "grpo.collapse.steps=2", "grpo.collapse.entropy=100",
        "grpo.steps=6", "grpo.degenerate_groups=keep",
    )  # fmt: skip
    with (
        Tracker(context.config.tracking, context.folder.path, {}) as context.tracker,
        pytest.raises(TrainingError, match="grpo step 1: for 2 steps the entropy was below 100"),
    ):
        grpo.train(context)
    assert [line["step"] for line in lines(context.folder.path)] == [0, 1]
