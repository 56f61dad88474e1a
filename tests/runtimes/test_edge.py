"""What ExecuTorch and LiteRT have of their own; `test_contract` holds them to what they have in common with others."""

from __future__ import annotations

import struct
import sys

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from equipoise.errors import InputError
from equipoise.runtimes import Program, Source, available, get, litert
from equipoise.runtimes.executorch import FILE, HEADER, ExecuTorch
from equipoise.runtimes.litert_convert import roles
from equipoise.runtimes.rows import names_of, run_rows

EDGE = [name for name in available() if name in ("executorch", "litert")]


def test_samples_are_run_one_after_another() -> None:
    seen: list[tuple[int, ...]] = []

    def one(arrays: list[np.ndarray]) -> np.ndarray:  # type: ignore[type-arg]
        seen.append(arrays[0].shape)
        return arrays[0].sum(1, keepdims=True) * arrays[1]

    x, y = np.arange(6.0).reshape(3, 2), np.array([[1.0], [10.0], [100.0]])
    assert run_rows({"y": y, "x": x}, ("x", "y"), one).tolist() == [[1.0], [50.0], [900.0]]
    assert seen == [(1, 2)] * 3
    for wrong in ({"x": x[:0], "y": y[:0]}, {"x": x, "y": y[:2]}, {"x": x, "y": np.array(1.0)}):
        with pytest.raises(InputError, match="at least one sample, as many of each"):
            run_rows(wrong, ("x", "y"), one)


def test_names_of_inputs_are_read_from_beside_the_program() -> None:
    assert names_of(Program("litert", "fp32", {})) == ("input",)
    assert names_of(Program("litert", "fp32", {"inputs.json": b'["b", "a"]'})) == ("b", "a")
    for wrong in (b'["b', b"[]", b"[1]", b'{"a": 1}', b"\xff"):
        with pytest.raises(InputError, match=r"inputs\.json must be a list of names"):
            names_of(Program("litert", "fp32", {"inputs.json": wrong}))


def test_a_file_shorter_than_it_says_never_reaches_the_reader() -> None:
    """Some that did ended the process."""
    whole = HEADER.pack(b"ET12", b"eh00", 64, 64, 1000)
    for content, why in ((b"ET12", "too short"), (whole.replace(b"ET12", b"TFL3"), "begin"), (whole, "40 bytes of 1,064")):
        with pytest.raises(InputError, match=why):
            ExecuTorch().load(Program("executorch", "fp32", {FILE: content}))
    assert HEADER.size == struct.calcsize("<10I")


def test_what_converting_needs_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setenv(litert.CONVERTER, "/no/such/python")
    told = get("litert").unavailable()
    assert "'/no/such/python'" in told
    assert f"set {litert.CONVERTER} to its Python" in told


def test_a_converter_that_fails_or_ends_is_an_error_and_not_a_wait(monkeypatch: pytest.MonkeyPatch, probe: Source) -> None:
    monkeypatch.setattr(litert, "_no_converter", lambda python: "")
    for python, why in ((sys.executable, "ModuleNotFoundError: No module named 'litert_torch'"), ("true", "its process ended")):
        monkeypatch.setenv(litert.CONVERTER, python)
        with pytest.raises(InputError, match=why):
            get("litert").compile(probe)


def test_the_roles_of_operators_in_a_file() -> None:
    """A Fourier transform and its logarithm are left alone, as is what stands before the first layer and after the last."""
    rows = [
        ("CONV_2D", "x", "a", "fourier;"),
        ("LOG", "a", "b", ""),
        ("CONV_2D", "b", "c", "first;"),
        ("LOGISTIC", "c", "d", ""),
        ("EXP", "d", "e", ""),
        ("CONV_2D", "e", "f", "kept.inner;"),
        ("FULLY_CONNECTED", "f", "g", "inner;1"),
        ("FULLY_CONNECTED", "g", "h", "last;"),
        ("ADD", "h", "i", ""),
    ]
    found = [{"kind": k, "scope": gives, "takes": [t], "gives": [gives], "names": w, "weights": w} for k, t, gives, w in rows]
    floats, fixed = [r"(^|[; ])kept(\.[^;]*)?;"], ["(^|[; ])fourier;"]
    assert roles(found, floats, fixed) == ({"c", "g", "h"}, {"c", "d", "g"}, {"h"})
    rows[4] = ("SOFTMAX", "d", "e", "")  # with attention between layers int8 is left all the time
    found[4] = {**found[4], "kind": "SOFTMAX"}
    assert roles(found, floats, fixed) == ({"c", "g", "h"}, {"c"}, {"g", "h"})


class Twice(nn.Module):
    """Layers that differ in what they are inside of alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)
        self.block = nn.Sequential()
        self.block.conv = nn.Conv2d(8, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(torch.relu(self.block.conv(torch.relu(self.conv(x)))).mean((2, 3)))  # type: ignore[operator]
        return scores


def twice() -> tuple[nn.Module, Source, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net, x = Twice().eval(), torch.randn(32, 3, 8, 8)
    return net, Source(lambda: b"", net, x), x


@pytest.mark.slow
@pytest.mark.parametrize("name", EDGE)
def test_layers_of_one_name_are_told_apart(name: str) -> None:
    net, source, x = twice()
    sizes = {}
    for kept in ("conv", "block.conv"):
        program = get(name).compile(source, calibration=x.numpy(), float_layers=frozenset({kept}))
        sizes[kept] = program.size_bytes
        assert (program.precision, program.left) == ("mixed", {})
        assert np.allclose(get(name).load(program).run(x.numpy()), net(x).detach().numpy(), atol=0.05)
    assert sizes["block.conv"] > sizes["conv"]  # its 576 weights in four bytes, against 216


@pytest.mark.slow
@pytest.mark.parametrize("name", EDGE)
def test_weights_that_were_trained_channels_last_give_the_same_file(name: str) -> None:
    net, source, x = twice()
    made = get(name).compile(source, calibration=x.numpy(), float_layers=frozenset())
    last = Source(lambda: b"", net.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last))  # type: ignore[call-overload]
    assert get(name).compile(last, calibration=x.numpy(), float_layers=frozenset()).digest == made.digest


@pytest.mark.slow
@pytest.mark.parametrize("name", EDGE)
def test_sessions_of_other_threads_stand_side_by_side(name: str) -> None:
    """ExecuTorch has one pool of threads: what was loaded for another size is loaded again."""
    net, source, x = twice()
    program = get(name).compile(source)
    one, two = (get(name).load(program, threads=threads) for threads in (1, 2))
    for session in (one, two, one, two):
        assert np.allclose(session.run(x[:3].numpy()), net(x[:3]).detach().numpy(), atol=1e-5)
    with pytest.raises(InputError, match="shape"):
        one.run(x[:, :, :5].numpy())
