"""What was found by opening pictures is kept between runs, and not believed where it may be old."""

from __future__ import annotations

import functools
import io
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from miniatures import mask, picture
from PIL import Image
from rich.console import Console

from iad_r1 import data
from iad_r1.command import compose
from iad_r1.data import cache, images, mix
from iad_r1.errors import DataError
from iad_r1.grid import Grid
from iad_r1.settings.config import Config
from iad_r1.stages import doctor
from iad_r1.store.run_folder import RunFolder
from iad_r1.types import Dataset, Mask, Sample, Shapes, Solution

Opened = list[str]


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which a test keeps what it found; files just written count as settled."""
    monkeypatch.setenv("IAD_CACHE", str(tmp_path / "kept"))
    monkeypatch.setattr(cache, "SETTLED", 0.0)
    return tmp_path / "kept" / cache.NAME


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Photographs with masks, one of several pages, one on a plain surface, one turned."""
    root = tmp_path / "parts" / "lid"
    for part in ("train", "test"):
        for kind in ("good", "dent"):
            for i in range(4):
                path = picture(root / part / kind / f"{i}.png")
                if kind == "dent":
                    mask(root / "ground_truth" / "dent" / f"{part}_{i}.png")
                    path.rename(path.with_name(f"{part}_{i}.png"))
    pages = [Image.new("RGB", (24, 24), (i, 90, 9)) for i in (40, 200)]
    pages[0].save(root / "train" / "good" / "pages.tif", save_all=True, append_images=pages[1:])
    grain = np.random.default_rng(0).integers(118, 123, (64, 64), np.uint8)
    turned = Image.Exif()
    turned[images.EXIF_ORIENTATION] = 6
    Image.fromarray(grain[:, :48]).save(root / "train" / "good" / "plain.png", exif=turned)
    return root.parent


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[Opened]:
    """The names of all picture files that are opened."""
    names: Opened = []
    plain = Image.open

    def noted(file: Path) -> Image.Image:
        names.append(Path(file).name)
        return plain(file)

    monkeypatch.setattr(Image, "open", noted)
    yield names


@functools.cache
def composed(*options: str) -> Config:
    return compose.compose(
        ["stage=sft", "backbone=qwen25vl_3b", "tracking=none", "data=photos", "data.root=elsewhere",
         "data.validation_share=0.3", *options]
    )  # fmt: skip


def read(root: Path, *options: str) -> Dataset:
    """As a run that begins does: nothing is remembered from before."""
    images._REMEMBERED.pictures.clear()
    images._sizes.clear()
    images.several_pages.clear()
    config = composed(*options)
    there = config.data.model_copy(update={"root": str(root)})
    return data.for_run(config.model_copy(update={"data": there}))


def everything(dataset: Dataset) -> list[Sample]:
    return [*dataset.sft, *dataset.validation["seen"]]


def test_a_second_run_opens_no_picture_and_no_mask_and_reads_the_same(kept, root, opened):
    first = read(root)
    sizes = [images.size(sample) for sample in everything(first)]
    paged, names = set(images.several_pages), set(opened)
    assert {"pages.tif", "plain.png", "train_0.png"} <= names and paged
    opened.clear()
    assert read(root) == first and not opened
    assert [images.size(sample) for sample in everything(first)] == sizes and not opened
    assert (64, 48) in sizes and images.several_pages == paged


def test_a_folder_that_is_named_otherwise_is_the_same_folder(kept, root, opened, monkeypatch):
    first = read(root)
    opened.clear()
    monkeypatch.chdir(root.parent)
    assert read(Path(root.name)).fingerprint == first.fingerprint and not opened


def test_what_is_kept_of_hashes_is_all_that_the_leak_check_compares(kept, root, opened):
    first = read(root, "stage=pipeline")
    copy = root / "lid" / "test" / "good" / "copy.png"
    copy.write_bytes((root / "lid" / "train" / "good" / "0.png").read_bytes())
    opened.clear()
    assert read(root, "stage=pipeline").counts["leaks"] == first.counts["leaks"] + 1
    assert set(opened) == {"copy.png"}


@pytest.mark.parametrize("change", ["mtime", "ctime", "size"])
def test_a_changed_picture_is_opened_anew(kept, root, opened, change):
    first = read(root)
    changed = root / "lid" / "train" / "good" / "0.png"
    before = changed.stat()
    if change == "size":
        changed.write_bytes(changed.read_bytes() + b"more")
    else:  # the same size, as of a picture without compression
        content = changed.read_bytes()
        changed.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    if change != "mtime":  # what copies files may set their times
        os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns))
    opened.clear()
    assert read(root).fingerprint != first.fingerprint
    assert opened == ["0.png"]


def test_a_changed_mask_another_grid_and_another_rule_are_looked_at_anew(kept, root, opened):
    places = {s.solution.location for s in everything(read(root)) if s.mask}
    assert places == {"top right"}
    masked = {f"{part}_{i}.png" for part in ("train", "test") for i in range(4)}
    opened.clear()
    whole = Image.new("L", (24, 24))
    whole.paste(255, (1, 18, 5, 22))
    whole.save(root / "lid" / "ground_truth" / "dent" / "train_1.png")
    places = {s.solution.location for s in everything(read(root)) if s.mask}
    assert places == {"top right", "bottom left"} and set(opened) == {"train_1.png"}
    opened.clear()
    words = {s.solution.location for s in everything(read(root, "grid=5x5")) if s.mask}
    assert words.isdisjoint(places) and set(opened) == masked
    opened.clear()
    read(root, "grid.mask_rule=multi")
    assert set(opened) == masked


def test_how_a_mask_is_read_is_part_of_the_question(kept, root):
    """Each of its settings, also those that are yet to come."""
    told = {"inverted": True, "drawn_on": "shown", "threshold": 0.7}
    assert {one.name for one in fields(Mask)} == {"files", *told}
    file = root / "lid" / "ground_truth" / "dent" / "train_1.png"
    Image.fromarray(np.repeat(np.arange(24, dtype=np.uint8)[:, None] * 10, 24, 1)).save(file)
    image = root / "lid" / "train" / "dent" / "train_1.png"
    plain = Sample("a", "d", "", "lid", image, Solution("Yes"), Mask((file,)))
    with cache.Kept() as known:
        mix.inspect(plain, Grid(3, 3), "multi", True, known)
        for name, value in told.items():
            other = replace(plain, mask=replace(Mask((file,)), **{name: value}))
            found = mix.inspect(other, Grid(3, 3), "multi", True, known)
            assert found.marked == mix.inspect(other, Grid(3, 3), "multi", True).marked, name


def test_the_shapes_of_an_annotation_are_part_of_the_question(kept, root):
    file = root / "lid" / "train" / "good" / "0.png"
    sides = [(0.0, 0.0, 0.2, 0.0, 0.2, 0.2), (0.8, 0.8, 1.0, 0.8, 1.0, 1.0)]
    marked = [Sample("a", "d", "", "lid", file, Solution("Yes"), Shapes((side,))) for side in sides]
    with cache.Kept() as known:
        photos = [mix.inspect(s, Grid(3, 3), "multi", True, known) for s in marked * 2]
    found = [photo.sample.solution.location for photo in photos]
    assert found == ["top left", "bottom right"] * 2


def test_other_code_or_another_library_finds_everything_anew(kept, root, opened, monkeypatch):
    first = read(root)
    opened.clear()
    monkeypatch.setattr(cache, "_finder", lambda: "of another version")
    assert read(root) == first and "0.png" in opened


def test_a_file_that_was_just_written_is_not_kept(kept, root, opened, monkeypatch):
    monkeypatch.setattr(cache, "SETTLED", 3600.0)
    read(root)
    opened.clear()
    read(root)
    assert "0.png" in opened


def test_a_picture_that_is_broken_or_mislabelled_is_refused_in_every_run(kept, root):
    read(root)
    (root / "lid" / "train" / "good" / "0.png").write_bytes(b"no picture")
    for _ in range(2):
        with pytest.raises(DataError, match=r"0\.png: this image cannot be read"):
            read(root)
    picture(root / "lid" / "train" / "good" / "0.png")
    Image.new("L", (24, 24)).save(root / "lid" / "ground_truth" / "dent" / "train_1.png")
    for _ in range(2):
        with pytest.raises(DataError, match=r"train_1\.png: this mask is empty"):
            read(root)


def harm_all(file: Path) -> None:
    file.write_bytes(b"this is no table" * 400)


def harm_one_answer(file: Path) -> None:
    with sqlite3.connect(file) as table:
        table.execute("UPDATE found SET answer = replace(answer, 'top right', 'top left')")
    table.close()


def harm_the_layout(file: Path) -> None:
    file.unlink()
    with sqlite3.connect(file) as table:
        table.execute("CREATE TABLE found (something INTEGER)")
    table.close()


def put_a_file_in_place_of_the_folder(file: Path) -> None:
    file.unlink()
    file.parent.rmdir()
    file.parent.write_text("a file")


def take_the_right_to_write(file: Path) -> None:
    """As of a folder that somebody else has filled, also for root, who may write anywhere."""
    file.unlink()
    file.parent.rmdir()
    file.parent.symlink_to("/proc/nothing/here")


@pytest.mark.parametrize(
    "harm",
    [harm_all, harm_one_answer, harm_the_layout, put_a_file_in_place_of_the_folder,
     take_the_right_to_write],
)  # fmt: skip
def test_where_what_was_kept_cannot_be_used_it_is_said_once_and_files_are_opened(
    kept, root, opened, capsys, harm
):
    first = read(root)
    assert not capsys.readouterr().out
    harm(kept)
    opened.clear()
    assert read(root) == first and "0.png" in opened
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1 and f"{kept} cannot be used (" in said[0] and "IAD_CACHE" in said[0]


def test_a_run_does_not_wait_long_for_another_one_that_writes(kept, root, monkeypatch, capsys):
    first = read(root)
    picture(root / "lid" / "train" / "good" / "another.png")
    monkeypatch.setattr(cache, "PATIENCE", 0.0)
    other = sqlite3.connect(kept, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert len(everything(read(root))) == len(everything(first)) + 1
    assert "database is locked" in capsys.readouterr().out
    other.close()


def test_two_runs_at_once_keep_what_both_find(kept, tmp_path):
    files = [picture(tmp_path / f"{i}.png") for i in range(4)]
    with cache.Kept() as one, cache.Kept() as other:
        for at, file in enumerate(files):
            (one if at % 2 else other).found([file], [], lambda at=at: {"at": at})
    with cache.Kept() as known:
        found = [known.found([file], [], lambda: {"at": None})["at"] for file in files]
    assert found == [0, 1, 2, 3]


KILLED = """
import sys
from pathlib import Path
from iad_r1.data import cache
cache.SETTLED, cache._AT_ONCE = 0.0, 1
with cache.Kept() as kept:
    for at in range(10**9):
        kept.found([Path(sys.argv[1])], [at], lambda: {"at": at})
        print(at, flush=True)
"""


def test_a_run_that_is_killed_while_it_writes_leaves_what_can_be_read(kept, tmp_path, capsys):
    file = picture(tmp_path / "a.png")
    writer = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(file)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    for _ in range(20):
        last = int(writer.stdout.readline())
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    with cache.Kept() as known:
        found = [known.found([file], [at], lambda: {})["at"] for at in range(last + 1)]
    assert found == list(range(20)) and not capsys.readouterr().out


def test_the_doctor_opens_every_file_and_keeps_what_it_finds(kept, root, opened, monkeypatch):
    """A disk that fails changes what is in a file and none of its times."""
    check = compose.compose(["stage=doctor", "tracking=none", "data=photos", f"data.root={root}"])
    console = Console(file=io.StringIO())

    def ok() -> bool:
        images._REMEMBERED.pictures.clear()
        out = RunFolder.create(root.parent, "doctor")
        return doctor.carry_out(check, out, console)["ok"]

    monkeypatch.setattr(cache, "_stamp", lambda files: b"as it was" if files else None)
    assert ok()
    opened.clear()
    read(root)
    assert not opened
    broken = root / "lid" / "train" / "good" / "0.png"
    broken.write_bytes(broken.read_bytes()[:900])  # behind its header
    read(root)
    assert not ok()


def test_another_threshold_of_soft_masks_reads_them_anew(kept, root, opened):
    soft = np.zeros((24, 24), np.uint8)
    soft[16:, 16:], soft[:3, :3] = 100, 255
    for path in root.rglob("ground_truth/dent/*.png"):
        Image.fromarray(soft).resize(Image.open(path).size, Image.Resampling.NEAREST).save(path)

    def places(*options: str) -> set[str | None]:
        defects = [s.solution for s in everything(read(root, *options)) if s.mask is not None]
        return {solution.location for solution in defects}

    assert places() == {"bottom right"}
    assert places("data.masks_threshold=0.5") == {"top left"}
    opened.clear()
    assert places("data.masks_threshold=0.5") == {"top left"} and not opened
