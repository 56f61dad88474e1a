"""The other side of `litert`: run by the interpreter of an environment that holds litert-torch, where Equipoise is not.

It reads the path of a folder a line and writes ``model.tflite`` into each, made of ``model.pt2`` as ``order.json`` says; the line
it answers is JSON: ``left``, the layers that stayed float although int8 was asked for, or ``error``.
"""

import json
import os
import re
import sys
from pathlib import Path

WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED", "BATCH_MATMUL", "EMBEDDING_LOOKUP", "GATHER")


def main():
    """Answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what the libraries print is no answer
    for line in sys.stdin:
        try:
            answer = {"left": convert(Path(line.strip()))}
        except Exception as error:  # noqa: BLE001 - whatever it is, the other side tells it
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def convert(folder):
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
    if order["float"] is None:
        return []
    content, left = quantized((folder / "model.tflite").read_bytes(), samples, order["layers"], order["float"])
    (folder / "model.tflite").write_bytes(content)
    return left


def quantized(content, samples, layers, floats):
    """Return the file in int8, and which layers stayed float.

    Args:
        samples: For each input an array (N, ...): ranges are the least and the most that is seen.
        layers: Layer -> what marks it in the names of the file.
        floats: Those to leave as they are.
    """
    import numpy as np
    from ai_edge_quantizer import calibrator, quantizer, recipe_manager
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from ai_edge_quantizer.qtyping import TFLOperationName

    def widened(old, new):
        return {**old, "min": np.minimum(old["min"], new["min"]), "max": np.maximum(old["max"], new["max"])}

    recipe = recipe_manager.RecipeManager()
    recipe.add_static_config(".*", TFLOperationName.ALL_SUPPORTED, 8, 8)
    for border in (TFLOperationName.INPUT, TFLOperationName.OUTPUT):
        recipe.add_quantization_config(".*", border, algorithm_key=AlgorithmName.NO_QUANTIZE)
    for layer in floats:
        scopes = [scope for scope, names, _, _ in operators(content) if re.search(layers[layer], names)]
        if not scopes:
            raise ValueError(f"float_layers must be layers that LiteRT keeps apart; it has no {layer!r} of its own")
        for scope in scopes:
            exactly = f"^{re.escape(scope)}$"
            recipe.add_quantization_config(
                exactly, TFLOperationName.ALL_SUPPORTED, algorithm_key=AlgorithmName.NO_QUANTIZE
            )
    ranges = calibrator.Calibrator(content, num_threads=1, qsv_update_func=widened)
    each = [{f"args_{place}": x[row : row + 1] for place, x in enumerate(samples)} for row in range(len(samples[0]))]
    ranges.calibrate({"serving_default": each}, recipe)
    made = quantizer.Quantizer(bytearray(content), recipe.get_quantization_recipe()).quantize(ranges.get_model_qsvs())
    content = bytes(made.quantized_model)
    plain = [names for _, names, kind, narrow in operators(content) if kind in WEIGHTED and not narrow]
    return content, [name for name in layers if name not in floats and any(re.search(layers[name], each) for each in plain)]


def operators(content):
    """Yield of each operator its scope, the names of what it holds and gives, its kind, and whether its weights are narrow."""
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_quantizer.utils import tfl_flatbuffer_utils as files

    model = files.read_model(bytearray(content))
    kinds = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
    for graph in model.subgraphs:
        for operator in graph.operators:
            held = [graph.tensors[place] for place in operator.inputs if place >= 0]
            held = [tensor for tensor in held if model.buffers[tensor.buffer].data is not None]
            names = " ".join(tensor.name.decode() for tensor in (*held, *(graph.tensors[place] for place in operator.outputs)))
            code = model.operatorCodes[operator.opcodeIndex]
            narrow = any(tensor.type == schema.TensorType.INT8 for tensor in held)
            yield files.get_op_scope(operator, graph.tensors), names, kinds[max(code.builtinCode, code.deprecatedBuiltinCode)], narrow


if __name__ == "__main__":
    main()
