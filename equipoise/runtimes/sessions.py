"""ONNX files loaded: sessions of ONNX Runtime, one thread unless more are asked for, which print nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from equipoise.errors import InputError, must_be
from equipoise.runtimes.failures import failures

Providers = Mapping[str, Mapping[str, str]]
"""What computes, with its options; what the first cannot is left to the next."""
CPU: Providers = {"CPUExecutionProvider": {}}


def opened(content: bytes, *, threads: int = 1, providers: Providers = CPU) -> Any:
    """Return a session of a file that may be a stranger's: with all graph optimizations, and from its own bytes alone.

    Raises:
        InputError: It is damaged, or its tensors lie in other files.
    """
    _refuse_external_data(content)
    try:
        return session(content, threads=threads, providers=providers)
    except failures() as error:
        raise damaged(str(error)) from error


def session(content: bytes, *, threads: int = 1, basic: bool = False, providers: Providers = CPU) -> Any:
    """Return a session of a file that was made here; `basic` leaves the costly optimizations out. Raises one of `failures`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # every failure is raised; what it prints beside that would only tear a live table
    if basic:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return onnxruntime.InferenceSession(content, options, providers=[(name, dict(given)) for name, given in providers.items()])


def _refuse_external_data(content: bytes) -> None:
    """Refuse a file whose tensors lie in other files: they could name any path."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        graphs = [onnx.load_from_string(content).graph]
    except DecodeError as error:
        raise damaged(str(error)) from error
    while graphs:
        graph = graphs.pop()
        attributes = [attribute for node in graph.node for attribute in node.attribute]
        tensors = [*graph.initializer, *(a.t for a in attributes), *(t for a in attributes for t in a.tensors)]
        if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in tensors):
            raise must_be("model.onnx", "self-contained", "tensors in other files", "Export it with external_data=False.")
        graphs += [*(a.g for a in attributes if a.HasField("g")), *(g for a in attributes for g in a.graphs)]


def damaged(reason: str) -> InputError:
    """Return what is raised of a file that ONNX Runtime cannot load."""
    return InputError(f"model.onnx must be an ONNX file that ONNX Runtime can read: {reason[:200]}. Compile the program again.")
