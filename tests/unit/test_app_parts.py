"""The page of verdicts, without a model or a server: what it takes, what it says, and to whom."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from iad_r1 import stages
from iad_r1.command import compose
from iad_r1.errors import ConfigError
from iad_r1.judge import verdicts
from iad_r1.judge.verdicts import Verdict
from iad_r1.report import verdict_page
from iad_r1.settings.config import Config
from iad_r1.settings.predict import AppSettings
from iad_r1.stages import app

SCRIPT = "<script>alert(1)</script>"
BAD = verdicts.unreadable(Path("b.png"), f"b.png: cannot be read ({SCRIPT})")
ROW = verdicts.judged(
    Verdict("a,b.png", "defective", 0.75, SCRIPT, (0,), SCRIPT, f"{SCRIPT}\nü", 0.5, ""), None
)


@pytest.fixture(scope="module")
def config() -> Config:
    return compose.compose(["stage=app", "init=Qwen/Qwen2.5-VL-3B-Instruct"])


@pytest.fixture
def settings(config) -> AppSettings:
    assert isinstance(config.stage, AppSettings)
    return config.stage


def test_the_csv_of_a_session_is_the_table_of_predict():
    rows = list(csv.DictReader(io.StringIO(verdict_page.csv([ROW, BAD]))))
    assert tuple(rows[0]) == verdicts.COLUMNS
    assert [row["picture"] for row in rows] == ["a,b.png", "b.png"]
    assert rows[0]["reasoning"] == f"{SCRIPT}\nü" and rows[0]["p_yes"] == "0.75"
    assert rows[1]["verdict"] == "unreadable" and "b.png" in rows[1]["error"]


def test_what_a_model_or_a_file_says_is_text_on_the_page():
    shown = verdict_page.cards([(ROW, None), (BAD, None)], [SCRIPT]) + verdict_page.session([ROW])
    assert "<script" not in shown and shown.count("&lt;script&gt;") == 7


def test_nothing_and_too_much_are_refused_in_a_sentence(settings):
    most = settings.most_pictures

    def said(pictures: int, references: int) -> str | None:
        return verdict_page.complaint(settings, pictures, references, shown=1)

    assert said(1, 0) is said(most, 1) is None
    assert said(0, 1) == "Drop a photograph first."
    assert said(most + 1, 0) == f"{most + 1} photographs at once are more than {most}. Drop fewer."
    assert said(1, 2) == "2 good pictures are more than 1. Drop fewer."


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.9", "factory"])
def test_other_machines_need_a_token_that_nobody_guesses(settings, monkeypatch, host):
    outside = settings.model_copy(update={"host": host})
    monkeypatch.delenv("IAD_APP_TOKEN", raising=False)
    with pytest.raises(ConfigError, match=r"has no IAD_APP_TOKEN\. Type: export"):
        app.token(outside)
    monkeypatch.setenv("IAD_APP_TOKEN", "x" * (app.LEAST - 1))
    with pytest.raises(ConfigError, match="has 15 characters, and 16 are the least"):
        app.token(outside)
    monkeypatch.setenv("IAD_APP_TOKEN", "x" * app.LEAST)
    assert app.token(outside) == "x" * app.LEAST


def test_this_machine_alone_needs_none(settings, monkeypatch):
    monkeypatch.delenv("IAD_APP_TOKEN", raising=False)
    for host in (settings.host, "localhost", "::1", "[::1]"):
        assert app.token(settings.model_copy(update={"host": host})) is None


def test_without_gradio_one_sentence_says_what_to_install(config, monkeypatch):
    monkeypatch.setattr(app, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install "iad_r1\[app\]"'):
        stages.find("app").check_inputs(config)
