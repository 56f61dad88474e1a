"""Inputs as a model takes them: one array (N, ...), or several by name.

Most models take one array, and it stays one. A model of several inputs takes a *batch*: a mapping of names to arrays of one
length, in the order of the call. The names are the keywords of its forward; inputs that are given by position are named
``input_0``, ``input_1`` and so on. Whatever else stands in a batch (a flag, a number, None) belongs to no sample: it is handed
on as it is, and is a constant of what ships. Arrays are torch's or numpy's; nothing here imports either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Batch = Mapping[str, Any]
"""Several inputs by name."""

Inputs = Any
"""One array (N, ...), or a `Batch`."""

ONE = "input"
"""Name of the input of a model that takes one."""

SOURCE, WRITTEN = "source", "written"
"""Names of a pair of sequences: what is read whole, and what is written so far beside it."""

HELD = "inputs"
"""Under this name, or with it before theirs, inputs are kept in files of named tensors."""


def leaves(inputs: Any) -> tuple[Any, ...]:
    """Return the arrays in `inputs`, in order.

    Example:
        >>> import numpy as np
        >>> [x.shape for x in leaves({"ids": np.zeros((4, 7)), "mask": np.ones((4, 7)), "cached": False})]
        [(4, 7), (4, 7)]
    """
    return tuple(named(inputs).values())


def named(inputs: Any) -> dict[str, Any]:
    """Return the arrays in `inputs` by name; one that stands alone is called ``input``."""
    if isinstance(inputs, Mapping):
        return {name: value for name, value in inputs.items() if is_array(value)}
    return {ONE: inputs}


def is_array(value: Any) -> bool:
    """Whether a value holds a row for each sample."""
    return len(getattr(value, "shape", ())) > 0


def is_pair(inputs: Any) -> bool:
    """Whether inputs are a sequence that is read and one that is written."""
    return isinstance(inputs, Mapping) and set(inputs) == {SOURCE, WRITTEN}


def unpadded(tokens: Any) -> Any:
    """Return tokens (N, T, ...) without the places behind the last one that any row uses; 0 is padding. One is always left.

    Example:
        >>> import numpy as np
        >>> unpadded(np.array([[5, 0, 7, 0, 0], [3, 0, 0, 0, 0]])).tolist()
        [[5, 0, 7], [3, 0, 0]]
    """
    used = (tokens != 0).any(0).reshape(tokens.shape[1], -1).any(1)
    return tokens[:, : max((place + 1 for place, is_used in enumerate(used.tolist()) if is_used), default=1)]


def size(inputs: Any) -> int:
    """Return how many samples there are.

    Example:
        >>> import numpy as np
        >>> size(np.zeros((4, 7))), size({"ids": np.zeros((4, 7)), "cached": False})
        (4, 4)
    """
    return len(leaves(inputs)[0])


def take(inputs: Any, rows: Any) -> Any:
    """Return the samples at `rows`, a slice or an array of indices."""
    return mapped(inputs, lambda value: value[rows])


def parts(inputs: Any, most: int) -> Iterator[Any]:
    """Yield `inputs` in order, `most` samples at a time."""
    for start in range(0, size(inputs), most):
        yield take(inputs, slice(start, start + most))


def mapped(inputs: Any, change: Callable[[Any], Any]) -> Any:
    """Return `inputs` with every array changed."""
    if isinstance(inputs, Mapping):
        return {name: change(value) if is_array(value) else value for name, value in inputs.items()}
    return change(inputs)


def joined(inputs: Sequence[Any], join: Callable[[list[Any]], Any]) -> Any:
    """Return several inputs of one kind as one: `join` puts together the arrays of one name, as ``torch.cat`` does."""
    first = inputs[0]
    if not isinstance(first, Mapping):
        return join(list(inputs))
    return {name: join([some[name] for some in inputs]) if is_array(value) else value for name, value in first.items()}


def arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return what a model is called with: arguments by position, and by keyword.

    Example:
        >>> arguments({"ids": 1, "mask": 2}), arguments(positional((1, 2))), arguments(1)
        (((), {'ids': 1, 'mask': 2}), ((1, 2), {}), ((1,), {}))
    """
    if not isinstance(inputs, Mapping):
        return (inputs,), {}
    places = [f"{ONE}_{place}" for place in range(len(inputs))]
    if inputs.keys() == set(places):  # a file gives them back in the order of the alphabet
        return tuple(inputs[name] for name in places), {}
    return (), dict(inputs)


def call(model: Callable[..., Any], inputs: Any) -> Any:
    """Return what `model` answers to `inputs`."""
    given, keywords = arguments(inputs)
    return model(*given, **keywords)


def positional(values: Sequence[Any]) -> dict[str, Any]:
    """Return inputs that are given by position as a batch."""
    return {f"{ONE}_{place}": value for place, value in enumerate(values)}


def stored(inputs: Any) -> dict[str, Any]:
    """Return the arrays in `inputs` as they are named in a file; `restored` undoes it."""
    if isinstance(inputs, Mapping):
        return {f"{HELD}.{name}": value for name, value in named(inputs).items()}
    return {HELD: inputs}


def restored(held: Mapping[str, Any]) -> Any:
    """Return the inputs among the named arrays of a file, without what belongs to no sample.

    Example:
        >>> restored({"inputs": 1, "outputs": 2}), restored({"inputs.ids": 1, "outputs": 2})
        (1, {'ids': 1})
    """
    if HELD in held:
        return held[HELD]
    return {name.removeprefix(f"{HELD}."): value for name, value in held.items() if name.startswith(f"{HELD}.")}
