"""Presets of SC-GRPO: the paper's is the plain default; the released one differs as it says."""

from __future__ import annotations

from typing import Any

import pytest

from iad_r1.command import compose
from iad_r1.errors import ConfigError


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(values, dict):
        pairs = values.items()
    elif isinstance(values, list):
        pairs = enumerate(values)
    else:
        return {prefix: values}
    return {k: v for key, value in pairs for k, v in flat(value, f"{prefix}.{key}").items()}


def test_the_default_of_a_published_backbone_is_the_papers_objective():
    made = compose.compose(["backbone=qwen25vl_3b"])
    assert made == compose.compose(["backbone=qwen25vl_3b", "recipe=paper"])
    grpo, rollout = made.grpo, made.rollout
    assert (grpo.group_size, grpo.clip_low, grpo.clip_high, grpo.kl_coef) == (4, 0.2, 0.2, 0.04)
    assert (grpo.kl_kind, grpo.aggregation, grpo.advantage) == ("k3", "sequence_mean", "group_std")
    assert (grpo.updates_per_batch, grpo.minibatches, grpo.reference_refresh) == (1, 1, None)
    assert (grpo.importance.level, grpo.degenerate_groups, grpo.truncated) == (
        "off",
        "keep",
        "keep",
    )
    assert (rollout.temperature, rollout.top_p, rollout.top_k) == (1.0, 1.0, 0)
    assert made.rewards.name == "sc_grpo" and not grpo.collapse.stop


def test_the_released_preset_differs_from_the_papers_where_its_table_says_and_nowhere_else():
    paper, released = (
        flat(compose.compose(["backbone=qwen25vl_3b", f"recipe={name}"]).model_dump())
        for name in ("paper", "released")
    )
    changed = {k for k in paper.keys() | released.keys() if paper.get(k) != released.get(k)}
    assert {k for k in changed if not k.startswith(".rewards.")} == {
        ".sft.phases.0.epochs",
        ".sft.loss_normalisation",
        ".grpo.prompt",
        ".grpo.importance.level",
        ".rollout.temperature",
        ".rollout.top_p",
        ".rollout.top_k",
        ".evaluate.prompt",
        ".evaluate.evaluator",
    }
    assert released[".rewards.name"] == "sc_grpo_released"


@pytest.mark.parametrize("cut", ["rollout.top_p=0.9", "rollout.top_k=50"])
def test_cut_off_sampling_needs_the_correction(cut):
    with pytest.raises(
        ConfigError, match=r"nothing corrects for it.*grpo\.importance\.level=token"
    ):
        compose.compose([cut])
    for level in ("token", "sequence"):
        made = compose.compose([cut, f"grpo.importance.level={level}"])
        assert made.grpo.importance.level == level


AHEAD = ["rollout=vllm_server", "grpo.overlap=1", "grpo.importance.level=token"]


@pytest.mark.parametrize("recipe", ["backbone=tiny", "recipe=paper", "recipe=released"])
def test_no_recipe_draws_ahead_unless_told_to(recipe):
    backbone = [] if recipe == "backbone=tiny" else ["backbone=qwen25vl_3b"]
    assert compose.compose([*backbone, recipe]).grpo.overlap == 0
    assert compose.compose([*backbone, recipe, *AHEAD]).grpo.overlap == 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["grpo.overlap=2"], r"overlap=2: .*Use grpo\.overlap=1"),
        (["grpo.overlap=-1"], r"grpo\.overlap=-1"),
        (["rollout=hf"], r"overlap=1 with rollout=hf: .*Use rollout=vllm_server"),
        (["rollout=vllm"], r"overlap=1 with rollout=vllm: .*Use rollout=vllm_server"),
        (["grpo.importance.level=off"], r"importance\.level=off: .*nothing corrects for it"),
        (["grpo.importance.cap=1"], r"importance\.cap=1: .*Use grpo\.importance\.cap=2"),
    ],
)
def test_drawing_ahead_is_refused_where_it_cannot_be_right(settings, said):
    kept = [given for given in AHEAD if given.split("=")[0] != settings[0].split("=")[0]]
    with pytest.raises(ConfigError, match=said):
        compose.compose([*kept, *settings])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["grpo.minibatches=33"], r"minibatches=33 .*Use grpo\.minibatches=32 or fewer"),
        (["grpo.reference_refresh=5", "grpo.kl_coef=0"], r"no reference to refresh"),
        (["grpo.importance.cap=0"], r"grpo\.importance\.cap"),
        (["grpo.collapse.answer_share=0.4"], r"grpo\.collapse\.answer_share"),
        (["grpo.degenerate_groups=redraw"], r"grpo\.degenerate_groups"),
        (["grpo.resample_limit=0"], r"grpo\.resample_limit"),
        (["sft.token_budget=0"], r"sft\.token_budget"),
    ],
)
def test_what_cannot_work_is_refused_before_a_run(settings, said):
    with pytest.raises(ConfigError, match=said):
        compose.compose(settings)
