"""Programs planned for one sample, as devices at the edge run them: several samples are run one after another.

Memory and kernels are planned for the one size when such a program is made. A free first axis is possible and costs where it
counts: an ExecuTorch program of the contract's probe took 57 µs for one sample in place of 37 µs.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from equipoise.batch import ONE, Inputs, named, parts, size, take
from equipoise.errors import InputError, must_be, unknown
from equipoise.runtimes.base import Program, Source, check_quantizable, feeds

if TYPE_CHECKING:
    from torch import nn

NAMES = "inputs.json"
"""Beside a program of several inputs, their names in the order in which it takes them."""

CALIBRATING = 128
"""Samples that ranges are read from, one after another."""


@dataclass(frozen=True)
class Single:
    """A module that takes one sample by position.

    Attributes:
        model: In evaluation mode.
        given: One sample (1, ...) for each of its inputs.
        names: Of its inputs.
    """

    model: nn.Module
    given: tuple[Any, ...]
    names: tuple[str, ...]

    @property
    def files(self) -> dict[str, bytes]:
        """The file that names the inputs; none where there is one."""
        return {} if self.names == (ONE,) else {NAMES: json.dumps(self.names).encode()}

    def samples(self, calibration: Inputs) -> list[tuple[NDArray[Any], ...]]:
        """Return the inputs of `CALIBRATING` samples of `calibration` (N, ...) at most, each (1, ...)."""
        few = take(calibration, slice(CALIBRATING))
        return [tuple(np.ascontiguousarray(x) for x in feeds(one, self.names).values()) for one in parts(few, 1)]


def single(source: Source, runtime: str) -> Single:
    """Return the module of `source` as one that takes one sample.

    Raises:
        InputError: The source has no module.
    """
    from equipoise.runtimes.export import by_position

    if source.model is None or source.example is None:
        raise must_be(f"source for {runtime}", "one with a module and an example", "ONNX only", "Give Source(model=, example=).")
    example = source.example
    several = isinstance(example, Mapping)
    model = copy.deepcopy(source.model) if several else source.model  # only a module of several inputs is changed
    model, given, _ = by_position(model, take(example, slice(1)), free=False)
    return Single(model.eval(), given, tuple(named(example)))


def check_float_layers(model: nn.Module, calibration: Inputs | None, float_layers: frozenset[str]) -> Inputs:
    """Return `calibration`; raise `InputError` where there is none, or a layer to be left float is no module of `model`."""
    return check_quantizable(calibration, float_layers, frozenset(name for name, _ in model.named_modules() if name))


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
        raise must_be("inputs", "at least one sample, as many of each", [value.shape for value in arrays], "Give a batch (N, ...).")
    if rows == 1:
        return one(arrays)
    return np.concatenate([one([value[row : row + 1] for value in arrays]) for row in range(rows)])


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Hold back what libraries write to the process's standard error by themselves, not through Python."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
