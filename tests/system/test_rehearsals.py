"""Every backbone rehearsed: the tiny twin takes the path of the real one.

What a twin learns in two steps means nothing. That it runs, that its weights change and are
written as the hub spells them, and that nothing is made up on the way, is what is tested.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from iad_r1.backbones.families import PARTS, part_of

TRAINED = ["qwen2vl_2b", "qwen25vl_3b", "qwen25vl_7b", "llava15_7b", "llava16_8b", "llava_ov_05b",
           "llava_ov_7b"]  # fmt: skip
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
COMPARED = ["internvl25_4b", "llava15_13b", "llava16_34b", "qwen25vl_72b"]
# A twin that has learned to say <answer>Yes</answer> or No earns something sometimes, and a
# completion that earns more than the others of its group moves the weights.
ANSWERING = ["sft.target=direct", "rewards=answer_only", "sft.learning_rate=5e-3",
             "sft.schedule=constant_with_warmup", "sft.phases.0.steps=60",
             "sft.phases.0.batch_size=4", "grpo.learning_rate=1e-3"]  # fmt: skip
QUICK = ["weights=tiny", "tracking=none", "data.sizes.sft=4", "data.sizes.rl=4", "evaluate.limit=1",
         "evaluate.max_tokens=8", "rollout.max_tokens=8"]  # fmt: skip


def tensors(folder: Path, stage: str) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / stage / "model.safetensors")


def metrics(folder: Path, stage: str) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for line in lines if (row := json.loads(line))["stage"] == stage]


def check_loads_anywhere(checkpoint: Path) -> None:
    """With transformers alone, through the Auto classes, a picture and the chat template."""
    read: Any = AutoModelForImageTextToText.from_pretrained(checkpoint, output_loading_info=True)
    model, said = read
    assert not said["missing_keys"] and not said["unexpected_keys"], said
    processor = AutoProcessor.from_pretrained(checkpoint)
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Defects?"}]}
    text = processor.apply_chat_template([turn], add_generation_prompt=True, tokenize=False)
    inputs = processor(text=[text], images=[Image.new("RGB", (64, 48))], return_tensors="pt")
    assert torch.isfinite(model(**inputs).logits).all()
    assert model.generation_config.eos_token_id is not None


@pytest.mark.parametrize("backbone", TRAINED)
def test_pa_sft_then_sc_grpo_then_evaluation(backbone, forked):
    folder, output, summary = forked("stage=pipeline", f"backbone={backbone}", *QUICK, *ANSWERING)
    assert f"a tiny random twin of {backbone}: a rehearsal, whose numbers mean nothing" in output

    asked = {(row["stage"], row["split"], row["shots"]) for row in summary["results"]}
    splits = [(split, shots) for split in ("seen", "new") for shots in (0, 1)]
    assert asked == {(stage, *s) for stage in ("base", "sft", "grpo") for s in splits}
    sft, grpo = metrics(folder, "sft"), metrics(folder, "grpo")
    assert sft[-1]["loss"] < sft[0]["loss"] / 2
    assert [row["step"] for row in grpo] == [0, 1] and all(math.isfinite(r["loss"]) for r in grpo)
    # sampler and trainer give every drawn token the same probability
    assert all(row["sampler_gap"] < 1e-4 for row in grpo)

    base, tuned, final = (tensors(folder, stage) for stage in ("base", "sft", "grpo"))
    # as the hub spells them, which tests/loop/test_packing_twins.py holds the twins to
    assert set(base) == set(tuned) == set(final)
    moved = {name for name in base if not torch.equal(base[name], tuned[name])}
    assert {part_of(name) for name in moved} == set(PARTS)
    # a random twin may earn the same for every answer; then, and only then, nothing is learned
    signal = any(row["grad_norm"] > 0 for row in grpo)
    assert signal == any(not torch.equal(tuned[name], final[name]) for name in base)
    check_loads_anywhere(folder / "checkpoints" / "grpo")
    card = (folder / "checkpoints" / "grpo" / "README.md").read_text(encoding="utf-8")
    assert "**A rehearsal.**" in card and "| synthetic, new | 1 | 1 |" in card


@pytest.mark.parametrize("backbone", COMPARED)
def test_what_the_papers_compare_with_is_evaluated(backbone, forked):
    _, output, summary = forked("stage=evaluate", f"backbone={backbone}", *QUICK)
    assert {row["stage"] for row in summary["results"]} == {"base"}
    assert {row["shots"] for row in summary["results"]} == {0, 1}
    assert "as published" not in output  # they are random, and the table does not say otherwise


def test_the_commands_as_they_are_written_down_one_after_the_other(iad, forked):
    """SC-GRPO of a twin needs no earlier run, and can have one; neither names other weights."""
    alone = iad("stage=grpo", "backbone=qwen25vl_3b", "weights=tiny", name="alone")
    assert "2 steps of 2 prompts x 4 completions" in alone.output
    sft = forked("stage=sft", "backbone=llava_ov_05b", *QUICK, "tuning=lora", name="sft")
    adapter = sft.folder / "checkpoints" / "sft-adapter"
    assert (adapter / "adapter_model.safetensors").is_file() and (adapter / "README.md").is_file()
    grpo = forked("stage=grpo", "backbone=llava_ov_05b", *QUICK, f"init={sft.folder}", name="grpo")
    began = [row for row in grpo.summary["results"] if row["stage"] == "sft"]
    assert began and "a rehearsal" in grpo.output
    judged = forked("stage=evaluate", "backbone=llava_ov_05b", *QUICK, f"init={grpo.folder}",
                    name="evaluate")  # fmt: skip
    for key in ("balanced_accuracy", "well_formed"):
        assert [row[key] for row in judged.summary["results"]] == [
            row[key] for row in grpo.summary["results"] if row["stage"] == "grpo"
        ]
