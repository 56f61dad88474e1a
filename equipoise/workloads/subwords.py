"""Sentences to rows of numbers and back, by pieces of words that are learned from the training sentences.

Byte-pair encoding over bytes (Sennrich et al. 2016; Radford et al. 2019): every sentence can be written, and comes back as it
was.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from equipoise.errors import missing_extra, must_be

PADDING, BEGIN, END = 0, 1, 2
"""Tokens that fill a row up, stand before what is written, and end a sentence."""
NAMES = ("[PAD]", "[BEGIN]", "[END]")
ALPHABET = 256
"""Pieces that every vocabulary has: the bytes."""


@dataclass(frozen=True)
class Subwords:
    """A vocabulary of pieces of words.

    Attributes:
        content: A ``tokenizer.json`` of Hugging Face's ``tokenizers``.
        length: Most tokens of a row, the end of the sentence among them.

    Example:
        >>> known = Subwords.of(["a dog runs", "a dog sleeps", "ein Hund"], size=300, length=12)
        >>> rows = known.encode(["a dog", "ein Hund"])
        >>> rows.shape, known.decode(rows)
        (torch.Size([2, 12]), ['a dog', 'ein Hund'])
    """

    content: bytes
    length: int

    @classmethod
    def of(cls, sentences: Iterable[str], *, size: int, length: int) -> Subwords:
        """Learn the pieces of training sentences.

        Args:
            sentences: Of both languages, where they are to share one vocabulary.
            size: Most pieces; at least a byte each and the three marks.
            length: Most tokens of a row.
        Raises:
            InputError: Too few pieces, or places.
            MissingExtraError: ``tokenizers`` is not installed.
        """
        least = ALPHABET + len(NAMES)
        if size < least:
            raise must_be("vocabulary", f"at least {least}: one for each byte and three marks", size, "Write vocabulary=4000.")
        if length < 2:
            raise must_be("length", "at least 2 tokens", length, "Write length=64.")
        library = _library()
        made = library.Tokenizer(library.models.BPE())
        made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=True)
        made.decoder = library.decoders.ByteLevel()
        alphabet = library.pre_tokenizers.ByteLevel.alphabet()
        trainer = library.trainers.BpeTrainer(
            vocab_size=size, min_frequency=2, special_tokens=list(NAMES), initial_alphabet=alphabet, show_progress=False
        )
        made.train_from_iterator(sentences, trainer)
        return cls(str(made.to_str()).encode(), length)

    @cached_property
    def _read(self) -> Any:
        return _library().Tokenizer.from_str(self.content.decode())

    @property
    def size(self) -> int:
        """How many pieces there are."""
        return int(self._read.get_vocab_size())

    def counts(self, sentences: Sequence[str]) -> list[int]:
        """Return how many tokens each sentence has, its end among them."""
        return [len(found.ids) + 1 for found in self._read.encode_batch(list(sentences))]

    def encode(self, sentences: Sequence[str]) -> Tensor:
        """Return rows (N, length) int64: the pieces of each sentence, its end, and padding. A longer one is cut."""
        rows = torch.full((len(sentences), self.length), PADDING, dtype=torch.int64)
        for row, found in zip(rows, self._read.encode_batch(list(sentences)), strict=True):
            ids = [*found.ids[: self.length - 1], END]
            row[: len(ids)] = torch.tensor(ids, dtype=torch.int64)
        return rows

    def decode(self, rows: Tensor) -> list[str]:
        """Return the sentences of rows (N, T), each up to its first end."""
        kept = []
        for row in rows.tolist():
            stop = row.index(END) if END in row else len(row)
            kept.append([token for token in row[:stop] if token not in (PADDING, BEGIN)])
        return [str(text).strip() for text in self._read.decode_batch(kept)]

    def pieces(self, row: Tensor) -> list[str]:
        """Return each piece of a row (T,) up to and with its end, as text."""
        tokens = row.tolist()
        stop = tokens.index(END) if END in tokens else len(tokens)
        return [*(str(self._read.decode([token])) for token in tokens[:stop]), "⏎"][: len(tokens)]


def written(rows: Tensor) -> Tensor:
    """Return what is written before each token of rows (N, T): the mark of the beginning, and all tokens but the last.

    Example:
        >>> written(torch.tensor([[5, 6, 2, 0]])).tolist()
        [[1, 5, 6, 2]]
    """
    return torch.cat((torch.full_like(rows[:, :1], BEGIN), rows[:, :-1]), 1)


def _library() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise missing_extra("tokenizers", "text") from error
    return tokenizers
