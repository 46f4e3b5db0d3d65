"""Of a faulty list the doctor is told every faulty row, and reads the others; a run stops at the
first."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import miniatures
import pytest
import yaml

from iad_r1.data import faults
from iad_r1.errors import DataError
from iad_r1.settings.base import CONF
from iad_r1.settings.data import reader
from iad_r1.types import Sample

TRAINING = ("anomaly_r1", "expert_ad", "photos")


def read(name: str, root: Path) -> list[Sample]:
    """All that a reader reads, told what is shipped but for where it lies."""
    group = "data" if name in TRAINING else "benchmark"
    values = yaml.safe_load((CONF / group / f"{name}.yaml").read_text(encoding="utf-8"))
    module, there = reader(name), {"root": str(root), "lists": str(root)}
    known: dict[str, Any] = {key: there.get(key, value) for key, value in values.items()}
    return list(module.read(module.Settings(**known), 0))


def every_fault(name: str, root: Path) -> tuple[list[str], list[Sample]]:
    found: list[Sample] = []
    with faults.gathered() as told:
        found = read(name, root)
    return [str(error) for error in told], found


def spoil(root: Path, pattern: str, old: str, new: str) -> None:
    """Write something else into all files of a pattern."""
    for file in root.glob(pattern):
        file.write_text(file.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")


def real_iad(root: Path) -> None:
    miniatures.real_iad(root)
    spoil(root, "*/*/*.json", '"anomaly_class": "HS"', '"anomaly_class": "XX"')


def mmad(root: Path) -> None:
    miniatures.mmad(root)
    kinds = '"Options": {"A": "scratch"'
    spoil(root, "mmad.json", f'"Answer": "B", {kinds}', f'"Answer": "?", {kinds}')


def expert_ad(root: Path) -> None:
    miniatures.expert_ad(root)
    spoil(root, "*/*Stage_1.json", '"assistant"', '"bot"')


def anomaly_r1(root: Path) -> None:
    miniatures.anomaly_r1(root)
    spoil(root, "*.jsonl", '"solution": "A"', '"solution": "Z"')


def dagm(root: Path) -> None:
    miniatures.dagm(root)
    spoil(root / "Class2", "Test/Label/Labels.txt", "\t1\t", "\t0\t")


def sdd(root: Path) -> None:
    miniatures.sdd_originals(root)
    for part in (0, 3):
        (root / "kos01" / f"Part{part}_label.bmp").unlink()


def industrial_test(root: Path) -> None:
    turn = {"Answer": "B", "Options": {"A": "Yes.", "B": "No."}}
    rows: dict[str, Any] = {
        f"DAGM/Class1/good/{i}.PNG": {"conversation": [{**turn, "Answer": answer}]}
        for i, answer in enumerate("BCBD")
    }
    rows["DAGM/Class1/good/x.PNG"] = "no object"
    (root / "test_DAGM_format.json").write_text(json.dumps(rows))
    (root / "test_SDD_format.json").write_text("[]")


def visa(root: Path) -> None:
    (root / "split_csv").mkdir()
    rows = [f"candle,{split},{label},candle/{label}.JPG," for split, label in
            (("train", "normal"), ("trial", "normal"), ("test", "odd"))]  # fmt: skip
    table = ["object,split,label,image,mask", *rows]
    (root / "split_csv" / "1cls.csv").write_text("\n".join(table))


def photos(root: Path) -> None:
    rows = ["a.png,bolt,train,0,", "b.png,bolt,sometimes,perhaps,", ",bolt,test,1,",
            "d.png,bolt,test,1,dent,more", "e.png,bolt,test,1,dent"]  # fmt: skip
    (root / "meta.csv").write_text("\n".join(["image,product,split,label,defect_type", *rows]))


SPOILED: dict[str, tuple[Callable[[Path], None], list[str], int]] = {
    "real_iad": (real_iad, ["test 2: anomaly_class", "test 3: anomaly_class"], 5),
    "mmad": (mmad, [
        f"{path}, question {n}: answer is '?'" for path in (
            "broken/000.png", "logical_anomalies/000.png", "bad/000.JPG", "opened/000000.jpg",
        ) for n in (2, 3, 4, 5, 6, 7)
    ], 8),
    "anomaly_r1": (anomaly_r1, ["line 1: the sol", "line 4: the sol", "line 1: the sol"], 5),
    "dagm": (dagm, ["0001.PNG: Labels.txt says good", "0003.PNG: Labels.txt says good"], 14),
    "sdd": (sdd, ["Part0.jpg: its label", "Part3.jpg: its label"], 18),
    "industrial_test": (industrial_test, [
        "1.PNG: expected one question", "3.PNG: expected one question", "x.PNG: an object with",
        "test_SDD_format.json: an object with",
    ], 2),
    "visa": (visa, ["line 3: split='trial'", "line 4: split='test' label='odd'"], 1),
    "photos": (photos, [
        "line 5: more values than columns",
        "line 3: split='sometimes'", "line 3: label='perhaps'", "line 4: no value in column image",
    ], 2),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILED)
def test_every_faulty_row_is_told_and_hides_no_other(name, tmp_path):
    lay_out, wanted, sound = SPOILED[name]
    lay_out(tmp_path)
    told, found = every_fault(name, tmp_path)
    assert len(told) == len(wanted), told
    for say, part in zip(told, wanted, strict=True):
        assert part in say
    assert len(found) == sound
    with pytest.raises(DataError) as ended:
        read(name, tmp_path)
    assert wanted[0] in str(ended.value)


def test_every_item_of_a_list_of_answers_is_told_and_a_run_is_told_how_many(tmp_path):
    expert_ad(tmp_path)
    rows = json.loads(next(tmp_path.glob("*/*Stage_1.json")).read_text())
    told, found = every_fault("expert_ad", tmp_path)
    assert len(told) == len(rows) > 1 and not any("of this list are wrong" in say for say in told)
    assert {sample.split for sample in found} == {"rl"}
    with pytest.raises(DataError, match=rf"item 0.*{len(rows)} of {len(rows)} items of this list"):
        read("expert_ad", tmp_path)
