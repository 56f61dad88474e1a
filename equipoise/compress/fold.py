"""Fold BatchNorm into the layer before it, so that pruning and repair act on weights and biases alone.

A layer is judged by what it was seen to do, not by its type: the trace must show that the norm reads nothing but the layer's
product, and that the product reads the layer's own weight. Each fold is then compared with the original on real inputs, layer
by layer and as a whole; what differs is left as it was, with the reason.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from equipoise.batch import Inputs, call, size, take
from equipoise.compress.dense import linear_form, shared_parameters
from equipoise.compress.proof import SAMPLES, changed, difference, own
from equipoise.compress.trace import RUN_ERRORS, WEIGHTED, Call, Tape, copied, record, tensors


@dataclass(frozen=True)
class Folded:
    """A model with its BatchNorms folded, and why each of the others was left: reason by name."""

    model: nn.Module
    left: Mapping[str, str]


@dataclass(frozen=True)
class _Pair:
    """A BatchNorm that can go into the layer before it; `after` are the norm's own children that run behind it."""

    layer: str
    norm: str
    after: tuple[str, ...]


def fold(model: nn.Module, example: Inputs, *, data: Inputs | None = None) -> nn.Module:
    """Return a copy in eval mode whose BatchNorms are folded into the convolution or linear layer they follow.

    Linear layers that hold their weight transposed become plain ones (`dense.linear_form`).

    A stale running mean is the commonest way in which pruning ruins a network; without BatchNorm there is none. Outputs
    are those of `model.eval()` up to rounding (about 1e-6 of their size).

    Args:
        model: any module; it is not changed.
        example: a small batch `(N, ...)` that the model accepts; it decides which layer feeds which BatchNorm.
        data: more inputs `(N, ...)` that the result is compared on; the first 16 are used.

    Returns:
        A new module with the same layer names, folded BatchNorms replaced by `nn.Identity` (or by the activation that was
        built into them).

    Limits:
        A BatchNorm stays where its input is used elsewhere too, where it or its layer runs more than once, where it has
        no running statistics, where it or its layer computes something of its own, where the layer's weight is shared or
        computed, and where the result would differ; `folded` tells which and why.
    """
    return folded(model, example, data=data).model


def folded(model: nn.Module, example: Inputs, *, data: Inputs | None = None) -> Folded:
    """Do the work of `fold` and return why each BatchNorm that is left was left."""
    original = linear_form(copied(model).eval(), example)
    norms = [name for name, module in original.named_modules() if isinstance(module, _BatchNorm)]
    if not norms:
        return Folded(original, {})
    found, left = _judged(original, record(original, example))
    inputs = [example] if data is None else [example, take(data, slice(SAMPLES))]
    wrong = _wrong(original, found, take(inputs[-1], slice(size(example))))
    left |= wrong
    found = [pair for pair in found if pair.norm not in wrong]
    good, refused = _proven(original, found, inputs)
    left |= refused
    return Folded(_applied(original, good), {name: left[name] for name in norms if name in left})


def pairs(model: nn.Module, tape: Tape) -> tuple[tuple[str, str], ...]:
    """Return the names of (layer, BatchNorm) that, as the tape shows, can become one, in execution order."""
    return tuple((pair.layer, pair.norm) for pair in _judged(model, tape)[0])


def _judged(model: nn.Module, tape: Tape) -> tuple[list[_Pair], dict[str, str]]:
    """Return the pairs that the tape allows, and why each other BatchNorm stays."""
    modules = dict(model.named_modules())
    maker = {value: call for call in tape.calls for value in call.outputs}
    shared = shared_parameters(model)
    order = {call.layer: place for place, call in reversed(list(enumerate(tape.calls)))}
    found, left = [], {}
    for name in sorted((n for n, m in modules.items() if isinstance(m, _BatchNorm)), key=lambda n: order.get(n, len(order))):
        norm: Any = modules[name]
        call = tape.call_of(name)
        why = _norm_stays(name, norm, call, tape)
        if call is None or why:
            left[name] = why or "it does not run exactly once"
            continue
        source = maker.get(call.inputs[0])
        why = _layer_stays(source, call, modules, tape, shared)
        if source is None or why:
            left[name] = why or "it does not follow a convolution or linear layer"
            continue
        after = tuple(ran for ran in tape.runs if ran.rpartition(".")[0] == name)
        found.append(_Pair(source.layer, name, tuple(ran.rpartition(".")[2] for ran in after)))
    return found, left


def _norm_stays(name: str, norm: Any, call: Call | None, tape: Tape) -> str:
    """Return why the norm itself cannot go; empty where it only normalises and then runs children of its own."""
    if call is None:
        return "it does not run exactly once"
    if own(norm, "running_mean") is None or own(norm, "running_var") is None:
        return "it has no running statistics"
    reads = {tape.held.get(value) for value in call.inputs[1:]}
    statistics = {f"{name}.running_mean", f"{name}.running_var"}
    if not statistics <= reads or not reads <= statistics | {f"{name}.weight", f"{name}.bias"}:
        return f"a {type(norm).__name__} that normalises with numbers of its own making"
    inside = [other for other in tape.calls if name in other.scope]
    if inside[0] is not call or any(other.layer == name for other in inside[1:]):
        return f"a {type(norm).__name__} that does more than normalise"
    if any(len(tape.runs[ran]) > 1 for ran in tape.runs if ran.rpartition(".")[0] == name):
        return f"a {type(norm).__name__} that runs a part of itself twice"
    return ""


def _layer_stays(source: Call | None, norm: Call, modules: Mapping[str, Any], tape: Tape, shared: frozenset[int]) -> str:
    """Return why the maker of the norm's input cannot take it in."""
    value = norm.inputs[0]
    layer = modules.get(source.layer) if source is not None else None
    if source is None or not isinstance(layer, WEIGHTED) or not source.op.startswith(("conv", "linear")):
        return "it does not follow a convolution or linear layer"
    if tape.call_of(source.layer) is not source:
        return f"{source.layer} runs more than once"
    if value in tape.outputs or tape.consumers(value) != (norm,):
        return f"the output of {source.layer} is read elsewhere too"
    weight, bias = own(layer, "weight"), own(layer, "bias")
    given = [tape.held.get(number) for number in source.inputs[1:]]
    if given != [f"{source.layer}.weight", *([f"{source.layer}.bias"] if bias is not None else [])] or weight is None:
        return f"{source.layer} computes its weight or bias"
    if id(weight) in shared or id(bias) in shared or tape.consumers(source.inputs[1]) != (source,):
        return f"{source.layer} shares its weight or bias"
    if isinstance(layer, nn.Linear) and len(tape.shapes[value]) != 2:
        return f"it normalises over another axis than the features of {source.layer}"
    if getattr(layer, "transposed", False) and layer.groups != 1:
        return f"{source.layer} is a transposed convolution in groups"
    return ""


def _wrong(model: nn.Module, found: Sequence[_Pair], batch: Inputs) -> dict[str, str]:
    """Run the original once; beside each pair, what it would be when folded; return the norms that it is not right for."""
    taken: dict[str, tuple[Any, Any]] = {}
    wrong: dict[str, str] = {}
    subject = copy.deepcopy(model)
    handles = []
    for pair in found:
        merged, after = _merged(model, pair)

        def keep(_m: nn.Module, args: Any, kwargs: Any, name: str = pair.layer) -> None:
            taken[name] = (args, kwargs)

        def judge(_m: nn.Module, _x: Any, given: Any, pair: _Pair = pair, both: Any = (merged, after)) -> None:
            args, kwargs = taken.pop(pair.layer)
            wanted = [value.clone() for value in tensors(given)]
            try:
                why = difference(list(tensors(both[1](both[0](*args, **kwargs)))), wanted)
            except RUN_ERRORS as error:
                why = f"it no longer runs: {type(error).__name__}"
            if why:
                wrong[pair.norm] = f"when it is folded into {pair.layer}, {why}"

        handles.append(subject.get_submodule(pair.layer).register_forward_pre_hook(keep, with_kwargs=True))
        handles.append(subject.get_submodule(pair.norm).register_forward_hook(judge))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        call(subject, batch)
    return wrong


def _proven(model: nn.Module, found: list[_Pair], inputs: Iterable[Inputs]) -> tuple[list[_Pair], dict[str, str]]:
    """Return the pairs that leave the whole model's answers as they are, and why the others are left."""
    batches = list(inputs)
    why = changed(_applied(model, found), model, batches) if found else ""
    if not why:
        return found, {}
    if len(found) == 1:
        return [], {found[0].norm: f"when it is folded, the model is not the same: {why}"}
    half = len(found) // 2
    parts = [_proven(model, part, batches) for part in (found[:half], found[half:])]
    good, left = [*parts[0][0], *parts[1][0]], parts[0][1] | parts[1][1]
    if left and (together := changed(_applied(model, good), model, batches)):
        return [], left | {pair.norm: f"when all are folded, the model is not the same: {together}" for pair in good}
    if not left:
        return [], {pair.norm: f"when all are folded, the model is not the same: {why}" for pair in good}
    return good, left


def _applied(model: nn.Module, found: Iterable[_Pair]) -> nn.Module:
    """Return a copy with the pairs folded."""
    made = copy.deepcopy(model)
    for pair in found:
        merged, after = _merged(made, pair)
        for name in ("weight", "bias"):
            setattr(made.get_submodule(pair.layer), name, getattr(merged, name))
        made.set_submodule(pair.norm, after)
    return made


def _merged(model: nn.Module, pair: _Pair) -> tuple[nn.Module, nn.Module]:
    """Return a copy of the layer that has taken the norm in, and what stays in the norm's place."""
    layer = copy.deepcopy(model.get_submodule(pair.layer))
    norm = model.get_submodule(pair.norm)
    _absorb(layer, norm)
    rest = OrderedDict((name, copy.deepcopy(norm.get_submodule(name))) for name in pair.after)
    return layer, (nn.Sequential(rest) if rest else nn.Identity()).train(norm.training)


def _absorb(layer: Any, norm: Any) -> None:
    """Scale the layer's output channels and shift its bias as the BatchNorm would."""
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    gain = torch.ones_like(variance) if norm.weight is None else norm.weight.detach().double()
    shift = torch.zeros_like(variance) if norm.bias is None else norm.bias.detach().double()
    weight = layer.weight.detach()
    scale = gain / torch.sqrt(variance + norm.eps)
    bias = torch.zeros_like(scale) if layer.bias is None else layer.bias.detach().double()
    axis = 1 if getattr(layer, "transposed", False) else 0
    along = [1] * weight.dim()
    along[axis] = -1
    learns = layer.weight.requires_grad
    layer.weight = nn.Parameter((weight.double() * scale.view(along)).to(weight.dtype), learns)
    layer.bias = nn.Parameter(((bias - mean) * scale + shift).to(weight.dtype), learns)
