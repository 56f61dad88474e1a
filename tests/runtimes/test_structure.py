"""What is read off an ONNX file without running it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from equipoise.runtimes.structure import faults, layer_bits, parameters


def model(*nodes: onnx.NodeProto, **tensors: np.ndarray) -> onnx.ModelProto:  # type: ignore[type-arg]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in ("input", "output")]
    held = [numpy_helper.from_array(value, name.replace("__", ".")) for name, value in tensors.items()]
    graph = helper.make_graph(list(nodes), "tiny", ends[:1], ends[1:], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def node(kind: str, *names: str, domain: str = "", **attributes: object) -> onnx.NodeProto:
    return helper.make_node(kind, list(names[:-1]), [names[-1]], domain=domain, **attributes)


WEIGHT = np.arange(9, dtype=np.float32).reshape(3, 3)


def test_an_honest_file_has_no_faults_and_unused_domains_do_not_count() -> None:
    found = model(node("MatMul", "input", "fc.weight.T", "output"), fc__weight__T=WEIGHT)
    found.opset_import.append(helper.make_opsetid("pkg.unused", 1))
    assert faults(found.SerializeToString()) == []
    assert layer_bits(found.SerializeToString()) == {"fc": 32}
    assert np.array_equal(parameters(found.SerializeToString())["fc.weight"].value, WEIGHT.T)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (node("RandomNormalLike", "input", "output"), "at random"),
        (node("Bernoulli", "input", "output"), "at random"),
        (node("Multinomial", "input", "output"), "at random"),
        (node("Dropout", "input", "r", "t", "output"), "at random"),
        (node("Relu", "input", "output", domain="evil.corp"), "evil.corp"),
        (node("Relu", "input", "output", domain="ai.onnx.ml"), "ai.onnx.ml"),
    ],
)
def test_operators_that_have_no_place_are_named(bad: onnx.NodeProto, message: str) -> None:
    found = model(bad, r=np.float32(0.5).reshape(()), t=np.array(True))
    assert message in "; ".join(faults(found.SerializeToString()))


def test_they_are_found_inside_branches_too() -> None:
    inner = model(node("RandomUniformLike", "input", "output")).graph
    found = model(helper.make_node("If", ["c"], ["output"], then_branch=inner, else_branch=inner), c=np.array(True))
    assert "at random" in "; ".join(faults(found.SerializeToString()))
    deep = inner
    for _ in range(12):
        deep = model(helper.make_node("If", ["c"], ["output"], then_branch=deep, else_branch=deep)).graph
    found.graph.CopyFrom(deep)
    assert "without end" in "; ".join(faults(found.SerializeToString()))


def test_data_outside_and_tensors_larger_than_the_file_are_named() -> None:
    found = model(node("MatMul", "input", "w", "output"), w=WEIGHT)
    tensor = found.graph.initializer[0]
    tensor.dims[:] = [2**40, 2**20]
    assert "more than the file holds" in "; ".join(faults(found.SerializeToString()))
    tensor.dims[:] = [3, 3]
    tensor.external_data.add(key="location", value="/etc/passwd")
    assert "in another file" in "; ".join(faults(found.SerializeToString()))


@pytest.mark.parametrize("content", [b"", b"\xff" * 50, b"PK\x03\x04", b"{}"])
def test_what_is_no_onnx_file_is_told(content: bytes) -> None:
    assert "an ONNX file" in faults(content)[0]


def test_integers_are_turned_back_by_the_graphs_own_scales() -> None:
    integers, scale, zero = np.array([[1, -2, 3]] * 3, np.int8), np.array([0.5, 1, 2], np.float32), np.zeros(3, np.int8)
    found = model(
        node("DequantizeLinear", "fc.weight_quantized", "s", "z", "w", axis=0),
        node("Gemm", "input", "w", "output", transB=1),
        fc__weight_quantized=integers,
        s=scale,
        z=zero,
    ).SerializeToString()
    stored = parameters(found)["fc.weight"]
    assert np.array_equal(stored.value, integers * scale[:, None])
    assert np.array_equal(stored.step[:, 0], scale)
    assert stored.bits == 8
    assert layer_bits(found) == {"fc": 8}


def test_two_numbers_of_four_bits_lie_in_a_byte() -> None:
    found = model(node("DequantizeLinear", "q", "s", "w"), node("MatMul", "input", "w", "output"), s=np.float32(1).reshape(()))
    held = helper.make_tensor("q", TensorProto.INT4, [3, 4000], bytes(6000), raw=True)
    found.graph.initializer.append(held)
    assert len(found.SerializeToString()) < 3 * 4000
    assert faults(found.SerializeToString()) == []
    held.dims[:] = [3, 40000]
    found.graph.initializer[1].CopyFrom(held)
    assert "more than the file holds" in "; ".join(faults(found.SerializeToString()))
