"""ExecuTorch on the CPU: a ``.pte`` file whose operators XNNPACK runs, float or int8 by its own quantizer.

What phones and boards run. A program is planned for one sample: see `rows`. int8 is XNNPACK's symmetric scheme, weights per
channel, ranges from calibration, of the layers and what lies between them. The last linear layers, and in a graph with attention
all of them, round what they read in each sample's own range and give floats: scores of unlike scales are not rounded on one. What
the quantizer has no pattern for (embeddings, normalization) stays float, and layers of that kind are named.
"""

from __future__ import annotations

import functools
import importlib.util
import struct
import weakref
from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from equipoise.batch import Inputs
from equipoise.errors import InputError, missing_extra, must_be
from equipoise.records import Choice
from equipoise.runtimes.base import Program, Session, Source, check_program, check_schemes, precision_of
from equipoise.runtimes.between import between
from equipoise.runtimes.rows import hushed, names_of, run_rows
from equipoise.runtimes.single import Single, owner, scopes, single, weighs

if TYPE_CHECKING:
    from torch.export import ExportedProgram

FILE = "model.pte"
"""The program; beside it the names of several inputs."""

HEADER = struct.Struct("<4x4s4s4xQQQ")
"""Of a file: its two marks, how long the program is, where the segments of weights begin, and how long they are."""
MARKS = (b"ET12", b"eh00")

ROUNDED = ("conv", "linear")
"""Beginnings of the names of operators whose weights XNNPACK's quantizer rounds."""
ATTENTION = ("softmax", "_softmax", "scaled_dot_product", "layer_norm")
"""Beginnings of the names of operators that leave int8: where one lies between layers, only layers are rounded."""
NO_INT8 = "XNNPACK's quantizer has no int8 for it"


class ExecuTorch:
    """ExecuTorch with XNNPACK. See `base.Runtime` for the methods."""

    name = "executorch"
    precisions: tuple[Choice, ...] = (32, 8)
    runs_code = True
    """No code is in a file, but its reader trusts it: some that are damaged inside end the process."""
    libraries = ("torch", "executorch.extension.pybindings._C")

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
        samples = None if float_layers is None else one.samples(calibration, float_layers)
        left: dict[str, str] = {}
        try:
            with quiet(), hushed():
                exported = one.exported
                if samples is not None and float_layers is not None:
                    exported, left = _quantized(one, samples, float_layers)
                content = _lowered(exported)
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


def _lowered(exported: ExportedProgram) -> bytes:
    """Return the file of a graph, float or with its rounding written out."""
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    with torch.no_grad():
        lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    return bytes(lowered.to_executorch().buffer)


def _quantized(
    one: Single, samples: Sequence[tuple[NDArray[Any], ...]], float_layers: frozenset[str]
) -> tuple[ExportedProgram, dict[str, str]]:
    """Return the graph with its rounding written out, and why layers other than `float_layers` had to be left float."""
    import torch
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import ComposableQuantizer

    def quantizer(nodes: set[str], *, dynamic: bool) -> Any:
        """One that rounds these operators alone; it asks about their weights too."""
        how = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=dynamic)
        return XNNPACKQuantizer().set_global(how).set_filter_function(lambda x: x.op != "call_function" or x.name in nodes)

    graph = one.exported.module()
    weighted, layers, static, own = _roles(graph.graph, dict(one.model.named_buffers()), float_layers)
    exported = one.exported
    if layers:
        with torch.no_grad():
            both = ComposableQuantizer([quantizer(static, dynamic=False), quantizer(own, dynamic=True)])
            prepared = prepare_pt2e(graph, both)
            for sample in samples:
                prepared(*map(torch.from_numpy, sample))
            graph = convert_pt2e(prepared)
            exported = torch.export.export(graph, one.given)
    floats = {owner(node) for node in graph.graph.nodes if node.name in weighted and not _reads_integers(node)}
    return exported, dict.fromkeys(sorted(floats - {""}), NO_INT8)


def _reads_integers(node: Any) -> bool:
    """Whether the weights of an operator are integers."""
    return any(given.name.startswith("dequantize") and given.args[0].op == "get_attr" for given in node.all_input_nodes)


def _roles(
    graph: Any, buffers: Container[str], float_layers: frozenset[str]
) -> tuple[set[str], set[str], set[str], set[str]]:
    """Return the names of the nodes with weights, those of them to be rounded, all rounded in fixed ranges, or in each sample's.

    A product with a buffer (a Fourier transform, say) learned to bear no rounding, nor has what is made of it before a layer:
    see `layers.fixed_nodes`.
    """
    nodes = [node for node in graph.nodes if node.op == "call_function"]
    held = {node.name: node.target in buffers for node in graph.nodes if node.op == "get_attr"}
    fixed, weighted = set[str](), set[str]()
    for node in nodes:
        computed = {given.name for given in node.all_input_nodes} - held.keys()
        weights = [held[given.name] for given in node.all_input_nodes[:2] if given.name in held] if weighs(node) else []
        if any(weights) or (not weights and computed and computed <= fixed):
            fixed.add(node.name)
        elif weights and not any(f"{scope}.".startswith(f"{name}.") for scope in scopes(node) for name in float_layers):
            weighted.add(node.name)
    layers = {node.name for node in nodes if node.name in weighted and node.target.__name__.startswith(ROUNDED)}
    edges = [(node.name, [given.name for given in node.all_input_nodes], [node.name]) for node in nodes]
    middle, ends = between(edges, layers)
    attention = any(node.name in middle and node.target.__name__.startswith(ATTENTION) for node in nodes)
    alone = layers if attention else ends
    own = {node.name for node in nodes if node.name in alone and node.target.__name__.startswith("linear")}
    return weighted, layers, (layers if attention else layers | middle) - fixed - own, own
