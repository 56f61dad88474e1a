"""A layer that a quantizer fails on stays in floating point, by itself, and is named; what was left out is really left out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from equipoise import runtimes
from equipoise.errors import InputError
from equipoise.runtimes import Program, Source
from equipoise.runtimes import onnxruntime as ort
from equipoise.runtimes.export import Exporter
from equipoise.runtimes.fallback import culprits, told
from equipoise.runtimes.layers import layer_nodes, scoped_nodes
from equipoise.runtimes.structure import layer_bits

pytestmark = pytest.mark.slow  # quantizes models for every runtime


class Residual(nn.Module):
    """Operators with and without weights, the addition and the gate among them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = x + torch.relu(self.b(x))
        return self.head((x * torch.sigmoid(x)).mean((2, 3)))


class Sign(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight.sign() * self.weight.abs().mean((1, 2, 3), keepdim=True), self.bias)


def upsampler(groups: int) -> nn.Module:
    up = nn.ConvTranspose2d(16, 8, 4, 2, 1, groups=groups)
    return nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), up, nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1))


def made(make: Callable[[], nn.Module]) -> tuple[nn.Module, Source, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, inputs = make().eval(), torch.randn(64, 3, 8, 8)
    with torch.no_grad():
        wanted = model(inputs).numpy()
    return model, Exporter().source(model, inputs[:2], topology=""), inputs.numpy(), wanted


def apart(program: Program, inputs: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> float:
    found = runtimes.get(program.runtime).load(program).run(inputs)
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def int8_names() -> list[str]:
    return [name for name in runtimes.available() if 8 in runtimes.get(name).precisions]


@pytest.mark.parametrize("name", int8_names())
def test_a_transposed_convolution_in_groups_is_left_float_by_itself(name: str) -> None:
    _, source, inputs, wanted = made(lambda: upsampler(2))
    program = runtimes.get(name).compile(source, calibration=inputs, float_layers=frozenset())
    assert 1e-4 < apart(program, inputs, wanted) < 0.05
    if name == "onnxruntime":
        assert list(program.left) == ["2"]
        assert program.left["2"].startswith("ONNX Runtime's int8 fails on it: ValueError")
        assert program.file(ort.FILE).count(b"QuantizeLinear") > 0


def test_a_program_is_timed_with_the_batch_axis_free_as_it_is_loaded_by_its_card() -> None:
    """Fixed to one, ONNX Runtime computes int8 layers of tokens in floats, up to five times slower."""
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 16))
    _, source, inputs, _ = made(lambda: Tokens(model))
    program = runtimes.get("onnxruntime").compile(source, calibration=inputs, float_layers=frozenset())
    session = runtimes.get("onnxruntime").load(program, batch=1)
    assert len(session.run(inputs[:1])) == 1
    assert len(session.run(inputs[:3])) == 3


def run_kinds(program: Program, folder: Path) -> list[str]:
    """Kinds of operators that ONNX Runtime really runs for a file, as anybody loads it."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(folder / "run.onnx"), 4
    onnxruntime.InferenceSession(program.file(ort.FILE), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(folder / "run.onnx", load_external_data=False).graph.node]


class Energies(nn.Module):
    """Logarithms of squares of what fixed filters hear, and a layer: as a buffer, or as weights like any other."""

    def __init__(self, *, learned: bool) -> None:
        super().__init__()
        filters = torch.randn(16, 3, 8, 8) * torch.logspace(-3, 0, 16)[:, None, None, None]
        if learned:
            self.filters = nn.Parameter(filters)
        else:
            self.register_buffer("filters", filters)
        self.mix, self.head = nn.Linear(16, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        heard = nn.functional.conv2d(x, self.filters).square().flatten(1)
        return self.head(torch.relu(self.mix((heard + 1e-6).log())))


@pytest.mark.parametrize("name", int8_names())
def test_a_fixed_transform_is_left_float(name: str) -> None:
    """A Fourier transform is no layer that learned to bear rounding: small energies beside large ones would be lost."""
    off = {}
    for learned in (False, True):
        _, source, inputs, wanted = made(lambda learned=learned: Energies(learned=learned))
        program = runtimes.get(name).compile(source, calibration=inputs, float_layers=frozenset())
        off[learned] = apart(program, inputs, wanted)
        assert not program.left
    assert off[False] < 0.05
    assert off[True] > 3 * off[False]  # the same filters, rounded


CHAINS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "convolution": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)),
        "2",
    ),
    "grouped": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 3)), "2"),
    "transposed": (lambda: upsampler(1), "2"),
    "pooled": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 1)), "2"),
    "product": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 32), nn.ReLU(), nn.Linear(32, 32), nn.Linear(32, 4)), "3"),
}


@pytest.mark.parametrize("chain", CHAINS)
def test_a_layer_left_float_between_int8_ones_stays_float_where_it_is_run(chain: str, tmp_path: Path) -> None:
    """ONNX Runtime quantizes such weights while it loads a file, 8 bits for the whole tensor, if the file lets it."""
    make, middle = CHAINS[chain]
    model, _, inputs, _ = made(make)
    with torch.no_grad():  # one weight far from the others: with one scale for all they round to a few steps
        dict(model.named_modules())[middle].weight.view(-1)[0] = 40.0
        wanted = model(torch.from_numpy(inputs)).numpy()
    source = Exporter().source(model, torch.from_numpy(inputs[:2]), topology="")
    program = runtimes.get("onnxruntime").compile(source, calibration=inputs, float_layers=frozenset({middle}))
    kinds = run_kinds(program, tmp_path)
    assert len([kind for kind in kinds if kind in ("Conv", "ConvTranspose", "Gemm", "FusedConv", "FusedGemm")]) == 1, kinds
    assert apart(program, inputs, wanted) < 0.05


class Shortcuts(nn.Module):
    """Two blocks with a shortcut that subsamples and pads, and a last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x) + nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 3)))
        x = torch.relu(self.b(x) + nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4)))
        return self.head(x.mean((2, 3)))


def test_a_shortcut_is_in_int8_only_between_int8_layers(tmp_path: Path) -> None:
    _, source, inputs, wanted = made(Shortcuts)
    assert set(layer_nodes(source.onnx())) == {"a", "b", "head"}  # no layers of their own
    whole, last, both = (
        runtimes.get("onnxruntime").compile(source, calibration=inputs, float_layers=frozenset(left))
        for left in (set(), {"a", "b"}, {"head"})
    )
    assert set(layer_bits(last.file(ort.FILE))) == {"a", "b", "head"}
    assert run_kinds(whole, tmp_path).count("QLinearConv") == 3  # of four: what stands before the first layer stays float
    assert run_kinds(last, tmp_path).count("QLinearConv") == 0
    assert run_kinds(both, tmp_path).count("QLinearConv") == 2  # the last layer in int8 is `b`, beside its shortcut
    assert max(apart(program, inputs, wanted) for program in (whole, last, both)) < 0.05


class Unlike(nn.Module):
    """Two outputs, degrees and fractions, scaled after the last layer or in it."""

    def __init__(self, *, after: bool) -> None:
        super().__init__()
        self.after = after
        self.a, self.b, self.out = nn.Conv2d(3, 16, 3), nn.Linear(16, 32), nn.Linear(32, 2)
        self.register_buffer("scale", torch.tensor([120.0, 0.3]))
        self.register_buffer("shift", torch.tensor([650.0, 1.0]))
        if not after:
            self.out.weight.data *= self.scale[:, None]
            self.out.bias.data = self.out.bias.data * self.scale + self.shift

    def forward(self, x: Tensor) -> Tensor:
        x = self.out(torch.relu(self.b(torch.relu(self.a(x)).mean((2, 3)))))
        return x * self.scale + self.shift if self.after else x


@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("name", int8_names())
def test_outputs_of_unlike_scales_are_not_rounded_on_one(name: str, after: bool) -> None:
    _, source, inputs, wanted = made(lambda: Unlike(after=after))
    program = runtimes.get(name).compile(source, calibration=inputs, float_layers=frozenset())
    found = runtimes.get(name).load(program).run(inputs)
    noise = np.sqrt(np.square(found - wanted).mean(0)) / wanted.std(0)
    assert (noise < 0.2).all(), noise  # 10 to 100 where they are


class Tokens(nn.Module):
    """A feed-forward block over tokens made of the input."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x.flatten(1)[:, :16][:, None, :].expand(-1, 8, -1))


class Bare(nn.Module):
    """Weights that are no layer's: parameters of the model itself."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(32, 3, 3, 3) * 0.2), nn.Parameter(torch.randn(4, 32) * 0.2)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(torch.relu(nn.functional.conv2d(x, self.a, padding=1)).mean((2, 3)), self.b)


@pytest.mark.parametrize("name", int8_names())
def test_weights_that_are_no_layers_are_quantized_too(name: str) -> None:
    _, source, inputs, wanted = made(Bare)
    program = runtimes.get(name).compile(source, calibration=inputs, float_layers=frozenset())
    assert program.left == {}
    assert 1e-4 < apart(program, inputs, wanted) < 0.05  # not the float program under another name


class Tied(nn.Module):
    """A table of words that is the last layer's weight too, which ONNX Runtime quantizes in two ways at once."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.inner, self.head = nn.Embedding(50, 32), nn.Linear(32, 32), nn.Linear(32, 50, bias=False)
        self.head.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.inner(self.words(x).mean(1))))


def test_tied_weights_leave_the_other_layers_in_int8(capfd: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    model, words = Tied().eval(), torch.randint(0, 50, (64, 12))
    source = Exporter().source(model, words[:2], topology="")
    program = runtimes.get("onnxruntime").compile(source, calibration=words.numpy(), float_layers=frozenset())
    assert list(program.left) in (["head"], ["words"])  # one of the two keeps the table in floats
    assert layer_bits(program.file(ort.FILE))["inner"] == 8
    with torch.no_grad():
        assert 1e-4 < apart(program, words.numpy(), model(words).numpy()) < 0.05
    assert "onnxruntime" not in capfd.readouterr().err


def test_nothing_is_left_where_nothing_fails() -> None:
    _, source, inputs, wanted = made(lambda: upsampler(1))
    program = runtimes.get("onnxruntime").compile(source, calibration=inputs, float_layers=frozenset())
    assert program.left == {}
    assert 1e-4 < apart(program, inputs, wanted) < 0.05


@pytest.mark.parametrize("name", int8_names())
def test_with_every_layer_left_float_the_program_computes_what_torch_does(name: str) -> None:
    _, source, inputs, wanted = made(Residual)
    runtime = runtimes.get(name)
    whole = runtime.compile(source, calibration=inputs, float_layers=frozenset({"a", "b", "head"}))
    part = runtime.compile(source, calibration=inputs, float_layers=frozenset({"a"}))
    assert apart(whole, inputs, wanted) < 1e-5 < apart(part, inputs, wanted) < 0.05


@pytest.mark.parametrize("name", int8_names())
def test_a_convolution_that_computes_its_weight_can_be_left_float_by_name(name: str) -> None:
    make = lambda: nn.Sequential(nn.Conv2d(3, 8, 3), Sign(8, 8, 3), nn.Flatten(), nn.Linear(128, 4))  # noqa: E731
    _, source, inputs, wanted = made(make)
    assert set(scoped_nodes(source.onnx())) == {"1"}
    runtime = runtimes.get(name)
    program = runtime.compile(source, calibration=inputs, float_layers=frozenset({"0", "1"}))
    assert apart(program, inputs, wanted) < 0.05
    with pytest.raises(InputError, match="float_layers must be one of 0, 1, 3; got '2'"):
        runtime.compile(source, calibration=inputs, float_layers=frozenset({"2"}))


def test_a_quantizer_that_fails_on_two_layers_leaves_both(monkeypatch: pytest.MonkeyPatch) -> None:
    _, source, inputs, wanted = made(Residual)
    real, calls = ort._quantize, []

    def broken(content: bytes, calibration: Any, excluded: list[str], how: Any) -> bytes:
        calls.append(len(calibration))
        if not {"b/Conv", "head/Gemm"} <= set(excluded):
            raise KeyError("planted")
        return real(content, calibration, excluded, how)

    monkeypatch.setattr(ort, "_quantize", broken)
    program = runtimes.get("onnxruntime").compile(source, calibration=inputs, float_layers=frozenset())
    assert set(program.left) == {"b", "head"}
    assert all(why == "ONNX Runtime's int8 fails on it: KeyError: 'planted'" for why in program.left.values())
    assert apart(program, inputs, wanted) < 0.05
    assert calls.count(2) < 30  # the search for them reads two samples, not all


def test_a_quantizer_that_always_fails_gives_the_float_program(monkeypatch: pytest.MonkeyPatch) -> None:
    _, source, inputs, wanted = made(Residual)

    def broken(*_args: Any) -> bytes:
        raise RuntimeError("planted")

    monkeypatch.setattr(ort, "_quantize", broken)
    program = runtimes.get("onnxruntime").compile(source, calibration=inputs, float_layers=frozenset())
    assert set(program.left) >= {"a", "b", "head"}
    assert apart(program, inputs, wanted) < 1e-5


def test_culprits_are_found_alone_and_together() -> None:
    names = [f"n{i}" for i in range(64)]
    tries: list[int] = []

    def fails(some: Any) -> bool:
        tries.append(len(some))
        return "n5" in some or "n40" in some

    assert culprits(names, fails) == ("n5", "n40")
    assert len(tries) < 32
    for pair in ({"n1", "n2"}, {"n1", "n40"}):  # they fail only together: one goes, the rest is what passed
        assert culprits(names, lambda some, pair=pair: pair <= set(some)) == (max(pair, key=names.index),)
    assert told(ValueError("a\n b")) == "ValueError: a b"
    assert told(KeyError()) == "KeyError"
