"""How models are spoken to: control tokens and chat templates.

The templates render what the published ones do: the LLaVA families all pictures of a turn before
its words, Qwen and InternVL in reading order; Qwen adds a system turn where none is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Dialect:
    """How a family of models marks turns and pictures.

    Attributes:
        special: control and placeholder tokens, `ends`, `pad` and `begin` among them.
        ends: tokens that end an answer, the end of turn first.
        pad: fills rows of unequal length.
        template: Jinja chat template.
        begin: written before every text by the tokenizer itself; None in most families.
        named: tokens the family's processor asks its tokenizer for by name.
    """

    special: tuple[str, ...]
    ends: tuple[str, ...]
    pad: str
    template: str
    begin: str | None = None
    named: Mapping[str, str] = field(default_factory=dict)


def _turns(before: str, image: str, text: str, after: str, answer: str) -> str:
    """Pictures first, then text; a turn's content must be a list of parts."""
    return (
        "{% for message in messages %}" + before + _parts("image", image) + _parts("text", text)
        + after + "{% endfor %}{% if add_generation_prompt %}" + answer + "{% endif %}"
    )  # fmt: skip


def _parts(kind: str, shown: str) -> str:
    loop = "{% for part in message['content'] | selectattr('type', 'equalto', '" + kind + "') %}"
    return loop + shown + "{% endfor %}"


def _in_order(image: str, first: str = "") -> str:
    """ChatML with text and pictures in reading order; `first` before a first turn of the user's."""
    return (
        "{% for message in messages %}"
        "{% if loop.first and message['role'] != 'system' %}" + first + "{% endif %}"
        "<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
        "{{ message['content'] }}{% else %}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}" + image + "{% else %}{{ part['text'] }}{% endif %}"
        "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
QWEN_VISION = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
QWEN = Dialect(
    special=CHATML + QWEN_VISION,
    ends=("<|im_end|>", "<|endoftext|>"),
    pad="<|endoftext|>",
    template=_in_order("<|vision_start|><|image_pad|><|vision_end|>", SYSTEM),
)
TINY = replace(
    QWEN, ends=("<|im_end|>",), template=_in_order("<|vision_start|><|image_pad|><|vision_end|>")
)
VICUNA = Dialect(
    special=("<unk>", "<s>", "</s>", "<image>", "<pad>"),
    ends=("</s>",),
    pad="<pad>",
    template=_turns(
        "{% if message['role'] != 'system' %}{{ message['role'] | upper }}: {% endif %}",
        "<image>\n",
        "{{ part['text'] }} ",
        "",
        "ASSISTANT:",
    ),
    begin="<s>",
)
MISTRAL = Dialect(
    special=("<unk>", "<s>", "</s>", "<image>", "<pad>"),
    ends=("</s>",),
    pad="<pad>",
    template=(
        "{% for message in messages %}{% if message['role'] == 'system' %}"
        "<<SYS>>\n{{ message['content'][0]['text'] }}\n<</SYS>>\n\n"
        "{% elif message['role'] == 'user' %}[INST] "
        + _parts("image", "<image>\n") + _parts("text", "{{ part['text'] }}") +
        " [/INST]{% else %} {{ message['content'][0]['text'] }}</s> {% endif %}{% endfor %}"
    ),
    begin="<s>",
)  # fmt: skip
YI = Dialect(
    special=("<unk>", "<|startoftext|>", "<|endoftext|>", *CHATML[1:], "<image>", "<pad>"),
    ends=("<|im_end|>",),
    pad="<pad>",
    template=_turns(
        "<|im_start|>{{ message['role'] }}\n",
        "<image>\n",
        "{{ part['text'] }}",
        "<|im_end|>",
        "<|im_start|>assistant\n",
    ),
)
ONEVISION = Dialect(
    special=(*CHATML, "<image>", "<video>"),
    ends=("<|im_end|>",),
    pad="<|endoftext|>",
    template=_turns(
        "<|im_start|>{{ message['role'] }} ",
        "<image>",
        "{{ '\n' + part['text'] }}",
        "<|im_end|>",
        "<|im_start|>assistant\n",
    ),
)
INTERNVL = Dialect(
    special=(*CHATML, "<img>", "</img>", "<IMG_CONTEXT>", "<video>"),
    ends=("<|im_end|>", "<|endoftext|>"),
    pad="<|endoftext|>",
    template=_in_order("<IMG_CONTEXT>\n"),
    named={
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    },
)
