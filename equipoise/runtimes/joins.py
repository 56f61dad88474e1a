"""Where a perceptron meets another branch: joins that OpenVINO's CPU plugin would merge, and die of it.

Two products with constant weights, each with a bias, and elementwise work on two axes become one kernel there (its pass
``TokenizeMLPSeqSnippets``). If the result then meets another branch elementwise, as in a residual perceptron or a gate,
compiling it for a batch of up to 8 ends the process by SIGSEGV (2026.4). The pass takes tensors of two axes alone, so such a
join is made on three: the same numbers, and no slower than the same sums in an order that it survives (48 µs and 49, AVX2).
"""

from __future__ import annotations

from typing import Any

JOINS = ("Add", "Subtract", "Multiply", "Divide", "Maximum", "Minimum", "SquaredDifference", "Power", "Mod")
"""Elementwise operators of two values."""
PRODUCTS = 2
"""Products in a row, from which on they are one kernel."""


def lift_joins(model: Any) -> None:
    """Make the joins of an OpenVINO model that follow a perceptron on three axes, in place."""
    from openvino import opset13

    axis = opset13.constant([1], dtype="int64")
    products: dict[str, int] = {}  # node -> products in a row behind it; none where no input of the model has a part in it
    for node in model.get_ordered_ops():
        values = node.input_values()
        computed = [products[name] for value in values if (name := value.get_node().get_name()) in products]
        if node.get_type_name() == "Constant" or (values and not computed):
            continue
        row = computed[0] if len(computed) == 1 else 0
        products[node.get_name()] = row + (node.get_type_name() == "MatMul" and len(computed) == 1)
        join = node.get_type_name() in JOINS and len(computed) > 1 and _axes(node.output(0)) == 2
        if not join or max(computed) < PRODUCTS:
            continue
        result = node.output(0)
        names, readers = result.get_names(), result.get_target_inputs()
        node.set_arguments([opset13.unsqueeze(value, axis).output(0) if _axes(value) == 2 else value for value in values])
        node.validate_and_infer_types()
        lowered = opset13.squeeze(node, axis)
        result.set_names(set())
        lowered.output(0).set_names(names)
        products[lowered.get_name()] = 0
        for reader in readers:
            reader.replace_source_output(lowered.output(0))


def _axes(value: Any) -> int:
    """How many axes a value has, -1 where that is not known."""
    shape = value.get_partial_shape()
    return len(shape) if shape.rank.is_static else -1
