"""Families for texts as rows of tokens: a bag of embeddings, convolutions over words, and a recurrent net.

All take int64 tokens (N, L), L being at most what the task says. The task's padding token changes no answer: a text is answered
the same whatever it is filled up to.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from equipoise.workloads.families.base import Dimension, Family, Scale
from equipoise.workloads.families.layers import LOGITS, fan_in
from equipoise.workloads.task import Shape

DROPOUT = 0.5
"""Share of the features in front of the last layer that training drops, as Kim (2014) does; `Recipe.dropout` sets another."""
WINDOW = 3
"""Sizes of convolution, one word apart; the largest is the family's ``kernel``."""


class Bag(nn.Module):
    """A perceptron on the mean of the words' embeddings (Iyyer et al. 2015, Deep averaging networks)."""

    def __init__(self, scale: Scale, shape: Shape) -> None:
        super().__init__()
        width = int(scale["width"])
        self.embed = nn.Embedding(shape.vocabulary or 1, width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(int(scale["depth"])))
        self.drop, self.head = nn.Dropout(DROPOUT), nn.Linear(width, shape.outputs)
        self.padding = shape.padding

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (N, classes)."""
        x = self.drop(mean_of(self.embed(tokens), tokens != self.padding))
        for layer in self.hidden:
            x = self.drop(torch.relu(layer(x)))
        logits: Tensor = self.head(x)
        return logits


class TextCNN(nn.Module):
    """The largest answer over a text of convolutions over 3, 4 and 5 words (Kim 2014, its CNN-rand).

    The text is an image of one column, so that whatever cuts, rounds and times convolutions serves here too.
    """

    def __init__(self, scale: Scale, shape: Shape) -> None:
        super().__init__()
        width, filters, largest = (int(scale[name]) for name in ("width", "filters", "kernel"))
        self.embed = nn.Embedding(shape.vocabulary or 1, width)
        sizes = range(largest - WINDOW + 1, largest + 1)
        self.windows = nn.ModuleList(nn.Conv2d(width, filters, (size, 1), padding=(size // 2, 0)) for size in sizes)
        self.drop, self.head = nn.Dropout(DROPOUT), nn.Linear(WINDOW * filters, shape.outputs)
        self.padding = shape.padding

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (N, classes)."""
        seen = (tokens != self.padding)[:, None, :, None]  # (N, 1, L, 1)
        x = self.embed(tokens).transpose(1, 2)[..., None] * seen  # (N, width, L, 1)
        found = [torch.relu(window(x))[:, :, : tokens.shape[1]] * seen for window in self.windows]  # a window has a centre
        logits: Tensor = self.head(self.drop(torch.cat([x.amax((2, 3)) for x in found], 1)))
        return logits


class Recurrent(nn.Module):
    """Gated recurrent units (Cho et al. 2014), read from left to right; the mean of their states is classified."""

    def __init__(self, scale: Scale, shape: Shape) -> None:
        super().__init__()
        width, hidden = int(scale["width"]), int(scale["hidden"])
        self.embed = nn.Embedding(shape.vocabulary or 1, width)
        self.before, self.units = nn.Dropout(DROPOUT), nn.GRU(width, hidden, int(scale["depth"]), batch_first=True)
        self.drop, self.head = nn.Dropout(DROPOUT), nn.Linear(hidden, shape.outputs)
        self.padding = shape.padding

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (N, classes)."""
        states, _ = self.units(self.before(self.embed(tokens)))  # what comes behind a text cannot reach its states
        logits: Tensor = self.head(self.drop(mean_of(states, tokens != self.padding)))
        return logits


def mean_of(x: Tensor, seen: Tensor) -> Tensor:
    """Return the mean (N, width) of x (N, L, width) over the places that are `seen` (N, L); zeros where none is."""
    weight = seen.to(x.dtype)[:, :, None]
    return (x * weight).sum(1) / weight.sum(1).clamp(min=1.0)


def _initialize(model: nn.Module, generator: torch.Generator) -> None:
    """As `fan_in`; embeddings normal, of deviation 0.1; recurrent weights uniform as torch has them."""
    fan_in(model, generator)
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.weight.normal_(0.0, LOGITS, generator=generator)
        if isinstance(module, nn.GRU):
            bound = 1 / math.sqrt(module.hidden_size)
            for weight in module.parameters():
                weight.uniform_(-bound, bound, generator=generator)


_WIDTH = Dimension("width", 128, (16, 32, 64, 128, 256, 512), multiple=8)

BAG = Family(
    "bag",
    (_WIDTH, Dimension("depth", 1, (1, 2, 3))),
    build=Bag,
    kinds=("tokens",),
    cost=lambda scale: scale["width"] ** 2 * scale["depth"],
    growth={"width": 1.0},
    initialize=_initialize,
)
"""Mean of embeddings and `depth` hidden layers of the same `width`. `grow` counts the weights between hidden layers."""

TEXTCNN = Family(
    "textcnn",
    (
        _WIDTH,
        Dimension("filters", 96, (16, 32, 64, 96, 128, 256), multiple=8),
        Dimension("kernel", 5, (3, 4, 5, 7), least=WINDOW),
    ),
    build=TextCNN,
    kinds=("tokens",),
    cost=lambda scale: scale["width"] * scale["filters"] * WINDOW * (scale["kernel"] - 1),
    growth={"width": 1.0, "filters": 1.0},
    initialize=_initialize,
)
"""Kim's network: `filters` of each of three sizes, the largest `kernel` words; `width` of an embedding."""

GRU = Family(
    "gru",
    (
        _WIDTH,
        Dimension("hidden", 128, (16, 32, 64, 128, 256, 512), multiple=8),
        Dimension("depth", 1, (1, 2, 3)),
    ),
    build=Recurrent,
    kinds=("tokens",),
    cost=lambda scale: 3 * scale["hidden"] * (scale["width"] + (2 * scale["depth"] - 1) * scale["hidden"]),
    growth={"width": 1.0, "hidden": 1.0},
    initialize=_initialize,
)
"""`depth` layers of `hidden` gated units on embeddings of `width`."""
