"""Weight sharing: a layer's weights take few values, so that a file can hold a small index in place of each."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.batch import Inputs
from equipoise.compress.rounding import made_good
from equipoise.compress.statistics import Moments, as_matrix, as_weight, collect
from equipoise.compress.trace import WEIGHTED
from equipoise.errors import listed

BYTE = 256
"""Values that a byte tells apart."""
SMALL = 0.01
"""Share of all weights below which a layer takes a byte for each of its own: of the file that is little, of the loss most.

EfficientNet-Lite0, 16 values for each layer: accuracy .24 of .88; where the small layers (4 % of the weights) take 256: .85.
"""
ROUNDS = 60
"""Rounds of Lloyd's; they end when no weight changes its value."""


@dataclass(frozen=True)
class Codebook:
    """The values `(k,)` of a layer's weights, and which of them each weight `(O, d)` has."""

    values: Tensor
    codes: Tensor

    @property
    def weight(self) -> Tensor:
        """Return the weights `(O, d)`."""
        return self.values[self.codes]


def clustered(weight: Tensor, importance: Tensor, clusters: int) -> Codebook:
    """Return the codebook of at most `clusters` values that is near `weight` in the weighted mean square.

    Lloyd's algorithm on the line, where the cells are between midpoints, from evenly spaced values and from quantiles; the
    better of the two. Zeros, where there are any, keep a value of their own: a mask survives.

    Args:
        weight: `(O, d)`, double.
        importance: of the same shape, positive: what an error there costs.

    References:
        Lloyd 1982, "Least squares quantization in PCM"; Han et al. 2016, "Deep compression", section 3 (evenly spaced starts).
    """
    zeros = weight == 0
    masked = bool(zeros.any()) and clusters > 1 and not bool(zeros.all())
    values, order = weight[~zeros].sort() if masked else weight.flatten().sort()
    cost = importance.expand_as(weight)
    cost = (cost[~zeros] if masked else cost.flatten())[order].clamp_min(float(cost.max()) * 1e-9)
    count = min(clusters - masked, len(values))
    quantiles = values[((torch.arange(count) + 0.5) / count * len(values)).long()]
    starts = (torch.linspace(float(values[0]), float(values[-1]), count).double(), quantiles)
    found = min((_lloyd(values, cost, start) for start in starts), key=lambda made: _error(values, cost, made))
    if masked:
        found = torch.unique(torch.cat([found, torch.zeros(1).double()]))
    codes = _nearest(weight, found)
    if masked:
        codes[zeros] = int((found == 0).nonzero())
    return Codebook(found, codes)


def _lloyd(values: Tensor, cost: Tensor, start: Tensor) -> Tensor:
    """Return the values to which the rounds lead from `start`; `values` are sorted, so a cell is a stretch of them."""
    mass, moment = ((torch.cat([torch.zeros(1).double(), part.cumsum(0)])) for part in (cost, cost * values))
    centres: Tensor = torch.unique(start)
    for _ in range(ROUNDS):
        ends = torch.searchsorted(values, (centres[1:] + centres[:-1]) / 2)
        ends = torch.cat([torch.zeros(1, dtype=torch.long), ends, torch.tensor([len(values)])])
        weight, sums = mass[ends].diff(), moment[ends].diff()
        moved = torch.where(weight > 0, sums / weight.clamp_min(1e-300), centres)
        if torch.equal(moved, centres):
            break
        centres = torch.unique(moved)
    return centres


def _error(values: Tensor, cost: Tensor, centres: Tensor) -> float:
    return float((cost * (values - centres[_nearest(values, centres)]).square()).sum())


def _nearest(values: Tensor, centres: Tensor) -> Tensor:
    return torch.bucketize(values, (centres[1:] + centres[:-1]) / 2)


def codebooks(
    model: nn.Module, *, clusters: int, data: Inputs | None = None, layers: Collection[str] | None = None
) -> tuple[dict[str, Codebook], dict[str, Tensor]]:
    """Return a codebook for each linear and convolution layer, and by how much its bias must move, where that is known.

    With `data` a weight counts as much as the square of what it reads, values are given out column by column, each error made
    good by the columns that are left (`rounding.made_good`), and what sharing adds to the mean of an output is taken off its
    bias; without, all count alike. Of grouped layers, whose inputs are not collected, all count alike as well. A layer of less
    than `SMALL` of the weights takes up to 256 values.

    Raises:
        InputError: an unknown layer.
    """
    found: dict[str, Any] = {name: part for name, part in model.named_modules() if isinstance(part, WEIGHTED)}
    wanted = found if layers is None else listed("layers", layers, found)
    chosen = {name: part for name, part in found.items() if name in wanted}
    moments: Mapping[str, Moments] = {}
    if data is not None:
        moments = collect(model, data, moments_of=frozenset(chosen), targets=False).moments
    least = SMALL * sum(part.weight.numel() for part in found.values())
    books, shifts = {}, {}
    for name, layer in chosen.items():
        matrix, read = as_matrix(layer.weight.detach()).double(), moments.get(name)
        weighed = read is not None and read.finite
        importance = read.power if read is not None and weighed else torch.ones(1).double()
        books[name] = clustered(matrix, importance, BYTE if matrix.numel() < least else clusters)
        if read is not None and weighed:
            books[name] = _ordered(matrix, books[name], read.gram if layer.bias is None else read.covariance)
            shifts[name] = (matrix - books[name].weight) @ read.mean
    return books, shifts


def _ordered(weight: Tensor, book: Codebook, second: Tensor) -> Codebook:
    """The same values given out in GPTQ's order; zeros stay zeros."""
    zeros = weight == 0
    found = made_good(
        weight,
        book.weight,
        second,
        lambda values, column: torch.where(zeros[:, column], 0.0, book.values[_nearest(values.contiguous(), book.values)]),
    )
    return replace(book, codes=_nearest(found, book.values))


@torch.no_grad()
def settle(model: nn.Module, books: Mapping[str, Codebook], shifts: Mapping[str, Tensor]) -> None:
    """Give the layers of `model`, in place, the weights of their codebooks."""
    for name, book in books.items():
        layer: Any = model.get_submodule(name)
        layer.weight.copy_(as_weight(book.weight.to(layer.weight.dtype), layer.weight))
        if layer.bias is not None and name in shifts:
            layer.bias.add_(shifts[name].to(layer.bias.dtype))
