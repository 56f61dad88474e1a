"""Layers that only run in training mode and read what was cut: auxiliary heads, a second classifier.

The groups are read off evaluation mode, where such a head is not seen. Its inputs are found by marking: every channel that goes
is marked where it is made, and the marks that reach a head say which of its inputs go.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.batch import Inputs, call
from equipoise.compress.cut import AXES, Axis, Keep, axis_size, is_depthwise, refusal
from equipoise.compress.trace import CONVS, NORMS, RUN_ERRORS

Found = dict[tuple[str, Axis], Tensor]


def heads(model: nn.Module, keep: Keep, example: Inputs) -> Found:
    """Return what must be kept of the layers that evaluation mode does not reach, so that training mode runs after the cut.

    Args:
        model: Before the cut; left as it is.
        keep: What is kept of the layers that evaluation mode reaches.
        example: A batch that the model takes.
    Returns:
        More entries for `keep`; none for a layer whose marks do not tell, or where training mode cannot be run.
    """
    trial = copy.deepcopy(model).eval()
    reached: set[str] = set()
    named = {module: name for name, module in trial.named_modules()}
    handles = [m.register_forward_hook(lambda m, _, out: reached.add(named[m])) for m in named]
    found: Found = {}
    try:
        with torch.no_grad():
            call(trial, example)
            for handle in handles:
                handle.remove()
            unreached = {name: m for m, name in named.items() if name not in reached and not refusal(m)}
            if not unreached:
                return {}
            handles = [*_marking(trial, keep), *(_reading(name, layer, found) for name, layer in unreached.items())]
            for module in trial.modules():
                module.training = next(module.children(), None) is not None  # layers give the numbers of evaluation mode
            with torch.random.fork_rng(devices=[]):
                call(trial, example)
    except RUN_ERRORS:
        return {}
    finally:
        for handle in handles:
            handle.remove()
    return found


def _dimension(layer: nn.Module) -> int:
    """Where a layer's channels lie in what it takes and gives."""
    return 1 if isinstance(layer, (*CONVS, *NORMS, nn.PReLU)) else -1


def _marking(trial: nn.Module, keep: Keep) -> list[Any]:
    """Mark by NaN what goes of each output, and take the marks off each input."""
    handles = []
    for (name, axis), positions in keep.items():
        if axis not in AXES:
            continue
        layer = trial.get_submodule(name)
        handles.append(layer.register_forward_pre_hook(_clean))
        if axis == "out":
            handles.append(layer.register_forward_hook(_marker(layer, positions)))
    return handles


def _marker(layer: nn.Module, positions: Tensor) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    gone = torch.ones(axis_size(layer, "out"), dtype=torch.bool)
    gone[positions] = False

    def mark(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        shape = [1] * output.ndim
        shape[_dimension(layer)] = -1
        return output.masked_fill(gone.reshape(shape), float("nan"))

    return mark


def _clean(module: nn.Module, inputs: Any) -> Any:
    return tuple(part.nan_to_num(0.0) if isinstance(part, Tensor) and part.is_floating_point() else part for part in inputs)


def _reading(name: str, layer: nn.Module, found: Found) -> Any:
    """Note which inputs of a layer bear no mark, and take the marks off, unless each channel goes through it alone."""
    alone = isinstance(layer, NORMS)

    def read(module: nn.Module, inputs: Any) -> Any:
        marks = inputs[0].isnan().movedim(_dimension(layer), 0).flatten(1)
        some, every = marks.any(1), marks.all(1)
        if bool(some.any()) and torch.equal(some, every) and not bool(every.all()) and not is_depthwise(layer):
            found[name, "out" if alone else "in"] = (~every).nonzero().flatten()
        return inputs if alone else _clean(module, inputs)

    return layer.register_forward_pre_hook(read)
