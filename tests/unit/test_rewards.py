"""Reward sets: what they are made of, what they pay, and what they refuse."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from iad_r1 import rewards
from iad_r1.errors import ConfigError, DataError, TrainingError
from iad_r1.grid import Grid
from iad_r1.rewards import files
from iad_r1.rewards.case import read_solution
from iad_r1.rewards.components.choice import letters
from iad_r1.settings.base import conf_of
from iad_r1.settings.grid import GridConfig
from iad_r1.settings.rewards import RewardsConfig
from iad_r1.types import Solution

DEFECT = (
    "<think>A line crosses.</think><location>top left</location>"
    "<type>scratch</type><answer>Yes</answer>"
)
CLEAN = "<think>Even surface.</think><answer>No</answer>"
YES = "<location>top left</location><type>scratch</type><answer>Yes</answer>"
NO = "<answer>No</answer>"


def parts(completion: str, solution: str | Solution, name: str = "sc_grpo", grid: str = "3x3"):
    return dict(rewards.load(name, grid).score(completion, solution).parts)


# --- sets -------------------------------------------------------------------------------------


def test_the_sets_that_ship() -> None:
    assert set(rewards.names()) >= {
        *("sc_grpo", "sc_grpo_released", "answer_only", "roam", "choice", "roam_released"),
        *("answer", "answer+consistency", "answer+consistency+location"),
        *("answer+consistency+type", "answer+location+type", "answer+consistency+location+type"),
    }


@pytest.mark.parametrize("name", rewards.names())
def test_every_set_that_ships_loads_and_names_itself_after_its_file(name: str) -> None:
    chosen = rewards.load(name)
    assert chosen.name == name
    assert repr(chosen) == f"RewardSet({name}: {', '.join(chosen.names)} on 3x3)"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("answer", {"answer"}),
        ("answer_only", {"answer"}),
        ("answer+consistency", {"answer", "consistency"}),
        ("answer+consistency+location", {"answer", "consistency", "location"}),
        ("answer+consistency+type", {"answer", "consistency", "type"}),
        ("answer+location+type", {"answer", "location", "type"}),
        ("answer+consistency+location+type", {"answer", "consistency", "location", "type"}),
        ("sc_grpo", {"answer", "consistency", "location", "type"}),
    ],
)
def test_the_combinations_of_table_5_hold_what_their_names_say(name: str, expected: set) -> None:
    chosen = rewards.load(name)
    assert set(chosen.names) == expected
    assert {component.weight for component in chosen.components} == {1.0}
    for component in chosen.components:
        assert component.gate == ("answer" if component.name in ("location", "type") else None)
    assert chosen.score(DEFECT, YES).total == len(expected)


def test_an_unknown_set_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"rewards='sc_grp' is unknown.*sc_grpo_released"):
        rewards.load("sc_grp")


def test_a_set_can_be_given_as_a_name_a_mapping_or_a_checked_config() -> None:
    file = files.FOLDER / "sc_grpo.yaml"
    mapping = yaml.safe_load(file.read_text(encoding="utf-8"))
    for given_set in ("sc_grpo", mapping, RewardsConfig.model_validate(mapping)):
        assert rewards.load(given_set).score(DEFECT, YES).total == 4.0


def test_the_sets_are_the_files_hydra_composes_from(repository: Path) -> None:
    assert repository / "conf" / "rewards" == files.FOLDER


def test_hydra_composes_every_set_to_what_load_reads(repository: Path) -> None:
    hydra = pytest.importorskip("hydra")
    from omegaconf import OmegaConf

    with hydra.initialize_config_dir(str(repository / "conf"), version_base="1.3"):
        for name in rewards.names():
            composed = hydra.compose(overrides=[f"+rewards={name}"])
            plain = OmegaConf.to_container(composed.rewards, resolve=True)
            assert files.check(RewardsConfig, plain, name) == files.read(name)


def test_an_installed_package_finds_its_yaml_files_inside_itself(tmp_path: Path) -> None:
    package = tmp_path / "iad_r1"
    (tmp_path / "conf").mkdir()
    assert conf_of(package) == tmp_path / "conf"
    (package / "conf").mkdir(parents=True)
    assert conf_of(package) == package / "conf"


def test_a_mistake_in_a_set_that_is_loaded_by_name_is_found_in_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.yaml").write_text("name: mine\nvocabulary: null\n", "utf-8")
    monkeypatch.setattr(files, "FOLDER", tmp_path)
    with pytest.raises(ConfigError, match=r"^conf/rewards/mine\.yaml: components: Field required"):
        rewards.load("mine")


# --- what is wrong with a set -----------------------------------------------------------------


def mapping(**change) -> dict:
    component = {"function": "answer", "weight": 1.0, "gate": None}
    return {
        "name": "mine",
        "vocabulary": None,
        "components": {"answer": component | change},
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": "1"}, r"components\.answer\.weight"),
        ({"weight": math.inf}, r"components\.answer\.weight"),
        ({"gates": None}, r"components\.answer\.gates"),
        ({"function": "../answer"}, r"components\.answer\.function"),
        ({"gate": "location"}, r"waits for 'location'.*above it are none"),
        ({"gate": "answer"}, r"waits for 'answer'"),
    ],
)
def test_a_wrong_setting_of_a_component_is_named(change: dict, message: str) -> None:
    assert rewards.load(mapping()).names == ("answer",)
    with pytest.raises(ConfigError, match=message):
        rewards.load(mapping(**change))


@pytest.mark.parametrize("missing", ["name", "vocabulary", "components"])
def test_a_missing_setting_is_named(missing: str) -> None:
    values = mapping()
    del values[missing]
    with pytest.raises(ConfigError, match=f"rewards: {missing}: Field required"):
        rewards.load(values)


def test_a_set_without_components_or_with_more_than_a_set_is_refused() -> None:
    with pytest.raises(ConfigError, match="components"):
        rewards.load(mapping() | {"components": {}})
    with pytest.raises(ConfigError, match="extra"):
        rewards.load(mapping() | {"extra": 1})
    with pytest.raises(ConfigError, match=r"^conf/rewards/x\.yaml: the whole file: Input"):
        files.check(RewardsConfig, None, "conf/rewards/x.yaml")


def test_every_mistake_is_on_a_line_of_its_own() -> None:
    with pytest.raises(ConfigError) as caught:
        rewards.load({"name": 1, "components": {}})
    lines = str(caught.value).split("\n")
    assert [line.split(": ")[1] for line in lines] == ["name", "vocabulary", "components"]
    assert all(line.startswith("rewards: ") and line.endswith(".") for line in lines)


@pytest.mark.parametrize(
    "function", ["no_such_file", "answer:no_such_function", "no.such.module", "released"]
)
def test_a_component_that_cannot_be_found_says_where_it_was_looked_for(function: str) -> None:
    with pytest.raises(ConfigError, match=r"rewards\.components\.answer\.function.*score\(case\)"):
        rewards.load(mapping(function=function))


def test_a_gate_must_stand_above_what_it_gates() -> None:
    line = {"function": "answer", "weight": 1.0}
    right = {"a": {**line, "gate": None}, "b": {**line, "gate": "a"}}
    assert rewards.load(mapping() | {"components": right}).names == ("a", "b")
    wrong = {"b": {**line, "gate": "a"}, "a": {**line, "gate": None}, "c": {**line, "gate": None}}
    with pytest.raises(ConfigError, match="component 'b' waits for 'a', which must stand above it"):
        rewards.load(mapping() | {"components": wrong})


# --- scores -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("completion", "solution", "expected"),
    [
        (DEFECT, YES, {"consistency": 1, "answer": 1, "location": 1, "type": 1}),
        (CLEAN, NO, {"consistency": 1, "answer": 1, "location": 0, "type": 0}),
        (CLEAN, YES, {"consistency": 0, "answer": 0, "location": 0, "type": 0}),
        (DEFECT, NO, {"consistency": 0, "answer": 0, "location": 0, "type": 0}),
        (
            DEFECT.replace("top left", "center"),
            YES,
            {"consistency": 1, "answer": 1, "location": 0, "type": 1},
        ),
        (
            DEFECT.replace("scratch", "score mark"),
            YES,
            {"consistency": 1, "answer": 1, "location": 1, "type": 0.85},
        ),
        ("x" + DEFECT, YES, {"consistency": 0, "answer": 1, "location": 1, "type": 1}),
        (
            DEFECT.replace("<type>scratch</type>", ""),
            YES,
            {"consistency": 0, "answer": 1, "location": 1, "type": 0},
        ),
        (
            DEFECT.replace("<location>top left</location>", ""),
            YES,
            {"consistency": 0, "answer": 1, "location": 0, "type": 1},
        ),
        ("", YES, {"consistency": 0, "answer": 0, "location": 0, "type": 0}),
        ("", NO, {"consistency": 0, "answer": 0, "location": 0, "type": 0}),
    ],
)
def test_the_four_rewards_of_the_paper(completion: str, solution: str, expected: dict) -> None:
    score = rewards.load("sc_grpo").score(completion, solution)
    assert score.parts == expected
    assert score.total == pytest.approx(sum(expected.values()))


@pytest.mark.parametrize("solution", ["yes", "Yes", "YES.", YES, YES.replace("Yes", " yes ")])
def test_a_solution_is_tags_or_a_bare_label(solution: str) -> None:
    assert read_solution(solution).answer == "Yes"


def test_a_solution_object_scores_as_its_tags_do() -> None:
    solution = Solution("Yes", location="top left", type="scratch")
    for name in ("sc_grpo", "sc_grpo_released"):
        chosen = rewards.load(name)
        assert chosen.score(DEFECT, solution) == chosen.score(DEFECT, solution.as_tags())
    assert rewards.load("sc_grpo").score(CLEAN, Solution("No")).total == 2.0


@pytest.mark.parametrize(
    "solution",
    ["", "maybe", "<answer></answer>", "<answer>perhaps</answer>", NO + NO, "B"],
)
def test_a_solution_without_an_answer_stops_the_run(solution: str) -> None:
    for name in ("sc_grpo", "answer", "answer+consistency"):
        with pytest.raises(DataError, match="has no answer"):
            rewards.load(name).score(DEFECT, solution)


@pytest.mark.parametrize("solution", ["", "maybe", "<answer></answer>", "<answer>x</answer>", "B"])
def test_the_released_sets_too_stop_at_a_solution_without_an_answer(solution: str) -> None:
    with pytest.raises(DataError, match="has no answer"):
        rewards.load("sc_grpo_released").score(DEFECT, solution)


def test_a_no_that_names_a_defect_is_no_solution() -> None:
    with pytest.raises(DataError, match="cannot name a location"):
        rewards.load("sc_grpo").score(CLEAN, "<type>hole</type><answer>No</answer>")


def test_a_photograph_without_a_mask_has_no_place_to_be_right_about() -> None:
    solution = Solution("Yes", type="scratch")
    chosen = rewards.load("sc_grpo")
    assert chosen.applicable(solution) == ("consistency", "answer", "type")
    for location in ("top left", "anything", None):
        named = f"<location>{location}</location>" if location else ""
        text = f"<think>a</think>{named}<type>scratch</type><answer>Yes</answer>"
        assert parts(text, solution) == {"consistency": 1, "answer": 1, "location": 0, "type": 1}


def test_an_image_without_a_type_has_no_type_to_be_right_about() -> None:
    solution = Solution("Yes", location="top left")
    assert rewards.load("sc_grpo").applicable(solution) == ("consistency", "answer", "location")
    without = "<think>a</think><location>top left</location><answer>Yes</answer>"
    for text in (DEFECT, without):
        assert parts(text, solution) == {"consistency": 1, "answer": 1, "location": 1, "type": 0}


def test_neither_applies_to_a_normal_image() -> None:
    assert rewards.load("sc_grpo").applicable(NO) == ("consistency", "answer")
    assert rewards.load("sc_grpo").applicable(YES) == rewards.load("sc_grpo").names


def test_a_place_that_is_not_on_the_grid_stops_the_run() -> None:
    other = YES.replace("top left", "row 1 of 5, column 1 of 5")
    said = DEFECT.replace("top left", "row 1 of 5, column 1 of 5")
    assert parts(said, other, grid="5x5")["location"] == 1.0
    with pytest.raises(DataError, match=r"'row 1 of 5, column 1 of 5' names no cell of a 3x3 grid"):
        parts(said, other)


def test_the_grid_decides_what_the_same_place_is() -> None:
    said = DEFECT.replace("top left", "top center")
    true = YES.replace("top left", "top")
    assert parts(said, true, grid="3x3")["location"] == 1.0
    assert parts(said, true, grid="2x2")["location"] == 1.0
    assert parts(said, true.replace("top", "top left"), grid="2x2")["location"] == 0.0
    assert rewards.load("sc_grpo", Grid(2, 5)).grid == Grid(2, 5)


def test_neighbour_credit_comes_from_the_grid_section() -> None:
    section = GridConfig(
        name="3x3", rows=3, cols=3, mask_rule="centroid_largest", neighbour_credit=0.4
    )
    said = DEFECT.replace("top left", "top center")
    assert rewards.load("sc_grpo", section).score(said, YES).parts["location"] == 0.4
    assert rewards.load("sc_grpo").score(said, YES).parts["location"] == 0.0


def test_weights_and_gates_come_from_the_set() -> None:
    line = {"function": "location", "gate": None}
    chosen = rewards.load(
        {
            "name": "mine",
            "vocabulary": "default",
            "components": {
                "answer": {"function": "answer", "weight": 0.5, "gate": None},
                "free": {**line, "weight": 2.0},
                "gated": {**line, "weight": 3.0, "gate": "answer"},
                "lost": {"function": "type", "weight": -1.0, "gate": "gated"},
            },
        }
    )
    wrong = DEFECT.replace("Yes", "No")
    assert chosen.score(DEFECT, YES).total == 0.5 + 2.0 + 3.0 - 1.0
    assert chosen.score(wrong, YES).total == 2.0
    assert chosen.score(wrong, YES).parts == {"answer": 0, "free": 1, "gated": 0, "lost": 0}
    elsewhere = DEFECT.replace("top left", "center")
    assert chosen.score(elsewhere, YES).total == 0.5


def test_a_group_is_scored_one_by_one() -> None:
    chosen = rewards.load("sc_grpo")
    assert chosen.scores([DEFECT, CLEAN], YES) == [chosen.score(t, YES) for t in (DEFECT, CLEAN)]


def test_the_type_reward_needs_a_vocabulary() -> None:
    with pytest.raises(ConfigError, match=r"components\.answer needs a vocabulary"):
        rewards.load(mapping(function="type"))
    assert rewards.load(mapping(function="type") | {"vocabulary": "default"}).score(DEFECT, YES)


@pytest.mark.parametrize(
    "name", ["sc_grpo_released", "sc_grpo_released_without_type", "anomaly_r1_released"]
)
def test_a_released_set_is_refused_on_a_grid_it_does_not_know_before_it_scores(name: str) -> None:
    assert rewards.load(name, "3x3").names
    if name == "anomaly_r1_released":  # knows no places
        assert rewards.load(name, "5x5").names
    else:
        with pytest.raises(ConfigError, match=r"components\.accuracy .* only a 3x3 grid, not 5x5"):
            rewards.load(name, "5x5")
    assert rewards.load("sc_grpo_released_without_location", "5x5").names


# --- AnomalyR1, strict ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("think", "answer", "roam", "choice"),
    [
        ("The right choice is B.", "B", 1.0, 1.0),
        ("it is not C but B", "B.", 1.0, 1.0),
        ("A scratch is visible. Therefore B", "(B)", 1.0, 1.0),
        ("no letter at all", "B: scratch", 0.8, 1.0),
        ("no letter at all", "C", 0.05, 0.0),
        ("no letter at all", "B: B is right", 0.8, 1.0),
        ("no letter at all", "B)", 0.8, 1.0),
        ("So C fits", "C", 0.1, 0.0),
        ("So C fits", "B", 0.0, 1.0),
        ("So B fits", "C", 0.0, 0.0),
        ("So B fits", "b", 0.0, 0.0),
        ("So B fits", "B or C", 0.0, 0.0),
        ("So B fits", "B: or C", 0.0, 0.0),
        ("So B fits", "the answer is B", 0.0, 0.0),
        ("So B fits", "Yes", 0.0, 0.0),
        ("", "B", 0.0, 0.0),
    ],
)
def test_strict_letters(think: str, answer: str, roam: float, choice: float) -> None:
    text = f"<think>{think}</think><answer>{answer}</answer>"
    assert rewards.load("roam").score(text, "B").total == roam
    assert rewards.load("choice").score(text, " B ").total == choice


@pytest.mark.parametrize("name", ["choice", "choice_released", "roam", "roam_released"])
@pytest.mark.parametrize(
    "gold", ["B", " b ", "(B)", "B.", "B: Dent", "<answer>B</answer>", "<answer> (B) </answer>"]
)
def test_the_right_letter_is_read_however_a_data_set_spells_it(name: str, gold: str) -> None:
    right, wrong = (f"<think>{x} fits.</think><answer>{x}</answer>" for x in "BC")
    best = rewards.load(name).score(right, "B").total
    assert best > 0 and rewards.load(name).score(right, gold).total == best
    assert rewards.load(name).score(wrong, gold).total < best


@pytest.mark.parametrize("name", ["choice", "choice_released", "roam", "roam_released"])
@pytest.mark.parametrize("gold", ["", "Yes", "F", "A or B", "Dent", "<answer></answer>"])
def test_a_solution_that_names_no_letter_is_refused(name: str, gold: str) -> None:
    with pytest.raises(DataError, match="names no letter"):
        rewards.load(name).score("<think>So B fits</think><answer>B</answer>", gold)


@pytest.mark.parametrize(
    "text",
    [
        "B",
        "<answer>B</answer>",
        "x<think>B</think><answer>B</answer>",
        "<think>B</think><answer>B</answer><answer>B</answer>",
        "<think>B</think>so<answer>B</answer>",
    ],
)
def test_strict_letters_need_the_form(text: str) -> None:
    assert rewards.load("roam").score(text, "B").total == 0.0
    assert rewards.load("choice").score(text, "B").total == 0.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A scratch is visible", ""),
        ("A is correct", "A"),
        ("A pH strip is visible", ""),
        ("So option A fits", "A"),
        ("A and B", "AB"),
        ("Look. A scratch! A dent? A hole", ""),
        ("(A), B; C/D E", "ABCDE"),
        ("A-frame, B2, C's, AB, xA, D’s", ""),
        ("A", "A"),
        ("F", ""),
    ],
)
def test_letters_are_stand_alone_capitals_but_not_the_article(text: str, expected: str) -> None:
    assert letters(text) == list(expected)


# --- faults never become rewards --------------------------------------------------------------


def test_a_component_that_returns_no_number_stops_the_run_and_names_the_item(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for value in (math.nan, math.inf, -math.inf):
        monkeypatch.setattr("iad_r1.rewards.components.answer.score", lambda case, v=value: v)
        with pytest.raises(TrainingError, match=r"'answer' returned .*A line crosses.*<answer>Yes"):
            rewards.load("answer").score(DEFECT, YES)


def test_a_component_that_crashes_crashes(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(case: object) -> float:
        raise ZeroDivisionError

    monkeypatch.setattr("iad_r1.rewards.components.answer.score", crash)
    with pytest.raises(ZeroDivisionError):
        rewards.load("answer").score(DEFECT, YES)


@pytest.mark.parametrize("name", rewards.names())
@given(text=st.text(max_size=30))
def test_any_text_earns_a_finite_number(name: str, text: str) -> None:
    letters_only = any(part in name for part in ("roam", "choice", "anomaly_r1"))
    for solution in ("B",) if letters_only else (YES, NO):
        assert math.isfinite(rewards.load(name).score(text, solution).total)


# --- adding a reward --------------------------------------------------------------------------


def test_a_reward_is_added_with_one_file_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the README shows: a file with `score`, and a line in a set."""
    (tmp_path / "brevity.py").write_text(
        "def score(case, limit):\n    return float(len(case.completion) <= limit)\n",
        encoding="utf-8",
    )
    import iad_r1.rewards.components as components

    monkeypatch.setattr(components, "__path__", [*components.__path__, str(tmp_path)])
    file = (files.FOLDER / "sc_grpo.yaml").read_text(encoding="utf-8")
    line = "  brevity: {function: brevity, weight: 0.5, gate: answer, settings: {limit: 200}}\n"
    chosen = rewards.load(yaml.safe_load(file + line))
    assert chosen.names == ("consistency", "answer", "location", "type", "brevity")
    assert chosen.score(CLEAN, NO).total == 2.5
    assert chosen.score(CLEAN, YES).parts["brevity"] == 0.0, "gated: the answer is wrong"
    assert chosen.score(CLEAN.replace("Even", "Even" * 99), NO).total == 2.0


def test_a_reward_may_live_in_a_module_of_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_rewards").mkdir()
    (tmp_path / "my_rewards" / "__init__.py").touch()
    (tmp_path / "my_rewards" / "tone.py").write_text("def calm(case): return 0.25", "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert rewards.load(mapping(function="my_rewards.tone:calm")).score("", NO).total == 0.25


# --- cost -------------------------------------------------------------------------------------


def test_importing_rewards_and_grids_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from iad_r1 import grid, prompts, rewards, schema\n"
        "from iad_r1.settings.rewards import RewardsConfig\n"
        "from iad_r1.rewards.audit import AuditLimits\n"
        "heavy = {'torch', 'numpy', 'scipy', 'transformers', 'pandas', 'yaml'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "rewards.load('sc_grpo_released').score('', '<answer>No</answer>')\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
