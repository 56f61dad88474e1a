"""Text to rows of token numbers: by the words of the training texts, or by a tokenizer that comes with a model.

Both are one file in the form of Hugging Face's ``tokenizers``, truncation and padding included: whoever has a model's artifact
reads it by ``Tokenizer.from_file("tokenizer.json")`` and needs nothing of ours.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from equipoise.errors import missing_extra, must_be

FILE = "tokenizer.json"
PAD, UNKNOWN = "[PAD]", "[UNK]"
"""Tokens 0 and 1 of a vocabulary of words: what fills a row up, and what stands for every other word."""

HIDDEN = "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]"
"""Characters that show nothing: controls, soft hyphens, marks of direction and of byte order. White space is not among them."""
_SIGNS = r"!-/:-@\[-`{-~\u00a1\u00ab\u00bb\u00bf\u2010-\u2027\u2030-\u205e\u3001-\u3003"
WORD = rf"'?[^\s{_SIGNS}]+(?:'[^\s{_SIGNS}]+)*|[{_SIGNS}]"
"""A word with its apostrophes (``n't``, ``'ve``), or one sign. Spelled out, so that Python and ``tokenizers`` agree on it."""


class Tokenizer(Protocol):
    """Texts to rows of numbers."""

    @property
    def padding(self) -> int:
        """The token that fills a row up."""
        ...

    @property
    def size(self) -> int:
        """How many tokens there are."""
        ...

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return the rows (N, length) int64 of `texts`, cut or filled up with `padding`."""
        ...

    @property
    def file(self) -> bytes:
        """The content of a ``tokenizer.json`` that gives the same rows."""
        ...


def cleaned(text: str) -> str:
    """Return `text` as its words are looked for: one form of each character, none that shows nothing, lower case.

    Example:
        >>> cleaned("A\u00a0\ufb01lm\u200b, isn\u2019t it")
        "a film, isn't it"
    """
    plain = re.sub(HIDDEN, "", unicodedata.normalize("NFKC", text)).replace("\u2019", "'")
    return "".join(character.lower() for character in plain)


@dataclass(frozen=True)
class Words:
    """A vocabulary of words; the number of a token is its place in `words`.

    Example:
        >>> known = Words.of(["a fine film", "a film, fine"], length=4)
        >>> known.words, known.encode(["A fine, fine old film"]).tolist()
        (('[PAD]', '[UNK]', 'a', 'film', 'fine'), [[2, 4, 1, 4]])
    """

    words: tuple[str, ...]
    length: int
    padding: int = 0

    @classmethod
    def of(cls, texts: Iterable[str], *, length: int, most: int = 30_000) -> Words:
        """Return the words that occur at least twice in `texts`, the most frequent `most` of them.

        One that occurs once counts as unknown: that is about as frequent as words never seen will be in new texts, so a model
        learns what an unknown word says. See `text.Alphabet.of`.

        Args:
            texts: The training texts alone.
            length: Tokens in a row.
            most: Words to keep.
        """
        counts = Counter(word for text in texts for word in re.findall(WORD, cleaned(text)))
        kept = sorted((word for word, n in counts.items() if n > 1), key=lambda word: (-counts[word], word))[:most]
        return cls((PAD, UNKNOWN, *kept), length)

    @property
    def size(self) -> int:
        """How many tokens there are."""
        return len(self.words)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words)}

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return the rows (N, length) int64 of `texts`."""
        rows = torch.zeros((len(texts), self.length), dtype=torch.int64)
        for row, text in zip(rows, texts, strict=True):
            found = [self._numbers.get(word, 1) for word in re.findall(WORD, cleaned(text))[: self.length]]
            row[: len(found)] = torch.tensor(found, dtype=torch.int64)
        return rows

    @property
    def file(self) -> bytes:
        """The content of a ``tokenizer.json`` that gives the same rows."""
        steps: list[dict[str, Any]] = [
            {"type": "NFKC"},
            {"type": "Replace", "pattern": {"Regex": _escaped(HIDDEN)}, "content": ""},
            {"type": "Replace", "pattern": {"String": "\u2019"}, "content": "'"},
            {"type": "Lowercase"},
        ]
        pattern = {"Regex": _escaped(WORD)}
        content: dict[str, Any] = {
            "version": "1.0",
            "truncation": {"direction": "Right", "max_length": self.length, "strategy": "LongestFirst", "stride": 0},
            "padding": {
                "strategy": {"Fixed": self.length},
                "direction": "Right",
                "pad_to_multiple_of": None,
                "pad_id": 0,
                "pad_type_id": 0,
                "pad_token": PAD,
            },
            "added_tokens": [],
            "normalizer": {"type": "Sequence", "normalizers": steps},
            "pre_tokenizer": {"type": "Split", "pattern": pattern, "behavior": "Removed", "invert": True},
            "post_processor": None,
            "decoder": None,
            "model": {"type": "WordLevel", "vocab": self._numbers, "unk_token": UNKNOWN},
        }
        return json.dumps(content, ensure_ascii=False, indent=1).encode()


def _escaped(pattern: str) -> str:
    """The same pattern without characters that show nothing, as ``tokenizers`` reads it."""
    plain = re.sub(r"\\u([0-9a-f]{4})", lambda found: chr(int(found[1], 16)), pattern)
    return "".join(c if " " <= c <= "~" else f"\\x{{{ord(c):04X}}}" for c in plain)


class Given:
    """A tokenizer of someone else's, set to rows of one length.

    Args:
        path: A ``tokenizer.json``, or a folder that holds one.
        length: Tokens in a row, those that it puts around each text included.
    Raises:
        InputError: No such file, not one of ``tokenizers``, or it has no token to fill up with.
        MissingExtraError: ``tokenizers`` is not installed.
    """

    def __init__(self, path: Path, *, length: int) -> None:
        file = path / FILE if path.is_dir() else path
        if not file.is_file():
            remedy = f"Name a {FILE}, or the folder of a Hugging Face model that holds one."
            raise must_be("tokenizer", "an existing file", str(file), remedy)
        try:
            from tokenizers import Tokenizer as Read
        except ImportError as error:
            raise missing_extra("tokenizers", "text") from error
        try:
            self._read = Read.from_file(str(file))
        except Exception as error:  # it raises bare Exceptions
            raise must_be("tokenizer", "a file of Hugging Face's tokenizers", f"{file} ({error})", "Save it anew.") from error
        self.length = length
        self.padding, word = self._fills(file)
        self._read.enable_truncation(length)
        self._read.enable_padding(pad_id=self.padding, pad_token=word, length=length)

    def _fills(self, file: Path) -> tuple[int, str]:
        for word in ((self._read.padding or {}).get("pad_token", PAD), "<pad>", "<|endoftext|>"):
            number = self._read.token_to_id(word)
            if number is not None:
                return number, word
        raise must_be("tokenizer", "one with a padding token", str(file), f"Add {PAD} to its vocabulary.")

    @property
    def size(self) -> int:
        """How many tokens there are."""
        return int(self._read.get_vocab_size(with_added_tokens=True))

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return the rows (N, length) int64 of `texts`."""
        rows = [found.ids for found in self._read.encode_batch(list(texts))]
        return torch.tensor(rows, dtype=torch.int64).reshape(len(texts), self.length)

    @property
    def file(self) -> bytes:
        """The content of a ``tokenizer.json`` that gives the same rows."""
        return str(self._read.to_str()).encode()
