"""Data sets below one root: `benchmark=paper`, lists of benchmarks, and what is said of a lack."""

from __future__ import annotations

import shutil
from pathlib import Path

import miniatures
import pytest

from iad_r1 import data
from iad_r1.command import compose
from iad_r1.errors import ConfigError
from iad_r1.settings.config import Config
from iad_r1.settings.data import READERS
from iad_r1.settings.modules import find, names

SIX = {"mvtec": "DS-MVTec", "visa": "VisA", "mpdd": "MPDD", "dagm": "DAGM", "dtd": "DTD",
       "sdd": "SDD"}  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    miniatures.paper(tmp_path / "sets")
    return tmp_path / "sets"


def made(*overrides: str, directory: Path | None = None) -> Config:
    chosen = ["stage=evaluate", "backbone=qwen25vl_3b", "tracking=none", *overrides]
    return compose.compose(chosen, directory)


def folders(config: Config) -> dict[str, str]:
    return {name: found.model_dump()["root"] for name, found in config.benchmark.items()}


def refused(*overrides: str) -> list[str]:
    """A sentence or more for each thing that is wrong."""
    with pytest.raises(ConfigError) as caught:
        made(*overrides)
    return str(caught.value).splitlines()


def test_the_benchmarks_of_the_papers_are_found_below_one_root(root):
    found = made("benchmark=paper", f"benchmark.root={root}")
    assert folders(found) == {name: str(root / folder) for name, folder in SIX.items()}
    tested = data.for_run(found).test
    assert {name: len(samples) for name, samples in tested.items()} == {
        "mvtec": 8, "visa": 8, "mpdd": 8, "dagm": 4, "dtd": 8, "sdd": 4,
    }  # fmt: skip


def test_the_root_may_be_in_the_environment_and_is_read_from_where_it_is_typed(root, monkeypatch):
    wanted = folders(made("benchmark=paper", f"benchmark.root={root}"))
    assert folders(made("benchmark=paper", "benchmark.root=sets", directory=root.parent)) == wanted
    monkeypatch.setenv("IAD_DATA", str(root))
    assert folders(made("benchmark=paper")) == wanted
    elsewhere = root.parent / "elsewhere"
    root.rename(elsewhere)
    assert folders(made("benchmark=paper", f"benchmark.root={elsewhere}")) != wanted
    assert made("benchmark=none").benchmark == {}, "what nobody asks for need not be there"


def test_a_list_has_one_root_too_and_its_own_roots_win(root, tmp_path):
    listed = ["benchmark=[visa,mvtec,photos]", f"benchmark.root={root}"]
    found = folders(
        made(*listed, f"benchmark.visa.root={tmp_path}", f"benchmark.photos.root={root}")
    )
    assert found == {"visa": str(tmp_path), "mvtec": str(root / "DS-MVTec"), "photos": str(root)}


def test_a_folder_may_be_called_as_the_archive_or_others_call_it(root):
    (root / "DTD").rename(root / "dtd-synthetic")
    (root / "DS-MVTec").rename(root / "mvtec_anomaly_detection")
    (root / "MMAD").mkdir()
    (root / "VisA").rename(root / "MMAD" / "VisA")
    found = folders(made("benchmark=paper", f"benchmark.root={root}"))
    below = {name: Path(folder).relative_to(root).as_posix() for name, folder in found.items()}
    assert below == {
        **SIX, "dtd": "dtd-synthetic", "mvtec": "mvtec_anomaly_detection", "visa": "MMAD/VisA",
    }  # fmt: skip


def test_the_copy_that_the_papers_tested_comes_before_the_original(root):
    miniatures.like_mvtec(root / "mvtec_anomaly_detection" / "bottle", "broken_large")
    assert folders(made("benchmark=mvtec", f"benchmark.root={root}")) == {
        "mvtec": str(root / "DS-MVTec")
    }


def test_what_is_not_below_the_root_is_named_with_where_to_get_it(root):
    shutil.rmtree(root / "MPDD")
    (root / "SDD").rename(root / "of sdd")
    (root / "SDD").write_text("not a folder")
    lines = refused("benchmark=paper", f"benchmark.root={root}")
    assert len(lines) == 2
    assert lines[0].startswith(f"benchmark.mpdd: {root} holds no MPDD/. MPDD: github.com/stepanje")
    assert "type benchmark.mpdd.root=<folder>" in lines[0] and "benchmark=[...]" in lines[0]
    assert lines[1].startswith(f"benchmark.sdd: {root} holds no SDD/ or KolektorSDD/. ")
    assert len(made("benchmark=[mvtec,visa,dagm,dtd]", f"benchmark.root={root}").benchmark) == 4


def test_a_root_that_is_not_given_or_not_there_is_said_once(root):
    (line,) = refused("benchmark=paper")
    assert "benchmark.root=<folder>" in line and "IAD_DATA" in line and "DS-MVTec/, VisA/" in line
    (line,) = refused("benchmark=paper", f"benchmark.root={root / 'nowhere'}")
    assert line == f"benchmark.root={root / 'nowhere'}: there is no such folder."


def test_every_public_data_set_says_where_to_get_it_and_what_its_folder_is_called():
    for name in set(names(READERS)) - {"mix", "photos", "synthetic"}:
        reader = find(READERS, name)
        assert reader.SOURCE and reader.FOLDERS, name


def test_what_is_trained_on_lies_below_the_same_root(root):
    chosen = ["stage=sft", "backbone=qwen25vl_3b", "data=expert_ad", "benchmark=mpdd"]
    miniatures.expert_ad(root / "Expert-AD")
    found = compose.compose([*chosen, f"benchmark.root={root}"])
    assert found.data.model_dump()["root"] == str(root / "Expert-AD")
    shutil.rmtree(root / "Expert-AD")
    with pytest.raises(ConfigError) as caught:
        compose.compose([*chosen, f"benchmark.root={root}"])
    assert str(caught.value).startswith(f"data: {root} holds no Expert-AD/. Expert-AD: ")
    assert "benchmark=[" not in str(caught.value)
