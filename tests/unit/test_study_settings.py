"""Studies as they are asked for: every run of every study composes, at both scales."""

from __future__ import annotations

import json
import re
from pathlib import Path

import hydra
import pytest
from omegaconf import OmegaConf

from iad_r1.command import arms, compose, options
from iad_r1.errors import ConfigError
from iad_r1.judge import paper
from iad_r1.judge.compare import PAIRED_METRICS
from iad_r1.settings.base import CONF
from iad_r1.settings.config import Config
from iad_r1.settings.study import Study
from iad_r1.store import studies

STUDIES, SCALES = options.groups()["study"], options.groups()["scale"]
# Data of the published scale, as far as a configuration looks at them: one root for all.
FOLDERS = ("Expert-AD", "AnomalyR1", "DS-MVTec", "VisA", "MPDD", "DAGM", "DTD-Synthetic", "SDD")


def overlay(*overrides: str) -> dict:
    """The plain values of a study's own section and of the sweep."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        found = hydra.compose("config", list(overrides), return_hydra_config=True)
    params = {k: found.hydra.sweeper.params[k] for k in found.hydra.sweeper.params}
    return {"study": OmegaConf.to_container(found.study), "params": params}


def refused(*overrides: str, directory: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        compose.compose(overrides, directory)
    return str(caught.value)


def finish(folder: Path, study: str, arm: str, scale: str = "tiny", seed: int = 0) -> Path:
    """A finished run of an arm, with weights after PA-SFT."""
    run = folder / "outputs" / study / f"2026-01-01_00-00-{arm}"
    (run / "checkpoints" / "sft").mkdir(parents=True)
    of = {"name": study, "arm": arm, "scale": scale}
    config = {
        "study": of, "seed": seed, "backbone": {"name": "tiny"}, "weights": {"name": "published"},
    }  # fmt: skip
    (run / "config.json").write_text(json.dumps(config))
    (run / "manifest.json").write_text(json.dumps({"status": "finished"}))
    (run / "checkpoints" / "sft" / "config.json").write_text("{}")
    return run


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", STUDIES)
def test_every_run_of_a_study_composes(name, scale, tmp_path, monkeypatch):
    for folder in FOLDERS:
        (tmp_path / folder).mkdir()
    monkeypatch.setenv("IAD_DATA", str(tmp_path))
    asked = [f"study={name}", f"scale={scale}"]
    found = overlay(*asked)
    study = Study.model_validate(found["study"])
    assert study.name == name
    assert study.scale == scale
    assert set(found["params"]) == {"study.arm", "seed"}
    assert found["params"]["seed"] == ",".join(map(str, study.seeds))
    swept = found["params"]["study.arm"].split(",")
    assert swept == arms.names(found["study"])
    made: dict[str, Config] = {}
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        composed = hydra.compose("config", asked)  # once: each arm composes anew, with its settings
    for arm in swept:
        composed.study.arm = arm
        made[arm] = compose.resolve(composed, tmp_path, [*asked, f"study.arm={arm}"])
        assert made[arm].name == name
        finish(tmp_path, name, arm, scale)  # those behind it may start from it
        of = made[arm].study
        assert of is not None
        assert (of.name, of.arm, of.scale) == (name, arm, scale)
    settings = [m.model_dump_json(exclude={"study"}) for m in made.values()]
    assert len(set(settings)) == len(settings), "two arms are the same run"
    for row in study.rows.values():
        tasks = made[row.of].tasks()
        asked = [tasks[:place] for place, task in enumerate(tasks) if task == "evaluate"]
        trained = {"pretrain", "sft", "grpo"}
        last = [next((t for t in reversed(t) if t in trained), "base") for t in asked]
        start = made[row.of].stage.name == "evaluate"  # those of `init`
        assert row.weights in last or start or (row.weights == "base" and "pretrain" in last)


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_asks_for_what_can_be_measured_and_is_published(name):
    study = Study.model_validate(overlay(f"study={name}")["study"])
    assert set(study.metrics) | {claim.metric for claim in study.claims} <= set(PAIRED_METRICS)
    assert {claim.metric for claim in study.claims} <= set(study.metrics)
    assert study.published is None or study.published in paper.MODELS
    methods = {row["method"] for row in paper.rows()}
    assert {row.published for row in study.rows.values()} <= methods | {None}


def test_the_band_of_the_rows_without_names_is_that_of_the_paper():
    rows = [r for r in paper.rows() if r["method"].startswith("reward-ablation-row")]
    means = [
        sum(r["value"] for r in rows if r["method"].endswith(f"row{n}")) / 6 for n in (2, 3, 4, 5)
    ]
    said = overlay("study=rewards")["study"]["notes"][0]
    assert re.findall(r"\d\d\.\d", said) == [f"{min(means):.1f}", f"{max(means):.1f}"]


def test_a_plus_before_a_study_is_as_without():
    asked = ["scale=tiny", "study.arm=answer"]
    assert compose.compose(["+study=rewards", *asked]) == compose.compose(["study=rewards", *asked])


def test_what_is_typed_wins_over_a_scale_and_not_over_an_arm():
    asked = ["study=rewards", "scale=tiny", "study.arm=answer"]
    assert compose.compose([*asked, "grpo.steps=7"]).grpo.steps == 7
    assert compose.compose(asked).grpo.steps == 30
    said = refused(*asked, "rewards=sc_grpo")
    assert "the arm sets rewards=answer, and rewards=sc_grpo was typed" in said


def test_a_study_without_an_arm_says_how_it_is_run():
    said = refused("study=rewards", "scale=tiny")
    assert "python run.py -m study=rewards scale=tiny" in said
    assert "has no arm answr" in refused("study=rewards", "scale=tiny", "study.arm=answr")


def test_an_arm_that_starts_from_another_one_waits_for_it(tmp_path):
    asked = ["study=labels_vs_rewards", "scale=tiny", "study.arm=labels"]
    said = refused(*asked, directory=tmp_path)
    assert "no finished run of the arm sc_grpo with seed=0" in said
    assert "study=labels_vs_rewards scale=tiny study.arm=sc_grpo seed=0" in said
    run = finish(tmp_path, "labels_vs_rewards", "sc_grpo")
    assert compose.compose(asked, tmp_path).init == str(run / "checkpoints" / "sft")
    assert "with seed=1" in refused(*asked, "seed=1", directory=tmp_path)


def test_runs_of_other_scales_arms_and_seeds_are_not_taken(tmp_path):
    run = finish(tmp_path, "rewards", "answer")
    of = ("rewards", "answer", "tiny", 0)
    found = studies.finished(tmp_path / "outputs", *of)
    assert found is not None and found.path == run
    for other in (
        ("grid", "answer", "tiny", 0),
        ("rewards", "sc_grpo", "tiny", 0),
        ("rewards", "answer", "paper", 0),
        ("rewards", "answer", "tiny", 1),
    ):
        assert studies.finished(tmp_path / "outputs", *other) is None
    (run / "manifest.json").write_text(json.dumps({"status": "failed"}))
    assert studies.finished(tmp_path / "outputs", *of) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"baseline": "nobody"}, "baseline names the row 'nobody'"),
        ({"at": {"tiny": {"answr": []}}}, "at.tiny names the arm 'answr'"),
        ({"axis": {"label": "x", "at": {"pa_sft": 1.0, "x": 2.0}}}, "axis.at names the row 'x'"),
    ],
)
def test_a_study_that_names_what_is_not_there_is_refused(change, said):
    values = overlay("study=rewards", "scale=tiny")["study"]
    with pytest.raises(ValueError, match=re.escape(said)):
        Study.model_validate({**values, **change})
