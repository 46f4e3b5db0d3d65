"""Photographs in, verdicts out: a line, a record and a marked picture for each, as they come."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.text import Text

from iad_r1.data import images
from iad_r1.data.ahead import Ahead
from iad_r1.data.arrivals import Arrival, arrivals, landing, listed, references
from iad_r1.errors import DataError
from iad_r1.judge import verdicts
from iad_r1.judge.verdicts import UNREADABLE, Record, Verdict
from iad_r1.loops.inspector import Inspector, Picture
from iad_r1.loops.opening import note_files
from iad_r1.report import inspected
from iad_r1.settings.config import Config
from iad_r1.settings.predict import PredictSettings
from iad_r1.store.run_folder import RunFolder
from iad_r1.store.starts import weights_files

DEFECTIVE, UNJUDGED = 1, 3  # exit codes
MARKED, HEAT = "marked", "heat"  # the folders of marked pictures and of heat maps
NAMED = 5  # unreadable pictures at the end

Opened = Image.Image | DataError


def run(config: Config, folder: RunFolder) -> int:
    """Judge what is named, or what lands, until there is no more; returns the exit code."""
    stage = config.stage
    assert isinstance(stage, PredictSettings)
    note_files(folder, [*references(config), *weights_files(config.init)])
    goods: list[Picture] = [*references(config)]
    if config.method.name != "patchcore":  # which reads the files one after the other
        goods = [images.upright(path) for path in references(config)]  # one may be broken
    record = Record(folder.path)
    with Inspector(config) as inspector:
        work = Inspection(config, folder, record, inspector, goods)
        try:
            work.judge_all()
        finally:  # also after Ctrl-C, which is how a watch ends
            work.say_summary()
    counts = {word: record.count(word) for word in (*verdicts.WORDS.values(), UNREADABLE)}
    folder.update_summary(pictures=counts, threshold=inspector.threshold(len(goods)))
    if stage.fail_on_defect and counts["defective"]:
        return DEFECTIVE
    return UNJUDGED if counts["no valid answer"] or counts[UNREADABLE] else 0


class Inspection:
    """One run of `stage=predict` at work."""

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        record: Record,
        inspector: Inspector,
        goods: Sequence[Picture],
    ) -> None:
        assert isinstance(config.stage, PredictSettings)
        self.stage, self.folder, self.record = config.stage, folder, record
        self.threads = config.engine.picture_threads
        began = time.perf_counter()
        self.inspector, self.references = inspector, inspector.shown(goods)
        self.ready = inspector.seconds + time.perf_counter() - began
        self.known = {(r["picture"], r["bytes"], r["modified"]) for r in record.rows}
        self.console = Console(highlight=False)
        self.base, self.total = Path(str(self.stage.images)), 0  # 0: as many as land
        self.first: float | None = None  # seconds of the first batch, which is one picture
        self.busy, self.since = 0.0, 0  # seconds, and pictures, after it
        self._forget_half_made()

    def judge_all(self) -> None:
        """Judge every picture that is not recorded yet."""
        with Ahead(_opened, self.threads) as ahead:
            for batch, then in self.batches():
                began = time.perf_counter()
                if judged := self.judge(batch, ahead.take(batch, then)):
                    self._clock(time.perf_counter() - began, judged)

    def batches(self) -> Iterator[tuple[Sequence[Arrival], Sequence[Arrival]]]:
        """Pictures to be judged together, and those that come next if they are known. The first one
        is judged alone, so that there is a verdict at once."""
        stage = self.stage
        if stage.watch:
            folder = Path(str(stage.images))
            for ready in landing(folder, self.known.__contains__, stage.poll, stage.patience):
                yield from _in_batches(ready, stage.batch_size, alone=self.first is None)
            return
        paths = listed(stage.images or [])
        self.base = Path(os.path.commonpath([path.parent for path in paths]))
        found = list(arrivals(paths))
        todo = [one for one in found if one.key not in self.known]
        self.total = len(self.record.rows) + len(todo)
        yield from _in_batches(todo, stage.batch_size, alone=True)

    def judge(self, batch: Sequence[Arrival], opened: Sequence[Opened]) -> int:
        """Verdicts on one batch, shown and recorded; a picture that cannot be read is too, unless
        it may still be written. Returns the number of verdicts."""
        files = {str(one.path): one for one in batch}
        pictures: dict[str, Image.Image] = {}
        for (name, file), picture in zip(files.items(), opened, strict=True):
            if isinstance(picture, Image.Image):
                pictures[name] = picture
            elif file.whole:
                self._keep(file, verdicts.unreadable(file.path, str(picture), **_stamp(file)))
                self.console.print(f"{self._number()}  unreadable: {picture}", style="yellow",
                                   markup=False, soft_wrap=True)  # fmt: skip
        if not pictures:
            return 0
        sample = self.inspector.sample
        asked = [sample(picture, self.references, name) for name, picture in pictures.items()]
        for found in self.inspector.judged(asked):
            file, picture = files[found.picture], pictures[found.picture]
            marked = self._mark(picture, found)
            self._keep(file, verdicts.judged(found, marked, self._heat(found), **_stamp(file)))
            width = self.console.width if self.console.is_terminal else None
            text = inspected.line(
                found, self._number(), str(file.path.relative_to(self.base)), width
            )
            style = inspected.STYLES.get(found.verdict, "yellow")
            self.console.print(Text(text, style), soft_wrap=True)
        return len(pictures)

    def say_summary(self) -> None:
        """How many pictures have which verdict, how fast it went, and where it is written."""
        words = (*verdicts.WORDS.values(), UNREADABLE)
        found = [f"{n:,} {word}" for word in words if (n := self.record.count(word))]
        say = self.console.print
        say(f"\n{len(self.record.rows):,} pictures: {', '.join(found) or 'none judged'}",
            markup=False, soft_wrap=True)  # fmt: skip
        broken = [row["picture"] for row in self.record.rows if row["verdict"] == UNREADABLE]
        if broken:
            more = f" and {len(broken) - NAMED} more" * (len(broken) > NAMED)
            say(f"  unreadable {', '.join(broken[:NAMED])}{more}", markup=False, soft_wrap=True)
        if self.first is not None:
            rate = f", then {self.since / self.busy:.1f} pictures/s" if self.busy else ""
            say(f"  speed      ready in {self.ready:.1f} s, first verdict "
                f"{self.first:.2f} s later{rate}", markup=False, soft_wrap=True)  # fmt: skip
        say(f"  table      {self.record.table}", markup=False, soft_wrap=True)
        if self.stage.annotate != "none":
            say(f"  marked     {self.folder.path / MARKED}", markup=False, soft_wrap=True)

    def _mark(self, picture: Image.Image, found: Verdict) -> str | None:
        """Keep a marked copy of a picture; its path in the run folder."""
        if self.stage.annotate == "none" or (
            self.stage.annotate == "defective" and not found.defective
        ):
            return None
        path = self._path(MARKED, found, ".jpg")
        drawn = inspected.marked(picture, found, self.inspector.grid)
        drawn.save(self.folder.path / path, quality=inspected.QUALITY)
        return path

    def _heat(self, found: Verdict) -> str | None:
        """Keep the heat map of a picture, if there is one; its path in the run folder."""
        if found.heat is None:
            return None
        path = self._path(HEAT, found, ".npy")
        np.save(self.folder.path / path, found.heat)
        return path

    def _path(self, folder: str, found: Verdict, suffix: str) -> str:
        """Where in the run folder something of the next picture is kept."""
        (self.folder.path / folder).mkdir(exist_ok=True)
        stem = Path(found.picture).stem[:80]
        return str(Path(folder, f"{len(self.record.rows) + 1:06d}-{stem}{suffix}"))

    def _forget_half_made(self) -> None:
        """Take away what is kept of pictures without a verdict, as a kill leaves it."""
        for folder, column in ((MARKED, "annotated"), (HEAT, "heat")):
            kept = {row.get(column) for row in self.record.rows}
            for file in (self.folder.path / folder).glob("*"):
                if str(Path(folder, file.name)) not in kept:
                    file.unlink()

    def _keep(self, file: Arrival, row: verdicts.Row) -> None:
        self.record.add(row)
        self.known.add(file.key)

    def _number(self) -> str:
        """Of the last recorded picture."""
        number = len(self.record.rows)
        return f"{number:>{max(4, len(str(self.total)))}}"

    def _clock(self, seconds: float, pictures: int) -> None:
        if self.first is None:
            self.first = seconds
        else:
            self.busy, self.since = self.busy + seconds, self.since + pictures


def _opened(file: Arrival) -> Opened:
    try:
        return images.upright(file.path)
    except DataError as error:
        return error


def _stamp(file: Arrival) -> dict[str, Any]:
    return {"bytes": file.bytes, "modified": file.modified}


def _in_batches(
    files: Sequence[Arrival], size: int, *, alone: bool
) -> Iterator[tuple[Sequence[Arrival], Sequence[Arrival]]]:
    """Pairs of a batch and the one after it; `alone`: the first holds one picture."""
    starts = [*range(0, len(files), size)]
    if alone:
        starts = [0, *range(1, len(files), size)]
    parts = [files[a:b] for a, b in zip(starts, [*starts[1:], len(files)], strict=True) if a < b]
    yield from zip(parts, [*parts[1:], []], strict=True) if parts else ()
