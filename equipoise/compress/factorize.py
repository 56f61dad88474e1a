"""Low rank: two thin layers for one thick one, chosen by what the layer really reads.

The plain SVD spends its rank on directions that the data never takes. Scaling the weight by a root of the input's second
moment first makes the truncation least in *output* error (Eckart & Young applied to W L, H = L Lᵀ).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from equipoise.batch import Inputs
from equipoise.compress.statistics import as_weight, collect
from equipoise.errors import must_be


class Factorized(nn.Sequential):
    """Two thin layers in the place of one; what code reads off the one (weight, bias, widths, kernel) is still there."""

    def __init__(self, first: nn.Module, last: nn.Module, of: nn.Module) -> None:
        super().__init__(first, last)
        for name in ("in_features", "out_features", "in_channels", "out_channels", "kernel_size", "stride", "padding"):
            if hasattr(of, name):
                setattr(self, name, getattr(of, name))

    @property
    def weight(self) -> Tensor:
        """The weight of the single layer that computes the same."""
        first, last = cast(Tensor, self[0].weight), cast(Tensor, self[1].weight)
        return last @ first if first.dim() == 2 else torch.einsum("orw,rch->ochw", last[:, :, 0], first[..., 0])

    @property
    def bias(self) -> Tensor | None:
        """The bias of the second layer, which is that of the whole."""
        return cast("Tensor | None", self[1].bias)


def factorize(model: nn.Module, example: Inputs, *, ranks: Mapping[str, int], data: Inputs | None = None) -> nn.Module:
    """Return a copy of `model` in which each named layer is the product of two of the given rank.

    A linear layer or 1×1 convolution becomes `O × r` after `r × C`. A k×k convolution becomes its vertical half (k×1, to r
    channels) and its horizontal half (1×k), which costs r·k·(C + O) multiplications at a place in place of k²·C·O.

    Args:
        model: any module; it is not changed.
        example: a small batch `(N, ...)`, used to weigh the input directions when `data` is None.
        ranks: the rank by layer name, from 1 to the full rank.
        data: unlabelled inputs `(N, ...)` for weighing; a few hundred.

    Raises:
        InputError: a name is not a dense linear or 2-D convolution layer, or a rank is out of range.
    """
    smaller = copy.deepcopy(model).eval()
    layers: dict[str, Any] = dict(smaller.named_modules())
    for name, rank in ranks.items():
        full = full_rank(layers.get(name))
        if not full:
            raise must_be(
                "ranks",
                "named by linear layers and ungrouped 2-D convolutions without dilation",
                name,
                "See the model's named_modules().",
            )
        if not 1 <= rank <= full:
            raise must_be(f"ranks[{name!r}]", f"in [1, {full}]", rank, "It is the number of channels between the two halves.")
    moments = collect(smaller, example if data is None else data, moments_of=frozenset(ranks), targets=False).moments
    for name, rank in ranks.items():
        if name not in moments:
            raise must_be("ranks", "named by layers that run", name, "The layer was not called on the given inputs.")
        parent, _, leaf = name.rpartition(".")
        setattr(smaller.get_submodule(parent), leaf, halves(layers[name], rank, moments[name].gram))
    return smaller


def full_rank(layer: Any) -> int:
    """Return the rank at which factorizing `layer` loses nothing; 0 when the layer cannot be factorized."""
    if isinstance(layer, nn.Linear):
        return min(layer.in_features, layer.out_features)
    if not isinstance(layer, nn.Conv2d) or layer.groups != 1 or layer.dilation != (1, 1) or isinstance(layer.padding, str):
        return 0
    high, wide = layer.kernel_size
    return min(layer.in_channels * high, layer.out_channels * wide)


@torch.no_grad()
def halves(layer: Any, rank: int, second_moment: Tensor) -> Factorized:
    """Return two thin layers in place of one that `full_rank` knows, nearest to it on inputs of this second moment `(d, d)`.

    Every factorization below is a product left·right of a matrix whose columns are inputs.
    """
    dtype, weight = layer.weight.dtype, layer.weight.detach().double()
    if isinstance(layer, nn.Linear):
        left, right = _truncated(weight, second_moment, rank)
        first: Any = nn.Linear(layer.in_features, rank, bias=False, dtype=dtype)
        last: Any = nn.Linear(rank, layer.out_features, bias=layer.bias is not None, dtype=dtype)
        first.weight.copy_(right)
        last.weight.copy_(left)
    else:
        (high, wide), outputs, inputs = layer.kernel_size, layer.out_channels, layer.in_channels
        # rows (o, column of the kernel), columns (row of the kernel, c): the vertical half reads exactly such columns
        matrix = weight.permute(0, 3, 2, 1).reshape(outputs * wide, high * inputs)
        by_tap = second_moment.view(high, wide, inputs, high, wide, inputs)
        column = torch.stack([by_tap[:, tap, :, :, tap] for tap in range(wide)]).mean(0)  # second moment of one kernel column
        left, right = _truncated(matrix, column.reshape(high * inputs, high * inputs), rank)
        (down, across), (above, beside) = layer.stride, layer.padding
        mode = {"padding_mode": layer.padding_mode, "dtype": dtype}
        first = nn.Conv2d(inputs, rank, (high, 1), (down, 1), (above, 0), bias=False, **mode)
        last = nn.Conv2d(rank, outputs, (1, wide), (1, across), (0, beside), bias=layer.bias is not None, **mode)
        first.weight.copy_(as_weight(right, first.weight))
        last.weight.copy_(left.view(outputs, wide, rank).permute(0, 2, 1).unsqueeze(2))
    if layer.bias is not None:
        last.bias.copy_(layer.bias)
    return Factorized(first, last, layer)


def _truncated(matrix: Tensor, second_moment: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return left `(O, r)` and right `(r, d)` whose product is nearest `matrix` on inputs of that second moment."""
    damped = second_moment + 1e-6 * second_moment.diagonal().mean().clamp_min(1e-12) * torch.eye(len(second_moment)).double()
    root = torch.linalg.cholesky(damped)
    left, values, right = torch.linalg.svd(matrix @ root, full_matrices=False)
    balance = values[:rank].sqrt()
    back = torch.linalg.solve_triangular(root, right[:rank], upper=False, left=False)  # right · root⁻¹
    return left[:, :rank] * balance, balance[:, None] * back
