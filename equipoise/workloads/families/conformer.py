"""Conformers: attention and convolution in turn over the features of a sound (Gulati et al. 2020)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equipoise.errors import must_be
from equipoise.workloads.families.base import Dimension, Family, Scale
from equipoise.workloads.families.layers import fan_in, named
from equipoise.workloads.families.sound import BANDS, FRAME, HOP, LogBands
from equipoise.workloads.families.transformer import Classify, Past
from equipoise.workloads.task import Shape

FEWER = 4
"""Features that become one frame."""
STEP = FEWER * HOP
"""Samples of a frame: 40 ms."""


class Front(nn.Module):
    """Samples (N, T) in -1..1 to frames (N, T / STEP, width), silence added at the end up to a multiple of `STEP`.

    Two convolutions, each of which halves the features in time and looks back alone.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.features = LogBands()
        self.first = nn.Conv1d(BANDS, width, 3, stride=2)
        self.second = nn.Conv1d(width, width, 3, stride=2)
        self.act = nn.SiLU()

    def forward(self, samples: Tensor) -> Tensor:
        """Return the frames."""
        x = self.features(F.pad(samples, (FRAME - HOP, -samples.shape[1] % STEP)))  # (N, BANDS, T / HOP)
        x = self.act(self.first(F.pad(x, (1, 0))))
        x = self.act(self.second(F.pad(x, (1, 0))))  # (N, width, T / STEP)
        out: Tensor = x.transpose(1, 2)
        return out

    def step(self, samples: Tensor, past: Iterator[Tensor]) -> tuple[Tensor, Past]:
        """Map samples (N, T), T a multiple of `STEP`, that follow on a past to frames, and return the past of what comes next.

        Args:
            past: The last of the samples, of the features and of the halved features before; silence is all zeros.
        """
        samples = torch.cat((_for_each(past, samples), samples), 1)
        x = self.features(samples)
        once = torch.cat((_for_each(past, x), x), 2)
        x = self.act(self.first(once))
        twice = torch.cat((_for_each(past, x), x), 2)
        x = self.act(self.second(twice))
        return x.transpose(1, 2), (samples[:, HOP - FRAME :], once[:, :, -1:], twice[:, :, -1:])

    def silence(self) -> Past:
        """Return the past of a beginning."""
        return torch.zeros(1, FRAME - HOP), torch.zeros(1, BANDS, 1), torch.zeros(1, self.second.in_channels, 1)


def _for_each(past: Iterator[Tensor], new: Tensor) -> Tensor:
    """The next of a past, one (1, ...) for all samples or one for each, as one for each."""
    old = next(past)
    return old.expand(new.shape[0], *old.shape[1:])


class FeedForward(nn.Module):
    """Two layers on the normalized frames, wider between them; half of what they give is to be added."""

    def __init__(self, width: int, expansion: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.widen, self.narrow = nn.Linear(width, expansion * width), nn.Linear(expansion * width, width)
        self.act, self.drop = nn.SiLU(), nn.Dropout(0.0)  # a recipe may ask for more

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, T, width) to the same shape."""
        out: Tensor = 0.5 * self.drop(self.narrow(self.act(self.widen(self.norm(x)))))
        return out


class Attend(nn.Module):
    """Self-attention on the normalized frames, without positions: the convolutions know the order."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attend, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.drop, self.heads = nn.Dropout(0.0), heads

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Map (N, T, width) to the same shape; `hidden` (T, T) is added to what each frame is to make of these."""
        query, key, value = self.asked(x)
        return self.merged(F.scaled_dot_product_attention(query, key, value, hidden))

    def step(self, x: Tensor, past: Iterator[Tensor], hidden: Tensor, *, memory: int) -> tuple[Tensor, Past]:
        """Map what follows on a past to the same shape, and return the past of what comes next.

        Args:
            past: Keys and values of the last `memory` frames, (N or 1, heads, memory, width / heads) each.
            hidden: (..., T, memory + T), added to what each new frame is to make of all.
        """
        query, *new = self.asked(x)
        key, value = (torch.cat((_for_each(past, own), own), 2) for own in new)
        alike = (query * query.shape[3] ** -0.5) @ key.transpose(2, 3) + hidden
        return self.merged(alike.softmax(3) @ value), (key[:, :, -memory:], value[:, :, -memory:])

    def silence(self, memory: int) -> Past:
        """Return the past of a beginning."""
        each = torch.zeros(1, self.heads, memory, self.attend.out_features // (3 * self.heads))
        return each, each.clone()

    def asked(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, each (N, heads, T, width / heads)."""
        parts = self.attend(self.norm(x)).unflatten(2, (3, self.heads, -1))  # (N, T, 3, heads, width / heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        return query, key, value

    def merged(self, seen: Tensor) -> Tensor:
        """Return what the heads saw (N, heads, T, width / heads) as (N, T, width)."""
        out: Tensor = self.drop(self.merge(seen.transpose(1, 2).flatten(2)))
        return out


class Convolve(nn.Module):
    """A gated layer, a convolution of each channel alone, and a layer, on the normalized frames.

    Args:
        width: Channels.
        kernel: Frames that the convolution sees, odd.
        causal: Whether these are a frame and those before it, rather than as many on either side.
    """

    def __init__(self, width: int, kernel: int, *, causal: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.value, self.gate = nn.Linear(width, width), nn.Linear(width, width)
        self.deep = nn.Conv1d(width, width, kernel, groups=width)
        self.settle, self.act = nn.BatchNorm1d(width), nn.SiLU()
        self.out, self.drop = nn.Linear(width, width), nn.Dropout(0.0)
        after = 0 if causal else (kernel - 1) // 2
        self.around = (kernel - 1 - after, after)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, T, width) to the same shape."""
        return self.convolved(F.pad(self.gated(x), self.around))

    def step(self, x: Tensor, past: Iterator[Tensor]) -> tuple[Tensor, Past]:
        """As that of `Attend`; the past is the gated frames (N or 1, width, kernel - 1) before."""
        x = self.gated(x)
        x = torch.cat((_for_each(past, x), x), 2)
        return self.convolved(x), (x[:, :, -self.around[0] :],)

    def silence(self) -> Past:
        """Return the past of a beginning."""
        return (torch.zeros(1, self.deep.in_channels, self.around[0]),)

    def gated(self, x: Tensor) -> Tensor:
        """Return what is convolved (N, width, T): a value and what it is multiplied by, the gated linear unit."""
        x = self.norm(x)
        out: Tensor = (self.value(x) * self.gate(x).sigmoid()).transpose(1, 2)
        return out

    def convolved(self, x: Tensor) -> Tensor:
        """Return (N, T, width) from (N, width, T + kernel - 1)."""
        x = self.act(self.settle(self.deep(x))).transpose(1, 2)
        out: Tensor = self.drop(self.out(x))
        return out


class Block(nn.Module):
    """Half a feed-forward, attention, convolution, half a feed-forward, each added; then normalized (equation 1 there)."""

    def __init__(self, width: int, *, heads: int, expansion: int, kernel: int, causal: bool = False) -> None:
        super().__init__()
        self.before, self.after = FeedForward(width, expansion), FeedForward(width, expansion)
        self.attend, self.convolve = Attend(width, heads), Convolve(width, kernel, causal=causal)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Map (N, T, width) to the same shape; `hidden` as of `Attend`."""
        x = x + self.before(x)
        x = x + self.attend(x, hidden)
        x = x + self.convolve(x)
        out: Tensor = self.norm(x + self.after(x))
        return out

    def step(self, x: Tensor, past: Iterator[Tensor], hidden: Tensor, *, memory: int) -> tuple[Tensor, Past]:
        """As those of its parts; in place of a part that was dropped stands what has no past."""
        x, present = x + self.before(x), tuple[Tensor, ...]()
        if isinstance(self.attend, Attend):
            seen, present = self.attend.step(x, past, hidden, memory=memory)
        else:
            seen = self.attend(x)
        x, more = x + seen, tuple[Tensor, ...]()
        if isinstance(self.convolve, Convolve):
            heard, more = self.convolve.step(x, past)
        else:
            heard = self.convolve(x)
        x = x + heard
        out: Tensor = self.norm(x + self.after(x))
        return out, (*present, *more)

    def silence(self, memory: int) -> Past:
        """Return the past of a beginning."""
        attend = self.attend.silence(memory) if isinstance(self.attend, Attend) else ()
        return (*attend, *(self.convolve.silence() if isinstance(self.convolve, Convolve) else ()))


class Score(nn.Module):
    """Logits (N, classes, T) of each frame (N, T, width)."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.logits = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits; the class axis is the second, as losses want it."""
        out: Tensor = self.logits(x).transpose(1, 2)
        return out


def blocks(scale: Scale, *, causal: bool = False) -> dict[str, nn.Module]:
    """Return the blocks of a scale by name."""
    width, heads, expansion, kernel = (int(scale[name]) for name in ("width", "heads", "expansion", "kernel"))
    return {
        f"block{number + 1}": Block(width, heads=heads, expansion=expansion, kernel=kernel, causal=causal)
        for number in range(int(scale["depth"]))
    }


def framed(shape: Shape, name: str) -> None:
    """Raise where a task wants an answer for each sample of a sound: there is one for each frame."""
    if shape.dense and shape.aligned:
        remedy = "Give one class for each recording, or a row of them and Task.of(aligned=False) with a loss such as CTC."
        raise must_be("task", f"one that does not ask for each sample in {name}", shape, remedy)


def _conformer(scale: Scale, shape: Shape) -> nn.Sequential:
    framed(shape, "conformer")
    width = int(scale["width"])
    head = Score(width, shape.outputs) if shape.dense else Classify(width, shape.outputs)
    return named(front=Front(width), **blocks(scale), head=head)


def weights(scale: Scale) -> float:
    """Return the leading term of the weights of the blocks: (7 + 4 expansion) depth width²."""
    return (7 + 4 * scale["expansion"]) * scale["depth"] * scale["width"] ** 2


def initialize(model: nn.Module, generator: torch.Generator) -> None:
    """As `fan_in`, gain 1, convolutions of one dimension too; what is added to the frames is scaled for depth."""
    fan_in(model, generator, gain=1.0)
    for layer in model.modules():
        if isinstance(layer, nn.Conv1d):
            layer.weight.normal_(0.0, layer.weight[0].numel() ** -0.5, generator=generator)
            if layer.bias is not None:
                layer.bias.zero_()
    every = [module for module in model.modules() if isinstance(module, Block)]
    for block in every:
        for last in (block.before.narrow, block.attend.merge, block.convolve.out, block.after.narrow):
            last.weight.mul_((4 * len(every)) ** -0.5)


DIMENSIONS = (
    Dimension("width", 64, (32, 48, 64, 96, 128, 192), multiple=16),
    Dimension("depth", 3, (1, 2, 3, 4, 6)),
    Dimension("heads", 4, (1, 2, 4, 8)),
    Dimension("expansion", 2, (1, 2, 4)),
    Dimension("kernel", 7, (3, 5, 7, 11, 15), multiple=2, offset=1),
)

CONFORMER = Family(
    "conformer",
    DIMENSIONS,
    build=_conformer,
    kinds=("vectors",),
    cost=weights,
    growth={"width": 1.0, "depth": 0.5},
    dense=None,
    initialize=initialize,
)
"""Samples (N, T) of a sound in -1..1, 8000 a second, to logits (N, classes); (N, classes, T / 320) where a task asks for rows.

References:
    Gulati et al. 2020, "Conformer: convolution-augmented transformer for speech recognition"; without relative positions.
"""
