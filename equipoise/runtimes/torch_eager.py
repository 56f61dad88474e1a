"""PyTorch without a compiler: the exported operators, run one by one. The reference that the others are compared with."""

from __future__ import annotations

import copy
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from equipoise.batch import ONE, Inputs, joined, named, size, take
from equipoise.errors import InputError, must_be
from equipoise.records import Choice
from equipoise.runtimes.base import Program, Session, Source, check_program, check_schemes, feeds

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram

FILE = "model.pt2"
"""The one file of a program."""

NAMES = "inputs.json"
"""Inside it, the names of several inputs in the order in which the module takes them."""

_MACHINE_MARKS = ("stack_trace", "source_fn_stack", "from_node", "torch_fn")
"""What an exported graph remembers of the machine and the code it came from."""


class TorchEager:
    """PyTorch on the CPU, float only. See `base.Runtime` for the methods."""

    name = "torch"
    precisions: tuple[Choice, ...] = (32,)
    runs_code = True

    def unavailable(self) -> str:
        """Return an empty text: PyTorch is a core dependency."""
        return ""

    def compile(
        self,
        source: Source,
        *,
        calibration: Inputs | None = None,
        float_layers: frozenset[str] | None = None,
        schemes: Mapping[str, Choice] | None = None,
    ) -> Program:
        """Return the module as a ``torch.export`` file with a free first axis.

        Raises:
            InputError: int8 was asked for, the source has no module, or its first axis is not free.
        """
        import torch

        from equipoise.runtimes.export import by_position, quiet

        check_schemes(self.name, self.precisions, schemes)
        if float_layers is not None:
            raise must_be("bits for torch", "32", 8, "Choose onnxruntime or openvino to run int8.")
        if source.model is None or source.example is None:
            raise must_be("source for torch", "one with a module and an example", "ONNX only", "Give Source(model=, example=).")
        example = source.example if size(source.example) > 1 else joined((source.example, source.example), torch.cat)
        several = isinstance(example, Mapping)
        model = copy.deepcopy(source.model) if several else source.model  # only a module of several inputs is changed
        model, given, shapes = by_position(model, take(example, slice(2)), free=True)
        try:
            with quiet(), torch.no_grad():
                program = torch.export.export(model, given, dynamic_shapes=shapes)
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"model must be one that torch.export takes with any batch size: {reason}.") from error
        extra = {NAMES: json.dumps(list(named(example)))} if several else None
        return Program(self.name, "fp32", {FILE: stored(program, extra)})

    def load(self, program: Program, *, threads: int = 1, batch: int | None = None) -> Session:
        """Return a session; `batch` only fixes what it accepts, eager code has nothing to plan."""
        exported, names = loaded(program, self.name)
        return _Session(exported.module(check_guards=False), names, threads, batch)  # guards cost a fifth


def loaded(program: Program, runtime: str) -> tuple[Any, list[str]]:
    """Return what a program's file holds, as torch exported it, and the names of its inputs in order.

    Raises:
        InputError: The program is not for `runtime`, or its file is damaged.
    """
    import torch

    from equipoise.runtimes.export import quiet

    check_program(program, runtime)
    buffer = io.BytesIO(program.file(FILE))
    try:
        with zipfile.ZipFile(buffer) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"{damaged} is damaged")
        buffer.seek(0)
        held = {NAMES: ""}
        with quiet():
            exported = torch.export.load(buffer, extra_files=held)
        return exported, json.loads(held[NAMES] or json.dumps([ONE]))
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{FILE} must be a file that torch.export can load: {reason}. Compile it again.") from error


def taken(inputs: Inputs, names: Sequence[str], batch: int | None) -> list[Tensor]:
    """Return inputs as tensors, in the order of `names`.

    Raises:
        InputError: One is missing or no array of numbers, or they are not of the only `batch` that may be run.
    """
    import torch

    given = feeds(inputs, names)
    if batch is not None and size(inputs) != batch:
        raise must_be("inputs", f"a batch of {batch}", size(inputs), "Load the program with batch=None for any size.")
    try:
        return [torch.from_numpy(value) for value in given.values()]
    except Exception as error:
        raise unfit(error) from error


def unfit(error: Exception) -> InputError:
    """Return what is raised of inputs that a program does not take."""
    reason = " ".join(str(error).split())[:200]
    return InputError(f"inputs must be of the shape and type the program was made for: {reason}")


def stored(program: ExportedProgram, extra: Mapping[str, str] | None = None) -> bytes:
    """Return the file of an exported program (which is changed), without what it remembers of this machine.

    Args:
        extra: Texts to keep in it, by name.
    """
    import torch

    from equipoise.runtimes.export import quiet

    for node in program.graph.nodes:
        for mark in _MACHINE_MARKS:
            node.meta.pop(mark, None)
    program.example_inputs = None
    buffer = io.BytesIO()
    with quiet():
        torch.export.save(program, buffer, extra_files=dict(extra) if extra else None)
    return buffer.getvalue()


class _Session:
    """Runs with its own number of threads; torch keeps that number for the whole process, so it is put back after each run."""

    def __init__(self, module: Any, names: list[str], threads: int, batch: int | None) -> None:
        self._module = module
        self._names = names
        self._threads = threads
        self._batch = batch

    def run(self, inputs: Inputs) -> NDArray[Any]:
        import torch

        given = taken(inputs, self._names, self._batch)
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            with torch.inference_mode():
                result: NDArray[Any] = self._module(*given).numpy()
        except Exception as error:
            raise unfit(error) from error
        finally:
            torch.set_num_threads(before)
        return result
