"""The types a reward knows are data, and what they are worth follows from where they stand."""

from __future__ import annotations

import copy
from itertools import product
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from iad_r1 import rewards
from iad_r1.errors import ConfigError
from iad_r1.rewards.vocabulary import Place, Vocabulary, vocabulary

SMALL = {
    "ignored": ["a", "the", "defect"],
    "scores": {"same_type": 1.0, "within_class": 0.8, "same_class": 0.5, "same_group": 0.2},
    "groups": {
        "surface": {
            "names": ["surface anomaly"],
            "classes": {
                "scratch": {
                    "names": ["scratch", "score"],
                    "types": {"line": ["linear scratch"], "scuff": []},
                },
                "stain": {"names": ["stain"], "types": {"spot": ["oil-spot", "spots of oil"]}},
            },
        },
        "shape": {
            "names": ["shape anomaly"],
            "classes": {"dent": {"names": ["dent"], "types": {"fold": []}}},
        },
    },
}
DEFAULT = vocabulary("default")
WORLD = ["scratch", "hole", "stain", "crack", "dent", "missing part", "foreign object"]
PAPER_CLASSES = [
    *("Contamination", "Presence of foreign objects", "Scratch", "Missing parts"),
    *("Deformation", "Hole", "Damage", "Abrasion"),
]


def small(**change) -> Vocabulary:
    return Vocabulary(copy.deepcopy(SMALL) | change, "here")


@pytest.mark.parametrize(
    ("predicted", "actual", "expected"),
    [
        ("line", "line", 1.0),
        ("linear scratch", "line", 1.0),
        ("Linear-Scratch!", "the LINE defect", 1.0),
        ("lines", "line", 1.0),
        ("score", "scratch", 1.0),
        ("line", "scratch", 0.8),
        ("linear scratch", "score", 0.8),
        ("scratch", "line", 0.5),
        ("scuff", "line", 0.5),
        ("stain", "line", 0.2),
        ("spot", "scratch", 0.2),
        ("surface anomaly", "line", 0.2),
        ("line", "surface anomaly", 0.2),
        ("surface anomaly", "surface anomaly", 1.0),
        ("dent", "line", 0.0),
        ("shape anomaly", "line", 0.0),
        ("fold", "surface anomaly", 0.0),
        ("spots of oil", "spot", 1.0),
        ("oil spot", "spot", 1.0),
        ("unknown thing", "unknown thing", 1.0),
        ("Unknown  thing.", "unknown thing", 1.0),
        ("unknown thing", "line", 0.0),
        ("line", "unknown thing", 0.0),
        ("line scratch", "line", 0.0),
        ("lin", "line", 0.0),
        ("line, scuff", "line", 0.0),
        ("no line", "line", 0.0),
        ("", "line", 0.0),
        ("", "", 0.0),
        ("the defect", "a defect", 0.0),
        ("line", "", 0.0),
        ("x" * 100, "x" * 100, 1.0),
        ("x" * 101, "x" * 101, 0.0),
    ],
)
def test_what_a_type_is_worth(predicted: str, actual: str, expected: float) -> None:
    assert small().score(predicted, actual) == expected


def test_where_a_label_stands() -> None:
    assert small().find("linear scratch") == Place("surface", "scratch", "line")
    assert small().find("scratches") == Place("surface", "scratch", None)
    assert small().find("surface anomaly") == Place("surface", None, None)
    assert small().find("scratche") is None and small().find("") is None
    assert len(small()) == 13


@pytest.mark.parametrize("label", WORLD)
def test_the_default_places_the_types_of_the_synthetic_world(label: str) -> None:
    place = DEFAULT.find(label)
    assert place is not None and place.type_class is not None
    assert rewards.type_score(label, label) == 1.0


def test_the_types_of_the_synthetic_world_can_be_told_apart() -> None:
    for one, other in product(WORLD, WORLD):
        if one != other:
            assert rewards.type_score(one, other) in (0.0, 0.3)


@pytest.mark.parametrize("label", PAPER_CLASSES)
def test_the_default_places_the_classes_of_the_papers(label: str) -> None:
    place = DEFAULT.find(label)
    assert place is not None and place.kind is None


def test_the_default_keeps_the_two_groups_of_the_papers() -> None:
    groups = [place.group for label in PAPER_CLASSES if (place := DEFAULT.find(label))]
    assert groups == ["surface"] * 4 + ["structural"] * 4


def test_the_default_places_nearly_every_word_the_released_matcher_knows(
    repository: Path,
) -> None:
    file = repository / "iad_r1" / "rewards" / "vocabularies" / "released.yaml"
    groups = yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]
    words = [w for g in groups.values() for c in g["classes"].values() for w in c]
    assert DEFAULT.unplaced(words) == []


def test_a_tool_names_the_labels_it_cannot_place() -> None:
    labels = ["line", "Scratches", "logical", "bent wire", "logical"]
    assert small().unplaced(labels) == ["bent wire", "logical"]
    assert small().unplaced([]) == []


@given(st.sampled_from(sorted(DEFAULT._places)), st.sampled_from(sorted(DEFAULT._places)))
def test_scores_are_the_listed_ones_and_the_same_only_for_the_same_place(
    one: str, other: str
) -> None:
    score = DEFAULT.score(one, other)
    assert score in (0.0, 0.3, 0.6, 0.85, 1.0)
    assert (score == 1.0) == (DEFAULT.find(one) == DEFAULT.find(other))
    assert (score == 0.0) == (DEFAULT.score(other, one) == 0.0)


@given(st.text(max_size=30), st.text(max_size=30))
def test_any_two_labels_have_a_score(one: str, other: str) -> None:
    assert 0.0 <= DEFAULT.score(one, other) <= 1.0


def test_a_user_can_bring_their_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(SMALL), encoding="utf-8")
    assert rewards.type_score("scuff", "line", types=str(file)) == 0.5
    mapping = {
        "name": "mine",
        "vocabulary": str(file),
        "components": {"type": {"function": "type", "weight": 1.0, "gate": None}},
    }
    text = "<think>a</think><location>top</location><type>{}</type><answer>Yes</answer>"
    score = rewards.load(mapping).score(text.format("scuff"), text.format("line")[16:])
    assert score.parts == {"type": 0.5}


@pytest.mark.parametrize("name", ["nothing", "no/such/file.yaml", "../vocabularies/default"])
def test_a_vocabulary_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="neither a packaged vocabulary nor a file"):
        vocabulary(name)


def test_a_file_that_is_no_yaml_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("groups: [", encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot read"):
        vocabulary(str(tmp_path / "bad.yaml"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": None}, "here: groups"),
        ({"extra": 1}, "here: extra"),
        ({"scores": {**SMALL["scores"], "same_type": 1.5}}, r"here: scores\.same_type"),
        (
            {"scores": {**SMALL["scores"], "same_group": 0.6}},
            "a nearer type must not be worth less",
        ),
        (
            {"groups": {"one": {"names": ["line", "Line!"], "classes": {}}} | SMALL["groups"]},
            r"here: 'line' stands in two places",
        ),
        ({"groups": {"one": {"names": ["the defect"], "classes": {}}}}, "'the defect' has no word"),
    ],
)
def test_a_wrong_vocabulary_is_refused_with_the_place_of_the_mistake(
    change: dict, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        small(**change)
