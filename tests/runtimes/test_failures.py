"""Every way in which a program fails to load or to run is an `InputError`, whatever the runtime raised."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from equipoise import runtimes
from equipoise.errors import InputError
from equipoise.runtimes import Program
from equipoise.runtimes.failures import failures
from equipoise.runtimes.onnxruntime import FILE
from equipoise.runtimes.torch_eager import FILE as TORCH_FILE

ONES = np.ones((2, 4), np.float32)


def value(name: str, *shape: Any, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def program(nodes: list[onnx.NodeProto], *, inputs: Any = None, output: Any = None, opset: int = 20, ir: int = 10) -> Program:
    taken = inputs or [value("input", "batch", 4)]
    graph = helper.make_graph(nodes, "g", taken, [output or value("output", None, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)
    return Program("onnxruntime", "fp32", {FILE: model.SerializeToString()})


def node(kind: str, *inputs: str, domain: str = "", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, list(inputs), ["output"], domain=domain, **attributes)


UNLOADABLE = {
    "an operator that is not there": program([node("Nonsense", "input")]),
    "a domain that is not there": program([node("Relu", "input", domain="elsewhere")]),
    "an opset of the future": program([node("Relu", "input")], opset=999),
    "a format of the future": program([node("Relu", "input")], ir=999),
    "a tensor that nobody makes": program([node("Add", "input", "ghost")]),
    "a missing attribute": program([node("Cast", "input")]),
    "a type without a kernel": program(
        [node("Conv", "input", "input")], inputs=[value("input", 1, 1, 1, kind=TensorProto.DOUBLE)]
    ),
    "no input": program([], inputs=[]),
    "nothing": Program("onnxruntime", "fp32", {FILE: b""}),
    "noise": Program("onnxruntime", "fp32", {FILE: bytes(range(256)) * 8}),
    "text": Program("onnxruntime", "fp32", {FILE: "ünïcode".encode() * 40}),
}


@pytest.mark.parametrize("name", UNLOADABLE)
def test_a_file_that_cannot_be_loaded_is_told(name: str) -> None:
    with pytest.raises(InputError, match=r"model\.onnx must be"):
        runtimes.get("onnxruntime").load(UNLOADABLE[name])


SEQUENCE = helper.make_tensor_sequence_value_info("output", TensorProto.FLOAT, None)
UNRUNNABLE = {
    "a reshape that does not fit": program(
        [
            helper.make_node("Constant", [], ["to"], value=helper.make_tensor("t", TensorProto.INT64, [1], [7])),
            node("Reshape", "input", "to"),
        ]
    ),
    "an index out of range": program(
        [
            helper.make_node("Constant", [], ["at"], value=helper.make_tensor("t", TensorProto.INT64, [1], [99])),
            node("Gather", "input", "at"),
        ]
    ),
    "a result that is no tensor": program([node("SequenceConstruct", "input")], output=SEQUENCE),
}


@pytest.mark.parametrize("name", UNRUNNABLE)
def test_a_file_that_cannot_be_run_is_told(name: str) -> None:
    with pytest.raises(InputError):
        runtimes.get("onnxruntime").load(UNRUNNABLE[name]).run(ONES)


@pytest.mark.parametrize("inputs", [ONES[:, :3], ONES.astype(np.float64), ONES[0], None, [["a"]]], ids=str)
def test_inputs_that_do_not_fit_are_told(inputs: Any) -> None:
    session = runtimes.get("onnxruntime").load(program([node("Relu", "input")]))
    assert np.array_equal(session.run(ONES), ONES)
    with pytest.raises(InputError, match="inputs must be of the shape and type"):
        session.run(inputs)


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"\x80\x05K\x00.", bytes(4096)], ids=["empty", "zip", "pickle", "zeros"]
)
def test_a_torch_file_that_cannot_be_loaded_is_told(content: bytes) -> None:
    with pytest.raises(InputError, match=r"model\.pt2 must be"):
        runtimes.get("torch").load(Program("torch", "fp32", {TORCH_FILE: content}))


def test_a_zip_with_other_things_in_it_is_told() -> None:
    import io
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/version", "0")
        archive.writestr("archive/data.pkl", b"\x80\x05K\x00.")
    with pytest.raises(InputError, match=r"model\.pt2 must be"):
        runtimes.get("torch").load(Program("torch", "fp32", {TORCH_FILE: buffer.getvalue()}))


@pytest.mark.parametrize("content", [b"", b"<net/>", b"<net name='x' version='11'><layers/></net>", b"\xff\xfe"], ids=str)
def test_an_openvino_file_that_cannot_be_loaded_is_told(content: bytes) -> None:
    if runtimes.get("openvino").unavailable():
        pytest.skip("needs openvino")
    with pytest.raises(InputError):
        runtimes.get("openvino").load(Program("openvino", "fp32", {"model.xml": content, "model.bin": b""}))


def test_all_kinds_of_failure_are_known() -> None:
    names = {kind.__name__ for kind in failures()}
    assert names >= {"Fail", "InvalidArgument", "InvalidGraph", "NotImplemented", "RuntimeException", "EPFail", "NoSuchFile"}
    assert AssertionError not in failures()
