"""The published backbones, built at their true size without a download."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from iad_r1.backbones import published
from iad_r1.backbones.published import build
from iad_r1.errors import ConfigError

NAMES = published.names()


@pytest.fixture(scope="module")
def meta() -> dict[str, torch.nn.Module]:
    return {name: build.build_random(name, device="meta") for name in NAMES}


def count(model: torch.nn.Module, *parts: str) -> int:
    return sum(p.numel() for n, p in model.named_parameters() if not parts or n.startswith(parts))


def test_the_paper_s_seven_and_the_four_others_are_described() -> None:
    seven = {"qwen2vl_2b", "qwen25vl_3b", "qwen25vl_7b", "llava15_7b", "llava16_8b",
             "llava_ov_05b", "llava_ov_7b"}  # fmt: skip
    assert set(NAMES) == seven | {"internvl25_4b", "llava15_13b", "llava16_34b", "qwen25vl_72b"}


@pytest.mark.parametrize("name", NAMES)
def test_the_parameter_count_is_the_published_one(name: str, meta: dict) -> None:
    """Exactly where a count from the checkpoint is known, else to the digits printed."""
    known = published.read(name)["published"]["parameters"]
    found = count(meta[name])
    if isinstance(known, int):
        assert found == known
    else:
        digits = len(known.partition(".")[2])
        assert f"{found / 1e9:.{digits}f}" == known


@pytest.mark.parametrize("name", NAMES)
def test_the_language_model_is_the_one_it_was_built_from(name: str, meta: dict) -> None:
    """Its published count, with this backbone's own vocabulary in place of the original one."""
    base = published.read(name)["published"]["language_model"]
    text = meta[name].config.get_text_config()
    tied = meta[name].lm_head.weight is meta[name].get_input_embeddings().weight
    old = base["vocab_size"] * (1 if base["tied"] else 2)
    new = text.vocab_size * (1 if tied else 2)
    expected = base["parameters"] + (new - old) * base["hidden_size"]
    assert count(meta[name], "model.language_model.", "lm_head.") == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("qwen25vl_7b", 676_550_144),  # counted from the checkpoint, in a public repository
        ("llava15_7b", 303_507_456 + 20_979_712),  # CLIP ViT-L/14-336 and the projector, by hand
        ("internvl25_4b", 304_012_288 + 12_595_200),  # InternViT-300M, whose page says 304 M
    ],
)
def test_what_is_not_the_language_model_is_the_vision_tower(name, expected, meta) -> None:
    rest = count(meta[name]) - count(meta[name], "model.language_model.", "lm_head.")
    assert rest == expected


def test_the_processors_count_image_tokens_as_the_real_ones_do() -> None:
    """800 x 600 pixels, by the arithmetic of each family.

    Qwen: both sides to multiples of 28, one token per 28 x 28. LLaVA-1.5: 24 x 24 patches of 336.
    LLaVA-NeXT: 672 x 672 (2 x 2 tiles: 48 x 48 patches, cut to the picture's 36 x 48), a newline
    per row, and the 576 of the overview. OneVision: the same on 27 x 27 patches per tile of 384.
    InternVL: 4 x 3 tiles and the overview, 256 each.
    """
    expected = {
        "qwen2vl_2b": 29 * 21,
        "qwen25vl_3b": 29 * 21,
        "llava15_7b": 576,
        "llava16_8b": 576 + 36 * (48 + 1),
        "llava_ov_05b": 729 + 54 * (73 + 1),
        "internvl25_4b": 256 * (4 * 3 + 1),
    }
    assert {name: image_tokens(name, (800, 600)) for name in expected} == expected


def image_tokens(name: str, size: tuple[int, int]) -> int:
    processor: Any = build.build_processor(name)
    content = [{"type": "image"}, {"type": "text", "text": "Is there a defect?"}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    ids = processor(text=[text], images=[Image.new("RGB", size)], return_tensors="pt")["input_ids"]
    config = build.model_config(name)
    assert int(ids.max()) < config.get_text_config().vocab_size
    return int((ids == config.image_token_id).sum())


@pytest.mark.parametrize("name", ["qwen25vl_3b", "llava16_34b", "llava_ov_05b", "internvl25_4b"])
def test_special_tokens_have_their_true_ids_in_a_vocabulary_of_the_true_size(name: str) -> None:
    tokenizer = build.build_tokenizer(name)
    special = published.read(name)["tokenizer"]["special"]
    assert {word: tokenizer.convert_tokens_to_ids(word) for word in special} == special
    assert len(tokenizer) == build.model_config(name).get_text_config().vocab_size


def test_the_small_tokenizer_writes_any_text_and_reads_any_id() -> None:
    tokenizer = build.build_tokenizer("qwen25vl_3b")
    text = "Kratzer oben links, 3 µm: <answer>Yes</answer> 瑕疵"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.decode([100_000]) == "<|unused_100000|>"


@pytest.fixture
def shrunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The descriptions of two backbones with two narrow layers, so that they can be filled."""
    for name in ("qwen25vl_3b", "llava_ov_05b"):
        about = json.loads((published.FOLDER / f"{name}.json").read_text())
        config = about["config"]
        text = config.get("text_config", config)
        text |= {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
        text |= {"num_attention_heads": 4, "num_key_value_heads": 2}
        if "rope_scaling" in text:
            text["rope_scaling"]["mrope_section"] = [4, 6, 6]
            config["vision_config"] |= {"depth": 2, "out_hidden_size": 128}
        else:
            config["vision_config"]["num_hidden_layers"] = 2
        config["vision_config"] |= {"hidden_size": 128, "intermediate_size": 256}
        (tmp_path / f"{name}.json").write_text(json.dumps(about))
    monkeypatch.setattr(published, "FOLDER", tmp_path)
    return published.names()


def test_random_weights_are_drawn_once_and_the_same_for_a_seed(shrunk: list[str]) -> None:
    for name in shrunk:
        model, twin, other = (build.build_random(name, seed=seed) for seed in (0, 0, 1))
        assert model.dtype == torch.bfloat16
        for key, value in model.state_dict().items():
            assert torch.isfinite(value).all(), key
            assert torch.equal(value, twin.state_dict()[key]), key
        head, drawn = model.state_dict()["lm_head.weight"], other.state_dict()["lm_head.weight"]
        assert 0.015 < head.float().std() < 0.025 and not torch.equal(head, drawn)


@pytest.mark.slow
def test_a_random_backbone_answers_a_picture_and_survives_saving(
    shrunk: list[str], tmp_path: Path
) -> None:
    from iad_r1.backbones.backbone import Backbone

    for name in shrunk:
        for part in (build.build_random(name, torch.float32), build.build_processor(name)):
            part.save_pretrained(tmp_path / "saved" / name)
        backbone = Backbone.load(tmp_path / "saved" / name)
        inputs = backbone.processor(
            text=[image_prompt(backbone)], images=[Image.new("RGB", (60, 60))], return_tensors="pt"
        )
        with torch.no_grad():
            logits = backbone.model(**inputs).logits
        assert logits.shape[-1] == build.model_config(name).get_text_config().vocab_size
        assert torch.isfinite(logits).all() and logits.std() > 0


def image_prompt(backbone: Any) -> str:
    return backbone.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}]}],
        add_generation_prompt=True,
        tokenize=False,
    )


def test_an_unknown_backbone_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ConfigError, match=r"backbone=qwen9.*qwen25vl_3b"):
        build.build_random("qwen9")


def test_reading_the_descriptions_loads_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys; from iad_r1.backbones import published; published.read('qwen25vl_3b'); "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
