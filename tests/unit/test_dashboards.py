"""Dashboards show what runs log, and are replaced where they were saved before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from iad_r1 import stages
from iad_r1.command import compose
from iad_r1.errors import ConfigError
from iad_r1.report import dashboards
from iad_r1.report.dashboards import Dashboard, Panel
from iad_r1.store import metrics


@pytest.fixture(scope="module")
def found() -> list[Dashboard]:
    return dashboards.dashboards(compose.compose([]))


@pytest.fixture
def workspaces() -> Any:
    return pytest.importorskip("wandb_workspaces.workspaces")


def test_there_is_one_for_training_rewards_sweeps_and_evaluation(found):
    assert [one.name for one in found] == [
        "training dynamics", "reward components", "sweep comparison", "evaluation",
    ]  # fmt: skip
    assert len({one.slug for one in found}) == 4
    assert all(one.slug.isalnum() for one in found), "others are changed on their way to an address"


def test_every_name_is_a_listed_number_an_axis_or_a_table(found):
    others = {metrics.step_key("sft"), metrics.step_key("grpo"), metrics.EVAL_STAGE,
              metrics.RESULTS, metrics.completions_key("grpo")}  # fmt: skip
    for dashboard in found:
        unknown = {n for n in dashboard.names() - others if metrics.listed(n) is None}
        assert not unknown, dashboard.name
    wrong = Dashboard("x", "x", {"s": (Panel("p", "bars", ("train/grpo/lozz",)),)})
    assert [metrics.listed(name) for name in wrong.names()] == [None]


def test_components_and_shots_are_those_of_the_settings():
    config = compose.compose(["rewards=answer_only", "evaluate.shots=[2]"])
    names = set().union(*(one.names() for one in dashboards.dashboards(config)))
    assert "reward/grpo/reward_answer_normal" in names
    assert "reward/grpo/reward_location" not in names
    assert "eval/tested/2shot/miss_rate" in names and "eval/tested/0shot/miss_rate" not in names


def strings(tree: Any) -> set[str]:
    """Every text in nested lists and mappings."""
    if isinstance(tree, dict):
        return set().union(*map(strings, tree.values()))
    if isinstance(tree, list):
        return set().union(*map(strings, tree))
    return {tree} if isinstance(tree, str) else set()


def test_what_is_handed_to_wandb_shows_all_of_it(found, workspaces):
    for dashboard in found:
        made = dashboards.workspace(dashboard, "team", "project")
        spec = json.loads(made._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))
        said = strings(spec)
        for name in dashboard.names():
            assert any(text in (name, f"summary:{name}") for text in said), name


@pytest.fixture
def server(monkeypatch, workspaces) -> dict[str, Any]:
    """Views by name, as W&B would keep them."""
    from wandb_workspaces.workspaces import interface, internal

    kept: dict[str, Any] = {}

    def upsert(view: Any) -> dict[str, Any]:
        known = kept.get(view.name)
        assert view.id == (known.id if known else "")
        kept[view.name] = view.model_copy(update={"id": f"id of {view.name}"})
        return {"upsertView": {"view": {"id": kept[view.name].id, "name": view.name}}}

    def from_name(entity: str, project: str, name: str) -> Any:
        if project == "none":
            raise ValueError(f"Project `{entity}/{project}` not found.")
        if name not in kept:
            raise ValueError(f"Workspace `{name}` not found in project `{project}`")
        return kept[name]

    monkeypatch.setattr(internal, "upsert_view2", upsert)
    monkeypatch.setattr(internal.View, "from_name", from_name)
    monkeypatch.setattr(interface, "get_app_url", lambda api: "https://wandb.example.org")
    monkeypatch.setattr("wandb.Api", lambda: None)
    monkeypatch.setattr("wandb.termlog", lambda text: None)
    return kept


def test_saved_twice_a_dashboard_is_replaced(found, server):
    first = dashboards.save(found, "team", "project")
    assert first[0] == "https://wandb.example.org/team/project?nw=iadtraining"
    less = [Dashboard(one.slug, one.name, {"only": (Panel("p", "differences"),)}) for one in found]
    assert dashboards.save(less, "team", "project") == first
    assert len(server) == 4
    for view in server.values():
        assert [s.name for s in view.spec.section.panel_bank_config.sections] == ["only"]


def test_a_project_that_is_not_there_is_refused_with_what_to_do(found, server):
    with pytest.raises(ConfigError, match=r"team/none: Project .* a run with tracking=wandb"):
        dashboards.save(found, "team", "none")


# --- the stage -----------------------------------------------------------------------------------


@pytest.fixture
def no_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))


@pytest.mark.parametrize("mode", ["auto", "online", "offline", "disabled"])
def test_without_a_login_or_offline_it_is_refused_before_it_starts(no_login, mode, workspaces):
    config = compose.compose(["stage=dashboard", f"tracking.mode={mode}"])
    with pytest.raises(ConfigError, match="wandb login"):
        stages.find("dashboard").check_inputs(config)


def test_it_is_refused_without_its_package_and_for_other_trackers(monkeypatch):
    with pytest.raises(ConfigError, match="Use tracking=wandb"):
        compose.compose(["stage=dashboard", "tracking=none"])
    monkeypatch.setattr("iad_r1.stages.dashboard.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"iad_r1\[dashboards\]"):
        stages.find("dashboard").check_inputs(compose.compose(["stage=dashboard"]))
