"""What every test relies on: no network, one thread, and where the repository is."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Before any test module imports torch or a hub library: they read these once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_MODE", "disabled")
# What was found in pictures is not kept where the user keeps it.
os.environ.setdefault("IAD_CACHE", str(Path(tempfile.gettempdir()) / f"iad_r1_tests_{os.getuid()}"))

# A busy machine is no fault of what is tested.
settings.register_profile("any_speed", deadline=None)
settings.load_profile("any_speed")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of papers, golden files and photographs beside a checkout; skips without it."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here; it is not part of the project")
    return folder


@pytest.fixture(scope="session")
def project_with(
    repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Mapping[str, str]], Path]:
    """`project_with({"conf/stage/mine.yaml": "..."})`: a copy of the project with files more."""

    def copy(added: Mapping[str, str]) -> Path:
        root = tmp_path_factory.mktemp("project")
        for name in ("iad_r1", "conf"):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(repository / name, root / name, ignore=ignored)
        shutil.copy(repository / "run.py", root)
        for name, text in added.items():
            (root / name).write_text(text, encoding="utf-8")
        return root

    return copy


@pytest.fixture
def browser_page() -> Iterator[Any]:
    """An empty page of headless Chromium, as Playwright drives it; skips without Chromium. No error
    may be left in its console."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("Chromium is not installed; see `make browser`")
    from playwright.sync_api import sync_playwright

    errors: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        page = browser.new_page()
        page.set_default_timeout(180_000)  # a busy machine is no fault of a page either
        page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        yield page
        browser.close()
    assert not errors
