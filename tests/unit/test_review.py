"""What reviewers decide: kept on disk, joined by a stated rule, and passed through the filters."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from PIL import Image

from iad_r1.command import compose
from iad_r1.errors import ConfigError, DataError
from iad_r1.expert import facts, review
from iad_r1.expert.filters import Rules, target
from iad_r1.expert.review import Decision, Decisions, Text, Verdict
from iad_r1.expert.teachers import Draft
from iad_r1.loops import expert_ad
from iad_r1.report import review_page
from iad_r1.rewards.vocabulary import vocabulary
from iad_r1.store.run_folder import RunFolder

SCRIPT = "<script>alert(1)</script>"
RULES = Rules(("mask*",), 3, 60, vocabulary("default"))
GOOD = Text(
    "The picture shows a nut with an even surface.",
    "The surface is even and has no defect, so the part is good.",
    None,
)
BAD = Text(
    "The picture shows a nut with a thin line on its surface.",
    "There is a scratch in the top left, which is a defect, so the part is defective.",
    "scratch",
)


def row(id: str, text: Text = BAD, **more: Any) -> dict[str, Any]:
    """A line of a build about a nut, with a scratch in the top left where the text has a type."""
    picture = Image.fromarray(np.full((60, 60, 3), 120, np.uint8))
    mask = np.zeros((60, 60), np.bool_)
    mask[5:8, 3:17] = True
    found, place = facts.of_good("nut", picture, picture), None
    if text.type is not None:
        named, place = ("scratch", "scratch", "surface", "scratch"), "top left"
        found = facts.of_defective(
            "nut", picture, mask, picture, named, "centroid_largest"
        )  # fmt: skip
    said = target(Draft(text.description, text.reasoning, text.type), place)
    known = {
        "id": id, "product": "nut", "picture": f"{id}.png", "list": "sft", "location": place,
        "reference": {"id": "good", "picture": "good.png"}, "facts": asdict(found),
        **asdict(text), "target": said, "arms": {}, "rejected": [],
    }  # fmt: skip
    return json.loads(json.dumps(known | more))


def decision(about: Mapping[str, Any], verdict: Verdict, at: float = 0.0, **more: Any) -> Decision:
    extra = {"reason": "blurry"} if verdict == "reject" else {}
    return Decision(about["id"], review.digest(about), verdict, at, **{**extra, **more})


def edit(about: Mapping[str, Any], text: Text, at: float = 0.0) -> Decision:
    return decision(about, "edit", at, text=text)


def left(rows: Sequence[Mapping[str, Any]], **standing: Decision) -> list[dict[str, Any]]:
    """The lines after one decision of each reviewer."""
    by = {name: {one.id: one} for name, one in standing.items()}
    return list(review.reviewed(lambda: rows, by, "3x3", RULES, 0.8))


# --- on disk -------------------------------------------------------------------------------------


def test_decisions_are_lines_that_are_only_added_and_the_last_one_counts(tmp_path):
    item, folder = row("a"), tmp_path / "review"
    decisions = Decisions(folder)
    assert decisions.standing() == {}
    review.append(folder, "Anna", decision(item, "accept", 1.0))
    first = review.file_of(folder, "Anna").read_bytes()
    review.append(folder, "Anna", edit(item, GOOD, 2.0))
    review.append(folder, "Ben", decision(item, "reject", 3.0))
    assert review.file_of(folder, "Anna").read_bytes().startswith(first)
    for read in (decisions, Decisions(folder)):  # gone on with, and from the start
        assert read.standing() == {
            "Anna": {"a": edit(item, GOOD, 2.0)},
            "Ben": {"a": decision(item, "reject", 3.0)},
        }
        assert read.times() == {"Anna": [1.0, 2.0], "Ben": [3.0]}


def test_a_line_that_a_kill_has_torn_does_not_count_and_harms_no_other(tmp_path):
    first, second = row("a"), row("b")
    review.append(tmp_path, "Anna", decision(first, "accept"))
    file = review.file_of(tmp_path, "Anna")
    whole = file.read_bytes()
    for cut in (1, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole + whole[:cut])
        assert set(Decisions(tmp_path).standing()["Anna"]) == {"a"}
        review.append(tmp_path, "Anna", decision(second, "accept"))
        assert set(Decisions(tmp_path).standing()["Anna"]) == {"a", "b"}
        assert file.read_bytes().startswith(whole)


def test_pages_that_write_at_once_lose_nothing(tmp_path):
    items = [row(str(n), GOOD) for n in range(20)]

    def decide(name: str) -> None:
        for item in items:
            review.append(tmp_path, name, decision(item, "accept"))

    threads = [threading.Thread(target=decide, args=(n,)) for n in ("Anna", "Anna", "Ben")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {name: len(t) for name, t in Decisions(tmp_path).times().items()} == {
        "Anna": 40, "Ben": 20,
    }  # fmt: skip


@pytest.mark.parametrize("line", ["{}", "nonsense", '{"id":"a","seen":"","verdict":"maybe","at":0}',
                                  '{"id":"a","seen":"","verdict":"reject","at":0}'])  # fmt: skip
def test_a_line_that_is_no_decision_is_named(tmp_path, line):
    review.append(tmp_path, "Anna", decision(row("a"), "accept"))
    with review.file_of(tmp_path, "Anna").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=r"Anna\.jsonl, line 2: this is no decision"):
        Decisions(tmp_path).standing()


@pytest.mark.parametrize("name", ["Zoë O'Neil", SCRIPT, "../../etc/passwd", ".", "..", "a/b", "李"])
def test_any_name_has_a_file_of_its_own_in_the_folder(tmp_path, name):
    folder = tmp_path / "review"
    review.append(folder, name, decision(row("a"), "accept"))
    assert [file.parent for file in tmp_path.rglob("*.jsonl")] == [folder]
    assert list(Decisions(folder).standing()) == [name]


def test_a_name_is_one_however_it_is_typed(tmp_path):
    assert review.named("  anna  MARIA ", ["Anna Maria"]) == "Anna Maria"
    for typed, said in (
        ("  ", "Say who"),
        ("x" * 201, "too long"),
        ("a\u202eb", "cannot be shown"),
    ):
        with pytest.raises(DataError, match=said):
            review.named(typed, [])


# --- what comes of it ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verdicts", "kept", "editor"),
    [
        ("a", True, None),
        ("r", False, None),
        ("e", True, "0"),
        ("ar", False, None),  # a tie
        ("aar", True, None),
        ("aer", True, "1"),
        ("aae", True, None),  # more accept it
        ("ee", True, "1"),  # the last one
        ("rre", False, None),
    ],
)
def test_the_majority_decides(verdicts, kept, editor):
    item = row("a")
    made = {
        "a": lambda at: decision(item, "accept", at),
        "e": lambda at: edit(item, GOOD, at),
        "r": lambda at: decision(item, "reject", at),
    }
    found = {str(n): made[v](float(n)) for n, v in enumerate(verdicts)}
    assert review.outcome(found) == review.Outcome(kept, editor)


def test_rejected_items_are_out_edits_are_in_and_the_others_stay():
    rows = [row("a", GOOD), row("b"), row("c")]
    other = Text(
        BAD.description, "A scratch lies in the top left: the part is defective.", "scratch"
    )
    found = left(rows, Anna=decision(rows[0], "reject"), Ben=edit(rows[1], other))
    assert found[0]["rejected"] == [{"reason": "review", "found": "Anna: reject (blurry)"}]
    assert found[1]["rejected"] == [] and found[1]["edited_by"] == "Ben"
    assert found[1]["reasoning"] == other.reasoning and other.reasoning in found[1]["target"]
    assert found[2] == rows[2]


@pytest.mark.parametrize(
    ("reasoning", "kind", "reason"),
    [
        ("The mask shows a scratch, so the part is defective.", "scratch", "forbidden word"),
        ("A scratch in the bottom right: the part is defective.", "scratch", "another place"),
        ("The part is good and has no defect.", "scratch", "verdict"),
        ("A hole in the top left: the part is defective.", "hole", "type"),
        ("A scratch: defective.", "", "schema"),
        ("</think> A scratch: the part is defective.", "scratch", "schema"),
    ],
)
def test_an_edit_passes_the_filters_of_the_build_or_is_out(reasoning, kind, reason):
    item = row("a")
    text = Text(BAD.description, reasoning, kind)
    assert reason in {why.reason for why in review.broken(review.edited(item, text), "3x3", RULES)}
    (found,) = left([item], Anna=edit(item, text))
    assert reason in {why["reason"] for why in found["rejected"]}


def test_what_a_writer_let_pass_breaks_nothing():
    for text in (GOOD, BAD):
        assert review.broken(row("a", text), "3x3", RULES) == []


def test_an_edit_that_nearly_equals_another_text_is_out():
    rows = [
        row("a"),
        row("b", Text("A nut.", "A dent? No, a scratch: top left. Defective.", BAD.type)),
    ]
    (_, found) = left(rows, Anna=edit(rows[1], BAD))
    assert [why["reason"] for why in found["rejected"]] == ["near-duplicate text"]


def test_a_decision_about_another_text_or_no_item_is_refused():
    item = row("a")
    with pytest.raises(DataError, match="Anna has judged another text about a "):
        left([row("a", GOOD)], Anna=decision(item, "accept"))
    with pytest.raises(DataError, match=r"Anna has judged a, and .* no such item"):
        left([row("b")], Anna=decision(item, "accept"))


# --- how well, and how fast ----------------------------------------------------------------------


def judged(verdicts: str) -> dict[str, Decision]:
    words: dict[str, Verdict] = {"a": "accept", "r": "reject"}
    return {
        str(n): decision(row(str(n), GOOD), words[v]) for n, v in enumerate(verdicts) if v != " "
    }


def test_kappa_is_of_the_items_that_both_have_judged():
    # of six, three are accepted by both and one rejected: (4/6 - 0.5) / (1 - 0.5), by hand
    found = review.agreement("A", judged("aaaarr "), "B", judged("aaarar a"))
    assert (found.both, found.same, found.why) == (6, 4, None)
    assert found.kappa == pytest.approx((4 / 6 - 20 / 36) / (1 - 20 / 36))


def test_where_kappa_is_not_defined_it_is_said():
    none = review.agreement("A", judged("a "), "B", judged(" a"))
    assert (none.kappa, none.both, none.why) == (None, 0, "no item was judged by both")
    same = review.agreement("A", judged("aaa"), "B", judged("aaa"))
    assert (same.kappa, same.both, same.same) == (None, 3, 3)
    assert same.why is not None and "both always accept" in same.why


def test_an_hour_of_reviewing_has_no_pauses():
    assert review.per_hour([]) is review.per_hour([5.0]) is None
    assert review.per_hour([0.0, 10.0, 20.0]) == 360
    assert review.per_hour([0.0, 10.0, 10.0 + review.PAUSE, 20.0 + review.PAUSE]) == 360


# --- the lists -----------------------------------------------------------------------------------


@pytest.fixture
def build(tmp_path) -> RunFolder:
    """A build that has ended, of four items in each list."""
    folder = RunFolder.create(tmp_path, "built")
    config = compose.compose(["stage=expert_ad", "tracking=none", "stage.words=[3,60]"])
    folder.write_json("config.json", config.model_dump(mode="json"))
    folder.write_json("manifest.json", {"data": {"name": "made", "fingerprint": "0"}})
    rows = []
    for part in ("sft", "grpo"):
        for n in range(2):
            rows.append(row(f"{part}-good-{n}", GOOD, list=part))
            rows.append(row(f"{part}-bad-{n}", BAD, list=part))
    lines = "".join(json.dumps(one) + "\n" for one in rows)
    (folder.path / expert_ad.DRAFTS).write_text(lines, encoding="utf-8")
    expert_ad.write_lists(config, folder)
    return folder


def test_lists_and_card_are_written_as_reviewers_left_them(build, capsys):
    rows = {one["id"]: one for one in expert_ad.lists.rows(build.path / expert_ad.DRAFTS)}
    out, folder = build.path / expert_ad.DATASET, build.path / review.FOLDER
    assert "Nobody has reviewed" in (out / "README.md").read_text(encoding="utf-8")
    text = Text(
        BAD.description,
        "Here I see a scratch on the left. It is a defect, so this is defective.",
        BAD.type,
    )
    review.append(folder, "A|<b>", decision(rows["sft-good-0"], "reject", 0.0))
    review.append(folder, "A|<b>", edit(rows["sft-bad-0"], text, 10.0))
    review.append(folder, "Ben", decision(rows["sft-bad-0"], "accept", 0.0))
    expert_ad.write_lists(expert_ad_config(build), build)
    sft = (out / "sft.json").read_text(encoding="utf-8")
    assert len(json.loads(sft)) == 3 and text.reasoning in sft
    assert len(json.loads((out / "grpo.json").read_text(encoding="utf-8"))) == 4
    (why,) = list(expert_ad.lists.rows(out / "rejected.jsonl"))
    assert why["id"] == "sft-good-0" and why["rejected"][0]["reason"] == "review"
    found = build.summary()["expert_ad"]["review"]
    assert found["items"] == {
        "accepted": 0, "edited": 1, "rejected": 1, "refused": 0, "not judged": 6, "by several": 1,
        "disputed": 1,
    }  # fmt: skip
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "| A\\|&lt;b> | 2 | 0 | 1 | 1 | 360 |" in card and "| review | 1 |" in card
    assert "Cohen's kappa 0.00" in card and "0 of the 1 items" in card
    assert "not judged 6" in capsys.readouterr().out
    for file in folder.iterdir():
        file.unlink()
    expert_ad.write_lists(expert_ad_config(build), build)
    assert len(json.loads((out / "sft.json").read_text(encoding="utf-8"))) == 4


def expert_ad_config(build: RunFolder) -> Any:
    from iad_r1.settings.config import read

    return read(build.config_file)


def test_what_cannot_be_reviewed_is_refused_in_a_sentence(build, tmp_path):
    from iad_r1 import stages

    stage = stages.find("review")
    with pytest.raises(ConfigError, match="needs what is reviewed: init="):
        compose.compose(["stage=review"])
    with pytest.raises(ConfigError, match="nobody has reviewed"):
        stage.check_inputs(compose.compose(["stage=review", f"init={build.path}", "write=true"]))
    build.write_json("summary.json", {})
    config = compose.compose(["stage=review", f"init={build.path}"])
    with pytest.raises(ConfigError, match="this build has not ended"):
        stage.check_inputs(config)
    build.write_json("config.json", {"stage": {"name": "sft"}})
    with pytest.raises(ConfigError, match="is a run of stage=sft"):
        stage.check_inputs(config)


def test_what_a_writer_or_a_reviewer_says_is_text_on_the_page():
    item = row(SCRIPT, Text(SCRIPT, SCRIPT, SCRIPT), product=SCRIPT, picture=SCRIPT)
    own = edit(item, Text(SCRIPT, SCRIPT, SCRIPT))
    broken = review_page.Picture(None, (1, 1), "", SCRIPT)
    shown = review_page.item(item, 0, 1, own, broken, broken) + review_page.notice(SCRIPT)
    shown += review_page.item(item, 0, 1, decision(item, "reject", reason=SCRIPT), broken, broken)
    shown += review_page.head(SCRIPT, 1, [own])
    shown += review_page.team({SCRIPT: {SCRIPT: own}, "B": {SCRIPT: own}}, {SCRIPT: [0], "B": [0]})
    assert "<script" not in shown and shown.count("&lt;script&gt;") > 20
