"""Talking to rollout servers: weights as bytes, patience, requests; without vLLM."""

from __future__ import annotations

import base64
import io
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from iad_r1.command import compose
from iad_r1.errors import ConfigError, MismatchError, TrainingError
from iad_r1.rollouts.server import sampler as vllm_server
from iad_r1.rollouts.server import start
from iad_r1.rollouts.server import stream as weight_stream
from iad_r1.rollouts.server.client import Server, Stopped

COMMAND = "python run.py stage=serve"
TOKEN = "0" * 32


# --- weights as bytes ----------------------------------------------------------------------------


def stream(send: Callable[[socket.socket], None], token: str = TOKEN) -> list[Any]:
    """What a receiver makes of what `send` writes to it; `token` is the one that it says."""
    listener = weight_stream.listen("127.0.0.1")
    stop = threading.Event()

    def trainer() -> None:
        while not stop.is_set():
            connection = weight_stream.accept(listener, TOKEN, 5)
            if connection is not None:
                with connection:
                    send(connection)
                return

    thread = threading.Thread(target=trainer)
    thread.start()
    try:
        return list(weight_stream.receive("127.0.0.1", listener.getsockname()[1], token, 5))
    finally:
        stop.set()
        thread.join()
        listener.close()


@pytest.mark.parametrize("dtype", weight_stream.DTYPES.values(), ids=str)
@pytest.mark.parametrize("shape", [(3, 5), (7,), (), (2, 0), (2, 3, 4)], ids=str)
def test_a_weight_arrives_bit_for_bit(dtype, shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)

    def send(connection: socket.socket) -> None:
        weight_stream.send(connection, "größe.weight", weight)
        weight_stream.send(connection, "turned", weight.unsqueeze(0).transpose(0, -1))
        weight_stream.finish(connection)

    (name, plain), (_, turned) = stream(send)
    assert name == "größe.weight"
    assert plain.dtype == dtype and torch.equal(plain, weight)
    assert torch.equal(turned, weight.unsqueeze(0).transpose(0, -1))


@pytest.mark.parametrize("cut", [2, 20, 70])
def test_a_stream_that_ends_early_is_no_set_of_weights(cut):
    one, other = socket.socketpair()
    with one, other:
        weight_stream.send(one, "w", torch.ones(8))
        data = other.recv(4096)
    assert len(data) > cut
    with pytest.raises(ConnectionError, match="went away"):
        stream(lambda connection: connection.sendall(data[:cut]))


def test_weights_are_given_only_to_whoever_knows_the_token():
    given: list[bool] = []
    with pytest.raises(ConnectionError):
        stream(lambda _: given.append(True), token="1" * 32)
    assert not given


def test_a_weight_of_another_kind_is_refused_by_name():
    one, other = socket.socketpair()
    with one, other, pytest.raises(MismatchError, match="steps is int64"):
        weight_stream.send(one, "steps", torch.zeros(2).long())


# --- patience ------------------------------------------------------------------------------------

Reply = tuple[int, Any]


class Script(ThreadingHTTPServer):
    """A server that answers each path with its replies in turn, the last one for ever."""

    def __init__(self, port: int = 0, **replies: list[Reply]) -> None:
        self.replies, self.asked, self.hold = replies, [], threading.Event()
        self.hold.set()
        super().__init__(("127.0.0.1", port), _Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Script

    def do_GET(self) -> None:
        name = self.path.strip("/")
        self.server.asked.append(name)
        self.server.hold.wait(10)
        replies = self.server.replies[name]
        status, value = replies.pop(0) if len(replies) > 1 else replies[0]
        body = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Silence."""


@pytest.fixture
def script() -> Iterator[Callable[..., Script]]:
    """`script(generate=[(500, "..."), (200, {...})])`: a running server."""
    live: list[Script] = []

    def start(port: int = 0, **replies: list[Reply]) -> Script:
        live.append(Script(port, **replies))
        return live[-1]

    yield start
    for server in live:
        server.hold.set()
        server.shutdown()
        server.server_close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


def test_an_answer_is_decoded(script):
    server = script(generate=[(200, {"x": 0.1})], health=[(200, "")])
    client = Server(server.url, 5, COMMAND)
    assert client.ask("/generate", {"n": 1}) == {"x": 0.1}
    assert client.ask("/health") is None


def test_what_a_living_server_refuses_is_told_in_its_words_and_not_asked_again(script):
    said = {"error": {"message": "CUDA out of memory. Tried to allocate 20.00 GiB"}}
    for status in (400, 500):
        server = script(generate=[(status, said)], health=[(200, "")])
        client = Server(server.url, 60, COMMAND)
        with pytest.raises(TrainingError, match=r"Tried to allocate 20\.00 GiB.*rollout\.memory"):
            client.patiently(lambda client=client: client.ask("/generate", {}))
        assert server.asked.count("generate") == 1


def test_a_server_that_starts_again_is_waited_for(script):
    port = free_port()
    client = Server(f"http://127.0.0.1:{port}", 30, COMMAND)
    timer = threading.Timer(0.5, lambda: script(port, generate=[(200, [1])]))
    timer.start()
    assert client.patiently(lambda: client.ask("/generate", {})) == [1]
    timer.join()


def test_a_server_whose_engine_is_dead_is_waited_for(script):
    server = script(
        generate=[(500, "dead"), (500, "dead"), (200, [1])], health=[(503, "dead"), (503, "dead")]
    )
    client = Server(server.url, 30, COMMAND)
    assert client.patiently(lambda: client.ask("/generate", {})) == [1]
    assert server.asked.count("generate") == 3


def test_a_server_that_stays_away_ends_the_run_with_its_address_and_how_to_start_it():
    url = f"http://127.0.0.1:{free_port()}"
    client = Server(url, 0.5, COMMAND)
    message = rf"{re.escape(url)} did not answer for 0\.5 s .*refused.*{COMMAND}.*resume=auto"
    with pytest.raises(TrainingError, match=message):
        client.patiently(lambda: client.ask("/health"))


def test_a_server_that_hangs_ends_the_run(script):
    server = script(generate=[(200, [])])
    server.hold.clear()
    client = Server(server.url, 0.3, COMMAND)
    with pytest.raises(TrainingError, match=r"did not answer for 0\.3 s .*timed out"):
        client.patiently(lambda: client.ask("/generate", {}))


def test_a_request_nobody_waits_for_is_given_up(script):
    server = script(generate=[(200, [])])
    server.hold.clear()
    client, stop, ended = Server(server.url, 60, COMMAND), threading.Event(), []

    def ask() -> None:
        try:
            client.patiently(lambda: client.ask("/generate", {}), stop)
        except Stopped as error:
            ended.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    while not server.asked:
        thread.join(0.01)
    stop.set()
    client.hang_up()
    thread.join(5)
    assert len(ended) == 1


# --- the desk ------------------------------------------------------------------------------------


def desk(work: Callable[..., Any], room: int = 2, servers: int = 2) -> vllm_server._Desk:
    known = [Server(f"http://127.0.0.1:{n + 1}", 1, COMMAND) for n in range(servers)]
    return vllm_server._Desk(known, room, work)


def test_requests_are_spread_over_the_servers():
    both = threading.Barrier(2, timeout=60)  # passed only if two are asked at the same time

    def work(server: Server, asked: int, _stop: threading.Event) -> tuple[str, int]:
        both.wait()
        return server.url, asked

    used = desk(work, room=1)
    for number in range(6):
        used.put(number, 10 * number)
    answers = [used.answer() for _ in range(6)]
    used.close()
    assert sorted(index for index, _ in answers) == list(range(6))
    assert all(asked == 10 * index for index, (_, asked) in answers)
    assert {url for _, (url, _) in answers} == {server.url for server in used.servers}


def test_what_goes_wrong_with_a_request_is_raised_where_its_answer_is_waited_for():
    def work(_server: Server, asked: int, _stop: threading.Event) -> int:
        raise TrainingError(f"no answer to {asked}")

    used = desk(work)
    used.put(0, 7)
    with pytest.raises(TrainingError, match="no answer to 7"):
        used.answer()
    used.close()


# --- requests ------------------------------------------------------------------------------------


def choice(*versions: str, finished: str = "stop") -> dict[str, Any]:
    spans = [{"version": version, "start": 0, "end": 1} for version in versions]
    return {"weight_versions": spans, "finish_reason": finished}


@pytest.mark.parametrize(
    ("choices", "whole"),
    [
        ([choice("a/1"), choice("a/1", finished="length")], True),
        ([choice("a/1"), choice("a/2")], False),
        ([choice("default"), choice("default")], False),
        ([choice("a/1", "a/2")], False),
        ([choice("a/1"), choice("a/1", finished="abort")], False),
        ([choice(finished="abort")], False),
        ([], False),
    ],
)
def test_an_answer_counts_only_if_one_version_of_the_weights_drew_all_of_it(choices, whole):
    assert vllm_server.is_whole({"choices": choices}, "a/1") is whole


def test_one_rank_alone_gives_weights_only_if_it_holds_them_whole():
    model = torch.nn.Linear(2, 1)
    vllm_server.check_whole(model.parameters())
    bias: Any = model.bias
    bias.ds_status = SimpleNamespace(name="AVAILABLE")
    vllm_server.check_whole(model.parameters())
    bias.ds_status = SimpleNamespace(name="NOT_AVAILABLE")  # as ZeRO-3 marks a part
    with pytest.raises(TrainingError, match=r"only a part of the weights \(engine=zero3\)"):
        vllm_server.check_whole(model.parameters())


def test_pictures_lose_nothing_on_the_way():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (37, 53, 3), generator=generator, dtype=torch.uint8)
    image = Image.fromarray(pixels.numpy())
    kind, data = vllm_server.png(image).split(",")
    assert kind == "data:image/png;base64"
    arrived = Image.open(io.BytesIO(base64.b64decode(data)))
    assert arrived.mode == "RGB" and arrived.tobytes() == image.tobytes()


# --- starting one --------------------------------------------------------------------------------

SERVER = ["stage=serve", "rollout=vllm_server", "backbone=qwen25vl_3b"]


def typed(*overrides: str) -> list[str]:
    config = compose.compose([*SERVER, *overrides])
    assert config.rollout.name == "vllm_server"
    return start.command(Path("/model"), config.rollout, torch.bfloat16, True, "a model")


def option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def test_a_server_listens_on_this_machine_alone_unless_told_otherwise():
    assert option(typed(), "--host") == "127.0.0.1"
    assert option(typed("rollout.host=0.0.0.0"), "--host") == "0.0.0.0"


def test_a_server_is_started_with_the_settings_of_the_run():
    command = typed("rollout.max_num_seqs=64", "rollout.eager=true", "rollout.kv_cache_gib=0.5")
    assert option(command, "--model") == "/model"
    assert option(command, "--dtype") == "bfloat16"
    assert option(command, "--max-num-seqs") == "64"
    assert option(command, "--kv-cache-memory-bytes") == str(2**29)
    assert json.loads(option(command, "--limit-mm-per-prompt")) == {"image": 2, "video": 0}
    assert {"--enforce-eager", "--no-mm-device-do-normalize"} <= {*command}
    assert "--kv-cache-memory-bytes" not in typed()
    assert "--no-enforce-eager" in typed()


def test_a_variable_that_the_user_set_is_kept():
    settings = compose.compose([*SERVER, "rollout.eager=true"]).rollout
    assert settings.name == "vllm_server"
    found = start.environment(settings, {"VLLM_LOGGING_LEVEL": "DEBUG", "HOME": "/"})
    assert found["VLLM_LOGGING_LEVEL"] == "DEBUG" and found["VLLM_SERVER_DEV_MODE"] == "1"
    assert "HOME" not in found and found["TORCHDYNAMO_DISABLE"] == "1"


@pytest.mark.parametrize(
    "other",
    [
        "backbone=qwen25vl_7b",
        "weights=tiny",
        "engine.precision=float32",
    ],
)
def test_runs_that_need_other_servers_ask_for_another_name(other):
    same = vllm_server.served(compose.compose([*SERVER, "seed=3"]), None)
    assert same == vllm_server.served(compose.compose(SERVER), None)
    assert vllm_server.served(compose.compose([*SERVER, other]), None).name != same.name
    tiled = vllm_server.served(compose.compose(SERVER), 9999)
    assert tiled.name != same.name and "grpo.max_pixels=9999" in tiled.command
    assert "stage=serve rollout=vllm_server backbone=qwen25vl_3b" in same.command


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stage=serve", "rollout=vllm"], "stage=serve rollout=vllm_server"),
        (["rollout=vllm_server", "rollout.servers=[gpu2:8000]"], r"rollout\.servers\.0="),
        (["rollout=vllm_server", "rollout.servers=[]"], r"rollout\.servers="),
        (
            ["rollout=vllm_server", "rollout.max_num_seqs=2", "grpo.group_size=4"],
            r"rollout\.max_num_seqs=4",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        compose.compose(overrides)
