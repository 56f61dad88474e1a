"""OpenVINO's files: small, and still the same network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from equipoise.errors import InputError
from equipoise.runtimes.base import Program, Source, get
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
