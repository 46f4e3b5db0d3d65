"""The `rollout` section: how completions are drawn, and by what."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from iad_r1.settings.base import Above0, Count, Count0, Section


class Rollout(Section):
    """How completions are sampled during SC-GRPO: what every engine is told."""

    temperature: Annotated[float, Field(gt=0, le=2)]
    top_p: Annotated[float, Field(gt=0, le=1)]
    top_k: Count0
    max_tokens: Count
    batch_size: Count


class HfRollout(Rollout):
    """transformers, with the training weights themselves."""

    name: Literal["hf"]


class Parity(Section):
    """When and how the sampler is compared with the trainer (`rollouts/parity.py`)."""

    every: Count
    probes: Count
    tokens: Count


class AnyVllmRollout(Rollout):
    """vLLM, wherever it runs."""

    max_num_seqs: Count
    max_model_len: Count | None
    max_images: Count
    memory: Annotated[float, Field(gt=0, lt=1)]
    kv_cache_gib: Above0 | None
    eager: bool
    patience: Above0
    parity: Parity


class VllmRollout(AnyVllmRollout):
    """vLLM in the training processes, one engine each."""

    name: Literal["vllm"]
    sleep: bool


class VllmServerRollout(AnyVllmRollout):
    """vLLM servers on GPUs or hosts of their own, started with `stage=serve`."""

    name: Literal["vllm_server"]
    servers: Annotated[
        list[Annotated[str, Field(pattern=r"^https?://[^/\s]+$")]], Field(min_length=1)
    ]
    host: str
    port: Annotated[int, Field(ge=1, le=65535)]


RolloutEngine = Annotated[HfRollout | VllmRollout | VllmServerRollout, Field(discriminator="name")]
