"""Weights of a run behind vLLM's own server, asked as an outside model is, through a proxy that
fails in the ways of services: the answers are those of the same weights here."""

from __future__ import annotations

import json
import re
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from failing import FAULTS, Proxy, killed_while_asking
from serving import free_port, run_py

from iad_r1 import data
from iad_r1.backbones import twins
from iad_r1.backbones.backbone import Backbone
from iad_r1.backbones.packing import completion_logprobs
from iad_r1.command import compose
from iad_r1.data import images
from iad_r1.judge.predictions import read_predictions
from iad_r1.loops import evaluate, pipeline
from iad_r1.rollouts.prompting import open_prompter
from iad_r1.settings.config import Config
from iad_r1.store.run_folder import RunFolder
from iad_r1.types import Prediction

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]  # a server starts slowly on a busy CPU
TOKEN = "a token of twenty-one"
LIMIT = 1e-4  # of a probability; pixels that vLLM has resized differ by a grey level
TWIN = ["backbone=qwen25vl_3b", "weights=tiny", "engine.precision=float32"]
ASKED = [
    "data.sizes.sft=4", "data.sizes.rl=4", "data.sizes.validation=2", "data.sizes.test=4",
    "data.image_size=100", "evaluate.max_tokens=48", "evaluate.shots=[0,1]",
    "evaluate.prompt=iad_r1_test", "evaluate.splits=[test]", "evaluate.batch_size=4",
    "evaluate.max_size=null", "tracking=none",
]  # fmt: skip
ENGINE = [
    "rollout.kv_cache_gib=0.125", "rollout.memory=0.05", "rollout.max_num_seqs=16",
    "rollout.eager=true",
]  # fmt: skip
SAYS = (
    "<think>A line.</think><location>top left</location><type>scratch</type><answer>Yes</answer>",
    "<think>It is even.</think><answer>No</answer>",
)
ROUNDS = 40  # optimiser steps that teach the twin to say these


@pytest.fixture(scope="module")
def config() -> Config:
    return compose.compose(["stage=sft", *TWIN, *ASKED])


@pytest.fixture(scope="module")
def taught(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """A twin that answers in the form that is read, in the folder that a run would leave of it."""
    run = RunFolder.create(tmp_path_factory.mktemp("outputs"), "before")
    run.write_json("config.json", config.model_dump(mode="json"))
    folder = run.checkpoint("sft")
    backbone = Backbone.load(twins.build_twin("qwen25vl_3b", folder.with_name("base"), seed=1))
    prompter = open_prompter(config, backbone, "evaluate")
    tests = [sample for split in data.for_run(config).test.values() for sample in split]
    asked = [prompter.encode(sample, 0).inputs for sample in tests]
    targets = [[backbone.encode_target(SAYS[n % 2]).tokens] for n in range(len(asked))]
    optimiser = torch.optim.AdamW(backbone.model.parameters(), lr=2e-3)
    for _ in range(ROUNDS):
        said = completion_logprobs(backbone.model, asked, targets, entropy=False)
        loss = -(said.logprob * said.mask).sum() / said.mask.sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    backbone.save(folder)
    return Backbone.load(folder)


@pytest.fixture(scope="module")
def ours(config: Config, taught: Backbone) -> list[Prediction]:
    """What the weights say here; `test_alone.py` says the same of vLLM in this process."""
    asking = evaluate.open_asking(config, taught)
    return [
        one
        for split, samples in evaluate.splits(config, data.for_run(config)).items()
        for shots in config.evaluate.shots
        for batch in asking.answers(samples, split, shots)
        for one in batch
    ]


@dataclass
class Serving:
    """`stage=serve` that has said where it is."""

    process: subprocess.Popen[str]
    port: int
    folder: Path
    said: str

    @property
    def name(self) -> str:
        """What the model is called."""
        found = re.search(r"under the name (\S+)", self.said)
        assert found
        return found[1]


@pytest.fixture(scope="module")
def serving(taught: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder, port = tmp_path_factory.mktemp("serving"), free_port()
    run = Path(taught.model.name_or_path).parent.parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_API_KEY", TOKEN)
        process = run_py("stage=serve", f"init={run}", f"stage.port={port}", *ENGINE, cwd=folder)
    try:
        while "Served at" not in (said := (folder / "output.txt").read_text()):
            assert process.poll() is None, said
            time.sleep(0.3)
        yield Serving(process, port, folder, said)
    finally:
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 130  # as shells have it
        assert not psutil.wait_procs(family, timeout=60)[1]


# --- asked through a proxy that fails -------------------------------------------------------------

KEPT = 3  # replies that the killed evaluation had


@dataclass
class Evaluated:
    """An evaluation that was killed while its fourth picture was asked about, and went on."""

    folder: RunFolder
    proxy: Proxy
    before: list[str]  # what was asked until the kill
    rows: list[Prediction]


@pytest.fixture(scope="module")
def evaluated(serving: Serving, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Evaluated]:
    place, proxy = tmp_path_factory.mktemp("asking"), Proxy(serving.port, FAULTS, hold=KEPT)
    typed = [
        "stage=evaluate", "backbone=api", f"backbone.base_url={proxy.url}", *ASKED,
        f"backbone.model={serving.name}", "backbone.key=VLLM_API_KEY", "backbone.logprobs=true",
        "backbone.dollars_in=2", "backbone.dollars_out=8", "backbone.timeout=5",
        "backbone.concurrency=1", "stage.tasks=[evaluate]",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_API_KEY", TOKEN)
        folder = killed_while_asking(typed, place, proxy)
        before = list(proxy.asked)
        pipeline.run(compose.compose([*typed, "backbone.concurrency=2"]), folder)
    files = sorted((folder.path / "predictions").iterdir())
    rows = [row for file in files for row in read_predictions(file).values()]
    yield Evaluated(folder, proxy, before, rows)
    proxy.server.shutdown()
    proxy.server.server_close()


def test_every_picture_is_answered_once_whatever_fails(evaluated, ours):
    assert evaluated.proxy.faults == []  # each has happened
    lines = [line for file in (evaluated.folder.path / "predictions").iterdir()
             for line in file.read_text().splitlines()]  # fmt: skip
    assert len(lines) == len(evaluated.rows) == len(ours) == 16
    assert {(row.id, row.shots) for row in evaluated.rows} == {(row.id, row.shots) for row in ours}


def test_what_a_killed_evaluation_was_told_is_not_asked_again(evaluated):
    assert len(evaluated.before) == KEPT + 1
    assert not set(evaluated.before[:KEPT]) & set(evaluated.proxy.asked[KEPT + 1 :])
    assert set(evaluated.proxy.answered.values()) == {1}
    assert set(evaluated.proxy.asked) == set(evaluated.proxy.answered)


def test_requests_and_cost_are_counted_across_the_kill(evaluated, ours, taught, config):
    asked, repeated = evaluated.folder.summary()["asked"], len(evaluated.proxy.asked) - 16 - 1
    assert (asked["replies"], asked["kept"], asked["refused"]) == (16, 0, 0)
    assert asked["retries"] == repeated >= len(FAULTS)  # more if this machine is very slow
    prompter = open_prompter(config, taught, "evaluate")
    samples = {s.id: s for split in data.for_run(config).test.values() for s in split}
    tokens = sum(prompter.length(samples[row.id], row.shots) for row in ours)
    assert asked["tokens_in"] == tokens
    assert asked["tokens_out"] == sum(row.n_tokens for row in ours)
    assert asked["dollars"] == pytest.approx((2 * tokens + 8 * asked["tokens_out"]) / 1e6)


def test_the_answers_are_those_of_the_weights_here(evaluated, ours):
    theirs = {(row.id, row.shots): row for row in evaluated.rows}
    assert {row.status for row in ours} == {"ok"} and None not in {row.p_yes for row in ours}
    for row in ours:
        other = theirs[row.id, row.shots]
        assert replace(other, p_yes=None) == replace(row, p_yes=None)
        assert other.p_yes == pytest.approx(row.p_yes, abs=LIMIT)


# --- the server itself ----------------------------------------------------------------------------


def ask(serving: Serving, path: str, asked: Any, key: str | None = TOKEN) -> tuple[int, str]:
    server = HTTPConnection("127.0.0.1", serving.port)
    headers = {"Content-Type": "application/json"}
    headers |= {} if key is None else {"Authorization": f"Bearer {key}"}
    server.request("POST", path, json.dumps(asked), headers)
    answer = server.getresponse()
    return answer.status, answer.read().decode()


@pytest.fixture(scope="module")
def example(serving: Serving) -> dict[str, Any]:
    [file] = (serving.folder / "outputs").glob("*/*/request.json")
    return json.loads(file.read_text())


def test_nobody_is_answered_without_the_token_which_is_written_nowhere(serving, example):
    chat = "/v1/chat/completions"
    assert ask(serving, chat, example)[0] == 200
    assert ask(serving, chat, example, None)[0] == ask(serving, chat, example, "another")[0] == 401
    for path in ("/invocations", "/tokenize", "/collective_rpc", "/v1/load_lora_adapter"):
        assert ask(serving, path, example, None)[0] in (401, 404)
    family = [psutil.Process(serving.process.pid)]
    family += family[0].children(recursive=True)
    assert not [one for one in family if TOKEN in " ".join(one.cmdline())]
    files = [file for file in serving.folder.rglob("*") if file.is_file() and not file.is_symlink()]
    assert not [file for file in files if TOKEN.encode() in file.read_bytes()]


@pytest.mark.parametrize("url", ["file:///etc/hostname", "http://127.0.0.1:{port}/health"])
def test_pictures_are_never_fetched(serving, example, url):
    picture = {"type": "image_url", "image_url": {"url": url.format(port=serving.port)}}
    asked = {**example, "messages": [{"role": "user", "content": [picture]}]}
    status, said = ask(serving, "/v1/chat/completions", asked)
    assert status >= 400 and "allowed" in said


def test_the_printed_client_asks_about_a_picture_of_ones_own(
    serving, taught, tmp_path, monkeypatch, capsys
):
    sample = next(iter(data.for_run(compose.compose(ASKED)).test.values()))[0]
    images.open_image(sample).save(tmp_path / "own.png")
    [client] = (serving.folder / "outputs").glob("*/*/client.py")
    monkeypatch.setenv("VLLM_API_KEY", TOKEN)
    monkeypatch.setattr(sys, "argv", ["client.py", str(tmp_path / "own.png")])
    runpy.run_path(str(client))
    assert capsys.readouterr().out.strip() in SAYS
