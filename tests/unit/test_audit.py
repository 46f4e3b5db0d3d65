"""The audit finds collapse and gaming in completions, and says where."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pandas
import pytest
from rich.console import Console

from iad_r1 import rewards
from iad_r1.command import compose
from iad_r1.errors import ConfigError, DataError
from iad_r1.rewards.audit import Audit, AuditLimits, Record, audit
from iad_r1.stages import audit as stage
from iad_r1.store.run_folder import RunFolder

YES = "<location>top left</location><type>scratch</type><answer>Yes</answer>"
NO = "<answer>No</answer>"
LIMITS = AuditLimits(
    answer_gap=0.3,
    entropy=0.2,
    degenerate=0.5,
    distinct=0.2,
    tag_only=0.1,
    disagreement=0.05,
    gap=0.25,
)


def honest(solution: str, word: object = "Seen") -> str:
    return f"<think>{word}.</think>{solution}"


def look(
    records: list[Record],
    name: str | dict = "sc_grpo",
    loose: str | dict = "sc_grpo_released",
    examples: int = 2,
    limits: AuditLimits = LIMITS,
) -> Audit:
    types = rewards.vocabulary("default")
    return audit(records, rewards.load(name), rewards.load(loose), limits, types, examples)


def limits_with(**change: float) -> AuditLimits:
    return LIMITS.model_copy(update=change)


def healthy() -> list[Record]:
    """Two prompts, four completions each, half of each right."""
    records = []
    for group, (solution, other) in enumerate(((YES, NO), (NO, YES))):
        for index in range(4):
            answer = solution if index % 2 else other
            records.append(Record(honest(answer, f"{group} {index}"), solution, f"g{group}"))
    return records


def only(function: str, weight: float = 1.0) -> dict:
    """A set of one component."""
    part = {"function": function, "weight": weight, "gate": None}
    return {"name": "mine", "vocabulary": None, "components": {function: part}}


# --- numbers -------------------------------------------------------------------------------------


def test_nothing_is_flagged_in_healthy_completions() -> None:
    result = look(healthy())
    assert result.flags == ()
    assert (result.n, result.groups, result.degenerate) == (8, 2, 0.0)
    assert result.answers == {"yes": 0.5, "no": 0.5} == result.gold
    assert (result.entropy, result.group_entropy, result.distinct) == (1.0, 1.0, 1.0)
    assert result.statuses == {"ok": 1.0}
    assert (result.tag_only_gain, result.disagreement, result.unplaced) == (0.0, 0.0, {})


def test_components_are_described_where_they_apply() -> None:
    components = look(healthy()).components
    assert list(components) == ["total", "consistency", "answer", "location", "type"]
    assert {name: d.n for name, d in components.items()} == {
        **dict.fromkeys(("total", "consistency", "answer"), 8),
        **dict.fromkeys(("location", "type"), 4),
    }
    total = components["total"]  # 0 0 0 0 2 2 4 4
    assert (total.low, total.mean, total.high, total.zero) == (0.0, 1.5, 4.0, 0.5)
    assert total.std == pytest.approx(math.sqrt((4 * 1.5**2 + 2 * 0.5**2 + 2 * 2.5**2) / 8))
    assert total.quartiles == (0.0, 1.0, 2.5)
    assert components["location"].zero == 0.5


def test_what_earns_nothing_is_counted() -> None:
    records = [Record(honest(NO, i), NO if i else YES, None) for i in range(4)]
    assert look(records).components["answer"].zero == 0.25


def test_a_component_that_never_applies_is_left_out() -> None:
    result = look([Record(honest(NO), NO, None)])
    assert list(result.components) == ["total", "consistency", "answer"]
    assert result.components["total"].quartiles == (2.0, 2.0, 2.0)
    assert (result.groups, result.degenerate, result.group_entropy) == (0, None, None)


def test_groups_of_one_and_nameless_completions_form_no_group() -> None:
    records = [Record(honest(NO), NO, name) for name in (None, None, "a", "b", "b")]
    assert look(records).groups == 1


def test_statuses_are_shares_the_most_frequent_first() -> None:
    records = [Record(text, NO, None) for text in (honest(NO), "No", "No", honest(NO) + "x")]
    shares = look(records).statuses
    assert shares == {"missing tag": 0.5, "ok": 0.25, "text outside tags": 0.25}
    assert next(iter(shares)) == "missing tag"


@pytest.mark.parametrize(
    ("evaluator", "free", "fault"),
    [("strict", "no", "invalid"), ("iadr1_compat", "invalid", "no"), ("mmad_compat", "no", "yes")],
)
def test_answers_are_read_by_the_evaluator_asked_for(evaluator, free: str, fault: str) -> None:
    def answer(completion: str) -> str:
        chosen = rewards.load("answer")
        record = [Record(completion, NO, None)]
        result = audit(record, chosen, chosen, LIMITS, None, 1, evaluator=evaluator)
        return next(iter(result.answers))

    assert answer("No, it is fine") == free
    assert answer("<answer>anomaly</answer>") == fault


@pytest.mark.parametrize(
    ("evaluator", "letter"), [("strict", "invalid"), ("iadr1_compat", "E"), ("mmad_compat", "B")]
)
def test_letters_are_read_by_the_evaluator_asked_for(evaluator, letter: str) -> None:
    chosen = rewards.load("choice")
    records = [Record("C, no: it is B", "B", None)]
    found = audit(records, chosen, chosen, LIMITS, None, 1, evaluator=evaluator)
    assert found.answers == {letter: 1.0}


def test_letters_are_audited_too() -> None:
    texts = ("<think>So B</think><answer>B</answer>", "<think>x</think><answer>C</answer>", "B")
    result = look([Record(t, "B", "g") for t in texts], "roam", "roam_released")
    assert result.answers == {"B": 1 / 3, "C": 1 / 3, "invalid": 1 / 3}
    assert result.gold == {"B": 1.0}
    assert result.statuses == {"ok": 2 / 3, "missing tag": 1 / 3}
    assert result.components["roam"].high == 1.0
    hedged = [Record("<think>B</think><answer>B</answer> or C", "B", None)]
    assert look(hedged, "roam", "roam_released").disagreement == 1.0
    assert look(hedged, "roam", "roam").disagreement == 0.0


# --- flags ---------------------------------------------------------------------------------------


def test_always_yes_is_a_collapse() -> None:
    records = [Record(honest(YES, i), NO if i % 2 else YES, f"g{i // 4}") for i in range(8)]
    result = look(records)
    messages = [flag.message for flag in result.flags if flag.kind == "collapse"]
    assert "100% of the answers are 'yes', which is true of 50%." in messages
    assert "0% of the answers are 'no', which is true of 50%." in messages
    assert "the answers vary by 0.00 bits only." in messages
    assert {flag.kind for flag in result.flags} == {"collapse"}
    shown = result.flags[0].examples
    assert len(shown) == 2 and all(record.solution == NO for record in shown)
    assert result.flags[2].examples == (records[0], records[1]), "what the commonest answer is"


def test_answers_without_variety_are_fine_where_the_truth_has_none() -> None:
    records = [Record(honest(NO, i), NO, None) for i in range(8)]
    assert look(records).flags == ()


def test_an_answer_that_is_never_true_is_a_collapse() -> None:
    """And no answer at all is none: what is invalid is neither said nor true."""
    records = [Record(honest(YES, i), NO, None) for i in range(8)]
    messages = [flag.message for flag in look(records).flags]
    assert "100% of the answers are 'yes', which is true of 0%." in messages
    assert "0% of the answers are 'no', which is true of 100%." in messages
    assert not any("invalid" in flag.message for flag in look([Record("x", NO, None)]).flags)


def test_groups_that_earn_the_same_are_a_collapse() -> None:
    records = [Record(honest(YES, i), YES, f"g{i // 4}") for i in range(8)]
    result = look(records)
    assert result.degenerate == 1.0
    assert [flag.message for flag in result.flags] == [
        "100% of 2 groups earn one and the same reward: they carry no signal."
    ]
    assert (result.flags[0].kind, result.flags[0].examples) == ("collapse", tuple(records[:2]))


def test_the_group_that_is_shown_is_one_without_signal() -> None:
    same = [Record(honest(NO, i), NO, "same") for i in range(4)]
    result = look([*healthy(), *same], limits=limits_with(degenerate=0.3))
    (flag,) = [flag for flag in result.flags if "no signal" in flag.message]
    assert flag.message.startswith("33% of 3 groups") and flag.examples == tuple(same[:2])


def test_one_text_for_everything_is_a_collapse() -> None:
    records = [Record(honest(NO), NO, None)] * 9 + [Record(honest(NO, "else"), NO, None)]
    result = look(records)
    assert result.distinct == 0.1
    (flag,) = result.flags
    assert flag.message == "only 10% of the completions are unique; one occurs 9 times."
    assert (flag.kind, flag.examples) == ("collapse", (records[0],))
    again = look([*records[::-1], Record("else", NO, None)])
    assert again.flags[0].examples == (records[0],), "the text that is said most, wherever it is"


def test_reward_for_tags_alone_is_gaming() -> None:
    """The released set pays its form for empty tags; the strict one pays nothing."""
    records = healthy()
    released = look(records, "sc_grpo_released")
    assert released.tag_only_gain == pytest.approx(0.5)
    (flag,) = [f for f in released.flags if f.kind == "gaming"]
    assert flag.message == "tags without any text earn 0.50 of a mean of 1.25."
    assert flag.examples == (records[1], records[3]), "whose own tags are paid"
    assert len(look(records, "sc_grpo_released", examples=9).flags[0].examples) == 4
    assert look(healthy()).tag_only_gain == 0.0


def test_the_tags_that_are_paid_most_are_shown_first() -> None:
    center = YES.replace("top left", "center")  # where an empty tag is, to the released set
    records = [Record(honest(truth), truth, None) for truth in (NO, center)]
    (flag,) = [f for f in look(records, "sc_grpo_released").flags if f.kind == "gaming"]
    assert flag.examples == tuple(reversed(records))


def test_what_the_tags_earn_is_held_against_what_is_earned_in_the_mean() -> None:
    few = [Record(honest(NO, i), NO if i else YES, None) for i in range(4)]
    half = look(few, only("released:format_base", 0.01), limits=limits_with(tag_only=0.9))
    assert half.tag_only_gain == half.components["total"].mean == 0.01
    assert "gaming" in [flag.kind for flag in half.flags], "all of a small mean is a lot"
    nothing = look(few, only("answer", -1.0), only("answer"))
    assert nothing.components["total"].mean < 0 == nothing.tag_only_gain
    assert "gaming" not in [flag.kind for flag in nothing.flags], "nothing is never too much"


# limit, its value here, the set to look at, the beginning of the flag
AT_THE_LIMIT = [
    ("answer_gap", 0.25, "sc_grpo", "75% of the answers are 'no'"),
    ("degenerate", 0.5, "sc_grpo", "50% of 2 groups"),
    ("tag_only", 0.25, "answer_only_released", "tags without any text earn 0.25"),
    ("disagreement", 0.25, "sc_grpo", "the loose set pays 25%"),
]


@pytest.mark.parametrize(("limit", "value", "name", "message"), AT_THE_LIMIT)
def test_a_number_at_its_limit_is_not_flagged_and_beyond_it_is(
    limit: str, value: float, name: str, message: str
) -> None:
    low = {"answer_gap": 1.0, "degenerate": 1.0, "tag_only": 1.0, "disagreement": 1.0}
    records = at_the_limit(limit)
    at, beyond = (
        [f.message for f in look(records, name, limits=limits_with(**low | {limit: v})).flags]
        for v in (value, value - 0.01)
    )
    assert not any(text.startswith(message) for text in at)
    assert any(text.startswith(message) for text in beyond)


def at_the_limit(limit: str) -> list[Record]:
    """Completions of which a quarter, or half the groups, show the sign."""
    right, wrong = honest(NO, "right"), honest(YES, "wrong")
    if limit == "answer_gap":
        texts = [(right, NO), (right + " ", NO), (right + "  ", YES), (wrong, YES)]
        return [Record(text, truth, None) for text, truth in texts]
    if limit == "degenerate":
        texts = [(right, "a"), (right + " ", "a"), (right, "b"), (wrong, "b")]
        return [Record(text, NO, group) for text, group in texts]
    if limit == "tag_only":  # the form of one in four; the mean is 1
        texts = [right, "<answer>No</answer>", "<answer>No</answer> ", "x"]
        return [Record(text, NO, None) for text in texts]
    return [Record(text, NO, None) for text in ("x" + right + "x", right, right + " ", wrong)]


def test_entropy_and_distinctness_at_their_limits_are_not_flagged() -> None:
    one_answer = [Record(honest(YES, i), NO if i % 2 else YES, None) for i in range(8)]
    assert look(one_answer, limits=limits_with(answer_gap=1.0, entropy=0.0)).flags == ()
    assert len(look(one_answer, limits=limits_with(answer_gap=1.0, entropy=0.01)).flags) == 1
    half = [Record(honest(NO, i), NO, None) for i in (0, 1, 2, 3, 4, 4, 4, 4, 5, 5)]
    assert look(half, limits=limits_with(distinct=0.4)).flags == ()
    assert len(look(half, limits=limits_with(distinct=0.41)).flags) == 1


@pytest.mark.parametrize(
    ("completion", "name", "loose", "gap"),
    [
        (honest(YES), "answer", "answer_only_released", 0.0),
        ("<think>a</think><answer>Yes</answer>", "answer", "answer_only_released", 0.5),
        ("x" + honest(NO), "sc_grpo", "answer", 0.5),
        (honest(NO), "sc_grpo", "answer", 0.0),
    ],
)
def test_a_gap_is_the_difference_of_shares_of_a_perfect_score(
    completion: str, name: str, loose: str, gap: float
) -> None:
    records = [Record(completion, NO, None)]
    for limit, expected in ((gap, 0.0), (gap - 0.01, 1.0)):
        found = look(records, name, loose, limits=limits_with(gap=limit))
        assert found.disagreement == expected


def test_only_completions_beyond_the_gap_are_shown() -> None:
    half, all_ = "<think>a</think><answer>Yes</answer>", honest(NO + NO)
    records = [Record(text, NO, None) for text in (half, all_)]
    result = look(records, "answer", "answer_only_released", limits=limits_with(gap=0.5))
    (flag,) = [f for f in result.flags if "loose set" in f.message]
    assert (result.disagreement, flag.examples) == (0.5, (records[1],))


def test_a_set_that_pays_nothing_for_a_perfect_completion_is_not_compared() -> None:
    records = [Record(honest(NO), NO, None)]
    assert look(records, only("location"), "answer").disagreement == 0.0
    assert look(records, only("consistency"), only("location")).disagreement == 0.0
    wrong = [Record(honest(YES), NO, None)]
    assert look(wrong, only("answer", -1.0), "answer").disagreement == 0.0
    assert look(wrong, "answer", only("answer", -1.0)).disagreement == 0.0


def test_what_the_loose_set_overpays_is_gaming_worst_first() -> None:
    bad = YES.replace("scratch", "s").replace("top left", "copyright top left")
    worse = honest(YES.replace("Yes", "No"), "b") + "tail"
    cheats = [Record(worse, YES, None), Record("x" + honest(bad) + "y", YES, None)]
    result = look([*healthy(), *cheats])
    assert result.disagreement == pytest.approx(0.2)
    (flag,) = [flag for flag in result.flags if flag.kind == "gaming"]
    assert flag.message == (
        "the loose set pays 20% of the completions more than the strict one, by over 25% of a "
        "perfect score."
    )
    assert flag.examples == tuple(cheats)
    assert look([*healthy(), *cheats], examples=1).flags[0].examples == tuple(cheats[:1])


def test_true_types_the_vocabulary_cannot_place_are_named_and_counted() -> None:
    odd = YES.replace("scratch", "logical anomaly")
    result = look([*healthy(), *[Record(honest(odd, i), odd, None) for i in range(3)]])
    assert result.unplaced == {"logical anomaly": 3}
    (flag,) = result.flags
    assert flag.kind == "data"
    assert [record.solution for record in flag.examples] == [odd, odd]


def test_every_type_without_a_place_is_named_with_what_to_do() -> None:
    odd = [YES.replace("scratch", name) for name in ("logical anomaly", "bent lid")]
    records = [Record(honest(truth, i), truth, None) for i, truth in enumerate((odd * 2)[:3])]
    assert look(records).flags[0].message == (
        "the vocabulary cannot place these true types: bent lid (1), logical anomaly (2). Only "
        "their very words earn a type reward; add them to a copy of it (rewards.vocabulary=<file>)."
    )


def test_letters_have_no_types_to_place() -> None:
    assert look([Record("B", "B", None)], "roam", "roam_released").unplaced == {}


def test_without_a_vocabulary_every_type_is_fine() -> None:
    odd = YES.replace("scratch", "logical anomaly")
    records = [Record(honest(odd, i), odd, None) for i in range(3)]
    answer = rewards.load("answer")
    assert audit(records, answer, answer, LIMITS, None, 3).unplaced == {}


def test_no_completions_and_unreadable_solutions_are_refused() -> None:
    with pytest.raises(DataError, match="no completions"):
        look([])
    with pytest.raises(DataError, match="has no answer"):
        look([Record(honest(NO), "perhaps", None)])


def test_an_honest_completion_is_never_a_disagreement() -> None:
    records = [Record(honest(solution, i), solution, None) for i, solution in enumerate((YES, NO))]
    assert look(records).disagreement == 0.0


# --- the stage -----------------------------------------------------------------------------------


def printed(folder: Path, source: Path | None, *overrides: str) -> tuple[Audit | None, str]:
    """The result and what was printed."""
    named = [] if source is None else [f"stage.completions={source}"]
    config = compose.compose(["stage=audit", *named, *overrides])
    console = Console(width=160, record=True, file=io.StringIO())
    return stage.carry_out(config, RunFolder(folder), console), console.export_text()


def audited(folder: Path, source: Path | None, *overrides: str) -> tuple[Audit, str]:
    """The same, of completions."""
    result, text = printed(folder, source, *overrides)
    assert result is not None
    return result, text


def test_the_stage_prints_and_keeps_what_it_finds(tmp_path: Path) -> None:
    rows = [
        {"completion": r.completion, "solution": r.solution, "group": r.group} for r in healthy()
    ]
    rows.append({"completion": "x" + honest(YES.replace("Yes", "No")), "solution": YES, "group": 9})
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)) + "\n\n", encoding="utf-8")
    result, text = audited(tmp_path, file)
    assert result.n == 9 and result.groups == 2
    for part in (
        *("9 completions, 2 groups", "consistency", "location", "entropy of the answers", "gaming"),
        *("paid more by sc_grpo_released", "form: text outside tags", "truth", "x<think>Seen."),
    ):
        assert part in text, part
    kept = json.loads((tmp_path / "audit.json").read_text(encoding="utf-8"))
    assert kept["components"]["total"]["n"] == 9
    assert kept["flags"][0]["kind"] == "gaming"


def test_the_stage_says_when_there_is_nothing_to_flag(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"completion": r.completion, "solution": r.solution} for r in healthy()]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    result, text = audited(tmp_path, file)
    assert result.groups == 0
    assert "nothing to flag" in text and "within a group" not in text


def test_rollouts_of_a_run_are_read_by_default(tmp_path: Path) -> None:
    rollouts = tmp_path / "earlier" / "rollouts"
    rollouts.mkdir(parents=True)
    table = pandas.DataFrame(
        [{"completion": r.completion, "solution": r.solution, "group": r.group} for r in healthy()]
    )
    for step in (1, 2):
        table.to_parquet(rollouts / f"grpo-{step:05d}.parquet", index=False)
    (tmp_path / "earlier" / "config.json").write_text("{}", encoding="utf-8")
    result, _ = audited(tmp_path, None, f"init={tmp_path / 'earlier'}")
    assert (result.n, result.groups) == (16, 4), "a group belongs to one step"


def test_places_in_another_form_than_the_rewards_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"location_format": "box"}', encoding="utf-8")
    asked = ["stage=audit", f"init={tmp_path}"]
    with pytest.raises(ConfigError, match=r"wrote places as box.*Add location_format=box"):
        stage.Stage().check_inputs(compose.compose(asked))
    boxes = ["location_format=box", "rewards=sc_grpo_box"]
    with pytest.raises(ConfigError, match=r"stage\.loose=sc_grpo_released: .*rewards=sc_grpo_box"):
        compose.compose([*asked, *boxes])
    stage.Stage().check_inputs(compose.compose([*asked, *boxes, "stage.loose=sc_grpo_box"]))


def test_predictions_of_an_evaluation_are_read(tmp_path: Path) -> None:
    rows = [
        {
            "id": "a",
            "completion": honest(YES),
            "gold_answer": "yes",
            "gold_location": "top left",
            "gold_type": "scratch",
        },
        {"id": "b", "completion": "x", "gold_answer": "no", "gold_location": None},
        {"id": "c", "completion": "A", "gold_answer": "B", "gold_location": None},
    ]
    file = tmp_path / "sft.test.0shot.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert list(stage.read_records(file)) == [
        Record(honest(YES), YES, "sft.test.0shot/a"),
        Record("x", NO, "sft.test.0shot/b"),
        Record("A", "B", "sft.test.0shot/c"),
    ]


def written(path: Path, rows: list[dict[str, object]], form: str) -> Path:
    """Rows as different tools write them."""
    if form == "array":
        path = path.with_suffix(".json")
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    elif form == "array on one line":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif form == "byte order mark":
        path.write_text("\ufeff" + "\n".join(map(json.dumps, rows)), encoding="utf-8")
    elif form == "conversations":
        for row in rows:
            row["completion"] = [{"role": "assistant", "content": row["completion"]}]
            row["solution"] = [
                {"role": "assistant", "content": [{"type": "text", "text": row["solution"]}]}
            ]
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    elif form == "a group to a row":
        rows = [
            {key: [row[key] for row in pair] for key in ("completion", "solution")}
            | {"group": pair[0]["group"]}
            for pair in (rows[i : i + 2] for i in range(0, len(rows), 2))
        ]
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "form",
    ["array", "array on one line", "byte order mark", "conversations", "a group to a row"],
)
def test_rows_are_read_as_other_tools_write_them(form: str, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"completion": honest(truth), "solution": truth, "group": i // 2}
        for i, truth in enumerate((YES, NO, NO, YES))
    ]
    wanted = [Record(str(r["completion"]), str(r["solution"]), f"rows/{r['group']}") for r in rows]
    assert list(stage.read_records(written(tmp_path / "rows.jsonl", rows, form))) == wanted


def test_a_run_without_completions_is_told_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"init=outputs/<name>/<timestamp>, or stage\.completion"):
        audited(tmp_path, None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a"}', r"rows\.jsonl, row 1 has no `completion`\. It has: text"),
        ('{"completion": "a"}', r"row 1 has neither `solution` nor `gold_answer`"),
        ('{"completion": "a", "solution": "No"}\n{', r"line 2 is not JSON"),
        ('[{"completion": "a", "solution": "No"}', r"rows\.jsonl is not JSON"),
        ('["a"]', r"row 1 is no object with `completion`"),
        ('{"completion": 3, "solution": "No"}', r"row 1: 3 is no text and no conversation"),
        ('{"completion": ["a"], "solution": ["No", "No"]}', r"1 completions, but 2 solutions"),
        (
            '{"completion": [{"role": "user", "content": "a"}], "solution": "No"}',
            r"row 1: .*no conversation with one answer",
        ),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        audited(tmp_path, file)


def test_a_folder_without_completions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no \.jsonl or \.parquet"):
        audited(tmp_path, tmp_path)
    with pytest.raises(DataError, match=r"no \.jsonl or \.parquet"):
        audited(tmp_path, tmp_path / "nowhere.jsonl")


def test_the_types_of_a_data_set_are_looked_up_before_training(tmp_path: Path) -> None:
    file = tmp_path / "meta.csv"
    file.write_text(
        "image,product,split,label,defect_type\n"
        "a.png,cap,train,1,Scratches\nb.png,cap,test,1,pitting\nc.png,cap,test,0,good\n"
        "d.png,cap,train,1,logical_flaw\ne.png,cap,train,1,logical_flaw\nf.png,cap,test,1,\n",
        encoding="utf-8",
    )
    result, text = printed(tmp_path, file)
    assert result is None
    found = {tuple(line.strip("│ ").split()) for line in text.splitlines() if "│" in line}
    assert {tuple(" ".join(row).replace("│", "").split()) for row in found} == {
        ("scratches", "1", "surface", "scratch", "-"),
        ("pitting", "1", "structural", "hole", "pit"),
        ("logical", "flaw", "2", "not", "placed"),
    }
    assert "1 of 3 types cannot be placed" in text
