"""What every family of models does behind `Backbone`, shown on the twins of all of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import packing_cases as cases
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText

from iad_r1.backbones import families, packing
from iad_r1.backbones.backbone import Backbone
from iad_r1.backbones.families import FAMILIES, PARTS, part_of
from iad_r1.backbones.twins import BACKBONES, TWINS, build_twin
from iad_r1.command.options import groups
from iad_r1.errors import ConfigError, DataError, MismatchError, WeightsError
from iad_r1.learn import lora, optim
from iad_r1.rollouts.colocate.weights import hub_weights, weights_on_disk
from iad_r1.rollouts.hf import HfSampler
from iad_r1.rollouts.prompting import Prompter, Room
from iad_r1.rollouts.sampling import Sampling
from iad_r1.types import Conversation, StopReason

ONE = Conversation("{image}Are there any defects?")
TWO = Conversation(
    "A normal sample: {image} The sample to judge: {image} Is it defective?",
    system="Please answer by yes or no",
)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory) -> Any:
    """`loaded(name)`: the twin of a backbone or a family, read once."""
    known: dict[str, Backbone] = {}

    def get(name: str) -> Backbone:
        if name not in known:
            known[name] = Backbone.load(build_twin(name, tmp_path_factory.mktemp(name)))
        return known[name]

    return get


@pytest.fixture
def fresh(tmp_path: Path) -> Any:
    """`fresh(name)`: the same for a test that changes it."""
    return lambda name: Backbone.load(build_twin(name, tmp_path / name))


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    stream = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 256, (height, width, 3), generator=stream, dtype=torch.uint8)
    return Image.fromarray(noise.numpy())


# --- names ---------------------------------------------------------------------------------------


def test_every_backbone_that_can_be_chosen_has_a_twin_of_a_family_that_is_known_everywhere():
    assert set(BACKBONES) == set(groups()["backbone"]) - {"tiny", "api"}
    assert set(FAMILIES) == set(TWINS)
    assert {twin.model_type for twin in BACKBONES.values()} == set(FAMILIES)


def test_the_architecture_is_read_from_the_checkpoint_and_not_from_the_spelling_of_its_path(
    tmp_path,
):
    misleading = tmp_path / "Qwen2.5-VL-3B-Instruct"
    build_twin("llava15_7b", misleading)
    assert Backbone.load(misleading).family is FAMILIES["llava"]
    config = json.loads((misleading / "config.json").read_text())
    (misleading / "config.json").write_text(json.dumps({**config, "model_type": "paligemma"}))
    with pytest.raises(ConfigError, match=r"model type 'paligemma' is not supported here"):
        Backbone.load(misleading)


def test_a_folder_without_a_checkpoint_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"holds no config\.json, so it is not"):
        Backbone.load(tmp_path)


# --- conversations -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BACKBONES)
def test_system_turn_words_and_all_pictures_reach_the_model(loaded, name):
    backbone = loaded(name)
    prompt = backbone.encode(TWO, [picture(60, 60), picture(90, 50, 1)], "sample-7")
    seen = backbone.tokenizer.decode(prompt.inputs["input_ids"][0])
    for words in ("Please answer by yes or no", "A normal sample: ", "The sample to judge: "):
        assert words in prompt.text and words in seen
    image = backbone.tokenizer.decode([backbone.model.config.image_token_id])
    assert prompt.text.count(image) == 2  # unexpanded, as vLLM wants it
    expanded = int((prompt.inputs["input_ids"] == backbone.model.config.image_token_id).sum())
    (features,) = packing.vision_features(backbone.model, [prompt.inputs])
    assert features is not None and features.shape[0] == expanded > 2
    assert prompt.name == "sample-7" and len(prompt.images) == 2


@pytest.mark.parametrize("name", BACKBONES)
def test_the_first_picture_stays_the_first(loaded, name):
    """Exchanging the pictures changes what the model says, with every template."""
    backbone = loaded(name)
    pictures = [picture(60, 60, 1), picture(60, 60, 2)]
    one, other = (
        backbone.model(**backbone.encode(TWO, order).inputs).logits[0, -1]
        for order in (pictures, pictures[::-1])
    )
    assert not torch.equal(one, other)


@pytest.mark.parametrize("name", BACKBONES)
def test_text_that_begins_with_a_mark_has_it_once(loaded, name):
    backbone = loaded(name)
    ids = backbone.encode(ONE, [picture(60, 60)]).inputs["input_ids"][0].tolist()
    begin = BACKBONES[name].dialect.begin
    if begin is not None:
        token = backbone.tokenizer.get_vocab()[begin]
        assert ids[0] == token and ids.count(token) == 1
        assert token not in backbone.encode_target("yes").tokens


@pytest.mark.parametrize("name", ["qwen25vl_3b", "internvl25_4b"])
def test_every_end_token_of_the_generation_config_ends_a_completion(fresh, name):
    backbone = fresh(name)
    first, second = backbone.ends
    assert backbone.end_of_turn == first == backbone.tokenizer.eos_token_id
    assert backbone.encode_target("yes").tokens[-1] == first
    head = backbone.model.lm_head
    for end in (first, second):
        bias = torch.zeros(head.weight.shape[0])
        bias[end] = 50.0
        hook = head.register_forward_hook(lambda _module, _given, out, bias=bias: out + bias)
        prompt = backbone.encode(ONE, [picture(60, 60)])
        ((drawn,),) = HfSampler(backbone, 4).generate([prompt], Sampling(1, 6, 0.0), [()])
        hook.remove()
        assert drawn.tokens == (end,) and drawn.stop is StopReason.STOP
        assert drawn.text == ""


@pytest.mark.parametrize("name", BACKBONES)
def test_placeholders_of_pictures_are_never_sampled(loaded, name):
    backbone = loaded(name)
    config = backbone.model.config
    assert config.image_token_id in backbone.placeholders
    if getattr(config, "video_token_id", None) is not None:
        assert config.video_token_id in backbone.placeholders


# --- size of pictures ----------------------------------------------------------------------------


def image_tokens(backbone: Backbone, image: Image.Image) -> int:
    prompt = backbone.encode(ONE, [backbone.fit(image)])
    with torch.no_grad():
        (features,) = packing.vision_features(backbone.model, [prompt.inputs])  # or it would raise
    assert features is not None
    return features.shape[0]


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "llava_next", "llava_onevision",
                                  "internvl"])  # fmt: skip
def test_fewer_pixels_are_fewer_tokens_and_the_model_counts_them_alike(fresh, name, tmp_path):
    backbone = fresh(name)
    large = picture(112, 112)
    before = image_tokens(backbone, large)
    backbone.limit_pixels(None)
    assert image_tokens(backbone, large) == before
    backbone.limit_pixels(56 * 112)
    smaller = image_tokens(backbone, large)
    assert smaller < before
    backbone.limit_pixels(1024)  # less than any picture has: the least the family can show
    assert 0 < image_tokens(backbone, large) <= smaller
    # a limit is a stage's: the saved weights have their own, and so has whoever takes it away
    least = image_tokens(backbone, large)
    backbone.save(tmp_path / "saved")
    assert image_tokens(backbone, large) == least
    again = Backbone.load(tmp_path / "saved")
    backbone.limit_pixels(None)
    assert image_tokens(again, large) == image_tokens(backbone, large) == before


def test_llava_15_makes_every_picture_the_same_square(fresh):
    backbone = fresh("llava")
    before = image_tokens(backbone, picture(112, 112))
    backbone.limit_pixels(56 * 28)
    assert image_tokens(backbone, picture(112, 112)) == before
    assert image_tokens(backbone, picture(30, 200)) == before


def test_a_limit_keeps_the_tilings_in_their_order(fresh):
    loaded = fresh("llava_next")
    loaded.processor.image_processor.image_grid_pinpoints = [[112, 112], [112, 56], [56, 112]]
    backbone = Backbone(loaded.model, loaded.processor)
    backbone.limit_pixels(56 * 112)
    assert backbone.processor.image_processor.image_grid_pinpoints == [[112, 56], [56, 112]]
    assert backbone.model.config.image_grid_pinpoints == [[112, 56], [56, 112]]


# --- parts that learn ----------------------------------------------------------------------------


@pytest.mark.parametrize("family", TWINS)
@pytest.mark.parametrize("part", PARTS)
def test_each_part_learns_alone_and_the_rest_stays(family, part):
    model = cases.model(family)
    optim.train_only(model, vision=True, parts=[part])
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learning == {name for name, _ in model.named_parameters() if part_of(name) == part}
    inputs = [dict(cases.prompt(family))]
    found = packing.completion_logprobs(model, inputs, cases.completions(family, [[3, 4]]))
    (found.logprob * cases.mixture(found.logprob.shape)).sum().backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None}
    assert moved and moved <= learning
    optim.train_only(model, vision=False, parts=[part, "language"])
    assert {part_of(n) for n, p in model.named_parameters() if p.requires_grad} == {"language"}


def test_the_parts_of_real_parameter_names():
    names = {
        "model.visual.blocks.0.attn.qkv.weight": "vision",
        "model.visual.patch_embed.proj.weight": "vision",
        "model.visual.merger.mlp.0.weight": "projector",
        "model.vision_tower.encoder.layers.3.mlp.fc1.weight": "vision",
        "model.multi_modal_projector.linear_1.weight": "projector",
        "model.image_newline": "projector",
        "base_model.model.model.visual.merger.mlp.2.lora_A.default.weight": "projector",
        "model.language_model.embed_tokens.weight": "language",
        "lm_head.weight": "language",
    }
    assert {name: part_of(name) for name in names} == names


@pytest.mark.parametrize("family", TWINS)
def test_adapters_sit_on_the_linear_layers_of_the_parts_asked_for(family):
    model = cases.model(family)
    for part in PARTS:
        layers = lora.linear_layers(model, [part])
        assert layers and {part_of(name) for name in layers} == {part}
    everywhere = lora.linear_layers(model, PARTS)
    assert "lm_head" not in everywhere
    linear = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
    assert len(everywhere) == len(linear) - 1


@pytest.mark.parametrize("family", TWINS)
def test_gradient_checkpointing_gives_the_same_gradient_and_is_switched_off_again(family):
    model = cases.model(family).train()
    prompts, groups = cases.two_groups(family, 2)

    def objective() -> torch.Tensor:
        found = packing.completion_logprobs(model, prompts, groups)
        return (found.logprob * cases.mixture(found.logprob.shape)).sum()

    plain = cases.gradient(model, objective)
    with optim.gradient_checkpointing(model, wanted=True):
        assert model.is_gradient_checkpointing
        again = cases.gradient(model, objective)
    assert not model.is_gradient_checkpointing
    assert cases.relative(again, plain) < 1e-6


# --- length --------------------------------------------------------------------------------------


def test_a_prompt_that_does_not_fit_is_refused_by_the_name_of_its_sample(make_context):
    context = make_context()
    sample = context.dataset.rl[0]
    free = Prompter(context.backbone, "iad_r1_test")
    length = free.encode(sample).inputs["input_ids"].shape[-1]
    fits = Room("grpo.max_length", length + 12, answer=12)
    Prompter(context.backbone, "iad_r1_test", fits).encode(sample)
    tight = Room("grpo.max_length", length + 11, answer=12)
    with pytest.raises(DataError) as caught:
        Prompter(context.backbone, "iad_r1_test", tight).encode(sample)
    said = str(caught.value)
    assert said.startswith(f"{sample.id}: its prompt has {length:,} tokens")
    assert f"set grpo.max_length={length + 12}" in said


@pytest.mark.parametrize(
    ("stage", "setting"), [("sft", "sft.max_length"), ("grpo", "grpo.max_length")]
)
def test_training_stops_at_a_sample_that_is_too_long(make_context, stage, setting):
    from iad_r1.loops.pipeline import TRAIN

    context = make_context(f"{setting}=20", "sft.phases.0.steps=1", "sft.phases.1.steps=1")
    with pytest.raises(DataError, match=rf"more than {setting}=20"):
        TRAIN[stage](context)


def test_pa_sft_counts_the_answer_too(make_context):
    from iad_r1.loops import sft

    context = make_context("sft.one_shot_share=0")
    sample = context.dataset.sft[0]
    prompt = Prompter(context.backbone, context.config.sft.prompt).encode(sample)
    length = prompt.inputs["input_ids"].shape[-1] + 3  # more than the prompt, less than both
    limited = make_context("sft.one_shot_share=0", f"sft.max_length={length}")
    with pytest.raises(DataError, match=r"sft\.max_length"):
        sft.train(limited)


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BACKBONES)
def test_a_model_built_from_its_configuration_is_saved_with_the_hubs_names_too(
    loaded, name, tmp_path
):
    """`weights=random` reads no checkpoint that could have told transformers what they were."""
    backbone = loaded(name)
    folder = build_twin(name, tmp_path / "twin")
    built = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    Backbone(built, backbone.processor).save(tmp_path / "saved")
    expected = load_file(folder / "model.safetensors")
    found = load_file(tmp_path / "saved" / "model.safetensors")
    assert {n: t.shape for n, t in found.items()} == {n: t.shape for n, t in expected.items()}
    again = Backbone.load(tmp_path / "saved")
    for (key, one), (other, two) in zip(
        built.state_dict().items(), again.model.state_dict().items(), strict=True
    ):
        assert key == other and torch.equal(one, two)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava_onevision", "internvl"])
def test_an_engine_reads_from_disk_what_it_would_be_sent_and_prompts_count_alike(loaded, name):
    backbone = loaded(name)
    folder = Path(backbone.model.name_or_path)
    bare = Backbone.load(folder, dtype=torch.bfloat16, weights=False)
    assert all(weight.is_meta for weight in bare.model.parameters())
    read, sent = dict(weights_on_disk(bare)), dict(hub_weights(backbone.model))
    assert read.keys() == sent.keys()
    assert all(torch.equal(tensor, sent[key].bfloat16()) for key, tensor in read.items())
    for asked, pictures in ((ONE, [picture(64, 64)]), (TWO, [picture(64, 64), picture(90, 150)])):
        shown = list(map(backbone.fit, pictures))
        made, counted = backbone.encode(asked, shown), bare.encode(asked, shown)
        assert counted.text == made.text and set(counted.inputs) == {"input_ids"}
        assert torch.equal(counted.inputs["input_ids"], made.inputs["input_ids"])


def test_weights_that_are_missing_on_disk_are_named(tmp_path):
    """transformers would draw them."""
    folder = build_twin("qwen2_vl", tmp_path / "twin")
    held = load_file(folder / "model.safetensors")
    del held["visual.patch_embed.proj.weight"]
    save_file(held, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(MismatchError, match=r"holds no visual\.patch_embed\.proj\.weight \(1 "):
        list(weights_on_disk(Backbone.load(folder, weights=False)))


@pytest.mark.parametrize("family", TWINS)
def test_weights_survive_the_way_to_disk_and_back_bit_for_bit(fresh, family, tmp_path):
    backbone = fresh(family)
    with torch.no_grad():
        for parameter in backbone.model.parameters():
            parameter.add_(torch.randn_like(parameter))
    backbone.save(tmp_path / "saved")
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path / "saved")
    for name, tensor in backbone.model.state_dict().items():
        assert torch.equal(tensor, plain.state_dict()[name]), name


def test_code_that_comes_with_weights_does_not_run(tmp_path):
    """A checkpoint that would leave a mark when its code ran."""
    folder = build_twin("qwen2_vl", tmp_path / "twin")
    mark = tmp_path / "it ran"
    (folder / "own.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "own.Mine"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="model type 'mine' is not supported here"):
        Backbone.load(folder)
    assert not mark.exists()
    shutil.rmtree(folder)


def test_the_sizings_are_all_in_use():
    assert {family.sizing for family in FAMILIES.values()} == set(
        families.Sizing.__args__  # a Literal's values
    )
