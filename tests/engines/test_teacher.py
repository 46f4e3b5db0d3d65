"""`teacher=openai` asks a real vLLM server with a tiny twin, through a proxy that fails, is killed
and goes on: every picture is paid once, and every text is the one that the twin was taught."""

from __future__ import annotations

import base64
import io
import json
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from failing import FAULTS, SPOILT, Proxy, killed_while_asking
from PIL import Image
from services import body, served
from serving import free_port, run_py

from iad_r1.backbones import twins
from iad_r1.backbones.backbone import Backbone
from iad_r1.backbones.packing import completion_logprobs
from iad_r1.command import compose
from iad_r1.loops import expert_ad
from iad_r1.store.run_folder import RunFolder
from iad_r1.types import Conversation

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1500)]  # a server starts slowly on a busy CPU
TYPED = [
    "stage=expert_ad", "tracking=none", "data.sizes.sft=6", "data.sizes.rl=6",
    "data.sizes.validation=2", "data.sizes.test=2", "data.image_size=56", "teacher=openai",
    "teacher.dollars_in=2", "teacher.dollars_out=8", "teacher.timeout=20", "stage.alike=1",
    "stage.words=[5,160]", "stage.forbidden=[highlight*]",  # shorter texts are learnt faster
]  # fmt: skip
PICTURES = 12
TWIN = [
    "stage=sft", "backbone=qwen25vl_3b", "weights=tiny", "engine.precision=float32",
    "tracking=none", "evaluate.prompt=iad_r1_test",
]  # fmt: skip
ENGINE = [
    "rollout.kv_cache_gib=0.25", "rollout.memory=0.05", "rollout.max_num_seqs=4",
    "rollout.max_model_len=4096", "rollout.eager=true", "evaluate.max_tokens=256",
    "rollout.max_images=3",
]  # fmt: skip
KEPT = 3  # replies that the killed build had
ROUNDS = 150  # optimiser steps at most, that teach the twin its texts
LEARNT = 0.03  # nats per token
LOOKS = ("I look over", "I scan", "I inspect", "I study")


def words(asked: dict[str, Any]) -> str:
    return "".join(part.get("text", "{image}") for part in asked["messages"][-1]["content"])


def pictures(asked: dict[str, Any]) -> list[Image.Image]:
    urls = [part["image_url"]["url"] for part in asked["messages"][-1]["content"]
            if part["type"] == "image_url"]  # fmt: skip
    return [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) for url in urls]


def written(n: int, asked: dict[str, Any]) -> str:
    """A sound text about what is asked."""
    said = words(asked)
    look = f"{LOOKS[n % 4]} all of it."
    found = re.search(r"It has a defect: ([\w ]+?)(?: \(|\.)", said)
    at = re.search(r"- It lies (.*)\.", said)
    if found is None or at is None:
        like, kind, seen = "", "none", "It agrees, so the part is good."
    else:
        like, kind = "not ", found[1]
        seen = f"There is a {kind} {at[1]}, so the part is defective."
    description = f"It is {like}like a good one."
    said = {"description": description, "type": kind, "reasoning": f"{look} {seen}"}
    return json.dumps(said)


@dataclass
class Lesson:
    """What is asked about every picture, and a text about it."""

    asked: list[dict[str, Any]]
    texts: list[str]


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Lesson]:
    """The build with a service that does not fail, and what it was asked."""
    folder = RunFolder.create(tmp_path_factory.mktemp("calm"), "built")
    with served() as service:
        service.answer = lambda n, asked: (200, body(written(n, asked)))
        config = compose.compose(
            [*TYPED, "teacher.model=m", f"teacher.base_url={service.url}", "teacher.concurrency=1"]
        )
        folder.write_json("config.json", config.model_dump(mode="json"))
        expert_ad.run(config, folder)
    assert len(service.asked) == PICTURES
    return folder.path, Lesson(service.asked, [written(n, a) for n, a in enumerate(service.asked)])


@pytest.fixture(scope="module")
def taught(calm: tuple[Path, Lesson], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a run would leave of a twin that knows these texts."""
    lesson = calm[1]
    run = RunFolder.create(tmp_path_factory.mktemp("outputs"), "before")
    run.write_json("config.json", compose.compose(TWIN).model_dump(mode="json"))
    folder = run.checkpoint("sft")
    backbone = Backbone.load(twins.build_twin("qwen25vl_3b", folder.with_name("base"), seed=1))
    asked = [
        backbone.encode(Conversation(words(each)), pictures(each)).inputs for each in lesson.asked
    ]
    targets = [[backbone.encode_target(text).tokens] for text in lesson.texts]
    optimiser = torch.optim.AdamW(backbone.model.parameters(), lr=3e-3)
    for _ in range(ROUNDS):
        said = completion_logprobs(backbone.model, asked, targets, entropy=False)
        loss = -(said.logprob * said.mask).sum() / said.mask.sum()
        if loss < LEARNT:
            break
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    backbone.save(folder)
    return run.path


@pytest.fixture(scope="module")
def serving(taught: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, str]]:
    """The port and the name of the model."""
    place, port = tmp_path_factory.mktemp("serving"), free_port()
    process = run_py("stage=serve", f"init={taught}", f"stage.port={port}", *ENGINE, cwd=place)
    try:
        while "Served at" not in (said := (place / "output.txt").read_text()):
            assert process.poll() is None, said
            time.sleep(0.3)
        found = re.search(r"under the name (\S+)", said)
        assert found
        yield port, found[1]
    finally:
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        process.wait(120)
        assert not psutil.wait_procs(family, timeout=60)[1]


@dataclass
class Built:
    """A build that was killed while its fourth picture was asked about, and went on."""

    folder: RunFolder
    proxy: Proxy
    before: list[str]  # what was asked until the kill


@pytest.fixture(scope="module")
def built(serving: tuple[int, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    place, proxy = tmp_path_factory.mktemp("asking"), Proxy(serving[0], (*FAULTS, *SPOILT), KEPT)
    typed = [*TYPED, f"teacher.base_url={proxy.url}", f"teacher.model={serving[1]}"]
    folder = killed_while_asking([*typed, "teacher.concurrency=1"], place, proxy)
    before = list(proxy.asked)
    expert_ad.run(compose.compose([*typed, "teacher.concurrency=2"]), folder)
    yield Built(folder, proxy, before)
    proxy.server.shutdown()
    proxy.server.server_close()


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_every_picture_is_asked_about_and_paid_once_whatever_fails(built):
    assert built.proxy.faults == []  # each has happened
    assert len(built.before) == KEPT + 1
    assert not set(built.before[:KEPT]) & set(built.proxy.asked[KEPT + 1 :])
    assert len(built.proxy.answered) == PICTURES
    assert set(built.proxy.answered.values()) == {1}
    rows = lines(built.folder.path / "drafts.jsonl")
    assert len(rows) == len({row["id"] for row in rows}) == PICTURES


def test_what_is_of_no_use_is_rejected_with_its_reason_and_the_counts_are_exact(built, calm):
    summary, rows = built.folder.summary(), lines(built.folder.path / "drafts.jsonl")
    reasons = Counter(row["rejected"][0]["reason"] for row in rows if row["rejected"])
    spoiled = {name: reasons.pop(name) for name in SPOILT}
    assert spoiled == dict.fromkeys(SPOILT, 1)
    assert set(reasons) <= {"near-duplicate text"}
    asked = summary["teacher"]
    assert (asked["replies"], asked["kept"], asked["refused"]) == (PICTURES, 0, 0)
    assert asked["retries"] == len(built.proxy.asked) - PICTURES - 1 >= len(FAULTS)
    dollars = (2 * asked["tokens_in"] + 8 * asked["tokens_out"]) / 1e6
    assert asked["dollars"] == pytest.approx(dollars) and asked["tokens_out"] > 0


def test_the_texts_are_those_that_the_twin_was_taught(built, calm):
    right = {row["id"]: row for row in lines(calm[0] / "drafts.jsonl")}
    kept = lines(built.folder.path / "dataset/items.jsonl")
    assert len(kept) >= PICTURES / 2
    texts = {(row["description"], row["reasoning"]) for row in right.values()}
    for row in kept:  # which of four ways to look it takes, it may confuse
        assert (row["description"], row["reasoning"]) in texts
        for name in ("picture_sha256", "facts", "type", "location"):
            assert row[name] == right[row["id"]][name]
