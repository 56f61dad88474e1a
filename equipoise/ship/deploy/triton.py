"""A model repository for NVIDIA Triton: one model, a rung as each of its versions, the best as the latest.

References:
    Triton, "Model Repository" and "Model Configuration": https://docs.nvidia.com/deeplearning/triton-inference-server
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from onnx import TensorProto, load_from_string

from equipoise.errors import InputError
from equipoise.ship.artifact import Artifact
from equipoise.ship.deploy.ladder import Rungs

MOST = 16
"""Requests that one run may answer, where the file leaves its batch open."""
BACKENDS = {"onnxruntime": "onnxruntime", "openvino": "openvino"}
"""Our runtime -> Triton's backend."""
TYPES = {
    TensorProto.FLOAT: "TYPE_FP32", TensorProto.FLOAT16: "TYPE_FP16", TensorProto.DOUBLE: "TYPE_FP64",
    TensorProto.INT64: "TYPE_INT64", TensorProto.INT32: "TYPE_INT32", TensorProto.INT16: "TYPE_INT16",
    TensorProto.INT8: "TYPE_INT8", TensorProto.UINT8: "TYPE_UINT8", TensorProto.BOOL: "TYPE_BOOL",
}  # fmt: skip

Tensor = tuple[str, str, tuple[int, ...]]
"""Name, type and axes, -1 where one is free."""


def files(rungs: Rungs) -> dict[str, bytes]:
    """Return the repository's files; the rungs' folders stay beside it, for `verify`.

    Raises:
        InputError: A runtime that Triton has no backend for, or rungs that differ in their inputs or outputs.
    """
    runtimes = {artifact.program.runtime for artifact in rungs.artifacts}
    if len(runtimes) > 1 or not runtimes <= BACKENDS.keys():
        raise InputError(f"Triton serves {' or '.join(BACKENDS)}; this front is of {', '.join(sorted(runtimes))}.")
    shapes = [_shapes(artifact) for artifact in rungs.artifacts]
    if any(shape != shapes[0] for shape in shapes):
        raise InputError("versions of one Triton model take and give the same; these rungs do not. Export them one by one.")
    made: dict[str, bytes] = {}
    told: dict[str, str] = {}
    for version, artifact in zip(range(len(shapes), 0, -1), rungs.artifacts, strict=True):
        for name, content in artifact.program.files.items():
            made[f"repository/{rungs.name}/{version}/{name}"] = content
        told[f"rung_{version}"] = f"{artifact.path.name}: drop {artifact.promise['drop']}"
    made[f"repository/{rungs.name}/config.pbtxt"] = _config(rungs.name, runtimes.pop(), *shapes[0], told).encode()
    return made


def _shapes(artifact: Artifact) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return inputs and outputs as the ONNX file tells them: of the program, or of the same plan beside it."""
    graph = load_from_string(artifact.read("model.onnx")).graph
    held = {tensor.name for tensor in graph.initializer}
    return tuple(_tensor(v) for v in graph.input if v.name not in held), tuple(_tensor(v) for v in graph.output)


def _tensor(value: Any) -> Tensor:
    kind = value.type.tensor_type
    if kind.elem_type not in TYPES:
        raise InputError(f"{value.name} is of a type that Triton does not take. Serve it with `equipoise serve`.")
    return value.name, TYPES[kind.elem_type], tuple(axis.dim_value or -1 for axis in kind.shape.dim)


def _config(name: str, runtime: str, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...], told: Mapping[str, str]) -> str:
    """Return config.pbtxt; axes are told without the batch where it is open, as Triton wants them."""
    batched = all(axes[:1] == (-1,) for _, _, axes in (*inputs, *outputs))
    lines = [f"name: {_text(name)}", f"backend: {_text(BACKENDS[runtime])}", f"max_batch_size: {MOST if batched else 0}"]
    for word, tensors in (("input", inputs), ("output", outputs)):
        for tensor, kind, axes in tensors:
            dims = ", ".join(map(str, axes[1:] if batched else axes))
            lines.append(f"{word} {{ name: {_text(tensor)} data_type: {kind} dims: [ {dims} ] }}")
    lines += ["dynamic_batching { }"] if batched else []
    lines += ["version_policy { all { } }", "instance_group { count: 1 kind: KIND_CPU }"]
    threads = {"intra_op_thread_count": "1"} if runtime == "onnxruntime" else {}
    for key, value in {**threads, **told}.items():
        lines.append(f"parameters {{ key: {_text(key)} value {{ string_value: {_text(value)} }} }}")
    return "\n".join(lines) + "\n"


def _text(value: str) -> str:
    return json.dumps(value)
