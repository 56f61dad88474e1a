"""An ONNX file that takes its way by what it sees: an early answer where that is sure, else the rest of the operators."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, checker, helper, load_from_string, numpy_helper

from equipoise.errors import must_be


def branched(content: bytes, *, threshold: float) -> bytes:
    """Return a file that computes what the early scores need, and the rest only where a sample is not sure of them.

    Args:
        content: Its one output (N, 2 C) joins the scores of the whole model and the early ones.
        threshold: Largest class probability of the early scores, from which they are the answer (N, C). Of several samples
            all must reach it.
    Raises:
        InputError: The file's output joins no two tensors.
    """
    model = load_from_string(content)
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    last = makers.get(graph.output[0].name)
    if last is None or last.op_type != "Concat" or len(last.input) != 2:
        raise must_be("content", "a file whose output joins two tensors", last.op_type if last else "none", "Export an Exit.")
    whole, early = last.input
    first = _needed(early, makers)
    rest = [node for node in graph.node if node.output[0] in _needed(whole, makers) - first]
    before = [node for node in graph.node if node.output[0] in first]
    graph.output[0].type.tensor_type.shape.dim[1].dim_value //= 2
    own = _own(model, rest, before)
    taken = f"{early}/taken"
    later = helper.make_graph(rest, "rest", [], [_scores(whole)], own)
    now = helper.make_graph([helper.make_node("Identity", [early], [taken], name=taken)], "early", [], [_scores(taken)])
    names = [f"{early}/{part}" for part in ("shares", "largest", "least", "threshold", "sure", "classes")]
    shares, largest, least, edge, sure, classes = names
    choose = [
        helper.make_node("Softmax", [early], [shares], name=shares, axis=1),
        helper.make_node("ReduceMax", [shares, classes], [largest], name=largest, keepdims=0),
        helper.make_node("ReduceMin", [largest], [least], name=least, keepdims=0),
        helper.make_node("GreaterOrEqual", [least, edge], [sure], name=sure),
        helper.make_node("If", [sure], [graph.output[0].name], name="exit", then_branch=now, else_branch=later),
    ]
    inside = {tensor.name for tensor in own}
    kept = [tensor for tensor in graph.initializer if tensor.name not in inside]
    kept += [numpy_helper.from_array(np.array(threshold, np.float32), edge), numpy_helper.from_array(np.array([1]), classes)]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend([*before, *choose])
    graph.initializer.extend(kept)
    checker.check_model(model)
    made: bytes = model.SerializeToString(deterministic=True)
    return made


def _needed(name: str, makers: dict[str, NodeProto]) -> set[str]:
    """First outputs of the operators that a tensor is made by."""
    waiting, found = [name], set[str]()
    while waiting:
        node = makers.get(waiting.pop())
        if node is not None and node.output[0] not in found:
            found.add(node.output[0])
            waiting += node.input
    return found


def _own(model: ModelProto, rest: list[NodeProto], before: list[NodeProto]) -> list[TensorProto]:
    """The tensors that the rest alone reads: they lie in it, where a runtime prepares them as in any graph."""
    others = {name for node in before for name in node.input}
    read = {name for node in rest for name in node.input} - others
    return [tensor for tensor in model.graph.initializer if tensor.name in read]


def _scores(name: str) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
