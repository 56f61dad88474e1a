"""A study and its artifacts, served by a process of their own: asked, damaged, and told to end while it is busy."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from equipoise.ship.artifact import pack
from equipoise.ship.deploy.forms import deployed
from equipoise.study.record import Study
from equipoise.study.store import Store

pytest.importorskip("fastapi")
pytestmark = pytest.mark.slow


@contextlib.contextmanager
def serving(*words: str) -> Iterator[tuple[subprocess.Popen[str], str, int, list[str]]]:
    """Start `equipoise serve` on a free port; give the process, the model's name, the port and what it said."""
    command = [sys.executable, "-m", "equipoise", "serve", *words, "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    said: list[str] = []
    assert process.stderr is not None
    for line in process.stderr:
        said.append(line.strip())
        if found := re.search(r"http://127\.0\.0\.1:(\d+)/v2/models/([^/]+)/infer", line):
            break
    else:
        raise AssertionError("\n".join(said))
    try:
        until = time.monotonic() + 60
        while ask(int(found[1]), "GET", "/v2/health/ready")[0] != 200:
            assert time.monotonic() < until
            time.sleep(0.05)
        yield process, found[2], int(found[1]), said
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        process.stderr.close()


def ask(port: int, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Return status and content, 0 where nobody listens."""
    try:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as to:
            to.request(method, path, None if body is None else json.dumps(body))
            found = to.getresponse()
            return found.status, json.loads(found.read() or b"{}")
    except ConnectionError:
        return 0, {}


def digits(values: np.ndarray[Any, Any]) -> dict[str, Any]:
    shape = list(values.shape)
    return {"inputs": [{"name": "input", "datatype": "FP32", "shape": shape, "data": values.ravel().tolist()}]}


@pytest.fixture(scope="module")
def inputs() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).random((4, 64), np.float32)


def test_a_study_answers_as_its_programs_do_and_ends_without_losing_what_it_took(
    study: Path, inputs: np.ndarray[Any, Any]
) -> None:
    import onnxruntime

    with serving(str(study), "--slo", "p99<=2s") as (process, name, port, said):
        assert any("drop" in line and "ms here" in line for line in said)
        status, told = ask(port, "POST", f"/v2/models/{name}/infer", digits(inputs))
        assert status == 200
        with Store.open(study, create=False, readonly=True) as store:
            rung = next(e for e in Study.read(store).evaluations if e.key == told["parameters"]["rung"])
            assert rung.program is not None
            content = store.read_blob(rung.program.files["model.onnx"])
        wanted = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, {"input": inputs})[0]
        got = np.array(told["outputs"][0]["data"], np.float32).reshape(told["outputs"][0]["shape"])
        assert np.allclose(got, wanted, atol=1e-5)
        found: list[tuple[int, Any]] = []

        def client() -> None:
            while (answer := ask(port, "POST", f"/v2/models/{name}/infer", digits(inputs)))[0]:
                found.append(answer)

        threads = [threading.Thread(target=client) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(1.0)
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(60)
        assert process.wait(60) == 0
    assert len(found) > 4
    assert {status for status, _ in found} <= {200, 429, 503}
    for status, told in found:
        assert status != 200 or np.isfinite(told["outputs"][0]["data"]).all()


def test_a_damaged_rung_is_left_out_and_the_rest_serve(study: Path, inputs: np.ndarray[Any, Any], tmp_path: Path) -> None:
    with Store.open(shutil.copytree(study, tmp_path / "study"), create=False) as store:
        read = Study.read(store)
        folders = [pack(e, store, tmp_path / f"rung{i}").path for i, e in enumerate(read.front)]
    assert len(folders) >= 2
    file = folders[-1] / "model.onnx"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with serving(*map(str, folders), "--slo", "p99<=2s") as (_, name, port, said):
        assert any("is left out" in line and str(folders[-1]) in line for line in said)
        assert str(folders[-1]) not in ask(port, "GET", f"/v2/models/{name}")[1]["versions"]
        assert ask(port, "POST", f"/v2/models/{name}/infer", digits(inputs))[0] == 200


def test_what_export_as_wrote_is_served_under_the_name_of_the_study(study: Path, tmp_path: Path) -> None:
    name = json.loads((deployed(study, "ray-serve", out=tmp_path / "out") / "serve_config.yaml").read_text())["applications"][
        0
    ]["name"]
    for source in (tmp_path / "out", study):
        with serving(str(source), "--slo", "p99<=2s") as (_, found, port, _said):
            assert found == name
            versions = ask(port, "GET", f"/v2/models/{name}")[1]["versions"]
            assert source == study or {*versions} <= {each.name for each in (source / "rungs").iterdir()}


def test_a_port_that_is_taken_is_told_before_any_rung_is_timed(study: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        words = ["serve", str(study), "--slo", "p99<=2s", "--port", str(taken.getsockname()[1])]
        done = subprocess.run([sys.executable, "-m", "equipoise", *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "port must be free" in done.stderr
    assert "ms here" not in done.stderr


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no such signal here")
def test_a_newer_study_takes_over_under_load_and_a_damaged_one_does_not(
    study: Path, inputs: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    at = tmp_path / "served"
    shutil.copytree(study, tmp_path / "first")
    at.symlink_to(tmp_path / "first")
    with Store.open(shutil.copytree(study, tmp_path / "copy"), create=False) as store:
        pack(Study.read(store).baseline, store, tmp_path / "other")
    with serving(str(at), "--slo", "p99<=2s") as (process, name, port, _):
        path = f"/v2/models/{name}"
        assert process.stderr is not None
        before, found = ask(port, "GET", path)[1]["versions"], list[tuple[int, Any]]()
        done = threading.Event()

        def client() -> None:
            while not done.is_set():
                found.append(ask(port, "POST", f"{path}/infer", digits(inputs)))

        thread = threading.Thread(target=client)
        thread.start()
        ends = {
            "nowhere": "the old one goes on",
            "copy": "nothing newer",
            "other": "a newer front takes over: other",
        }
        for target, said in ends.items():
            at.unlink()
            at.symlink_to(tmp_path / target)
            process.send_signal(signal.SIGHUP)
            assert any(said in line for line in iter(process.stderr.readline, ""))
        done.set()
        thread.join(60)
        after = ask(port, "GET", path)[1]["versions"]
    assert {status for status, _ in found} == {200}
    assert {told["model_version"] for _, told in found} <= {*before, *after}
    assert len(found) > 4


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--slo", "20ms"], "--slo must be"),
        (["--slo", "p99<=1ns"], "no rung of"),
        (["--slo", "p99<=1s", "--at-least", "quality>=101"], "no rung of"),
        (["--slo", "p99<=1s", "--at-least", "speed>=1"], "--at-least must be"),
        (["--slo", "p99<=1s", "--host", "0.0.0.0"], "--host must be"),
        (["--slo", "p99<=1s", "--key", "k.pem"], "--certificate must be"),
        (["--slo", "p99<=1s", "--token-file", "nowhere"], "--token-file must be"),
        (["--slo", "p99<=1s", "--threads", "1000"], "threads must be"),
    ],
)
def test_what_cannot_be_served_is_told_in_one_line(study: Path, words: list[str], told: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "equipoise", "serve", str(study), *words], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert told in done.stderr.splitlines()[-1]
