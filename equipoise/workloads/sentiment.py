"""Classifying texts, as in sentiment analysis: rows of token numbers of one length, and a label for each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from equipoise.errors import must_be
from equipoise.workloads.data import Split
from equipoise.workloads.tables import Texts, numbered, read_texts
from equipoise.workloads.task import Task
from equipoise.workloads.tokens import FILE, Given, Tokenizer, Words

LENGTH = 64
HELD = 10
"""Of a single file one text in so many serves for validation, and as many for the test."""


def sentiment_task(
    path: Path,
    *,
    length: int = LENGTH,
    words: int = 30_000,
    tokenizer: Path | None = None,
    text: str = "",
    label: str = "",
    name: str = "sentiment",
) -> Task:
    """Return the task of telling which class a text belongs to.

    Args:
        path: A folder with ``train``, ``dev`` and ``test`` as .tsv or .csv, kept as they are given; or one such file, of which
            a tenth serves for validation and a tenth for the test, by a fixed shuffle.
        length: Tokens in a row: longer texts are cut, shorter ones filled up.
        words: Most words of a vocabulary made of the training texts (`Words.of`).
        tokenizer: A ``tokenizer.json``, or the folder of a pretrained model that holds one, in place of such a vocabulary.
        text, label: Which columns; see `tables.read_texts`.
        name: Of the task.
    Raises:
        InputError: The files cannot be used.

    References:
        SST-2: Socher et al. 2013; the sentences of Kim 2014, "Convolutional neural networks for sentence classification".
    """
    for what, value, least in (("length", length, 1), ("words", words, 1)):
        if value < least:
            raise must_be(what, f"at least {least}", value, f"Write for example sentiment:DATA?{what}={LENGTH}.")
    found = read_texts(path, text=text, label=label)
    labels, targets = numbered(found)
    if "all" in found:
        found, targets = _divided(found["all"], targets["all"])
    known: Tokenizer = (
        Words.of(found["train"].texts, length=length, most=words) if tokenizer is None else Given(tokenizer, length=length)
    )
    splits = {role: _split(role, part, targets[role], known) for role, part in found.items()}
    return Task.of(
        train=splits["train"],
        validation=splits.get("validation"),
        test=splits["test"],
        augment=Trimmed(known.padding),
        outputs=len(labels),
        vocabulary=known.size,
        padding=known.padding,
        labels=labels,
        files={FILE: known.file},
        name=name,
    )


class Trimmed:
    """Cuts off columns in which a whole training batch is padding: the answers are the same, and sooner there."""

    def __init__(self, padding: int) -> None:
        self.padding = padding

    def __call__(self, tokens: Tensor, generator: torch.Generator) -> Tensor:
        """Return tokens (N, L) as (N, longest text)."""
        used = (tokens != self.padding).any(0).nonzero()
        return tokens[:, : int(used.max()) + 1] if len(used) else tokens[:, :1]


def _split(role: str, part: Texts, targets: list[int], tokenizer: Tokenizer) -> Split:
    rows = tokenizer.encode(part.texts)
    long = int((rows[:, -1] != tokenizer.padding).sum())
    notes = (
        *part.notes,
        *((f"{role}: {long} of {len(rows)} texts fill or exceed the length {rows.shape[1]}",) if long else ()),
    )
    return replace(Split.of((rows, torch.tensor(targets)), name=role), notes=notes, alike=(rows != tokenizer.padding).sum(1))


def _divided(every: Texts, targets: list[int]) -> tuple[dict[str, Texts], dict[str, list[int]]]:
    """Cut one file into three by a fixed shuffle; equal texts go into the same part."""
    distinct = list(dict.fromkeys(every.texts))
    held = max(3, len(distinct) // HELD)
    if len(distinct) < 4 * held:
        raise must_be("texts", f"at least {4 * held} different ones", len(distinct), "Give more, or a folder with splits.")
    order = torch.randperm(len(distinct), generator=torch.Generator().manual_seed(0)).tolist()
    place = {distinct[row]: rank for rank, row in enumerate(order)}
    bounds = {"train": (2 * held, len(distinct)), "validation": (held, 2 * held), "test": (0, held)}
    parts: dict[str, Texts] = {}
    numbers: dict[str, list[int]] = {}
    for role, (start, stop) in bounds.items():
        rows = [row for row, text in enumerate(every.texts) if start <= place[text] < stop]
        notes = every.notes if role == "train" else ()
        parts[role] = Texts(tuple(every.texts[r] for r in rows), tuple(every.labels[r] for r in rows), notes)
        numbers[role] = [targets[row] for row in rows]
    return parts, numbers
