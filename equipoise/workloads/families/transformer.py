"""Transformers: a decoder that predicts each next token, and an encoder that classifies tokens or images."""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equipoise.errors import must_be
from equipoise.workloads.families.base import Dimension, Family, Scale
from equipoise.workloads.families.layers import RESOLUTION, fan_in, front, named
from equipoise.workloads.families.texts import mean_of
from equipoise.workloads.task import Shape

Past = tuple[Tensor, ...]

UNSEEN = -1e4
"""Added to the score of a position that nothing is to attend to: its share is exactly zero, yet finite where all are such."""


class Block(nn.Module):
    """Attention and a two-layer network, each on the normalized input and added to it (Radford et al. 2019).

    Args:
        width: Features of a position.
        heads: Attention heads; a divisor of `width`.
        expansion: How many times the two-layer network is wider inside.
        causal: Whether a position sees only itself and those before it.
    """

    def __init__(self, width: int, *, heads: int, expansion: int, causal: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attend = nn.Linear(width, 3 * width)
        self.merge = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.widen = nn.Linear(width, expansion * width)
        self.act = nn.GELU()
        self.narrow = nn.Linear(expansion * width, width)
        self.drop = nn.Dropout(0.0)  # a recipe may ask for more
        self.heads, self.causal = heads, causal

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Map (N, T, width) to the same shape; `hidden` (N, 1, 1, T) is added to what any position is to make of these."""
        query, key, value = self._asked(x)
        return self._added(x, F.scaled_dot_product_attention(query, key, value, hidden, is_causal=self.causal))

    def step(self, x: Tensor, past: Past, hidden: Tensor) -> tuple[Tensor, Past]:
        """Map what follows on a past to the same shape, and return the past of what comes next.

        Args:
            past: Keys and values, (N or 1, heads, P, width / heads) each, or nothing.
            hidden: (T, P + T), added to what each new position is to make of all.
        """
        query, *new = self._asked(x)
        kept = (
            [torch.cat((old.expand(len(x), -1, -1, -1), own), 2) for old, own in zip(past, new, strict=True)] if past else new
        )
        key, value = kept  # each (N, heads, P + T, width / heads)
        alike = (query * query.shape[3] ** -0.5) @ key.transpose(
            2, 3
        ) + hidden  # in a file a third of the fused form's operators
        return self._added(x, alike.softmax(3) @ value), (key, value)

    def _asked(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values, each (N, heads, T, width / heads)."""
        parts = self.attend(self.norm1(x)).unflatten(2, (3, self.heads, -1))  # (N, T, 3, heads, width / heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        return query, key, value

    def _added(self, x: Tensor, seen: Tensor) -> Tensor:
        """The features with what attention saw, and what the network makes of both, added."""
        x = x + self.drop(self.merge(seen.transpose(1, 2).flatten(2)))
        out: Tensor = x + self.drop(self.narrow(self.act(self.widen(self.norm2(x)))))
        return out


class Embed(nn.Module):
    """Tokens (N, T) to features (N * parts, context, width), token and position added.

    Args:
        vocabulary, width: Tokens, and features of each.
        length: Tokens in a sample, T.
        context: Tokens that see each other. A shorter one than `length` cuts each sample into parts of this many, the last
            one filled up.
    """

    def __init__(self, vocabulary: int, width: int, *, length: int, context: int) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(torch.zeros(context, width))
        self.context, self.missing = context, -length % context
        self.parts = -(-length // context)
        self.scale = math.sqrt(width)

    def forward(self, tokens: Tensor, before: int = 0) -> Tensor:
        """Return the features of tokens that follow on as many `before`."""
        if self.parts > 1:
            tokens = F.pad(tokens, (0, self.missing)).reshape(-1, self.context)
        features: Tensor = self.token(tokens) + self.position.narrow(0, before, tokens.shape[1])
        return features * self.scale


class Patches(nn.Module):
    """Images (N, C, H, W) to features (N, H W / patch², width) of square patches, a position added to each."""

    def __init__(self, channels: int, width: int, *, height: int, across: int, patch: int) -> None:
        super().__init__()
        self.cut = nn.Conv2d(channels, width, patch, stride=patch)
        self.position = nn.Parameter(torch.zeros((height // patch) * (across // patch), width))

    def forward(self, x: Tensor) -> Tensor:
        """Return the features."""
        features: Tensor = self.cut(x).flatten(2).transpose(1, 2) + self.position
        return features


class Next(nn.Module):
    """Logits (N, V, T) of the next token from features (N * parts, context, width), by the token embedding itself."""

    def __init__(self, embed: Embed, *, length: int) -> None:
        super().__init__()
        vocabulary, width = embed.token.weight.shape
        self.norm = nn.LayerNorm(width)
        self.logits = nn.Linear(width, vocabulary, bias=False)
        self.logits.weight = embed.token.weight
        self.parts, self.length, self.padded = embed.parts, length, embed.parts * embed.context

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits; the class axis is the second, as cross entropy wants it."""
        if self.parts > 1:
            x = x.reshape(-1, self.padded, x.shape[2])[:, : self.length]
        out: Tensor = self.logits(self.norm(x)).transpose(1, 2)
        return out


class Classify(nn.Module):
    """Logits (N, classes) from the mean of the normalized features (N, T, width), of those that are `seen` (N, T) if given."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.logits = nn.Linear(width, classes)

    def forward(self, x: Tensor, seen: Tensor | None = None) -> Tensor:
        """Return the logits."""
        x = self.norm(x)
        out: Tensor = self.logits(x.mean(1) if seen is None else mean_of(x, seen))
        return out


class Decoder(nn.Sequential):
    """Embedding, blocks and head of a decoder, one after the other; it can go on from what it has read (`read_on`)."""

    def read_on(self, tokens: Tensor, past: Past) -> tuple[Tensor, Past]:
        """Map tokens (N, T) that follow on `past` to logits (N, V, T), with the past of what comes next.

        Args:
            past: Keys and values of each block in turn, (N or 1, heads, P, width / heads), P + T at most the context; nothing
                where a text begins.
        """
        embed, *blocks, head = self
        before = past[0].shape[2] if past else 0
        places = torch.arange(before + tokens.shape[1], device=tokens.device)
        x = embed(tokens, before)
        hidden = torch.where(places[before:, None] >= places, 0.0, UNSEEN).to(x.dtype)
        present = () if any(isinstance(block, Block) for block in blocks) else counted(x, past)
        for block in blocks:
            if isinstance(block, Block):  # in place of one that was dropped stands what has no past
                x, kept = block.step(x, past[len(present) : len(present) + 2], hidden)
                present = (*present, *kept)
            else:
                x = block(x)
        return head(x), present


def counted(x: Tensor, past: Past) -> Past:
    """Return the past of what keeps no keys and values: one feature of each token read, by which the places are counted.

    Args:
        x: Features (N, T, width) that follow on `past`, of N or 1 samples.
    """
    before = [each.expand(x.shape[0], -1, -1, -1) for each in past]
    return (torch.cat([*before, x[:, None, :, :1]], 2),)


class Reader(nn.Sequential):
    """Embedding, blocks and head of an encoder of texts, one after the other; all pass over the padding."""

    padding = 0

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (N, T) to logits (N, classes)."""
        embed, *blocks, head = self
        seen, x = tokens != self.padding, embed(tokens)
        hidden = torch.where(seen, 0.0, UNSEEN).to(x.dtype)[:, None, None, :]
        for block in blocks:
            x = block(x, hidden)
        out: Tensor = head(x, seen)
        return out


def _blocks(scale: Scale, *, causal: bool) -> dict[str, nn.Module]:
    width, heads, expansion = (int(scale[name]) for name in ("width", "heads", "expansion"))
    return {
        f"block{number + 1}": Block(width, heads=heads, expansion=expansion, causal=causal)
        for number in range(int(scale["depth"]))
    }


def _gpt(scale: Scale, shape: Shape) -> nn.Sequential:
    if shape.vocabulary != shape.outputs:
        remedy = "The next token is one of the same vocabulary."
        raise must_be("outputs", f"the vocabulary of {shape.vocabulary} for gpt", shape.outputs, remedy)
    length = shape.sample[0]
    context = max(1, round(length * scale["context"]))
    embed = Embed(shape.outputs, int(scale["width"]), length=length, context=context)
    net = named(embed=embed, **_blocks(scale, causal=True), head=Next(embed, length=length))
    return net if embed.parts > 1 else Decoder(OrderedDict(net.named_children()))


def _encoder(scale: Scale, shape: Shape) -> nn.Sequential:
    layers: dict[str, nn.Module] = {}
    width, patch = int(scale["width"]), int(scale["kernel"])
    if shape.vocabulary is not None:
        length = shape.sample[0]
        layers["embed"] = Embed(shape.vocabulary, width, length=length, context=length)
    else:
        layers, (height, across) = front(shape, scale, multiple=patch)
        layers["embed"] = Patches(shape.sample[0], width, height=height, across=across, patch=patch)
    net = named(**layers, **_blocks(scale, causal=False), head=Classify(width, shape.outputs))
    if shape.vocabulary is None:
        return net
    reader = Reader(OrderedDict(net.named_children()))
    reader.padding = shape.padding
    return reader


def _weights(scale: Scale) -> float:
    return (4 + 2 * scale["expansion"]) * scale["depth"] * scale["width"] ** 2


def initialize(model: nn.Module, generator: torch.Generator) -> None:
    """As `fan_in`, gain 1; embeddings with variance 1 / width; what is added to the residual stream is scaled for depth.

    References:
        Radford et al. 2019, section 2.3: 1 / sqrt(N) for N residual layers, here two for each block.
    """
    fan_in(model, generator, gain=1.0)
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    for block in blocks:
        for layer in (block.merge, block.narrow):
            layer.weight.mul_((2 * len(blocks)) ** -0.5)
    for module in model.modules():
        if isinstance(module, Embed):
            module.token.weight.normal_(0.0, module.token.embedding_dim**-0.5, generator=generator)
        if isinstance(module, Next):  # else each token would begin by predicting itself, with a logit of sqrt(width)
            module.norm.weight.fill_(module.logits.in_features**-0.5)
        if isinstance(module, (Embed, Patches)):
            module.position.normal_(0.0, module.position.shape[1] ** -0.5, generator=generator)


_SHAPE = (
    Dimension("depth", 4, (1, 2, 3, 4, 6, 8, 12)),
    Dimension("heads", 4, (1, 2, 4, 8)),
    Dimension("expansion", 4, (1, 2, 3, 4)),
)

GROWTH = {"width": 1.0, "depth": 0.5}
"""Depth grows as the root of the width. Where both grow alike, small sizes have one block, which cannot look up what followed
an earlier token like it (Olsson et al. 2022, "In-context learning and induction heads"): no law holds across that step."""

GPT = Family(
    "gpt",
    (
        Dimension("width", 128, (32, 48, 64, 96, 128, 192, 256, 384), multiple=16),
        *_SHAPE,
        Dimension("context", 1.0, (0.25, 0.5, 1.0), multiple=None, most=1.0),
    ),
    build=_gpt,
    kinds=("tokens",),
    cost=_weights,
    growth=GROWTH,
    dense=True,
    initialize=initialize,
)
"""Decoder (Radford et al. 2019): int64 tokens (N, T) to logits (N, V, T). `context` is the share of a window that a token may
see; `grow` counts the weights of the blocks, 12 depth width² at expansion 4."""

ENCODER = Family(
    "encoder",
    (
        Dimension("width", 64, (32, 48, 64, 96, 128, 192, 256), multiple=16),
        *_SHAPE,
        Dimension("kernel", 4, (2, 4, 8, 16)),
        RESOLUTION,
    ),
    build=_encoder,
    kinds=("tokens", "images"),
    cost=_weights,
    growth=GROWTH,
    initialize=initialize,
)
"""Encoder with a mean at the end: tokens (N, T), or images in patches of `kernel` pixels a side (Dosovitskiy et al. 2020; the
sides are resized to multiples of it). Width 192, depth 12, 3 heads and patches of 16 are ViT-Ti, without its class token."""
