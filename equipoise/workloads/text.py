"""Text as a task: predict the next character, from windows of three regions that share none."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from equipoise.errors import must_be
from equipoise.workloads.task import Task

TRAIN, VALIDATION = 0.90, 0.05
"""Shares of the text, in the order of the file; the rest is the test region."""

FILE = "alphabet.json"
"""What ships beside a model: its characters, a JSON list by token."""

UNKNOWN = "\ufffd"
"""Stands for every character that is not in the vocabulary; token 0."""


@dataclass(frozen=True)
class Alphabet:
    """The characters that a model knows, by token; token 0 is `UNKNOWN`.

    Example:
        >>> alphabet = Alphabet.of("abca")
        >>> alphabet.characters, alphabet.encode("cab").tolist(), alphabet.decode(torch.tensor([1, 0]))
        (('\ufffd', 'a'), [0, 1, 0], 'a\ufffd')
    """

    characters: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> Alphabet:
        """Return the characters that occur at least twice in `text`, sorted.

        One that occurs once counts as unknown: these are about as frequent as characters never seen will be in new text
        (Good 1953, The population frequencies of species), so that a model learns how likely an unknown character is.
        """
        return cls((UNKNOWN, *sorted(c for c, n in Counter(text).items() if n > 1 and c != UNKNOWN)))

    def __len__(self) -> int:
        return len(self.characters)

    @property
    def file(self) -> bytes:
        """The characters as a JSON list."""
        return (json.dumps(self.characters, ensure_ascii=False) + "\n").encode()

    def encode(self, text: str) -> Tensor:
        """Return the tokens (length,) int64 of `text`."""
        token = {character: number for number, character in enumerate(self.characters)}
        return torch.tensor([token.get(character, 0) for character in text], dtype=torch.int64)

    def decode(self, tokens: Tensor) -> str:
        """Return the text of `tokens` (length,)."""
        return "".join(self.characters[number] for number in tokens.tolist())


def text_task(path: Path, *, context: int = 64, name: str = "text") -> Task:
    """Return the task of predicting each next character of a text, in bits per character.

    The file is cut by position into 90 % training, 5 % validation and 5 % test text, and each region into windows of its own,
    so that no window reaches into another region. The windows of a region lie one after the other: an epoch predicts each
    character once. The alphabet is read off the training region alone; see `Alphabet.of`.

    Args:
        path: UTF-8 text; of a ``.tsv`` file the first column is read, a line for each row.
        context: Characters in a window, T. Inputs are (N, T) int64 tokens, targets the same windows one character on.
        name: Of the task.
    Raises:
        InputError: No such file, not UTF-8, or too short for three windows of validation text.
    """
    if context < 1:
        raise must_be("context", "at least 1 character", context, "Write for example text:FILE?context=64.")
    text = read_text(path)
    cuts = [0, round(len(text) * TRAIN), round(len(text) * (TRAIN + VALIDATION)), len(text)]
    least = (3 * context + 2) / VALIDATION
    if len(text) < least:
        remedy = "Give a longer text or a shorter context."
        raise must_be(f"text {path}", f"of at least {least:.0f} characters for a context of {context}", len(text), remedy)
    alphabet = Alphabet.of(text[: cuts[1]])
    tokens = alphabet.encode(text)
    train, validation, test = (windows(tokens[start:stop], context) for start, stop in itertools.pairwise(cuts))
    return Task.of(
        train=train,
        validation=validation,
        test=test,
        metric="bits_per_character",
        name=name,
        outputs=len(alphabet),
        vocabulary=len(alphabet),
        files={FILE: alphabet.file},
    )


def windows(tokens: Tensor, context: int) -> tuple[Tensor, Tensor]:
    """Return inputs and targets (N, context), N = (length - 1) // context, as views of `tokens` (length,)."""
    count = (len(tokens) - 1) // context
    return tokens[: count * context].view(count, context), tokens[1 : count * context + 1].view(count, context)


def read_text(path: Path) -> str:
    """Return the text of a file; of a ``.tsv`` file the first column.

    Raises:
        InputError: No such file, or not UTF-8.
    """
    if not path.is_file():
        raise must_be("text", "an existing file", str(path), "Paths are relative to the current folder.")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise must_be(f"text {path}", "UTF-8", f"byte {error.start} that is not", "Convert it by iconv.") from error
    if path.suffix.lower() == ".tsv":
        return "".join(line.partition("\t")[0] + "\n" for line in text.rstrip("\n").split("\n"))
    return text
