"""The page of `stage=review` in a browser: items are judged by keyboard, the page is killed, two
reviewers go on, and the lists are written."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import forks
import httpx
import pytest

from iad_r1.command import compose
from iad_r1.expert import lists
from iad_r1.loops import expert_ad
from iad_r1.store.run_folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
PLANTED = "<script>document.title = 'planted'</script><b>${1 + 1} {{value}}</b>"
NAMED = f"Anna {PLANTED}"[:50]  # of a reviewer
SIZES = [f"data.sizes.{part}={n}" for part, n in
         (("sft", 4), ("rl", 4), ("validation", 2), ("test", 2))]  # fmt: skip


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A build about eight drawn pictures; what is said of the first one is markup."""
    folder = RunFolder.create(tmp_path_factory.mktemp("outputs"), "built")
    drawn = ["stage=expert_ad", "data=synthetic", "tracking=none", "data.image_size=64", *SIZES]
    config = compose.compose(drawn)
    folder.write_json("config.json", config.model_dump(mode="json"))
    expert_ad.run(config, folder)
    drafts = folder.path / expert_ad.DRAFTS
    first, *others = lists.rows(drafts)
    rows = [{**first, "description": PLANTED, "product": PLANTED}, *others]
    drafts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.fixture
def served(build: RunFolder, tmp_path: Path) -> Iterator[Callable[[], str]]:
    """`served()` starts the page, killing the one before, and gives its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address, running = f"http://127.0.0.1:{port}", list[Any]()

    def kill() -> None:
        for process in running:
            process.kill()
            process.join()
        running.clear()

    def start() -> str:
        kill()
        typed = ["stage=review", f"init={build.path}", f"stage.port={port}"]
        running.append(forks.start_run(typed, tmp_path, tmp_path / "log.txt"))
        while True:
            assert running[0].exitcode is None, (tmp_path / "log.txt").read_text()
            try:
                httpx.get(address, timeout=60)
                return address
            except httpx.ConnectError:
                time.sleep(0.2)

    yield start
    kill()


class Reviewer:
    """Somebody at the keyboard."""

    def __init__(self, page: Any) -> None:
        self.page = page
        page.set_default_timeout(120_000)

    def open(self, address: str) -> None:
        self.page.goto(address)
        self.page.wait_for_function("document.body.dataset.iadMode")

    def enter(self, name: str) -> None:
        self.page.get_by_label("Your name").fill(name)
        self.page.keyboard.press("Enter")
        self.reads(1)

    def reads(self, number: int) -> None:
        """Wait until item `number` is there, and nothing is under way."""
        item = self.page.locator("#iad-item article", has_text=f"{number} of 8")
        item.wait_for()
        self.page.wait_for_function("document.body.dataset.iadMode === 'reading'")
        self.page.wait_for_function("iadReview.idle()")

    def presses(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def mode(self) -> str:
        return self.page.evaluate("document.body.dataset.iadMode")

    def text(self, where: str) -> str:
        return self.page.locator(where).inner_text()


def test_items_are_judged_by_keyboard_killed_pages_go_on_and_lists_are_as_reviewers_left_them(
    build, served, browser_page, tmp_path
):
    rows = list(lists.rows(build.path / expert_ad.DRAFTS))
    anna, address = Reviewer(browser_page), served()
    page = browser_page
    anna.open(address)
    assert anna.mode() == "naming"
    anna.enter(NAMED)
    assert PLANTED in anna.text("#iad-item") and NAMED in anna.text("#iad-review")
    assert page.title() == "Review" and page.locator("#iad-item script").count() == 0

    defective = next(n for n, row in enumerate(rows, 1) if row["location"] is not None)
    for number in range(2, defective + 1):
        anna.presses("ArrowRight")
        anna.reads(number)
    mask = page.locator("#iad-item svg path")
    assert mask.is_visible()
    shots(page, "mask")
    anna.presses("m")
    assert not mask.is_visible()
    anna.presses("m")
    for number in range(defective - 1, 0, -1):
        anna.presses("ArrowLeft")
        anna.reads(number)

    anna.presses("a")
    anna.reads(2)
    anna.presses("r")
    page.keyboard.type("a reason, a real one")  # no key of these judges
    anna.presses("Enter")
    anna.reads(3)
    anna.presses("e")
    reasoning = page.get_by_label("Reasoning")
    reasoning.fill("The mask says so.")
    anna.presses("Control+Enter")
    refused = page.locator("#iad-notice", has_text="A filter refuses this text")
    refused.wait_for()
    assert "forbidden word (mask)" in refused.inner_text() and anna.mode() == "editing"
    reasoning.fill(rows[2]["reasoning"])
    description = f"{rows[2]['description']} It is seen from above."
    page.get_by_label("Description").fill(description)
    anna.presses("Control+Enter")
    anna.reads(4)
    assert "3 of 8 items: 1 accepted, 1 edited, 1 rejected" in anna.text("#iad-review")
    page.get_by_role("radio", name="Rejected").click()
    anna.reads(2)
    assert "a reason, a real one" in anna.text("#iad-item")

    page.goto("about:blank")
    address = served()  # the page before is killed
    anna.open(address)
    anna.reads(4)  # who reviews, and where, is known
    assert "3 of 8 items" in anna.text("#iad-review")

    ben = Reviewer(page.context.browser.new_context().new_page())
    ben.open(address)
    ben.enter("Ben")
    ben.presses("a")
    ben.reads(2)
    anna.presses("a")
    anna.reads(5)
    ben.presses("a")
    ben.reads(3)
    assert "Cohen's kappa 0.00 (1 of the 2 items that both have judged" in ben.text("#iad-team")
    assert NAMED in ben.text("#iad-team")
    shots(ben.page, "team")

    page.goto("about:blank")
    written = tmp_path / "written.txt"
    typed = ["stage=review", f"init={build.path}", "write=true"]
    process = forks.start_run(typed, tmp_path, written)
    process.join()
    assert process.exitcode == 0, written.read_text()
    items = {row["id"]: row for row in lists.rows(build.path / "dataset" / "items.jsonl")}
    assert rows[1]["id"] not in items  # one rejects, one accepts: a tie
    assert items[rows[2]["id"]]["description"] == description
    assert len(items) == 7
    card = (build.path / "dataset" / "README.md").read_text(encoding="utf-8")
    assert "| Ben | 2 | 2 | 0 | 0 |" in card and "<script" not in card


def shots(page: Any, name: str) -> None:
    """Pictures of the page, where they are asked for; it is never wider than the screen."""
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width, "the page is wider than the screen"
        if folder := os.environ.get("IAD_SCREENSHOTS"):
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)
                page.wait_for_timeout(500)
                page.screenshot(path=f"{folder}/{name}_{width}_{scheme}.png", full_page=True)
            page.emulate_media(color_scheme="light")
    page.set_viewport_size({"width": 1280, "height": 900})
