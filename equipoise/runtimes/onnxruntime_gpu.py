"""ONNX Runtime on an NVIDIA GPU: by its own kernels (``cuda``), or by TensorRT's; in half precision where layers ask for it.

Eight bits are not offered: the CUDA provider has no kernels for the pairs of operators that int8 is written in, and what
TensorRT makes of it was not run.
"""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from equipoise.batch import Inputs
from equipoise.errors import InputError, must_be, unknown
from equipoise.records import Choice
from equipoise.runtimes.base import Program, Session, Source, check_program, check_schemes, feeds
from equipoise.runtimes.failures import failures
from equipoise.runtimes.onnxruntime import FILE, Loaded
from equipoise.runtimes.sessions import CPU, Providers, damaged, opened


class OnnxRuntimeCuda:
    """ONNX Runtime's CUDA provider. See `base.Runtime` for the methods."""

    name = "onnxruntime:cuda"
    precisions: tuple[Choice, ...] = (32, "fp16")
    runs_code = False
    provider = "CUDAExecutionProvider"
    options: Mapping[str, str] = {"use_tf32": "0", "cudnn_conv_algo_search": "EXHAUSTIVE"}

    def unavailable(self) -> str:
        """Return why the provider cannot be used, with the remedy; empty where it was seen to start."""
        return _missing(self.provider)

    def compile(
        self,
        source: Source,
        *,
        calibration: Inputs | None = None,
        float_layers: frozenset[str] | None = None,
        schemes: Mapping[str, Choice] | None = None,
    ) -> Program:
        """Return the exported file, the named layers in half precision.

        Raises:
            InputError: int8 was asked for, a scheme that it has not, or a layer that is not there.
        """
        held = check_schemes(self.name, self.precisions, schemes)
        if float_layers is not None:
            raise must_be(f"bits for {self.name}", "32 or fp16", 8, "Choose onnxruntime:cpu or openvino:cpu to run int8.")
        content = source.onnx()
        return Program(self.name, "mixed" if held else "fp32", {FILE: halved(content, frozenset(held)) if held else content})

    def load(self, program: Program, *, threads: int = 1, batch: int | None = None) -> Session:
        """Return a session that computes on the GPU; the batch axis stays free."""
        check_program(program, self.name)
        session = _opened(program.file(FILE), {self.provider: self.options}, threads)
        if self.provider not in session.get_providers():
            used = ", ".join(session.get_providers())
            raise must_be("this machine", f"one where ONNX Runtime can use its {self.provider}", used, _LIBRARIES)
        try:
            return _OnCard(session)
        except failures() as error:
            raise damaged(str(error)) from error


class _OnCard(Loaded):
    """A session that keeps its last request on the card."""

    device = "cuda"
    _last: Mapping[str, NDArray[Any]]
    _bound: Any

    def run(self, inputs: Inputs) -> NDArray[Any]:
        """Return the first output."""
        self._last, self._bound = feeds(inputs, self._inputs), None
        return super().run(inputs)

    def again(self) -> None:
        """See `base.Resident`."""
        import onnxruntime

        if self._bound is None:
            self._bound = self._session.io_binding()
            for name, value in self._last.items():
                self._bound.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(value, self.device, 0))
            self._bound.bind_output(self._outputs[0], self.device)
        self._session.run_with_iobinding(self._bound)
        self._bound.synchronize_outputs()


class OnnxRuntimeTensorRt(OnnxRuntimeCuda):
    """ONNX Runtime's TensorRT provider: an engine is built when a program is loaded, which takes up to minutes."""

    name = "onnxruntime:tensorrt"
    runs_code = False
    provider = "TensorrtExecutionProvider"
    options: Mapping[str, str] = {"trt_fp16_enable": "1"}


_LIBRARIES = "Install what that provider needs (CUDA and cuDNN, or TensorRT) in the versions that onnxruntime was built with."


def _opened(content: bytes, providers: Providers, threads: int) -> Any:
    """Return a session of these providers, or of the CPU where they do not start; ONNX Runtime tells that and goes on."""
    import onnxruntime

    with contextlib.redirect_stdout(io.StringIO()):
        onnxruntime.preload_dlls()
        return opened(content, threads=threads, providers={**providers, **CPU})


@functools.cache
def _missing(provider: str) -> str:
    """Return why a provider cannot be used here; it is listed wherever it was built, so it is made to start."""
    import onnxruntime
    from onnx import TensorProto, helper

    if provider not in onnxruntime.get_available_providers():
        lacks = f"onnxruntime {onnxruntime.__version__} has no {provider}"
        return f"{lacks}: on a machine with a GPU, pip install onnxruntime-gpu"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("input", "output")]
    graph = helper.make_graph([helper.make_node("Relu", ["input"], ["output"])], "start", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    try:
        there = _opened(model.SerializeToString(), {provider: {}}, 1).get_providers()
    except InputError as error:
        return f"its {provider} does not start: {error}"
    return "" if provider in there else f"its {provider} does not start here. {_LIBRARIES}"


def halved(content: bytes, layers: frozenset[str]) -> bytes:
    """Return an ONNX file in which these layers compute in half precision; it takes and gives floats as before.

    Where they are all that has weights, what lies between them is in half precision too, and nothing is converted on the way.

    Raises:
        InputError: A layer that is not there.
    """
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    from equipoise.runtimes.layers import layer_nodes

    known = layer_nodes(content)
    if lost := sorted(layers - known.keys()):
        raise unknown("schemes", lost[0], known)
    model: Any = onnx.load_from_string(content)
    tables = {name for node in model.graph.node if node.op_type == "Gather" for name in node.input}
    whole = layers >= {name for name in known if f"{name}.weight" not in tables}
    inside = {node for layer in layers for node in known[layer]}
    names = {node.name for node in model.graph.node}
    kept = [] if whole else [node.name for node in model.graph.node if node.name not in inside]
    made = OnnxModel(convert_float_to_float16(model, keep_io_types=True, node_block_list=kept))
    made.topological_sort()
    for number, node in enumerate(made.model.graph.node):  # what was put in has the name of what it reads, twice if two read it
        node.name = node.name if node.name in names else f"{node.name}/{number}"
    result: bytes = made.model.SerializeToString(deterministic=True)
    return result
