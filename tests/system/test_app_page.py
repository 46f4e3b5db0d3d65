"""The page of `stage=app` in a browser: pictures are dropped, verdicts are read."""

from __future__ import annotations

import csv
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from iad_r1.backbones import tiny
from iad_r1.command import compose
from iad_r1.data import mix
from iad_r1.grid import as_grid
from iad_r1.loops.app import USER, Desk, serving
from iad_r1.loops.inspector import Inspector
from iad_r1.loops.opening import corpus
from iad_r1.store.run_folder import RunFolder
from iad_r1.types import Prediction, Sample

pytestmark = pytest.mark.slow
PLANTED = "<script>document.title = 'planted'</script><b>${1 + 1} {{value}}</b>"
SIZES = [f"data.sizes.{part}=8" for part in ("sft", "rl", "validation", "test")]


class Planting:
    """The answers of a model, with another text."""

    def __init__(self, judge: Any) -> None:
        self.judge = judge

    def answers(
        self, samples: Sequence[Sample], split: str, shots: int
    ) -> Iterator[list[Prediction]]:
        text = (
            f"<think>{PLANTED}</think><location>top left</location><type>{PLANTED}</type>"
            "<answer>Yes</answer>"
        )
        for part in self.judge.answers(samples, split, shots):
            yield [
                replace(one, completion=text, answer="yes", location="top left", type=PLANTED)
                for one in part
            ]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """What judges with tiny random weights, on a free port."""
    config = compose.compose([*SIZES, "evaluate.max_tokens=24", "evaluate.max_pixels=4096"])
    folder = RunFolder.create(tmp_path_factory.mktemp("run"), "before")
    folder.write_json("config.json", config.model_dump(mode="json"))
    dataset = mix.load(config.data, as_grid(config.grid), config.grid.mask_rule, config.seed)
    tiny.build(folder.checkpoint("sft"), corpus(config, dataset), 400, 4096, seed=0)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = compose.compose(["stage=app", f"init={folder.path}", f"stage.port={port}"])
    return Desk(config, Inspector(config))


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Two photographs, and a file that is none."""
    files = [tmp_path / name for name in ("good.png", "part.png", "broken.png")]
    for file, value in zip(files, (90, 140), strict=False):
        Image.new("RGB", (400, 300), (value, value, 120)).save(file)
    files[-1].write_bytes(b"no picture")
    return files


def test_pictures_are_dropped_verdicts_read_and_the_table_downloaded(
    desk, photos, browser_page, tmp_path, monkeypatch
):
    shots = os.environ.get("IAD_SCREENSHOTS")
    asked: list[str] = []
    browser_page.on("request", lambda request: asked.append(request.url))
    with serving(desk, None) as address:
        page = browser_page
        page.goto(address)
        page.locator("#references input[type=file]").set_input_files(photos[0])
        page.locator("#references .file-name, #references .filename").first.wait_for()

        def judge(*files: Path) -> None:
            before = page.locator("#session tbody tr").count()
            page.locator("#pictures input[type=file]").set_input_files(files)
            page.locator("#pictures .file-name, #pictures .filename").nth(len(files) - 1).wait_for()
            page.get_by_role("button", name="Judge").click()
            page.locator("#session tbody tr").nth(before + len(files) - 1).wait_for()

        judge(*photos[1:])
        cards = page.locator("#verdicts article")
        assert "part.png" in cards.nth(0).inner_text()
        assert cards.nth(0).locator("img").evaluate("image => image.naturalWidth") > 0
        assert "UNREADABLE" in cards.nth(1).inner_text()
        assert "broken.png: this image cannot be read" in cards.nth(1).inner_text()
        assert "/" not in cards.nth(1).inner_text() and "Traceback" not in page.content()

        monkeypatch.setattr(desk.inspector, "judge", Planting(desk.inspector.judge))
        judge(photos[1])
        assert page.locator("#verdicts .iad-text").first.inner_text() == PLANTED
        assert PLANTED in page.locator("#session tbody tr").first.inner_text()
        assert page.title() == "Inspection"
        assert "DEFECTIVE" in cards.first.inner_text()

        with page.expect_download() as download:
            page.get_by_text("Download as CSV").click()
        download.value.save_as(tmp_path / "verdicts.csv")
        with (tmp_path / "verdicts.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["picture"] for row in rows] == ["part.png", "broken.png", "part.png"]
        assert rows[2]["reasoning"] == PLANTED

        for width in (1280, 390):
            page.set_viewport_size({"width": width, "height": 900})
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= width, "the page is wider than the screen"
            if shots:
                page.screenshot(path=f"{shots}/app_{width}.png", full_page=True)
                page.emulate_media(color_scheme="dark")
                page.wait_for_timeout(500)
                page.screenshot(path=f"{shots}/dark_{width}.png", full_page=True)
                page.emulate_media(color_scheme="light")
    assert {httpx.URL(url).host for url in asked if url.startswith("http")} == {"127.0.0.1"}


def test_whoever_does_not_know_the_token_sees_and_drops_nothing(desk, photos):
    token = "0123456789abcdef"
    upload = {"files": ("part.png", photos[1].read_bytes(), "image/png")}
    with serving(desk, token) as address, httpx.Client(base_url=address) as client:
        assert client.get("config").status_code == 401
        assert client.post("gradio_api/upload", files=upload).status_code == 401
        assert client.post("gradio_api/queue/join", json={}).status_code == 401
        wrong = {"username": USER, "password": token[:-1]}
        assert client.post("login", data=wrong).status_code == 400
        assert client.post("login", data={**wrong, "password": token}).status_code == 200
        assert client.post("gradio_api/upload", files=upload).status_code == 200
        megabytes = desk.stage.most_megabytes
        large = {"files": ("large.png", bytes((megabytes << 20) + 1), "image/png")}
        assert client.post("gradio_api/upload", files=large).status_code == 413


def test_nearest_good_patches_judge_what_is_dropped_beside_good_pictures(tmp_path):
    """Their place is outlined, the heat map is drawn, and the table has scores."""
    noise = np.random.default_rng(0)
    for n in range(5):
        pixels = noise.integers(100, 130, (96, 96, 3), np.uint8)
        if n == 4:
            pixels[10:26, 10:26] = 0
        Image.fromarray(pixels).save(tmp_path / f"{n}.png")
    (tmp_path / "torn.png").write_bytes(b"torn")
    config = compose.compose(["stage=app", "method=patchcore", "patchcore.side=96"])
    desk = Desk(config, Inspector(config))
    goods = [str(tmp_path / f"{n}.png") for n in range(3)]

    def judged(*names: str, goods: list[str]) -> tuple[str, str, list[Any]]:
        *_, last = desk.judge([str(tmp_path / name) for name in names], goods, [])
        return last[:3]

    assert "Drop 2 good pictures" in judged("4.png", goods=[])[0]
    assert "Drop 2 good pictures" in judged("4.png", goods=goods[:1])[0]
    said = judged("4.png", goods=[*goods, str(tmp_path / "torn.png")])[0]
    assert "torn.png" in said and str(tmp_path) not in said
    cards, table, rows = judged("4.png", "3.png", "torn.png", goods=goods)
    assert [row["verdict"] for row in rows] == ["defective", "good", "unreadable"]
    assert rows[0]["place"] == "top left" and cards.count("data:image/jpeg") == 2
    assert "<dt>score</dt>" in cards and "<th>score</th>" in table and "P(yes)" not in table
    given = ["stage=app", "method=patchcore", "patchcore.side=96", f"references={goods}"]
    desk = Desk(compose.compose(given), desk.inspector)
    assert [row["verdict"] for row in judged("4.png", goods=[])[2]] == ["defective"]
