"""What a run leaves is served by a plain vLLM: the folder's name and nothing of ours is given."""

# vllm is installed only where rollouts go through it
# pyright: reportMissingImports=false

from __future__ import annotations

import base64
import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm_cases import move, picture, prompts, seeds

from iad_r1.backbones.backbone import Backbone, Prompt
from iad_r1.rollouts.hf import HfSampler
from iad_r1.rollouts.sampling import Sampling
from iad_r1.types import Conversation

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]
QUESTION = "Are there any defects?"
TOKENS, STARTED = 12, 300.0  # of an answer; seconds that a server may take to start


@pytest.fixture(scope="module", params=["qwen2_5_vl", "llava"])
def exported(
    request: pytest.FixtureRequest,
    twin: Callable[..., Backbone],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Backbone, Path]:
    """A trained twin, and the folder that a run would leave of it."""
    backbone = twin(request.param)
    move(backbone, 3)
    folder = tmp_path_factory.mktemp("run") / "sft"
    backbone.save(folder)
    return backbone, folder


def greedy(backbone: Backbone, asked: list[Prompt]) -> list[list[int]]:
    """The tokens of the transformers engine."""
    groups = HfSampler(backbone, 8).generate(asked, Sampling(1, TOKENS, 0.0), seeds(asked))
    return [list(group[0].tokens) for group in groups]


def test_vllm_reads_an_export_and_answers_as_we_do(exported, monkeypatch):
    for name, value in {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR",
                        "VLLM_CPU_OMP_THREADS_BIND": "nobind"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    torch._dynamo.config.disable = True  # as our engine does: it would compile for a minute
    from vllm import LLM, SamplingParams

    backbone, folder = exported
    asked = prompts(backbone)
    llm = LLM(
        str(folder), dtype="float32", max_model_len=512, max_num_seqs=4, enforce_eager=True,
        gpu_memory_utilization=0.05, kv_cache_memory_bytes=2**27,
    )  # fmt: skip
    try:
        said = llm.generate(
            [{"prompt": p.text, "multi_modal_data": {"image": list(p.images)}} for p in asked],
            SamplingParams(temperature=0, max_tokens=TOKENS, logit_bias=never(backbone)),
            use_tqdm=False,
        )
    finally:
        llm.llm_engine.engine_core.shutdown()
    assert [list(answer.outputs[0].token_ids) for answer in said] == greedy(backbone, asked)


def never(backbone: Backbone) -> dict[int, float]:
    """Of untrained weights alone: they would draw placeholders of pictures."""
    return dict.fromkeys(backbone.placeholders, -100.0)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of `vllm serve` on an export."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        # what `vllm serve` starts; that command does not know the name of the CPU's package
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", f"--model={folder}",
        "--host=127.0.0.1", f"--port={port}", "--dtype=float32", "--max-model-len=512",
        "--max-num-seqs=4",
        "--enforce-eager", "--gpu-memory-utilization=0.05", f"--kv-cache-memory-bytes={2**27}",
        "--served-model-name=export",
    ]  # fmt: skip
    quick = {"TORCHDYNAMO_DISABLE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    log = folder.with_name("server.log")
    with log.open("w") as said:
        server = subprocess.Popen(
            command, env={**os.environ, **quick}, stdout=said, stderr=subprocess.STDOUT
        )
    address = f"http://127.0.0.1:{port}"
    try:
        wait(server, f"{address}/health", log)
        yield address
    finally:
        server.terminate()
        server.wait(60)


def wait(server: subprocess.Popen[bytes], address: str, log: Path) -> None:
    """Until the server answers."""
    deadline = time.monotonic() + STARTED
    while True:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.5)


def chat(address: str, parts: list[dict[str, Any]], **settings: Any) -> str:
    """The answer to one message."""
    asked = {"model": "export", "messages": [{"role": "user", "content": parts}], **settings}
    request = urllib.request.Request(
        f"{address}/v1/chat/completions",
        json.dumps(asked).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)["choices"][0]["message"]["content"]


def test_vllm_serve_answers_a_chat_message_with_a_picture_as_we_do(exported):
    backbone, folder = exported
    shown = backbone.fit(picture(0))
    asked = [backbone.encode(Conversation("{image}" + QUESTION), [shown])]
    file = io.BytesIO()
    shown.save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    with served(folder) as address:
        said = chat(
            address,
            [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}],
            temperature=0,
            max_tokens=TOKENS,
            logit_bias={str(token): bias for token, bias in never(backbone).items()},
            # the first token of Llama's tokenizer is in no chat template, so it has to be asked for
            add_special_tokens=backbone.tokenizer.bos_token_id is not None,
        )
    assert said == backbone.decode(greedy(backbone, asked)[0])
