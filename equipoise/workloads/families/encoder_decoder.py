"""The Transformer as it was first: an encoder reads one sequence whole, a decoder writes another, looking back at the first.

Such models take two inputs by name, ``source`` (N, S) and ``written`` (N, T), and answer at each place of the second what
comes next. ``encode`` reads the source once; ``read_on`` writes on from what is written, with what it read at hand.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from equipoise.workloads.families.base import Dimension, Family, Scale
from equipoise.workloads.families.transformer import GROWTH, UNSEEN, Block, Past, initialize
from equipoise.workloads.task import Shape

Memory = tuple[Tensor, ...]
"""What was read of a source: of each block in turn keys (N, heads, S, width / heads) and values of that shape, and last what is
added to the score of each place (N, 1, 1, S), which hides the padding."""


class Table(nn.Module):
    """Tokens (N, T) to features (N, T, width), token and place added; and features to the logits of tokens, by the same table.

    Args:
        vocabulary, width: Tokens, and features of each.
        source, written: Places of either sequence.
    """

    def __init__(self, vocabulary: int, width: int, *, source: int, written: int) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.source = nn.Parameter(torch.zeros(source, width))
        self.written = nn.Parameter(torch.zeros(written, width))
        self.drop = nn.Dropout(0.0)
        self.scale = math.sqrt(width)

    def read(self, tokens: Tensor) -> Tensor:
        """Return the features of a source."""
        x: Tensor = self.drop((self.token(tokens) + self.source[: tokens.shape[1]]) * self.scale)
        return x

    def write(self, tokens: Tensor, before: int) -> Tensor:
        """Return the features of tokens that follow on as many `before`."""
        x: Tensor = self.drop((self.token(tokens) + self.written.narrow(0, before, tokens.shape[1])) * self.scale)
        return x


class Looking(nn.Module):
    """A block of a decoder: it sees what is written before it, then the source, then makes something of both.

    Args:
        width, heads, expansion: As of a `Block`.
    """

    def __init__(self, width: int, *, heads: int, expansion: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attend, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.ask, self.tell, self.blend = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.norm3 = nn.LayerNorm(width)
        self.widen, self.act, self.narrow = nn.Linear(width, expansion * width), nn.GELU(), nn.Linear(expansion * width, width)
        self.drop, self.heads = nn.Dropout(0.0), heads

    def told(self, read: Tensor) -> Memory:
        """Return keys and values (N, heads, S, width / heads) of a source's features (N, S, width)."""
        key, value = self.tell(read).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return key, value

    def step(self, x: Tensor, past: Past, hidden: Tensor, told: Memory, unread: Tensor) -> tuple[Tensor, Past]:
        """Map what follows on a past to the same shape, and return the past of what comes next.

        Args:
            x: (N, T, width).
            past, hidden: As of `Block.step`.
            told: What `told` gave of the source.
            unread: (N, 1, 1, S), added to the score of each place of the source.
        """
        parts = self.attend(self.norm1(x)).unflatten(2, (3, self.heads, -1))  # (N, T, 3, heads, width / heads)
        query, *new = parts.permute(2, 0, 3, 1, 4).unbind(0)
        key, value = [torch.cat((o.expand(len(x), -1, -1, -1), n), 2) for o, n in zip(past, new, strict=True)] if past else new
        x = x + self.drop(self.merge(_seen(query, key, value, hidden).transpose(1, 2).flatten(2)))
        query = self.ask(self.norm2(x)).unflatten(2, (self.heads, -1)).transpose(1, 2)
        key_there, value_there = told
        x = x + self.drop(self.blend(_seen(query, key_there, value_there, unread).transpose(1, 2).flatten(2)))
        out: Tensor = x + self.drop(self.narrow(self.drop(self.act(self.widen(self.norm3(x))))))
        return out, (key, value)


def _seen(query: Tensor, key: Tensor, value: Tensor, hidden: Tensor) -> Tensor:
    """Return the values by their share, (N, heads, T, width / heads); `hidden` is added to the scores."""
    return _shares(query, key, hidden) @ value


def _shares(query: Tensor, key: Tensor, hidden: Tensor) -> Tensor:
    """Return the share (N, heads, T, S) of each place in what is looked up; `hidden` is added to the scores."""
    alike: Tensor = (query * query.shape[3] ** -0.5) @ key.transpose(2, 3) + hidden
    return alike.softmax(3)


class EncoderDecoder(nn.Module):
    """See the head of this file; the logits are (N, V, T), the class axis second."""

    def __init__(self, scale: Scale, shape: Shape) -> None:
        super().__init__()
        width, heads, expansion, depth = (int(scale[name]) for name in ("width", "heads", "expansion", "depth"))
        vocabulary, self.padding = shape.vocabulary or 1, shape.padding
        self.table = Table(vocabulary, width, source=shape.sample[0], written=shape.written or 1)
        self.reads = nn.ModuleList(Block(width, heads=heads, expansion=expansion, causal=False) for _ in range(depth))
        self.read = nn.LayerNorm(width)
        self.writes = nn.ModuleList(Looking(width, heads=heads, expansion=expansion) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.logits = nn.Linear(width, vocabulary, bias=False)
        self.logits.weight = self.table.token.weight

    def forward(self, source: Tensor, written: Tensor) -> Tensor:
        """Map tokens (N, S) and (N, T) to the logits (N, V, T) of what comes next after each of the second."""
        return self.read_on(written, (), self.encode(source))[0]

    def encode(self, source: Tensor) -> Memory:
        """Return what is kept of tokens (N, S)."""
        x = self.table.read(source)
        unread = torch.where(source != self.padding, 0.0, UNSEEN).to(x.dtype)[:, None, None, :]
        for block in self.reads:
            x = block(x, unread)
        x = self.read(x)
        return (*(part for block in self._blocks() for part in block.told(x)), unread)

    def read_on(self, written: Tensor, past: Past, memory: Memory) -> tuple[Tensor, Past]:
        """Map tokens (N, T) that follow on `past` to logits (N, V, T), with the past of what comes next."""
        before = past[0].shape[2] if past else 0
        places = torch.arange(before + written.shape[1], device=written.device)
        x = self.table.write(written, before)
        hidden = torch.where(places[before:, None] >= places, 0.0, UNSEEN).to(x.dtype)
        present: Past = ()
        for number, block in enumerate(self._blocks()):
            told, at = memory[2 * number : 2 * number + 2], len(present)
            x, kept = block.step(x, past[at : at + 2], hidden, told, memory[-1])
            present = (*present, *kept)
        return self.logits(self.norm(x)).transpose(1, 2), present

    def looks(self, source: Tensor, written: Tensor) -> Tensor:
        """Return the share (N, T, S) of each token of the source in what the last block looks up, a mean over its heads."""
        *_, last = self._blocks()
        kept: list[Tensor] = []
        hook = last.ask.register_forward_hook(lambda layer, given, query: kept.append(query))
        try:
            memory = self.encode(source)
            self.read_on(written, (), memory)
        finally:
            hook.remove()
        query: Tensor = kept[0].view(len(source), -1, last.heads, kept[0].shape[2] // last.heads).transpose(1, 2)
        return _shares(query, memory[-3], memory[-1]).mean(1)

    def _blocks(self) -> list[Looking]:
        return [cast(Looking, block) for block in self.writes]


def _initialize(model: nn.Module, generator: torch.Generator) -> None:
    """As the other Transformers; what a block of the decoder adds is scaled for its three."""
    initialize(model, generator)
    assert isinstance(model, EncoderDecoder)
    blocks = model._blocks()
    for block in blocks:
        for layer in (block.merge, block.blend, block.narrow):
            layer.weight.mul_((3 * len(blocks)) ** -0.5)
    table, width = model.table, model.table.token.embedding_dim
    for weight in (table.token.weight, table.source, table.written):
        weight.normal_(0.0, width**-0.5, generator=generator)
    model.norm.weight.fill_(width**-0.5)  # else each token would begin by predicting itself


TRANSFORMER = Family(
    "transformer",
    (
        Dimension("width", 128, (32, 48, 64, 96, 128, 192, 256, 384), multiple=16),
        Dimension("depth", 4, (1, 2, 3, 4, 6)),
        Dimension("heads", 4, (1, 2, 4, 8)),
        Dimension("expansion", 2, (1, 2, 3, 4)),
    ),
    build=EncoderDecoder,
    kinds=("pairs",),
    cost=lambda scale: (12 + 4 * scale["expansion"]) * scale["depth"] * scale["width"] ** 2,
    growth=GROWTH,
    dense=True,
    initialize=_initialize,
)
"""Encoder and decoder (Vaswani et al. 2017), normalized before each part, one table for both languages and the logits; `depth`
blocks in each. `grow` counts the weights of the blocks."""
