"""Rollout servers: real ones over loopback, started with `run.py stage=serve`."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from serving import MODEL, ROLLOUT, Running, run_py
from vllm_cases import gap, gated, leave_out, move, picture, prompts, seeds

from iad_r1.backbones import twins
from iad_r1.backbones.backbone import Backbone, Prompt
from iad_r1.command import compose
from iad_r1.errors import DataError, MismatchError, TrainingError
from iad_r1.loops import grpo
from iad_r1.loops.collect import Collector
from iad_r1.loops.opening import open_run
from iad_r1.rollouts.hf import HfSampler
from iad_r1.rollouts.parity import Gate
from iad_r1.rollouts.sampling import Sampling
from iad_r1.rollouts.server import push as weight_push
from iad_r1.rollouts.server import sampler as vllm_server
from iad_r1.rollouts.server.client import Server
from iad_r1.rollouts.server.sampler import Served, ServerSampler, served
from iad_r1.settings.rollout import VllmServerRollout
from iad_r1.store.run_folder import RunFolder
from iad_r1.types import Conversation, Score

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]  # servers start slowly on a busy CPU
LIMIT = 1e-4  # nats, float32
GROUP = Sampling(4, 12, 1.0)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Running]]:
    """Two servers."""
    found = [Running(tmp_path_factory.mktemp(name)) for name in ("one", "two")]
    for server in found:
        server.wait()
    yield found
    for server in found:
        server.kill()


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """The twin that the servers describe."""
    path = twins.build_twin("qwen25vl_3b", tmp_path_factory.mktemp("twin") / "twin", seed=1)
    found = Backbone.load(path)
    found.limit_pixels(compose.compose(MODEL).grpo.max_pixels)
    return found


def engine_for(backbone: Backbone, *urls: str, **changes: Any) -> ServerSampler:
    config = compose.compose([*MODEL, *ROLLOUT, f"rollout.servers=[{','.join(urls)}]"])
    assert isinstance(config.rollout, VllmServerRollout)
    wanted = served(config, None)
    if "wanted" in changes:
        wanted = Served(changes.pop("wanted"), wanted.command)
    return ServerSampler(backbone, config.rollout.model_copy(update=changes), wanted)


@pytest.fixture
def engine(backbone: Backbone, running: list[Running]) -> ServerSampler:
    """Both servers, with the weights as they are."""
    found = engine_for(backbone, *(server.url for server in running))
    found.sync()
    return found


@pytest.fixture
def asked(backbone: Backbone) -> list[Prompt]:
    return prompts(backbone)


@pytest.fixture
def gate(engine: ServerSampler, backbone: Backbone, tmp_path: Path) -> Iterator[Gate]:
    """Green, and green again after the fault."""
    with gated(engine, backbone, tmp_path / "parity.csv") as found:
        yield found


# --- what they say -------------------------------------------------------------------------------


def test_servers_say_of_their_tokens_what_the_trainer_says(engine, backbone, asked):
    for temperature in (1.0, 0.7):
        groups = engine.generate(asked, Sampling(4, 12, temperature), seeds(asked))
        assert [len(group) for group in groups] == [4, 4]
        assert gap(backbone, asked, groups, temperature) < LIMIT
    ours = HfSampler(backbone, 8).generate(asked, Sampling(1, 12, 0.0), seeds(asked))
    greedy = engine.generate(asked, Sampling(1, 12, 0.0), seeds(asked))
    assert [g[0].tokens for g in greedy] == [g[0].tokens for g in ours]
    assert [g[0].text for g in greedy] == [g[0].text for g in ours]


def test_a_seed_draws_what_it_draws_in_the_colocated_engine(engine, engines, backbone, asked):
    theirs = engines(backbone)
    theirs.sync()
    drawn = [[[c.tokens for c in group] for group in e.generate(asked, GROUP, seeds(asked, 5))]
             for e in (engine, engine, theirs)]  # fmt: skip
    assert drawn[0] == drawn[1] == drawn[2]
    assert len(set(drawn[0][0])) == 4


def test_new_weights_change_the_answers_once_they_are_sent(engine, backbone, asked):
    move(backbone, 1)
    stale = gap(backbone, asked, engine.generate(asked, GROUP, seeds(asked)))
    engine.sync()
    fresh = gap(backbone, asked, engine.generate(asked, GROUP, seeds(asked)))
    assert fresh < LIMIT < 0.1 < stale


def test_servers_share_the_prompts_and_answer_in_any_order(engine, backbone, asked, monkeypatch):
    used: Counter[str] = Counter()
    ask = Server.ask

    def counted(self: Server, path: str, body: Any = None) -> Any:
        used[self.url] += path.endswith("/generate")
        return ask(self, path, body)

    monkeypatch.setattr(Server, "ask", counted)
    many = [asked[number % 2] for number in range(24)]
    groups = dict(engine.stream(((p, (0, n)) for n, p in enumerate(many)), GROUP))
    assert sorted(groups) == list(range(24))
    assert gap(backbone, many, [groups[n] for n in range(24)]) < LIMIT
    assert sum(used.values()) == 24 and min(used.values()) >= 6 and len(used) == 2


def test_a_call_that_is_left_early_leaves_the_servers_free(engine, asked):
    answers = engine.stream(((asked[0], (0, n)) for n in range(40)), Sampling(2, 200, 1.0))
    next(answers)
    answers.close()
    engine.sync()  # would fail if requests still ran
    assert len(engine.generate(asked, GROUP, seeds(asked))) == 2


def test_a_prompt_that_does_not_fit_is_refused_by_name(engine, backbone):
    question = Conversation("{image}" + "Is there a defect? " * 200)
    long = backbone.encode(question, [backbone.fit(picture(0))], "bottle/broken/007")
    with pytest.raises(DataError, match=r"bottle/broken/007: \d+ prompt tokens"):
        engine.generate([long], Sampling(1, 8, 1.0), [(0,)])


# --- the gate ------------------------------------------------------------------------------------


def test_the_gate_is_green_and_compares_every_weight_of_both_servers(gate, engine):
    row = gate.check("grpo", 3)
    assert row.gap < LIMIT < row.shown
    assert row.weights > 40 and row.sums == 0
    assert {key.partition(" on ")[2] for key in engine.sums} == {s.url for s in engine.servers}


def test_the_gate_finds_weights_that_were_not_sent(gate, backbone):
    move(backbone, 1)
    with pytest.raises(MismatchError, match=r"disagree by .* were not sent to the sampler"):
        gate.check("grpo", 1)


@pytest.mark.parametrize("forgotten", ["/reset_prefix_cache", "/reset_encoder_cache"])
def test_the_gate_finds_a_cache_that_was_not_reset(gate, monkeypatch, forgotten):
    kept = tuple(path for path in weight_push.RESETS if path != forgotten)
    monkeypatch.setattr(weight_push, "RESETS", kept)
    with pytest.raises((MismatchError, TrainingError), match=r"still cached|Encoder cache miss"):
        gate.check("grpo", 1)
    monkeypatch.undo()


def test_the_gate_finds_another_picture(gate):
    good = gate.probes[0]
    gate.probes = [dataclasses.replace(good, images=(picture(77),))]
    with pytest.raises(MismatchError, match="different pixel_values"):
        gate.check("grpo", 1)
    gate.probes = [good]


def test_a_weight_that_is_not_sent_is_named(gate, engine, monkeypatch):
    leave_out(monkeypatch, vllm_server, "layers.1.self_attn.k_proj")
    with pytest.raises(MismatchError, match=r"nothing was sent for vLLM's .*layers\.1.*qkv_proj"):
        engine.sync()
    monkeypatch.undo()


# --- what goes wrong -----------------------------------------------------------------------------


def test_a_server_with_another_model_is_refused_by_name(backbone, running):
    wrong = engine_for(backbone, running[0].url, wanted="backbone=qwen2vl_2b")
    message = rf"{running[0].url} serves another model.*qwen25vl_3b.*qwen2vl_2b.*stage=serve"
    with pytest.raises(MismatchError, match=f"(?s){message}"):
        wrong.sync()


def test_servers_without_weights_are_not_asked(backbone, running, asked):
    with pytest.raises(MismatchError, match="before they were given weights"):
        engine_for(backbone, running[0].url).generate(asked, GROUP, seeds(asked))


def test_an_answer_of_other_weights_is_thrown_away_and_asked_again(
    engine, backbone, asked, monkeypatch, capfd
):
    """The server's version changes between the look at it and the answer."""
    held, lies = engine._held, [engine.version]
    for server in engine.servers:
        server.ask("/update_weight_version", {"new_version": "default"})
    monkeypatch.setattr(engine, "_held", lambda server: lies.pop() if lies else held(server))
    groups = engine.generate(asked[:1], GROUP, seeds(asked[:1]))
    assert engine.thrown == 1
    assert gap(backbone, asked[:1], groups) < LIMIT
    assert "thrown away" in capfd.readouterr().err


def test_a_server_that_another_run_uses_is_left_to_it(engine, backbone, running, asked):
    other = engine_for(backbone, running[0].url)
    other.sync()
    with pytest.raises(
        MismatchError, match=rf"{running[0].url} was given other weights by another"
    ):
        engine.generate(asked, GROUP, seeds(asked))


def test_two_ranks_do_not_give_weights_at_once(engine, backbone, asked, monkeypatch):
    """The other one's claim is waited for."""
    run = engine.version.partition("/")[0]
    for server in engine.servers:
        weight_push.rpc(server, "iad_claim", run, 7, 2.0)
        server.ask("/update_weight_version", {"new_version": "default"})
    tried: list[str] = []
    push = vllm_server.push

    def counted(servers: Any, weights: Any, version: str) -> Any:
        tried.append(servers[0].url)
        return push(servers, weights, version)

    monkeypatch.setattr(vllm_server, "push", counted)
    groups = engine.generate(asked, GROUP, seeds(asked))
    assert gap(backbone, asked, groups) < LIMIT
    assert len(tried) > len(set(tried))


def test_a_weight_that_the_model_has_no_room_for_is_told_in_the_servers_words(
    engine, backbone, asked, monkeypatch
):
    """And the server is as good as before."""
    monkeypatch.setattr(engine, "_weights", lambda: iter([("lm_head.bias", torch.zeros(3))]))
    with pytest.raises((TrainingError, MismatchError), match=r"lm_head\.bias"):
        engine.sync()
    monkeypatch.undo()
    engine.sync()
    assert gap(backbone, asked, engine.generate(asked, GROUP, seeds(asked))) < LIMIT


def test_a_trainer_that_dies_while_it_sends_leaves_a_server_that_can_go_on(
    engine, backbone, asked, monkeypatch
):
    def dies() -> Any:
        yield (
            "model.language_model.norm.weight",
            torch.zeros(backbone.model.config.text_config.hidden_size),
        )
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "_weights", dies)
    with pytest.raises(KeyboardInterrupt):
        engine.sync()
    monkeypatch.undo()
    assert {engine._held(server) for server in engine.servers} == {weight_push.INCOMPLETE}
    engine.sync()
    assert gap(backbone, asked, engine.generate(asked, GROUP, seeds(asked))) < LIMIT


def test_a_server_that_stays_away_ends_the_run_by_its_name(backbone, running, asked):
    away = "http://127.0.0.1:9"
    lonely = engine_for(backbone, running[0].url, away, patience=1.0)
    with pytest.raises(TrainingError, match=rf"{away} did not answer for 1 s.*stage=serve"):
        lonely.sync()


# --- whole runs, and the end ---------------------------------------------------------------------


def test_two_ranks_share_servers_of_which_one_loses_its_weights_again_and_again(running, tmp_path):
    """SC-GRPO and an evaluation, as a user starts them."""
    urls = ",".join(server.url for server in running)
    small = [
        "stage=grpo", "engine.ranks=2", "grpo.from_base=true", *MODEL, *ROLLOUT,
        f"rollout.servers=[{urls}]", "rollout.max_tokens=8", "rollout.parity.every=2",
        "rollout.parity.probes=2", "rollout.parity.tokens=4", "data.sizes.sft=8",
        "data.sizes.rl=8", "data.sizes.validation=4", "data.sizes.test=4",
        "evaluate.max_tokens=8", "evaluate.batch_size=2", "evaluate.shots=[0]",
        "grpo.prompts_per_step=2", "grpo.group_size=2", "grpo.steps=3",
        "grpo.degenerate_groups=keep", "tracking=none",
    ]  # fmt: skip
    process = run_py(*small, cwd=tmp_path)
    client = Server(running[0].url, 60, "run.py stage=serve")
    lost: set[str] = set()
    while process.poll() is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.05)
        version = client.ask("/weight_info")["weight_version"]
        if "/" in version and version not in lost:  # once after every synchronisation
            lost.add(version)
            client.ask("/update_weight_version", {"new_version": "default"})
    output = tmp_path / "output.txt"
    assert process.returncode == 0, output.read_text()
    assert f"{running[0].url} has lost its weights" in output.read_text()
    assert f"{running[1].url} has lost its weights" not in output.read_text()
    (folder,) = (tmp_path / "outputs").glob("*/*-*")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    gaps = [row["sampler_gap"] for row in rows if "sampler_gap" in row]
    assert len(gaps) == 3 and max(gaps) < LIMIT
    with (folder / "parity.csv").open(newline="") as file:
        checks = list(csv.DictReader(file))
    assert [int(row["step"]) for row in checks] == [0, 1, 2]
    assert all(float(row["gap"]) < LIMIT < float(row["shown"]) for row in checks)
    answered = [file for file in (folder / "predictions").iterdir() if file.read_text()]
    assert answered


AHEAD = [
    "stage=grpo", "grpo.from_base=true", *MODEL, *ROLLOUT, "rollout.max_tokens=8",
    "rollout.parity.every=2", "rollout.parity.probes=2", "rollout.parity.tokens=4",
    "data.sizes.sft=8", "data.sizes.rl=8", "data.sizes.validation=4", "data.sizes.test=4",
    "grpo.prompts_per_step=2", "grpo.group_size=2", "grpo.steps=3", "tracking=none",
    "grpo.degenerate_groups=keep", "grpo.learning_rate=1e-4", "grpo.overlap=1",
    "grpo.importance.level=token",
]  # fmt: skip


def test_a_batch_drawn_beside_the_one_before_it_is_of_weights_one_step_older(
    running, tmp_path, monkeypatch
):
    config = compose.compose([*AHEAD, f"rollout.servers=[{running[0].url}]"])
    context = open_run(config, RunFolder.create(tmp_path, "ahead"), None, None)
    monkeypatch.setattr(
        Collector,
        "score",
        lambda _, __, groups: [[Score(sum(c.tokens) % 7) for c in group] for group in groups],
    )
    rows: list[dict[str, float]] = []
    monkeypatch.setattr(context, "log", lambda _, __, values: rows.append(dict(values)))
    grpo.train(context)
    assert [row["staleness"] for row in rows] == [0, 1, 1]
    assert max(row["sampler_gap"] for row in rows) < LIMIT  # both sides with the same weights
    assert rows[0]["sampler_gap_max"] < LIMIT < min(row["sampler_gap_max"] for row in rows[1:])


def test_two_ranks_draw_ahead(running, tmp_path):
    urls = ",".join(server.url for server in running)
    process = run_py(*AHEAD, "engine.ranks=2", f"rollout.servers=[{urls}]",
                     "stage.tasks=[grpo]", cwd=tmp_path)  # fmt: skip
    process.wait()
    assert process.returncode == 0, (tmp_path / "output.txt").read_text()
    (folder,) = (tmp_path / "outputs").glob("*/*-*")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["staleness"] for row in rows] == [0, 1, 1]
    assert max(row["sampler_gap"] for row in rows) < LIMIT


def test_a_server_killed_and_started_again_is_given_its_weights_before_it_answers(
    backbone, running, asked, capfd
):
    """Killed in the middle of a call: what it had not answered is asked again when it is up, and
    the random weights it starts with are never drawn from."""
    alone = engine_for(backbone, running[0].url)
    alone.sync()
    many, sampling = [asked[number % 2] for number in range(12)], Sampling(4, 100, 1.0)
    numbers = [(0, number) for number in range(12)]
    before = dict(alone.stream(zip(many, numbers, strict=True), sampling))
    answers = alone.stream(zip(many, numbers, strict=True), sampling)
    after = dict([next(answers)])
    running[0].kill()
    running[0].start()
    after |= dict(answers)  # waits for it
    assert sorted(after) == list(range(12))
    for number, group in after.items():
        assert [c.tokens for c in group] == [c.tokens for c in before[number]]
    assert gap(backbone, many, [after[number] for number in range(12)]) < LIMIT
    assert alone.thrown == 0
    assert capfd.readouterr().err.count(f"{running[0].url} has lost its weights") == 1


def test_ctrl_c_ends_a_server_and_its_engine(running):
    family = running[1].family()
    assert len(family) >= 3  # run.py, the server, its engine
    running[1].interrupt()
    gone, alive = psutil.wait_procs(family, timeout=300)
    assert not alive and gone
