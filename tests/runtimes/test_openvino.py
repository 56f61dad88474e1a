"""OpenVINO's files: small, and still the same network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from equipoise.errors import InputError
from equipoise.runtimes.base import Program, Source, get
from equipoise.runtimes.export import Exporter
from equipoise.runtimes.openvino import FILES, _compacted

openvino = pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def whole(probe: Source, tmp_path_factory) -> tuple[bytes, bytes]:
    """A quantized network's files as OpenVINO itself writes them."""
    assert probe.example is not None
    program = get("openvino").compile(probe, calibration=probe.example.numpy(), float_layers=frozenset())
    graph, weights = (program.file(name) for name in FILES)
    folder = tmp_path_factory.mktemp("ir")
    openvino.save_model(openvino.Core().read_model(model=graph, weights=weights), folder / FILES[0], compress_to_fp16=False)
    return (folder / FILES[0]).read_bytes(), (folder / FILES[1]).read_bytes()


def outputs(graph: bytes, weights: bytes, probe: Source) -> np.ndarray:
    assert probe.example is not None
    program = Program("openvino", "int8", dict(zip(FILES, (graph, weights), strict=True)))
    return get("openvino").load(program).run(probe.example.numpy())


def test_a_compacted_graph_is_two_thirds_and_computes_the_same(whole: tuple[bytes, bytes], probe: Source) -> None:
    graph, weights = whole
    small = _compacted(graph, weights)
    assert len(small) < 0.67 * len(graph)
    assert np.array_equal(outputs(small, weights, probe), outputs(graph, weights, probe))


def test_a_wrong_merge_does_not_pass(whole: tuple[bytes, bytes], probe: Source) -> None:
    graph, weights = whole
    blank = _compacted(graph, bytes(len(weights)))  # every constant of a size looks equal: the planted mistake
    with pytest.raises(InputError, match="OpenVINO can read"):
        outputs(blank, weights, probe)


ENDED = """
import faulthandler, signal, subprocess, sys
from pathlib import Path
from equipoise.runtimes.base import Program, get

faulthandler.enable()
program = Program("openvino", "fp32", {path.name: path.read_bytes() for path in Path(sys.argv[1]).iterdir()})
first, second = get("openvino").load(program), get("openvino").load(program)
del first
del second
signal.signal(signal.SIGCHLD, lambda *_: print("told"))
subprocess.run([sys.executable, "-c", ""], check=True)
print("alive")
"""


def test_signals_are_handled_after_sessions_ended_in_the_order_in_which_they_began(probe: Source, tmp_path: Path) -> None:
    """The stack for signals was that of a core that was gone: the next child that ended took the process with it."""
    for name, content in get("openvino").compile(probe).files.items():
        (tmp_path / name).write_bytes(content)
    done = subprocess.run([sys.executable, "-c", ENDED, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["told", "alive"]


class Branched(nn.Module):
    """A perceptron of two layers with biases, and what goes past it; `join` puts the two together."""

    def __init__(self, join: str, width: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.second = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        for tensor in self.parameters():
            tensor.data.normal_(0, 0.1, generator=generator)
        self.join = join

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        past = x * x.sum(1, keepdim=True)
        made = self.second(nn.functional.gelu(self.first(past)))
        if self.join == "gate":
            return past * torch.tanh(made)
        if self.join == "twice":
            first = past + made
            return first + self.second(nn.functional.gelu(self.first(first)))
        return made - torch.relu(x)


LOADED = """
import sys
from pathlib import Path
import numpy as np
from equipoise.runtimes.base import Program, get

folder = Path(sys.argv[1])
given = np.load(folder / "given.npy")
program = Program("openvino", "fp32", {name: (folder / name).read_bytes() for name in ("model.xml", "model.bin")})
for batch in (1, 2, None):
    session = get("openvino").load(program, batch=batch)
    found = np.concatenate([session.run(rows) for rows in np.split(given, len(given) // (batch or 4))])
    np.save(folder / f"found-{batch}.npy", found)
"""


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("join", ["gate", "twice", "past"])
def test_a_perceptron_joined_by_another_branch_loads_at_a_small_batch(join: str, int8: bool, tmp_path: Path) -> None:
    """OpenVINO 2026.4 died of it, without a word."""
    model = Branched(join, 16).eval()
    given = torch.randn(8, 16, generator=torch.Generator().manual_seed(1))
    source = Exporter().source(model, given, topology="")
    held = {"calibration": given.numpy(), "float_layers": frozenset[str]()} if int8 else {}
    for name, content in get("openvino").compile(source, **held).files.items():  # type: ignore[arg-type]
        (tmp_path / name).write_bytes(content)
    np.save(tmp_path / "given.npy", given.numpy())
    done = subprocess.run([sys.executable, "-c", LOADED, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        right = model(given).numpy()
    for found in (np.load(tmp_path / f"found-{batch}.npy") for batch in (1, 2, None)):
        assert np.abs(found - right).max() <= (0.1 if int8 else 1e-5) * np.abs(right).max()
