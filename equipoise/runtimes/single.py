"""A model as programs planned for one sample are made of it: its exported graph, and what its layers are called there."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from equipoise.batch import ONE, Inputs, mapped, named, parts, take
from equipoise.errors import InputError, must_be
from equipoise.runtimes.base import Source, check_quantizable, feeds
from equipoise.runtimes.export import by_position, quiet
from equipoise.runtimes.rows import NAMES

if TYPE_CHECKING:
    from torch.export import ExportedProgram

CALIBRATING = 128
"""Samples that ranges are read from, one after another."""

WEIGHTED = ("conv", "linear", "embedding", "matmul", "bmm", "mm", "addmm")
"""Beginnings of the names of operators that may have weights, in an exported graph."""


@dataclass(frozen=True)
class Single:
    """A module that takes one sample by position.

    Attributes:
        model: In evaluation mode.
        given: One sample (1, ...) for each of its inputs.
        names: Of its inputs.
        exported: Its graph at these inputs.
        layers: Names of the modules in whose own code operators of `WEIGHTED` are.
    """

    model: nn.Module
    given: tuple[Any, ...]
    names: tuple[str, ...]
    exported: ExportedProgram
    layers: frozenset[str]

    @property
    def files(self) -> dict[str, bytes]:
        """The file that names the inputs; none where there is one."""
        return {} if self.names == (ONE,) else {NAMES: json.dumps(self.names).encode()}

    @property
    def fixed(self) -> frozenset[str]:
        """Names of the modules in whose own code something is multiplied with a buffer: see `layers.fixed_nodes`."""
        buffers = self.exported.graph_signature.inputs_to_buffers
        nodes = [node for node in self.exported.graph.nodes if weighs(node)]
        return frozenset(owner(node) for node in nodes if any(given.name in buffers for given in node.all_input_nodes[1:2]))

    def samples(self, calibration: Inputs | None, float_layers: frozenset[str]) -> list[tuple[NDArray[Any], ...]]:
        """Return the inputs of `CALIBRATING` samples of `calibration` (N, ...) at most, each (1, ...).

        Raises:
            InputError: There is none, or one of `float_layers` is no layer.
        """
        few = take(check_quantizable(calibration, float_layers, self.layers), slice(CALIBRATING))
        return [tuple(np.ascontiguousarray(x) for x in feeds(one, self.names).values()) for one in parts(few, 1)]


def single(source: Source, runtime: str) -> Single:
    """Return the module of `source` as one that takes one sample.

    Raises:
        InputError: The source has no module, or torch cannot export it.
    """
    if source.model is None or source.example is None:
        whole = "one with a module and an example"
        raise must_be(f"source for {runtime}", whole, "ONNX only", "Give Source(model=, example=).")
    model = copy.deepcopy(source.model).eval()
    for value in (*model.parameters(), *model.buffers()):
        value.data = plain(value.data)
    model, given, _ = by_position(model, mapped(take(source.example, slice(1)), plain), free=False)
    try:
        with quiet(), torch.no_grad():
            exported = torch.export.export(model, given)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"model must be one that torch.export takes; got {type(model).__name__}: {reason}") from error
    layers = frozenset(owner(node) for node in exported.graph.nodes if weighs(node)) - {""}
    return Single(model, given, tuple(named(source.example)), exported, layers)


def plain(value: Tensor) -> Tensor:
    """Return a copy with its numbers in the order of its axes: ExecuTorch fails on weights that were trained channels last."""
    return value.clone(memory_format=torch.contiguous_format)


def weighs(node: Any) -> bool:
    """Whether a node of an exported graph is an operator that may have weights."""
    return node.op == "call_function" and getattr(node.target, "__name__", "").startswith(WEIGHTED)


def scopes(node: Any) -> list[str]:
    """Return the dotted names of the modules whose code a node is, outermost first."""
    return [name for name, _ in (node.meta.get("nn_module_stack") or {}).values()]


def owner(node: Any) -> str:
    """Return the dotted name of the module in whose own code a node is; empty for the model itself."""
    return (scopes(node) or [""])[-1]
