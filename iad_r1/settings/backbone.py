"""The `backbone`, `weights` and `tuning` sections: which model, whose weights, what learns."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from iad_r1.settings.base import Above0, Count, Section
from iad_r1.settings.chat import Chat


class BuiltBackbone(Section):
    """A model that is built here, weights and all."""

    source: Literal["built"]
    name: str
    vocab_size: Count
    max_pixels: Annotated[int, Field(ge=1024)]  # one image token


class HubBackbone(Section):
    """A published model, read from a folder, an earlier run or the Hugging Face cache."""

    source: Literal["hub"]
    name: str
    path: Annotated[str, Field(min_length=1)]
    revision: Annotated[str, Field(min_length=1)]
    trust_remote_code: bool
    evaluation_only: bool
    license: str
    grpo_max_pixels: Count | None
    sft_learning_rate: Above0
    sft_save_every: Count
    released_test_prompt: str


class ApiBackbone(Chat):
    """A model behind an interface like OpenAI's, which is asked and never trained."""

    source: Literal["api"]
    name: str
    logprobs: bool


Backbone = Annotated[BuiltBackbone | HubBackbone | ApiBackbone, Field(discriminator="source")]


class WeightsKind(Section):
    """Whose weights a run begins with: `weights=...`."""

    name: Literal["published", "tiny", "random"]


class AnyTuning(Section):
    """What learns, in PA-SFT and SC-GRPO alike."""

    train: Annotated[list[Literal["vision", "projector", "language"]], Field(min_length=1)]
    gradient_checkpointing: bool


class FullTuning(AnyTuning):
    """The weights themselves are trained."""

    name: Literal["full"]


class LoraTuning(AnyTuning):
    """Low-rank adapters are trained; the reference policy is the model without them."""

    name: Literal["lora"]
    rank: Count
    alpha: Count
    dropout: Annotated[float, Field(ge=0, lt=1)]


Tuning = Annotated[FullTuning | LoraTuning, Field(discriminator="name")]
