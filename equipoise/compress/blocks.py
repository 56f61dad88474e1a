"""Residual blocks: which may go, and the model without them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.batch import Inputs, call
from equipoise.compress.trace import RUN_ERRORS, WEIGHTED, Tape, Watched, record, unwatched
from equipoise.errors import unknown


class Skip(nn.Module):
    """Stand in for a dropped block: return the first argument, whatever else is passed."""

    def forward(self, x: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        """Return `x` itself."""
        return x


def droppable(model: nn.Module, example: Inputs, *, watched: Watched = unwatched) -> tuple[str, ...]:
    """Return the names of blocks that can be replaced by the identity, in execution order.

    A block qualifies when its input is added to what it computes (so the model has a meaning without it), it holds at
    least two weighted layers, its output has the shape of its input, no smaller part of it qualifies, and the model
    still runs, to the same output shape, with the block replaced.

    Args:
        model: any module; it is not changed.
        example: a small batch `(N, ...)` that the model accepts.
        watched: Entered around each run without a block, with its name.
    """
    tape = record(model, example)
    held = {name: sum(isinstance(part, WEIGHTED) for part in module.modules()) for name, module in model.named_modules()}
    able = [name for name in held if name and held[name] >= 2 and _is_residual(name, tape)]
    inner = [name for name in able if not any(other.startswith(f"{name}.") for other in able)]
    ready = [name for name in inner if _still_runs(model, name, example, tape, watched)]
    return tuple(sorted(ready, key=lambda name: tape.runs[name][0][0][0]))


def drop(model: nn.Module, names: Iterable[str]) -> nn.Module:
    """Return a copy of `model` in which each named block only hands its input on.

    Raises:
        InputError: a name is not a module of the model.
    """
    valid = dict(model.named_modules())
    for name in names:
        if not name or name not in valid:
            raise unknown("block", name, [other for other in valid if other])
    return replaced(model, {name: Skip() for name in names})


def replaced(model: nn.Module, parts: Mapping[str, nn.Module]) -> nn.Module:
    """Return a copy of `model` with other modules under the given names."""
    changed = copy.deepcopy(model)
    for name, part in parts.items():
        parent, _, leaf = name.rpartition(".")
        setattr(changed.get_submodule(parent), leaf, part)
    return changed


def _is_residual(name: str, tape: Tape) -> bool:
    """Return whether the module runs once, keeps the shape, and adds its own input to something inside."""
    if len(tape.runs.get(name, ())) != 1:
        return False
    taken, given = tape.runs[name][0]
    if not taken or len(given) != 1 or tape.shapes[taken[0]] != tape.shapes[given[0]]:
        return False
    return any(call.op == "add" and name in call.scope and taken[0] in call.inputs for call in tape.calls)


def _still_runs(model: nn.Module, name: str, example: Inputs, tape: Tape, watched: Watched) -> bool:
    """Return whether the model without the block gives an output of the same shape."""
    try:
        with torch.no_grad(), watched(frozenset([name])) as known:
            if known:
                return False
            output = call(drop(model, [name]).eval(), example)
    except RUN_ERRORS:
        return False
    return isinstance(output, Tensor) and tuple(output.shape) == tape.shapes[tape.outputs[0]]
