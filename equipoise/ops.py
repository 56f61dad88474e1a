"""One operator and its shapes: what a layer is to a table of times, and what a technique makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from equipoise.errors import must_be

Kind = Literal["conv", "linear", "embedding", "add", "resize", "quantize", "dequantize"]


@dataclass(frozen=True, slots=True)
class Op:
    """One operator and its shapes; a pruned layer is ``replace(spec, cin=..., cout=...)``.

    Attributes:
        kind: ``conv``; ``linear``; ``embedding``; ``add`` (residual sum); ``resize`` (bilinear); ``quantize`` and
            ``dequantize`` (borders of an int8 run).
        cin, cout: Channels or features in and out; equal for the last four kinds; rows and width of an embedding.
        kernel, stride, padding, dilation: (height, width); of ``conv`` only, but the kernel of a ``resize`` is what it makes.
        groups: Of ``conv`` only; a depthwise layer has ``groups == cin == cout``.
        height, width: Of the input map. A ``linear`` layer has its rows per sample in `height`, an embedding what it reads.
        relu: A rectifier follows and is fused into the operator.
    """

    kind: Kind
    cin: int
    cout: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    height: int = 1
    width: int = 1
    relu: bool = False

    def __post_init__(self) -> None:
        if min(self.cin, self.cout, self.groups, self.height, self.width, *self.kernel, *self.stride, *self.dilation) < 1:
            raise must_be("op", "one with extents of at least 1", self, "Check the widths.")
        if self.cin % self.groups or self.cout % self.groups:
            raise must_be("op.groups", "a divisor of cin and cout", self.groups, "A depthwise layer changes groups with cin.")

    @property
    def weights(self) -> int:
        """Weights that it holds, without biases."""
        weighted = self.kind in ("conv", "linear", "embedding")
        return self.cin // self.groups * self.cout * self.kernel[0] * self.kernel[1] if weighted else 0

    @property
    def row(self) -> int:
        """Weights that make one output (of an embedding: one row)."""
        return self.cout if self.kind == "embedding" else self.cin // self.groups * self.kernel[0] * self.kernel[1]

    @property
    def work(self) -> float:
        """MACs on one sample, near enough to compare operators by; one of what multiplies nothing."""
        if not self.weights or self.kind == "embedding":
            return 1.0
        steps = self.height * self.width / (self.stride[0] * self.stride[1])
        return max(1.0, self.cin / self.groups * self.cout * self.kernel[0] * self.kernel[1] * steps)

    @property
    def depthwise(self) -> bool:
        """Whether each channel is convolved alone."""
        return self.kind == "conv" and self.groups == self.cin == self.cout


def op_from(data: Mapping[str, Any]) -> Op:
    """Rebuild an `Op` from `records.as_data`."""
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    return Op(**fields)
