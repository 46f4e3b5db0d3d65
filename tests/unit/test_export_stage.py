"""`stage=export`: tasks for other suites, and what those suites make of them."""

from __future__ import annotations

import base64
import csv
import importlib.util
import io
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml
from miniatures import mmad as miniature
from PIL import Image

from iad_r1.command import compose
from iad_r1.data import images
from iad_r1.errors import ConfigError, DataError
from iad_r1.judge import mmad
from iad_r1.judge.grade import grade
from iad_r1.judge.rates import summarise
from iad_r1.loops import export, results
from iad_r1.settings.config import Config
from iad_r1.stages import export as stage
from iad_r1.store.run_folder import RunFolder
from iad_r1.suites import lmms_eval, vlmevalkit
from iad_r1.suites.items import Asking, Pictures
from iad_r1.types import Completion, Prediction, Sample, StopReason

SAID = ("Yes", "no", "Yes.", "I cannot tell.", "No", "No.", "yes")
LETTERS = ("A", "B", "C", "I cannot tell.", "B.")
TAGGED = (
    "<think>A dent, and no other flaw.</think><location>top</location><type>dent</type>"
    "<answer>Yes</answer>",
    "<think>Yes, it is sound.</think><answer>No</answer>",
    "<answer>Perhaps</answer>",
)
TAGS, SHOWN = Asking("iad_r1_test", 0), Asking("base_test", 1)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two products; one picture is turned by its camera, one has 16 bits, one is a palette's."""
    root, rng = tmp_path_factory.mktemp("data") / "photos", np.random.default_rng(0)
    for product in ("cap", "nut"):
        for folder, count in (("train/good", 3), ("test/good", 3), ("test/dent", 4)):
            place = root / product / folder
            place.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{number:03}.png")
    turned = Image.open(root / "cap/test/good/000.png")
    turned.getexif()[images.EXIF_ORIENTATION] = 6
    turned.save(root / "cap/test/good/000.png", exif=turned.getexif())
    deep = Image.fromarray(rng.integers(0, 2**16, (30, 40), dtype=np.uint16))
    deep.save(root / "nut/test/dent/000.png")
    Image.open(root / "nut/test/good/001.png").quantize(9).save(root / "nut/test/good/001.png")
    return root


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniature(tmp_path_factory.mktemp("data") / "MMAD")


class Exported(NamedTuple):
    folder: Path
    tasks: dict[str, Sequence[Sample]]
    config: Config


Opened = Mapping[str, tuple[Config, Mapping[str, Sequence[Sample]]]]


def composed(suite: str, name: str, root: Path, *more: str) -> Config:
    where = [f"benchmark={name}", f"benchmark.{name}.root={root}", "tracking=none"]
    return compose.compose(["stage=export", f"format={suite}", *where, *more])


@pytest.fixture(scope="module")
def opened(photos: Path, questions: Path, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """Both benchmarks, read once."""
    found = {}
    for name, root in (("photos", photos), ("mmad", questions)):
        config = composed("lmms_eval", name, root)
        folder = RunFolder.create(tmp_path_factory.mktemp("outputs"), name)
        found[name] = config, results.splits(config, export.open_data(config, folder))
    return found


@pytest.fixture
def exported(opened: Opened, tmp_path: Path) -> Callable[..., Exported]:
    """`exported("lmms_eval", "photos", ...)`: the folder, and the samples of each of its tasks."""

    def run(
        suite: str, name: str, asking: Asking = TAGS, pictures: Pictures = "linked"
    ) -> Exported:
        (config, splits), folder = opened[name], tmp_path / "exported"
        folder.mkdir()
        if suite == "lmms_eval":
            tasks = lmms_eval.write(folder, splits, asking, pictures, 64)
        else:
            tasks = vlmevalkit.write(folder, splits, asking, pictures)
        names = [task for task in tasks if task != "iad_r1"]
        return Exported(folder, dict(zip(names, splits.values(), strict=True)), config)

    return run


def answers(samples: Sequence[Sample], said: Sequence[str] | None = None) -> list[str]:
    said = said or (SAID if samples[0].question.options is None else LETTERS)
    return [text for _, text in zip(samples, cycle(said), strict=False)]


def ours(config: Config, samples: Sequence[Sample], said: Sequence[str]) -> list[Prediction]:
    grader = results.open_grader(config)
    return [
        grade(grader, sample, Completion(text, (), (), StopReason.STOP), split="test")
        for sample, text in zip(samples, said, strict=True)
    ]


def same(first: Image.Image, second: Image.Image) -> bool:
    return np.array_equal(np.asarray(first), np.asarray(second))


def lines(folder: Path, task: str) -> list[dict[str, Any]]:
    text = (folder / f"{task}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def table(folder: Path, task: str) -> list[dict[str, str]]:
    csv.field_size_limit(10**9)
    with (folder / f"{task}.tsv").open(encoding="utf-8", newline="") as rows:
        return list(csv.DictReader(rows, delimiter="\t"))


# --- lmms-eval -----------------------------------------------------------------------------------


@pytest.fixture
def utils() -> Iterator[Callable[[Path], Any]]:
    """Load the module of an exported task as lmms-eval does, without anything of ours in it."""
    before = list(sys.path)

    def load(folder: Path) -> Any:
        spec = importlib.util.spec_from_file_location("utils", folder / "utils.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield load
    sys.path[:] = before
    sys.modules.pop("iad_r1_reading", None)


def task_of(folder: Path, name: str, module: Any) -> dict[str, Any]:
    """The YAML of a task, its functions those of the module."""

    class Loader(yaml.SafeLoader):
        pass

    def function(loader: Any, node: Any) -> Any:
        return getattr(module, loader.construct_scalar(node).partition(".")[2])

    Loader.add_constructor("!function", function)
    return yaml.load((folder / f"{name}.yaml").read_text(), Loader)


def check_scores(found: Exported, name: str, said: Sequence[str], score: Any) -> None:
    """That what a task makes of these answers is what an evaluation makes of them."""
    samples = found.tasks[name]
    rows = ours(found.config, samples, said)
    counted = summarise(rows, 0)
    expected = {key: counted[key] for key in ("accuracy", "invalid_rate")}
    if samples[0].question.options is None:
        more = ("balanced_accuracy", "miss_rate", "overkill_rate")
        expected |= {key: counted[key] for key in more}
    else:
        (of_set,) = mmad.table(rows, 0)["sets"].values()
        expected["mmad_average"] = of_set["strict"]["average"]
    assert score == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "said", "asking"),
    [("photos", SAID, SHOWN), ("photos", TAGGED, TAGS), ("mmad", LETTERS, TAGS)],
)
def test_a_task_of_lmms_eval_scores_answers_as_an_evaluation_does(
    exported, utils, name, said, asking
):
    found = exported("lmms_eval", name, asking)
    module = utils(found.folder)
    assert "iad_r1." not in (found.folder / "utils.py").read_text().partition('"""\n')[2]
    for task, samples in found.tasks.items():
        settings, docs = task_of(found.folder, task, module), lines(found.folder, task)
        data = settings["dataset_kwargs"]["data_files"]["test"]
        assert Path(data) == found.folder / f"{task}.jsonl" and settings["task"] == task
        assert settings["generation_kwargs"]["until"] == []  # an empty line would end an answer
        assert [doc[settings["doc_to_target"]] for doc in docs] == [
            sample.solution.answer for sample in samples
        ]
        texts = answers(samples, said)
        of_docs = [
            settings["process_results"](doc, [text]) for doc, text in zip(docs, texts, strict=True)
        ]
        score = {
            metric["metric"]: metric["aggregation"]([row[metric["metric"]] for row in of_docs])
            for metric in settings["metric_list"]
        }
        assert set(score) == set(of_docs[0])
        check_scores(found, task, texts, score)


@pytest.mark.parametrize("pictures", ["linked", "inside"])
def test_a_model_of_lmms_eval_is_shown_the_pictures_and_words_of_an_evaluation(
    exported, utils, pictures
):
    found = exported("lmms_eval", "photos", SHOWN, pictures)
    module = utils(found.folder)
    ((task, samples),) = found.tasks.items()
    written = list(found.folder.glob("images/*.png"))
    assert len(written) == 2 if pictures == "linked" else len(written) > len(samples)
    for sample, doc in zip(samples, lines(found.folder, task), strict=True):
        shown = module.doc_to_visual(doc)
        for picture, each in zip(shown, (sample.references[0], sample), strict=True):
            assert same(picture, images.open_image(each))
        (turn,) = module.doc_to_messages(doc)
        assert [part["type"] for part in turn["content"]] == [
            "text", "image", "text", "image", "text",
        ]  # fmt: skip
        assert "{image}" not in module.doc_to_text(doc)


def test_a_system_turn_stays_one(exported, utils):
    found = exported("lmms_eval", "photos", Asking("base_test_qwen", 0))
    doc = lines(found.folder, next(iter(found.tasks)))[0]
    first, _ = utils(found.folder).doc_to_messages(doc)
    assert first["role"] == "system" and first["content"][0]["text"].startswith("Please answer")
    assert doc["text"].startswith("Please answer by yes or no\nAre there")


# --- VLMEvalKit ----------------------------------------------------------------------------------


def test_a_table_for_vlmevalkit_has_its_columns_and_a_class_that_opens_it(exported):
    found = exported("vlmevalkit", "photos", SHOWN)
    ((task, samples),) = found.tasks.items()
    rows = table(found.folder, task)
    assert list(rows[0]) == [
        "index", "id", "question", "answer", "category", "l2-category", "image_path",
    ]  # fmt: skip
    assert [row["answer"] for row in rows] == [sample.solution.answer for sample in samples]
    config = json.loads((found.folder / "config.json").read_text())
    assert config["data"] == {task: {"class": "ImageYORNDataset", "dataset": task}}
    for row in rows:
        assert len(paths := json.loads(row["image_path"].replace("'", '"'))) == 2
        assert all(Path(path).is_absolute() and Path(path).is_file() for path in paths)


def test_options_have_a_column_each_and_pictures_may_stand_in_the_table(exported):
    found = exported("vlmevalkit", "mmad", TAGS, "inside")
    assert not (found.folder / "images").exists()
    for task, samples in found.tasks.items():
        rows = table(found.folder, task)
        for row, sample in zip(rows, samples, strict=True):
            assert {k: row[k] for k in "ABCD" if row[k]} == dict(sample.question.options or {})
            assert row["question"] == sample.question.text
            whole = row if len(row["image"]) > 64 else rows[int(row["image"])]  # as it reads them
            shown = Image.open(io.BytesIO(base64.b64decode(whole["image"])))
            assert same(shown, images.open_image(sample))
            assert (row["category"] == mmad.NORMAL) == (
                sample.question.subtask == mmad.DETECTION and sample.solution.answer == "B"
            )


@pytest.mark.parametrize("suite", ["lmms_eval", "vlmevalkit"])
def test_a_picture_with_several_questions_is_opened_and_written_once(exported, monkeypatch, suite):
    opened: list[object] = []
    shown = images.open_image

    def counted(sample: Sample) -> Image.Image:
        opened.append(sample.image)
        return shown(sample)

    monkeypatch.setattr(images, "open_image", counted)
    found = exported(suite, "mmad", Asking("base_test", 0), "inside")
    samples = [sample for of_task in found.tasks.values() for sample in of_task]
    assert len(samples) > len(set(opened)) == len(opened)
    if suite == "lmms_eval":
        assert len(list(found.folder.glob("images/*.png"))) == len(opened)
    else:
        texts = [row["image"] for task in found.tasks for row in table(found.folder, task)]
        assert sum(len(text) > 64 for text in texts) == len(opened)


@pytest.mark.parametrize("suite", ["lmms_eval", "vlmevalkit"])
def test_what_is_typed_holds_where_the_path_has_a_space(photos, tmp_path, capsys, suite):
    folder = tmp_path / "my tasks; rm -r $HOME"
    config = composed(suite, "photos", photos, f"to={folder}", "evaluate.prompt=base_test")
    export.run(config, RunFolder.create(tmp_path / "outputs", config.name))
    *_, typed = capsys.readouterr().out.splitlines()
    words = shlex.split(typed.removeprefix("to use it "))
    if suite == "lmms_eval":
        assert words[words.index("--include_path") + 1] == str(folder)
    else:
        assert words[0] == f"LMUData={folder}"
        assert words[words.index("--config") + 1] == str(folder / "config.json")


def test_a_prompt_that_asks_for_tags_is_refused_where_they_are_not_read(exported):
    with pytest.raises(ConfigError, match=r"asks for tags.*evaluate.prompt=base_test"):
        exported("vlmevalkit", "photos")


# --- what is refused -----------------------------------------------------------------------------


def test_a_picture_without_enough_references_is_refused(exported):
    with pytest.raises(DataError, match=r"has 3 good pictures .* fewer than stage\.shots=9"):
        exported("lmms_eval", "photos", Asking("base_test", 9))


def test_the_stage_writes_a_new_folder_and_says_how_to_use_it(photos, tmp_path, capsys):
    config = composed("lmms_eval", "photos", photos, f"to={tmp_path / 'new'}")
    stage.Stage().check_inputs(config)
    folder = RunFolder.create(tmp_path / "outputs", config.name)
    export.run(config, folder)
    assert folder.summary()["export"]["tasks"] == ["iad_r1_photos"]
    assert "--include_path" in (said := capsys.readouterr().out) and "14 questions" in said
    with pytest.raises(DataError, match=r"no empty folder\. Name a new one"):
        stage.Stage().check_inputs(config)


def test_a_suite_has_to_be_named_and_scores_no_places(tmp_path):
    where = ["stage=export", "benchmark=photos", f"benchmark.photos.root={tmp_path}"]
    with pytest.raises(ConfigError, match=r"format=lmms_eval or vlmevalkit(.|\n)*score no places"):
        compose.compose([*where, "location_format=box"])


# --- the suites themselves -----------------------------------------------------------------------


def installed(module: str, package: str) -> Any:
    """A module of a suite; without it the test is skipped."""
    said = f"{module} is not installed: pip install {package}, in an environment of its own"
    return pytest.importorskip(module, reason=said)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "asking"), [("photos", SHOWN), ("mmad", TAGS)])
def test_lmms_eval_itself_opens_the_tasks_and_scores_them_alike(exported, name, asking):
    tasks = installed("lmms_eval.tasks", "lmms_eval==0.7.3")
    found = exported("lmms_eval", name, asking)
    manager = tasks.TaskManager(include_path=str(found.folder), include_defaults=False)
    for task_name, samples in found.tasks.items():
        task = tasks.get_task_dict([task_name], manager)[task_name]
        docs, texts = list(task.test_docs()), answers(samples)
        assert [task.doc_to_target(doc) for doc in docs] == [s.solution.answer for s in samples]
        for doc, sample in zip(docs, samples, strict=True):
            assert same(task.doc_to_visual(doc)[-1], images.open_image(sample))
        rows = [task.process_results(d, [text]) for d, text in zip(docs, texts, strict=True)]
        score = {
            metric: combine([row[metric] for row in rows])
            for metric, combine in task.aggregation().items()
        }
        check_scores(found, task_name, texts, score)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "asking", "pictures"),
    [("photos", SHOWN, "linked"), ("photos", SHOWN, "inside"), ("mmad", TAGS, "linked")],
)
def test_vlmevalkit_itself_opens_the_tables_and_scores_them_alike(
    exported, name, asking, pictures, tmp_path, monkeypatch
):
    found = exported("vlmevalkit", name, asking, pictures)
    monkeypatch.setenv("LMUData", str(found.folder))
    kit = installed("vlmeval.dataset", "ms_vlmeval==0.0.20")

    config = json.loads((found.folder / "config.json").read_text())["data"]
    for task, samples in found.tasks.items():
        opened = getattr(kit, config[task]["class"])(dataset=config[task]["dataset"])
        texts = answers(samples)
        for row, sample in zip(opened.data.to_dict("records"), samples, strict=True):
            *shown, asked = opened.build_prompt(opened.data.iloc[row["index"]])
            assert row["answer"] == sample.solution.answer and asked["type"] == "text"
            picture = Image.open(shown[-1]["value"]).convert("RGB")
            assert same(picture, images.open_image(sample))
        file = tmp_path / f"{task}.xlsx"
        opened.data.drop(columns="image", errors="ignore").assign(prediction=texts).to_excel(
            file, index=False
        )
        score = opened.evaluate(str(file), model="exact_matching", nproc=1)
        value = {k: float(v) for k, v in score.iloc[0].items() if k != "split"}
        rows = ours(found.config, samples, texts)
        counted = summarise(rows, 0)
        if samples[0].question.options is None:
            assert value["Overall"] == pytest.approx(counted["accuracy"])
            halves = (value["good"] + value["defective"]) / 2
            assert halves == pytest.approx(counted["balanced_accuracy"])
        else:
            (of_set,) = mmad.table(rows, 0)["sets"].values()
            assert 100 * value["Overall"] == pytest.approx(counted["accuracy"])
            for subtask in mmad.SUBTASKS[1:]:
                assert 100 * value[subtask] == pytest.approx(of_set["strict"][subtask])
            halves = 50 * (value[mmad.NORMAL] + value[mmad.ANOMALOUS])
            assert halves == pytest.approx(of_set["strict"][mmad.DETECTION])
