"""Low rank: two or three thin layers for one thick one, chosen by what the layer really reads.

The plain SVD spends its rank on directions that the data never takes. Scaling the weight by a root of the input's second
moment first makes the truncation least in *output* error (Eckart & Young applied to W L, H = L Lᵀ).

A k×k convolution has two forms: two halves (its rows, then its columns), and Tucker-2 (fewer channels, the k×k core, all
channels again), which keeps the kernel whole and so saves more where there are many channels.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from equipoise.batch import Inputs
from equipoise.compress.statistics import as_matrix, as_weight, collect, decomposed
from equipoise.errors import must_be
from equipoise.units import is_whole


class Factorized(nn.Sequential):
    """Thin layers in the place of one; what code reads off the one (weight, bias, widths, kernel) is still there."""

    def __init__(self, *parts: nn.Module, of: nn.Module) -> None:
        super().__init__(*parts)
        for name in ("in_features", "out_features", "in_channels", "out_channels", "kernel_size", "stride", "padding"):
            if hasattr(of, name):
                setattr(self, name, getattr(of, name))

    @property
    def weight(self) -> Tensor:
        """The weight of the single layer that computes the same."""
        first, last = cast(Tensor, self[0].weight), cast(Tensor, self[-1].weight)
        if len(self) == 3:
            core = cast(Tensor, self[1].weight)
            return torch.einsum("os,srhw,rc->ochw", last[..., 0, 0], core, first[..., 0, 0])
        return last @ first if first.dim() == 2 else torch.einsum("orw,rch->ochw", last[:, :, 0], first[..., 0])

    @property
    def bias(self) -> Tensor | None:
        """The bias of the last layer, which is that of the whole."""
        return cast("Tensor | None", self[-1].bias)


Ranks = int | tuple[int, int]
"""Channels between two halves, or (in, out) of a Tucker-2 core."""


def factorize(model: nn.Module, example: Inputs, *, ranks: Mapping[str, Ranks], data: Inputs | None = None) -> nn.Module:
    """Return a copy of `model` in which each named layer is the product of two thin ones, or of three.

    A linear layer or 1×1 convolution becomes `O × r` after `r × C`. A k×k convolution becomes its vertical half (k×1, to r
    channels) and its horizontal half (1×k), which costs r·k·(C + O) multiplications at a place in place of k²·C·O; with two
    ranks it becomes 1×1 to r1, k×k to r2, 1×1 to O channels: r1·C + k²·r1·r2 + r2·O.

    Args:
        model: any module; it is not changed.
        example: a small batch `(N, ...)`, used to weigh the input directions when `data` is None.
        ranks: by layer name, the rank, from 1 to the full rank, or two, each from 1 to the channels on its side.
        data: unlabelled inputs `(N, ...)` for weighing; a few hundred.

    Raises:
        InputError: a name is not a dense linear or 2-D convolution layer, or a rank is out of range.
    """
    smaller = copy.deepcopy(model).eval()
    layers: dict[str, Any] = dict(smaller.named_modules())
    for name, rank in ranks.items():
        checked(name, layers.get(name), rank)
    moments = collect(smaller, example if data is None else data, moments_of=frozenset(ranks), targets=False).moments
    for name, rank in ranks.items():
        parts = rank if isinstance(rank, tuple) else (rank,)
        smaller.set_submodule(name, thin(layers[name], parts, moments[name].gram if name in moments else None))
    return smaller


def checked(name: str, layer: Any, rank: Ranks) -> None:
    """Refuse a rank that `layer` does not have.

    Raises:
        InputError: with the name and what it could be.
    """
    full = full_rank(layer)
    if not full:
        valid = "named by linear layers and ungrouped 2-D convolutions without dilation"
        raise must_be("ranks", valid, name, "See the model's named_modules().")
    if not is_whole(rank) and not (isinstance(rank, tuple) and len(rank) == 2 and all(map(is_whole, rank))):
        raise must_be(f"ranks[{name!r}]", "a whole number, or two for a Tucker core", rank, "They count channels.")
    if not isinstance(rank, tuple):
        if not 1 <= rank <= full:
            raise must_be(f"ranks[{name!r}]", f"in [1, {full}]", rank, "It is the number of channels between the two halves.")
    elif not tuckers(layer):
        raise must_be(f"ranks[{name!r}]", "one number where there is no k×k kernel", rank, "Give a rank for its two halves.")
    elif not (1 <= rank[0] <= layer.in_channels and 1 <= rank[1] <= layer.out_channels):
        most = (layer.in_channels, layer.out_channels)
        raise must_be(f"ranks[{name!r}]", f"in [1, {most[0]}] and [1, {most[1]}]", rank, "They are the channels of the core.")


def full_rank(layer: Any) -> int:
    """Return the rank at which factorizing `layer` loses nothing; 0 when the layer cannot be factorized.

    A subclass with a forward of its own (TensorFlow's padding in timm) may do more than its weight says, and cannot.
    """
    kind = type(layer)
    if isinstance(layer, nn.Linear):
        return min(layer.in_features, layer.out_features) if kind.forward is nn.Linear.forward else 0
    if isinstance(layer, nn.Conv2d) and (kind.forward, kind._conv_forward) != (nn.Conv2d.forward, nn.Conv2d._conv_forward):
        return 0
    if not isinstance(layer, nn.Conv2d) or layer.groups != 1 or layer.dilation != (1, 1) or isinstance(layer.padding, str):
        return 0
    high, wide = layer.kernel_size
    return min(layer.in_channels * high, layer.out_channels * wide)


@torch.no_grad()
def halves(layer: Any, rank: int, second_moment: Tensor | None) -> Factorized:
    """Return two thin layers in place of one that `full_rank` knows, nearest to it on inputs of this second moment `(d, d)`.

    Where the second moment is not known, of a layer that reads too many columns for it, a plain SVD does it.

    Every factorization below is a product left·right of a matrix whose columns are inputs.
    """
    dtype = layer.weight.dtype
    if isinstance(layer, nn.Linear):
        left, right = _truncated(layer.weight.detach().double(), second_moment, rank)
        first: Any = nn.Linear(layer.in_features, rank, bias=False, dtype=dtype)
        last: Any = nn.Linear(rank, layer.out_features, bias=layer.bias is not None, dtype=dtype)
        first.weight.copy_(right)
        last.weight.copy_(left)
    else:
        (high, wide), outputs, inputs = layer.kernel_size, layer.out_channels, layer.in_channels
        left, right = _truncated(*_by_columns(layer, second_moment), rank)
        (down, across), (above, beside) = layer.stride, layer.padding
        mode = {"padding_mode": layer.padding_mode, "dtype": dtype}
        first = nn.Conv2d(inputs, rank, (high, 1), (down, 1), (above, 0), bias=False, **mode)
        last = nn.Conv2d(rank, outputs, (1, wide), (1, across), (0, beside), bias=layer.bias is not None, **mode)
        first.weight.copy_(as_weight(right, first.weight))
        last.weight.copy_(left.view(outputs, wide, rank).permute(0, 2, 1).unsqueeze(2))
    if layer.bias is not None:
        last.bias.copy_(layer.bias)
    return Factorized(first, last, of=layer)


def thin(layer: Any, ranks: tuple[int, ...], second_moment: Tensor | None) -> Factorized:
    """Return the form that the ranks name: two halves of one, Tucker-2 of two."""
    with torch.random.fork_rng(devices=[]):  # module constructors draw from the global generator; leave it as it was
        if len(ranks) == 1:
            return halves(layer, ranks[0], second_moment)
        return tucker(layer, (ranks[0], ranks[1]), second_moment)


def weights(ranks: tuple[int, ...], cin: int, cout: int, kernel: tuple[int, int]) -> int:
    """Return how many weights, biases aside, the form of these ranks holds."""
    if len(ranks) == 1:
        return ranks[0] * (cin * kernel[0] + cout * kernel[1])
    return cin * ranks[0] + kernel[0] * kernel[1] * ranks[0] * ranks[1] + cout * ranks[1]


def shares(share: float, cin: int, cout: int, kernel: tuple[int, int]) -> float:
    """Return the share of both widths at which a Tucker-2 form holds `share` of the weights of the layer."""
    whole, ends = kernel[0] * kernel[1] * cin * cout, cin**2 + cout**2
    return (math.sqrt(ends**2 + 4 * share * whole**2) - ends) / (2 * whole)


def tuckers(layer: Any) -> bool:
    """Return whether `layer` has a Tucker-2 form: an ungrouped 2-D convolution with a kernel of more than one place."""
    return isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.kernel_size != (1, 1) and not layer.transposed


@torch.no_grad()
def tucker(layer: Any, ranks: tuple[int, int], second_moment: Tensor | None) -> Factorized:
    """Return three thin convolutions in place of one: 1×1 to ranks[0] channels, k×k to ranks[1], 1×1 to all outputs.

    The outputs are projected on their main directions, those of W H Wᵀ. The inputs are projected by an SVD of the weight times
    the root of the channels' own second moment; the core is then the one of least output error between the two.

    References:
        Kim et al. 2016, "Compression of deep convolutional neural networks" (Tucker-2), section 3.1; the weighing is ours.
    """
    (high, wide), inputs, outputs, dtype = layer.kernel_size, layer.in_channels, layer.out_channels, layer.weight.dtype
    whole = _root(second_moment)
    damped = None if whole is None else whole @ whole.T
    matrix = as_matrix(layer.weight.detach()).double()  # (O, k k C), channels fastest
    weighed = _weighed(matrix, whole)
    outer = torch.linalg.eigh(weighed @ weighed.T).eigenvectors[:, -ranks[1] :]  # (O, r2)
    root = None if damped is None else _root(_of_channels(damped, inputs))
    projected = _weighed((outer.T @ matrix).view(-1, inputs), root)  # (r2 k k, C)
    main = torch.linalg.svd(projected, full_matrices=False).Vh[: ranks[0]]  # (r1, C)
    inner = _unweighed(main, root)  # (r1, C): white, then projected
    spread = torch.kron(torch.eye(high * wide).double(), inner.contiguous())  # (k k r1, k k C)
    seen = _weighed(spread, damped)
    core = torch.linalg.solve(seen @ spread.T, seen @ matrix.T @ outer).T  # (r2, k k r1)
    mode = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation, "padding_mode": layer.padding_mode}
    first = nn.Conv2d(inputs, ranks[0], 1, bias=False, dtype=dtype)
    middle = nn.Conv2d(*ranks, (high, wide), bias=False, dtype=dtype, **mode)
    last = nn.Conv2d(ranks[1], outputs, 1, bias=layer.bias is not None, dtype=dtype)
    first.weight.copy_(inner[..., None, None])
    middle.weight.copy_(as_weight(core, middle.weight))
    last.weight.copy_(outer[..., None, None])
    if last.bias is not None:
        last.bias.copy_(layer.bias)
    return Factorized(first, middle, last, of=layer)


@torch.no_grad()
def spectra(layer: Any, second_moment: Tensor | None, *, tucker: bool, lost: float) -> list[tuple[Tensor, float]]:
    """Return, for each rank of a form, the powers of its directions, largest first, and the share of them that may be lost.

    What a Tucker core loses is at most what each of its sides would lose alone; each may lose half.
    """
    matrix = layer.weight.detach().double()
    if isinstance(layer, nn.Linear):
        return [(_powers(matrix, second_moment), lost)]
    if not tucker:
        return [(_powers(*_by_columns(layer, second_moment)), lost)]
    matrix, root = as_matrix(matrix), _root(second_moment)
    weighed = _weighed(matrix, root)
    outer = torch.linalg.eigvalsh(weighed @ weighed.T).flip(0).clamp_min(0.0)
    channels = None if root is None else _of_channels(root @ root.T, layer.in_channels)
    inner = _powers(matrix.view(-1, layer.in_channels), channels)
    return [(inner, lost / 2), (outer, lost / 2)]


def _powers(matrix: Tensor, second_moment: Tensor | None) -> Tensor:
    values: Tensor = torch.linalg.svdvals(_weighed(matrix, _root(second_moment)))
    return values.square()


def _of_channels(second_moment: Tensor, channels: int) -> Tensor:
    """Second moment of the channels at one place, the mean over the places of the kernel."""
    taps = len(second_moment) // channels
    by_tap = second_moment.view(taps, channels, taps, channels)
    return torch.stack([by_tap[tap, :, tap] for tap in range(taps)]).mean(0)


def _by_columns(layer: Any, second_moment: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The weight with rows (o, column of the kernel), columns (row of the kernel, c), which is what a vertical half reads."""
    (high, wide), inputs = layer.kernel_size, layer.in_channels
    matrix = layer.weight.detach().double().permute(0, 3, 2, 1).reshape(layer.out_channels * wide, high * inputs)
    if second_moment is None:
        return matrix, None
    by_tap = second_moment.view(high, wide, inputs, high, wide, inputs)
    column = torch.stack([by_tap[:, tap, :, :, tap] for tap in range(wide)]).mean(0)  # second moment of one kernel column
    return matrix, column.reshape(high * inputs, high * inputs)


def _root(second_moment: Tensor | None) -> Tensor | None:
    """Return a lower triangular L with L Lᵀ near the second moment, damped until there is one; None of no finite one.

    Few inputs leave many directions empty, and rounding puts less than nothing there.
    """
    found = None if second_moment is None else decomposed(second_moment, 1e-6)
    return None if found is None else found[1].expand(len(found[0]))[:, None] * found[0]


def _weighed(matrix: Tensor, root: Tensor | None) -> Tensor:
    """Return the matrix times the root of what it reads; as it is where that is not known."""
    return matrix if root is None else matrix @ root


def _unweighed(rows: Tensor, root: Tensor | None) -> Tensor:
    """Return the rows times the inverse of the root."""
    return rows if root is None else torch.linalg.solve_triangular(root, rows, upper=False, left=False)


def _truncated(matrix: Tensor, second_moment: Tensor | None, rank: int) -> tuple[Tensor, Tensor]:
    """Return left `(O, r)` and right `(r, d)` whose product is nearest `matrix` on inputs of that second moment."""
    root = _root(second_moment)
    left, values, right = torch.linalg.svd(_weighed(matrix, root), full_matrices=False)
    balance = values[:rank].sqrt()
    return left[:, :rank] * balance, balance[:, None] * _unweighed(right[:rank], root)
