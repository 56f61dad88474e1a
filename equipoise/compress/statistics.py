"""One pass over unlabelled data: what each layer reads, and what the untouched model answers.

A linear map (convolution or linear layer) sees its input only through the second moment of its unfolded input, so that is
all that importance scores and least squares need. Output positions are sampled *before* the input is unfolded: unfolding
everything first costs some thirty times as much.
"""

from __future__ import annotations

import contextlib
import math
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from equipoise.batch import Inputs, size, take
from equipoise.compress.trace import WEIGHTED, Invocation, Tape, record, tensors, watch

_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
ATTENTION = "multi_head_attention_forward"
_PROJECTION = 11  # where its output projection's weight stands among the arguments; the bias follows
_CHUNK = 4096
WIDEST = 8192
"""Layers that read more columns than this are left out: their second moments take half a gigabyte, squared with the width."""
_DEAD = 1e-12  # of the largest variance: a column below does not vary


@dataclass(frozen=True)
class Moments:
    """Covariance `(d, d)` and mean E[x] `(d,)` of a layer's unfolded input, in double precision.

    For a convolution with C input channels and kernel k1 × k2, d = k1·k2·C, channels running fastest. The covariance is what
    is left once the bias has taken the mean. It is summed from centred rows: taken as E[x xᵀ] − E[x] E[x]ᵀ it would drown in
    rounding where the mean is large, and could even be negative.
    """

    covariance: Tensor
    mean: Tensor

    @property
    def gram(self) -> Tensor:
        """Return the second moment E[x xᵀ] `(d, d)`."""
        return self.covariance + torch.outer(self.mean, self.mean)

    @property
    def power(self) -> Tensor:
        """Return E[x²] `(d,)` of every column."""
        return self.covariance.diagonal() + self.mean.square()

    @property
    def finite(self) -> bool:
        """Return whether there is nothing infinite or undefined in it."""
        return bool(self.covariance.isfinite().all() and self.mean.isfinite().all())


@dataclass(frozen=True)
class Target:
    """Sampled rows `(P, O)` that a layer of the student should reproduce, at output `places` `(P,)` of `total` that there are.

    With `of_sum` they are the sum that the layer's output is added into (a residual block's), otherwise the layer's own
    output.
    """

    rows: Tensor
    places: Tensor
    total: int
    of_sum: bool


@dataclass(frozen=True)
class Statistics:
    """Moments by layer (for scores) and targets by layer (for repair), from the same inputs."""

    moments: Mapping[str, Moments]
    targets: Mapping[str, Target]


def collect(model: nn.Module, inputs: Inputs, *, moments_of: frozenset[str] = frozenset(), targets: bool = True) -> Statistics:
    """Run `model` once on unlabelled `inputs` and return its statistics.

    Args:
        model: in eval mode, BatchNorm folded; it is not changed.
        inputs: `(N, ...)`, drawn at random from the data (a class-sorted sample misleads); 192 to 512 are enough.
        moments_of: the layers whose input moments are wanted; convolutions in groups have none.
        targets: whether to keep what the layers answer, for `repair`; without, nothing runs after the last of `moments_of`.
    """
    tape = record(model, take(inputs, slice(1))) if targets else None
    sums = added_layers(tape) if tape else frozenset()
    fixed = frozenset() if tape is None else shared_layers(tape)
    found: dict[str, Moments] = {}
    wanted: dict[str, Target] = {}
    samples = size(inputs)
    waiting: dict[int, tuple[str, Tensor, Tensor, int]] = {}
    layers = dict(model.named_modules())
    asked = frozenset(name for name in moments_of if getattr(layers.get(name), "groups", 1) == 1)

    def answer(invocation: Invocation) -> Any:
        if not targets and asked <= found.keys():
            raise _EnoughSeen
        if is_attention(invocation):
            return projected(invocation, answer)
        result = invocation.run()
        if is_linear_map(invocation) and is_own(invocation, layers.get(invocation.layer)):
            layer, weight = invocation.layer, weight_of(invocation)
            places = sample(layer, result, invocation.op, math.prod(weight.shape[1:]), parts=groups_of(invocation))
            if layer in asked and layer not in found and groups_of(invocation) == 1:
                found[layer] = _moments(input_rows(invocation, places))
            total = output_places(invocation)
            if not targets or not total or total % samples:  # of some samples only, and in the student perhaps of others
                return result
            if layer in sums:
                waiting[id(result)] = (layer, result, places, total)
            elif layer not in fixed:
                wanted[layer] = Target(output_rows(result, places, invocation.op), places, total, False)
        elif invocation.op == "add":
            for operand in tensors(invocation.args):
                if id(operand) in waiting:
                    layer, kept, places, total = waiting.pop(id(operand))
                    op = "linear" if isinstance(model.get_submodule(layer), nn.Linear) else "conv2d"
                    wanted[layer] = Target(output_rows(result, places, op), places, total, True)
                    del kept
        return result

    with contextlib.suppress(_EnoughSeen):
        if targets or asked:
            watch(model, inputs, answer)
    return Statistics(found, wanted)


class _EnoughSeen(BaseException):
    """All that was wanted of the model has been seen."""


def added_layers(tape: Tape) -> frozenset[str]:
    """Return the layers whose output goes into one addition of equal shape and nowhere else."""
    found = set()
    for call in tape.calls:
        if not call.op.startswith(("conv", "linear")) or tape.call_of(call.layer) is not call:
            continue
        readers = tape.consumers(call.outputs[0])
        if len(readers) == 1 and readers[0].op == "add" and call.outputs[0] not in tape.outputs:
            sums = readers[0].outputs or readers[0].inputs
            if len(readers[0].inputs) == 2 and tape.shapes[sums[0]] == tape.shapes[call.outputs[0]]:
                found.add(call.layer)
    return frozenset(found)


def shared_layers(tape: Tape) -> frozenset[str]:
    """Return the layers whose weight or bias more than one call reads: fitted to one of its uses they would miss the others.

    A layer that runs several times, one tied to another (a head to the embedding), one whose weight code borrows.
    """
    readers = Counter(value for call in tape.calls for value in {*call.inputs} & tape.held.keys())
    multiplying = [(call, call.layer) for call in tape.calls if call.op.startswith(("conv", "linear"))]
    attending = [(call, f"{call.layer}.out_proj") for call in tape.calls if call.op == ATTENTION]
    both = (*multiplying, *attending)
    return frozenset(layer for call, layer in both if any(readers[value] > 1 for value in call.inputs))


def is_linear_map(invocation: Invocation) -> bool:
    """Return whether the call is a linear layer or a 1-D to 3-D convolution of a batch, each group at most `WIDEST` wide."""
    if invocation.op not in ("linear", "conv1d", "conv2d", "conv3d"):
        return False
    given = _arguments(invocation)
    batched = invocation.op == "linear" or given["input"].dim() == given["weight"].dim()
    return bool(batched and math.prod(given["weight"].shape[1:]) <= WIDEST)


def is_attention(invocation: Invocation) -> bool:
    """Return whether the call is all of an `nn.MultiheadAttention` at once, its output projection in it."""
    return invocation.op == ATTENTION and len(invocation.args) > _PROJECTION + 1


def projected(invocation: Invocation, answer: Callable[[Invocation], Any]) -> Any:
    """Return what an attention returns, its output projection answered by `answer` as the linear layer that it is."""
    weight, bias = invocation.args[_PROJECTION : _PROJECTION + 2]
    alone = torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
    given = (*invocation.args[:_PROJECTION], alone, None, *invocation.args[_PROJECTION + 2 :])
    attended, seen = invocation.function(*given, **invocation.kwargs)
    scope = (*invocation.scope, f"{invocation.layer}.out_proj".lstrip("."))
    return answer(Invocation(functional.linear, (attended, weight, bias), {}, scope)), seen


def groups_of(invocation: Invocation) -> int:
    """Return in how many groups the call convolves; 1 for a linear layer."""
    return int(_arguments(invocation).get("groups", 1)) if invocation.op != "linear" else 1


def is_own(invocation: Invocation, layer: Any) -> bool:
    """Return whether the call multiplies by the weight that `layer` itself holds, not by one that code made or borrowed."""
    return isinstance(layer, WEIGHTED) and weight_of(invocation) is layer.weight


def weight_of(invocation: Invocation) -> Tensor:
    """Return the weight that the call was given."""
    weight: Tensor = _arguments(invocation)["weight"]
    return weight


def as_matrix(weight: Tensor) -> Tensor:
    """Return a weight `(O, C, k...)` as the matrix `(O, d)` that multiplies rows of unfolded input."""
    return weight.movedim(1, -1).reshape(weight.shape[0], -1)


def as_weight(matrix: Tensor, like: Tensor) -> Tensor:
    """Return the matrix `(O, d)` in the shape of the weight `like`."""
    shape = (like.shape[0], *like.shape[2:], like.shape[1])
    return matrix.reshape(shape).movedim(-1, 1)


def columns(weight: Tensor, positions: tuple[tuple[int, ...], ...]) -> Tensor:
    """Return `(channels, s)`: the columns of `as_matrix(weight)` that read each channel of a group."""
    spots = torch.tensor(positions)  # (channels, places on the input axis)
    steps = torch.arange(math.prod(weight.shape[2:])) * weight.shape[1]
    return (spots[:, None, :] + steps[None, :, None]).flatten(1)


def sample(layer: str, output: Tensor, op: str, width: int, *, parts: int = 1) -> Tensor:
    """Return sorted output places `(P,)` for a layer whose `parts` groups read `width` columns each; the same every time."""
    channels = output.shape[-1] if op == "linear" else output.shape[1]
    total = output.numel() // channels
    wanted = min(total, max(6000, min(20000, 10 * width)))
    if parts > 1:
        wanted = min(wanted, max(600, 20 * width))  # few columns to decide, but of many groups
    if wanted == total:
        return torch.arange(total)
    generator = torch.Generator().manual_seed(zlib.crc32(layer.encode()))
    return torch.randperm(total, generator=generator)[:wanted].sort().values


def output_places(invocation: Invocation) -> int:
    """Return at how many places a linear map answers: samples times what each of them has."""
    given = _arguments(invocation)
    x, kernel = given["input"], tuple(given["weight"].shape[2:])
    if invocation.op == "linear":
        return math.prod(x.shape[:-1])
    return int(x.shape[0]) * math.prod(_extents(given, kernel))


def input_of(invocation: Invocation) -> Tensor:
    """Return what a linear map reads, given by position or by name."""
    value: Tensor = _arguments(invocation)["input"]
    return value


def input_rows(invocation: Invocation, places: Tensor, *, parts: slice = slice(None)) -> Tensor:
    """Return the unfolded inputs that the call reads at the given output places: `(P, d)`, or `(G, P, d)` of G groups.

    Args:
        parts: Of a convolution in groups, which of them.
    """
    given = _arguments(invocation)
    x, weight = given["input"], given["weight"]
    if invocation.op == "linear":
        return x.reshape(-1, x.shape[-1])[places]  # type: ignore[no-any-return]
    groups = groups_of(invocation)
    if groups > 1:
        first, last, _ = parts.indices(groups)
        x = x[:, first * weight.shape[1] : last * weight.shape[1]]
    kernel = tuple(weight.shape[2:])
    stride, dilation = (_each(given.get(name, 1), len(kernel)) for name in ("stride", "dilation"))
    padding = _padding(given.get("padding", 0), kernel, dilation)  # before and after, last axis first
    sizes = _extents(given, kernel)
    index, outside, rest = [], torch.zeros(1, dtype=torch.bool), places
    for axis in reversed(range(len(kernel))):
        before, extent = padding[2 * (len(kernel) - 1 - axis)], x.shape[2 + axis]
        starts, rest = rest % sizes[axis] * stride[axis] - before, rest // sizes[axis]
        steps = torch.arange(kernel[axis]) * dilation[axis]
        along = [1] * (1 + len(kernel))
        along[1 + axis] = -1
        spots = starts.view(-1, *[1] * len(kernel)) + steps.view(along)
        outside = outside | (spots < 0) | (spots >= extent)
        index.append(spots.clamp(0, extent - 1))
    image = rest.view(-1, *[1] * len(kernel))
    found: Tensor = x[(image, slice(None), *reversed(index))]  # (P, k..., C), where they lie: a copy of x costs more
    if bool(outside.any()):
        found = found.masked_fill_(outside[..., None], 0.0)
    if groups == 1:
        return found.flatten(1)
    apart: Tensor = found.reshape(*found.shape[:-1], -1, weight.shape[1])  # (P, k..., G, c)
    return apart.movedim(-2, 0).flatten(2)  # (G, P, d)


def output_rows(output: Tensor, places: Tensor, op: str) -> Tensor:
    """Return the outputs `(P, O)` at the given places."""
    if op == "linear":
        return output.reshape(-1, output.shape[-1])[places]
    index, rest = [], places  # read where they lie, whatever the order in memory
    for extent in reversed(output.shape[2:]):
        index.append(rest % extent)
        rest = rest // extent
    spots: Any = (rest, slice(None), *reversed(index))
    return output[spots]


def gram(rows: Tensor, other: Tensor | None = None) -> Tensor:
    """Return rowsᵀ·other (other = rows when None), summed in double precision over chunks multiplied in their own.

    Centre the rows first: what is small beside their mean would be rounded away. Rows `(..., P, d)` of several groups give as
    many products.
    """
    right = rows if other is None else other
    total = torch.zeros(*rows.shape[:-2], rows.shape[-1], right.shape[-1], dtype=torch.float64)
    for ours, theirs in zip(torch.split(rows, _CHUNK, -2), torch.split(right, _CHUNK, -2), strict=True):
        total += ours.mT @ theirs
    return total


def centred(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows `(..., P, d)` without their mean, at least in single precision, and the mean `(..., d)` in double."""
    mean = torch.stack([part.double().sum(-2) for part in torch.split(rows, _CHUNK, -2)]).sum(0) / rows.shape[-2]
    kind = torch.promote_types(rows.dtype, torch.float32)
    return torch.cat([(part.double() - mean[..., None, :]).to(kind) for part in torch.split(rows, _CHUNK, -2)], -2), mean


def decomposed(matrix: Tensor, damping: float, *, each: Tensor | None = None) -> tuple[Tensor, Tensor] | None:
    """Return the Cholesky factor of a damped second moment and the scale `(..., d)` of each column; None when there is none.

    The factor is of matrix / (scale scaleᵀ) + damping · 1. Dividing by the diagonal first makes the damping relative to
    each column, so that neither a column of years beside one of fractions nor a constant one decides how far the others may
    move. Columns that repeat one another leave rounding in place of a pivot: damping grows tenfold until the factor exists.

    Args:
        matrix: `(..., d, d)`, of several groups at once.
        damping: Of every column.
        each: How many times as much of each column `(..., d)`; None for once.
    """
    diagonal = matrix.diagonal(dim1=-2, dim2=-1).double()
    if not bool(matrix.isfinite().all()):
        return None
    floor = (diagonal.amax(-1, keepdim=True).clamp_min(0.0) * _DEAD).clamp_min(torch.finfo(torch.float64).tiny)
    scale = torch.maximum(diagonal, floor).sqrt()
    even = matrix.double() / scale[..., None] / scale[..., None, :]
    ridge = torch.ones_like(scale) if each is None else each
    while damping <= 1.0:
        factor, failed = torch.linalg.cholesky_ex(even + torch.diag_embed(damping * ridge))
        if not bool(failed.any()) and bool(factor.isfinite().all()):
            return factor, scale
        damping *= 10
    return None


def _moments(rows: Tensor) -> Moments:
    around, mean = centred(rows)
    return Moments(gram(around) / len(rows), mean)


def _arguments(invocation: Invocation) -> dict[str, Any]:
    return dict(zip(_ARGUMENTS, invocation.args, strict=False)) | dict(invocation.kwargs)


def _extents(given: Mapping[str, Any], kernel: tuple[int, ...]) -> list[int]:
    """Return the size of a convolution's output along each axis."""
    stride, dilation = (_each(given.get(name, 1), len(kernel)) for name in ("stride", "dilation"))
    padding = _padding(given.get("padding", 0), kernel, dilation)
    both = [padding[2 * place] + padding[2 * place + 1] for place in reversed(range(len(kernel)))]
    extents = zip(given["input"].shape[2:], both, dilation, kernel, stride, strict=True)
    return [(extent + more - spread * (taps - 1) - 1) // step + 1 for extent, more, spread, taps, step in extents]


def _each(value: Any, count: int) -> tuple[int, ...]:
    """Return a stride or dilation for every axis."""
    numbers = (value,) if isinstance(value, int) else tuple(int(part) for part in value)
    return numbers * count if len(numbers) == 1 else numbers


def _padding(value: Any, kernel: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """Return what `functional.pad` takes: before and after, last axis first; 'same' pads the odd one at the end."""
    if value == "same":
        totals = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
        sides = [(total // 2, total - total // 2) for total in totals]
    else:
        sides = [(side, side) for side in _each(0 if value == "valid" else value, len(kernel))]
    return [side for pair in reversed(sides) for side in pair]
