"""`teacher=openai`: what a model is shown and asked, and what becomes of what it says."""

from __future__ import annotations

import base64
import io
import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from services import Service, body, served
from test_expert_ad import SIDE, build, lines, made, photographs, read_back
from test_expert_texts import facts

from iad_r1.chat.client import ServiceError
from iad_r1.command import compose
from iad_r1.errors import ConfigError, DataError
from iad_r1.expert.teachers.openai import OUTLINES, outline, outlined
from iad_r1.loops import expert_ad
from iad_r1.settings.config import Config
from iad_r1.stages import find
from iad_r1.store.run_folder import RunFolder

WRITABLE = 24  # photographs that a text can be written about


@pytest.fixture
def service() -> Iterator[Service]:
    with served() as made:
        made.answer = lambda n, asked: (200, body(written(n, asked)))
        yield made


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # ids hold the name of the folder, and decide what is in which list
    return photographs(tmp_path_factory.mktemp("made") / "photos0")


@pytest.fixture
def config(service: Service, photos: Path) -> Callable[..., Config]:
    return lambda *more: made(
        f"data.root={photos}", "data.near_duplicate_bits=0", "teacher=openai", "teacher.model=m",
        f"teacher.base_url={service.url}", "teacher.retries=2", *more,
    )  # fmt: skip


def words(asked: dict[str, Any]) -> str:
    parts = asked["messages"][-1]["content"]
    return "".join(part["text"] for part in parts if part["type"] == "text")


def pictures(asked: dict[str, Any]) -> list[Image.Image]:
    parts = asked["messages"][-1]["content"]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    files = [io.BytesIO(base64.b64decode(url.partition(",")[2])) for url in urls]
    return [Image.open(file) for file in files]


def is_good(asked: dict[str, Any]) -> bool:
    return "- It is good." in words(asked)


def written(n: int, asked: dict[str, Any], **changed: Any) -> str:
    """A sound text about what is asked, no two alike."""
    said = words(asked)
    seen = " ".join(f"detail{n}x{i} and" for i in range(8))
    text = f"I look over the whole part and compare it with a good one, {seen} its outline agrees."
    if is_good(asked):
        found = {"description": "The part is like a good one.", "type": "none",
                 "reasoning": f"{text} Nothing is wrong, so the part is good."}  # fmt: skip
    else:
        known = re.search(r"It has a defect: ([\w ]+)", said)
        at = re.search(r"- It lies (.*)\.", said)
        assert known
        kind = known[1].split(" (")[0].strip()
        found = {"description": "The part is like a good one but for a dark area.", "type": kind,
                 "reasoning": f"{text} {at[1].capitalize() if at else 'There'} is a {kind}, so the "
                 "part is defective."}  # fmt: skip
    return json.dumps(found | changed)


# --- what is asked -------------------------------------------------------------------------------


def test_a_model_sees_a_good_picture_the_one_in_question_and_its_defect_outlined(
    config, service, tmp_path
):
    out = build(config(), tmp_path) / expert_ad.DATASET
    assert len(service.asked) == WRITABLE == len(lines(out / "items.jsonl"))
    places = {(row["location"], row["type"]) for row in lines(out / "items.jsonl")}
    for asked in service.asked:
        shown = [np.asarray(picture) for picture in pictures(asked)]
        assert len(shown) == (2 if is_good(asked) else 3)
        assert not np.array_equal(shown[0], shown[1])
        if not is_good(asked):
            dark = (shown[1] == 20).all(-1)  # the defect is that gray
            drawn = (shown[1] != shown[2]).any(-1)
            assert drawn.any() and not (drawn & dark).any()
            assert any(f"at the {place}" in words(asked) for place, _ in places if place)
    assert {asked["temperature"] for asked in service.asked} == {0.0}


def test_larger_pictures_are_made_smaller_and_a_form_is_asked_for_where_a_service_knows_one(
    config, service, tmp_path
):
    build(config("teacher.max_size=[28,40]", "teacher.structured=json_schema"), tmp_path)
    assert {picture.size for asked in service.asked for picture in pictures(asked)} == {(28, 28)}
    form = service.asked[0]["response_format"]
    assert form["type"] == "json_schema"
    assert form["json_schema"]["schema"]["required"] == ["description", "reasoning", "type"]


def test_the_outline_hides_nothing_and_has_a_color_that_the_picture_lacks():
    found = facts("cracked")
    assert OUTLINES[outline(found)][0] == "magenta"
    assert OUTLINES[outline(facts("cracked", colour="light pink"))][0] == "cyan"
    mask = np.zeros((90, 90), np.bool_)
    mask[5:15, 5:20] = True
    picture = Image.new("RGB", (45, 45), (9, 9, 9))  # half as large
    marked = outlined(picture, mask, (255, 0, 255))
    assert marked is not None
    drawn = (np.asarray(marked) != 9).all(-1) | (np.asarray(marked)[..., 0] == 255)
    assert drawn.any() and not drawn[2:8, 2:10].any()
    assert outlined(picture, np.ones((90, 90), np.bool_), (255, 0, 255)) is None


def test_a_build_too_small_for_both_lists_is_refused_before_it_is_paid_for(
    config, service, tmp_path
):
    with pytest.raises(DataError, match=r"items=2 are too few.*from items=\d+ on") as refused:
        build(config("items=2"), tmp_path)
    assert not service.asked
    found = re.search(r"from items=(\d+) on", str(refused.value))
    assert found is not None
    enough = int(found[1])
    with pytest.raises(DataError, match=f"items={enough - 1} are too few"):
        build(config(f"items={enough - 1}"), tmp_path)
    out = build(config(f"items={enough}"), tmp_path) / expert_ad.DATASET
    assert len(lines(out / "items.jsonl")) == enough == len(service.asked)


def test_every_arm_is_asked_for_with_its_own_words(config, service, tmp_path):
    out = build(config("stage.arms=true", "items=4"), tmp_path) / expert_ad.DATASET
    asked = Counter(json.dumps(each["messages"]) for each in service.asked)
    assert set(asked.values()) == {1}  # of a good picture the same is asked for every arm
    bad = [words(each) for each in service.asked if not is_good(each)]
    assert len(service.asked) - len(bad) == 2
    assert sum("of 5, column" in said for said in bad) == 2
    assert sum("Use no words for a place" in said for said in bad) == 2  # 1x1
    for arm in ("coarse", "1x1", "2x2", "4x4", "5x5"):
        assert len(json.loads((out / "arms" / f"sft_{arm}.json").read_text())) == 2


# --- what becomes of replies ---------------------------------------------------------------------

BAD: dict[str, Callable[[int, dict[str, Any]], tuple[int, bytes]]] = {
    "refused": lambda n, asked: (200, body(None, refusal="I cannot.")),
    "cut reply": lambda n, asked: (200, body(written(n, asked)[:60], ended="length")),
    "malformed reply": lambda n, asked: (200, body("Sure! It is fine.")),
    "malformed reply, more": lambda n, asked: (200, body(written(n, asked, verdict="bad"))),
    "malformed reply, type": lambda n, asked: (
        200, body(written(n, asked, type="dent" if is_good(asked) else "none")),
    ),
    "language": lambda n, asked: (
        200, body(written(n, asked, description="Das Teil gleicht einem guten Teil sehr genau.")),
    ),
    "forbidden word": lambda n, asked: (
        200, body(written(n, asked, description="It differs from the reference in a detail.")),
    ),
}  # fmt: skip


def test_what_cannot_be_used_is_rejected_with_its_reason_and_counted(
    config, service, photos, tmp_path
):
    faults = list(BAD)

    def answer(n: int, asked: dict[str, Any]) -> tuple[int, bytes]:
        return BAD[faults[n // 2]](n, asked) if n % 2 and n // 2 < len(faults) else (
            200, body(written(n, asked))
        )  # fmt: skip

    service.answer = answer
    folder = build(config("teacher.concurrency=1"), tmp_path)
    out = folder / expert_ad.DATASET
    reasons = Counter(row["rejected"][0]["reason"] for row in lines(out / "rejected.jsonl"))
    expected = Counter(name.partition(",")[0] for name in faults)
    assert reasons == expected + Counter({"no mask": 1, "no type": 1, "leak": 1})
    assert len(lines(out / "items.jsonl")) == WRITABLE - len(faults)
    summary = RunFolder.open(folder).summary()
    assert summary["expert_ad"]["rejected"] == dict(reasons)
    assert (summary["teacher"]["replies"], summary["teacher"]["refused"]) == (WRITABLE, 1)
    found = read_back(out, photos)  # by our own reader
    items = {row["picture"]: row["target"] for row in lines(out / "items.jsonl")}
    assert len(found["sft"]) + len(found["grpo"]) == len(items)
    for sample in found["sft"]:
        assert sample.target == items[Path(str(sample.image)).name]
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "| malformed reply | 3 |" in card and "teacher=openai" in card and "`m`" in card


def test_a_text_that_speaks_of_the_outline_is_refused(config, service, tmp_path):
    """Its color is forbidden where it was shown, and only there."""
    said = "The part is like a good one, with a magenta or cyan hue."
    service.answer = lambda n, asked: (200, body(written(n, asked, description=said)))
    with pytest.raises(Exception, match=r"0 defective.*forbidden word 12"):
        build(config(), tmp_path)


def test_a_fence_around_the_object_is_no_fault(config, service, tmp_path):
    service.answer = lambda n, asked: (200, body(f"```json\n{written(n, asked)}\n```"))
    assert len(lines(build(config(), tmp_path) / "dataset/items.jsonl")) == WRITABLE


def test_replies_in_any_order_end_in_the_same_files_and_a_second_build_is_free(
    config, service, tmp_path
):
    first = build(config("teacher.concurrency=1"), tmp_path / "a")
    asked = {json.dumps(each["messages"]): n for n, each in enumerate(service.asked)}
    turn = threading.Condition()
    waiting: list[int] = []

    def answer(n: int, each: dict[str, Any]) -> tuple[int, bytes]:
        number = asked[json.dumps(each["messages"])]
        with turn:  # of two that are there, the later one is answered first
            waiting.append(number)
            turn.notify_all()
            turn.wait_for(lambda: len(waiting) > 1 or number == WRITABLE - 1, 1)
            turn.wait_for(lambda: number == max(waiting), 1)
            waiting.remove(number)
            turn.notify_all()
        return 200, body(written(number, each))

    service.answer = answer
    second = build(config("teacher.concurrency=2"), tmp_path / "b")
    for name in ("drafts.jsonl", "dataset/sft.json", "dataset/grpo.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    before = len(service.asked)
    again = RunFolder.create(tmp_path / "b", "again")
    again.write_json("config.json", config().model_dump(mode="json"))
    expert_ad.run(config(), again)
    assert len(service.asked) == before == 2 * WRITABLE
    spent = again.summary()["teacher"]
    assert (spent["replies"], spent["kept"], spent["tokens_in"]) == (0, WRITABLE, 0)
    assert (again.path / "drafts.jsonl").read_bytes() == (second / "drafts.jsonl").read_bytes()


def test_a_service_that_fails_for_good_loses_nothing_and_the_run_goes_on(config, service, tmp_path):
    folder = RunFolder.create(tmp_path, "built")
    folder.write_json("config.json", config().model_dump(mode="json"))
    service.answer = lambda n, asked: (500, b"") if n >= 9 else (200, body(written(n, asked)))
    with pytest.raises(ServiceError, match="run again, and it is not asked again"):
        expert_ad.run(config("teacher.retries=0", "teacher.concurrency=1"), folder)
    assert len(lines(folder.path / "drafts.jsonl")) == 9
    assert folder.summary()["teacher"]["replies"] == 9
    service.asked.clear()
    service.answer = lambda n, asked: (200, body(written(n + 9, asked)))
    expert_ad.run(config(), folder)
    assert len(service.asked) == WRITABLE - 9
    assert folder.summary()["teacher"]["replies"] == WRITABLE
    assert len(lines(folder.path / "dataset/items.jsonl")) == WRITABLE


# --- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ([], r"teacher\.model has no value.*\n.*teacher\.base_url has no value"),
        (["teacher.model=m", "teacher.base_url=nowhere"], r'^teacher\.base_url="nowhere"'),
        (
            ["teacher.model=m", "teacher.base_url=http://a/v1", "teacher.budget=1"],
            "needs the prices",
        ),
        (["teacher.model=m", "teacher.base_url=http://a/v1", "teacher.key=sk-1-2"], "teacher.key"),
    ],
)
def test_settings_that_cannot_work_are_refused(typed, message):
    with pytest.raises(ConfigError, match=message):
        compose.compose(["stage=expert_ad", "teacher=openai", *typed])


def test_a_missing_key_is_named_before_work_starts(config, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"api\.example\.com/v1 needs a key.*OPENAI_API_KEY"):
        far = config("teacher.base_url=https://api.example.com/v1")
        find("expert_ad").check_inputs(far)


def test_the_size_that_photographs_have_here_is_what_is_shown(config, service, tmp_path):
    build(config("items=6"), tmp_path)
    assert {picture.size for asked in service.asked for picture in pictures(asked)} == {
        (SIDE, SIDE)
    }
