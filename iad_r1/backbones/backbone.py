"""A model with its processor: the one place that turns conversations into tensors and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from PIL.Image import Resampling
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize
from transformers.utils import logging as hf_logging

from iad_r1 import checkpoint
from iad_r1.errors import MismatchError, WeightsError
from iad_r1.types import Conversation

if TYPE_CHECKING:
    from PIL.Image import Image

hf_logging.disable_progress_bar()  # loading and saving take a moment; the stages show their own

Inputs = Mapping[str, torch.Tensor]  # one prompt as the processor returns it, batch size 1


@dataclass(frozen=True)
class Prompt:
    """One prompt, as every part of the system reads it.

    Attributes:
        text: with the model's chat template, each picture as its one unexpanded placeholder; what
            an engine with a processor of its own (vLLM) is given.
        images: the very pictures that `inputs` were made of.
        inputs: tensors of the processor, batch of 1, image tokens expanded.
        name: whose prompt it is, for messages.
    """

    text: str
    images: tuple[Image, ...]
    inputs: Inputs
    name: str = ""


@dataclass(frozen=True)
class EncodedTarget:
    """A completion to learn: its tokens, end of turn included, and which of them are trained."""

    tokens: tuple[int, ...]
    trained: tuple[bool, ...]


class Backbone:
    """One vision-language model and how to talk to it.

    Attributes:
        model: the transformers model.
        end_of_turn: the token that ends an answer.
        placeholders: tokens that stand for image content and must never be sampled.
    """

    def __init__(self, model: PreTrainedModel, processor: Any) -> None:
        self.model: Any = model  # families differ in what hangs below it
        self.processor = processor
        self.tokenizer = processor.tokenizer
        end = model.generation_config.eos_token_id if model.generation_config else None
        self.end_of_turn: int = (end[0] if isinstance(end, list) else end) or (
            self.tokenizer.eos_token_id
        )
        config = model.config
        self.placeholders: tuple[int, ...] = tuple(
            token
            for name in ("image_token_id", "video_token_id", "vision_start_token_id")
            if (token := getattr(config, name, None)) is not None
        )

    @classmethod
    def load(cls, path: Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Backbone:
        """Read a checkpoint folder in Hugging Face layout. Raises WeightsError if it is none."""
        if not (path / "config.json").is_file():
            raise WeightsError(
                f"{path} holds no config.json, so it is not a Hugging Face checkpoint. "
                "Give the folder that holds config.json and *.safetensors."
            )
        model: Any = AutoModelForImageTextToText.from_pretrained(
            path, dtype=dtype, use_safetensors=True
        )
        return cls(model.to(device), AutoProcessor.from_pretrained(path))

    def save(self, path: Path) -> None:
        """Write weights and processor in Hugging Face layout; the folder is whole or not there."""
        with checkpoint.write_folder(path) as partial:
            self.write(partial)

    def write(self, folder: Path) -> None:
        """Write into a folder that exists; of a model with an adapter, the adapter alone."""
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    def read(self, folder: Path) -> None:
        """Take over the weights that `write` left, bit for bit, in place."""
        if isinstance(self.model, PeftModel):
            adapter = load_peft_weights(str(folder), device=str(self.model.device))
            set_peft_model_state_dict(self.model, adapter)
            return
        saved = Backbone.load(folder, self.model.dtype, str(self.model.device))
        self.model.load_state_dict(saved.model.state_dict())

    def limit_pixels(self, max_pixels: int) -> None:
        """Let no picture through that is larger, where the processor limits sizes by area (the
        Qwen families); the others resize every picture to a size of their own."""
        if self._sizes_by_area:
            self.processor.image_processor.size["longest_edge"] = max_pixels

    @property
    def _sizes_by_area(self) -> bool:
        processor = self.processor.image_processor
        return hasattr(processor, "merge_size") and "longest_edge" in (processor.size or {})

    def fit(self, image: Image) -> Image:
        """The picture at the size the model will see it, where the processor only rounds and limits
        sizes (the Qwen families); elsewhere the picture as it is, for the processor to resize.

        Sampler and trainer are given this picture, so neither can see another one.
        """
        if not self._sizes_by_area:
            return image
        processor = self.processor.image_processor
        height, width = smart_resize(
            image.height,
            image.width,
            factor=processor.patch_size * processor.merge_size,
            min_pixels=processor.size["shortest_edge"],
            max_pixels=processor.size["longest_edge"],
        )
        same = (width, height) == image.size
        return image if same else image.resize((width, height), Resampling.BICUBIC)

    def encode(self, conversation: Conversation, images: Sequence[Image], name: str = "") -> Prompt:
        """The prompt as the model reads it: image tokens expanded, pictures as pixel tensors."""
        if conversation.images != len(images):
            raise MismatchError(
                f"the prompt asks for {conversation.images} image(s) and {len(images)} were given: "
                f"{conversation.text!r}"
            )
        text = self.processor.apply_chat_template(
            _messages(conversation), add_generation_prompt=True, tokenize=False
        )
        inputs = self.processor(text=[text], images=list(images) or None, return_tensors="pt")
        return Prompt(text, tuple(images), dict(inputs), name)

    def encode_target(self, text: str, untrained: Sequence[tuple[int, int]] = ()) -> EncodedTarget:
        """Tokens of `text` and the end of turn; tokens touching an untrained span are not trained.

        Args:
            untrained: character spans [start, end) the loss must not see.
        """
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        trained = tuple(
            not any(start < stop and first < end for first, stop in untrained)
            for start, end in encoded["offset_mapping"]
        )
        return EncodedTarget((*encoded["input_ids"], self.end_of_turn), (*trained, True))

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of a completion, without control tokens."""
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True)


def _messages(conversation: Conversation) -> list[dict]:
    content: list[dict] = []
    for index, text in enumerate(conversation.text.split("{image}")):
        if index:
            content.append({"type": "image"})
        if text:
            content.append({"type": "text", "text": text})
    system = [{"role": "system", "content": conversation.system}] if conversation.system else []
    return [*system, {"role": "user", "content": content}]
