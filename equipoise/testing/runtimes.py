"""The contract of a `Runtime`, as a function: run it over your own before you give it to a study."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from equipoise.batch import mapped, take
from equipoise.errors import InputError
from equipoise.runtimes.base import Program, Runtime, Source
from equipoise.runtimes.export import Exporter
from equipoise.runtimes.layers import layer_nodes
from equipoise.schemes import scheme

FLOAT_BOUND = 1e-4
"""Largest difference of a float program from torch, as a fraction of the largest output."""

INT8_BOUND = 0.15
"""The same for int8; outputs of the wrong samples differ by far more."""


class Probe(nn.Module):
    """A small network with what breaks runtimes: strides, a residual sum, a padded shortcut, a pool and a linear layer."""

    def __init__(self, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.inner = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.outer = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)
        generator = generator or torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                fan = parameter[0].numel()
                parameter.uniform_(-(fan**-0.5), fan**-0.5, generator=generator).mul_(1.7)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, 5) scores of images (N, 3, 12, 12)."""
        x = torch.relu(self.stem(x))
        y = self.outer(torch.relu(self.inner(x)))
        x = torch.relu(y + nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4)))
        scores: Tensor = self.head(x.mean((2, 3)))
        return scores


class Pair(nn.Module):
    """A small network of two inputs, whole numbers and floats, of which it also needs to know which is which."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.head = nn.Embedding(9, 6), nn.Linear(6, 3)
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(generator=generator)

    def forward(self, tokens: Tensor, weights: Tensor) -> Tensor:
        """Return (N, 3) scores of tokens (N, 5) and their weights (N, 5)."""
        scores: Tensor = self.head((self.token(tokens) * weights[..., None]).sum(1))
        return scores


def probe_source(exporter: Exporter | None = None) -> Source:
    """Return the probe as a `Source`; pass an exporter to share its slow first export between checks."""
    generator = torch.Generator().manual_seed(1)
    example = torch.randn(64, 3, 1, 1, generator=generator) + torch.randn(64, 3, 12, 12, generator=generator)
    return (exporter or Exporter()).source(Probe().eval(), example, topology="probe")


def check_runtime(runtime: Runtime, source: Source | None = None) -> None:
    """Check that `runtime` keeps the contract of `base.Runtime`.

    Its numbers are torch's at batches 1, 2 and 7, of one input and of several by name; int8 is close, is not float, and leaves
    the named layers float; programs compile to the same bytes twice, survive the disk, and are refused when damaged or meant
    for another runtime.

    Args:
        runtime: One that is available here.
        source: A `probe_source`, to share its export.

    Raises:
        AssertionError: The contract is broken; the message says where.
    """
    _require(not runtime.unavailable(), f"{runtime.name} is available; it says: {runtime.unavailable()}")
    _require(32 in runtime.precisions, "precisions has 32")
    source = source or probe_source()
    if source.model is None or source.example is None:
        raise AssertionError("the source has a module and an example")
    inputs = source.example.numpy()
    with torch.inference_mode():
        wanted = source.model(source.example).numpy()
    program = runtime.compile(source)
    _check_program(runtime, source, program, wanted)
    _check_named(runtime)
    for bound, name in ((FLOAT_BOUND, "float"), (INT8_BOUND, "int8")):
        _require(error_of(np.roll(wanted, 1, axis=0), wanted) > 2 * bound, f"the {name} bound tells samples apart")
    _check_schemes(runtime, source, inputs, program)
    if 8 in runtime.precisions:
        _check_int8(runtime, source, inputs, wanted)
    else:
        _refuses("int8 on a float runtime", lambda: runtime.compile(source, calibration=inputs, float_layers=frozenset()))


def error_of(got: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Return the largest difference as a fraction of the largest wanted value; infinite where the shapes differ."""
    return float(np.abs(got - wanted).max() / np.abs(wanted).max()) if got.shape == wanted.shape else float("inf")


def _check_program(runtime: Runtime, source: Source, program: Program, wanted: NDArray[Any]) -> None:
    inputs = source.example.numpy() if source.example is not None else wanted
    _require(program.runtime == runtime.name and program.precision == "fp32", "a program names its runtime and precision")
    _require(program.digest == runtime.compile(source).digest, "compiling twice gives the same bytes")
    session = runtime.load(program)
    for batch in (1, 2, 7):
        for what, candidate in (("free", session), ("fixed", runtime.load(program, batch=batch))):
            got = candidate.run(inputs[:batch])
            _require(error_of(got, wanted[:batch]) <= FLOAT_BOUND, f"batch {batch} ({what}) computes what torch computes")
    kept = session.run(inputs[:2])
    before = kept.copy()
    session.run(inputs[2:4])
    _require(np.array_equal(kept, before), "an output stays as it was after the next run")
    with tempfile.TemporaryDirectory() as folder:
        program.write(Path(folder))
        names = tuple(program.files)
        again = Program.read(Path(folder), runtime=program.runtime, precision=program.precision, names=names)
    _require(again == program and again.digest == program.digest, "a program survives the disk")
    for name, content in program.files.items():
        cut = Program(program.runtime, program.precision, {**program.files, name: content[: len(content) // 2]})
        _refuses(f"{name} cut in half", lambda cut=cut: runtime.load(cut))
        less = Program(program.runtime, program.precision, {n: c for n, c in program.files.items() if n != name})
        _refuses(f"no {name}", lambda less=less: runtime.load(less))
    _refuses("a program for another runtime", lambda: runtime.load(Program("another", "fp32", program.files)))


def _check_named(runtime: Runtime) -> None:
    generator, net = torch.Generator().manual_seed(3), Pair().eval()
    tokens, weights = torch.randint(0, 9, (8, 5), generator=generator), torch.rand(8, 5, generator=generator)
    example = {"tokens": tokens, "weights": weights}
    program = runtime.compile(Exporter().source(net, example, topology="pair"))
    session, given = runtime.load(program), mapped(example, Tensor.numpy)
    with torch.inference_mode():
        wanted = net(**example).numpy()
    for batch in (1, 2, 7):
        for what, candidate in (("free", session), ("fixed", runtime.load(program, batch=batch))):
            few = dict(reversed(take(given, slice(batch)).items()))  # names count, not their order; others are left aside
            got = candidate.run({**few, "other": np.zeros(3)})
            _require(error_of(got, wanted[:batch]) <= FLOAT_BOUND, f"inputs by name at batch {batch} ({what})")
    _refuses("an input that is missing", lambda: session.run({"tokens": given["tokens"]}))


def _check_int8(runtime: Runtime, source: Source, inputs: NDArray[Any], wanted: NDArray[Any]) -> None:
    layers = frozenset(layer_nodes(source.onnx()))
    errors: dict[str, float] = {}
    for name, left_float in (("int8", frozenset[str]()), ("mixed", layers)):
        program = runtime.compile(source, calibration=inputs, float_layers=left_float)
        _require(program.precision == name, f"the program says that it is {name}")
        errors[name] = error_of(runtime.load(program).run(inputs), wanted)
    _require(FLOAT_BOUND < errors["int8"] <= INT8_BOUND, f"int8 is close to float and not float; error {errors['int8']:.4f}")
    _require(errors["mixed"] < errors["int8"], f"layers left float are closer; errors {errors}")
    _refuses("an unknown layer", lambda: runtime.compile(source, calibration=inputs, float_layers=frozenset({"nowhere"})))
    _refuses("int8 without data", lambda: runtime.compile(source, float_layers=frozenset()))


def _check_schemes(runtime: Runtime, source: Source, inputs: NDArray[Any], floats: Program) -> None:
    """Weights on a grid are held without loss and in their bits; a request of one sample has the range of its own inputs."""
    exporter, model = Exporter(), copy.deepcopy(source.model)
    assert model is not None
    for way in (way for way in runtime.precisions if scheme(way).encoded):
        layers = ("inner", "head") if scheme(way).inputs == "float" else ("head",)
        with torch.no_grad():
            for layer in map(model.get_submodule, layers):
                weight: Any = layer.weight
                top = weight.abs().flatten(1).amax(1).reshape(-1, *[1] * (weight.dim() - 1))
                weight.copy_((weight / top * 7).round() / 8)  # seven levels of an eighth: on the grid of any scheme
            wanted = model(torch.from_numpy(inputs[:1])).numpy()
        on_grid = exporter.source(model, torch.from_numpy(inputs), topology="on a grid")
        held = runtime.compile(on_grid, schemes=dict.fromkeys(layers, way))
        bound = FLOAT_BOUND if scheme(way).inputs == "float" and scheme(way).bits == 16 else INT8_BOUND / 4
        _require(error_of(runtime.load(held).run(inputs[:1]), wanted) <= bound, f"{way} holds what is on a grid without loss")
        if scheme(way).inputs == "float":
            _require(held.size_bytes < floats.size_bytes, f"{way} is smaller than floats")
        _refuses(f"{way} of an unknown layer", lambda way=way: runtime.compile(source, schemes={"nowhere": way}))
    _refuses("a scheme that nobody has", lambda: runtime.compile(source, schemes={"head": "3-weights"}))


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise AssertionError(f"a runtime must keep this: {what}")


def _refuses(what: str, action: Any) -> None:
    try:
        action()
    except InputError:
        return
    raise AssertionError(f"a runtime must refuse with InputError: {what}")
