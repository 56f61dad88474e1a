"""PyTorch without a compiler: the exported operators, run one by one. The reference that the others are compared with."""

from __future__ import annotations

import io
import zipfile
from typing import Any

from numpy.typing import NDArray

from equipoise.errors import InputError, must_be
from equipoise.runtimes.base import Program, Session, Source, check_program

FILE = "model.pt2"
"""The one file of a program."""

_MACHINE_MARKS = ("stack_trace", "source_fn_stack", "from_node", "torch_fn")
"""What an exported graph remembers of the machine and the code it came from."""


class TorchEager:
    """PyTorch on the CPU, float only. See `base.Runtime` for the methods."""

    name = "torch"
    precisions = (32,)

    def unavailable(self) -> str:
        """Return an empty text: PyTorch is a core dependency."""
        return ""

    def compile(
        self, source: Source, *, calibration: NDArray[Any] | None = None, float_layers: frozenset[str] | None = None
    ) -> Program:
        """Return the module as a ``torch.export`` file with a free first axis.

        Raises:
            InputError: int8 was asked for, the source has no module, or its first axis is not free.
        """
        import torch

        from equipoise.runtimes.export import quiet

        if float_layers is not None:
            raise must_be("bits for torch", "32", 8, "Choose onnxruntime or openvino to run int8.")
        if source.model is None or source.example is None:
            raise must_be("source for torch", "one with a module and an example", "ONNX only", "Give Source(model=, example=).")
        example = source.example if len(source.example) > 1 else torch.cat((source.example, source.example))
        shapes = ({0: torch.export.Dim("batch")},)
        try:
            with quiet(), torch.no_grad():
                program = torch.export.export(source.model, (example[:2],), dynamic_shapes=shapes)
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"model must be one that torch.export takes with any batch size: {reason}.") from error
        for node in program.graph.nodes:
            for mark in _MACHINE_MARKS:
                node.meta.pop(mark, None)
        program.example_inputs = None
        buffer = io.BytesIO()
        with quiet():
            torch.export.save(program, buffer)
        return Program(self.name, "fp32", {FILE: buffer.getvalue()})

    def load(self, program: Program, *, threads: int = 1, batch: int | None = None) -> Session:
        """Return a session; `batch` only fixes what it accepts, eager code has nothing to plan."""
        import torch

        from equipoise.runtimes.export import quiet

        check_program(program, self.name)
        buffer = io.BytesIO(program.file(FILE))
        try:
            with zipfile.ZipFile(buffer) as archive:
                damaged = archive.testzip()
            if damaged is not None:
                raise zipfile.BadZipFile(f"{damaged} is damaged")
            buffer.seek(0)
            with quiet():
                module = torch.export.load(buffer).module(check_guards=False)  # the guards cost a fifth of a small model
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{FILE} must be a file that torch.export can load: {reason}. Compile it again.") from error
        return _Session(module, threads, batch)


class _Session:
    """Runs with its own number of threads; torch keeps that number for the whole process, so it is put back after each run."""

    def __init__(self, module: Any, threads: int, batch: int | None) -> None:
        self._module = module
        self._threads = threads
        self._batch = batch

    def run(self, inputs: NDArray[Any]) -> NDArray[Any]:
        import torch

        if self._batch is not None and len(inputs) != self._batch:
            raise must_be("inputs", f"a batch of {self._batch}", len(inputs), "Load the program with batch=None for any size.")
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            with torch.inference_mode():
                result: NDArray[Any] = self._module(torch.from_numpy(inputs)).numpy()
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"inputs must be of the shape and type the program was made for: {reason}") from error
        finally:
            torch.set_num_threads(before)
        return result
