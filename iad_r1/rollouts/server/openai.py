"""vLLM's own server on weights that are on disk, for clients of OpenAI's interface."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iad_r1.backbones.backbone import Backbone
from iad_r1.backbones.packing import unwrap
from iad_r1.rollouts.colocate.sampler import vllm_options, write_model
from iad_r1.rollouts.server import start
from iad_r1.settings.rollout import VllmRollout

WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
KEY = "VLLM_API_KEY"  # where vLLM reads the token: a command line would show it


def write_served(backbone: Backbone, folder: Path) -> None:
    """Write what vLLM serves: the model's configuration, its processor with chat template and the
    limit of pictures that it has now, and links to the weights."""
    assert backbone.folder is not None
    write_model(backbone, folder)
    processor = copy.copy(backbone.processor)
    processor.chat_template = _whole(backbone)
    processor.save_pretrained(folder)
    for file in (file for pattern in WEIGHTS for file in backbone.folder.glob(pattern)):
        (folder / file.name).unlink(missing_ok=True)
        (folder / file.name).symlink_to(file.resolve())


def _whole(backbone: Backbone) -> str:
    """The chat template with the first token that the tokenizer writes before a prompt (LLaVA-1.5):
    vLLM has it write none before a chat."""
    tokenizer, template = backbone.tokenizer, backbone.processor.chat_template
    begins = tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
    return f"{{{{ bos_token }}}}{template}" if begins else template


def options(backbone: Backbone, settings: VllmRollout, max_tokens: int) -> dict[str, Any]:
    """How vLLM is started on these weights, under the names of its engine's arguments."""
    on_gpu = backbone.device.type == "cuda"
    return {
        **vllm_options(settings, unwrap(backbone.model).dtype, on_gpu),
        "load_format": "safetensors",
        "worker_extension_cls": None,  # it takes no other weights
        "logprobs_mode": "raw_logprobs",  # of the model, whatever temperature is asked for
        "distributed_executor_backend": "uni",  # one GPU
        # A template may lose what is no list of parts, and vLLM would put line breaks between them.
        "chat_template_content_format": "openai",
        # Greedy unless a client asks for more: not as the weights' `generation_config.json` has it.
        "generation_config": "vllm",
        "override_generation_config": {"temperature": 0.0, "max_new_tokens": max_tokens},
        "middleware": "iad_r1.rollouts.server.guard.Guard",
        "allowed_media_domains": "none.invalid",  # it fetches nothing: pictures are sent
        "disable_uvicorn_access_log": True,
        "uvicorn_log_level": "warning",
    }


def command(model: Path, chosen: Mapping[str, Any], name: str, host: str, port: int) -> list[str]:
    """vLLM's server, as it is typed."""
    given = {"model": model, "served_model_name": name, "host": host, "port": port, **chosen}
    return [*start.SERVER, *(text for item in given.items() for text in start.flags(*item))]


def environment(settings: VllmRollout, given: Mapping[str, str], key: str | None) -> dict[str, str]:
    """The variables of the server: the development endpoints stay closed, and a token is asked for
    only if there is a `key`."""
    closed = ("VLLM_SERVER_DEV_MODE", KEY)
    found = {**given, **start.environment(settings, given)}
    kept = {name: value for name, value in found.items() if name not in closed}
    return kept if key is None else {**kept, KEY: key}


def mark(folder: Path, chosen: Mapping[str, Any]) -> str:
    """Eight letters that tell what is served from anything else: weights, configuration, processor
    and options. Clients keep replies by the name of the model, and must not take those of another.
    """
    found = hashlib.sha256(json.dumps(chosen, sort_keys=True).encode())
    for file in sorted(folder.iterdir()):
        found.update(file.name.encode())
        if file.is_symlink():  # weights are many GB
            seen = file.stat()
            found.update(f"{seen.st_size} {seen.st_mtime_ns}".encode())
        else:
            found.update(file.read_bytes())
    return found.hexdigest()[:8]
