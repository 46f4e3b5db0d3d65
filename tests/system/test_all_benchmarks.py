"""Every benchmark through the command line, on miniature trees and with a tiny twin."""

from __future__ import annotations

import csv
from pathlib import Path

import miniatures
import pytest

from iad_r1.settings.base import CONF

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

TWIN = ["backbone=llava_ov_05b", "weights=tiny", "tracking=none"]
SIX = ["mvtec", "visa", "mpdd", "dagm", "dtd", "sdd"]
NO_READERS = {"paper", "none"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All public data sets, each in a folder of its usual name."""
    sets = tmp_path_factory.mktemp("sets")
    miniatures.paper(sets)
    miniatures.expert_ad(sets / "Expert-AD")
    miniatures.goodsad(sets / "GoodsAD")
    miniatures.mvtec_loco(sets / "mvtec_loco_anomaly_detection")
    miniatures.mvtec_ad2(sets / "mvtec_ad_2")
    miniatures.real_iad(sets / "Real-IAD")
    miniatures.mmad(sets / "MMAD")
    miniatures.industrial_test(sets / "Industrial_test")
    miniatures.mpdd(sets / "photographs")
    return sets


def test_from_pa_sft_on_expert_ad_to_the_average_of_the_papers(root, iad, monkeypatch):
    monkeypatch.setenv("IAD_DATA", str(root))
    room = ["evaluate.max_tokens=64", "rollout.max_tokens=64"]  # for the words of its list
    run = iad("data=expert_ad", "benchmark=paper", *TWIN, *room)
    rows = {(r["stage"], r["split"], r["shots"]): r for r in run.summary["results"]}
    for stage in ("base", "sft", "grpo"):
        assert rows[stage, "average of 6", 0]["of"] == SIX
        assert {split for at, split, shots in rows if (at, shots) == (stage, 0)} == {
            *SIX, "average of 6",
        }  # fmt: skip
        found = [rows[stage, split, 0]["balanced_accuracy"] for split in SIX]
        assert rows[stage, "average of 6", 0]["balanced_accuracy"] == pytest.approx(sum(found) / 6)
    # the test half of DAGM alone has no good pictures to show
    assert rows["grpo", "average of 5", 1]["of"] == [split for split in SIX if split != "dagm"]
    assert "dagm has no good pictures to show as references: 0-shot alone" in run.output
    assert "average of 6" in run.output.partition("after PA-SFT")[2]
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    for split in (*SIX, "average of 6"):
        assert f"{split}, 0-shot" in page, split
    assert "unweighted mean of" in page and 'class="notice"' not in page


def test_every_benchmark_is_evaluated_at_two_images_each(root, forked):
    names = sorted({path.stem for path in (CONF / "benchmark").glob("*.yaml")} - NO_READERS)
    photographs = f"benchmark.photos.root={root / 'photographs'}"
    run = forked(
        "stage=evaluate", *TWIN, f"benchmark=[{','.join(names)}]", f"benchmark.root={root}",
        photographs, f"benchmark.industrial_test.lists={root}/Industrial_test/lists",
        "evaluate.limit=2", "evaluate.shots=[0]",
    )  # fmt: skip
    rows = {row["split"]: row for row in run.summary["results"]}
    several = {"mmad", "industrial_test"}  # rows of their own for each of their parts
    chosen = [name for name in names if name not in several]
    chosen += ["industrial_test_DTD", "industrial_test_SDD"]
    subsets = [f"mmad_{name}" for name in ("DS-MVTec", "MVTec-LOCO", "VisA", "GoodsAD")]
    average = f"average of {len(chosen)}"
    assert set(rows) == {*chosen, *subsets, average}
    assert {rows[name]["n"] for name in (*chosen, *subsets)} == {2}
    assert sorted(rows[average]["of"]) == sorted(chosen), (
        "a multiple choice is no verdict to average with others"
    )


def test_the_four_sets_of_mmad_have_a_row_each_and_their_mean(root, forked):
    run = forked("stage=evaluate", *TWIN, "benchmark=mmad", f"benchmark.root={root}",
                 "evaluate.shots=[0]", "evaluate.limit=2")  # fmt: skip
    *sets, mean = run.summary["results"]
    assert [row["split"] for row in sets] == mean["of"] and len(sets) == 4
    assert mean["accuracy"] == pytest.approx(sum(row["accuracy"] for row in sets) / 4)
    with next(run.folder.glob("mmad/answers_0_shot_*_accuracy.csv")).open() as lines:
        *_, last = csv.DictReader(lines)
    assert float(last["Average"]) == pytest.approx(run.summary["mmad"][0]["released"]["average"])
