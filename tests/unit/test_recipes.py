"""Every cell of what the papers' scripts set, against the recipes here.

`tests/golden/recipes.csv` was read from the released scripts of IAD-R1 (PA-SFT, SC-GRPO and
evaluation of its seven backbones) and of AnomalyR1, and from the defaults of their trainers.
"""

from __future__ import annotations

import csv
import functools
from pathlib import Path

from iad_r1.command import compose
from iad_r1.command.options import groups
from iad_r1.settings.config import Config
from iad_r1.settings.training import Grpo, Optimiser, Sft

CSV = Path(__file__).parents[1] / "golden" / "recipes.csv"
with CSV.open(encoding="utf-8") as file:
    ROWS = list(csv.DictReader(file))
COMPARED = ["internvl25_4b", "llava15_13b", "llava16_34b", "qwen25vl_72b"]  # evaluation only
TRAINED = [name for name in groups()["backbone"] if name not in ("tiny", "api", *COMPARED)]
HUB = {row["backbone"]: row["hub_id"] for row in ROWS if row["stage"] == "sft"}
SPLIT = "the batch over devices and time is the machine's; their product is compared"
DIFFERENT = {
    # (stage, column): why a cell is not what the recipe says
    (
        "sft",
        "max_len",
    ): "longer samples are cut there; nothing is cut here, so it would refuse them",
    (
        "grpo",
        "max_len",
    ): "the same; it would refuse 8 % of what OneVision may be shown",
    (
        "eval",
        "max_len",
    ): "two pictures of 1024 x 1024 would not fit",
    ("sft", "per_device_batch"): SPLIT,
    ("sft", "grad_accum"): SPLIT,
    ("sft", "train_gpus"): SPLIT,
    ("grpo", "per_device_batch"): SPLIT,
    ("grpo", "grad_accum"): SPLIT,
    ("grpo", "train_gpus"): SPLIT,
    ("eval", "per_device_batch"): "requests at a time: of no influence on greedy answers",
    ("sft", "zero_stage"): "stage=plan names the engine that fits the machine",
    ("grpo", "zero_stage"): "stage=plan names the engine that fits the machine",
    ("eval", "vllm_gpus"): "rollout=hf and rollout=vllm answer alike; see docs/vllm.md",
    ("grpo", "vllm_gpus"): "rollout=vllm_server, or rollout=vllm on the GPUs that train",
    ("grpo", "max_pixels"): "the released trainer hands it to Qwen's processor alone",
    ("eval", "top_p"): "greedy answers do not depend on it",
    ("grpo", "note"): "a remark",
    ("eval", "note"): "a remark",
}


@functools.cache
def composed(backbone: str, recipe: str) -> Config:
    return compose.compose([f"backbone={backbone}", f"recipe={recipe}"])


def told(row: dict[str, str], recipe: str = "released") -> dict[str, object]:
    """What a recipe says of each column of a row; None: it has no such setting."""
    stage, name = row["stage"], row["backbone"]
    if name == "all":
        name = "qwen25vl_3b"
    recipe = "anomaly_r1" if name.startswith("anomalyr1") else recipe
    name = name.removeprefix("anomalyr1_")
    made = composed(name, recipe)
    hub = made.backbone
    assert hub.source == "hub"
    about: dict[str, object] = {"stage": stage, "backbone": row["backbone"], "hub_id": hub.path}
    if stage == "eval":
        found = made.evaluate
        return {
            **about,
            "per_device_batch": found.batch_size,
            "max_len": found.max_length,
            "max_completion": found.max_tokens,
            "temperature": 0.0,  # evaluation is always greedy
        }
    section = made.sft if stage == "sft" else made.grpo
    return about | trained(section) | (of_sft(made) if stage == "sft" else of_grpo(made))


def trained(section: Sft | Grpo) -> dict[str, object]:
    assert isinstance(section, Optimiser)
    assert section.adam_betas == [0.9, 0.999]  # the trainers' default, which no script changes
    return {
        "learning_rate": section.learning_rate,
        "lr_schedule": section.schedule,
        "warmup_steps": section.warmup_steps,
        "weight_decay": section.weight_decay,
        "max_len": section.max_length,
        "max_pixels": section.max_pixels,
        "save_steps": section.save_every,
    }


def of_sft(made: Config) -> dict[str, object]:
    (phase,) = made.sft.phases
    return {
        "epochs_script": phase.epochs,
        "vllm_gpus": 0,
        "zero_stage": 0,
        "batch": phase.batch_size,
        "note": f"{made.engine.precision} {made.tuning.name}".replace("bfloat", "bf")
        + " fine-tuning",
    }


def of_grpo(made: Config) -> dict[str, object]:
    return {
        "epochs_script": made.grpo.epochs,
        "vllm_gpus": int(made.rollout.name != "hf"),
        "zero_stage": 0,
        "batch": made.grpo.prompts_per_step,
        "max_completion": made.rollout.max_tokens,
        "group_size": made.grpo.group_size,
        "temperature": made.rollout.temperature,
        "top_p": made.rollout.top_p,
        "top_k": made.rollout.top_k,
        "beta": made.grpo.kl_coef,
    }


def same(cell: str, value: object) -> bool:
    return float(cell) == value if isinstance(value, (int, float)) else cell == value


def test_every_cell_of_the_released_scripts_is_in_the_recipe_or_differs_on_purpose():
    different = set()
    for row in ROWS:
        found = told(row)
        for column, cell in row.items():
            if not cell or column == "epochs_paper":
                continue
            if not same(cell, found.get(column)):
                different.add((row["stage"], column))
                assert (row["stage"], column) in DIFFERENT, (row["backbone"], column, cell, found)
    assert different == set(DIFFERENT)  # and nothing is excused that does not differ


def test_the_batch_of_all_devices_together_is_the_released_one():
    for row in ROWS:
        if row["stage"] != "eval":
            product = int(row["per_device_batch"]) * int(row["grad_accum"]) * int(row["train_gpus"])
            assert told(row)["batch"] == product


def test_the_epochs_are_the_paper_s_in_the_paper_s_recipe():
    for row in ROWS:
        if row["epochs_paper"]:
            assert told(row, "paper")["epochs_script"] == float(row["epochs_paper"])


def test_only_sc_grpo_of_the_qwen_models_limits_pixels():
    for recipe in ("paper", "released"):
        for name, hub in HUB.items():
            made = composed(name, recipe)
            assert made.grpo.max_pixels == (480_000 if "Qwen" in hub else None)
            assert made.sft.max_pixels is made.evaluate.max_pixels is None


def test_every_script_of_the_paper_has_a_backbone_here_and_none_is_made_up():
    assert set(HUB) == set(TRAINED) and len(HUB) == 7
    assert {row["backbone"] for row in ROWS if row["stage"] == "grpo"} == {
        *HUB,
        "anomalyr1_qwen25vl_3b",
    }


def test_anomaly_r1_takes_its_own_rewards_prompt_and_picture_size():
    made = composed("qwen25vl_3b", "anomaly_r1")
    assert set(made.rewards.components) == {"choice", "roam"}
    assert made.grpo.prompt == "anomaly_r1_train" and made.grpo.from_base
    assert made.grpo.max_size == made.evaluate.max_size == [1000, 800]
    assert made.rollout.name == "hf"


def test_the_stored_rows_are_those_that_were_read_from_the_scripts(shared):
    assert CSV.read_text(encoding="utf-8") == (shared / "data" / "recipes.csv").read_text("utf-8")
