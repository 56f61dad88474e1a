"""The load: when requests are due, what is counted, and that a slow server is not forgiven."""

from __future__ import annotations

import asyncio
import gzip
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from equipoise.cli import main
from equipoise.errors import EquipoiseError, InputError
from equipoise.serve.loadtest import bodies, metadata, poisson, run, trace

pytest.importorskip("fastapi")
from running import INFER, Served


def test_random_arrivals_come_at_the_rate_and_by_the_seed() -> None:
    due = poisson(200.0, 20.0, seed=1)
    assert due == poisson(200.0, 20.0, seed=1) != poisson(200.0, 20.0, seed=2)
    assert due == sorted(due)
    assert due[-1] < 20.0
    assert len(due) == pytest.approx(4000, rel=0.1)


@pytest.mark.parametrize(
    ("rate", "seconds", "why"),
    [
        (5.0, 0.01, "--time must be longer for a request to fall into it at 5 a second"),
        (1e-9, 60.0, "--time must be longer"),
        (1e9, 30.0, r"--rate must be 3.33e\+05 at most over 30 s"),
        (1e3, 1e5, "--rate must be 100 at most"),
    ],
)
def test_a_load_of_no_request_or_of_too_many_is_told(rate: float, seconds: float, why: str) -> None:
    with pytest.raises(InputError, match=why):
        poisson(rate, seconds, seed=0)


@pytest.mark.parametrize(("rate", "apart"), [("30", True), ("3", False), ("10", False)])
def test_a_load_that_is_not_what_was_asked_for_says_so(
    rate: str, apart: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "trace.csv"
    file.write_text("arrival_ms\n" + "".join(f"{100 * n}\n" for n in range(10)))  # ten a second
    with Served(0.001) as served:
        words = [f"http://127.0.0.1:{served.port}{INFER}", "--rate", rate, "--time", "1s", "--trace", str(file)]
        assert main(["loadtest", *words, "--slo", "p50<=10s"]) == 0
        said = capsys.readouterr().out
        assert main(["loadtest", *words, "--slo", "p50<=10s", "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
    assert told["rate"] == told["requests"]
    assert (f"({told['rate']:g} a second, where --rate asks for {rate})" in said) == apart


def test_recorded_arrivals_are_brought_to_the_rate(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv.gz"
    file.write_bytes(gzip.compress(b"arrival_ms,tokens\n1000,5\n1500,1\n5000,9\n"))
    assert trace(file, 10.0, 60.0) == pytest.approx([0.0, 0.025, 0.2])
    assert trace(file, 10.0, 0.1) == pytest.approx([0.0, 0.025])


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "two arrivals"),
        (b"time\n1\n", "a CSV with a column"),
        (b"arrival_ms\nsoon\n", "a CSV with a column"),
        (b"arrival_ms\n2\n1\n", "in ascending order"),
        (b"arrival_ms\n1\n", "two arrivals"),
        (b"\xff", "a CSV with a column"),
        (b"arrival_ms\n5\n5\n5\n", "arrivals with time between them; got '3 at one time'"),
        (b"arrival_ms\n5\n1\nnan\n", "finite numbers; got 'nan in row 3'"),
        (b"arrival_ms\ninf\n", "finite numbers; got 'inf in row 1'"),
    ],
)
def test_what_is_no_trace_is_told(content: bytes, why: str, tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_bytes(content)
    with pytest.raises(InputError, match=f"--trace must be .*{why}"):
        trace(file, 10.0, 60.0)


def test_answers_in_time_are_counted_with_their_rung_and_quality() -> None:
    with Served(0.001) as served:
        url = f"http://127.0.0.1:{served.port}{INFER}"
        about = asyncio.run(metadata(url))
        asked = bodies(about, seed=0)
        load = asyncio.run(run(url, [0.01 * n for n in range(50)], asked, slo_s=30.0))
        strict = asyncio.run(run(url, [0.01 * n for n in range(10)], asked, slo_s=1e-6))
    assert (load.attainment, load.quality, load.rungs, load.statuses) == (1.0, 90.0, {"rung0": 1.0}, {200: 50})
    assert load.latency_s(0.5) >= 0.001
    assert strict.attainment == 0.0


def test_a_request_is_timed_from_when_it_was_due() -> None:
    with Served(0.05, slo_s=60.0) as served:
        url = f"http://127.0.0.1:{served.port}{INFER}"
        load = asyncio.run(run(url, [0.0] * 12, bodies(asyncio.run(metadata(url)), seed=0), slo_s=60.0))
    assert load.latency_s(1.0) >= 3 * 0.05  # at most four at once: the last waited for two runs before its own


@pytest.mark.parametrize(
    "url", ["nonsense", "http://127.0.0.1/infer", "ftp://a:1/infer", "http://a:b/infer", "", "http://a:1/v2/models/m"]
)
def test_what_is_no_address_is_told(url: str) -> None:
    with pytest.raises(InputError, match="URL must be"):
        asyncio.run(metadata(url))


@pytest.mark.parametrize(
    ("at", "why"),
    [("127.0.0.1:9", "nobody serves at"), ("nowhere.invalid:9", "name of its host"), ("a..b:9", "name of its host")],
)
def test_where_nobody_serves_it_is_told(at: str, why: str) -> None:
    with pytest.raises(EquipoiseError, match=why):
        asyncio.run(metadata(f"http://{at}/v2/models/m/infer"))


def test_what_a_server_refuses_is_told_in_a_sentence() -> None:
    with Served(0.001, token="a word of sixteen") as served:
        at = f"127.0.0.1:{served.port}"
        for url, token, why in (
            (f"http://{at}{INFER}", "", "401: the token is missing or wrong. Give --token-file"),
            (f"http://{at}/v2/models/other/infer", "a word of sixteen", "404: model 'other' is not served here; it is 'sums'"),
            (f"https://{at}{INFER}", "", "does not speak HTTPS"),
        ):
            with pytest.raises(EquipoiseError, match=why):
                asyncio.run(metadata(url, token))


def test_https_is_spoken_where_the_certificate_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl here")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    words = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    words += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([openssl, *words], check=True, capture_output=True)
    with Served(0.001, ssl_keyfile=key, ssl_certfile=certificate) as served:
        url = f"https://127.0.0.1:{served.port}{INFER}"
        with pytest.raises(EquipoiseError, match="not trusted"):
            asyncio.run(metadata(url))
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        load = asyncio.run(run(url, [0.0, 0.01], bodies(asyncio.run(metadata(url)), seed=0), slo_s=30.0))
    assert load.statuses == {200: 2}
