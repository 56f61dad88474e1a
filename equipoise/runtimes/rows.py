"""Programs planned for one sample, as devices at the edge run them: several samples are run one after another.

Memory and kernels are planned for the one size when such a program is made. A free first axis is possible and costs where it
counts: an ExecuTorch program of the contract's probe took 57 µs for one sample in place of 37 µs.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.batch import ONE, Inputs
from equipoise.errors import InputError, must_be
from equipoise.runtimes.base import Program, feeds

NAMES = "inputs.json"
"""Beside a program of several inputs, their names in the order in which it takes them."""


def names_of(program: Program) -> tuple[str, ...]:
    """Return the names of a program's inputs.

    Raises:
        InputError: The file that names them is damaged.
    """
    if NAMES not in program.files:
        return (ONE,)
    try:
        names = json.loads(program.files[NAMES])
    except ValueError as error:
        raise InputError(f"{NAMES} must be a list of names: {error}. Compile the program again.") from error
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise must_be(NAMES, "a list of names", names, "Compile the program again.")
    return tuple(names)


def run_rows(inputs: Inputs, names: Sequence[str], one: Callable[[list[NDArray[Any]]], NDArray[Any]]) -> NDArray[Any]:
    """Return the outputs (N, ...) for `inputs` (N, ...), sample by sample.

    Args:
        one: Returns the outputs (1, ...) for inputs (1, ...), an array of its own.

    Raises:
        InputError: An input is missing, there is no sample, or `one` refuses them.
    """
    arrays = [np.ascontiguousarray(value) for value in feeds(inputs, names).values()]
    rows = len(arrays[0]) if arrays[0].ndim else 0
    if rows == 0 or any(value.ndim == 0 or len(value) != rows for value in arrays):
        shapes = [value.shape for value in arrays]
        raise must_be("inputs", "at least one sample, as many of each", shapes, "Give a batch (N, ...).")
    if rows == 1:
        return one(arrays)
    return np.concatenate([one([value[row : row + 1] for value in arrays]) for row in range(rows)])


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Hold back what libraries write to the standard error, past Python and through it."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
