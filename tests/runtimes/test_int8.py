"""Static int8: ranges, equalization, rounding and the file, each against a closed form or another library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, numpy_helper
from torch import Tensor, nn

from equipoise import runtimes
from equipoise.errors import InputError
from equipoise.runtimes import Program, qdq, ranges, rounding, seen
from equipoise.runtimes import onnxruntime as ort
from equipoise.runtimes.equalize import MOST, equalized, links, same
from equipoise.runtimes.export import Exporter
from equipoise.runtimes.onnxruntime import OnnxRuntime
from equipoise.verbs import compress as verbs

PLAIN = qdq.Rounding("minmax", equalize=False, order=False, correct=False)


class Inverted(nn.Module):
    """An inverted bottleneck whose expanded channels are of very unlike sizes, as MobileNetV2's are."""

    def __init__(self, rectifier: type[nn.Module]) -> None:
        super().__init__()
        self.expand, self.depthwise = nn.Conv2d(6, 24, 1), nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.project, self.head, self.act = nn.Conv2d(24, 6, 1), nn.Linear(6, 5), rectifier()
        with torch.no_grad():
            size = torch.logspace(-1.2, 0.5, 24)
            self.expand.weight.mul_(size[:, None, None, None])
            self.expand.bias.mul_(size)
            self.depthwise.weight.div_(size[:, None, None, None])

    def forward(self, x: Tensor) -> Tensor:
        x = self.project(self.act(self.depthwise(self.act(self.expand(x)))))
        return self.head(x.mean((2, 3)))


def made(rectifier: type[nn.Module] = nn.ReLU6) -> tuple[ModelProto, np.ndarray[Any, Any]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net, inputs = Inverted(rectifier).eval(), torch.randn(96, 6, 9, 9)
    content = Exporter().onnx(net, inputs[:2], topology=rectifier.__name__)
    return onnx.shape_inference.infer_shapes(onnx.load_from_string(content)), inputs.numpy()


@pytest.fixture(scope="module")
def net() -> tuple[ModelProto, np.ndarray[Any, Any]]:
    return made()


def answers(content: bytes, inputs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return OnnxRuntime().load(Program("onnxruntime", "int8", {ort.FILE: content})).run(inputs)


def error(content: bytes, model: ModelProto, inputs: np.ndarray[Any, Any]) -> float:
    wanted = answers(model.SerializeToString(), inputs)
    return float(np.square(answers(content, inputs) - wanted).mean() / np.square(wanted - wanted.mean(0)).mean())


def observed(model: ModelProto, inputs: np.ndarray[Any, Any]) -> seen.Reading:
    return seen.read(model, [link.tensor for link in links(model)], {}, inputs)


# Ranges


def test_the_range_of_least_error_is_the_best_of_a_finer_search() -> None:
    values = np.random.default_rng(0).standard_t(3, 3_000).astype(np.float32)
    low, high = float(values.min()), float(values.max())

    def cost(bounds: tuple[float, float]) -> float:
        step = (bounds[1] - bounds[0]) / 255
        zero = round(-bounds[0] / step)
        levels = (np.arange(256) - zero) * step
        return float(np.square(levels[np.abs(values[:, None] - levels).argmin(1)] - values).mean())  # by looking at every level

    found = cost(ranges.RULES["mse"](low, high, values))
    best = min(cost((low * share, high * share)) for share in np.linspace(0.2, 1, 90))
    assert found <= best * 1.02
    for wrong in (ranges.RULES["minmax"], ranges.RULES["percentile"], lambda a, b, _: (a / 9, b / 9)):
        assert cost(wrong(low, high, values)) > best * 1.02


def test_values_within_a_percentile_and_none_at_all() -> None:
    values = np.linspace(-1, 3, 100_001, dtype=np.float32)
    assert ranges.percentile(-1, 3, values) == pytest.approx((-0.9996, 2.9996), abs=1e-4)
    assert ranges.percentile(0, 9, values + 2)[0] == 0
    assert not ranges.rounded(values, 0.0, 0.0).any()


# What is read


def test_columns_times_weights_are_what_a_convolution_gives(net: tuple[ModelProto, np.ndarray[Any, Any]]) -> None:
    generator = torch.Generator().manual_seed(0)
    for conv in (
        nn.Conv2d(4, 6, 3, padding=1, stride=2, groups=2),
        nn.Conv2d(3, 5, (3, 1), dilation=2, padding=(2, 0), bias=False),
        nn.Conv1d(4, 8, 5, padding=2, groups=4),
    ):
        extent = (3, conv.in_channels, *(9,) * (conv.weight.dim() - 2))
        x = torch.randn(extent, generator=generator)
        axes = {"strides": conv.stride, "dilations": conv.dilation, "pads": [*conv.padding, *conv.padding]}  # type: ignore[misc]
        node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], group=conv.groups, **axes)
        found = seen.columns(x.numpy(), node, tuple(conv.weight.shape), 10**6, np.random.default_rng(0))
        weights = conv.weight.detach().numpy().reshape(conv.groups, conv.out_channels // conv.groups, -1)
        bias = 0 if conv.bias is None else conv.bias.detach().numpy()[:, None]
        given = (weights @ found).reshape(conv.out_channels, -1) + bias
        wanted = conv(x).detach().numpy().swapaxes(0, 1).reshape(conv.out_channels, -1)
        np.testing.assert_allclose(given, wanted, atol=1e-5)
        assert np.abs((weights[..., ::-1] @ found).reshape(conv.out_channels, -1) + bias - wanted).max() > 0.1  # planted


# Equalization


@pytest.mark.parametrize("rectifier", [nn.ReLU, nn.ReLU6])
def test_equalization_leaves_the_function_and_fills_the_range(rectifier: type[nn.Module]) -> None:
    model, inputs = made(rectifier)
    before = observed(model, inputs)
    raised, gains = equalized(model, before.tensors)
    wanted, given = (answers(graph.SerializeToString(), inputs) for graph in (model, raised))
    assert len(gains) == 2
    assert max(gain.max() for gain in gains.values()) > 10
    np.testing.assert_allclose(given, wanted, atol=1e-5 * np.abs(wanted).max())
    assert same(raised, model, inputs)
    after = observed(raised, inputs)
    name = links(model)[0].tensor  # read by the depthwise convolution alone: every channel fills the range
    high = after.tensors[name].high
    assert np.all((high > 0.99 * high.max()) | (gains[name] == MOST))
    if rectifier is nn.ReLU6:
        assert np.all(gains[name][before.tensors[name].high >= 6] == 1)  # who reaches the bound stays


def test_a_raised_channel_that_reaches_the_bound_is_caught(net: tuple[ModelProto, np.ndarray[Any, Any]]) -> None:
    model, inputs = net
    held = observed(model, inputs).tensors
    liar = {name: seen.Seen(one.low, np.where(one.high >= 6, 0.1, one.high), one.kept) for name, one in held.items()}
    raised, gains = equalized(model, liar)
    assert gains
    assert not same(raised, model, inputs)


def test_a_layer_that_is_left_float_keeps_its_weights(net: tuple[ModelProto, np.ndarray[Any, Any]]) -> None:
    model, inputs = net
    for name, some in (("", 2), ("project", 1), ("depthwise", 0)):
        left = [node.name for node in model.graph.node if name and node.name.startswith(f"{name}/")]
        raised, gains = equalized(model, observed(model, inputs).tensors, left=left)
        kept = {tensor.name: numpy_helper.to_array(tensor) for tensor in raised.graph.initializer}
        assert len(gains) == some
        for tensor in model.graph.initializer:
            if name and tensor.name.startswith(f"{name}."):
                np.testing.assert_array_equal(kept[tensor.name], numpy_helper.to_array(tensor))


def test_only_tensors_that_convolutions_alone_read_are_links() -> None:
    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(4, 4, 1) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.a(x))  # read by an addition too
            x = x + torch.sigmoid(self.b(x))
            return torch.relu(self.c(x)).mean((2, 3))  # read by a mean

    content = Exporter().onnx(Read().eval(), torch.randn(2, 4, 5, 5), topology="read")
    assert not links(onnx.load_from_string(content))


# Rounding


def test_the_order_gives_what_gptq_gives_and_errs_less_than_the_nearest() -> None:
    generator = np.random.default_rng(0)
    rows, mixed = generator.normal(size=(2, 6, 70)), generator.normal(size=(2, 70, 70))
    read = mixed @ generator.normal(size=(2, 70, 300))
    moments, scale = read @ read.swapaxes(1, 2) / 300, rounding.scales(rows, 7)
    found = rounding.ordered(rows, scale, 7, moments)

    def textbook(w: Any, step: Any, second: Any) -> Any:
        """Frantar et al. 2022, algorithm 1, one column at a time, by the inverse."""
        second = second + np.eye(70) * (rounding.DAMP * np.diag(second).mean() + rounding.TINY)
        order = np.argsort(-np.diag(second), kind="stable")
        upper = np.linalg.cholesky(np.linalg.inv(second[np.ix_(order, order)])).T
        left, whole = w[:, order].copy(), np.empty_like(w)
        for k in range(70):
            whole[:, order[k]] = q = np.clip(np.round(left[:, k] / step), -7, 7)
            left[:, k:] -= np.outer((left[:, k] - q * step) / upper[k, k], upper[k, k:])
        return whole

    for group in range(2):
        np.testing.assert_array_equal(found[group], textbook(rows[group], scale[group], moments[group]))

    def off(whole: Any) -> float:
        return float(np.square((whole * scale[..., None] - rows) @ read).sum())

    assert off(found) < 0.5 * off(rounding.nearest(rows, scale, 7))
    assert off(found[:, ::-1]) > off(found)  # planted: the integers of other rows


def test_the_corrected_bias_leaves_no_mean_error() -> None:
    generator = np.random.default_rng(0)
    rows, columns = generator.normal(size=(3, 4, 9)), generator.exponential(size=(3, 9, 500))
    scale = rounding.scales(rows, 7)
    whole, read = rounding.nearest(rows, scale, 7), ranges.rounded(columns, 0.0, 3.0)

    def left(bias: Any) -> float:
        return float(np.abs((rows @ columns - (whole * scale[..., None]) @ read - bias[..., None]).mean(2)).max())

    bias = rounding.mean_error(rows, columns, whole, scale, read)
    assert left(bias) < 1e-12
    for wrong in (0 * bias, -bias, rounding.mean_error(rows, columns, whole, scale, columns)):
        assert left(wrong) > 0.01


# The file


@pytest.mark.parametrize("seven_bits", [False, True])
def test_the_plain_scheme_gives_what_the_quantizer_of_onnx_runtime_gives(
    net: tuple[ModelProto, np.ndarray[Any, Any]], seven_bits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter([{"input": inputs}])

        def get_next(self) -> Any:
            return next(self.left, None)

    model, inputs = net
    quantize_static(
        model, tmp_path / "theirs.onnx", Reader(), per_channel=True, reduce_range=seven_bits, activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8, op_types_to_quantize=list(ort.QUANTIZED_OPS), extra_options={"MatMulConstBOnly": True},
    )  # fmt: skip
    monkeypatch.setattr(ort, "has_exact_int8", lambda: not seven_bits)
    content = made()[0].SerializeToString()
    theirs = {tensor.name: tensor for tensor in onnx.load(tmp_path / "theirs.onnx").graph.initializer}

    def unlike(how: qdq.Rounding) -> list[str]:
        ours = onnx.load_from_string(ort._quantize(content, inputs, [], how)).graph.initializer
        pairs = [(numpy_helper.to_array(one), numpy_helper.to_array(theirs[one.name])) for one in ours if one.name in theirs]
        assert len(pairs) > 25
        return [f"{a} {b}" for a, b in pairs if not np.allclose(a, b, rtol=1e-6, atol=1 if a.dtype == np.int32 else 0)]

    assert not unlike(PLAIN)
    assert unlike(qdq.Rounding("mse", equalize=False, order=False, correct=False))


@pytest.mark.parametrize("seven_bits", [False, True])
def test_each_step_lowers_the_error(
    net: tuple[ModelProto, np.ndarray[Any, Any]], seven_bits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not seven_bits and not ort.has_exact_int8():
        pytest.skip("this CPU adds products of 8 bits with saturation")
    monkeypatch.setattr(ort, "has_exact_int8", lambda: not seven_bits)
    model, inputs = net
    content = model.SerializeToString()
    steps = (PLAIN, qdq.Rounding("minmax", order=False, correct=False), qdq.Rounding())
    found = [error(ort._quantize(content, inputs[:64], [], how), model, inputs[64:]) for how in steps]
    assert found[0] > found[1] > found[2], found
    assert found[0] > 3 * found[2], found


def test_the_ranges_are_those_whose_answers_are_nearer() -> None:
    model, inputs = made(nn.ReLU)
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    value = numpy_helper.to_array(held["expand.weight"]).copy()
    value[5, 0] = 60.0  # one channel far above the others, which counts: to cut it costs more than to round the others
    held["expand.weight"].CopyFrom(numpy_helper.from_array(value, "expand.weight"))
    for content in (model.SerializeToString(), made()[0].SerializeToString()):
        off = {
            rule: float(np.square(answers(ort._quantize(content, inputs[:64], [], qdq.Rounding(rule)), inputs[:64])
            - answers(content, inputs[:64])).mean())
            for rule in ("mse", "minmax", "best")
        }  # fmt: skip
        chosen = "minmax" if off["mse"] > qdq.CUT_COSTS * off["minmax"] else "mse"
        assert off["best"] == pytest.approx(off[chosen], rel=1e-3)
        assert off["mse"] != pytest.approx(off["minmax"], rel=1e-2)


def test_dead_channels_keep_their_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = made()
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, share, more in (("project.weight", 1e-14, 0.0), ("project.bias", 1.0, 3.0)):
        value = numpy_helper.to_array(held[name]).copy()
        value[2] = value[2] * share + more  # what BatchNorm folded into a dead channel leaves: a bias beside no weights
        held[name].CopyFrom(numpy_helper.from_array(value, name))
    wanted = answers(model.SerializeToString(), inputs)

    def off() -> float:
        given = answers(ort._quantize(model.SerializeToString(), inputs, []), inputs)
        return float(np.abs(given - wanted).max() / np.abs(wanted).max())

    assert off() < 0.05
    monkeypatch.setattr(qdq, "MOST_BIAS", 2.0**60)  # planted: the integer of the bias has no place in 32 bits
    with np.errstate(invalid="ignore"):
        assert off() > 0.2


def test_ranges_and_scales_are_options_of_the_verb() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net, inputs = Inverted(nn.ReLU6).eval(), torch.randn(64, 6, 9, 9)
    wanted = net(inputs).detach()
    made = {
        (way, apart): verbs.quantize(net, inputs, ranges=way, per_channel=apart)
        for way, apart in (("best", True), ("percentile", True), ("minmax", False))
    }
    assert len({small.program.digest for small in made.values()}) == 3
    for small in made.values():
        assert (small(inputs) - wanted).abs().max() < 0.3 * wanted.abs().max()
    assert b"QuantizeLinear" in made["minmax", False].program.file(ort.FILE)
    assert not made["minmax", False].left
    for options in ({"target": "openvino:cpu"}, {"scheme": "8-dynamic"}):
        with pytest.raises(InputError, match="ranges"):
            verbs.quantize(net, inputs, ranges="percentile", **options)  # type: ignore[arg-type]


def test_an_unknown_range_is_told() -> None:
    with pytest.raises(InputError, match=r"ranges.*percentile"):
        qdq.Rounding("percentil")


# Channels


def waves() -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            *(nn.Conv1d(4, 12, 5), nn.ReLU(), nn.Conv1d(12, 12, 3), nn.ReLU(), nn.Conv1d(12, 8, 3)),
            *(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 3)),
        )
        with torch.no_grad():
            net[0].weight.mul_(torch.logspace(-1.5, 0.5, 12)[:, None, None])  # type: ignore[operator, union-attr]
        return net.eval(), torch.randn(33, 4, 30)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_convolutions_of_waves_are_equalized_by_channel(runtime: str) -> None:
    net, x = waves()
    made = runtimes.get(runtime).compile(
        Exporter().source(net, x[:2], topology="waves"), calibration=x.numpy(), float_layers=frozenset()
    )
    assert not made.left
    found, wanted = runtimes.get(runtime).load(made).run(x.numpy()), net(x).detach().numpy()
    assert float(np.square(found - wanted).mean() / np.square(wanted - wanted.mean(0)).mean()) < 0.1


def test_channels_lie_where_the_operators_of_a_tensor_have_them() -> None:
    net, x = waves()
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(Exporter().onnx(net, x[:2], topology="waves")))
    held = observed(model, x.numpy()).tensors
    assert held
    assert {len(one.low) for one in held.values()} == {12}


def test_what_was_seen_of_a_tensor_is_never_forgotten() -> None:
    found: dict[str, seen.Seen] = {}
    draws = np.random.default_rng(0)
    for extent, largest in ((4, 9.0), (3, 1.0), (4, 2.0)):
        value = np.zeros((extent, 6), np.float32)
        value[0, 0], value[1, 0] = largest, -largest
        seen._keep(found, "x", value, draws, 3)
    assert (found["x"].low.min(), found["x"].high.max()) == (-9.0, 9.0)
    assert found["x"].sample.shape[0] == 1


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.q, self.k, self.v, self.out = nn.LayerNorm(16), *(nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        weights = torch.softmax(self.q(x) @ self.k(x).transpose(1, 2) / 4, -1)
        return self.out(weights @ self.v(x)).mean(1)  # type: ignore[no-any-return]


@pytest.mark.parametrize("floats", [frozenset[str](), frozenset({"q", "k", "v"})])
def test_products_inside_attention_stay_in_floats(floats: frozenset[str]) -> None:
    net, x = Attends().eval(), torch.randn(32, 8, 16, generator=torch.Generator().manual_seed(0))
    source = Exporter().source(net, x[:2], topology="attends")
    program = OnnxRuntime().compile(source, calibration=x.numpy(), float_layers=floats)
    graph = onnx.load_from_string(program.file(ort.FILE)).graph
    makers = {name: node for node in graph.node for name in node.output}
    constants = {tensor.name for tensor in graph.initializer}

    def is_rounded(name: str) -> bool:
        return name in makers and makers[name].op_type == "DequantizeLinear"

    def is_weight(name: str) -> bool:
        return name in constants or (is_rounded(name) and makers[name].input[0] in constants)

    products = [node for node in graph.node if node.op_type == "MatMul"]
    inner = [node for node in products if not any(map(is_weight, node.input))]
    assert len(inner) == 2
    assert not any(is_rounded(name) for node in inner for name in node.input)
    assert sum(any(map(is_rounded, node.input)) for node in graph.node if node.op_type in ("MatMul", "Gemm")) == 4 - len(floats)
