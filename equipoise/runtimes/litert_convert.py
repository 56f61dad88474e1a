"""The other side of `litert`: run by the interpreter of an environment that holds litert-torch, where Equipoise is not.

It reads the path of a folder a line and writes ``model.tflite`` into each, made of ``model.pt2`` as ``order.json`` says; the
line it answers is JSON: ``left``, the layers that stayed float although int8 was asked for, or ``error``.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROUNDED = ("CONV_2D", "CONV_3D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED")
"""Operators whose weights are rounded, with ranges of their inputs from calibration."""
TABLES = ("EMBEDDING_LOOKUP", "GATHER")
"""Operators that look rows of weights up."""
OWN = ("FULLY_CONNECTED",)
"""Operators that can round their inputs in each sample's own range, and give floats."""
BETWEEN = (
    *("ADD", "MUL", "MEAN", "RELU", "RELU6", "LEAKY_RELU", "LOGISTIC", "HARD_SWISH", "MAX_POOL_2D", "AVERAGE_POOL_2D"),
    *("CONCATENATION", "SPLIT", "SLICE", "STRIDED_SLICE", "PAD", "PADV2", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"),
    *("RESHAPE", "TRANSPOSE", "SQUEEZE", "EXPAND_DIMS"),
)
"""Operators that are rounded between layers."""
ATTENTION = ("SOFTMAX", "RSQRT")
"""Where one of these lies between layers, int8 is left all the time: only operators with weights are rounded."""


def main() -> None:
    """Answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what the libraries print is no answer
    for line in sys.stdin:
        try:
            answer: dict[str, Any] = {"left": convert(Path(line.strip()))}
        except Exception as error:  # noqa: BLE001 - whatever it is, the other side tells it
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def convert(folder: Path) -> list[str]:
    """Write the file that the order in `folder` asks for; return the layers that stayed float all the same."""
    import litert_torch
    import numpy as np
    import torch

    order = json.loads((folder / "order.json").read_text())
    with np.load(folder / "samples.npz") as held:
        samples = [held[f"{place}"] for place in range(len(held.files))]
    module = torch.export.load(folder / "model.pt2").module()
    first = tuple(torch.from_numpy(each[:1]) for each in samples)
    with torch.no_grad():
        litert_torch.convert(module, first).export(str(folder / "model.tflite"))
    if not order["int8"]:
        return []
    content, left = quantized((folder / "model.tflite").read_bytes(), samples, order)
    (folder / "model.tflite").write_bytes(content)
    return left


def quantized(content: bytes, samples: Sequence[Any], order: Mapping[str, Any]) -> tuple[bytes, list[str]]:
    """Return the file in int8, and which layers stayed float all the same.

    Args:
        content: The float file.
        samples: For each input an array (N, ...): ranges are the least and the most that is seen.
        order: ``layers`` and ``float``: name -> what marks it in the names of the file; ``fixed``: marks of what is no layer.
    """
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import calibrator, quantizer, recipe_manager
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from ai_edge_quantizer.qtyping import TFLOperationName

    def widened(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
        return {**old, "min": np.minimum(old["min"], new["min"]), "max": np.maximum(old["max"], new["max"])}

    found = operators(content)
    for layer, mark in order["float"].items():
        if not any(re.search(mark, each["names"]) for each in found):
            raise ValueError(f"float_layers must be layers that LiteRT keeps apart; it has no {layer!r} of its own")
    weighted, static, own = roles(found, list(order["float"].values()), order["fixed"])
    recipe = recipe_manager.RecipeManager()
    recipe.add_quantization_config(".*", TFLOperationName.ALL_SUPPORTED, algorithm_key=AlgorithmName.NO_QUANTIZE)
    for each in found:
        exactly, kind = f"^{re.escape(each['scope'])}$", each["kind"]
        if each["scope"] in static:
            recipe.add_static_config(exactly, TFLOperationName.ALL_SUPPORTED, 8, 8)
        elif each["scope"] in own or (each["scope"] in weighted and kind in TABLES):
            recipe.add_dynamic_config(exactly, TFLOperationName(kind), 8)
    if not weighted:
        return content, []
    kinds = Interpreter(model_content=content).get_signature_runner().get_input_details()
    inputs = {f"args_{place}": value.astype(kinds[f"args_{place}"]["dtype"]) for place, value in enumerate(samples)}
    rows = [{name: value[row : row + 1] for name, value in inputs.items()} for row in range(len(samples[0]))]
    ranges = calibrator.Calibrator(content, num_threads=1, qsv_update_func=widened)
    ranges.calibrate({"serving_default": rows}, recipe)
    made = quantizer.Quantizer(bytearray(content), recipe.get_quantization_recipe()).quantize(ranges.get_model_qsvs())
    content = bytes(made.quantized_model)
    plain = [each["weights"] for each in operators(content) if each["scope"] in weighted and not each["narrow"]]
    return content, [name for name, mark in order["layers"].items() if any(re.search(mark, names) for names in plain)]


def roles(
    found: Sequence[Mapping[str, Any]], floats: Sequence[str], fixed: Sequence[str]
) -> tuple[set[str], set[str], set[str]]:
    """Return scopes: of operators whose weights may be rounded, of all rounded in fixed ranges, and in each sample's own."""
    spec = importlib.util.spec_from_file_location("between", Path(__file__).with_name("between.py"))
    assert spec is not None
    assert spec.loader is not None
    between = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(between)
    weighted, kept, made = set[str](), set[str](), set[str]()
    for each in found:
        named = each["weights"] if each["kind"] in (*ROUNDED, *TABLES) else ""
        after = not named and each["takes"] and made.issuperset(each["takes"])
        if after or (named and any(re.search(mark, named) for mark in fixed)):
            kept.add(each["scope"])  # a product with a buffer, or what is made of it before a layer
            made.update(each["gives"])
        elif named and not any(re.search(mark, each["names"]) for mark in floats):
            weighted.add(each["scope"])
    layers = {each["scope"] for each in found if each["scope"] in weighted and each["kind"] in ROUNDED}
    middle, ends = between.between([(each["scope"], each["takes"], each["gives"]) for each in found], layers)
    attention = any(each["scope"] in middle and each["kind"] in ATTENTION for each in found)
    own = {each["scope"] for each in found if each["scope"] in (layers if attention else ends) and each["kind"] in OWN}
    middle = {each["scope"] for each in found if each["scope"] in middle and each["kind"] in BETWEEN and not attention}
    return weighted, (layers | middle) - kept - own, own


def operators(content: bytes) -> list[dict[str, Any]]:
    """Return what each operator is: its kind, what it takes and gives, and the names of what it holds."""
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_quantizer.utils import tfl_flatbuffer_utils as files

    model = files.read_model(bytearray(content))
    kinds = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
    (graph,) = model.subgraphs
    found = []
    for operator in graph.operators:
        taken = [graph.tensors[place] for place in operator.inputs if place >= 0]
        held = [tensor for tensor in taken if model.buffers[tensor.buffer].data is not None]
        weights = [tensor for tensor in held if tensor.type in (schema.TensorType.FLOAT32, schema.TensorType.INT8)]
        code = model.operatorCodes[operator.opcodeIndex]
        gives = [graph.tensors[place] for place in operator.outputs]
        found.append(
            {
                "kind": kinds[max(code.builtinCode, code.deprecatedBuiltinCode)],
                "scope": files.get_op_scope(operator, graph.tensors),
                "takes": [tensor.name.decode() for tensor in taken if tensor not in held],
                "gives": [tensor.name.decode() for tensor in gives],
                "names": " ".join(tensor.name.decode() for tensor in (*held, *gives)),
                "weights": " ".join(tensor.name.decode() for tensor in weights[:1]),
                "narrow": any(tensor.type == schema.TensorType.INT8 for tensor in weights),
            }
        )
    return found


if __name__ == "__main__":
    main()
