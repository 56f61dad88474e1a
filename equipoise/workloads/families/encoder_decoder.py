"""The Transformer as it was first: an encoder reads one sequence whole, a decoder writes another, looking back at the first.

Such models take two inputs by name, ``source`` (N, S) and ``written`` (N, T), and answer at each place of the second what
comes next. ``encode`` reads the source once; ``read_on`` writes on from what is written, with what it read at hand.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from equipoise.workloads.families.base import Dimension, Family, Scale
from equipoise.workloads.families.transformer import GROWTH, UNSEEN, Block, Past, counted, initialize
from equipoise.workloads.task import Shape

Memory = tuple[Tensor, ...]
"""What was read of a source: of each `CrossAttention` in turn keys (N, heads, S, width / heads) and values of that shape, and
last what is added to the score of each place (N, 1, 1, S), which hides the padding."""


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


class SelfAttention(nn.Module):
    """What is written sees what was written before it; the features are normalized, and what is seen is added to them.

    Args:
        width, heads: As of a `Block`.
    """

    def __init__(self, width: int, *, heads: int) -> None:
        super().__init__()
        self.norm, self.attend, self.merge = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.drop, self.heads = nn.Dropout(0.0), heads

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """Map (N, T, width) to the same shape; `hidden` (T, T) is added to what each place is to make of each."""
        return self.step(x, (), hidden)[0]

    def step(self, x: Tensor, past: Past, hidden: Tensor) -> tuple[Tensor, Past]:
        """Map what follows on a past to the same shape, and return the past of what comes next.

        Args:
            x: (N, T, width).
            past, hidden: As of `Block.step`.
        """
        parts = self.attend(self.norm(x)).unflatten(2, (3 * self.heads, -1)).transpose(1, 2)
        query, *new = parts.split(self.heads, 1)  # (N, heads, T, width / heads) each
        rows = x.shape[0]
        key, value = [torch.cat((o.expand(rows, -1, -1, -1), n), 2) for o, n in zip(past, new, strict=True)] if past else new
        seen = _shares(query, key, hidden) @ value
        return x + self.drop(self.merge(seen.transpose(1, 2).flatten(2))), (key, value)


class CrossAttention(nn.Module):
    """What is written sees the source; the features are normalized, and what is seen is added to them.

    Args:
        width, heads: As of a `Block`.
    """

    def __init__(self, width: int, *, heads: int) -> None:
        super().__init__()
        self.norm, self.ask, self.blend = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)
        self.tell, self.drop, self.heads = nn.Linear(width, 2 * width), nn.Dropout(0.0), heads

    def told(self, read: Tensor) -> Memory:
        """Return keys and values (N, heads, S, width / heads) of a source's features (N, S, width)."""
        told: Memory = self.tell(read).unflatten(2, (2 * self.heads, -1)).transpose(1, 2).split(self.heads, 1)
        return told

    def forward(self, x: Tensor, key: Tensor, value: Tensor, unread: Tensor) -> Tensor:
        """Map (N, T, width) to the same shape.

        Args:
            x: What is written.
            key, value: What `told` gave of the source.
            unread: (N, 1, 1, S), added to the score of each place of the source.
        """
        seen = _shares(self.asked(x), key, unread) @ value
        out: Tensor = x + self.drop(self.blend(seen.transpose(1, 2).flatten(2)))
        return out

    def asked(self, x: Tensor) -> Tensor:
        """Return what is looked for, (N, heads, T, width / heads)."""
        query: Tensor = self.ask(self.norm(x)).unflatten(2, (self.heads, -1)).transpose(1, 2)
        return query


class FeedForward(nn.Module):
    """A two-layer network on the normalized features (N, T, width), added to them; inside `expansion` times as wide."""

    def __init__(self, width: int, *, expansion: int) -> None:
        super().__init__()
        self.norm, self.act, self.drop = nn.LayerNorm(width), nn.GELU(), nn.Dropout(0.0)
        self.widen, self.narrow = nn.Linear(width, expansion * width), nn.Linear(expansion * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map features to the same shape."""
        out: Tensor = x + self.drop(self.narrow(self.drop(self.act(self.widen(self.norm(x))))))
        return out


def _shares(query: Tensor, key: Tensor, hidden: Tensor) -> Tensor:
    """Return the share (N, heads, T, S) of each place in what is looked up; `hidden` is added to the scores."""
    alike: Tensor = (query * query.shape[3] ** -0.5) @ key.transpose(2, 3) + hidden
    return alike.softmax(3)


class EncoderDecoder(nn.Module):
    """See the head of this file; the logits are (N, V, T), the class axis second.

    Of a decoder's block each part is a module of ``writes``, so that each can go alone, and takes with it what was kept for it.
    """

    def __init__(self, scale: Scale, shape: Shape) -> None:
        super().__init__()
        width, heads, expansion, depth = (int(scale[name]) for name in ("width", "heads", "expansion", "depth"))
        vocabulary, self.padding = shape.vocabulary or 1, shape.padding
        self.table = Table(vocabulary, width, source=shape.sample[0], written=shape.written or 1)
        self.reads = nn.ModuleList(Block(width, heads=heads, expansion=expansion, causal=False) for _ in range(depth))
        self.read = nn.LayerNorm(width)
        self.writes = nn.ModuleList(
            part
            for _ in range(depth)
            for part in (
                SelfAttention(width, heads=heads),
                CrossAttention(width, heads=heads),
                FeedForward(width, expansion=expansion),
            )
        )
        self.norm = nn.LayerNorm(width)
        self.logits = nn.Linear(width, vocabulary, bias=False)
        self.logits.weight = self.table.token.weight

    def forward(self, source: Tensor, written: Tensor) -> Tensor:
        """Map tokens (N, S) and (N, T) to the logits (N, V, T) of what comes next after each of the second."""
        x, hidden = self._begun(written, 0)
        return self._ended(x, self.encode(source), lambda part, x: part(x, hidden))

    def encode(self, source: Tensor) -> Memory:
        """Return what is kept of tokens (N, S)."""
        x = self.table.read(source)
        unread = torch.where(source != self.padding, 0.0, UNSEEN).to(x.dtype)[:, None, None, :]
        for block in self.reads:
            x = block(x, unread)
        x = self.read(x)
        return (*(kept for part in self.writes if isinstance(part, CrossAttention) for kept in part.told(x)), unread)

    def read_on(self, written: Tensor, past: Past, memory: Memory) -> tuple[Tensor, Past]:
        """Map tokens (N, T) that follow on `past` to logits (N, V, T), with the past of what comes next."""
        before, present = iter(past), list[Tensor]()
        x, hidden = self._begun(written, past[0].shape[2] if past else 0)
        if not any(isinstance(part, SelfAttention) for part in self.writes):
            present += counted(x, past)

        def step(part: SelfAttention, x: Tensor) -> Tensor:
            x, kept = part.step(x, tuple(itertools.islice(before, 2)), hidden)
            present.extend(kept)
            return x

        return self._ended(x, memory, step), tuple(present)

    def _begun(self, written: Tensor, before: int) -> tuple[Tensor, Tensor]:
        """Return the features of tokens that follow on as many `before`, and what hides from each those after it."""
        places = torch.arange(before + written.shape[1], device=written.device)
        x = self.table.write(written, before)
        return x, torch.where(places[before:, None] >= places, 0.0, UNSEEN).to(x.dtype)

    def _ended(self, x: Tensor, memory: Memory, see: Callable[[SelfAttention, Tensor], Tensor]) -> Tensor:
        """Return the logits of features that have come through all parts; `see` runs those that see what is written."""
        *read, unread = memory
        told = iter(read)
        for part in self.writes:
            if isinstance(part, SelfAttention):
                x = see(part, x)
            else:  # what stands in place of one that was dropped hands the features on
                x = part(x, next(told), next(told), unread) if isinstance(part, CrossAttention) else part(x)
        out: Tensor = self.logits(self.norm(x)).transpose(1, 2)
        return out

    def looks(self, source: Tensor, written: Tensor) -> Tensor:
        """Return the share (N, T, S) of each token of the source in what is last looked up, a mean over the heads."""
        last = [part for part in self.writes if isinstance(part, CrossAttention)][-1]
        kept: list[Tensor] = []
        hook = last.register_forward_pre_hook(lambda part, given: kept.append(given[0]))
        try:
            memory = self.encode(source)
            self.read_on(written, (), memory)
        finally:
            hook.remove()
        return _shares(last.asked(kept[0]), memory[-3], memory[-1]).mean(1)


def _initialize(model: nn.Module, generator: torch.Generator) -> None:
    """As the other Transformers; what a part of the decoder adds is scaled for their number."""
    initialize(model, generator)
    assert isinstance(model, EncoderDecoder)
    for name, part in model.writes.named_parameters():
        if name.endswith(("merge.weight", "blend.weight", "narrow.weight")):
            part.mul_(len(model.writes) ** -0.5)
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
