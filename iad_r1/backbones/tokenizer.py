"""Tokenizers of the models that are built here: byte-level BPE over the words of this task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

TAGS = [f"<{slash}{tag}>" for tag in ("think", "location", "type", "answer") for slash in ("", "/")]


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


def train_tokenizer(
    dialect: Dialect, corpus: Iterable[str], vocab_size: int
) -> PreTrainedTokenizerFast:
    """Any text can be written; the corpus' words are mostly one token each, the tags always.

    `vocab_size` counts the special tokens but not the eight tags.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(dialect.special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    # One token each but not "special": decoding keeps the tags, as it does for real models.
    tokenizer.add_tokens([AddedToken(tag, normalized=False, special=False) for tag in TAGS])
    if dialect.begin is not None:
        begin = (dialect.begin, tokenizer.token_to_id(dialect.begin))
        tokenizer.post_processor = TemplateProcessing(
            single=f"{dialect.begin} $A", special_tokens=[begin]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=dialect.ends[0],
        pad_token=dialect.pad,
        padding_side="left",
        additional_special_tokens=_others(dialect),
        chat_template=dialect.template,
        **({"bos_token": dialect.begin} if dialect.begin else {}),
        **({"extra_special_tokens": dict(dialect.named)} if dialect.named else {}),
    )


def _others(dialect: Dialect) -> Sequence[str]:
    named = (dialect.ends[0], dialect.pad, dialect.begin, *dialect.named.values())
    return [token for token in dialect.special if token not in named]
