"""Tokenizers of the models that are built here: byte-level BPE over the words of this task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from iad_r1.backbones.dialects import Dialect

TAGS = [f"<{slash}{tag}>" for tag in ("think", "location", "type", "answer") for slash in ("", "/")]


def train_tokenizer(
    dialect: Dialect, corpus: Iterable[str], vocab_size: int
) -> PreTrainedTokenizerFast:
    """Any text can be written; the corpus' words are mostly one token each, the tags always.

    `vocab_size` counts the special tokens but not the eight tags.
    """
    tokenizer = train_pieces(corpus, vocab_size, dialect.special)
    # One token each but not "special": decoding keeps the tags, as it does for real models.
    tokenizer.add_tokens([AddedToken(tag, normalized=False, special=False) for tag in TAGS])
    end = dialect.ends[0]
    named = (end, dialect.pad, dialect.begin, *dialect.named.values())
    others = [token for token in dialect.special if token not in named]
    return finish(
        tokenizer, dialect, end, dialect.pad, dialect.named, additional_special_tokens=others
    )


def train_pieces(corpus: Iterable[str], vocab_size: int, special: Sequence[str] = ()) -> Tokenizer:
    """A byte-level BPE with the special tokens first; any text can be written."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def finish(
    tokenizer: Tokenizer,
    dialect: Dialect,
    end: str,
    pad: str,
    named: Mapping[str, str],
    **more: Any,
) -> PreTrainedTokenizerFast:
    """transformers' tokenizer that speaks a dialect.

    Args:
        named: special tokens that the processor asks for by name.
    """
    if dialect.begin is not None:
        begin = (dialect.begin, tokenizer.token_to_id(dialect.begin))
        tokenizer.post_processor = TemplateProcessing(
            single=f"{dialect.begin} $A", special_tokens=[begin]
        )
        more["bos_token"] = dialect.begin
    if named:
        more["extra_special_tokens"] = dict(named)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=end,
        pad_token=pad,
        padding_side="left",
        chat_template=dialect.template,
        **more,
    )
