"""A model with its processor: the one place that turns conversations into tensors and back."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from PIL import ImageOps
from PIL.Image import Resampling
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize
from transformers.utils import logging as hf_logging

from iad_r1.backbones.families import Sizing, check_frame, family_of
from iad_r1.backbones.float32_head import use_float32_head
from iad_r1.backbones.patches import use_patch_product
from iad_r1.backbones.windows import use_batched_windows
from iad_r1.boxes import Frame
from iad_r1.errors import MismatchError, WeightsError
from iad_r1.store import checkpoints
from iad_r1.store.run_folder import write_json
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
        family: what its architecture decides, by `config.model_type`.
        ends: the tokens that end an answer; an engine stops at any of them.
        end_of_turn: the one of them that a trained answer ends with.
        placeholders: tokens that stand for image content and must never be sampled.
        max_pixels: the limit that pictures are shown within; None: the checkpoint's own.
        folder: where an engine reads the weights, if `model` has none; the engine prepares the
            pictures, too. None: `model` has its weights.
        device: where `model` computes, or the engine that has the weights.

    Raises ConfigError if the architecture is not known here.
    """

    def __init__(self, model: PreTrainedModel, processor: Any) -> None:
        self.model: Any = model  # families differ in what hangs below it
        self.processor = processor
        self.tokenizer = processor.tokenizer
        # what a tokenizer.json may hold; no call changes it now, so that threads can share it
        self.tokenizer.backend_tokenizer.no_padding()
        self.tokenizer.backend_tokenizer.no_truncation()
        self.family = family_of(model.config.model_type)
        self.ends = _ends(model, self.tokenizer)
        own = self.tokenizer.eos_token_id
        self.end_of_turn: int = own if own in self.ends else self.ends[0]
        self.placeholders: tuple[int, ...] = tuple(
            token
            for name in ("image_token_id", "video_token_id", "vision_start_token_id")
            if (token := getattr(model.config, name, None)) is not None
        )
        self.max_pixels: int | None = None
        self.folder: Path | None = None
        self.device: torch.device = model.device
        names, pictures = _LIMITED[self.family.sizing], processor.image_processor
        self._own = {name: copy.deepcopy(getattr(pictures, name)) for name in names}
        _save_with_the_hubs_names(model)
        if self.family.segments:
            use_batched_windows(self.model.model.visual)
            use_patch_product(self.model.model.visual)
        use_float32_head(model)

    @classmethod
    def load(
        cls,
        path: Path,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        *,
        trust_remote_code: bool = False,
        weights: bool = True,
    ) -> Backbone:
        """Read a checkpoint folder in Hugging Face layout. Raises WeightsError if it is none,
        ConfigError if its architecture is not known here.

        Args:
            trust_remote_code: whether code that comes with the weights may run.
            weights: False leaves them to an engine (see `folder`): the model lies on the meta
                device, so it takes no memory and computes nothing.
        """
        if not (path / "config.json").is_file():
            raise WeightsError(
                f"{path} holds no config.json, so it is not a Hugging Face checkpoint. "
                "Give the folder that holds config.json and *.safetensors."
            )
        if not trust_remote_code:  # with it, only the code knows what it builds
            described = json.loads((path / "config.json").read_text(encoding="utf-8"))
            family_of(described.get("model_type"))
        model: Any = AutoModelForImageTextToText.from_pretrained(
            path,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            device_map=None if weights else "meta",
        )
        processor = AutoProcessor.from_pretrained(path, trust_remote_code=trust_remote_code)
        found = cls(model.to(device) if weights else model, processor)
        found.check_pictures(path)
        if not weights:
            found.folder, found.device = path, torch.device(device)
        return found

    def save(self, path: Path) -> None:
        """Write weights and processor in Hugging Face layout; the folder is whole or not there."""
        with checkpoints.write_folder(path) as partial:
            self.write(partial)

    def write(self, folder: Path) -> None:
        """Write into a folder that exists; of a model with an adapter, the adapter alone.

        Pictures are limited there as the checkpoint that was loaded had it: the limit of a stage
        is no property of the weights.
        """
        shown = self._show_tilings(self._own.get(TILINGS))
        if isinstance(self.model, PeftModel):
            # embeddings are never resized here; to find that out, peft would look on the hub
            self.model.save_pretrained(str(folder), save_embedding_layers=False)
        else:
            self.model.save_pretrained(folder)
        self._show_tilings(shown)
        self.own_processor().save_pretrained(folder)
        write_json(folder / PICTURES, self.pictures)

    def read(self, folder: Path) -> None:
        """Take over the weights that `write` left, bit for bit, in place."""
        if isinstance(self.model, PeftModel):
            self.check_pictures(folder)
            adapter = load_peft_weights(str(folder), device=str(self.model.device))
            set_peft_model_state_dict(self.model, adapter)
            return
        saved = Backbone.load(folder, self.model.dtype, str(self.model.device))
        self.model.load_state_dict(saved.model.state_dict())

    @property
    def pictures(self) -> dict[str, str]:
        """What makes tensors of pictures: a class of transformers, and the library behind it.
        Others round and resize differently. `processor_config.json` names neither for sure."""
        used = self.processor.image_processor
        backend = getattr(used, "backend", "code of its own")
        return {"image_processor": type(used).__name__, "backend": backend}

    def check_pictures(self, folder: Path) -> None:
        """MismatchError if a run wrote these weights with pictures made by something else.
        Published weights do not say."""
        record = folder / PICTURES
        if record.is_file():
            check_same_pictures(
                json.loads(record.read_text(encoding="utf-8")),
                self.pictures,
                f"the weights in {folder}",
                f"delete {record} to go on with other pixels",
            )

    def limit_pixels(self, max_pixels: int | None) -> None:
        """Show no picture larger than this from now on; None: the checkpoint's own limit. What that
        means for a family is said in `families.Family`."""
        pictures = self.processor.image_processor
        _set(pictures, self._own)
        if max_pixels is not None:
            _set(pictures, _LIMITS[self.family.sizing](pictures, max_pixels))
        if TILINGS in self._own:
            self._show_tilings(pictures.image_grid_pinpoints)
        self.max_pixels = max_pixels

    def own_processor(self) -> Any:
        """The processor with the limit of the checkpoint: a copy, since this one is in use."""
        found = copy.copy(self.processor)
        found.image_processor = copy.deepcopy(self.processor.image_processor)
        _set(found.image_processor, self._own)
        return found

    def picture_tokens(self, width: int, height: int) -> int:
        """Tokens that a picture of this size takes in a prompt, within the limit of now."""
        width, height = self._fitting(width, height)
        counted = self.processor._get_num_multimodal_tokens(image_sizes=[(height, width)])
        return counted["num_image_tokens"][0]

    def frame(self, shown: tuple[int, int], picture: tuple[int, int]) -> Frame:
        """The coordinates in which the model writes boxes of a picture of that size (width, height)
        that is `shown` in another one, within the limit of now. ConfigError if nobody has said
        them."""
        name = check_frame(self.model.config.model_type)
        return Frame(
            name, (1000, 1000) if name == "thousandths" else self._fitting(*shown), picture
        )

    def cut_off(self, width: int, height: int) -> float:
        """The share of a picture of this size that the processor cuts off: LLaVA-1.5 is shown the
        middle square."""
        crops = self.family.sizing == "square" and self.processor.image_processor.do_center_crop
        return 1 - min(width, height) / max(width, height) if crops else 0.0

    def text_tokens(self, conversation: Conversation) -> int:
        """Tokens of a prompt that are no picture's; `picture_tokens` counts the rest."""
        ids = self.tokenizer(self._templated(conversation))["input_ids"]
        return len(ids) - conversation.images

    @property
    def positions(self) -> int:
        """Tokens of the longest sequence that the model was made for."""
        return self.model.config.get_text_config().max_position_embeddings

    def fit(self, image: Image) -> Image:
        """The picture at the size the model will see it, where the processor only rounds and limits
        sizes; elsewhere the picture as it is, for the processor to resize. Of a strip whose middle
        square is all that is shown, the ends are taken off first: it would be enlarged whole.

        Sampler and trainer are given this picture, so neither can see another one.
        """
        longest = 8 * min(image.size)
        if self.cut_off(*image.size) and max(image.size) > longest:
            return ImageOps.fit(image, (min(image.width, longest), min(image.height, longest)))
        size = self._fitting(*image.size)
        return image if size == image.size else image.resize(size, Resampling.BICUBIC)

    def _fitting(self, width: int, height: int) -> tuple[int, int]:
        """The size (width, height) that `fit` makes of this one: the processor takes it as it is.

        It refuses strips whose sides differ more than `THINNEST` times. They are shown with their
        shorter side stretched, by whole tokens, until they do not; places are shares of a side, so
        they stay where they are.
        """
        if self.family.sizing != "area":
            return width, height
        processor = self.processor.image_processor
        unit, most = processor.patch_size * processor.merge_size, processor.size["longest_edge"]
        while True:  # rounding may leave a strip too thin again, or too large
            if max(width, height) > THINNEST * min(width, height):
                shorter = unit * math.ceil(max(width, height) / (THINNEST * unit))
                width, height = max(width, shorter), max(height, shorter)
            height, width = smart_resize(height, width, unit, processor.size["shortest_edge"], most)
            if width * height <= most and max(width, height) <= THINNEST * min(width, height):
                return width, height

    def encode(self, conversation: Conversation, images: Sequence[Image], name: str = "") -> Prompt:
        """The prompt as the model reads it: image tokens expanded, pictures as pixel tensors."""
        if conversation.images != len(images):
            raise MismatchError(
                f"the prompt asks for {conversation.images} image(s) and {len(images)} were given: "
                f"{conversation.text!r}"
            )
        text = self._templated(conversation)
        if self.folder is not None:
            inputs = {"input_ids": self.expanded(text, [picture.size for picture in images])}
        else:
            inputs = self.prepared(text, images)
        return Prompt(text, tuple(images), inputs, name)

    def prepared(self, text: str, images: Sequence[Image]) -> Inputs:
        """What the processor makes of a templated prompt and its pictures."""
        return dict(self.processor(text=[text], images=list(images) or None, return_tensors="pt"))

    def expanded(self, text: str, sizes: Sequence[tuple[int, int]]) -> torch.Tensor:
        """[1, T] the `input_ids` of `prepared`, from the sizes of the pictures alone."""
        image, left, found = self.model.config.image_token_id, iter(sizes), list[int]()
        for token in self.tokenizer(text)["input_ids"]:
            tokens = [token]
            if token == image:
                tokens *= self.picture_tokens(*next(left))
                if self.family.sizing == "tiles":  # InternVL's stand between two marks
                    tokens[0] = self.processor.start_image_token_id
                    tokens[-1] = self.processor.end_image_token_id
            found += tokens
        return torch.tensor([found])

    def _templated(self, conversation: Conversation) -> str:
        return self.processor.apply_chat_template(
            _messages(conversation), add_generation_prompt=True, tokenize=False
        )

    def _show_tilings(self, tilings: Any) -> Any:
        """Have the model count a picture's tokens from the tilings that its processor has, where
        it does (`tilings`); returns what it counted from before."""
        config = self.model.config
        before = getattr(config, TILINGS, None)
        if tilings:
            config.image_grid_pinpoints = copy.deepcopy(tilings)
        return before

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
    """The turns as lists of parts: some templates lose a system turn that is a plain string."""
    content: list[dict] = []
    for index, text in enumerate(conversation.text.split("{image}")):
        if index:
            content.append({"type": "image"})
        if text:
            content.append({"type": "text", "text": text})
    user = [{"role": "user", "content": content}]
    if not conversation.system:
        return user
    return [{"role": "system", "content": [{"type": "text", "text": conversation.system}]}, *user]


PICTURES = "pictures.json"  # beside weights that a run wrote: their `Backbone.pictures`


def check_same_pictures(
    before: Mapping[str, str], now: Mapping[str, str], whose: str, otherwise: str
) -> None:
    """MismatchError if two `Backbone.pictures` differ."""
    if before != now:
        raise MismatchError(
            f"{whose} belong to pictures made by {before['image_processor']} "
            f"({before['backend']}), and here {now['image_processor']} ({now['backend']}) makes "
            "them, with other pixels. Install the versions of constraints.txt, torchvision "
            f"included, or {otherwise}."
        )


def _ends(model: PreTrainedModel, tokenizer: Any) -> tuple[int, ...]:
    """Every end token of the generation config, or the tokenizer's one if that names none."""
    named = model.generation_config.eos_token_id if model.generation_config else None
    if named is None:
        named = tokenizer.eos_token_id
    return tuple(named) if isinstance(named, (list, tuple)) else (named,)


def _save_with_the_hubs_names(model: Any) -> None:
    """Have `save_pretrained` spell tensors as the hub does, which is what vLLM reads.

    transformers does so for a model it has read from a checkpoint; one that was built from a
    configuration lacks the record of what reading would have renamed.
    """
    if getattr(model, "_weight_conversions", None) is None:
        model._weight_conversions = get_model_conversion_mapping(model, add_legacy=False) or None


# --------------------------------------------------------------------------- limits of picture size


THINNEST = 200  # of Qwen's `smart_resize`
TILINGS = "image_grid_pinpoints"
_LIMITED: Mapping[Sizing, tuple[str, ...]] = {  # settings of the pictures' processor
    "area": ("size",),
    "tilings": (TILINGS,),
    "tiles": ("max_patches", "min_patches"),
    "square": (),
}


def _set(pictures: Any, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        setattr(pictures, name, copy.deepcopy(value))


def _limit_area(pictures: Any, max_pixels: int) -> dict[str, Any]:
    size = copy.deepcopy(pictures.size)
    size["longest_edge"] = max_pixels
    return {"size": size}


def _limit_tilings(pictures: Any, max_pixels: int) -> dict[str, Any]:
    known = [list(sides) for sides in pictures.image_grid_pinpoints]
    kept = [sides for sides in known if math.prod(sides) <= max_pixels]
    return {TILINGS: kept or [min(known, key=math.prod)]}


def _limit_tiles(pictures: Any, max_pixels: int) -> dict[str, Any]:
    room = max_pixels // (pictures.size["height"] * pictures.size["width"])
    most = max(1, min(room, pictures.max_patches))
    return {"max_patches": most, "min_patches": min(pictures.min_patches, most)}


def _limit_nothing(_pictures: Any, _max_pixels: int) -> dict[str, Any]:
    """Every picture has the same size."""
    return {}


_LIMITS: Mapping[Sizing, Callable[[Any, int], dict[str, Any]]] = {
    "area": _limit_area,
    "tilings": _limit_tilings,
    "tiles": _limit_tiles,
    "square": _limit_nothing,
}
