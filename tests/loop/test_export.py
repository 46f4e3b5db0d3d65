"""What leaves a run can be loaded elsewhere and says what it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import packing_cases as cases
import pytest
import torch
import yaml
from peft import PeftModel
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from iad_r1.backbones.backbone import Backbone
from iad_r1.backbones.twins import BACKBONES, build_twin
from iad_r1.command import compose
from iad_r1.learn import lora
from iad_r1.learn.context import Context
from iad_r1.store import cards
from iad_r1.store.run_folder import RunFolder
from iad_r1.types import Conversation, Dataset

RESULTS = [
    {"stage": "sft", "dataset": "MVTec-AD", "split": "test", "shots": 1, "n": 1725,
     "balanced_accuracy": 81.25, "location_accuracy": None, "type_accuracy": 40.0,
     "well_formed": 99.5,
     "ci95": {"balanced_accuracy": [79.04, 83.5], "type_accuracy": [None, None]}},
    {"stage": "grpo", "dataset": "MVTec-AD", "split": "test", "shots": 1, "n": 1725,
     "balanced_accuracy": 77.7, "location_accuracy": 1.0, "type_accuracy": 1.0, "well_formed": 1.0,
     "ci95": {}},
]  # fmt: skip


@pytest.fixture
def twin_run(tmp_path: Path) -> Callable[..., Context]:
    """`twin_run("llava16_8b", "tuning=lora")`: the twin of a backbone in a run without data."""

    def make(name: str, *overrides: str) -> Context:
        config = compose.compose([f"backbone={name}", "weights=tiny", "stage=sft", *overrides])
        folder = RunFolder.create(tmp_path, name)
        backbone = Backbone.load(build_twin(name, folder.checkpoint("base")))
        nothing = Dataset("none", "0", (), (), {}, {})
        return Context(config, folder, None, nothing, backbone, "base")

    return make


def logits(model: Any, processor: Any) -> torch.Tensor:
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Defects?"}]}
    text = processor.apply_chat_template([turn], add_generation_prompt=True, tokenize=False)
    inputs = processor(text=[text], images=[Image.new("RGB", (64, 48))], return_tensors="pt")
    with torch.no_grad():
        return model.eval()(**inputs).logits


@pytest.mark.parametrize("name", ["qwen25vl_3b", "llava15_7b", "llava16_8b", "llava_ov_05b"])
def test_merged_weights_and_base_with_adapter_say_the_same(twin_run, name):
    everywhere = "tuning.train=[vision,projector,language]"
    context = twin_run(name, "tuning=lora", "tuning.rank=4", everywhere)
    torch.manual_seed(0)
    with lora.adapter(context, "sft"), torch.no_grad():
        for key, parameter in context.model.named_parameters():
            if "lora_B" in key:
                parameter.normal_(std=0.05)
    context.backbone.save(context.folder.checkpoint("sft"))

    merged = AutoModelForImageTextToText.from_pretrained(context.folder.checkpoint("sft"))
    base = AutoModelForImageTextToText.from_pretrained(context.folder.checkpoint("base"))
    processor = AutoProcessor.from_pretrained(context.folder.checkpoint("sft"))
    before = logits(base, processor)
    adapted = PeftModel.from_pretrained(base, str(context.folder.checkpoint("sft-adapter")))
    torch.testing.assert_close(
        logits(adapted, processor), logits(merged, processor), rtol=1e-4, atol=1e-3
    )
    assert (logits(merged, processor) - before).abs().max() > 0.5  # of an adapter that matters


def test_an_adapter_of_published_weights_names_them_and_not_a_folder_of_this_machine(
    twin_run,
):
    context = twin_run("qwen25vl_3b")
    context.config = compose.compose(["backbone=qwen25vl_3b", "stage=sft", "tuning=lora"])
    with lora.adapter(context, "sft"):
        pass
    file = context.folder.checkpoint("sft-adapter") / "adapter_config.json"
    named = json.loads(file.read_text(encoding="utf-8"))["base_model_name_or_path"]
    assert named == "Qwen/Qwen2.5-VL-3B-Instruct"


# --- model cards ---------------------------------------------------------------------------------


def written(folder: RunFolder, config: Any, stage: str, name: str | None = None) -> str:
    folder.checkpoint(name or stage).mkdir(parents=True, exist_ok=True)
    folder.update_manifest(
        data={"name": "MVTec-AD", "fingerprint": "abc123", "counts": {"test": 1725}},
        code={"commit": "0123456789abcdef", "dirty": False},
        packages={"torch": "2.13.0", "numpy": "2"},
    )
    folder.update_summary(results=RESULTS)
    cards.write_cards(folder, config, stage)
    return (folder.checkpoint(name or stage) / "README.md").read_text(encoding="utf-8")


def front_matter(card: str) -> dict[str, Any]:
    _, front, _ = card.split("---\n", 2)
    return yaml.safe_load(front)


def test_a_card_says_data_recipe_metrics_and_licence(tmp_path):
    config = compose.compose(["backbone=qwen25vl_3b", "backbone.revision=v1", "stage=sft"])
    card = written(RunFolder.create(tmp_path, "run"), config, "sft")
    assert front_matter(card) == {
        "base_model": "Qwen/Qwen2.5-VL-3B-Instruct",
        "license": "other",
        "license_name": "qwen-research-license",
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["industrial-anomaly-detection", "iad_r1"],
    }
    for said in (
        "`Qwen/Qwen2.5-VL-3B-Instruct` at revision `v1`",
        "was trained by: PA-SFT.",
        "MVTec-AD, fingerprint `abc123`",
        "- test: 1,725",
        "| learning rate | 1e-05, cosine |",
        "| phase 1 | 2 epochs of 8 samples |",
        "| MVTec-AD, test | 1 | 1725 | 81.2 [79.0, 83.5] | - | 40.0 | 99.5 |",
        "The base: Qwen Research License.",
        "commit `0123456789ab`, torch 2.13.0.",
        "Largest picture in training: the base's own limit.",
    ):
        assert said in card, said
    assert "77.7" not in card  # another stage's
    assert "rehearsal" not in card.lower()


TRAINED = sorted(set(BACKBONES) - {"internvl25_4b", "llava15_13b", "llava16_34b", "qwen25vl_72b"})


@pytest.mark.parametrize("name", TRAINED)
def test_every_licence_is_one_the_hub_knows_or_has_a_name(tmp_path, name):
    config = compose.compose([f"backbone={name}", "stage=sft"])
    front = front_matter(written(RunFolder.create(tmp_path, name), config, "sft"))
    assert front["license"] in (*cards.HUB_LICENCES, "other")
    assert (front["license"] == "other") == ("license_name" in front)


def test_an_adapter_says_so_and_a_twin_says_that_it_is_worthless(tmp_path):
    typed = ["backbone=llava_ov_7b", "stage=pipeline", "weights=tiny", "tuning=lora"]
    config = compose.compose(typed)
    card = written(RunFolder.create(tmp_path, "run"), config, "grpo", "grpo-adapter")
    assert front_matter(card)["library_name"] == "peft" and "base_model" not in front_matter(card)
    assert "**A rehearsal.**" in card and "random weights (seed 0)" in card
    assert "the low-rank adapter of the last step alone" in card and "PeftModel" in card
    assert "LoRA of rank 64, alpha 128, on language" in card
    assert "PA-SFT, then SC-GRPO." in card and "| rewards | sc_grpo |" in card


def test_weights_that_this_run_did_not_train_get_no_card(tmp_path):
    folder = RunFolder.create(tmp_path, "run")
    folder.checkpoint("base").mkdir(parents=True)
    config = compose.compose(["backbone=qwen2vl_2b", "weights=tiny", "stage=evaluate"])
    for stage in ("base", "sft"):
        cards.write_cards(folder, config, stage)
    assert not list(folder.path.rglob("README.md"))


def test_no_card_names_a_folder_of_this_machine(tmp_path):
    (tmp_path / "weights").mkdir()
    typed = ["backbone=qwen2vl_2b", f"backbone.path={tmp_path / 'weights'}", "stage=sft"]
    card = written(RunFolder.create(tmp_path, "run"), compose.compose(typed), "sft")
    assert str(tmp_path) not in card and "the checkpoint `weights`" in card


def test_the_tiny_backbone_has_a_card_too(tmp_path):
    card = written(RunFolder.create(tmp_path, "run"), compose.compose([]), "grpo")
    assert front_matter(card)["license_name"] == "none"
    assert "pre-training of the vision tower, then PA-SFT, then SC-GRPO." in card


def test_prompts_of_the_twins_are_those_of_the_processor_on_disk():
    """The chat template travels with the weights."""
    folder = cases.twin_folder("llava_next")
    backbone = Backbone.load(folder)
    prompt = backbone.encode(Conversation("{image}Hello"), [Image.new("RGB", (60, 60))])
    assert prompt.text == "[INST] <image>\nHello [/INST]"
