"""The configuration: complete, typed, cross-checked, and helpful when it is wrong."""

from __future__ import annotations

import json
import re
import types
import typing
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from iad_r1 import stages
from iad_r1.command import compose, options
from iad_r1.command.options import groups
from iad_r1.errors import ConfigError
from iad_r1.settings import config
from iad_r1.settings.base import CONF
from iad_r1.settings.config import Config
from iad_r1.settings.data import READERS
from iad_r1.settings.expert import TEACHERS, ExpertSettings
from iad_r1.settings.modules import find, names

OPTIONS = [(group, option) for group, options in groups().items() for option in options]
PAPER = ["mvtec", "visa", "mpdd", "dagm", "dtd", "sdd"]
COMPARED = ["internvl25_4b", "llava15_13b", "llava16_34b", "qwen25vl_72b"]  # evaluation only


SERVICE = ["teacher.model=m", "teacher.base_url=http://localhost:8000/v1"]


# batches in which each of sixteen ranks has something to do
WIDE = ["sft.phases.0.batch_size=16", "sft.phases.1.batch_size=16", "grpo.prompts_per_step=16"]


def needed(tmp_path: Path) -> dict[tuple[str, str], list[str]]:
    """What an option asks for besides its own name."""
    return {
        ("data", "photos"): [f"data.root={tmp_path}"],
        **{
            ("data", name): [f"data.root={tmp_path}", "evaluate.splits=[validation]"]
            for name in ("expert_ad", "anomaly_r1")
        },
        **{
            ("benchmark", name): [f"benchmark.{name}.root={tmp_path}"]
            for name in names(READERS)
            if name != "industrial_test"
        },
        ("benchmark", "industrial_test"): [
            f"benchmark.industrial_test.{key}={tmp_path}" for key in ("root", "lists")
        ],
        ("data", "mix"): ["data/parts=[synthetic]"],
        ("cluster", "two_nodes"): WIDE,
        ("benchmark", "paper"): [f"benchmark.{name}.root={tmp_path}" for name in PAPER],
        ("stage", "report"): [f"init={tmp_path}"],
        ("stage", "predict"): ["init=Qwen/Qwen2.5-VL-3B-Instruct"],
        ("stage", "app"): ["init=Qwen/Qwen2.5-VL-3B-Instruct"],
        ("stage", "serve"): ["init=Qwen/Qwen2.5-VL-3B-Instruct"],
        ("stage", "review"): [f"init={tmp_path}"],
        ("stage", "audit"): [f"stage.completions={tmp_path}"],
        ("stage", "score"): [f"predictions={tmp_path}/answers.csv"],
        ("stage", "export"): ["format=lmms_eval"],
        ("stage", "compare"): [f"runs=[{tmp_path}/a,{tmp_path}/b]"],
        ("method", "patchcore"): ["stage=evaluate"],
        ("rewards", "sc_grpo_box"): ["location_format=box"],
        ("backbone", "api"): ["stage=evaluate", "backbone.model=m"],
        **{("teacher", name): ["stage=expert_ad"] for name in names(TEACHERS)},
        ("teacher", "openai"): ["stage=expert_ad", *SERVICE],
        ("teacher", "self"): ["stage=expert_ad", "init=Qwen/Qwen2.5-VL-3B-Instruct"],
        ("recipe", "paper"): ["backbone=qwen25vl_3b"],
        ("recipe", "released"): ["backbone=qwen25vl_3b"],
        ("recipe", "anomaly_r1"): ["backbone=qwen25vl_3b"],
        ("weights", "tiny"): ["backbone=qwen25vl_3b"],
        ("weights", "random"): ["backbone=qwen25vl_3b"],
        **{("backbone", name): ["stage=evaluate"] for name in COMPARED},
    }


def refused(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        compose.compose(overrides)
    return str(caught.value)


# --- what can be chosen --------------------------------------------------------------------------


@pytest.mark.parametrize(  # of all others, with every stage: test_every_choice.py
    ("group", "option"), [pair for pair in OPTIONS if pair[0] in ("stage", "teacher", "benchmark")]
)
def test_every_option_composes_into_a_valid_configuration_that_knows_its_name(
    group, option, tmp_path
):
    made = compose.compose(
        [f"{group}={option}", *needed(tmp_path).get((group, option), [])], tmp_path
    )
    if group == "benchmark":
        assert list(made.benchmark) == {"none": [], "paper": PAPER}.get(option, [option])
    elif group == "teacher":  # of a stage
        assert isinstance(made.stage, ExpertSettings)
        assert made.stage.teacher.name == option
    else:
        assert made.stage.name == option


def test_a_group_that_only_one_stage_has_is_refused_with_the_others_by_its_name():
    assert refused("teacher=rules") == "teacher: only stage=expert_ad has one. Add stage=expert_ad."


def test_every_yaml_file_is_an_option_with_a_description():
    for group, option in OPTIONS:
        assert options.description(group, option), f"conf/{group}/{option}.yaml says nothing"
    assert {path.parent.name for path in CONF.glob("*/*.yaml")} == set(groups())
    assert set(options.default_options()) == set(groups())


def test_without_arguments_the_whole_pipeline_runs_on_the_tiny_model_and_drawn_data():
    made = compose.compose([])
    assert (made.stage.name, made.backbone.name, made.data.name) == (
        "pipeline", "tiny", "synthetic",
    )  # fmt: skip
    assert made.tasks()[0] == "pretrain"


@pytest.mark.parametrize("order", [1, -1])
def test_a_backbone_brings_its_recipe_and_the_command_line_wins(order):
    assert compose.compose(["backbone=qwen25vl_3b"]).sft.phases[0].epochs == 2
    explicit = compose.compose(["backbone=qwen25vl_3b", "recipe=released"][::order])
    assert explicit.sft.phases[0].epochs == 1
    assert explicit.rewards.name == "sc_grpo_released"
    own = ["backbone=qwen25vl_3b", "recipe=released", "rewards=sc_grpo", "sft.phases.0.epochs=3"]
    overridden = compose.compose(own[::order])
    assert (overridden.rewards.name, overridden.sft.phases[0].epochs) == ("sc_grpo", 3)


@pytest.mark.parametrize("name", COMPARED)
@pytest.mark.parametrize("stage", ["sft", "grpo", "pipeline"])
def test_what_the_papers_only_compare_with_is_not_trained(name, stage):
    assert refused(f"backbone={name}", f"stage={stage}", "weights=tiny") == (
        f"stage={stage} would train backbone={name}, which is here for evaluation only: the papers "
        "compare with it and give no recipe. Use stage=evaluate."
    )


@pytest.mark.parametrize("order", [1, -1])
def test_a_rehearsal_is_one_word_more_wherever_it_stands(order):
    typed = ["stage=grpo", "backbone=llava16_8b", "weights=tiny", "recipe=released"]
    made = compose.compose(typed[::order])
    assert made.weights.name == "tiny" and made.grpo.from_base
    assert (made.grpo.steps, made.sft.phases[0].steps, made.evaluate.limit) == (2, 2, 4)
    assert made.rollout.max_tokens <= 32 and made.engine.precision == "float32"
    assert made.data.model_dump()["sizes"]["test"] == 4
    # what the user sets still wins, and what makes the recipe stays
    own = compose.compose([*typed[::order], "grpo.steps=7", "evaluate.limit=1"])
    assert (own.grpo.steps, own.evaluate.limit, own.rewards.name) == (7, 1, "sc_grpo_released")


def test_a_rehearsal_takes_other_data_too(tmp_path):
    made = compose.compose(["backbone=qwen2vl_2b", "weights=tiny", "data=photos", "data.root=."])
    assert made.data.name == "photos" and made.weights.name == "tiny"


def test_true_size_random_weights_leave_the_recipe_as_it_is():
    made = compose.compose(["stage=grpo", "backbone=qwen25vl_3b", "weights=random"])
    full = compose.compose(["stage=grpo", "backbone=qwen25vl_3b"])
    changed = {"from_base": True}
    assert made.grpo == full.grpo.model_copy(update=changed)
    assert (made.sft, made.rollout, made.backbone) == (full.sft, full.rollout, full.backbone)


@pytest.mark.parametrize("kind", ["tiny", "random"])
def test_the_built_backbone_has_no_other_weights(kind):
    assert f"weights={kind} with backbone=tiny: it is built here" in refused(f"weights={kind}")


def test_any_value_can_be_set_from_the_command_line():
    made = compose.compose(
        ["stage=sft", "sft.learning_rate=2e-5", "grpo.learning_rate=1e-6", "sft.phases.1.steps=7"]
    )
    assert (made.sft.learning_rate, made.grpo.learning_rate) == (2e-5, 1e-6)
    assert made.sft.phases[1].steps == 7


def test_paths_are_relative_to_where_the_command_was_typed_and_hub_ids_are_left_alone(tmp_path):
    (tmp_path / "weights").mkdir()
    given = ["backbone=qwen25vl_3b", "data=photos", "data.root=photos", "init=outputs/a/b"]
    made = compose.compose(given, tmp_path)
    assert made.data.model_dump()["root"] == str(tmp_path / "photos")
    assert made.init == str(tmp_path / "outputs/a/b")
    assert made.backbone.source == "hub"
    assert made.backbone.path == "Qwen/Qwen2.5-VL-3B-Instruct"
    local = compose.compose(["backbone=qwen25vl_3b", "backbone.path=weights"], tmp_path)
    assert local.backbone.source == "hub"
    assert local.backbone.path == str(tmp_path / "weights")


def test_a_vocabulary_of_ones_own_is_found_where_the_command_was_typed(tmp_path, repository):
    own = repository / "iad_r1" / "rewards" / "vocabularies" / "default.yaml"
    (tmp_path / "types.yaml").write_text(own.read_text(encoding="utf-8"), encoding="utf-8")
    made = compose.compose(["rewards.vocabulary=types.yaml"], tmp_path)
    assert made.rewards.vocabulary == str(tmp_path / "types.yaml")
    assert compose.compose([], tmp_path).rewards.vocabulary == "default"
    assert "rewards.vocabulary='other.yaml'" in refused("rewards.vocabulary=other.yaml")


def test_parity_compares_vllm_unless_another_engine_is_typed():
    def engine(*overrides: str) -> str:
        return compose.compose(["stage=parity", "backbone=qwen25vl_3b", *overrides]).rollout.name

    assert engine() == engine("weights=tiny") == "vllm"
    assert engine("rollout=vllm_server") == "vllm_server"
    assert "samples from the trainer's own weights" in refused(
        "stage=parity", "backbone=qwen25vl_3b", "rollout=hf"
    )
    assert compose.compose([]).rollout.name == "hf"  # of any other stage


def test_pretraining_is_only_for_the_built_backbone_without_an_earlier_run():
    assert "pretrain" in compose.compose(["stage=sft"]).tasks()
    assert "pretrain" not in compose.compose(["stage=sft", "init=outputs/a/b"]).tasks()
    assert "pretrain" not in compose.compose(["stage=sft", "backbone=llava15_7b"]).tasks()


# --- types ---------------------------------------------------------------------------------------


def models(annotation: object) -> set[type[BaseModel]]:
    """Every pydantic model an annotation mentions, and those that these mention."""
    found: set[type[BaseModel]] = set()
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        found.add(annotation)
        for field in annotation.model_fields.values():
            found |= models(field.annotation)
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation):
        for part in typing.get_args(annotation):
            found |= models(part)
    return found


MODULES = [find(p, name) for p in (READERS, stages.__name__, TEACHERS) for name in names(p)]
SECTIONS = models(Config).union(*(models(module.Settings) for module in MODULES))


def test_no_setting_has_a_default_outside_the_yaml_files():
    optional = {
        f"{model.__name__}.{name}"
        for model in SECTIONS
        for name, field in model.model_fields.items()
        if not field.is_required()
    }
    # "absent: the function takes none" is not a value of a setting
    assert optional <= {"ComponentConfig.settings"}


def test_every_setting_is_read_by_something(repository):
    code = [file.read_text(encoding="utf-8") for file in (repository / "iad_r1").rglob("*.py")]
    yaml_text = [file.read_text(encoding="utf-8") for file in CONF.rglob("*.yaml")]
    for model in SECTIONS:
        for name in model.model_fields:
            read = any(re.search(rf"\.{name}\b", text) for text in code)
            taken = any(re.search(rf"\$\{{[\w.]*\.{name}\}}", text) for text in yaml_text)
            assert read or taken, f"nothing reads {model.__name__}.{name}"


def test_every_section_refuses_what_it_does_not_know():
    for model in SECTIONS:
        assert model.model_config.get("extra") == "forbid", model.__name__


def test_a_configuration_survives_its_json_file(tmp_path):
    made = compose.compose(["backbone=qwen25vl_7b", "tuning=lora"])
    file = tmp_path / "config.json"
    file.write_text(made.model_dump_json(), encoding="utf-8")
    assert config.read(file) == made


def test_a_missing_setting_is_named():
    values = compose.compose([]).model_dump(mode="json")
    del values["grpo"]["kl_coef"]
    with pytest.raises(ConfigError, match=r"^grpo\.kl_coef: this setting is missing\.$"):
        config.load(json.dumps(values))


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["grpo.group_size=1"], ["grpo.group_size=1", "greater than or equal to 2"]),
        (["grpo.group_size=four"], ['grpo.group_size="four"', "integer"]),
        (["grpo.group_size=4.5"], ["grpo.group_size=4.5", "integer"]),
        (["grpo.clip_low=1.5"], ["grpo.clip_low=1.5", "less than 1"]),
        (["grpo.kl_kind=k9"], ['grpo.kl_kind="k9"', "'k3'"]),
        (["sft.phases.1.batch_size=0"], ["sft.phases.1.batch_size=0", "greater than 0"]),
        (["sft.phases=[]"], ["sft.phases=[]", "at least 1 item"]),
        (["seed=-1"], ["seed=-1"]),
        (["name=a/b"], ['name="a/b"']),
        (["data=photos"], ["data.root has no value", "meta.csv"]),
        (["grpo.steps=null"], ["grpo.steps and grpo.epochs are both null", "grpo.epochs=1"]),
        (["sft.phases.0.steps=null"], ["sft.phases.0.steps and sft.phases.0.epochs are both"]),
        (["rollout.top_p=0.9"], ["rollout.top_p=0.9", "rollout.top_p=1 rollout.top_k=0"]),
        (["rollout.top_k=50"], ["rollout.top_k=50", "rollout.top_p=1 rollout.top_k=0"]),
        (["rollout.temperature=0"], ["rollout.temperature=0", "greater than 0"]),
        (["stage=report"], ["stage=report needs the run to report on", "init=outputs/"]),
        (["pretrain=null"], ["pretrain=null", "recipe=tiny"]),
        (["stage=pretrain", "backbone=qwen25vl_3b"], ["stage=pretrain has nothing to do"]),
        (["stage=pretrain", "init=earlier"], ["stage=pretrain has nothing to do", "stage=sft"]),
        (["sft.phases.1.batch_size=1"], ["sft.phases.1.batch_size=1 with 2 ranks"]),
        (["grpo.prompts_per_step=1"], ["grpo.prompts_per_step=1 with 2 ranks"]),
        (["pretrain.batch_size=2", "engine.ranks=3"], ["pretrain.batch_size=3 or more"]),
        (["engine.hosts=32"], ["prompts_per_step=32 with 64 ranks", "prompts_per_step=64 or"]),
        (["sft.phases.1.augment=true"], ["its changes would not be seen", "phases.1.augment=fal"]),
        (["engine.offload=cpu"], ["engine.offload", "no such setting"]),
        (["tuning.name=foo"], ["tuning.name=foo", "'full', 'lora'"]),
        (["recipe=paper"], ["backbone.sft_learning_rate", "another recipe"]),
        (["evaluate.prompt=sc_grpo", "evaluate.shots=[0,2]"], ["shots=2", "0 to 1"]),
        (["+rewards.components.odd={function: odd, weight: 1.0, gate: null}"], ["odd"]),
        (["evaluate.shots=[1,0,1]"], ["names one twice", "Use evaluate.shots=[1,0]"]),
        (["seed=1,2"], ["Ambiguous", "Add -m"]),
        (["seed=[1"], ["seed=[1: cannot be read"]),
    ],
)
def test_a_setting_that_cannot_be_is_refused_and_named(overrides, said):
    message = refused(*overrides)
    for text in said:
        assert text in message, message
    assert "Traceback" not in message and "pydantic" not in message.lower()


@pytest.mark.parametrize(
    "name",
    [
        "数据",
        "Gerät",
        "a b (c)",
        "it's",
        "a=b",
        "a#b & c",
        "100%",
        "x\\'y",
        "tail\\",
        "~ here",
    ],
)
def test_a_folder_of_any_name_can_be_typed(name, tmp_path):
    composed = compose.compose(
        ["stage=sft", "backbone=qwen25vl_3b", "data=photos", f"data.root={name}"], tmp_path
    )
    assert composed.data.model_dump()["root"] == str(tmp_path / name)


def test_a_tilde_is_the_home_of_the_user():
    chosen = ["stage=sft", "backbone=qwen25vl_3b", "data=photos", "data.root=~/photos"]
    assert compose.compose(chosen).data.model_dump()["root"] == str(Path.home() / "photos")


@pytest.mark.parametrize(
    ("override", "suggestion"),
    [
        ("grpo.learnig_rate=1", "grpo.learning_rate"),
        ("+grpo.learnig_rate=1", "grpo.learning_rate"),
        ("learning_rate=1", "sft.learning_rate"),
        ("group_size=4", "grpo.group_size"),
        ("backbon=tiny", "backbone"),
        ("backbone=qwen25vl", "qwen25vl_3b"),
        ("stage=gpro", "grpo"),
        ("grpo.prompt=sc_gpro", "sc_grpo"),
        ("data.zoom=2", "data has: name, image_size"),
    ],
)
def test_a_misspelling_is_answered_with_the_nearest_valid_name(override, suggestion):
    message = refused(override)
    assert override.lstrip("+").partition("=")[0] in message
    assert suggestion in message


def test_an_unknown_option_is_answered_with_all_options():
    message = refused("tuning=qlora")
    assert "tuning is one of: full, lora" in message


def test_every_mistake_is_reported_at_once():
    message = refused("grpo.group_size=1", "sft.weight_decay=-1", "+foo=1")
    assert len(message.splitlines()) == 3
    assert all(key in message for key in ("grpo.group_size", "sft.weight_decay", "foo"))


@pytest.mark.parametrize(
    "overrides",
    [
        ["engine.device=cuda", "engine.ranks=1", "sft.phases.0.batch_size=1"],
        ["stage=evaluate", "init=earlier", "grpo.prompts_per_step=1"],
    ],
)
def test_what_can_go_together_is_let_through(overrides):
    assert compose.compose(overrides).seed == 0


def test_contradictions_are_reported_together():
    message = refused("grpo.steps=null", "rollout.top_k=5")
    assert len(message.splitlines()) == 2


def test_yaml_files_hold_no_tabs_and_no_machine_paths():
    for file in CONF.rglob("*.yaml"):
        text = file.read_text(encoding="utf-8")
        assert "\t" not in text and "/home/" not in text
        assert yaml.safe_load(text) is not None


def test_views_of_photographs_are_a_recipe_that_is_asked_for():
    def made(*arguments: str) -> typing.Any:
        return compose.compose([*arguments])

    photographs = ["data=photos", "data.root=."]
    viewed = made(*photographs, "recipe=tiny_views", "sft.phases.0.steps=7")
    assert viewed.data.views is not None and viewed.pretrain.photographs and viewed.pretrain.centre
    assert viewed.backbone.max_pixels == 16384 and viewed.sft.phases[0].steps == 7
    for plain in (made(), made(*photographs)):
        assert not plain.pretrain.photographs and not plain.pretrain.centre
        assert plain.backbone.max_pixels == 9216
        assert [phase.verdict_weight for phase in plain.sft.phases] == [1.0, 1.0]
    assert made(*photographs).data.views is None
