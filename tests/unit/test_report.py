"""The report of a run folder: complete, partial and broken ones.

The run folders here are made up by `make_run`: random answers of a chosen skill on drawn discs.
They are test data and nothing else; no number in them comes from a model.
"""

from __future__ import annotations

import io
import json
import math
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from markupsafe import Markup
from PIL import Image, ImageDraw

from iad_r1 import report
from iad_r1.errors import DataError
from iad_r1.grid import cells_from_mask, describe
from iad_r1.judge.rates import summarise
from iad_r1.report import (
    cards,
    comparison,
    figures,
    gallery,
    joined,
    overlay,
    page,
    run_data,
    story,
    tables,
    training,
    wording,
)
from iad_r1.schema import Status
from iad_r1.store import metrics
from iad_r1.store.run_folder import RunFolder
from iad_r1.types import Prediction, Sample, Solution

PRODUCTS = {"seen": ("washer", "gear", "tile", "cap"), "new": ("plate", "mesh", "<b>odd & co</b>")}
TYPES = ("scratch", "dent", "stain")
# Probability of: catching a defect, passing a good part, the right cell, the right type.
SKILL = {
    ("pretrain", "seen"): (0.0, 0.0, 0.0, 0.0),
    ("pretrain", "new"): (0.0, 0.0, 0.0, 0.0),
    ("sft", "seen"): (0.90, 0.95, 0.68, 0.6),
    ("sft", "new"): (0.35, 0.85, 0.30, 0.3),
    ("grpo", "seen"): (0.91, 0.95, 0.71, 0.6),
    ("grpo", "new"): (0.66, 0.82, 0.50, 0.4),
}
CONFIG = {
    "name": "test-data", "seed": 3, "init": None, "stage": {"name": "pipeline"},
    "backbone": {"name": "tiny", "source": "built"}, "data": {"name": "synthetic"},
    "rewards": {"name": "sc_grpo"}, "grid": {"name": "3x3", "rows": 3, "cols": 3},
    "tuning": {"name": "full"}, "evaluate": {"splits": ["test"], "limit": None},
    "sft": {"phases": [{"steps": 60}, {"steps": 20}]},
}  # fmt: skip


def drawn(rng: np.random.Generator, index: int, split: str, masks: bool) -> Sample:
    """One 96 x 96 picture: a disc on a noisy ground, half of them with a dark spot."""
    names = PRODUCTS[split]
    product, anomalous = names[index % len(names)], (index // len(names)) % 2 == 0
    hue = 60 + 40 * (index % len(names))
    picture = Image.fromarray(
        rng.normal((hue, 120, 200 - hue), 8, (96, 96, 3)).clip(0, 255).astype(np.uint8)
    )
    draw = ImageDraw.Draw(picture)
    draw.ellipse((14, 14, 82, 82), fill=(hue + 60, 180, 160))
    mask = Image.new("L", (96, 96))
    x, y = (int(v) for v in rng.integers(14, 82, 2))
    spot = (x - 8, y - 6, x + 8, y + 6)
    solution = Solution("No")
    if anomalous:
        draw.ellipse(spot, fill=(50, 30, 30))
        ImageDraw.Draw(mask).ellipse(spot, fill=255)
        place = describe(cells_from_mask(np.asarray(mask), "3x3"), "3x3")
        solution = Solution("Yes", place if masks else None, TYPES[index % 3] if masks else None)
    kept = mask if masks and anomalous else None
    return Sample(f"{split}/{index:04d}", "made", split, product, picture, solution, kept)


def answered(
    rng: np.random.Generator, sample: Sample, stage: str, shots: int, p_yes: bool
) -> Prediction:
    """A made-up answer of the skill that SKILL gives this stage."""
    catches, passes, places, names = SKILL[stage, sample.split]
    gold = sample.solution
    right = rng.random() < (catches if gold.answer == "Yes" else passes)
    answer = {True: "yes", False: "no"}[(gold.answer == "Yes") == right]
    answer = "invalid" if stage == "pretrain" or rng.random() < 0.01 else answer
    said = answer == "yes"
    location = gold.location if rng.random() < places else "top left"
    kind = gold.type if rng.random() < names else "scratch"
    known = gold.location is not None
    text = f"<think>I look at the {sample.product}.</think>" + (
        f"<location>{location or 'center'}</location><type>{kind or 'dent'}</type>" if said else ""
    )
    text += f"<answer>{answer.capitalize()}</answer>" if answer != "invalid" else "<answer>"
    tilt = {"yes": 0.72, "no": 0.25, "invalid": 0.5}[answer] + rng.normal(0, 0.12)
    return Prediction(
        id=sample.id, dataset="made", split=sample.split, product=sample.product, shots=shots,
        gold_answer=gold.answer.lower(), gold_location=gold.location, gold_type=gold.type,
        completion=text, status=Status.MISSING_TAG if answer == "invalid" else Status.OK,
        answer=answer, location=(location or "center") if said else None,
        type=(kind or "dent") if said else None,
        location_correct=said and location == gold.location if known else None,
        type_correct=said and kind == gold.type if known else None,
        p_yes=float(np.clip(tilt, 0, 1)) if p_yes else None, n_tokens=30, stop="stop",
        references=tuple(f"ref/{i}" for i in range(shots)),
    )  # fmt: skip


def make_run(
    folder: Path,
    stages: Sequence[str] = ("pretrain", "sft", "grpo"),
    images: int = 48,
    masks: bool = True,
    p_yes: bool = True,
    pictures: int = 16,
) -> Path:
    """A run folder of made-up answers, in the layout that a real run writes."""
    rng = np.random.default_rng(5)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "manifest.json").write_text(json.dumps({"code": {"commit": "0" * 40}, "gpus": []}))
    samples = {s: [drawn(rng, i, s, masks) for i in range(images)] for s in ("seen", "new")}
    (folder / "predictions").mkdir()
    for split, of_split in samples.items():
        for stage in stages:
            for shots in (0, 1):
                rows = [answered(rng, sample, stage, shots, p_yes) for sample in of_split]
                path = folder / "predictions" / f"{stage}.{split}.{shots}shot.jsonl"
                path.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))
    gallery.save(folder, [s for of in samples.values() for s in of], pictures)
    write_training(folder, stages, rng)
    seconds = {"pretrain": 150.0, "sft": 260.5, "grpo": 340.0, "evaluate": 60.0}
    (folder / "summary.json").write_text(json.dumps({"seconds": seconds}))
    return folder


def write_training(folder: Path, stages: Sequence[str], rng: np.random.Generator) -> None:
    lines: list[dict[str, Any]] = []
    if "sft" in stages:
        lines += [{"stage": "sft", "step": i, "loss": 2 * math.exp(-i / 25) + rng.normal(0, 0.05),
                   "learning_rate": 1e-3} for i in range(80)]  # fmt: skip
    for i in range(110 if "grpo" in stages else 0):
        parts = {"answer": 0.6 + i / 400, "location": 0.3 + i / 300, "consistency": 0.9}
        noisy = {f"reward_{k}": v + rng.normal(0, 0.05) for k, v in parts.items()}
        lines.append({"stage": "grpo", "step": i, **noisy, "reward": sum(noisy.values()),
                      "reward_normal": 1.0, "reward_anomalous": 0.9, "reward_answer_normal": 0.8,
                      "kl": 0.0004 * i + abs(rng.normal(0, 0.002)), "length_mean": 40.0,
                      "length_max": 60, "yes_rate": 0.5, "gold_yes_rate": 0.5,
                      "clip_share": 0.01, "loss": None if i == 50 else rng.normal(0, 0.01),
                      **({"not_finite": {"loss": "nan"}} if i == 50 else {})})  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if "grpo" in stages:
        (folder / "rollouts").mkdir()
        rows = [{"completion": "<think>dark</think><answer>Yes</answer>", "total": 0.5,
                 "parts": {"answer": 1.0}}]  # fmt: skip
        pandas.DataFrame(rows).to_parquet(folder / "rollouts" / "grpo-00100.parquet")


PNG = figures.Drawing.png  # before a fixture replaces it


class Page(HTMLParser):
    """Tags that are open, ids, links and the text of a page; fails on a wrongly closed tag."""

    VOID = ("meta", "img", "input", "br", "link", "hr", "path", "rect", "use", "circle", "line")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.urls: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        assert not self.open, f"never closed: {self.open}"
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self._note(attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(attrs)

    def _note(self, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href"):
                self.urls.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)


def built(folder: Path) -> Page:
    return Page(report.build(folder).read_text(encoding="utf-8"))


@pytest.fixture(scope="module", autouse=True)
def _no_pixels() -> Iterator[None]:
    """The PNG of a figure costs as much as its SVG, so one test draws them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures.Drawing, "png", lambda drawing: b"")
        yield


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("runs") / "test-data" / "complete")
    rng = np.random.default_rng(9)  # nearest good patches beside the model, on one split
    shown = [drawn(rng, i, "new", True) for i in range(48)]
    rows = [answered(rng, sample, "sft", 0, True) for sample in shown]
    judged = [replace(row, p_yes=None, score=3 * (row.p_yes or 0)) for row in rows]
    path = folder / "predictions" / "patchcore.new.0shot.jsonl"
    path.write_text("".join(json.dumps(asdict(row)) + "\n" for row in judged))
    return folder


@pytest.fixture(scope="module")
def complete_page(complete: Path) -> Page:
    return built(complete)


# ------------------------------------------------------------------------------ the page


def test_a_complete_run_has_every_section(complete_page):
    for section in ("found", "results", "changes", "factory", "verdicts", "products", "places",
                    "scores", "gallery", "training", "settings"):  # fmt: skip
        assert section in complete_page.ids, section


def test_the_page_needs_no_other_file_and_no_network(complete_page):
    outside = [url for url in complete_page.urls if not url.startswith(("#", "data:image/jpeg"))]
    assert not outside


def test_every_link_on_the_page_has_its_target(complete_page):
    targets = {url[1:] for url in complete_page.urls if url.startswith("#")}
    assert targets and targets <= set(complete_page.ids)


def test_names_from_the_data_are_escaped(complete, complete_page):
    html = (complete / "report.html").read_text(encoding="utf-8")
    assert "<b>odd & co</b>" not in html
    assert "<b>odd & co</b>" in complete_page.text  # as text


def test_a_threshold_that_the_test_pictures_chose_is_called_an_oracle(complete, complete_page):
    assert all(row["oracle"] for row in tables.thresholds(run_data.load(complete)))
    assert "largest F1 oracle" in complete_page.text
    assert "evaluate.splits=[validation,test]" in complete_page.text


def test_the_page_begins_with_the_verdict_in_one_sentence(complete_page):
    (said,) = re.findall(r"SC-GRPO: on products seen.*?guessing\.", complete_page.text)
    assert said.count(". ") == 0 and "on products new to PA-SFT" in said
    assert complete_page.text.index(said) < complete_page.text.index("run complete")


@pytest.mark.parametrize(
    ("bounds", "said"),
    [([61, 84], "better than guessing"), ([44, 61], "which cannot be told from guessing"),
     ([20, 41], "worse than guessing")],
)  # fmt: skip
def test_the_verdict_says_whether_a_model_only_guesses(bounds, said):
    row = {"stage": "grpo", "split": "seen", "balanced_accuracy": 50.0, "miss_rate": 10.0}
    row |= {"overkill_rate": 90.0, "invalid_rate": 0.0, "ci95": {"balanced_accuracy": bounds}}
    assert story.verdict([row]).endswith(f"), {said}.")


def test_the_verdict_of_good_parts_and_of_questions_needs_no_balanced_accuracy():
    row = {"stage": "sft", "split": "x", "balanced_accuracy": None, "overkill_rate": 12.5,
           "accuracy": 87.5, "gold_yes_rate": 0.0, "invalid_rate": 0.0, "ci95": {}}  # fmt: skip
    assert story.verdict([row]) == "PA-SFT: on x 12.5\xa0% of the good parts are rejected."
    assert story.verdict([{**row, "invalid_rate": 100}]) == "PA-SFT: on x no answer can be read."
    row["gold_yes_rate"] = None
    assert story.verdict([row]) == "PA-SFT: on x 87.5\xa0% of the questions are answered rightly."


def test_whether_answers_follow_from_their_reasoning_is_shown_for_every_stage(tmp_path):
    folder = make_run(tmp_path / "run", stages=("sft", "grpo"), images=8, pictures=0)
    counted = {"n": 8, "without": 1, "consistent_right": 5, "consistent_wrong": 1,
               "contradictory": 2, "defect_but_no": 2, "sound_but_yes": 0, "untold": 0,
               "defects": 3, "place": 1, "type": 0}  # fmt: skip
    rows = [{"stage": stage, "split": "seen", "shots": 0, "reasoning": counted}
            for stage in ("sft", "grpo")]  # fmt: skip
    (folder / "summary.json").write_text(json.dumps({"results": rows}))
    assert [row["stage"] for row in tables.reasoning(run_data.load(folder))] == ["sft", "grpo"]
    page = built(folder)
    assert "reasoning" in page.ids and page.text.count("25.0 % 2") == 2
    assert "1 answers without" in page.text


def test_nearest_good_patches_stand_beside_the_last_stage_and_are_none_themselves(
    complete, complete_page
):
    run = run_data.load(complete)
    assert tables.last_stage(run) == "grpo" and list(run.baselines) == ["new"]
    assert not any("patchcore" in (row["from"], row["to"]) for row in tables.comparisons(run))
    [row] = tables.against_patches(run)
    assert (row["from"], row["to"], row["split"], row["shots"]) == ("patchcore", "grpo", "new", 0)
    patches, model = row["patches"], row["model"]
    assert patches["auroc"] is not None and patches["ece"] is None
    gained = model["balanced_accuracy"] - patches["balanced_accuracy"]
    assert row["change"]["delta"] == pytest.approx(gained)
    said = f"changes balanced accuracy by {wording.points(gained)} points over nearest good patches"
    assert said in complete_page.text and "Beside nearest good patches" in complete_page.text


@pytest.mark.parametrize(("gold", "name"), [("yes", "miss rate"), ("no", "overkill rate")])
def test_of_one_kind_of_pictures_the_rate_that_is_defined_stands_beside_patches(
    complete, gold, name
):
    def only(item: run_data.Evaluation) -> run_data.Evaluation:
        return replace(item, predictions=[p for p in item.predictions if p.gold_answer == gold])

    run = run_data.load(complete)
    evaluations = tuple(map(only, run.evaluations))
    baselines = {split: only(item) for split, item in run.baselines.items()}
    [row] = tables.against_patches(replace(run, evaluations=evaluations, baselines=baselines))
    assert f"changes {name} by" in story.change_sentence(row["change"])


def test_the_headline_numbers_are_those_of_the_predictions(complete, complete_page):
    path = complete / "predictions" / "grpo.new.0shot.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    summary = summarise([Prediction(**row) for row in rows], CONFIG["seed"])
    low, high = summary["ci95"]["balanced_accuracy"]
    shown = f"{summary['balanced_accuracy']:.1f} [{low:.1f}, {high:.1f}]"
    assert shown in complete_page.text


def test_the_papers_numbers_stand_beside_ours_where_its_benchmark_was_tested(
    tmp_path, complete_page
):
    folder = make_run(tmp_path / "run", stages=("sft",), images=8, pictures=0)
    for shots in (0, 1):
        path = folder / "predictions" / f"sft.seen.{shots}shot.jsonl"
        path.rename(path.with_name(f"sft.sdd.{shots}shot.jsonl"))
    chosen = {"backbone": {"name": "llava_ov_05b"}, "benchmark": {"sdd": {}}}
    (folder / "config.json").write_text(json.dumps(CONFIG | chosen))
    page = built(folder)
    assert "published" in page.ids and "T10 prints 96.0" in page.text
    assert "Table 4: every backbone" in page.text
    assert (folder / "tables" / "table4.tex").is_file()
    assert "8 pictures here, 340 in the paper's list" in page.text
    assert "published" not in complete_page.ids


def test_every_section_has_a_link_to_it(complete_page):
    template = Path(page.__file__).parent / "templates"
    text = "".join(file.read_text(encoding="utf-8") for file in template.glob("[gr]*.j2"))
    sections = set(re.findall(r'<section id="(\w+)"', text))
    assert {"mmad", "gallery", "found"} <= sections
    assert sections == set(re.findall(r'<a href="#(\w+)"', text))


def test_what_an_earlier_report_left_is_gone_where_this_one_has_it_not(tmp_path):
    folder = make_run(tmp_path / "run", stages=("sft",), images=8, pictures=0)
    left = [f"figures/{name}" for name in ("roc-old.svg", "roc-old.png", "change-base-sft.png",
                                           "before-and-after.svg")]  # fmt: skip
    left += ["tables/table4.csv", "tables/table7.tex"]
    kept = ["figures/mine.png", "tables/notes.md", "figures/samples/roc-x.png"]
    for name in (*left, *kept):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    report.build(folder)
    assert not [name for name in left if (folder / name).exists()]
    assert all((folder / name).exists() for name in kept), "they are not the report's"
    drawn = {file.stem for file in (folder / "figures").glob("*.svg")}
    assert "roc-seen" in drawn and all(page.FIGURES.fullmatch(f"{name}.svg") for name in drawn)


def test_a_page_shows_as_many_pictures_as_stay_small_and_counts_the_others(complete, monkeypatch):
    run = run_data.load(complete)
    asked = cards.asked(run, cards.views(run))
    assert cards.shown(run, asked) == asked
    monkeypatch.setattr(cards, "PICTURES", 5)
    assert cards.shown(run, asked) == asked[:5]
    sizes = [(complete / picture["image"]).stat().st_size for picture, _ in asked]
    monkeypatch.setattr(cards, "PICTURE_BYTES", sum(sizes[:3]) + 1)
    assert cards.shown(run, asked) == asked[:3]
    assert page._context(run, lambda name, drawing: Markup(""))["left_out"] == len(asked) - 3


def test_heat_maps_of_nearest_good_patches_are_on_a_models_cards_and_wait_to_be_asked_for(tmp_path):
    folder = make_run(tmp_path / "run", stages=("sft", "grpo"), images=8, pictures=2)
    pictures = gallery.read(folder)
    for row in pictures[:3]:
        heat = folder / Path(row["image"]).with_suffix(".heat.png")
        overlay.heat_layer(np.ones((32, 32))).save(heat)
    html = report.build(folder).read_text(encoding="utf-8")
    assert html.count('<image class="patches"') == 3, "once for a picture, not for every answer"
    assert 'class="cards no-patches"' in html and 'name="patches"> heat map' in html
    for file in (folder / "predictions").glob("sft.*"):
        file.rename(file.with_name(file.name.replace("sft.", "patchcore.")))
    for file in (folder / "predictions").glob("grpo.*"):
        file.unlink()
    html = report.build(folder).read_text(encoding="utf-8")
    assert 'class="cards"' in html and 'name="patches" checked> heat map' in html


@pytest.mark.slow
def test_the_report_is_the_same_every_time(complete):
    first = report.build(complete).read_bytes()
    assert report.build(complete).read_bytes() == first


def test_figures_are_kept_as_files_of_their_own(complete, complete_page):
    drawn = sorted(path.name for path in (complete / "figures").glob("*.svg"))
    assert {"balanced_accuracy.svg", "roc-new.svg", "curve-grpo-reward.svg"} <= set(drawn)
    for path in (complete / "figures").glob("*.svg"):
        text = path.read_text()
        assert text.startswith("<svg") and figures.INK not in text and "xmlns" in text, path
        assert path.with_suffix(".png").is_file(), path


def test_a_figure_as_pixels_is_dark_on_white_and_the_same_every_time():
    rows = [{"label": "seen", "delta": 3.0, "ci95": [1, 5]}]
    drawing = figures.differences(rows, "made")
    first = PNG(drawing)
    with Image.open(io.BytesIO(first)) as picture:
        assert picture.size[0] == round(figures.WIDTH * figures.PNG_DPI)
        assert picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
        assert min(picture.convert("L").tobytes()) < 20
    assert PNG(figures.differences(rows, "made")) == first


def test_the_papers_figures_are_drawn_of_our_runs(complete, complete_page):
    """9: reward and length; 22 to 28: bars before and after, with the change in red."""
    for name in ("dynamics-grpo", "before-and-after"):
        assert (complete / "figures" / f"{name}.svg").is_file()
    bars = (complete / "figures" / "before-and-after.svg").read_text()
    rows = {(r["stage"], r["split"], r["shots"]): r["balanced_accuracy"]
            for r in tables.summaries(run_data.load(complete))}  # fmt: skip
    for split in PRODUCTS:  # nothing is right before training, so the change is in points
        assert f"{wording.points(rows['grpo', split, 0])} points" in bars
    point = {"label": "x", "ci95": None, "paper": None}
    pair = [{**point, "stage": "base", "value": 50.0}, {**point, "stage": "sft", "value": 40.0}]
    drawn = figures.bars(pair, "made", wording.STAGES).svg
    assert f"{wording.MINUS}20.0 %" in drawn and "the paper" not in drawn
    beside = figures.bars([{**row, "paper": 60.0} for row in pair], "made", wording.STAGES).svg
    assert "the paper" in beside
    # A set that the first stage did not judge comes first: the arrows still point forward.
    turned = figures.bars([{**pair[1], "label": "first"}, *pair], "made", wording.STAGES).svg
    assert f"{wording.MINUS}20.0 %" in turned and turned.count(figures.RISE) == drawn.count(
        figures.RISE
    )


def test_a_stage_that_logs_no_reward_has_no_dynamics(complete):
    panels = training.panels(run_data.load(complete))
    assert training.dynamics(panels["sft"]) == {}
    both = training.dynamics(panels["grpo"])
    assert {title: list(series) for title, series in both.items()} == {
        "total reward": ["reward"], "completion length, tokens": ["length_mean"]
    }  # fmt: skip


@pytest.mark.slow
def test_pages_work_in_a_browser_and_run_no_script_that_somebody_else_wrote(
    tmp_path, browser_page, monkeypatch
):
    """The report, that of two runs, and their comparison; on a desktop, a phone, and on paper."""
    script = "<script>window.planted=1</script>"
    broken = "<img src=x onerror=window.planted=1>"
    monkeypatch.setitem(PRODUCTS, "new", (f"plate {script}", f"mesh {broken}"))
    monkeypatch.setattr(sys.modules[__name__], "TYPES", (f"dent {script}", "stain", "scratch"))
    runs = [make_run(tmp_path / "outputs" / name / "2026", ("sft", "grpo"), 24) for name in "ab"]
    for run in runs:
        for file in [*run.glob("predictions/*"), run / "gallery.jsonl"]:
            text = file.read_text().replace("I look at", script)
            file.write_text(text.replace("new/0000", f"new/{script}.png"))
        for row in gallery.read(run):
            heat = run / Path(row["image"]).with_suffix(".heat.png")
            overlay.heat_layer(np.ones((8, 8))).save(heat)
        rows = tables.summaries(run_data.load(run))
        (run / "summary.json").write_text(json.dumps({"results": rows, "seconds": {}}))
        report.build(run)
    both = RunFolder(tmp_path / "both")
    both.write_json("config.json", {})
    joined.gather(both, [str(run) for run in runs])
    found = comparison.compare(comparison.load([str(run) for run in runs]), False, 0)
    found.content["changed"].append({**found.content["results"][0], "id": f"new/{script}.png",
        "product": script, "from": "A", "to": "B", "gold": "yes", "before": "no", "after": "yes",
        "change": "mended"})  # fmt: skip
    comparison.write(found, tmp_path / "compared", 20)
    page = browser_page
    pages = [runs[0] / "report.html", both.path / "report.html", tmp_path / "compared/compare.html"]
    for file in pages:
        for width in (1280, 390):
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme, media="screen")
                page.set_viewport_size({"width": width, "height": 800})
                page.goto(file.as_uri())
                assert page.evaluate("document.documentElement.scrollWidth") == width, file
                dark = page.evaluate("getComputedStyle(document.body).color")
                assert (dark == "rgb(230, 233, 238)") == (scheme == "dark")
        assert page.evaluate("window.planted") is None, file
        assert page.evaluate("document.scripts.length") == 1, "ours alone"
        assert page.evaluate("document.images.length") > 4
        assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        assert script in page.inner_text("body"), "it is text"
        assert script in page.text_content(".trace")
        page.emulate_media(media="print", color_scheme="dark")  # on paper it is light
        assert page.evaluate("getComputedStyle(document.body).color") == "rgb(28, 33, 40)"
        assert not page.is_visible("#gallery-controls") and not page.is_visible("nav")
        page.emulate_media(media="screen")
        cards = page.locator("#gallery-cards .card:visible")
        every = cards.count()
        page.select_option("select[name=verdict]", "wrong")
        assert 0 < cards.count() < every
        shown = page.locator("#gallery-cards .card:visible .answer:visible .chip")
        assert set(shown.all_inner_texts()) == {"wrong"}
        page.select_option("select[name=verdict]", "")
        page.select_option("select[name=product]", f"plate {script}")
        names = [card.get_attribute("data-product") for card in cards.all()]
        assert names and set(names) == {f"plate {script}"}
        page.select_option("select[name=product]", "")
        layer = page.locator("#gallery-cards .patches")
        assert layer.count() == page.locator("#gallery-cards .card").count(), "one on every picture"
        assert not layer.first.is_visible()
        page.check("input[name=patches]")
        assert layer.first.is_visible()
        page.uncheck("input[name=overlay]")
        assert page.locator("#gallery-cards .picture svg:visible").count() == 0
        if page.locator("#factory-controls").count():
            cell = page.locator("#factory-table .missed").first
            before = cell.inner_text()
            page.fill("input[name=prior]", "2")
            assert float(cell.inner_text()) == pytest.approx(4 * float(before), abs=0.21)


def test_every_picture_carries_every_stages_answer(complete, complete_page):
    html = (complete / "report.html").read_text(encoding="utf-8")
    assert html.count('<article class="card"') == 32
    for key in ("v0", "v1", "v2", "v3", "v4", "v5"):
        assert html.count(f'class="answer {key}" data-verdict') == 32


def test_steps_that_were_not_finite_are_named(complete_page):
    assert "loss was nan at step 50 of grpo" in complete_page.text


# ------------------------------------------------------------------------------- honesty


def test_a_difference_that_could_be_chance_is_said_to_be_unclear(complete):
    run = run_data.load(complete)
    changes = tables.comparisons(run)
    unclear = [row for row in changes if row["verdict"] == "not clear"]
    clear = [row for row in changes if row["verdict"] != "not clear"]
    assert unclear and clear
    for row in unclear:
        assert row["ci95"][0] <= 0 <= row["ci95"][1]
        if row["n_changed"]:
            assert "includes zero" in story.change_sentence(row)
    for row in clear:
        assert story.change_sentence(row).endswith(("better.", "worse."))


def test_fewer_misses_are_better_and_more_are_worse():
    rises = {"delta": 5.0, "ci95": [2.0, 8.0]}
    falls = {"delta": -5.0, "ci95": [-8.0, -2.0]}
    assert tables.verdict("miss_rate", rises) == tables.verdict("type_accuracy", falls) == "worse"
    assert tables.verdict("miss_rate", falls) == tables.verdict("type_accuracy", rises) == "better"
    assert tables.verdict("miss_rate", {"delta": 1.0, "ci95": [0.0, 2.0]}) == "not clear"


def test_the_page_says_that_one_seed_and_drawn_images_prove_little(complete_page):
    assert "one run with seed 3" in complete_page.text
    assert "say nothing about real parts" in complete_page.text


def test_a_model_that_always_says_yes_is_warned_about(tmp_path):
    folder = make_run(tmp_path / "run", stages=("sft",), images=24, pictures=2)
    path = folder / "predictions" / "sft.seen.0shot.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({**row, "answer": "yes"}) + "\n" for row in rows))
    assert "answers yes to 100.0 % of these images" in built(folder).text


def test_a_summary_that_contradicts_the_predictions_is_pointed_out(tmp_path):
    folder = make_run(tmp_path / "run", stages=("sft",), images=24, pictures=2)
    result = {"stage": "sft", "split": "new", "shots": 0, "balanced_accuracy": 99.5}
    (folder / "summary.json").write_text(json.dumps({"results": [result]}))
    assert "summary.json says 99.5" in built(folder).text


def test_a_multiple_choice_is_reported_by_its_accuracy(tmp_path):
    folder = make_run(tmp_path / "run", stages=("sft",), images=24, masks=False, p_yes=False)
    for path in (folder / "predictions").iterdir():
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows = [{**row, "gold_answer": "ABCD"[i % 4], "answer": "A"} for i, row in enumerate(rows)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = built(folder).text
    assert "accuracy 25.0" in " ".join(text.split()).replace(" %", "")
    assert "Only normal parts" not in text and "hardly looks" not in text
    assert "Says defective to" not in text and "without both kinds" not in text


# ------------------------------------------------------------------------------- partial


def test_a_run_without_grpo_masks_scores_or_pictures_still_reads_well(tmp_path):
    folder = make_run(tmp_path / "run", stages=("sft",), masks=False, p_yes=False, pictures=0)
    (folder / "manifest.json").unlink()
    (folder / "summary.json").unlink()
    found = built(folder)
    for section in ("places", "scores", "changes", "gallery"):
        assert section not in found.ids
    assert {"results", "factory", "products", "training"} <= set(found.ids)
    assert "manifest.json is missing" in found.text


def test_a_run_that_was_only_trained_shows_how_training_went(tmp_path):
    folder = make_run(tmp_path / "run", stages=("sft", "grpo"), images=8)
    for path in (folder / "predictions").glob("*"):
        path.unlink()
    (folder / "manifest.json").write_text('{"status": "stopped"}')
    found = built(folder)
    assert "training" in found.ids and "results" not in found.ids
    assert "This run did not finish (stopped)" in found.text
    assert "Intervals cover" not in found.text, "there are none"
    assert "Nothing was evaluated in this run" in found.text


def test_a_split_of_good_parts_only_has_no_balanced_accuracy_and_no_crash(tmp_path):
    folder = make_run(tmp_path / "run", stages=("sft", "grpo"), images=24)
    for path in (folder / "predictions").glob("*.new.*"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        good = [row for row in rows if row["gold_answer"] == "no"]
        path.write_text("".join(json.dumps(row) + "\n" for row in good))
    assert "Only normal parts were tested" in built(folder).text
    assert wording.headline({"accuracy": 90.0, "gold_yes_rate": 0.0})[0] == "overkill_rate"
    gained = tables.reference_gain(run_data.load(folder))
    assert "overkill_rate" in {row["metric"] for row in gained if row["split"] == "new"}


@pytest.mark.parametrize("gold", ["yes", "no"])
def test_a_model_that_is_right_about_pictures_of_one_kind_is_not_warned_about(tmp_path, gold):
    folder = make_run(tmp_path / "run", stages=("sft",), images=24, pictures=0)
    config = {**CONFIG, "evaluate": {"at_miss": 5.0, "at_overkill": 5.0}}
    (folder / "config.json").write_text(json.dumps(config))
    for path in (folder / "predictions").iterdir():
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        kept = [{**row, "answer": gold} for row in rows if row["gold_answer"] == gold]
        path.write_text("".join(json.dumps(row) + "\n" for row in kept))
    found = built(folder)
    assert "hardly looks" not in found.text
    assert "What a threshold of the score costs" in found.text
    assert wording.headline({"accuracy": 90.0, "gold_yes_rate": 100.0})[0] == "miss_rate"


def test_of_several_models_none_comes_before_another(complete):
    run = run_data.load(complete)
    labels = {"pretrain": "a_model", "sft": "b_model", "grpo": "c_model"}
    evaluations = tuple(replace(item, stage=labels[item.stage]) for item in run.evaluations)
    joined = replace(run, evaluations=evaluations)
    assert tables.comparisons(joined) == []
    assert tables.last_stage(joined) == "a_model", "the same whatever the hashes of names are"


def test_pictures_that_are_gone_are_counted(tmp_path):
    folder = make_run(tmp_path / "run", stages=("sft",), images=24, pictures=4)
    next((folder / "figures" / "samples").glob("*.jpg")).unlink()
    assert "1 of 8 pictures named in gallery.jsonl are gone" in built(folder).text


# -------------------------------------------------------------------------------- broken


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"holds no config\.json.*init=outputs"):
        report.build(tmp_path)


def test_an_empty_run_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DataError, match="nothing to report"):
        report.build(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "{", r"config\.json: not JSON"),
        ("summary.json", "[]", r"summary\.json: holds a list"),
        ("metrics.jsonl", '{"stage": "sft", "step": 0}\n{"lo', r"metrics\.jsonl, line 2: not JSON"),
        ("metrics.jsonl", "{}\n", r"metrics\.jsonl, line 1: has no stage"),
        ("gallery.jsonl", "{}\n", r"gallery\.jsonl is broken"),
        ("predictions/sft.seen.0shot.jsonl", '{"id": "a"}\n', "line 1: .*missing"),
        ("predictions/sft.seen.0shot.jsonl", '{"colour": 1}\n', "line 1: not a prediction"),
        ("predictions/answers.jsonl", "{}\n", "is not named"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path, name, content, message):
    folder = make_run(tmp_path / "run", stages=("sft",), images=8, pictures=1)
    (folder / name).write_text(content)
    with pytest.raises(DataError, match=message):
        report.build(folder)


# ------------------------------------------------------------------------------- numbers


def evaluation(folder: Path, stage: str, split: str) -> run_data.Evaluation:
    run = run_data.load(folder)
    return next(e for e in run.evaluations if (e.stage, e.split, e.shots) == (stage, split, 0))


def test_the_cell_table_counts_every_placed_defect_once(complete):
    item = evaluation(complete, "grpo", "new")
    place = tables.places(item, run_data.Grid(3, 3))
    assert place is not None
    summary = summarise(item.predictions, 0)
    assert sum(place["gold"]) == summary["n_located"]
    right = sum(place["confusion"][cell][cell] for cell in range(9))
    assert 100 * right / summary["n_located"] == pytest.approx(summary["location_accuracy"])
    assert place["chance"]["uniform"] == pytest.approx(100 / 9)


def test_places_are_read_beside_what_guessing_would_give(complete, complete_page):
    item = tables.main_evaluations(run_data.load(complete))[0]
    place = tables.places(item, run_data.Grid(3, 3))
    assert place is not None
    hits, start = place["scores"], "the cell of the defect is named"
    row = complete_page.text.partition(start)[2][:80]
    assert hits["hit"] < hits["hit_detected"]
    for number in (hits["hit"], hits["hit_detected"], hits["chance"]["hit"]["always_center"]):
        assert f"{number:.1f}" in row
    assert f"lies {hits['distance']:.2f} cells from the right one" in complete_page.text


def test_the_type_table_agrees_with_type_accuracy(complete):
    item = evaluation(complete, "grpo", "new")
    table = tables.types(item)
    assert table is not None
    right = sum(row["right"] for row in table["rows"])
    n = sum(row["n"] for row in table["rows"])
    summary = summarise(item.predictions, 0)
    assert (n, 100 * right / n) == (summary["n_typed"], summary["type_accuracy"])


def test_products_come_worst_first_with_their_change(complete):
    run = run_data.load(complete)
    table = tables.products(run, evaluation(complete, "grpo", "seen"))
    scores = [row["balanced_accuracy"] for row in table["rows"]]
    assert scores == sorted(scores) and table["before"] == "sft"
    assert table["macro"]["worst_product"] == table["rows"][0]["product"]
    assert sum(row["n"] for row in table["rows"]) == 48


def test_a_repeated_step_of_a_resumed_run_counts_once(tmp_path):
    folder = make_run(tmp_path / "run", stages=("sft",), images=8, pictures=0)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "sft", "step": 79, "loss": 123.0}\n')
    steps, values = training.panels(run_data.load(folder))["sft"]["loss"]["loss"]
    assert len(steps) == 80 and values[-1] == 123.0


def test_curves_that_belong_together_share_a_panel(complete):
    panels = training.panels(run_data.load(complete))["grpo"]
    assert list(panels)[:3] == ["reward", "reward parts", "loss"]
    assert set(panels["reward"]) == {"reward", "reward_normal", "reward_anomalous"}
    assert set(training.readable(panels["reward parts"])) == {"answer", "location", "consistency"}
    assert set(panels["reward parts, normal images"]) == {"reward_answer_normal"}
    assert (
        not training.leads("clipped tokens, share")
        and "clip_share" in panels["clipped tokens, share"]
    )


def test_a_running_mean_keeps_a_constant_and_skips_gaps():
    assert figures.running_mean([1.0] * 30) is None
    smooth = figures.running_mean([2.0] * 60 + [math.nan] + [2.0] * 60)
    assert smooth == [2.0] * 121


# ------------------------------------------------------------------------------ overlays


def test_the_outline_follows_the_masks_border():
    mask = np.zeros((20, 30), dtype=np.uint8)
    mask[5:10, 8:20] = 1
    numbers = [float(n) for n in re.findall(r"-?\d+\.\d", overlay.outline(mask))]
    xs, ys = numbers[::2], numbers[1::2]
    assert (min(xs), max(xs)) == (8.0, 20.0) and (min(ys), max(ys)) == (5.0, 10.0)


def test_a_mask_that_touches_the_edge_is_closed_there():
    path = overlay.outline(np.ones((4, 6)))
    assert path.count("M") == path.count("Z") == 1
    assert overlay.outline(np.zeros((4, 6))) == ""


def test_cells_tile_the_picture():
    run_grid = run_data.Grid(2, 3)
    boxes = overlay.rectangles(range(6), run_grid, 90, 40)
    assert sum(w * h for _, _, w, h in boxes) == 90 * 40
    assert boxes[0] == (0, 0, 30, 20) and boxes[5] == (60, 20, 30, 20)


def test_what_a_model_writes_cannot_become_markup():
    text = cards.trace('<think>x</think><script>alert("1")</script>')
    assert "<script>" not in text and "&lt;script&gt;" in text
    assert '<span class="tag">&lt;think&gt;</span>' in text


def test_a_card_says_what_training_mended(complete):
    run = run_data.load(complete)
    views = cards.views(run)
    made = cards.cards(run, views, cards.asked(run, views))
    by_key = [{a["key"]: a for a in card["answers"]} for card in made]
    grpo = next(view for view in views if (view["stage"], view["shots"]) == ("grpo", 0))
    before = views[grpo["before"]]
    assert (before["stage"], cards.default_view(views)) == ("sft", grpo["key"])
    changes = {answers[grpo["key"]]["change"] for answers in by_key}
    assert "mended" in changes
    for answers in by_key:
        was, now = (answers[key]["verdict"] for key in (before["key"], grpo["key"]))
        expected = {(False, True): "mended", (True, False): "spoilt"}
        change = expected.get((was == "right", now == "right"), "")
        assert answers[grpo["key"]]["change"] == change


def test_the_first_pictures_come_from_every_split(complete):
    run = run_data.load(complete)
    views = cards.views(run)
    made = cards.cards(run, views, cards.asked(run, views))
    assert [card["split"] for card in made[:4]] == ["seen", "new", "seen", "new"]
    assert len({card["product"] for card in made[:14]}) == 7


def test_the_factory_table_uses_the_starting_prior(complete_page, complete):
    run = run_data.load(complete)
    rows = page._factory(tables.summaries(run))
    assert rows and all(row["view"]["defective"] == 50.0 for row in rows)
    assert "10,000 parts of which 0.5 % ( 50.0 ) are defective" in complete_page.text


def test_stage_report_rebuilds_the_named_run(tmp_path, capsys):
    from iad_r1 import stages
    from iad_r1.command import compose

    folder = make_run(tmp_path / "earlier", stages=(), images=0, pictures=0)
    write_training(folder, ("sft",), np.random.default_rng(5))
    config = compose.compose(["stage=report", f"init={folder}"])
    stages.find("report").run(config, RunFolder(tmp_path))
    assert (folder / "report.html").is_file()
    assert str(folder / "report.html") in capsys.readouterr().out


def test_replaced_rows_keep_their_meaning(complete):
    """`replace` on a prediction changes what the card says: the card reads it, nothing else."""
    run = run_data.load(complete)
    row = run.evaluations[0].predictions[0]
    assert cards.verdict(replace(row, answer="invalid")) == "unreadable"
    assert cards.verdict(replace(row, answer=row.gold_answer)) == "right"


if __name__ == "__main__":  # python tests/unit/test_report.py <folder>: to look at one
    print(report.build(make_run(Path(sys.argv[1]), images=240, pictures=24)))


def test_the_published_accuracies_of_mmad_stand_beside_ours(tmp_path):
    (tmp_path / "predictions").mkdir()
    config = {**CONFIG, "backbone": {**CONFIG["backbone"], "name": "qwen25vl_7b"},
              "weights": {"name": "published"}}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(0)
    found = [
        replace(
            answered(rng, drawn(rng, i, "seen", True), "grpo", 1, False),
            id=f"mmad/VisA/candle/test/bad/{i}.JPG#0", dataset="VisA", gold_answer="A",
            answer="AB"[i % 4 == 0], subtask="Defect Analysis", gold_option="a", p_yes=None,
            split="mmad_VisA",
        )
        for i in range(20)
    ]  # fmt: skip
    file = tmp_path / "predictions" / "base.mmad_VisA.1shot.jsonl"
    file.write_text("".join(json.dumps(asdict(row)) + "\n" for row in found))
    (tmp_path / "summary.json").write_text("{}")
    words = " ".join(" ".join(built(tmp_path).words).split())
    section = words.partition("Beside MMAD's published Qwen2.5-VL-7B-Instruct, 1-shot")[2]
    assert "VisA: 20 questions here, 10,622 published." in section
    assert "73.3 +1.7 [" in section  # published, and 15 of 20 less that
    assert "Among all models" not in section, "one set is no average of four"


def test_every_number_that_is_logged_is_a_curve_of_the_report(complete, tmp_path):
    folder = shutil.copytree(complete, tmp_path / "run")
    names = [one.name.replace(metrics.PART, "own") for one in metrics.METRICS
             if one.section != "eval" and one.name != "phase"]  # fmt: skip
    line = {"stage": "grpo", "step": 0, **dict.fromkeys(names, 0.5)}
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    curves = {
        name for panel in training.panels(run_data.load(folder))["grpo"].values() for name in panel
    }
    assert curves == set(names)
