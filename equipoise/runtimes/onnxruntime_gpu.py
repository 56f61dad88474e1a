"""ONNX Runtime on an NVIDIA GPU: by its own kernels (``cuda``), or by TensorRT's; in half precision where layers ask for it.

Eight bits are not offered: the CUDA provider has no kernels for the pairs of operators that int8 is written in, and what
TensorRT makes of it was not run.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from equipoise.batch import Inputs
from equipoise.errors import must_be, unknown
from equipoise.records import Choice
from equipoise.runtimes.base import Program, Session, Source, check_program, check_schemes, feeds
from equipoise.runtimes.failures import failures
from equipoise.runtimes.onnxruntime import FILE, Loaded
from equipoise.runtimes.sessions import CPU, damaged, opened


class OnnxRuntimeCuda:
    """ONNX Runtime's CUDA provider. See `base.Runtime` for the methods."""

    name = "onnxruntime:cuda"
    precisions: tuple[Choice, ...] = (32, "fp16")
    runs_code = False
    provider = "CUDAExecutionProvider"
    options: Mapping[str, str] = {"use_tf32": "0", "cudnn_conv_algo_search": "EXHAUSTIVE"}

    def unavailable(self) -> str:
        """Return why the provider cannot be used, with the remedy; empty where it can."""
        import onnxruntime

        if self.provider in onnxruntime.get_available_providers():
            return ""
        lacks = f"onnxruntime {onnxruntime.__version__} has no {self.provider}"
        return f"{lacks}: on a machine with a GPU, pip install onnxruntime-gpu"

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
        import onnxruntime

        check_program(program, self.name)
        with contextlib.redirect_stdout(io.StringIO()):  # it tells what it does not find, and goes on: see below
            onnxruntime.preload_dlls()
            session = opened(program.file(FILE), threads=threads, providers={self.provider: self.options, **CPU})
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


_LIBRARIES = "It fell back to the CPU: install what the provider needs (CUDA, cuDNN), as onnxruntime's own message says."


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
    kept = [] if whole else [node.name for node in model.graph.node if node.name not in inside]
    made = OnnxModel(convert_float_to_float16(model, keep_io_types=True, node_block_list=kept))
    made.topological_sort()
    result: bytes = made.model.SerializeToString(deterministic=True)
    return result
