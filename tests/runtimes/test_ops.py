from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from equipoise.compress.operators import operators
from equipoise.errors import InputError
from equipoise.ops import Op, op_from
from equipoise.records import as_data
from equipoise.runtimes.base import get
from equipoise.runtimes.ops import op_inputs, op_program, op_source
from equipoise.testing.runtimes import Probe, error_of

CONV = Op("conv", 8, 16, (3, 3), (2, 2), (1, 1), height=12, width=10, relu=True)
OPS = [
    CONV,
    replace(CONV, cin=16, groups=16, stride=(1, 1), relu=False),
    Op("linear", 16, 5),
    Op("linear", 16, 8, height=7, relu=True),
    Op("add", 8, 8, height=4, width=4, relu=True),
    Op("resize", 3, 3, (6, 5), height=10, width=8),
]


def test_operators_are_read_off_a_model() -> None:
    found = operators(Probe().eval(), torch.zeros(2, 3, 12, 12))
    assert found == {
        "stem": Op("conv", 3, 8, (3, 3), (1, 1), (1, 1), height=12, width=12, relu=True),
        "inner": Op("conv", 8, 16, (3, 3), (2, 2), (1, 1), height=12, width=12, relu=True),
        "outer": Op("conv", 16, 16, (3, 3), (1, 1), (1, 1), height=6, width=6),
        "head": Op("linear", 16, 5),
    }


def test_modules_and_tokens_are_seen() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 2))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.body(x)
            return out

    found = operators(Tokens(), torch.zeros(2, 9, 4))
    assert found == {"body.0": Op("linear", 4, 6, height=9, relu=True), "body.2": Op("linear", 6, 2, height=9)}


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("bits", [32, 8])
@pytest.mark.parametrize("op", OPS, ids=lambda s: f"{s.kind}{s.groups}")
def test_programs_load_and_give_the_right_shape(name: str, bits: int, op: Op) -> None:
    runtime = get(name)
    if runtime.unavailable():
        pytest.skip(runtime.unavailable())
    program = op_program(op, runtime, bits=bits)
    assert program.precision == ("fp32" if bits == 32 else "int8")
    got = runtime.load(program, batch=2).run(op_inputs(op, bits=bits, batch=2))
    model = op_source(op).model
    assert model is not None
    with torch.inference_mode():
        assert got.shape == model(torch.from_numpy(op_inputs(op, batch=2))).shape
    assert got.dtype == (np.float32 if bits == 32 else np.uint8)


def test_two_runtimes_agree_on_an_operator() -> None:
    if get("openvino").unavailable():
        pytest.skip(get("openvino").unavailable())
    for bits, bound in ((32, 1e-5), (8, 2)):
        inputs = op_inputs(CONV, bits=bits)
        first, second = (get(n).load(op_program(CONV, get(n), bits=bits)).run(inputs) for n in ("onnxruntime", "openvino"))
        difference = error_of(first, second) if bits == 32 else np.abs(first.astype(int) - second.astype(int)).max()
        assert difference <= bound
        assert len(np.unique(first)) > 20  # a constant would agree too


def test_borders_convert() -> None:
    runtime = get("onnxruntime")
    edge = Op("quantize", 8, 8, height=4, width=4)
    assert runtime.load(op_program(edge, runtime, bits=8)).run(op_inputs(edge)).dtype == np.uint8
    edge = replace(edge, kind="dequantize")
    assert runtime.load(op_program(edge, runtime, bits=8)).run(op_inputs(edge, bits=8)).dtype == np.float32


def test_an_operator_survives_its_record_and_knows_its_weights_and_work() -> None:
    for op in OPS:
        assert op_from(json.loads(json.dumps(as_data(op)))) == op
    assert (CONV.weights, CONV.work) == (8 * 16 * 9, 8 * 16 * 9 * 12 * 10 / 4)
    assert [op.depthwise for op in OPS] == [False, True, False, False, False, False]
    assert (OPS[1].weights, OPS[4].weights, OPS[5].work) == (16 * 9, 0, 1)


def test_wrong_operators_are_refused() -> None:
    with pytest.raises(InputError, match="extents of at least 1"):
        replace(CONV, cout=0)
    with pytest.raises(InputError, match="divisor"):
        replace(CONV, groups=3)
    with pytest.raises(InputError, match="bits for torch"):
        op_program(CONV, get("torch"), bits=8)
