"""A run that would not fit on its GPUs is refused before its weights load, with settings that do.

There is no GPU here: what is free on it is planted.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
import yaml
from PIL import Image

from iad_r1.backbones import flash
from iad_r1.backbones.shapes import architecture
from iad_r1.command import compose
from iad_r1.errors import ConfigError
from iad_r1.loops import fitting, lengths, opening
from iad_r1.planner import memory, questions, runs, tables
from iad_r1.planner.fits import Question, recommended
from iad_r1.planner.memory import GIB, Setup
from iad_r1.processes import distributed
from iad_r1.settings.config import Config, load
from iad_r1.settings.rollout import VllmRollout
from iad_r1.stages import plan
from iad_r1.store.run_folder import RunFolder
from iad_r1.types import Dataset, Sample, Solution

ONE = Sample("one", "drawn", "train", "plate", Image.new("RGB", (1024, 1024)), Solution("No"))
DATA = Dataset("drawn", "", (ONE,), (ONE,), {}, {"seen": (ONE,)})


@pytest.fixture(autouse=True)
def a_gpu_without_flash_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any) -> None:
        raise ConfigError("no kernel")

    plant_main_memory(monkeypatch, 512)
    monkeypatch.setattr(distributed, "device", lambda engine: torch.device("cuda", 0))
    monkeypatch.setattr(flash, "kernel_for", none)


def plant_main_memory(monkeypatch: pytest.MonkeyPatch, available: float) -> None:
    found = SimpleNamespace(available=int(available * GIB))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: found)


@cache
def plain(*typed: str) -> Config:
    return compose.compose(["backbone=qwen25vl_3b", "weights=random", *typed])


def composed(*typed: str) -> Config:
    """What is typed: groups through Hydra, and single values behind it, which is faster."""
    groups = [word for word in typed if "." not in word.partition("=")[0]]
    values = plain(*groups).model_dump(mode="json")
    for word in typed:
        key, _, value = word.partition("=")
        if "." in key:
            section, name = key.split(".")
            assert name in values[section], key
            values[section][name] = yaml.safe_load(value)
    return load(json.dumps(values))


def checked(config: Any, monkeypatch: pytest.MonkeyPatch, free: float, total: float = 79) -> None:
    monkeypatch.setattr(fitting, "free_memory", lambda device: (int(free * GIB), int(total * GIB)))
    fitting.check(config, DATA)


def refused(config: Any, monkeypatch: pytest.MonkeyPatch, free: float, total: float = 79) -> str:
    with pytest.raises(ConfigError) as found:
        checked(config, monkeypatch, free, total)
    return str(found.value)


def question(config: Config, gpus: int = 1) -> Question:
    """What `check` would plan, on GPUs of 79 GiB."""
    model = architecture(config)
    return questions.question(
        config,
        model,
        gpus=gpus,
        total=79 * GIB,
        limit=75 * GIB,
        main=512 * GIB,
        shown={stage: fitting.longest(config, DATA, model, stage) for stage in lengths.STAGES},
        precision="bfloat16",
        packing="group",
    )


def settings_in(said: str) -> list[str]:
    return re.findall(r"These settings fit: (.*) \(", said)[0].split()


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_what_does_not_fit_is_refused_and_fits_with_the_settings_that_are_named(stage, monkeypatch):
    said = refused(composed(f"stage={stage}"), monkeypatch, free=78.5)
    title = {"sft": "PA-SFT", "grpo": "SC-GRPO"}[stage]
    assert said.startswith(f"{title} of qwen25vl_3b is predicted to need ")
    assert "the GPU of rank 0 has 78.5 of 79.0 GiB free, of which 75.1 may be used" in said
    assert "in use there already" not in said and "memory.check=false" in said
    better = settings_in(said)
    assert better == ["tuning.gradient_checkpointing=true"]
    checked(composed(f"stage={stage}", *better), monkeypatch, free=78.5)


def test_a_run_is_refused_before_its_weights_load(monkeypatch, tmp_path):
    monkeypatch.setattr(opening, "open_data", lambda *_: DATA)
    monkeypatch.setattr(opening, "open_backbone", lambda *_: pytest.fail("weights were loaded"))
    monkeypatch.setattr(fitting, "free_memory", lambda device: (20 * GIB, 79 * GIB))
    with pytest.raises(ConfigError, match="is predicted to need"):
        opening.open_run(composed("stage=sft"), RunFolder(tmp_path), None, None)


def test_what_fits_is_not_refused(monkeypatch):
    checked(composed("stage=sft"), monkeypatch, free=138, total=139)


def test_what_other_programs_hold_of_a_gpu_is_said(monkeypatch):
    config = composed("stage=sft", "tuning.gradient_checkpointing=true")
    said = refused(config, monkeypatch, free=60.0)
    assert "60.0 of 79.0 GiB free" in said and "19.0 GiB are in use there already" in said


def test_all_ranks_refuse_alike_and_name_the_gpu_that_is_fullest(monkeypatch):
    config = composed("stage=sft", "engine.ranks=2", "tuning.gradient_checkpointing=true")

    def second(mine: Any) -> list[Any]:
        return [mine, (int(20 * GIB), *mine[1:])]

    checked(config, monkeypatch, free=78.5)
    monkeypatch.setattr(distributed, "everyone", second)
    said = refused(config, monkeypatch, free=78.5)
    assert "the GPU of rank 1 has 20.0 of 79.0 GiB free" in said
    monkeypatch.setattr(distributed, "everyone", lambda mine: second((int(78.5 * GIB), *mine[1:])))
    assert refused(config, monkeypatch, free=20.0) == said  # as rank 1 sees it


def test_a_share_of_vllm_that_leaves_no_room_is_made_smaller(monkeypatch):
    settings = ["stage=grpo", "tuning=lora", "rollout=vllm", "rollout.memory=0.9"]
    better = settings_in(refused(composed(*settings), monkeypatch, free=78.5))
    assert [word.partition("=")[0] for word in better] == ["rollout.memory"]
    checked(composed(*settings, *better), monkeypatch, free=78.5)
    # without sleep the trainer has less beside it
    awake = refused(composed(*settings, *better, "rollout.sleep=false"), monkeypatch, free=78.5)
    assert "These settings fit: rollout.memory=" in awake


def test_a_model_that_is_only_evaluated_needs_room_for_its_weights_and_answers(monkeypatch):
    settings = ["stage=evaluate", "evaluate.shots=[0]", "evaluate.batch_size=256"]
    better = settings_in(refused(composed(*settings), monkeypatch, free=23, total=24))
    checked(composed(*settings, *better), monkeypatch, free=23, total=24)
    said = refused(composed(*settings), monkeypatch, free=5, total=24)
    assert "No other settings were found to fit on these GPUs." in said


def needed(*typed: str) -> tuple[int, int]:
    """Bytes that answering takes as it is set, and those of them for scoring a batch of answers."""
    config = composed("stage=evaluate", "evaluate.shots=[0]", *typed)
    asked = question(config)
    work = asked.shown["evaluate"].work(config.evaluate.batch_size, completions=2)
    setup = Setup(precision="bfloat16", train=())
    return next(runs.evaluation(config, asked)).peak, memory.scoring(asked.model, work, setup)


def share_of_vllm(config: Config) -> int:
    """Bytes that vLLM takes of a GPU of 79 GiB."""
    assert isinstance(config.rollout, VllmRollout)
    return int(config.rollout.memory * 79 * GIB)


@pytest.mark.parametrize("rollout", ["vllm", "vllm_server"])
def test_a_batch_of_answers_is_scored_while_vllm_goes_on_with_the_next(rollout):
    (few, one), (many, most) = (
        needed(f"rollout={rollout}", f"evaluate.batch_size={size}") for size in (1, 64)
    )
    assert many - few == most - one > GIB
    engine = share_of_vllm(composed("rollout=vllm")) if rollout == "vllm" else 0
    assert few == one + 2 * architecture(composed("stage=evaluate")).parameters + engine + GIB


def test_vllm_alone_needs_no_room_for_a_second_model_and_says_when_its_share_is_too_small():
    typed = ("stage=evaluate", "evaluate.shots=[0]", "rollout=vllm")
    config, asked = plain(*typed, "weights=published"), question(plain(*typed))
    assert config.engine_alone and not plain(*typed).engine_alone
    assert not plain("stage=sft", "rollout=vllm", "weights=published").engine_alone
    engine = share_of_vllm(config)
    assert next(runs.evaluation(config, asked)).peak == engine + GIB
    small = replace(asked, total=16 * GIB, limit=15 * GIB)
    gpus = [runs.Gpu(0, 16 * GIB, 16 * GIB)]
    said = str(runs.problem(config, small, gpus))
    share = float(re.findall(r"Use rollout\.memory=(\S+) or more", said)[0])
    for better, sentence in ((share, None), (share - 0.05, said)):
        rollout = config.rollout.model_copy(update={"memory": better})
        found = runs.problem(config.model_copy(update={"rollout": rollout}), small, gpus)
        assert (found is None) is (sentence is None)
    tiny = replace(asked, total=8 * GIB, limit=7 * GIB)
    assert "No other settings were found" in str(runs.problem(config, tiny, gpus))


def test_an_engine_that_never_sleeps_is_there_while_the_reference_is_asked():
    typed = ["engine=zero3", "engine.ranks=6", "tuning.gradient_checkpointing=true"]
    config = composed("stage=grpo", "rollout=vllm", "rollout.sleep=false", *typed)
    option = runs.as_set(config, question(config, gpus=6), "grpo")
    beside = option.training.states.standing + option.training.buffers + option.whole
    scoring = memory.scoring(option.question.model, option.work, option.setup)
    assert option.training.peak < beside + scoring  # all weights are gathered for it
    assert option.peak == beside + option.sampling.total + scoring + GIB


def test_a_minibatch_is_all_that_is_learned_before_the_gradients_go():
    few, halves, whole = (
        runs.as_set(config, question(config), "grpo")
        for config in (
            composed("stage=grpo", "grpo.prompts_per_step=3", "grpo.token_budget=null"),
            composed("stage=grpo", "grpo.minibatches=2", "grpo.token_budget=null"),
            composed("stage=grpo", "grpo.token_budget=null"),
        )
    )
    assert halves.work.groups == 3 and halves.forwards == 1
    assert few.training == halves.training
    assert halves.peak < whole.peak


def test_main_memory_is_compared_too(monkeypatch):
    config = composed("stage=sft", "engine=zero2", "engine.ranks=1", "engine.offload=cpu")
    checked(config, monkeypatch, free=78.5)
    plant_main_memory(monkeypatch, 30)
    said = refused(config, monkeypatch, free=78.5)
    assert "GiB of main memory, and 30 GiB are available" in said
    mended = composed("stage=sft", "engine=zero2", "engine.ranks=1", *settings_in(said))
    checked(mended, monkeypatch, free=78.5)


def test_where_nothing_fits_the_number_of_gpus_that_would_is_named(monkeypatch):
    plant_main_memory(monkeypatch, 1)
    config = compose.compose(["stage=sft", "backbone=qwen25vl_7b", "weights=random"])
    said = refused(config, monkeypatch, free=11, total=12)
    assert "No other settings" in said and re.search(r"\d+ such GPUs would do", said)


def test_nothing_is_asked_or_said_for_a_tiny_model_a_cpu_or_where_the_check_is_off(
    monkeypatch, capsys
):
    monkeypatch.setattr(fitting, "free_memory", lambda device: pytest.fail("a GPU was asked"))
    fitting.check(composed("stage=sft", "memory.check=false"), DATA)
    fitting.check(compose.compose(["backbone=qwen25vl_3b", "weights=tiny"]), DATA)
    fitting.check(compose.compose([]), DATA)
    monkeypatch.setattr(distributed, "device", lambda engine: torch.device("cpu"))
    fitting.check(composed("stage=sft"), DATA)
    assert capsys.readouterr().out == ""


def test_a_model_of_which_nothing_is_known_is_said_and_passed_over(monkeypatch, capsys):
    config = compose.compose(["backbone=qwen25vl_3b", "backbone.path=Some/Model", "stage=sft"])
    checked(config, monkeypatch, free=1)
    assert "memory is not predicted: backbone.path=Some/Model" in capsys.readouterr().out


def test_flash_attention_is_counted_where_a_kernel_passes(monkeypatch):
    config, device = composed("stage=grpo"), torch.device("cuda", 0)
    model, asked = architecture(config), list[Any]()
    assert fitting.packing(config, model, device) == "group"
    monkeypatch.setattr(flash, "kernel_for", lambda *layer: asked.append(layer))
    assert fitting.packing(config, model, device) == "group_flash"
    assert asked == [(16, 2, 128, torch.bfloat16, device)]


@pytest.mark.parametrize("name", ["llava_ov_05b", "qwen25vl_7b"])
def test_the_command_of_a_plan_is_not_refused_on_such_gpus(name, monkeypatch):
    config = compose.compose(["stage=plan", f"backbone={name}", "gpus=4", "tuning=lora"])
    question = plan.ask(config, config.stage, architecture(config))  # pyright: ignore
    for step in ("sft", "grpo"):
        option = recommended(question, step, "lora")
        assert option is not None
        words = [word for word in tables.command(config, option) if not word.startswith("init=")]
        checked(compose.compose(words), monkeypatch, free=78.5)
