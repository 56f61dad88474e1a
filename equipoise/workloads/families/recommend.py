"""Families that tell what comes next to somebody: attention over a history, and two towers that meet in a product.

Both take int64 tokens (N, L), the newest first and filled up with the task's padding token behind, and give a score to each
output. Where the outputs are the tokens (`Shape.unseen`, or as many of both), one table serves both sides, and what a sample
holds already is pushed down, or up, by the model itself (`Held`): what ships needs no rules around it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from equipoise.workloads.families.base import Dimension, Family, Scale
from equipoise.workloads.families.layers import LOGITS, fan_in
from equipoise.workloads.families.transformer import UNSEEN, Block, Embed
from equipoise.workloads.task import Shape

DROPOUT = 0.3
"""Share of the features that training drops; `Recipe.dropout` sets another."""
HELD = -60.0
"""Score of a token that is no answer. Its share of a softmax is below float32, so it adds nothing to a loss or a divergence;
and it is no larger than scores are, so that what is compared or rounded relative to the largest score is not spoiled by it."""
AGES = 0.05
"""How much less an item counts, at first, than the one that was taken after it."""


class Held(nn.Module):
    """Scores (N, V) with those of the tokens that a sample holds changed.

    Args:
        length: Tokens in a row, L.
        padding: The token that fills a row up.
        unseen: Whether they are no answers. Else each adds what is learned for its age: what was taken lately, or often, is
            taken again.
    """

    def __init__(self, length: int, *, padding: int, unseen: bool) -> None:
        super().__init__()
        self.padding = padding
        self.again = None if unseen else nn.Parameter(torch.zeros(length))

    def forward(self, scores: Tensor, tokens: Tensor) -> Tensor:
        """Return the changed scores; `tokens` (N, L) are the samples."""
        if self.again is None:
            return scores.scatter(1, tokens, torch.full_like(tokens, HELD, dtype=scores.dtype))
        added = self.again[: tokens.shape[1]] * (tokens != self.padding)  # (N, L)
        return scores.scatter_add(1, tokens, added.to(scores.dtype))


class Recommender(nn.Module):
    """What both families share: a table of tokens, a body of their own, and scores by the same table.

    Args:
        width: Features of a token.
        shape: Of the task; its outputs have a table of their own where they are not the tokens.
    """

    def __init__(self, width: int, shape: Shape) -> None:
        super().__init__()
        self.drop = nn.Dropout(DROPOUT)
        self.head = nn.Linear(width, shape.outputs)
        self.padding = shape.padding
        same = shape.vocabulary == shape.outputs
        self.held = Held(shape.sample[0], padding=shape.padding, unseen=shape.unseen) if same else None

    def tie(self, table: nn.Embedding) -> None:
        """Let the scores be products with the rows of `table`, where the outputs are its tokens."""
        if self.held is not None:
            self.head.weight = table.weight

    def scored(self, features: Tensor, tokens: Tensor) -> Tensor:
        """Return scores (N, outputs) of features (N, width)."""
        scores: Tensor = self.head(self.drop(features))
        return scores if self.held is None else self.held(scores, tokens)


class SASRec(Recommender):
    """Attention over the history, each item seeing itself and older ones; the newest asks (Kang & McAuley 2018).

    Trained by cross entropy over all items, without which it falls behind (Klenitskiy & Vasilev 2023, "Turning dross into gold
    loss"; Petrov & Macdonald 2023, "gSASRec").
    """

    def __init__(self, scale: Scale, shape: Shape) -> None:
        width, length = int(scale["width"]), shape.sample[0]
        super().__init__(width, shape)
        self.embed = Embed(shape.vocabulary or 1, width, length=length, context=length)
        options = {name: int(scale[name]) for name in ("heads", "expansion")}
        self.blocks = nn.ModuleList(Block(width, **options, causal=False) for _ in range(int(scale["depth"])))
        self.norm = nn.LayerNorm(width)
        self.tie(self.embed.token)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return scores (N, outputs)."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        seen = (tokens != self.padding)[:, None, None, :] & (places >= places[:, None])  # (N, 1, L, L), older and itself
        x = self.drop(self.embed(tokens))
        hidden = torch.where(seen, 0.0, UNSEEN).to(x.dtype)
        for block in self.blocks:
            x = block(x, hidden)
        return self.scored(self.norm(x[:, 0]), tokens)


class TwoTower(Recommender):
    """A tower for the user, a perceptron on the weighted sum of the items taken, beside the table of the items.

    An item counts by its age, which is learned; the sum is divided by the root of the weights, so that who took more is surer
    of what is liked. The tower of the items is one row each, a constant matrix when it serves.

    References:
        Yi et al. 2019, "Sampling-bias-corrected neural modeling for large corpus item recommendations", the form of the towers;
        here the softmax is over the whole corpus. Covington et al. 2016, "Deep neural networks for YouTube recommendations".
    """

    def __init__(self, scale: Scale, shape: Shape) -> None:
        width = int(scale["width"])
        super().__init__(width, shape)
        self.token = nn.Embedding(shape.vocabulary or 1, width)
        self.age = nn.Parameter(-AGES * torch.arange(shape.sample[0], dtype=torch.float32))
        hidden = int(scale["expansion"]) * width
        self.widen = nn.ModuleList(nn.Linear(width, hidden) for _ in range(int(scale["depth"])))
        self.act = nn.GELU()
        self.narrow = nn.ModuleList(nn.Linear(hidden, width) for _ in range(int(scale["depth"])))
        self.tie(self.token)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return scores (N, outputs)."""
        seen = tokens != self.padding
        weight = self.age[: tokens.shape[1]].exp() * seen  # (N, L)
        x = (self.token(tokens) * weight[:, :, None]).sum(1) / weight.sum(1, keepdim=True).clamp(min=1e-6).sqrt()
        for widen, narrow in zip(self.widen, self.narrow, strict=True):
            x = x + narrow(self.drop(self.act(widen(x))))
        return self.scored(x, tokens)


def _initialize(model: nn.Module, generator: torch.Generator) -> None:
    """As `fan_in`, gain 1; what is added to a sum begins small; rows of the table so that scores begin near one another."""
    fan_in(model, generator, gain=1.0)
    for module in model.modules():
        if isinstance(module, SASRec):
            module.embed.token.weight.normal_(0.0, module.head.in_features**-0.5, generator=generator)
            module.embed.position.normal_(0.0, module.head.in_features**-0.5, generator=generator)
            blocks: Any = module.blocks
            for block in blocks:
                for layer in (block.merge, block.narrow):
                    layer.weight.mul_((2 * len(module.blocks)) ** -0.5)
            module.norm.weight.fill_(module.head.in_features**-0.5)
        if isinstance(module, TwoTower):
            module.token.weight.normal_(0.0, LOGITS, generator=generator)
            layers: Any = module.narrow
            for layer in layers:
                layer.weight.mul_(LOGITS)


SASREC = Family(
    "sasrec",
    (
        Dimension("width", 64, (16, 32, 64, 96, 128, 192, 256), multiple=16),
        Dimension("depth", 1, (1, 2, 3)),
        Dimension("heads", 2, (1, 2, 4)),
        Dimension("expansion", 2, (1, 2, 4)),
    ),
    build=SASRec,
    kinds=("tokens",),
    cost=lambda scale: (4 + 2 * scale["expansion"]) * scale["depth"] * scale["width"] ** 2,
    growth={"width": 1.0},
    initialize=_initialize,
)
"""`depth` blocks of attention on embeddings of `width`. `grow` counts the weights of the blocks."""

TWOTOWER = Family(
    "twotower",
    (
        Dimension("width", 128, (16, 32, 64, 128, 256, 512), multiple=8),
        Dimension("depth", 1, (1, 2, 3)),
        Dimension("expansion", 2, (1, 2, 4)),
    ),
    build=TwoTower,
    kinds=("tokens",),
    cost=lambda scale: 2 * scale["expansion"] * scale["depth"] * scale["width"] ** 2,
    growth={"width": 1.0},
    initialize=_initialize,
)
"""`depth` residual layers for the user, of `expansion` times the `width` of an item's row. `grow` counts their weights."""
