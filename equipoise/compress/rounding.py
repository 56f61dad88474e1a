"""Weights on the grid of their scheme, each rounding made good by the weights that are still to be rounded.

A runtime stores what lies on a grid without loss, so the model that is scored in torch, the weights that ship in floats and the
file all compute with the same numbers.

References:
    Frantar et al. 2023, "GPTQ", algorithm 1: columns in a fixed order, the inverse of the second moment by Cholesky.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.batch import Inputs
from equipoise.compress.statistics import Moments, as_matrix, as_weight, collect
from equipoise.compress.trace import HOLDING, copied, together
from equipoise.errors import must_be
from equipoise.records import Choice
from equipoise.schemes import SCHEMES, group, scheme, shared, top

MOST_COLUMNS = 2048
"""Layers that read more columns are rounded to the nearest: what is made good costs the cube of them."""
SHRUNK = {4: tuple(1.0 - 0.025 * step for step in range(17)), 8: (1.0, 0.9, 0.8)}
"""Bits -> shares of the largest weight that a scale is tried for: a few clipped weights buy a finer step for the rest."""
_ROWS = 4096
DAMPING = 0.01
"""Of the mean variance, added to each: columns that hardly vary say nothing about the others."""
HALVES: Mapping[Choice, torch.dtype] = {
    **dict.fromkeys(("float16", "fp16"), torch.float16),
    **dict.fromkeys(("bfloat16", "bf16"), torch.bfloat16),
}
_BLOCK = 128


def on_grid(
    model: nn.Module,
    schemes: Mapping[str, Choice],
    *,
    exact: bool,
    calibration: Inputs | None = None,
    moments: Mapping[str, Moments] | None = None,
) -> nn.Module:
    """Return `model` with the weights of the named layers rounded to the grids of their schemes; others stay.

    Weights that several of them share are rounded once (`schemes.shared`), and to the nearest where a table reads them, whose
    rows are all that it gives: made good for what the product reads, a GPT of 1 M params lost .009 bits a character, so .006.

    Args:
        model: In evaluation mode; not changed.
        schemes: Layer -> how it is held, by name of `SCHEMES`; those that hold no grid of their own are left aside.
        exact: Whether the CPU adds 8-bit products without overflow, see `schemes.top`.
        calibration: Unlabelled inputs (N, ...) that the second moments are taken from. None, and no `moments`: every weight is
            rounded to the nearest.
        moments: What the layers read, where it is known.
    Raises:
        InputError: A layer that is not there, or that has no weights to round.
    """
    wanted = {name: choice for name, choice in schemes.items() if scheme(choice).encoded}
    if not wanted:
        return model
    layers = dict(model.named_modules())
    for name in wanted:
        if not isinstance(layers.get(name), HOLDING):
            raise must_be("layers to round", "convolutions, linear layers and embeddings", name, "See equipoise profile.")
    if moments is None:
        read = frozenset(name for name in wanted if not isinstance(layers[name], nn.Embedding))
        moments = {} if calibration is None else collect(model, calibration, moments_of=read, targets=False).moments
    rounded, tables = copied(model).eval(), [part.weight for part in layers.values() if isinstance(part, nn.Embedding)]
    for names in together(rounded, wanted):
        products = [name for name in names if not isinstance(layers[name], nn.Embedding)]
        name = next((name for name in products if name in moments), (*products, *names)[0])
        known = None if any(layers[name].weight is table for table in tables) else moments.get(name)
        round_layer(rounded.get_submodule(name), shared(map(wanted.__getitem__, names)), known, exact=exact)
    return rounded


@torch.no_grad()
def round_layer(layer: Any, choice: Choice, moments: Moments | None, *, exact: bool) -> None:
    """Put the weights of `layer` (in place) on the grid of a scheme, and let its bias take the mean of what is lost."""
    weight = as_matrix(layer.weight).double() if layer.weight.ndim > 2 else layer.weight.double()  # (O, d)
    known = moments is not None and moments.finite and len(moments.mean) == weight.shape[1] <= MOST_COLUMNS
    bias = getattr(layer, "bias", None)
    second = None
    if known and moments is not None:  # a bias takes the mean of what is lost, so that spread alone counts
        second = moments.gram if bias is None else moments.covariance
    found = rounded_matrix(weight, choice, kind_of(layer), second, exact=exact)
    if known and moments is not None and bias is not None:
        bias += ((weight - found) @ moments.mean).to(bias.dtype)
    shaped = as_weight(found, layer.weight) if layer.weight.ndim > 2 else found
    layer.weight.copy_(shaped.to(layer.weight.dtype))


def kind_of(layer: nn.Module) -> str:
    """Return the kind of operator that a layer is to `schemes.group`."""
    return "embedding" if isinstance(layer, nn.Embedding) else "linear" if isinstance(layer, nn.Linear) else "conv"


def rounded_matrix(weight: Tensor, choice: Choice, kind: str, second: Tensor | None, *, exact: bool) -> Tensor:
    """Return the weights (O, d) on the grid of a scheme.

    Args:
        weight: In double precision.
        second: Second moment (d, d) of what the columns are multiplied with; None rounds each weight to the nearest.
    Raises:
        InputError: A scheme without a grid.
    """
    if choice not in SCHEMES or not scheme(choice).encoded:
        raise must_be("scheme", f"one of {[c for c, s in SCHEMES.items() if s.encoded]}", choice, "Others round nothing here.")
    if choice in HALVES:
        return weight.to(HALVES[choice]).double()
    most, size = top(choice, exact=exact), group(choice, kind, weight.shape[1])
    share = torch.ones(weight.shape[1], dtype=torch.float64) if second is None else second.diagonal().clamp_min(0.0)
    steps = scales(weight, share, most, size).repeat_interleave(size, 1)  # (O, d)
    nearest = (weight / steps).round().clamp(-most, most) * steps
    if second is None:
        return nearest
    return made_good(
        weight,
        nearest,
        second,
        lambda values, column: (values / steps[:, column]).round().clamp(-most, most) * steps[:, column],
    )


def made_good(weight: Tensor, nearest: Tensor, second: Tensor, rounded: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Return weights (O, d) rounded column by column, each error made good by the columns that are left.

    Args:
        weight, nearest: As they are, and rounded each alone: rows that the order does not make better stay so. Both in double.
        second: Second moment (d, d) of what the columns are multiplied with.
        rounded: Rounds the values (O,) that a column, of that number, has come to.
    """
    upper = _inverse_factor(second) if len(second) <= MOST_COLUMNS else None
    if upper is None:
        return nearest
    found = _compensated(weight, rounded, upper, second.diagonal().argsort(descending=True))
    return torch.where((_error(found - weight, second) < _error(nearest - weight, second))[:, None], found, nearest)


def scales(weight: Tensor, share: Tensor, most: int, size: int) -> Tensor:
    """Return the step of each group (O, d / size): of those tried, that of the least squared error, weighed by `share` (d,)."""
    return torch.cat([_scales(rows, share, most, size) for rows in torch.split(weight, _ROWS)])


def _scales(weight: Tensor, share: Tensor, most: int, size: int) -> Tensor:
    groups, weighed = weight.reshape(len(weight), -1, size).float(), share.reshape(-1, size).float()
    largest = groups.abs().amax(2)
    best, least = torch.full_like(largest, torch.finfo(torch.float32).tiny), torch.full_like(largest, torch.inf)
    for part in SHRUNK[4 if most < 8 else 8]:
        step = (largest * (part / most)).clamp_min(torch.finfo(torch.float32).tiny)  # in floats, as a file holds it
        lost = (groups / step[..., None]).round_().clamp_(-most, most).mul_(step[..., None]).sub_(groups)
        error = lost.square_().mul_(weighed).sum(2)
        best, least = torch.where(error < least, step, best), torch.minimum(error, least)
    return best.double()


def _error(lost: Tensor, second: Tensor) -> Tensor:
    """Mean square (O,) of what each output loses."""
    return ((lost @ second) * lost).sum(1)


def _inverse_factor(second: Tensor) -> Tensor | None:
    """The upper factor U of the inverse UᵀU of the damped second moment, columns by falling variance; None if there is none."""
    order = second.diagonal().argsort(descending=True)
    even = second[order][:, order]
    damped = even + DAMPING * even.diagonal().mean().clamp_min(1e-12) * torch.eye(len(even), dtype=even.dtype)
    lower, failed = torch.linalg.cholesky_ex(damped)
    if int(failed) or not bool(lower.isfinite().all()):
        return None
    upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
    return None if int(failed) or not bool(upper.isfinite().all()) else upper


def _compensated(weight: Tensor, rounded: Callable[[Tensor, int], Tensor], upper: Tensor, order: Tensor) -> Tensor:
    """Round column by column, in `order`, and spread what each loses over those that are left."""
    left, columns = weight[:, order], order.tolist()
    done = torch.empty_like(left)
    for begin in range(0, left.shape[1], _BLOCK):
        block = range(begin, min(begin + _BLOCK, left.shape[1]))
        lost = torch.zeros(len(left), len(block), dtype=left.dtype)
        for place, column in enumerate(block):
            done[:, column] = rounded(left[:, column], columns[column])
            lost[:, place] = (left[:, column] - done[:, column]) / upper[column, column]
            left[:, column : block.stop] -= lost[:, place, None] * upper[column, column : block.stop]
        left[:, block.stop :] -= lost @ upper[block.start : block.stop, block.stop :]
    out = torch.empty_like(done)
    out[:, order] = done
    return out
