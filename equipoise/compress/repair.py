"""Repair a pruned model in closed form: no labels, no gradient steps, seconds.

Layer by layer in execution order, each linear map is fitted so that, *from the inputs that the pruned model really gives
it*, it answers what the untouched model answered. Where its output is added to a shortcut, the target is the untouched
model's sum minus the pruned model's shortcut, so that each block also mends what the blocks before it (or a dropped block)
have broken. One forward pass of the student does it all: a layer is fitted the moment its target is known.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.batch import Inputs
from equipoise.compress.masked import masked_solution
from equipoise.compress.statistics import (
    Target,
    as_matrix,
    as_weight,
    centred,
    collect,
    decomposed,
    gram,
    groups_of,
    input_of,
    input_rows,
    is_attention,
    is_linear_map,
    is_own,
    output_places,
    output_rows,
    projected,
)
from equipoise.compress.trace import Invocation, copied, watch
from equipoise.errors import must_be

RIDGE = 1e-3
_STUCK = 1e-12  # of what the middle column does: less counts as so much, and the weight does not move
_AT_ONCE = 2**20  # entries of unfolded inputs, of some of a convolution's groups
HELD = 0.125
"""Share of the inputs that whole builds fit no layer on: wide layers would fit chance (docs/search.md, repair)."""


def repair(student: nn.Module, teacher: nn.Module, inputs: Inputs, *, kept: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Return `student` with the weights of its linear maps re-solved to answer as `teacher` does on `inputs`.

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
        Linear layers, convolutions (dense, in groups, depthwise) and the output projection of `nn.MultiheadAttention` are
        fitted. Transposed convolutions, what attention makes its queries, keys and values with in one product, recurrent
        layers, embeddings, layers that run more than once, or with a weight that is not theirs alone, those that some samples
        pass by and those that read more than `statistics.WIDEST` columns are left as they are; so is, with a warning, a layer
        for which no finite fit exists.
        The fit is to `inputs` alone: a biased sample gives a biased model.
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
    zeros: Collection[str] = (),
) -> nn.Module:
    """Do the work of `repair` from targets that `statistics.collect` has already taken from the teacher.

    Args:
        targets: of the layers to fit; the others keep their weights, and nothing runs after the last one is fitted.
        through: runs the model, `watch` or something that gives the layers to fit the same inputs for less.
        held: share of the inputs, the last ones, that no layer is fitted on, see `solve`.
        zeros: layers whose zero weights stay zeros; the others are fitted around them.
    """
    repaired = copied(student).eval()
    layers = dict(repaired.named_modules())  # in the place of one may stand what has no weights: its block was dropped
    wanted = {
        name: _narrowed(name, target, repaired, kept or {})
        for name, target in targets.items()
        if hasattr(layers.get(name), "weight")
    }
    settlement = _Settlement(repaired, wanted, held, frozenset(zeros))
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

    def __init__(self, student: nn.Module, targets: Mapping[str, Target], held: float, zeros: frozenset[str]) -> None:
        self._held, self._zeros = held, zeros
        self._layers = dict(student.named_modules())
        self._targets = dict(targets)
        self.unsolved: list[str] = []
        self._open: dict[int, tuple[Invocation, Tensor, int]] = {}  # output id -> call, output, input version

    def answer(self, invocation: Invocation) -> Any:
        """Return the result of the call, computed with settled weights where a target is known."""
        if not self._targets:
            raise _Settled
        if is_attention(invocation):
            return projected(invocation, self.answer)
        if is_linear_map(invocation) and invocation.layer in self._targets:
            target = self._targets[invocation.layer]
            layer: Any = self._layers[invocation.layer]
            if not is_own(invocation, layer) or output_places(invocation) != target.total:
                return invocation.run()
            if not target.of_sum:
                self._fit(invocation, layer, target, target.rows)
                return _rerun(invocation, layer)
            result = _rerun(invocation, layer)
            self._open[id(result)] = (invocation, result, input_of(invocation)._version)
            return result
        if invocation.op == "add" and len(invocation.args) == 2 and not invocation.kwargs:
            for place, operand in enumerate(invocation.args):
                if id(operand) in self._open:
                    self._settle(operand, invocation.args[1 - place])
        return invocation.run()

    def _settle(self, output: Tensor, other: Any) -> None:
        """Fit the layer behind `output` to what is missing from `other` to the target sum; rewrite `output`."""
        call, _, version = self._open.pop(id(output))
        if input_of(call)._version != version or not isinstance(other, Tensor):
            return
        target = self._targets[call.layer]
        layer: Any = self._layers[call.layer]
        shortcut = output_rows(other.expand_as(output), target.places, call.op)
        self._fit(call, layer, target, target.rows - shortcut)
        output.copy_(_rerun(call, layer))

    def _fit(self, call: Invocation, layer: Any, target: Target, wanted: Tensor) -> None:
        """Fit `layer` to the `wanted` rows `(P, O)`, some groups of a convolution at a time."""
        del self._targets[call.layer]
        groups = groups_of(call)
        each = len(layer.weight) // groups
        step = max(1, _AT_ONCE // (len(target.places) * math.prod(layer.weight.shape[1:])))
        for first in range(0, groups, step):
            parts = slice(first, min(first + step, groups))
            outputs = slice(parts.start * each, parts.stop * each)
            rows = input_rows(call, target.places, parts=parts)
            mask = as_matrix(layer.weight[outputs].detach()) != 0 if call.layer in self._zeros else None
            if not solve(layer, rows, wanted[:, outputs], outputs=outputs, held=self._held, mask=mask):
                self.unsolved.append(call.layer)
                return


@torch.no_grad()
def solve(
    layer: Any,
    rows: Tensor,
    target: Tensor,
    *,
    outputs: slice = slice(None),
    ridge: float = RIDGE,
    held: float = 0.0,
    mask: Tensor | None = None,
) -> bool:
    """Set `layer` (in place) to the ridge least-squares fit of `target` `(P, O)` from `rows`; return whether it could.

    The ridge pulls towards the weights that the layer has: what the data does not decide stays, and a layer that is already
    right does not move. A step d of the weights of a column costs `ridge` · d² · (s² + m²/w²), s being the deviation of the
    column, w the size of its weights, and m the middle one of all products s·w that are not 0: steps are to be small beside
    what the column does, and beside the weights that are there. The second part holds a column that hardly ever moves: least
    squares would give a channel that fired once, by a hundredth, whatever weight mends that one place, and the next input on
    which it fires for good would be lost. Both parts are free of a column's unit.

    With `held`, that share of the rows, the last ones, takes no part in the fit: each output goes only as far towards its fit
    as is best on them, and stays where it was when nothing helps. Wide layers fitted to few inputs so do little harm.

    Both sides are centred before they are multiplied, so that inputs far from zero or nearly alike lose no digits. Where no
    finite fit exists the layer stays as it is.

    Args:
        rows: `(P, d)`; `(G, P, d)` of a convolution in G groups, each solved alone.
        outputs: The channels of the layer that are solved, O of them.
        mask: `(O, d)`, the weights that may move; None: all of them. See `masked.masked_solution`.
    """
    kind = torch.promote_types(layer.weight.dtype, torch.float32)
    rows = (rows if rows.dim() == 3 else rows[None]).to(kind)
    target = target.to(kind).reshape(len(target), len(rows), -1).transpose(0, 1)  # (G, P, o)
    weights, biases = layer.weight[outputs], layer.bias[outputs]
    before = as_matrix(weights).to(kind).reshape(len(rows), -1, rows.shape[2])  # (G, o, d)
    around, middle = centred(rows)
    wanted, level = centred(target)
    missing = wanted - around @ before.mT
    shift = level - (before.double() @ middle[..., None])[..., 0] - biases.double().view_as(level)
    error = float(missing.square().mean() + shift.square().mean())
    if error <= max(1e-10 * float(wanted.square().mean()), 1e-11 * float(target.square().mean())):
        return True
    free = None if mask is None else mask.view_as(before)
    step = _step(around, missing, before, ridge=ridge, held=int(held * rows.shape[1]), mask=free)
    if step is None:
        return False
    after = before.double() + step.mT
    weight = as_weight(after.flatten(0, 1), weights).to(weights.dtype)
    bias = (level - (after @ middle[..., None])[..., 0]).flatten().to(biases.dtype)
    if not bool(weight.isfinite().all() and bias.isfinite().all()):
        return False
    weights.copy_(weight)
    biases.copy_(bias)
    return True


def _step(around: Tensor, missing: Tensor, before: Tensor, *, ridge: float, held: int, mask: Tensor | None) -> Tensor | None:
    """Return how far the weights `before` `(G, o, d)` move, `(G, d, o)`, to give what is missing; None without a fit."""
    fitted = around.shape[1] - held
    moment = gram(around[:, :fitted])
    does = moment.diagonal(dim1=-2, dim2=-1) * before.double().square().mean(1)  # (s w)²
    middle = does.where(does > 0, torch.nan).nanmedian(-1, keepdim=True).values
    each = 1 + (middle / does.clamp_min(0.0)).nan_to_num(0.0).clamp_max(1 / _STUCK)
    found = decomposed(moment, ridge, each=each)
    if found is None:
        return None
    factor, scale = found[0], found[1][..., None]
    right = gram(around[:, :fitted], missing[:, :fitted]) / scale
    if mask is None:
        moved = torch.cholesky_solve(right, factor)
    else:
        each_group = zip(factor @ factor.mT, right.mT, mask, strict=True)
        moved = torch.stack([masked_solution(*group) for group in each_group]).mT
    step = moved / scale
    if held:
        gained = (around[:, fitted:] @ step.to(around.dtype)).double()
        power = gained.square().sum(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
        step = step * ((missing[:, fitted:].double() * gained).sum(1, keepdim=True) / power).clamp(0.0, 1.0)
    return step


def _rerun(invocation: Invocation, layer: Any) -> Any:
    """Call the layer's function again with its weight and bias as they are now."""
    named = {name: value for name, value in invocation.kwargs.items() if name not in ("input", "weight", "bias")}
    return invocation.function(input_of(invocation), layer.weight, layer.bias, *invocation.args[3:], **named)


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
    return replace(target, rows=rows)
