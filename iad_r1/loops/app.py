"""The page of `stage=app`: photographs are dropped, verdicts are shown, in a session of each user.

It asks nobody outside: no telemetry, no fonts or scripts from elsewhere. What is dropped is kept in
a folder of its own, for an hour or until the page ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio

from iad_r1 import nearest
from iad_r1.data import images
from iad_r1.data.arrivals import references
from iad_r1.errors import DataError, IadError
from iad_r1.judge import verdicts
from iad_r1.judge.verdicts import Row
from iad_r1.loops import pages
from iad_r1.loops.inspector import Inspector
from iad_r1.report import verdict_page
from iad_r1.settings.config import Config
from iad_r1.settings.predict import AppSettings
from iad_r1.types import Sample

USER = "inspector"  # the name beside the token
SWEEP, KEPT = 600, 3600  # seconds between two looks at what was dropped, and that it is kept


def run(config: Config, token: str | None) -> None:
    """Serve the page until Ctrl-C."""
    with Inspector(config) as inspector, serving(Desk(config, inspector), token) as address:
        pages.wait(address, USER, token)


class Desk:
    """What judges for the page."""

    def __init__(self, config: Config, inspector: Inspector) -> None:
        assert isinstance(config.stage, AppSettings)
        self.config, self.stage, self.inspector = config, config.stage, inspector
        self.patches = config.method.name == "patchcore"
        self.most = config.patchcore.pictures if self.patches else max(config.evaluate.shots)
        self.given: tuple[Sample, ...] = ()
        if config.stage.references is not None or not self.patches:
            self.given = self._shown(references(config))

    def judge(
        self, pictures: Sequence[str] | None, goods: Sequence[str] | None, rows: list[Row]
    ) -> Iterator[tuple[str, str, list[Row], None]]:
        """As verdicts come: their cards, the table of the session, its rows, and None for the
        pictures, which are taken off the page."""
        pictures, goods = pictures or (), goods or ()
        compared = self.patches and (len(goods) > 0 or not self.given)
        needed = nearest.LEAST if compared else 0
        said = verdict_page.complaint(self.stage, len(pictures), len(goods), self.most, needed)
        judged: list[tuple[Row, str | None]] = []
        try:
            shown = () if said else self._references(goods)
            size = self.stage.batch_size
            for start in range(0, 0 if said else len(pictures), size):
                judged += self._judged(pictures[start : start + size], shown)
                done = [*rows, *(row for row, _ in judged)]
                yield verdict_page.cards(judged), verdict_page.session(done), done, None
        except IadError as error:
            said = str(error)
        if said:
            done = [*rows, *(row for row, _ in judged)]
            yield verdict_page.cards(judged, [said]), verdict_page.session(done), done, None

    def _references(self, goods: Sequence[str]) -> tuple[Sample, ...]:
        return self._shown(goods) if goods else self.given

    def _shown(self, goods: Sequence[str | Path]) -> tuple[Sample, ...]:
        """Good pictures, each of which can be read; they are remembered for as long as their files
        stay the same, so those that are compared with are read from them."""
        if self.patches:
            try:
                return self.inspector.shown(goods)
            except DataError as error:
                raise _told(error, goods) from None
        return self.inspector.shown([_opened(path) for path in goods])

    def _judged(
        self, batch: Sequence[str], shown: tuple[Sample, ...]
    ) -> Iterator[tuple[Row, str | None]]:
        """A row and the marked picture of each file, in their order."""
        opened: list[Any] = []
        for path in batch:
            try:
                opened.append(_opened(path))
            except DataError as error:
                opened.append(error)
        samples = [
            self.inspector.sample(picture, shown, name=str(number))
            for number, picture in enumerate(opened)
            if not isinstance(picture, DataError)
        ]
        found = iter(self.inspector.judged(samples) if samples else ())
        for path, picture in zip(batch, opened, strict=True):
            name = Path(path).name
            if isinstance(picture, DataError):
                yield verdicts.unreadable(Path(name), str(picture)), None
            else:
                answer = replace(next(found), picture=name)
                marked = verdict_page.jpeg(picture, answer, self.inspector.grid)
                yield verdicts.judged(answer, None), marked


def _opened(path: str | Path) -> Any:
    """The picture in a file that was dropped. Raises DataError, without the folder it lies in."""
    try:
        return images.upright(Path(path))
    except DataError as error:
        raise _told(error, [path]) from None


def _told(error: DataError, files: Sequence[str | Path]) -> DataError:
    """The error without the folders of files that were dropped."""
    said = str(error)
    for path in files:
        said = said.replace(str(path), Path(path).name)
    return DataError(said)


@contextmanager
def serving(desk: Desk, token: str | None) -> Iterator[str]:
    """Inside, the page is served, at the address that is given."""
    stage = desk.stage
    with pages.serving(
        lambda: build(desk), stage, USER, token, verdict_page.style(), stage.most_megabytes
    ) as address:
        yield address


def build(desk: Desk) -> gradio.Blocks:
    """The page itself."""
    stage, most = desk.stage, desk.most
    with gradio.Blocks(
        title="Inspection", analytics_enabled=False, delete_cache=(SWEEP, KEPT)
    ) as page:
        gradio.Markdown(f"# Inspection\n{_judge(desk)}. A picture is {_decides(desk)}.")
        rows = gradio.State([])
        with gradio.Row():
            with gradio.Column(scale=1, min_width=300):
                pictures = gradio.File(
                    label=f"Photographs, {stage.most_pictures} at most",
                    file_count="multiple",
                    file_types=["image"],
                    height=170,
                    elem_id="pictures",
                )
                goods = gradio.File(
                    label=f"Good pictures of the same product, {most} at most",
                    file_count="multiple",
                    file_types=["image"],
                    height=170,
                    elem_id="references",
                    visible=most > 0,
                )
                button = gradio.Button("Judge", variant="primary")
            with gradio.Column(scale=2, min_width=320):
                found = gradio.HTML(EMPTY, js_on_load=None, elem_id="verdicts")
        history = gradio.HTML(js_on_load=None, elem_id="session")
        button.click(
            desk.judge,
            [pictures, goods, rows],
            [found, history, rows, pictures],
            api_visibility="private",
            show_progress_on=[found],
        )
    return page


EMPTY = '<p class="iad-soft">Drop photographs, and press Judge.</p>'


def _judge(desk: Desk) -> str:
    return "Nearest good patches" if desk.patches else desk.config.backbone.name


def _decides(desk: Desk) -> str:
    """What makes a picture defective, in words."""
    stage, measure = desk.stage, "score" if desk.patches else "P(yes)"
    if stage.miss_rate is not None:
        return f"defective from the {measure} on that misses {stage.miss_rate:g} % in validation"
    if stage.threshold is not None:
        return f"defective from {measure} {stage.threshold:g} on"
    if desk.patches:
        return "defective above score 1, which good pictures seldom reach"
    return "defective where the model says so"
