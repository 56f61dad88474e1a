"""Repair a pruned model in closed form: no labels, no gradient steps, seconds.

Layer by layer in execution order, each linear map is fitted so that, *from the inputs that the pruned model really gives
it*, it answers what the untouched model answered. Where its output is added to a shortcut, the target is the untouched
model's sum minus the pruned model's shortcut, so that each block also mends what the blocks before it (or a dropped block)
have broken. One forward pass of the student does it all: a layer is fitted the moment its target is known.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.batch import Inputs
from equipoise.compress.statistics import (
    Target,
    as_matrix,
    as_weight,
    centred,
    collect,
    decomposed,
    gram,
    input_rows,
    is_linear_map,
    is_own,
    output_rows,
)
from equipoise.compress.trace import Invocation, copied, watch
from equipoise.errors import must_be

RIDGE = 1e-3
HELD = 0.125
"""Share of the inputs that whole builds fit no layer on: wide layers would fit chance (docs/search.md, repair)."""


def repair(student: nn.Module, teacher: nn.Module, inputs: Inputs, *, kept: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Return `student` with the weights of its dense layers re-solved to answer as `teacher` does on `inputs`.

    Args:
        student: `teacher` after pruning or block drops, BatchNorm folded in both (see `fold`); it is not changed.
        teacher: the untouched model, with the same layer names.
        inputs: unlabelled calibration inputs `(N, ...)`, drawn at random; 192 to 512 are enough.
        kept: the output channels that each narrowed layer kept, int64, by layer name; a layer that is not named must be as
            wide as the teacher's.

    Returns:
        A new model. Layers whose inputs are undamaged keep their weights exactly.

    Raises:
        InputError: a layer is narrower than the teacher's and `kept` does not say which channels are left.

    Limits:
        Transposed and grouped convolutions, attention and recurrent layers, layers that run more than once, or with a weight
        that is not theirs alone, and those that read more than `statistics.WIDEST` columns are left as they are; so is, with a
        warning, a layer for which no finite fit exists. The fit is to `inputs` alone: a biased sample gives a biased model.
    """
    return refit(student, inputs, targets=collect(teacher, inputs).targets, kept=kept)


def refit(
    student: nn.Module,
    inputs: Inputs,
    *,
    targets: Mapping[str, Target],
    kept: Mapping[str, Tensor] | None = None,
    through: Callable[[nn.Module, Inputs, Callable[[Invocation], Any]], Any] = watch,
    held: float = 0.0,
) -> nn.Module:
    """Do the work of `repair` from targets that `statistics.collect` has already taken from the teacher.

    Args:
        targets: of the layers to fit; the others keep their weights, and nothing runs after the last one is fitted.
        through: runs the model, `watch` or something that gives the layers to fit the same inputs for less.
        held: share of the inputs, the last ones, that no layer is fitted on, see `solve`.
    """
    repaired = copied(student).eval()
    wanted = {
        name: _narrowed(name, target, repaired, kept or {})
        for name, target in targets.items()
        if name in dict(repaired.named_modules())
    }
    settlement = _Settlement(repaired, wanted, held)
    with contextlib.suppress(_Settled):
        through(repaired, inputs, settlement.answer)
    if settlement.unsolved:
        names = ", ".join(settlement.unsolved)
        warnings.warn(f"{names} could not be repaired and keeps its weights: no finite least-squares fit", stacklevel=2)
    return repaired


class _Settled(BaseException):
    """Every layer is fitted: what the rest of the model computes is not wanted."""


class _Settlement:
    """Answer the student's calls: fit a layer when it runs, or when the sum it goes into runs."""

    def __init__(self, student: nn.Module, targets: Mapping[str, Target], held: float) -> None:
        self._held = held
        self._layers = dict(student.named_modules())
        self._targets = dict(targets)
        self.unsolved: list[str] = []
        self._open: dict[int, tuple[Invocation, Tensor, Tensor, int]] = {}  # output id -> call, output, rows, input version

    def answer(self, invocation: Invocation) -> Any:
        """Return the result of the call, computed with settled weights where a target is known."""
        if not self._targets:
            raise _Settled
        if is_linear_map(invocation) and invocation.layer in self._targets:
            target = self._targets[invocation.layer]
            layer: Any = self._layers[invocation.layer]
            if not is_own(invocation, layer):
                return invocation.run()
            rows = input_rows(invocation, target.places)
            if not target.of_sum:
                self._fit(invocation.layer, layer, rows, self._targets.pop(invocation.layer).rows)
                return _rerun(invocation, layer)
            result = _rerun(invocation, layer)
            self._open[id(result)] = (invocation, result, rows, invocation.args[0]._version)
            return result
        if invocation.op == "add" and len(invocation.args) == 2 and not invocation.kwargs:
            for place, operand in enumerate(invocation.args):
                if id(operand) in self._open:
                    self._settle(operand, invocation.args[1 - place])
        return invocation.run()

    def _settle(self, output: Tensor, other: Any) -> None:
        """Fit the layer behind `output` to what is missing from `other` to the target sum; rewrite `output`."""
        call, _, rows, version = self._open.pop(id(output))
        if call.args[0]._version != version or not isinstance(other, Tensor):
            return
        target = self._targets.pop(call.layer)
        layer: Any = self._layers[call.layer]
        shortcut = output_rows(other.expand_as(output), target.places, call.op)
        self._fit(call.layer, layer, rows, target.rows - shortcut)
        output.copy_(_rerun(call, layer))

    def _fit(self, name: str, layer: Any, rows: Tensor, target: Tensor) -> None:
        if not solve(layer, rows, target, held=self._held):
            self.unsolved.append(name)


@torch.no_grad()
def solve(layer: Any, rows: Tensor, target: Tensor, *, ridge: float = RIDGE, held: float = 0.0) -> bool:
    """Set `layer` (in place) to the ridge least-squares fit of `target` `(P, O)` from `rows` `(P, d)`; return whether it could.

    With `held`, that share of the rows, the last ones, takes no part in the fit: each output goes only as far towards its fit
    as is best on them, and stays where it was when nothing helps. Wide layers fitted to few inputs so do little harm: on
    EfficientNet-Lite0, every layer after a change re-solved on 128 inputs, the loss is a sixth of what it is without.

    The ridge, `ridge` times the variance of each column, pulls towards the weights that the layer has: what the data does
    not decide stays, and a layer that is already right does not move. Both sides are centred before they are multiplied, so
    that inputs far from zero or nearly alike lose no digits. Where no finite fit exists the layer stays as it is.
    """
    kind = torch.promote_types(layer.weight.dtype, torch.float32)
    rows, target, before = rows.to(kind), target.to(kind), as_matrix(layer.weight).to(kind)
    around, middle = centred(rows)
    wanted, level = centred(target)
    missing = wanted - around @ before.T
    shift = level - (before.double() @ middle + layer.bias.double())
    error = float(missing.square().mean() + shift.square().mean())
    if error <= max(1e-10 * float(wanted.square().mean()), 1e-11 * float(target.square().mean())):
        return True
    fitted = len(rows) - int(held * len(rows))
    found = decomposed(gram(around[:fitted]), ridge)
    if found is None:
        return False
    factor, scale = found
    step = torch.cholesky_solve(gram(around[:fitted], missing[:fitted]) / scale[:, None], factor) / scale[:, None]  # (d, O)
    if fitted < len(rows):
        gained = (around[fitted:] @ step.to(kind)).double()
        share = (missing[fitted:].double() * gained).sum(0) / gained.square().sum(0).clamp_min(torch.finfo(torch.float64).tiny)
        step = step * share.clamp(0.0, 1.0)
    after = before.double() + step.T
    weight = as_weight(after, layer.weight).to(layer.weight.dtype)
    bias = (level - after @ middle).to(layer.bias.dtype)
    if not bool(weight.isfinite().all() and bias.isfinite().all()):
        return False
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
    return True


def _rerun(invocation: Invocation, layer: Any) -> Any:
    """Call the layer's function again with its weight and bias as they are now."""
    given = (*invocation.args[:1], layer.weight, layer.bias, *invocation.args[3:])
    return invocation.function(*given, **invocation.kwargs)


def _narrowed(name: str, target: Target, student: nn.Module, kept: Mapping[str, Tensor]) -> Target:
    """Return the target's rows for the channels that the student's layer still has; give the layer a bias."""
    layer: Any = student.get_submodule(name)
    width = layer.weight.shape[0]
    if layer.bias is None:
        layer.bias = nn.Parameter(torch.zeros(width, dtype=layer.weight.dtype), layer.weight.requires_grad)
    rows = target.rows[:, kept[name]] if name in kept else target.rows
    if rows.shape[1] != width:
        raise must_be(
            f"kept[{name!r}]",
            f"the {width} output channels that the layer kept",
            kept.get(name),
            "Pass the channel indices that were kept when it was pruned.",
        )
    return Target(rows, target.places, target.of_sum)
