"""`stage=plan` says what fits before anything is loaded, and what to type."""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from iad_r1 import stages
from iad_r1.backbones import published
from iad_r1.command import compose
from iad_r1.errors import ConfigError
from iad_r1.planner.fits import best, options, recommended
from iad_r1.settings.config import Config
from iad_r1.stages import plan as stage
from iad_r1.store.run_folder import RunFolder


def planned(tmp_path: Path, *overrides: str) -> tuple[dict[str, Any], str]:
    """The content of `plan.json` and what was printed."""
    config = compose.compose(["stage=plan", *overrides])
    console = Console(file=io.StringIO(), width=180)
    folder = RunFolder.create(tmp_path, config.name)
    result = stage.run(config, folder, console)
    assert json.loads((folder.path / "plan.json").read_text()) == result
    assert isinstance(console.file, io.StringIO)
    return result, console.file.getvalue()


def question(*overrides: str) -> Any:
    config = compose.compose(["stage=plan", *overrides])
    assert isinstance(config.stage, stage.Settings)
    return stage.ask(config, config.stage, stage.architecture(config))


def typed(command: str) -> Config:
    """The configuration of a command as recommended, its placeholder of a run left out."""
    program, script, *rest = shlex.split(command)
    assert (program, script) == ("python", "run.py")
    return compose.compose([word for word in rest if not word.startswith("init=")])


def test_gpus_is_typed_as_it_is_said() -> None:
    config = compose.compose(["stage=plan", "backbone=qwen25vl_3b", "gpus=4", "gpu_memory=40"])
    assert isinstance(config.stage, stage.Settings)
    assert (config.stage.gpus, config.stage.gpu_memory) == (4, 40)


def test_elsewhere_there_is_no_such_setting() -> None:
    with pytest.raises(ConfigError, match="gpus: there is no such setting"):
        compose.compose(["stage=sft", "gpus=4"])


def test_every_option_of_every_step_is_there_with_its_components(tmp_path: Path) -> None:
    result, text = planned(tmp_path, "backbone=qwen25vl_3b", "gpus=4")
    found = {(o["step"], o["tuning"], o["engine"], o["offload"]) for o in result["options"]}
    engines = [("single", "none"), ("zero2", "none"), ("zero2", "cpu"),
               ("zero3", "none"), ("zero3", "cpu")]  # fmt: skip
    assert found == {
        (step, tuning, *engine)
        for step in ("sft", "grpo")
        for tuning in ("full", "lora")
        for engine in engines
    }
    assert sum(result["parameters"].values()) == 3_754_622_976
    for word in ("PA-SFT, full", "SC-GRPO, lora", "zero3", "python run.py stage=grpo"):
        assert word in text


def test_a_component_is_what_arithmetic_gives(tmp_path: Path) -> None:
    """ZeRO-3 on 4 GPUs: 2, 2, 8 and 4 bytes of 3.75 B parameters, a quarter each, in GiB."""
    result, _ = planned(tmp_path, "backbone=qwen25vl_3b", "gpus=4")
    (line,) = (
        o for o in result["options"]
        if (o["step"], o["tuning"], o["engine"], o["offload"]) == ("grpo", "full", "zero3", "none")
    )  # fmt: skip
    quarter = 3_754_622_976 / 4 / 2**30
    for name, size in (("weights", 2), ("gradients", 2), ("optimiser", 8), ("master_weights", 4)):
        assert line[name] == pytest.approx(size * quarter, abs=0.006), name
    assert line["activations_checkpointed"] < line["activations"]
    assert line["peak"] < sum(
        line[name] for name in ("weights", "gradients", "optimiser", "master_weights", "reference",
                                "activations", "logprobs", "zero_buffers", "rollout_weights",
                                "rollout_cache", "rollout_rest", "overhead")
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("gpus", [1, 4, 8])
@pytest.mark.parametrize("name", ["qwen2vl_2b", "qwen25vl_3b", "llava16_8b", "llava_ov_05b"])
def test_the_recommended_command_is_understood_as_it_was_meant(tmp_path, name, gpus, tuning):
    result, _ = planned(tmp_path, f"backbone={name}", f"gpus={gpus}", f"tuning={tuning}")
    for step in ("sft", "grpo"):
        advice = result["recommended"][step]
        assert advice["fits"], (name, gpus, tuning, step)
        option, config = advice["option"], typed(advice["command"])
        assert option["peak"] <= result["usable_gib"]
        assert config.engine.name == option["engine"]
        assert getattr(config.engine, "offload", "none") == option["offload"]
        assert config.engine.precision == result["assumed"]["precision"]
        assert config.tuning.name == tuning
        assert config.tuning.gradient_checkpointing == option["gradient_checkpointing"]
        if step == "grpo":
            assert config.rollout.name == option["rollout"]
            assert "init=" in advice["command"]


def test_on_the_cpu_it_plans_for_the_cpu(tmp_path: Path) -> None:
    result, text = planned(tmp_path, "backbone=llava_ov_05b", "gpus=0", "stage.picture=[384,384]")
    assert {o["engine"] for o in result["options"]} == {"single"}
    assert result["assumed"]["precision"] == "float32" and "on the CPU" in text
    if result["recommended"]["sft"]["fits"]:  # depends on this machine's memory
        config = typed(result["recommended"]["sft"]["command"])
        assert (config.engine.device, config.engine.precision) == ("cpu", "float32")


def test_what_does_not_fit_says_by_how_much_and_what_would(tmp_path: Path) -> None:
    result, text = planned(tmp_path, "backbone=qwen25vl_7b", "gpus=1", "gpu_memory=24",
                           "stage.main_memory=64")  # fmt: skip
    advice = result["recommended"]["grpo"]
    assert not advice["fits"] and "command" not in advice
    said = "\n".join(advice["why"])
    assert "GiB more than may be used" in said and "GiB more than there is" in said
    assert "GPUs of this size would do: gpus=" in said and "LoRA fits: tuning=lora." in said
    assert all(sentence in text for sentence in advice["why"])


def test_the_number_of_gpus_it_names_does() -> None:
    small = ("backbone=qwen25vl_7b", "gpu_memory=24")
    from iad_r1.planner.fits import more_gpus

    count = more_gpus(question(*small, "gpus=1", "stage.main_memory=64"), "sft", "full")
    assert count is not None
    enough = (f"gpus={count}", f"sft.phases.0.batch_size={count}", "stage.main_memory=128")
    assert recommended(question(*small, *enough), "sft", "full") is not None
    assert recommended(question(*small, "gpus=2", "stage.main_memory=64"), "sft", "full") is None


def test_backbones_that_are_only_evaluated_get_no_training_command(tmp_path: Path) -> None:
    result, _ = planned(tmp_path, "backbone=qwen25vl_72b", "gpus=8")
    (why,) = result["recommended"]["sft"]["why"]
    assert "evaluated here, not trained" in why and "136.7 GiB" in why  # 2 bytes of 73.4 B


def test_one_gpu_that_holds_everything_needs_no_deepspeed_and_several_share() -> None:
    for gpus, engine in ((1, "single"), (4, "zero2")):
        asked = question("backbone=llava_ov_05b", f"gpus={gpus}", "stage.picture=[384,384]")
        assert best(asked, "sft", "full", "single", False).fits
        chosen = recommended(asked, "sft", "full")
        assert chosen is not None and chosen.setup.engine == engine


def test_the_first_option_that_fits_is_the_one_to_use() -> None:
    asked = question("backbone=qwen25vl_3b", "gpus=4")
    assert recommended(asked, "sft", "lora") == options(asked, "sft", "lora")[0]


def test_no_more_ranks_than_prompts() -> None:
    asked = question("backbone=qwen25vl_3b", "gpus=8")  # 6 prompts a step in the paper's recipe
    assert (asked.ranks("sft"), asked.ranks("grpo")) == (8, 6)


def test_an_unknown_model_is_refused_and_the_known_ones_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing is known.*qwen25vl_3b"):
        planned(tmp_path, "backbone=qwen25vl_3b", "backbone.path=Some/Model", "gpus=1")


def test_the_tiny_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="fits anywhere"):
        question("gpus=1")


def test_a_model_in_a_folder_is_read_from_its_configuration(tmp_path: Path) -> None:
    from iad_r1.backbones.published import build

    build.model_config("llava_ov_05b").save_pretrained(tmp_path / "mine")
    asked = question("backbone=qwen25vl_3b", f"backbone.path={tmp_path / 'mine'}", "gpus=1")
    assert asked.model == question("backbone=llava_ov_05b", "gpus=1").model


def test_every_described_backbone_can_be_planned() -> None:
    for name in published.names():
        asked = question(f"backbone={name}", "gpus=8")
        assert best(asked, "sft", "lora", "zero3", True).peak > 0


def test_nothing_is_needed_but_settings() -> None:
    config = compose.compose(["stage=plan", "backbone=qwen25vl_3b", "gpus=4"])
    chosen = stages.find("plan")
    chosen.check_inputs(config)
    assert chosen.check_weights(config, Path())
    assert "memory of qwen25vl_3b" in "\n".join(chosen.announce(config, "here"))


def test_planning_loads_no_torch(repository: Path) -> None:
    code = (
        "import sys; from iad_r1.command import compose; from iad_r1.planner import tables;"
        "from iad_r1.stages import plan;"
        "config = compose.compose(['stage=plan', 'backbone=qwen25vl_3b', 'gpus=4']);"
        "tables.content(config, config.stage, plan.ask(config, config.stage, "
        "plan.architecture(config)));"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=repository,
        env={**os.environ, "PYTHONPATH": str(repository)},
        check=False,
    )
    assert done.returncode == 0
