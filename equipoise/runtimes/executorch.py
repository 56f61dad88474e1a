"""ExecuTorch on the CPU: a ``.pte`` file whose operators XNNPACK runs, float or int8 by its own quantizer.

What phones and boards run. A program is planned for one sample: see `rows`. int8 is XNNPACK's symmetric scheme, weights per
channel, ranges from calibration; what its quantizer has no pattern for (embeddings, normalization) stays float and is named.
"""

from __future__ import annotations

import functools
import importlib.util
import struct
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from equipoise.batch import Inputs
from equipoise.errors import InputError, missing_extra, must_be
from equipoise.records import Choice
from equipoise.runtimes.base import Program, Session, Source, check_program, check_schemes, precision_of
from equipoise.runtimes.rows import Single, check_float_layers, hushed, names_of, run_rows, single

if TYPE_CHECKING:
    from torch import nn

FILE = "model.pte"
"""The program; beside it the names of several inputs."""

HEADER = struct.Struct("<4x4s4s4xQQQ")
"""Of a file: its two marks, how long the program is, where the segments of weights begin, and how long they are."""
MARKS = (b"ET12", b"eh00")

WEIGHTED = ("conv", "linear", "embedding", "matmul")
"""Beginnings of the names of operators with weights, in an exported graph."""


class ExecuTorch:
    """ExecuTorch with XNNPACK. See `base.Runtime` for the methods."""

    name = "executorch"
    precisions: tuple[Choice, ...] = (32, 8)
    runs_code = True
    """No code is in a file, but its reader trusts it: some that are damaged inside end the process."""
    library = "executorch.extension.pybindings._C"

    def unavailable(self) -> str:
        """Return which package is missing, with the line that installs it."""
        for package in ("executorch", "torchao"):
            if importlib.util.find_spec(package) is None:
                return str(missing_extra(package, "executorch"))
        return ""

    def compile(
        self,
        source: Source,
        *,
        calibration: Inputs | None = None,
        float_layers: frozenset[str] | None = None,
        schemes: Mapping[str, Choice] | None = None,
    ) -> Program:
        """Return the module as XNNPACK runs it for one sample, quantized when `float_layers` is a set.

        Raises:
            InputError: The source has no module, or ExecuTorch cannot express it; else as `base.Runtime.compile`.
        """
        from equipoise.runtimes.export import quiet

        check_schemes(self.name, self.precisions, schemes)
        one = single(source, self.name)
        if float_layers is not None:
            calibration = check_float_layers(one.model, calibration, float_layers)
        left: dict[str, str] = {}
        try:
            with quiet(), hushed():
                if float_layers is None:
                    content = _lowered(one.model, one)
                else:
                    content, left = _quantized(one, calibration, float_layers)
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"model must be one that ExecuTorch takes; got {type(one.model).__name__}: {reason}") from error
        return Program(self.name, precision_of(float_layers, None), {FILE: content, **one.files}, left)

    def load(self, program: Program, *, threads: int = 1, batch: int | None = None) -> Session:
        """Return a session that runs sample by sample, whatever the `batch`."""
        check_program(program, self.name)
        content, names = program.file(FILE), names_of(program)
        _check_whole(content)
        return _Session(content, names, threads)


class _Session:
    """A loaded method. ExecuTorch has one pool of threads for all; one of another size makes sessions load again."""

    _loaded: weakref.WeakSet[_Session] = weakref.WeakSet()

    def __init__(self, content: bytes, names: tuple[str, ...], threads: int) -> None:
        self._content, self._names, self._threads = content, names, threads
        self._program: Any = None
        self._method: Any = None
        self._open()

    def run(self, inputs: Inputs) -> NDArray[Any]:
        if self._method is None or _library()._threadpool_get_thread_count() != self._threads:
            self._open()
        return run_rows(inputs, self._names, self._one)

    def _one(self, arrays: list[NDArray[Any]]) -> NDArray[Any]:
        import torch

        for name, array, shape in zip(self._names, arrays, self._shapes, strict=True):
            if array.shape != shape:  # told here: ExecuTorch would print what it says
                raise must_be(f"inputs[{name!r}]", f"of samples {shape[1:]}", array.shape[1:], "Its shape is fixed in the file.")
        try:
            result: NDArray[Any] = self._method(list(map(torch.from_numpy, arrays)))[0].numpy()
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"inputs must be of the shape and type the program was made for: {reason}") from error
        return result

    def _open(self) -> None:
        library = _library()
        if library._threadpool_get_thread_count() != self._threads:
            for session in list(_Session._loaded):
                session._close()  # what it holds was made for the threads that now end
            with hushed():
                library._unsafe_reset_threadpool(self._threads)
        try:
            with hushed():
                verification = library.Verification.InternalConsistency
                self._program = library._load_program_from_buffer(self._content, program_verification=verification)
                self._method = self._program.load_method("forward")
            meta = self._method.method_meta()
            self._shapes = [tuple(meta.input_tensor_meta(place).sizes()) for place in range(meta.num_inputs())]
        except Exception as error:
            raise _damaged(" ".join(str(error).split())[:200]) from error
        if len(self._shapes) != len(self._names):
            raise _damaged(f"it takes {len(self._shapes)} inputs, and {len(self._names)} are named")
        _Session._loaded.add(self)

    def _close(self) -> None:
        self._method = self._program = None


@functools.cache
def _library() -> Any:
    """The runtime alone: ``executorch.runtime`` loads the whole compiler beside it, 5.7 s in place of 3 ms."""
    import torch  # noqa: F401 - it loads the libraries that the next one needs

    with hushed():
        from executorch.extension.pybindings import _C

        _C._threadpool_get_thread_count()  # the first call makes the pool, and tells of the CPU meanwhile
    return _C


def _check_whole(content: bytes) -> None:
    """Raise `InputError` where a file is not as long as it says: its reader would look for weights behind its end."""
    if len(content) < HEADER.size:
        raise _damaged("it is too short")
    *marks, program, begin, segments = HEADER.unpack_from(content)
    if tuple(marks) != MARKS:
        raise _damaged("it does not begin as one does")
    if len(content) < max(program, begin + segments):
        raise _damaged(f"it holds {len(content):,} bytes of {max(program, begin + segments):,}")


def _damaged(reason: str) -> InputError:
    return InputError(f"{FILE} must be a file that ExecuTorch can read: {reason}. Compile the program again.")


def _lowered(model: nn.Module, one: Single) -> bytes:
    """Return the file of a module, float or with its rounding written out."""
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    with torch.no_grad():
        exported = torch.export.export(model, one.given)
        lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    return bytes(lowered.to_executorch().buffer)


def _quantized(one: Single, calibration: Inputs, float_layers: frozenset[str]) -> tuple[bytes, dict[str, str]]:
    """Return the file with all layers but these in int8, and why others had to be left float too."""
    import torch
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    def wanted(node: Any) -> bool:
        return not any(name == layer or name.startswith(f"{layer}.") for name in _modules(node) for layer in float_layers)

    with torch.no_grad():
        graph = torch.export.export(one.model, one.given).module()
        nodes = [node for node in graph.graph.nodes if node.op == "call_function" and node.name.startswith(WEIGHTED)]
        layers = {name for node in nodes if wanted(node) for name in _modules(node)[-1:] if name}
        quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
        quantizer.set_filter_function(wanted)
        prepared = prepare_pt2e(graph, quantizer)
        for sample in one.samples(calibration):
            prepared(*map(torch.from_numpy, sample))
        rounded = convert_pt2e(prepared)
        done = {
            name
            for node in rounded.graph.nodes
            if any(given.name.startswith("dequantize_per_channel") for given in node.all_input_nodes)
            for name in _modules(node)[-1:]
        }
        if nodes and not done:  # nothing with weights is left to quantize
            return _lowered(one.model, one), dict.fromkeys(sorted(layers), NO_INT8)
        return _lowered(rounded, one), dict.fromkeys(sorted(layers - done), NO_INT8)


NO_INT8 = "XNNPACK's quantizer has no int8 for it"


def _modules(node: Any) -> list[str]:
    """Dotted names of the modules whose code a node is, outermost first."""
    return [name for name, _ in (node.meta.get("nn_module_stack") or {}).values()]
