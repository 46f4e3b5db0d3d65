"""`stage=score`: answers that something else has made, through the same judge."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from miniatures import mmad
from PIL import Image

from iad_r1.command import compose
from iad_r1.errors import ConfigError, DataError
from iad_r1.judge import answers
from iad_r1.judge.predictions import read_predictions
from iad_r1.loops import score
from iad_r1.settings.config import Config
from iad_r1.stages import score as stage
from iad_r1.store.run_folder import RunFolder

PICTURES = {  # of two products that call their files alike: a good part is "no"
    "cap/test/good/000.png": "no",
    "cap/test/dent/000.png": "yes",
    "nut/test/good/000.png": "no",
    "nut/test/dent/000.png": "yes",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for number, name in enumerate(PICTURES):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (40 * number, 90, 90)).save(file)
    return folder


Scored = Callable[..., dict[str, Any]]


@pytest.fixture
def scored(
    root: Path, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Scored:
    """`scored("a.csv", text, ...)`: the summary of a run on a file with that text."""
    if "report" not in request.node.name:  # its figures take a second
        monkeypatch.setattr(score.report, "build", lambda folder: None)

    def run(name: str, text: str, *more: str, data: str = "photos", at: Path = root):
        file = tmp_path / name
        file.write_text(text)
        config = compose.compose(
            ["stage=score", f"predictions={file}", f"benchmark={data}", *more,
             f"benchmark.{data}.root={at}", "tracking=none"]
        )  # fmt: skip
        run.config, run.folder = config, RunFolder.create(tmp_path / "outputs", config.name)
        run.folder.write_json("config.json", config.model_dump(mode="json"))
        stage.Stage().check_inputs(config)
        score.run(config, run.folder)
        return run.folder.summary()

    return run


def table(rows: list[tuple[str, Any]], head: str = "image_path,pred_score") -> str:
    return "\n".join([head, *(f"{name},{value}" for name, value in rows)]) + "\n"


SCORES = list(zip(PICTURES, [1.5, 40.0, 7.25, 7.5], strict=True))


def test_scores_become_answers_by_a_threshold_that_is_called_an_oracle_and_get_a_report(
    scored, capsys
):
    summary = scored("scores.csv", table(SCORES))
    (row,) = summary["results"]
    assert (row["stage"], row["n"], row["balanced_accuracy"], row["auroc"]) == (
        "scored", 4, 100.0, 100.0,
    )  # fmt: skip
    assert row["brier"] is None and row["location_accuracy"] is None
    assert summary["scored"]["threshold"]["value"] == 7.5
    assert summary["scored"]["threshold"]["oracle"]
    assert "an oracle, the best case and no promise" in capsys.readouterr().out
    assert all(point["oracle"] for point in summary["thresholds"])
    assert (scored.folder.path / "report.html").is_file()


def test_a_threshold_of_the_settings_is_taken(scored):
    summary = scored("scores.csv", table(SCORES), "threshold=20")
    assert summary["results"][0]["miss_rate"] == 50.0
    assert summary["scored"]["threshold"] == {
        "value": 20.0, "oracle": False, "chosen_on": "settings"
    }  # fmt: skip


def test_a_threshold_beside_answers_is_refused(scored):
    rows = [(name, "Yes") for name, _ in SCORES]
    with pytest.raises(DataError, match=r"threshold=20 makes answers of scores.*Leave threshold"):
        scored("texts.csv", table(rows, "image_path,answer"), "threshold=20")


def test_texts_are_read_as_an_evaluation_reads_them_and_p_yes_ranks(scored):
    said = ["No, there is no anomaly.", "Yes, there is an anomaly at the left.", "Well.", "Yes"]
    lines = [
        json.dumps({"image": f"/elsewhere/photos/{name}", "answer": text, "p_yes": p})
        for (name, text), p in zip(
            zip(PICTURES, said, strict=True), [0.1, 0.9, 0.4, 0.3], strict=True
        )
    ]
    (row,) = scored("answers.jsonl", "\n".join(lines))["results"]
    assert (row["miss_rate"], row["overkill_rate"], row["invalid_rate"]) == (0.0, 50.0, 25.0)
    assert row["auroc"] == 75.0 and row["brier"] is not None


def test_our_own_predictions_give_the_same_numbers_again(scored):
    first = scored("scores.csv", table([(n, "Yes" if "dent" in n else "No") for n in PICTURES],
                                       "file,answer"))  # fmt: skip
    (file,) = (scored.folder.path / "predictions").glob("*.jsonl")
    assert read_predictions(file)
    again = scored("again.jsonl", file.read_text())
    assert again["results"] == first["results"]


def test_killed_before_any_of_its_files_has_its_name_it_loses_and_repeats_nothing(scored):
    said = [{"image": name, "answer": "Yes", "p_yes": n / 4} for n, name in enumerate(PICTURES)]
    scored("answers.jsonl", "\n".join(map(json.dumps, said)))
    calm, killed = scored.folder, RunFolder.create(scored.folder.outputs, "killed")
    killed.write_json("config.json", calm.read_json("config.json"))
    kills = 0
    while killed_at(kills, scored.config, killed):
        kills += 1
    assert kills >= 4  # manifest, predictions, pictures of the report, summary
    assert contents(killed) == contents(calm)


def killed_at(renames: int, config: Config, folder: RunFolder) -> bool:
    """Judge in a process that is killed as it is about to rename once more than `renames`."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    left, rename = iter(range(renames)), Path.replace

    def counted(file: Path, to: Path) -> Path:
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(file, to)

    try:
        Path.replace = counted  # pyright: ignore[reportAttributeAccessIssue]
        score.run(config, folder)
    finally:
        os._exit(0)


def contents(folder: RunFolder) -> dict[str, bytes]:
    """All files but those that a kill has left half made."""
    files = (file for file in folder.path.rglob("*") if file.is_file() and file.name[0] != ".")
    return {str(file.relative_to(folder.path)): file.read_bytes() for file in files}


@pytest.mark.parametrize("name", ["000.png", "dent/000.png"])
def test_a_file_name_that_several_pictures_share_is_no_name(scored, name):
    with pytest.raises(DataError, match=r"may be .* or .*Give paths from the root"):
        scored("scores.csv", table([(name, 1.0)]))


def test_a_picture_of_another_folder_is_not_taken_for_one_that_is_called_so(scored):
    with pytest.raises(DataError, match="none of 1 rows"):
        scored("scores.csv", table([("bolt/test/dent/000.png", 1.0)]))


def test_rows_and_pictures_without_each_other_are_refused_unless_allowed(scored):
    extra = table([*SCORES, ("bolt/test/dent/000.png", 3.0)])
    with pytest.raises(DataError, match=r"1 rows .* such as bolt/test/dent.*stage.extra=left_out"):
        scored("scores.csv", extra)
    summary = scored("scores.csv", extra, "stage.extra=left_out")
    assert summary["scored"]["extra"] == 1 and summary["results"][0]["n"] == 4
    with pytest.raises(DataError, match=r"1 pictures have no row.*stage.missing=wrong"):
        scored("scores.csv", table(SCORES[:3]))
    summary = scored("scores.csv", table(SCORES[:3]), "stage.missing=left_out")
    assert summary["scored"]["missing"] == 1 and summary["results"][0]["n"] == 3
    texts = table([(name, "Yes") for name in list(PICTURES)[:3]], "image,answer")
    (row,) = scored("texts.csv", texts, "stage.missing=wrong")["results"]
    assert (row["n"], row["invalid_rate"]) == (4, 25.0)


def test_a_row_twice_another_label_and_half_a_file_of_scores_are_refused(scored):
    with pytest.raises(DataError, match=r"line 6 and .*line 2 are both about"):
        scored("scores.csv", table([*SCORES, SCORES[0]]))
    labelled = [(name, f"{value},{'1' if 'good' in name else '0'}") for name, value in SCORES]
    with pytest.raises(DataError, match=r"says that .* is defective, the data .* that it is good"):
        scored("scores.csv", table(labelled, "image,score,gt_label"))
    mixed = [(name, f"{value},{'' if i else 'Yes'}") for i, (name, value) in enumerate(SCORES)]
    with pytest.raises(DataError, match="3 of 4 pictures have a score and no answer"):
        scored("scores.csv", table(mixed, "image,score,answer"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "image,score\nx.png,high\n", "'high' is no number"),
        ("a.csv", "image,score,shots\nx.png,1,0.5\n", "line 2: shots=0.5 is no whole number"),
        ("a.csv", "image,score,shots\nx.png,1,one\n", "line 2: 'one' is no number"),
        ("a.csv", "image,score,n_tokens\nx.png,1,-3\n", "n_tokens=-3 is no whole number"),
        ("a.csv", "", "holds no answers"),
        ("a.csv", "image,score\nx.png\n", "line 2 has 1 cells and the header 2"),
        ("a.csv", "picture,score\nx.png,1\n", "names no picture: it has picture, score"),
        ("a.jsonl", '{"image": "x.png"}\n', "holds neither an answer"),
        ("a.jsonl", '{"image": "x.png", "p_yes": 3}\n', "p_yes=3.0 is no probability"),
        ("a.json", "[1]", "entry 1 is no object"),
        ("a.json", "nothing", "is not JSON"),
        ("a.txt", "yes", "are read from .jsonl, .json and .csv"),
        ("a.json", '[{"gpt_answer": "A"}]', "no image and no question and no correct_answer"),
        ("a.jsonl", "", "holds no answers"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_its_row(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=re.escape(message)):
        answers.read(tmp_path / name)


def test_a_text_in_a_table_may_hold_a_line_separator(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("image,answer\nx.png,Yes\u2028at the left\n", encoding="utf-8")
    assert [row.text for row in answers.read(file)] == ["Yes\u2028at the left"]


def test_a_file_is_asked_for_before_anything_is_read(tmp_path):
    with pytest.raises(ConfigError, match="predictions=<JSONL, JSON or CSV file>"):
        compose.compose(["stage=score", "benchmark=photos", "benchmark.photos.root=."])
    config = compose.compose(
        ["stage=score", "benchmark=photos", "benchmark.photos.root=.", "predictions=gone.csv"],
        tmp_path,
    )
    with pytest.raises(DataError, match="there is no such file"):
        stage.Stage().check_inputs(config)


# --- MMAD's answer files -------------------------------------------------------------------------


def mmad_answers(root: Path, order: Callable[[list[str]], list[str]]) -> list[dict[str, Any]]:
    """All questions answered rightly, as the published scripts write it; `order` puts the texts of
    the options under other letters, as the script of AnomalyGPT does."""
    rows = []
    for image, entry in json.loads((root / "mmad.json").read_text()).items():
        for turn in entry["conversation"]:
            texts = order(list(turn["Options"].values()))
            options = dict(zip("ABCDE", texts, strict=False))
            right = next(k for k, v in options.items() if v == turn["Options"][turn["Answer"]])
            rows.append(
                {"image": image, "question": {"type": "text", "text": "?", "options": options},
                 "question_type": turn["type"], "correct_answer": right, "gpt_answer": right}
            )  # fmt: skip
    return rows


@pytest.mark.parametrize("order", [list, lambda texts: texts[::-1]])
def test_answers_of_mmads_scripts_are_judged_also_in_another_order(scored, tmp_path, order):
    root = mmad(tmp_path / "MMAD")
    rows = mmad_answers(root, order)
    summary = scored("answers.json", json.dumps(rows), data="mmad", at=root)
    (found,) = summary["mmad"]
    assert found["strict"] == found["released"]["average"] == 100.0
    assert sum(row["n"] for row in found["sets"].values()) == len(rows)
    rows[0]["gpt_answer"] = ""
    (found,) = scored("answers.json", json.dumps(rows), data="mmad", at=root)["mmad"]
    assert found["strict"] < 100.0 and found["lenient"] == 100.0


def test_answers_about_other_questions_are_refused(scored, tmp_path):
    root = mmad(tmp_path / "MMAD")
    rows = mmad_answers(root, list)
    with pytest.raises(DataError, match=r"1 answers about .*which has 2 questions"):
        scored("answers.json", json.dumps(rows[1:]), data="mmad", at=root)
    other = [{**rows[0], "question_type": "Defect Analysis"}, *rows[1:]]
    with pytest.raises(DataError, match="answers a question of Defect Analysis"):
        scored("answers.json", json.dumps(other), data="mmad", at=root)
    wrong = [{**rows[0], "correct_answer": "A"}, *rows[1:]]
    with pytest.raises(DataError, match=r"the right answer is 'Yes.' there and 'No.' in the data"):
        scored("answers.json", json.dumps(wrong), data="mmad", at=root)
