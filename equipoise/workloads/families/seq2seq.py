"""Gated recurrent units that read a sentence from both sides and write another, looking back at every word of the first.

The attention is Bahdanau's. It stands between two layers of the decoder, and what it found goes into the upper one: so all
places of a training sentence are looked up at once, where in the paper each waits for the one before it.

References:
    Bahdanau, Cho & Bengio 2015, "Neural machine translation by jointly learning to align and translate", sections 3 and A.1.2.
    Wu et al. 2016, "Google's neural machine translation system", section 3.2: what the bottom layer asked for goes to
    those above.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from equipoise.workloads.families.base import Dimension, Family, Scale
from equipoise.workloads.families.layers import LOGITS, fan_in
from equipoise.workloads.families.texts import mean_of
from equipoise.workloads.families.transformer import UNSEEN
from equipoise.workloads.task import Shape

Memory = tuple[Tensor, ...]
"""What was read of a source: states (N, S, 2 hidden), what each says to a question (N, S, hidden), what is added to its score
(N, 1, S), and the state that writing begins with (N, 1, 1, hidden)."""


class Seq2Seq(nn.Module):
    """Map ``source`` (N, S) and ``written`` (N, T) to the logits (N, V, T) of what comes next after each of the second."""

    def __init__(self, scale: Scale, shape: Shape) -> None:
        super().__init__()
        width, hidden, vocabulary = int(scale["width"]), int(scale["hidden"]), shape.vocabulary or 1
        self.padding = shape.padding
        self.token, self.drop = nn.Embedding(vocabulary, width), nn.Dropout(0.0)
        self.onward = nn.GRU(width, hidden, batch_first=True)
        self.back = nn.GRU(width, hidden, batch_first=True)
        self.begin = nn.Linear(2 * hidden, hidden)
        self.lower = nn.GRU(width, hidden, batch_first=True)
        self.ask, self.tell, self.score = nn.Linear(hidden, hidden), nn.Linear(2 * hidden, hidden), nn.Linear(hidden, 1)
        self.upper = nn.GRU(3 * hidden, hidden, batch_first=True)
        self.narrow = nn.Linear(3 * hidden + width, width)
        self.logits = nn.Linear(width, vocabulary, bias=False)
        self.logits.weight = self.token.weight

    def forward(self, source: Tensor, written: Tensor) -> Tensor:
        """Return the logits; the class axis is the second, as cross entropy wants it."""
        return self.read_on(written, (), self.encode(source))[0]

    def encode(self, source: Tensor) -> Memory:
        """Return what is kept of tokens (N, S); what fills a sentence up changes nothing."""
        seen, x = source != self.padding, self.drop(self.token(source))
        onward, _ = self.onward(x)
        turn = _turning(seen).to(x.dtype)
        back, _ = self.back(turn @ x)
        states = torch.cat((onward, turn @ back), 2)
        unread = torch.where(seen, 0.0, UNSEEN).to(x.dtype)[:, None, :]
        return states, self.tell(states), unread, torch.tanh(self.begin(mean_of(states, seen)))[:, None, None]

    def read_on(self, written: Tensor, past: tuple[Tensor, ...], memory: Memory) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Map tokens (N, T) that follow on `past` to logits (N, V, T), with the past of what comes next.

        Args:
            past: How far the states of both layers have come from the first, (N or 1, 1, 1, hidden) each: none, or zeros,
                where a sentence begins.
        """
        states, told, unread, first = memory
        x = self.drop(self.token(written))
        before = [_state(first + past[layer] if past else first) for layer in range(2)]
        asked, lower = self.lower(x, before[0])
        found = self._shares(asked, told, unread) @ states
        out, upper = self.upper(self.drop(torch.cat((asked, found), 2)), before[1])
        narrow = torch.tanh(self.narrow(self.drop(torch.cat((out, found, x), 2))))
        present = tuple(state.transpose(0, 1)[:, None] - first for state in (lower, upper))
        return self.logits(narrow).transpose(1, 2), present

    def looks(self, source: Tensor, written: Tensor) -> Tensor:
        """Return the share (N, T, S) of each word of the source in what is looked up after each written one."""
        _, told, unread, first = self.encode(source)
        asked, _ = self.lower(self.token(written), _state(first))
        return self._shares(asked, told, unread)

    def _shares(self, asked: Tensor, told: Tensor, unread: Tensor) -> Tensor:
        """Return the share (N, T, S) of each place of the source in what states (N, T, hidden) look up."""
        alike: Tensor = self.score(torch.tanh(self.ask(asked)[:, :, None] + told[:, None]))[..., 0] + unread
        return alike.softmax(2)


def _state(state: Tensor) -> Tensor:
    """Return a state (N, 1, 1, hidden) as units take it, (1, N, hidden)."""
    return state[:, 0].transpose(0, 1).contiguous()


def _turning(seen: Tensor) -> Tensor:
    """Return what turns each sentence around, (N, S, S), and leaves what stands behind it; twice is as it was.

    A product with it, as a file in which the length is free holds no gathering along with units that read from left to right.
    """
    places = torch.arange(seen.shape[1], device=seen.device)[None]
    turned = seen.sum(1, keepdim=True) - 1 - places
    return torch.where(turned >= 0, turned, places)[:, :, None] == places[:, None]


def _initialize(model: nn.Module, generator: torch.Generator) -> None:
    """As `fan_in`; the table so that logits begin small; recurrent weights uniform as torch has them."""
    fan_in(model, generator, gain=1.0)
    assert isinstance(model, Seq2Seq)
    model.token.weight.normal_(0.0, LOGITS, generator=generator)
    for units in (model.onward, model.back, model.lower, model.upper):
        bound = 1 / math.sqrt(units.hidden_size)
        for weight in units.parameters():
            weight.uniform_(-bound, bound, generator=generator)


SEQ2SEQ = Family(
    "seq2seq",
    (
        Dimension("width", 256, (32, 64, 128, 256, 384), multiple=8),
        Dimension("hidden", 256, (32, 64, 128, 256, 384, 512), multiple=8),
    ),
    build=Seq2Seq,
    kinds=("pairs",),
    cost=lambda scale: scale["hidden"] * (12 * scale["width"] + 28 * scale["hidden"]),
    growth={"width": 1.0, "hidden": 1.0},
    dense=True,
    initialize=_initialize,
)
"""Units of `hidden` on a table of `width`, one for both languages and the logits. `grow` counts the weights between."""
