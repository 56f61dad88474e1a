"""How the nodes of an exported file are named after the modules whose code made them."""

from __future__ import annotations

import pytest
from onnx import NodeProto, helper

from equipoise.runtimes.export import _scope


@pytest.mark.parametrize(
    ("scopes", "module"),
    [
        ("['', 'writes.0.ask', 'linear_3']", "writes.0.ask"),
        ("['', 'forward.__closure__[0].cell_contents.logits', 'linear_3']", "logits"),
        ("['', 'forward.__closure__[0].cell_contents', 'add']", ""),
        ("['', '_guards', 'add']", ""),
        ("['add']", ""),
    ],
)
def test_a_node_is_named_after_its_module_wherever_torch_found_it(scopes: str, module: str) -> None:
    node: NodeProto = helper.make_node("MatMul", ["a", "b"], ["c"])
    node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=scopes)
    assert _scope(node) == module
