"""Conformers that answer while a sound goes on: chunk by chunk, with what they keep of those before."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.workloads.families.base import Dimension, Family, Scale
from equipoise.workloads.families.conformer import (
    DIMENSIONS,
    STEP,
    Block,
    Front,
    Score,
    blocks,
    framed,
    initialize,
    weights,
)
from equipoise.workloads.families.transformer import UNSEEN, Past
from equipoise.workloads.task import Shape


class Listener(nn.Sequential):
    """Front, blocks and head, one after the other; a frame sees its own chunk and the chunks kept of those before.

    A chunk is the look-ahead: its first frame sees its last. Convolutions look back alone. It can go on from what it has heard
    (`read_on`), a whole number of chunks at a time but for the last.

    Attributes:
        chunk: Frames of a chunk.
        memory: Frames kept of what was before, a multiple of `chunk`.
    """

    chunk = 1
    memory = 1

    @property
    def read_every(self) -> int:
        """Samples of a chunk."""
        return self.chunk * STEP

    def forward(self, samples: Tensor) -> Tensor:
        """Map samples (N, T) to logits (N, classes, T / STEP), T filled up with silence to a multiple of `STEP`."""
        front, *parts, head = list[Any](self)
        x = front(samples)
        hidden = self._hidden(x, before=0)
        for part in parts:
            x = part(x, hidden)
        out: Tensor = head(x)
        return out

    def read_on(self, samples: Tensor, past: Past) -> tuple[Tensor, Past]:
        """Map samples (N, T), T a multiple of `STEP`, that follow on `past` to logits, with the past of what comes next.

        Args:
            past: Which of the kept frames there were, (N or 1, 1, 1, memory), and what the front and each block in turn keep;
                nothing where a sound begins.
        """
        front, *parts, head = list[Any](self)
        kept = iter(past or self._silence())
        there = next(kept)
        x, present = front.step(samples, kept)
        new = torch.ones_like(x[:, None, None, :, 0])  # (N, 1, 1, T)
        there = torch.cat((there.expand(x.shape[0], -1, -1, -1), new), 3)
        hidden = self._hidden(x, before=self.memory) + (1 - there) * UNSEEN  # (N, 1, T, memory + T)
        for part in parts:
            if isinstance(part, Block):  # in place of one that was dropped stands what has no past
                x, more = part.step(x, kept, hidden, memory=self.memory)
                present = (*present, *more)
            else:
                x = part(x)
        return head(x), (there[:, :, :, -self.memory :], *present)

    def _silence(self) -> Past:
        """The past of a beginning."""
        front, *parts, _ = list[Any](self)
        held = [part.silence(self.memory) for part in parts if isinstance(part, Block)]
        return (torch.zeros(1, 1, 1, self.memory), *front.silence(), *(each for one in held for each in one))

    def _hidden(self, x: Tensor, *, before: int) -> Tensor:
        """What is added to the attention (T, before + T) of T new frames: nothing, or so little that none is left."""
        places = torch.arange(-before, x.shape[1], device=x.device).div(self.chunk, rounding_mode="floor")
        own = places[before:, None]
        return torch.where((places <= own) & (places >= own - self.memory // self.chunk), 0.0, UNSEEN).to(x.dtype)


def _listener(scale: Scale, shape: Shape) -> Listener:
    framed(shape, "streaming")
    width = int(scale["width"])
    parts = {"front": Front(width), **blocks(scale, causal=True), "head": Score(width, shape.outputs)}
    net = Listener(OrderedDict(parts))
    net.chunk = int(scale["chunk"])
    net.memory = net.chunk * int(scale["memory"])
    return net


STREAMING = Family(
    "streaming",
    (*DIMENSIONS, Dimension("chunk", 4, (2, 4, 8)), Dimension("memory", 4, (1, 2, 4, 8))),
    build=_listener,
    kinds=("vectors",),
    cost=weights,
    growth={"width": 1.0, "depth": 0.5},
    dense=True,
    initialize=initialize,
)
"""As `conformer`, for rows of labels, in chunks: `chunk` frames of 40 ms, `memory` chunks kept of what was before."""
