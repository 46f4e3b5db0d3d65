"""`stage=serve`: this process becomes a server of rollouts, or watches over one that serves weights
as OpenAI does."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
from PIL import Image

from iad_r1.backbones.backbone import Backbone
from iad_r1.chat.client import messages
from iad_r1.data.drawn import world
from iad_r1.errors import ConfigError, TrainingError, setting
from iad_r1.loops.inspector import most_tokens, with_room
from iad_r1.loops.opening import corpus, open_backbone
from iad_r1.rollouts.colocate.sampler import check_ids, require_vllm, tile_limit
from iad_r1.rollouts.prompting import open_prompter, scaled
from iad_r1.rollouts.server import openai
from iad_r1.rollouts.server.sampler import served
from iad_r1.rollouts.server.start import become_server
from iad_r1.settings.config import Config
from iad_r1.settings.rollout import VllmRollout, VllmServerRollout
from iad_r1.settings.stage import ServedSettings
from iad_r1.store.run_folder import RunFolder, write_json, write_text
from iad_r1.store.starts import Start, start_of
from iad_r1.types import Sample, Solution

GRACE = 20.0  # seconds for the server to end when it is asked to
PAUSE = 0.5  # seconds between two looks at a server that starts
SIDE = 700  # pixels of the picture of the example
ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # where a server of all addresses is reached here


def rollouts(config: Config, folder: RunFolder, start: Start | None) -> None:
    """Become a vLLM server that begins without weights."""
    assert isinstance(config.rollout, VllmServerRollout)
    require_vllm()
    backbone = open_backbone(config, folder, start, lambda: corpus(config))
    folder.update_manifest(status="serving")
    backbone.limit_pixels(config.grpo.max_pixels)
    name = served(config, tile_limit(backbone)).name
    become_server(backbone, config.rollout, folder.path / "model", name)


def weights(config: Config, folder: RunFolder, key: str | None) -> None:
    """Serve the weights that `init` names, until Ctrl-C.

    Before clients are told the address, the server is asked about one picture, and has to read the
    very tokens that the stages here read. Raises ConfigError where pictures and answers have no
    room, MismatchError where the tokens differ, TrainingError if the server ends by itself.
    """
    stage, start = config.stage, start_of(str(config.init))
    assert isinstance(stage, ServedSettings)
    backbone = open_backbone(config, folder, start, lambda: corpus(config))
    config = with_room(config, backbone)
    rollout = config.rollout
    assert isinstance(rollout, VllmRollout)
    prompter = open_prompter(config, backbone, "evaluate")  # which limits pictures
    sample = _drawn()
    check_room(config, backbone, backbone.text_tokens(prompter.conversation(sample, 0)))
    model = folder.path / "model"
    openai.write_served(backbone, model)
    chosen = openai.options(backbone, rollout, config.evaluate.max_tokens)
    name = f"{_name(config, start)}@{openai.mark(model, chosen)}"
    listens = stage.host.strip("[]")
    typed = openai.command(model, chosen, name, listens, stage.port)
    print(f"{shlex.join(typed)}\n", flush=True)
    host = ANYWHERE.get(listens, listens)
    url = f"http://{f'[{host}]' if ':' in host else host}:{stage.port}"
    with started(typed, openai.environment(rollout, os.environ, key)) as server:
        wait_for(server, url)
        request = {
            "model": name,
            "messages": messages(
                prompter.conversation(sample, 0), [scaled(sample, config.evaluate)]
            ),
            "max_tokens": config.evaluate.max_tokens,
            "temperature": 0.0,
        }
        said = post(url, request | {"max_tokens": 1, "return_token_ids": True}, key)
        check_ids(prompter.encode(sample, 0), said["prompt_token_ids"])
        folder.update_manifest(status="serving")
        print(example(config, folder.path, url, request, key is not None), flush=True)
        code = server.wait()
    raise TrainingError(f"vLLM's server ended by itself, with exit code {code}. See what it said.")


def check_room(config: Config, backbone: Backbone, words: int) -> None:
    """ConfigError unless the largest picture, the `words` (tokens) of the prompt and an answer fit
    into what vLLM gives room for, and that into what the model was made for."""
    rollout, asked = config.rollout, config.evaluate
    assert isinstance(rollout, VllmRollout) and rollout.max_model_len is not None
    if rollout.max_model_len > backbone.positions:
        raise ConfigError(
            f"rollout.max_model_len={rollout.max_model_len} is more than the "
            f"{backbone.positions:,} tokens that {config.backbone.name} was made for. Use "
            f"rollout.max_model_len={backbone.positions}, or leave it out."
        )
    picture = most_tokens(backbone)
    needed = words + picture + asked.max_tokens
    if needed > rollout.max_model_len:
        raise ConfigError(
            f"a picture takes up to {picture:,} tokens, the prompt {words:,} and an answer "
            f"{asked.max_tokens:,}: more than rollout.max_model_len={rollout.max_model_len:,}. "
            f"Show smaller pictures (evaluate.max_pixels), or use rollout.max_model_len={needed}."
        )


@contextmanager
def started(typed: Sequence[str], given: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process with these variables. It is asked to end afterwards, as Ctrl-C would, and ended
    if it does not."""
    process = subprocess.Popen(typed, env=given)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(server: subprocess.Popen[bytes], url: str) -> None:
    """Until the server answers. TrainingError if it ends before that."""
    while True:
        if (code := server.poll()) is not None:
            raise TrainingError(
                f"vLLM's server did not start (exit code {code}). See what it said above; if "
                "memory ran out, lower rollout.memory, rollout.max_num_seqs or "
                "rollout.max_model_len."
            )
        try:
            urlopen(f"{url}/health", timeout=10).close()
            return
        except (OSError, HTTPException):  # nobody listens yet
            time.sleep(PAUSE)


def post(url: str, request: Mapping[str, Any], key: str | None) -> dict[str, Any]:
    """The reply to a conversation. TrainingError in the server's words if it refuses."""
    headers = {"Content-Type": "application/json"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    body = json.dumps(request).encode()
    asked = Request(f"{url}/v1/chat/completions", body, headers)
    try:
        with urlopen(asked) as reply:
            return json.load(reply)
    except HTTPError as error:
        said = error.read().decode(errors="replace")
        raise TrainingError(f"vLLM's server answered {error.code}: {said}") from None
    except (OSError, HTTPException) as error:  # it went away, also in the middle of its answer
        raise TrainingError(
            f"vLLM's server does not answer ({error!r}). See what it said above; if memory ran "
            "out, lower rollout.memory, rollout.max_num_seqs or rollout.max_model_len."
        ) from None
    except ValueError as error:
        raise TrainingError(
            f"what answers at {url} is no server of OpenAI's interface: its reply is no JSON "
            f"({error}). Is another program at this port? Use stage.port=<another>."
        ) from None


def example(config: Config, folder: Path, url: str, request: Mapping[str, Any], key: bool) -> str:
    """What clients do, in the words of a shell and of Python, with a `key` or without. The files
    that it names are written."""
    assert isinstance(config.stage, ServedSettings)
    variable, asked, file = config.stage.key, config.evaluate, folder / "request.json"
    write_json(file, request)
    token = f'os.environ["{variable}"]' if key else '"none"'
    program = PROGRAM.format(request=str(file), url=url, token=token)
    write_text(folder / "client.py", program)
    headers = ['-H "Content-Type: application/json"']
    headers += [f'-H "Authorization: Bearer ${variable}"'] if key else []
    size = json.dumps(asked.max_size, separators=(",", ":"))
    return EXAMPLE.format(
        url=url,
        model=request["model"],
        curl=f"curl -s {url}/v1/chat/completions {' '.join(headers)} -d {shlex.quote(f'@{file}')}",
        client=shlex.quote(str(folder / "client.py")),
        program=textwrap.indent(program, "    "),
        evaluate="python run.py stage=evaluate backbone=api "
        f"{setting('backbone.base_url', f'{url}/v1')} "
        f"{setting('backbone.model', request['model'])} backbone.key={variable} "
        f"evaluate.prompt={asked.prompt} evaluate.max_tokens={asked.max_tokens} "
        f"{shlex.quote(f'evaluate.max_size={size}')}",
    )


EXAMPLE = """\
Served at {url}/v1 until Ctrl-C, under the name {model}

A drawn picture, with the prompt of the weights:
  {curl}

A picture of yours (python {client} <picture>):
{program}
A benchmark:
  {evaluate} benchmark=...
"""
PROGRAM = """\
import base64, json, os, sys
from openai import OpenAI

asked = json.load(open({request!r}))  # with the prompt of the weights
with open(sys.argv[1], "rb") as file:
    picture = base64.b64encode(file.read()).decode()
for part in asked["messages"][-1]["content"]:
    if part["type"] == "image_url":
        part["image_url"]["url"] = f"data:image;base64,{{picture}}"
client = OpenAI(base_url="{url}/v1", api_key={token})
print(client.chat.completions.create(**asked).choices[0].message.content)
"""


def _name(config: Config, start: Start | None) -> str:
    """What the weights are called: a run by its folder and stage, others by their hub id or
    folder."""
    if start is None:
        named = str(config.init)
        return Path(named).name if Path(named).is_absolute() else named
    return f"{start.run.path.parent.name}/{start.run.path.name}/{start.stage}"


def _drawn() -> Sample:
    """A picture to ask about."""
    drawn = world.draw(np.random.default_rng(0), world.SEEN_PRODUCTS[0], "scratch", SIDE)
    picture = Image.fromarray(drawn.image)
    return Sample("the example", "", "serve", "", picture, Solution("Yes"))
