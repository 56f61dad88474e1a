"""The server as a client meets it: over HTTP, with what is right, wrong, too much, too slow and unwelcome."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any, BinaryIO

import numpy as np
import pytest
from ladders import Sums

pytest.importorskip("fastapi")
pytest.importorskip("httptools")
from running import INFER, Served, request
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from equipoise.errors import InputError
from equipoise.serve.protocol import HEADER
from equipoise.serve.server import Joined, listening


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with Served(0.002, 0.001) as made:
        yield made


def test_an_answer_says_which_rung_gave_it_and_what_that_may_have_lost(served: Served) -> None:
    status, told, headers = served.ask("POST", INFER, request(2, 1.5, id="x"))
    assert status == 200
    assert told["outputs"] == [{"name": "output", "datatype": "FP32", "shape": [2, 2], "data": [4.5, 0.0, 4.5, 0.0]}]
    assert (told["id"], told["model_name"], told["model_version"]) == ("x", "sums", "rung0")
    asked = told["parameters"]
    assert (asked["rung"], asked["quality"], asked["drop"], asked["drop_at_most"], asked["late"]) == (
        "rung0",
        90,
        0,
        0.5,
        False,
    )
    assert headers["x-equipoise-rung"] == "rung0"


def test_bytes_in_and_bytes_out(served: Served) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    row = {"name": "input", "datatype": "FP32", "shape": [2, 3], "parameters": {"binary_data_size": 24}}
    head = json.dumps({"inputs": [row], "parameters": {"binary_data_output": True}}).encode()
    length = {"Inference_Header_Content_Length": str(len(head))}
    status, content, headers = served.ask("POST", INFER, head + array.tobytes(), **length)
    assert status == 200
    raw = content[int(headers["inference-header-content-length"]) :]
    assert np.frombuffer(raw, np.float32).reshape(2, 2)[:, 0].tolist() == [3.0, 12.0]


def test_what_the_process_logs_by_stays_open() -> None:
    handler = logging.StreamHandler()
    handler.close = lambda: pytest.fail("closed by the server")  # type: ignore[method-assign]
    with Served(0.001) as server:
        assert server.ask("GET", "/v2/health/live")[0] == 200
    del handler.close  # type: ignore[method-assign]


def test_health_metadata_and_figures_are_told(served: Served) -> None:
    assert served.ask("GET", "/v2/health/live")[:2] == (200, {"live": True})
    assert served.ask("GET", "/v2/health/ready")[:2] == (200, {"ready": True})
    assert served.ask("GET", "/v2/models/sums/ready")[0] == 200
    assert served.ask("HEAD", "/v2/health/ready")[0] == 200
    assert served.ask("GET", "/v2")[1]["extensions"] == ["binary_tensor_data"]
    told = served.ask("GET", "/v2/models/sums")[1]
    assert told["versions"] == ["rung0", "rung1"]
    assert told["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 3]}]
    served.ask("POST", INFER, request())
    text = served.ask("GET", "/metrics")[1].decode()
    assert 'equipoise_answers_total{rung="rung0"}' in text
    assert 'equipoise_requests_total{status="200"}' in text


def test_a_request_in_a_hurry_gets_a_quicker_rung() -> None:
    with Served(2.0, 0.001) as served:
        told = served.ask("POST", INFER, request(parameters={"timeout": 1_000_000}))[1]  # microseconds
    assert told["parameters"]["rung"] == "rung1"


def test_a_version_is_a_rung_and_answers_alone(served: Served) -> None:
    at = "/v2/models/sums/versions/rung1"
    assert served.ask("GET", at)[1]["versions"] == ["rung0", "rung1"]
    assert served.ask("GET", f"{at}/ready")[:2] == (200, {"ready": True})
    status, told, _ = served.ask("POST", f"{at}/infer", request(2))
    assert (status, told["model_version"], told["outputs"][0]["data"][1::2]) == (200, "rung1", [1.0, 1.0])
    assert served.ask("POST", INFER, request())[1]["model_version"] == "rung0"


WRONG: list[tuple[str, str, Any, int, str]] = [
    ("POST", INFER, b"", 400, "JSON"),
    ("POST", INFER, b"{", 400, "JSON"),
    ("POST", INFER, {"inputs": []}, 400, "all of input"),
    ("POST", INFER, request(9), 400, "1 to 8 rows"),
    ("POST", INFER, request(parameters={"timeout": -1}), 400, "microseconds above 0"),
    ("POST", INFER, request(parameters={"timeout": "soon"}), 400, "microseconds above 0"),
    ("POST", INFER, b" " * 20_001, 413, "at most 20000 bytes"),
    ("POST", INFER, request(value=-100), 500, "it broke"),
    ("POST", INFER, request(value=3e38), 500, "the answer of rung0 to it is not finite"),
    ("POST", INFER, request(value=3e38, parameters={"binary_data_output": True}), 500, "is not finite"),
    ("POST", "/v2/models/other/infer", request(), 404, "it is 'sums'"),
    ("GET", "/v2/models/other", None, 404, "it is 'sums'"),
    ("POST", "/v2/models/sums/versions/7/infer", request(), 404, "there are rung0, rung1"),
    ("GET", "/v2/models/sums/versions/7", None, 404, "there are rung0, rung1"),
    ("GET", "/v2/models/sums/versions/7/ready", None, 404, "there are rung0, rung1"),
    ("GET", "/v2/models/other/versions/rung0", None, 404, "it is 'sums'"),
    ("POST", INFER, request(outputs=[{"name": "nope"}]), 400, "outputs must be output alone"),
    ("POST", INFER, request(value=float("nan")), 400, "tensor input data must be finite"),
    ("GET", "/nowhere", None, 404, "Not Found"),
    ("GET", INFER, None, 405, "Method Not Allowed"),
]


@pytest.mark.parametrize(("method", "path", "body", "status", "told"), WRONG)
def test_what_is_wrong_is_answered_and_the_server_goes_on(
    served: Served, method: str, path: str, body: Any, status: int, told: str
) -> None:
    found, content, _ = served.ask(method, path, body)
    assert found == status
    assert told in content.get("error", "")
    assert served.ask("POST", INFER, request())[0] == 200


def test_a_body_that_never_ends_or_never_comes_is_cut_off(served: Served) -> None:
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\n"
    for rest, status in (
        ("Content-Length: 999999999999\r\n\r\nabc", b" 413 "),
        ("Content-Length: 500\r\n\r\nabc", b" 408 "),
        ("Transfer-Encoding: chunked\r\n\r\n" + ("4000\r\n" + "a" * 0x4000 + "\r\n") * 3, b" 413 "),
    ):
        with socket.create_connection(("127.0.0.1", served.port), timeout=20) as to:
            to.sendall((head + rest).encode())
            assert status in to.recv(1000)
    assert served.ask("POST", INFER, request())[0] == 200


@pytest.mark.parametrize("first", [b"", b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"])
def test_who_never_ends_the_headers_is_hung_up_on(served: Served, first: bytes) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as to:
        to.sendall(first)
        if first:
            assert b" 200 " in to.recv(1000)
        began = time.monotonic()
        to.sendall(b"GET /")
        with contextlib.suppress(ConnectionError):  # closed while it is still being written to
            while time.monotonic() < began + 20:
                to.sendall(b"a")  # the address goes on and on
                to.settimeout(0.2)
                with contextlib.suppress(TimeoutError):
                    if not to.recv(1000):
                        break
    assert 0.5 < time.monotonic() - began < 15
    assert served.ask("POST", INFER, request())[0] == 200


GET = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n"
CHUNKED = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{{\r\n0\r\n".encode()
ENDLESS = {
    "one header": (GET + b"X: ", b"a" * 2**20),
    "many headers": (GET, b"X: a\r\n" * 2**17),
    "an address": (b"GET /", b"a" * 2**20),
    "a second request": (GET + b"\r\n" + GET + b"X: ", b"a" * 2**20),
    "trailers": (CHUNKED, b"X: a\r\n" * 2**17),
}


def closed_early(port: int, first: bytes, rest: bytes, times: int = 100) -> bool:
    """Whether a connection is closed before the rest was taken so many times."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as to:
        try:
            to.sendall(first)
            for _ in range(times):
                to.sendall(rest)
        except ConnectionError:
            return True
    return False


@pytest.mark.parametrize("http", [HttpToolsProtocol, H11Protocol])
def test_a_head_without_end_is_refused_at_once_and_a_large_one_is_not(http: Any) -> None:
    with Served(0.001, http=http) as served:
        for kind, (first, rest) in ENDLESS.items():
            assert closed_early(served.port, first, rest), kind
        with socket.create_connection(("127.0.0.1", served.port), timeout=20) as to:
            to.sendall(GET + b"X: aaaaa\r\n" * 20_000 + b"\r\n")
            with contextlib.suppress(ConnectionError):
                assert b" 200 " not in to.recv(1000)
        with socket.create_connection(("127.0.0.1", served.port), timeout=20) as to:
            for _ in range(10):  # kept open: each has a head of its own
                to.sendall(GET + b"X: " + b"a" * 30_000 + b"\r\n\r\n")
                assert b" 200 " in to.recv(1000)
        assert served.ask("POST", INFER, request(8, more="x" * 15_000))[0] == 200


def test_a_connection_that_is_in_use_stays_open(served: Served) -> None:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)) as to:
        to.connect()
        kept = to.sock
        began = time.monotonic()
        while time.monotonic() < began + 2.5 * served.server.idle_s:
            to.request("POST", INFER, json.dumps(request()))
            assert to.getresponse().read()
            assert to.sock is kept
            time.sleep(0.05)


def test_whoever_hangs_up_half_way_harms_nobody(served: Served) -> None:
    body = json.dumps(request()).encode()
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    chunked = head.replace(b"Content-Length: %d" % len(body), b"Transfer-Encoding: chunked")

    def counted(status: int) -> float:
        found = re.search(rf'requests_total{{status="{status}"}} (\S+)', served.ask("GET", "/metrics")[1].decode())
        return float(found[1]) if found else 0.0

    failed, gone = counted(500), counted(499)
    for sent in (head[:20], head, head + body[:30], chunked + b"nonsense\r\n", head + body):
        with socket.create_connection(("127.0.0.1", served.port), timeout=20) as to:
            to.sendall(sent)
    assert served.ask("POST", INFER, request())[0] == 200
    until = time.monotonic() + 20
    while counted(499) < gone + 3 and time.monotonic() < until:
        time.sleep(0.05)
    assert (counted(500), counted(499)) == (failed, gone + 3)


def pipelined(method: str, path: str, body: bytes) -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def answered(read: BinaryIO) -> int:
    """Return the status of the next answer."""
    status = int(read.readline().split(b" ")[1])
    headers = dict(line.rstrip().lower().split(b": ", 1) for line in iter(read.readline, b"\r\n"))
    assert json.loads(read.read(int(headers[b"content-length"])))
    return status


FEW = [
    ("POST", INFER, json.dumps(request(8, more="x" * 15_000)).encode()),  # longer than a piece
    ("GET", "/v2/health/live", b""),
    ("POST", "/v2/models/other/infer", b"x" * 18_000),  # answered before its body is here
    ("POST", INFER, json.dumps(request()).encode()),
    ("GET", "/v2", b""),
]


@pytest.mark.parametrize("http", [HttpToolsProtocol, H11Protocol])
@pytest.mark.parametrize("token", ["", "a word of sixteen"])
def test_requests_that_come_before_their_turn_are_answered_in_order(http: Any, token: str) -> None:
    with Served(0.002, http=http, token=token) as served:
        with socket.create_connection(("127.0.0.1", served.port), timeout=20) as to:
            to.sendall(b"".join(pipelined(*each) for each in FEW * 30))
            with to.makefile("rb") as read:
                found = [answered(read) for _ in FEW * 30]
        assert found == ([401, 200, 401, 401, 401] if token else [200, 200, 404, 200, 200]) * 30


@pytest.mark.parametrize("http", [HttpToolsProtocol, H11Protocol])
@pytest.mark.parametrize(
    "one", [pipelined("POST", INFER, b"x" * 3000), pipelined("GET", "/v2", b""), pipelined("POST", INFER, b"{}")]
)
def test_who_sends_on_and_on_and_reads_no_answer_is_read_no_further(http: Any, one: bytes) -> None:
    with Served(0.001, http=http, token="a word of sixteen") as served:
        with socket.create_connection(("127.0.0.1", served.port)) as to:
            to.setblocking(False)
            sent, block, stuck = 0, memoryview(one * (2**18 // len(one))), 0
            while stuck < 20 and sent < 300 * 2**20:
                try:
                    sent, stuck = sent + to.send(block[sent % len(block) :]), 0
                except BlockingIOError:
                    stuck += 1
                    time.sleep(0.05)
            (connection,) = served.server.server_state.connections
            assert len(connection.transport.held) < 2**20
            assert len(getattr(connection, "pipeline", ())) < 2**14 // len(one) + 2
            assert stuck == 20  # what is on its way is the kernel's
        assert served.ask("GET", "/v2/health/live")[0] == 200


@pytest.mark.parametrize("http", [HttpToolsProtocol, H11Protocol])
def test_an_answer_that_nobody_waits_for_any_more_is_dropped_without_a_word(
    http: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with Served(0.1, http=http, loop="uvloop" if find_spec("uvloop") else "auto") as served:
        body = json.dumps(request()).encode()
        for times in (1, 2, 5):
            with socket.create_connection(("127.0.0.1", served.port), timeout=20) as to:
                to.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closed by a reset
                to.sendall(pipelined("POST", INFER, body) * times)
                time.sleep(0.05)
        assert served.ask("POST", INFER, request())[0] == 200
    assert capsys.readouterr().err == ""


def test_a_head_goes_out_with_what_follows_it_and_alone_where_nothing_does() -> None:
    sent: list[bytes] = []
    soon: list[Any] = []
    closing = False
    below = SimpleNamespace(write=sent.append, close=lambda: sent.append(b"closed"), is_closing=lambda: closing, x=1)
    joined = Joined(below, SimpleNamespace(call_soon=soon.append))  # type: ignore[arg-type]
    joined.write(b"HTTP/1.1 200 OK\r\n\r\n")
    joined.write(b"body")
    joined.write(b"more")
    assert sent == [b"HTTP/1.1 200 OK\r\n\r\nbody", b"more"]
    joined.write(b"HTTP/1.1 204 No Content\r\n\r\n")
    for flush in soon:
        flush()
    joined.write(b"HTTP/1.1 431 Too Large\r\n\r\n")
    joined.close()
    assert sent[2:] == [b"HTTP/1.1 204 No Content\r\n\r\n", b"HTTP/1.1 431 Too Large\r\n\r\n", b"closed"]
    assert joined.x == 1
    closing = True  # by the client
    joined.write(b"HTTP/1.1 200 OK\r\n\r\n")
    joined.write(b"body")
    joined.write(b"HTTP/1.1 200 OK\r\n\r\n")
    joined.close()
    assert sent[5:] == [b"closed"]


@pytest.mark.parametrize("http", [HttpToolsProtocol, H11Protocol])
def test_who_would_be_late_is_told_before_the_tensors_are_read(http: Any) -> None:
    array = np.ones((2, 3), np.float32).tobytes()
    row = {"name": "input", "datatype": "FP32", "shape": [2, 3], "parameters": {"binary_data_size": 24}}

    def sent(**parameters: Any) -> bytes:
        told = json.dumps({"inputs": [row], "parameters": parameters}).encode()
        length = f"Content-Length: {len(told) + 24}\r\n{HEADER}: {len(told)}"
        return f"POST {INFER} HTTP/1.1\r\nHost: x\r\n{length}\r\n\r\n".encode() + told

    with Served(0.2, slo_s=0.1, http=http) as served, socket.create_connection(("127.0.0.1", served.port), timeout=20) as to:
        for _ in range(3):
            to.sendall(sent())
            assert b" 429 " in to.recv(1000)
            to.sendall(array)  # comes all the same, and is no part of the next request
            to.sendall(sent(timeout=5e6) + array)
            assert b" 200 " in to.recv(1000)
        assert served.engine.waiting == 0


def test_too_many_are_turned_away_with_the_time_to_come_back() -> None:
    with Served(0.2, slo_s=0.3) as served:
        found: list[tuple[int, dict[str, str]]] = []

        def one() -> None:
            status, _, headers = served.ask("POST", INFER, request())
            found.append((status, headers))

        threads = [threading.Thread(target=one) for _ in range(60)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert {status for status, _ in found} == {200, 429}
    assert all(int(headers["retry-after"]) >= 1 for status, headers in found if status == 429)


def test_a_token_is_asked_of_all_but_health() -> None:
    with Served(0.001, token="a word of sixteen") as served:
        assert served.ask("GET", "/v2/health/live")[0] == 200
        assert served.ask("POST", INFER, request())[0] == 401
        assert served.ask("GET", "/metrics")[0] == 401
        assert served.ask("POST", INFER, request(), Authorization="Bearer another word")[0] == 401
        assert served.ask("POST", INFER, request(), Authorization="Basic a word of sixteen")[0] == 401
        for scheme in ("Bearer", "bearer"):
            assert served.ask("POST", INFER, request(), Authorization=f"{scheme} a word of sixteen")[0] == 200


def test_an_answer_that_is_not_finite_is_no_answer_and_those_beside_it_are() -> None:
    with Served(0.002) as served:
        (sums,) = served.sums
        sums.open.clear()
        found: dict[float, tuple[int, Any]] = {}

        def one(value: float) -> None:
            found[value] = served.ask("POST", INFER, request(value=value))[:2]

        values = [1.0, 3e38, 2.0]
        threads = [threading.Thread(target=one, args=(value,)) for value in values]
        threads[0].start()
        time.sleep(0.2)  # it is run alone, and the others together
        for thread in threads[1:]:
            thread.start()
        time.sleep(0.2)
        sums.open.set()
        for thread in threads:
            thread.join()
        text = served.ask("GET", "/metrics")[1].decode()
    assert sums.batches == [1, 2]
    assert [found[value][0] for value in values] == [200, 500, 200]
    assert [found[value][1]["outputs"][0]["data"][0] for value in (1.0, 2.0)] == [3.0, 6.0]
    assert 'answers_total{rung="rung0"} 2.0' in text


@pytest.mark.parametrize("host", ["nowhere.invalid", "a..b"])
def test_a_host_that_leads_to_no_address_is_told(host: str) -> None:
    with pytest.raises(InputError, match="host must be an address of this machine"):
        listening(host, 0)


def test_a_rung_that_breaks_costs_no_request() -> None:
    with Served(0.002, 0.001) as served:
        broken: Sums = served.sums[0]
        broken.fails = True
        told = served.ask("POST", INFER, request())[1]
        assert told["parameters"]["rung"] == "rung1"
        assert served.ask("GET", "/v2/health/ready")[0] == 200
        served.sums[1].fails = True
        assert served.ask("POST", INFER, request())[0] == 500
        assert served.ask("POST", INFER, request())[0] == 503
        assert served.ask("GET", "/v2/health/ready")[0] == 503
