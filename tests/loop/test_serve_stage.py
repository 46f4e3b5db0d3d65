"""Weights served to clients of OpenAI's interface, with a program in the place of vLLM's server."""

from __future__ import annotations

import asyncio
import json
import shlex
import socket
import sys
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest

from iad_r1 import stages
from iad_r1.backbones import twins
from iad_r1.backbones.backbone import Backbone
from iad_r1.command import compose
from iad_r1.errors import ConfigError, MismatchError, TrainingError
from iad_r1.loops import serve
from iad_r1.rollouts.server import openai
from iad_r1.rollouts.server.guard import Guard
from iad_r1.settings.config import Config
from iad_r1.settings.rollout import VllmRollout
from iad_r1.settings.stage import ServedSettings
from iad_r1.store.run_folder import RunFolder

TOKEN = "a token of twenty-one"
SERVER = """
import http.server, json, sys
class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()
        self.wfile.write(json.dumps({"prompt_token_ids": [1, 2, 3]}).encode())
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Answers).serve_forever()
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return twins.build_twin("qwen2_5_vl", tmp_path_factory.mktemp("served") / "twin", seed=1)


@cache
def settings(model: Path, *typed: str) -> Config:
    return compose.compose(["stage=serve", "backbone=qwen25vl_3b", f"init={model}",
                            "engine.precision=float32", *typed])  # fmt: skip


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


def vllm(config: Config) -> VllmRollout:
    assert isinstance(config.rollout, VllmRollout)
    return config.rollout


# --- before anything loads ------------------------------------------------------------------------


def test_by_default_it_is_served_to_this_machine_alone(model):
    stage = settings(model).stage
    assert isinstance(stage, ServedSettings)
    assert (stage.host, stage.port) == ("127.0.0.1", 8000)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["rollout=vllm_server", "stage.port=8001"], r"rollout\.host and rollout\.port"),
        (["weights=random"], "reads weights from disk"),
        (["rollout=hf"], r"^stage=serve rollout=hf: it works with rollout=vllm or vllm_server"),
        (["stage.key=sk-123-abc"], r"stage\.key"),
    ],
)
def test_settings_that_cannot_be_are_refused(model, typed, said):
    with pytest.raises(ConfigError, match=said):
        settings(model, *typed)


def test_weights_have_to_be_named():
    with pytest.raises(ConfigError, match=r"needs weights to serve.*rollout=vllm_server"):
        compose.compose(["stage=serve"])


def test_a_server_of_rollouts_has_the_address_of_its_rollout():
    stage = compose.compose(["stage=serve", "rollout=vllm_server", "rollout.port=8001"]).stage
    assert isinstance(stage, ServedSettings) and stage.port == 8001


def test_what_is_missing_is_said_before_anything_loads(model, monkeypatch):
    stage = stages.find("serve")
    monkeypatch.setattr("iad_r1.stages.serve.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="make vllm-cpu"):
        stage.check_inputs(settings(model))
    monkeypatch.setattr("iad_r1.stages.serve.find_spec", lambda name: name)
    monkeypatch.delenv(openai.KEY, raising=False)
    with pytest.raises(ConfigError, match=r"serves other machines too.*export VLLM_API_KEY"):
        stage.check_inputs(settings(model, "stage.host=0.0.0.0"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        used = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"stage=serve cannot serve at 127\.0\.0\.1:{used}"):
            stage.check_inputs(settings(model, f"stage.port={used}"))


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("rollout.max_model_len=300", "a picture takes up to .* more than rollout.max_model_len"),
        ("rollout.max_model_len=99999999", "tokens that qwen25vl_3b was made for"),
    ],
)
def test_lengths_that_do_not_fit_are_refused_before_vllm_starts(model, typed, said, tmp_path):
    with pytest.raises(ConfigError, match=said):
        serve.weights(settings(model, typed), RunFolder.create(tmp_path, "serve"), None)


# --- how vLLM is started --------------------------------------------------------------------------


def test_the_token_is_in_the_environment_alone_and_development_endpoints_stay_closed(model):
    rollout = vllm(settings(model, "rollout.eager=true"))
    given = {"VLLM_API_KEY": "an old token", "VLLM_SERVER_DEV_MODE": "1", "HOME": "/"}
    found = openai.environment(rollout, given, TOKEN)
    assert found["VLLM_API_KEY"] == TOKEN and found["HOME"] == "/"
    assert "VLLM_SERVER_DEV_MODE" not in found and found["TORCHDYNAMO_DISABLE"] == "1"
    assert "VLLM_API_KEY" not in openai.environment(rollout, given, None)


@pytest.fixture
def run(model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, port: int):
    """Serves with a program in the place of vLLM's."""

    def start(program: str) -> None:
        typed = [sys.executable, "-c", program, str(port)]
        monkeypatch.setattr(openai, "command", lambda *given: typed)
        config = settings(model)
        stage = config.stage.model_copy(update={"port": port})
        folder = RunFolder.create(tmp_path, "serve")
        serve.weights(config.model_copy(update={"stage": stage}), folder, TOKEN)

    return start


def test_a_server_that_reads_other_tokens_is_found_out_and_ended(run):
    """The real one is asked in `tests/engines/test_openai.py`."""
    with pytest.raises(MismatchError, match=r"the example: the trainer reads \d+ prompt tokens"):
        run(SERVER)
    assert not [c for c in psutil.Process().children() if c.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ("", "does not answer .*See what it said above"),  # it hangs up
        ("self.do_GET(); self.wfile.write(b'<html>')", "no server of OpenAI's interface"),
    ],
)
def test_a_server_that_goes_away_or_is_another_program_is_said(run, reply, said):
    program = SERVER.partition("        self.do_GET()")
    rest = program[2].partition("http.server.HTTPServer")
    with pytest.raises(TrainingError, match=said):
        run(f"{program[0]}        {reply}\n{''.join(rest[1:])}")


def test_a_server_that_does_not_start_is_said(run):
    with pytest.raises(TrainingError, match=r"did not start \(exit code 3\)"):
        run("exit(3)")


def test_what_is_served_is_the_weights_with_the_limit_of_pictures_of_the_run(model, tmp_path):
    config = settings(model, "evaluate.max_pixels=50176", "evaluate.max_tokens=77")
    backbone = serve.open_backbone(config, RunFolder(tmp_path), None, lambda: iter(()))
    backbone.limit_pixels(config.evaluate.max_pixels)
    openai.write_served(backbone, tmp_path / "model")
    written = json.loads((tmp_path / "model" / "processor_config.json").read_text())
    assert written["image_processor"]["size"]["longest_edge"] == 50176
    links = [file for file in (tmp_path / "model").iterdir() if file.is_symlink()]
    assert [link.resolve() for link in links] == [*model.resolve().glob("*.safetensors")]
    assert (tmp_path / "model" / "chat_template.jinja").is_file()

    chosen = openai.options(backbone, vllm(config), config.evaluate.max_tokens)
    assert chosen["override_generation_config"] == {"temperature": 0.0, "max_new_tokens": 77}
    assert chosen["dtype"] == "float32" and chosen["limit_mm_per_prompt"]["image"] == 2
    typed = openai.command(tmp_path / "model", chosen, "a name", "127.0.0.1", 8000)
    assert typed[typed.index("--served-model-name") + 1] == "a name"
    assert "--worker-extension-cls" not in typed

    name = openai.mark(tmp_path / "model", chosen)
    assert openai.mark(tmp_path / "model", chosen) == name
    assert openai.mark(tmp_path / "model", {**chosen, "dtype": "bfloat16"}) != name
    backbone.limit_pixels(25088)
    openai.write_served(backbone, tmp_path / "model")
    assert openai.mark(tmp_path / "model", chosen) != name


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_the_served_template_writes_what_the_tokenizer_puts_before_a_prompt(family, tmp_path):
    """vLLM has the tokenizer put nothing before a chat, and LLaVA-1.5 was trained with `<s>`."""
    folder = twins.build_twin(family, tmp_path / "twin", seed=1)
    backbone = Backbone.load(folder, weights=False)
    openai.write_served(backbone, tmp_path / "model")
    template = (tmp_path / "model" / "chat_template.jinja").read_text()
    said = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    ours = backbone.processor.apply_chat_template(said, add_generation_prompt=True)
    served = backbone.processor.apply_chat_template(
        said, chat_template=template, add_generation_prompt=True
    )
    tokens = backbone.tokenizer(served, add_special_tokens=False)["input_ids"]
    assert tokens == backbone.tokenizer(ours)["input_ids"]


def test_clients_are_shown_what_to_type_and_never_the_token(model, monkeypatch, tmp_path):
    monkeypatch.setenv("VLLM_API_KEY", TOKEN)
    request = {"model": "run/sft@12345678", "messages": []}
    said = serve.example(settings(model), tmp_path, "http://127.0.0.1:8000", request, key=True)
    assert "curl -s http://127.0.0.1:8000/v1/chat/completions" in said
    assert "Authorization: Bearer $VLLM_API_KEY" in said
    assert "backbone.model=run/sft@12345678 backbone.key=VLLM_API_KEY evaluate.prompt=" in said
    assert json.loads((tmp_path / "request.json").read_text()) == request
    compile((tmp_path / "client.py").read_text(), "client.py", "exec")
    files = [file.read_text() for file in tmp_path.iterdir()]
    assert not [text for text in [said, *files] if TOKEN in text]
    said = serve.example(settings(model), tmp_path, "http://127.0.0.1:8000", request, key=False)
    assert "Authorization" not in said


def test_what_is_typed_in_a_shell_holds_where_the_path_has_a_space(model, tmp_path):
    folder = tmp_path / "my runs"
    folder.mkdir()
    request = {"model": "run/sft@12345678", "messages": []}
    said = serve.example(settings(model), folder, "http://127.0.0.1:8000", request, key=False)
    [typed] = [line for line in said.splitlines() if "curl -s" in line]
    assert shlex.split(typed)[-1] == f"@{folder / 'request.json'}"
    assert f"python '{folder / 'client.py'}' <picture>" in said


# --- what is open ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "answered"),
    [("/v1/chat/completions", True), ("/v1/models", True), ("/health", True), ("/", False),
     ("/invocations", False), ("/tokenize", False), ("/v1", False), ("/metrics", False)],
)  # fmt: skip
def test_only_what_asks_for_the_token_is_open(path, answered):

    reached, sent = [], []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope["path"])

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(Guard(app)({"type": "http", "path": path}, None, send))
    assert reached == [path] * answered
    assert [message["status"] for message in sent[:1]] == [404] * (not answered)
