"""One pass over unlabelled data: what each layer reads, and what the untouched model answers.

A linear map (convolution or linear layer) sees its input only through the second moment of its unfolded input, so that is
all that importance scores and least squares need. Output positions are sampled *before* the input is unfolded: unfolding
everything first costs some thirty times as much.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from equipoise.compress.trace import Invocation, record, tensors, watch

_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_CHUNK = 4096


@dataclass(frozen=True)
class Moments:
    """Second moment `gram` = E[x xᵀ] `(d, d)` and mean E[x] `(d,)` of a layer's unfolded input, in double precision.

    For a convolution with C input channels and kernel k1 × k2, d = k1·k2·C, channels running fastest.
    """

    gram: Tensor
    mean: Tensor

    @property
    def covariance(self) -> Tensor:
        """Return the covariance of the unfolded input: what is left once the bias has taken the mean."""
        return self.gram - torch.outer(self.mean, self.mean)


@dataclass(frozen=True)
class Target:
    """Sampled rows `(P, O)` that a layer of the student should reproduce, at output `places` `(P,)`.

    With `of_sum` they are the sum that the layer's output is added into (a residual block's), otherwise the layer's own
    output.
    """

    rows: Tensor
    places: Tensor
    of_sum: bool


@dataclass(frozen=True)
class Statistics:
    """Moments by layer (for scores) and targets by layer (for repair), from the same inputs."""

    moments: Mapping[str, Moments]
    targets: Mapping[str, Target]


def collect(model: nn.Module, inputs: Tensor, *, moments_of: frozenset[str] = frozenset(), targets: bool = True) -> Statistics:
    """Run `model` once on unlabelled `inputs` and return its statistics.

    Args:
        model: in eval mode, BatchNorm folded; it is not changed.
        inputs: `(N, ...)`, drawn at random from the data (a class-sorted sample misleads); 192 to 512 are enough.
        moments_of: the layers whose input moments are wanted.
        targets: whether to keep what the layers answer, for `repair`.
    """
    sums = added_layers(model, inputs[:1]) if targets else frozenset()
    found: dict[str, Moments] = {}
    wanted: dict[str, Target] = {}
    waiting: dict[int, tuple[str, Tensor, Tensor]] = {}

    def answer(invocation: Invocation) -> Any:
        result = invocation.run()
        if is_linear_map(invocation):
            layer, width = invocation.layer, math.prod(weight_of(invocation).shape[1:])
            places = sample(layer, result, invocation.op, width)
            if layer in moments_of and layer not in found:
                found[layer] = _moments(input_rows(invocation, places))
            if layer in sums:
                waiting[id(result)] = (layer, result, places)
            elif targets and layer not in wanted:
                wanted[layer] = Target(output_rows(result, places, invocation.op), places, False)
        elif invocation.op == "add":
            for operand in tensors(invocation.args):
                if id(operand) in waiting:
                    layer, kept, places = waiting.pop(id(operand))
                    op = "linear" if isinstance(model.get_submodule(layer), nn.Linear) else "conv2d"
                    wanted[layer] = Target(output_rows(result, places, op), places, True)
                    del kept
        return result

    watch(model, inputs, answer)
    return Statistics(found, wanted)


def added_layers(model: nn.Module, example: Tensor) -> frozenset[str]:
    """Return the layers whose output goes into one addition of equal shape and nowhere else."""
    tape = record(model, example)
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


def is_linear_map(invocation: Invocation) -> bool:
    """Return whether the call is a dense 1-D or 2-D convolution or a linear layer with explicit padding."""
    if invocation.op == "linear":
        return True
    if invocation.op not in ("conv1d", "conv2d"):
        return False
    given = _arguments(invocation)
    batched = given["input"].dim() == given["weight"].dim()
    return batched and given.get("groups", 1) == 1 and not isinstance(given.get("padding", 0), str)


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


def sample(layer: str, output: Tensor, op: str, width: int) -> Tensor:
    """Return sorted output places `(P,)` for a layer whose rows are `width` wide; the same places on every call."""
    channels = output.shape[-1] if op == "linear" else output.shape[1]
    total = output.numel() // channels
    wanted = min(total, max(6000, min(20000, 10 * width)))
    if wanted == total:
        return torch.arange(total)
    generator = torch.Generator().manual_seed(zlib.crc32(layer.encode()))
    return torch.randperm(total, generator=generator)[:wanted].sort().values


def input_rows(invocation: Invocation, places: Tensor) -> Tensor:
    """Return the unfolded inputs `(P, d)` that the call reads at the given output places."""
    given = _arguments(invocation)
    x, weight = given["input"], given["weight"]
    if invocation.op == "linear":
        return x.reshape(-1, x.shape[-1])[places]  # type: ignore[no-any-return]
    stride, padding, dilation = (
        _pair(given.get(name, default)) for name, default in (("stride", 1), ("padding", 0), ("dilation", 1))
    )
    kernel = weight.shape[2:]
    if invocation.op == "conv1d":
        x, kernel = x[:, :, None], (1, *kernel)
        stride, padding, dilation = (1, stride[-1]), (0, padding[-1]), (1, dilation[-1])
    x = functional.pad(x, (padding[1], padding[1], padding[0], padding[0])).permute(0, 2, 3, 1).contiguous()  # (N, H, W, C)
    high, wide = ((x.shape[1 + a] - dilation[a] * (kernel[a] - 1) - 1) // stride[a] + 1 for a in (0, 1))
    image, row, column = places // (high * wide), places // wide % high, places % wide
    rows = (row * stride[0])[:, None, None] + (torch.arange(kernel[0]) * dilation[0])[None, :, None]
    across = (column * stride[1])[:, None, None] + (torch.arange(kernel[1]) * dilation[1])[None, None, :]
    return x[image[:, None, None], rows, across].flatten(1)  # (P, k1, k2, C) -> (P, d)


def output_rows(output: Tensor, places: Tensor, op: str) -> Tensor:
    """Return the outputs `(P, O)` at the given places."""
    if op == "linear":
        return output.reshape(-1, output.shape[-1])[places]
    flat = output.flatten(2)  # (N, O, positions)
    return flat[places // flat.shape[2], :, places % flat.shape[2]]


def gram(rows: Tensor, other: Tensor | None = None) -> Tensor:
    """Return rowsᵀ·other (other = rows when None), summed in double precision over chunks multiplied in single."""
    right = rows if other is None else other
    total = torch.zeros(rows.shape[1], right.shape[1], dtype=torch.float64)
    for start in range(0, len(rows), _CHUNK):
        total += rows[start : start + _CHUNK].T @ right[start : start + _CHUNK]
    return total


def _moments(rows: Tensor) -> Moments:
    return Moments(gram(rows) / len(rows), rows.double().mean(0))


def _arguments(invocation: Invocation) -> dict[str, Any]:
    return dict(zip(_ARGUMENTS, invocation.args, strict=False)) | dict(invocation.kwargs)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[-1]))
