"""Where weights may be, and what is said when they cannot be used. Nothing is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from iad_r1.backbones import hub
from iad_r1.command import compose
from iad_r1.errors import WeightsError
from iad_r1.settings.backbone import HubBackbone


def asked(path: Path | str, *overrides: str) -> HubBackbone:
    made = compose.compose(["backbone=qwen25vl_3b", f"backbone.path={path}", *overrides])
    assert isinstance(made.backbone, HubBackbone)
    return made.backbone


def checkpoint(folder: Path, **config: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    content = {"model_type": "qwen2_5_vl", **config}
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    (folder / "model.safetensors").touch()
    return folder


def refusal(backbone: HubBackbone) -> str:
    with pytest.raises(WeightsError) as caught:
        hub.require(backbone)
    return str(caught.value)


def test_an_earlier_run_stands_for_its_most_trained_weights(tmp_path):
    run = tmp_path / "outputs" / "name" / "2026-01-01_00-00-00"
    for stage in ("base", "sft", "grpo"):
        checkpoint(run / "checkpoints" / stage)
    (run / "config.json").write_text("{}", encoding="utf-8")
    assert hub.local(asked(run)) == run / "checkpoints" / "grpo"
    assert hub.fetch(asked(run)) == run / "checkpoints" / "grpo"
    assert hub.local(asked(run / "checkpoints" / "sft")) == run / "checkpoints" / "sft"


def test_a_run_that_saved_nothing_is_named(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    assert f"the run {tmp_path} saved no weights" in refusal(asked(tmp_path))


def test_pickles_are_not_weights(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_5_vl"}', encoding="utf-8")
    (tmp_path / "pytorch_model.bin").touch()
    said = refusal(asked(tmp_path))
    assert "it holds *.bin only, and pickles are not read" in said
    assert "weights=tiny" in said and "\n" not in said


@pytest.mark.parametrize("trusted", ["true", "false"])
def test_an_architecture_that_comes_as_code_is_refused(tmp_path, trusted):
    checkpoint(tmp_path, model_type="internvl_chat", auto_map={"AutoModel": "own.Model"})
    said = refusal(asked(tmp_path, f"backbone.trust_remote_code={trusted}"))
    assert "need code of their own (model_type 'internvl_chat'), which is not run" in said
    assert "convert them to transformers' own layout and give backbone.path=<folder>" in said


def test_the_architecture_decides_whatever_the_folder_is_called(tmp_path):
    named = checkpoint(tmp_path / "Qwen2.5-VL-3B-Instruct", model_type="paligemma")
    assert "of the architecture 'paligemma'" in refusal(asked(named))
    other = checkpoint(tmp_path / "nothing-in-a-name", model_type="llava_onevision")
    assert hub.require(asked(other)) == other


def test_a_revision_is_looked_for_and_named(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    cache = tmp_path / "hub" / "models--Qwen--Qwen2.5-VL-3B-Instruct"
    for revision in ("one", "two"):
        checkpoint(cache / "snapshots" / revision)
        (cache / "refs").mkdir(exist_ok=True)
        (cache / "refs" / f"v-{revision}").write_text(revision, encoding="utf-8")
    pinned = asked("Qwen/Qwen2.5-VL-3B-Instruct", "backbone.revision=v-two")
    assert hub.local(pinned) == cache / "snapshots" / "two"
    said = refusal(asked("Qwen/Qwen2.5-VL-3B-Instruct", "backbone.revision=v9"))
    assert "(Qwen/Qwen2.5-VL-3B-Instruct at revision v9) are not here" in said


def test_looking_for_weights_loads_no_torch(repository):
    code = "import sys; import iad_r1.backbones.hub; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=repository, check=True)
