"""Layers that compute in half precision, or in bfloat16: a model whose products all do is put into it as a whole."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from equipoise.errors import unknown
from equipoise.records import Choice

TYPES: Mapping[Choice, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16}
PRODUCTS = (_ConvNd, nn.Linear)
"""Layers that multiply by weights."""


def halved(model: nn.Module, schemes: Mapping[str, Choice]) -> nn.Module:
    """Return a copy of `model` whose named layers compute in their schemes; it takes and gives floats as before.

    Where all layers with products are in one scheme, what lies between them is too, and nothing is converted on the way.

    Args:
        schemes: Layer -> ``fp16`` or ``bf16``.
    Raises:
        InputError: A layer that is not there.
    """
    layers = {name: part for name, part in model.named_modules() if isinstance(part, PRODUCTS)}
    parts = dict(model.named_modules())
    if lost := [name for name in schemes if name not in parts]:
        raise unknown("schemes", lost[0], layers)
    if not schemes:
        return model
    made, ways = copy.deepcopy(model).eval(), set(schemes.values())
    if len(ways) == 1 and layers.keys() <= schemes.keys():
        return _Within(made, TYPES[ways.pop()])
    for name, way in schemes.items():
        parent, _, last = name.rpartition(".")
        setattr(made.get_submodule(parent), last, _Within(made.get_submodule(name), TYPES[way]))
    return made


class _Within(nn.Module):
    """A module in another type, floats before and after."""

    def __init__(self, inner: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner, self.dtype = inner.to(dtype), dtype

    def forward(self, x: Any = None, **named: Any) -> Any:
        """Return what the module inside answers to one input, or to several by name, as floats."""
        given = () if x is None else (self._in(x),)
        return self.inner(*given, **{name: self._in(value) for name, value in named.items()}).float()

    def _in(self, value: Any) -> Any:
        return value.to(self.dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
