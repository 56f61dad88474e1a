"""The load: when requests are due, what is counted, and that a slow server is not forgiven."""

from __future__ import annotations

import asyncio
import gzip
from pathlib import Path

import pytest

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


def test_recorded_arrivals_are_brought_to_the_rate(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv.gz"
    file.write_bytes(gzip.compress(b"arrival_ms,tokens\n1000,5\n1500,1\n5000,9\n"))
    assert trace(file, 10.0, 60.0) == pytest.approx([0.0, 0.025, 0.2])
    assert trace(file, 10.0, 0.1) == pytest.approx([0.0, 0.025])


@pytest.mark.parametrize(
    "content", [b"", b"time\n1\n", b"arrival_ms\nsoon\n", b"arrival_ms\n2\n1\n", b"arrival_ms\n1\n", b"\xff"]
)
def test_what_is_no_trace_is_told(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_bytes(content)
    with pytest.raises(InputError, match="--trace must be"):
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


@pytest.mark.parametrize("url", ["nonsense", "http://127.0.0.1/infer", "ftp://a:1/infer", "http://a:b/infer", ""])
def test_what_is_no_address_is_told(url: str) -> None:
    with pytest.raises(InputError, match="URL must be"):
        asyncio.run(metadata(url))


def test_where_nobody_serves_it_is_told() -> None:
    with pytest.raises(EquipoiseError, match="nobody serves at"):
        asyncio.run(metadata("http://127.0.0.1:9/v2/models/m/infer"))
