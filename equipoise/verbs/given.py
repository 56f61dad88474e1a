"""What a verb is given, brought to the form that everything else works on, and what it gives back brought to that of the model.

Wrappers are taken off and other precisions converted to float32, on a copy.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.batch import Inputs, call, is_array, leaves, positional, take
from equipoise.batch import named as batch_of
from equipoise.compress.group_proof import said
from equipoise.errors import must_be
from equipoise.workloads.outputs import not_one, reduced
from equipoise.workloads.wrapped import bare, copied, single


def prepared(name: str, model: Any) -> tuple[nn.Module, tuple[str, ...]]:
    """Return the plain float32 module inside what was given, and what was done to it."""
    if not isinstance(model, nn.Module):
        raise must_be(name, "a torch.nn.Module", type(model).__name__, "Pass the trained model itself.")
    plain = bare(model)
    notes = () if plain is model else ("wrappers and weight normalization were taken off a copy",)
    plain, said = single(plain)
    return plain, (*notes, said) if said else notes


def inputs_of(name: str, inputs: Any) -> Inputs:
    """Return a batch of inputs (N, ...) in float32 (or whole numbers): one tensor, or several by name or position."""
    if isinstance(inputs, (tuple, list)):
        inputs = positional(inputs)
    if isinstance(inputs, Mapping):
        found = {key: _tensor(f"{name}[{key!r}]", value) if is_array(value) else value for key, value in inputs.items()}
        if len({len(value) for value in leaves(found)}) != 1:
            lengths = {key: len(value) for key, value in batch_of(found).items()}
            raise must_be(name, "tensors of one length", lengths, "Give a row for each sample in every one.")
        return found
    return _tensor(name, inputs)


def _tensor(name: str, inputs: Any) -> Tensor:
    if not isinstance(inputs, Tensor) or inputs.dim() < 1 or len(inputs) < 1:
        got = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
        raise must_be(name, "a tensor of inputs (N, ...), N of at least 1", got, "Pass for example one batch of your data.")
    if inputs.is_floating_point() and not bool((good := inputs.detach().isfinite().reshape(len(inputs), -1).all(1)).all()):
        row = int((~good).nonzero()[0])
        raise must_be(name, "finite", f"NaN or infinity in row {row}", "Clean the data, or look at how they are normalised.")
    return as_single(inputs.detach())


def as_single(inputs: Tensor) -> Tensor:
    """Return a tensor of floats in float32, of other numbers as it is."""
    return inputs.float() if inputs.is_floating_point() else inputs


def one_output(name: str, model: nn.Module, example: Inputs) -> nn.Module:
    """Return the model, reduced to the output that is meant where it gives a record, a mapping or a tuple."""
    answer = answers_of(name, model, example)
    found = reduced(model, answer)
    if found is model and not isinstance(answer, Tensor):
        raise not_one(answer)
    return found


def answers_of(name: str, model: nn.Module, example: Inputs) -> Any:
    """Return what the model answers in evaluation mode."""
    try:
        return _answered(model, example)
    except Exception as error:
        what = f"a model that takes inputs {_shapes(example)}"
        raise must_be(name, what, said(error), "Check the shape and type of the inputs.") from error


def beside(
    model: nn.Module, example: Any, data: Any, *, names: tuple[str, str] = ("example", "data")
) -> tuple[Inputs, Inputs | None]:
    """Return inputs (N, ...) that the model takes, and others that it takes too, or None, each in its form.

    Args:
        names: What the two are called, for errors.
    Raises:
        InputError: No tensors, numbers that are not finite, or a batch that the model does not take.
    """
    batch = inputs_of(names[0], example)
    answers_of("model", model, take(batch, slice(2)))
    if data is None:
        return batch, None
    others = inputs_of(names[1], data)
    try:
        _answered(model, take(others, slice(2)))
    except Exception as error:
        wanted = f"inputs that the model takes, as it takes {_shapes(batch)}"
        got = f"{_shapes(others)}, at which {said(error)}"
        raise must_be(names[1], wanted, got, "Pass more of the same kind.") from error
    return batch, others


def _answered(model: nn.Module, inputs: Inputs) -> Any:
    with torch.no_grad():
        return call(copied(model).eval(), inputs)


def _shapes(inputs: Inputs) -> str:
    return " and ".join(f"{tuple(value.shape)} of {str(value.dtype)[6:]}" for value in leaves(inputs))


def in_precision_of(model: nn.Module, result: nn.Module) -> nn.Module:
    """Return `result` with each value in the type that it has in `model`, and new ones in that of the others beside them."""
    types = {name: v.dtype for name, v in (*model.named_parameters(), *model.named_buffers()) if v.is_floating_point()}
    if set(types.values()) <= {torch.float32}:
        return result
    beside = {name.rpartition(".")[0]: dtype for name, dtype in types.items()}
    usual = max(set(types.values()), key=list(types.values()).count)
    cast = copy.deepcopy(result)
    for part_name, part in cast.named_modules():
        for name, value in (*part._parameters.items(), *part._buffers.items()):
            if value is not None and value.is_floating_point():
                full = f"{part_name}.{name}" if part_name else name
                value.data = value.data.to(types.get(full, beside.get(part_name, usual)))
    return cast
