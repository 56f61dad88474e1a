"""``equipoise watch``: a page that follows a record and never writes to it."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from equipoise.errors import InputError
from equipoise.pages.view import evaluations_of
from equipoise.records import as_data
from equipoise.ship.watch import page, pulse, watching
from equipoise.study.header import header_from
from equipoise.study.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "runs") as opened:
        yield opened


def grown(store: Store, data: dict[str, Any], count: int) -> None:
    """Record the header and so many evaluations, those before included."""
    store.put("study", "header", {"header": as_data(header_from(data["header"]))}, seconds=0.1)
    for e in evaluations_of(data)[:count]:
        store.put("evaluation", e.key, {"evaluation": as_data(replace(e, layers=()))}, seconds=e.seconds)


@pytest.fixture
def port(store: Store) -> Iterator[int]:
    with watching(store.path) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def got(port: int, path: str) -> tuple[int, str, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path)
    answer = connection.getresponse()
    return answer.status, answer.read().decode(), dict(answer.getheaders())


def test_it_waits_for_the_baseline_and_then_shows_the_report(store: Store, port: int, study: Callable[..., Any]) -> None:
    status, text, headers = got(port, "/")
    assert status == 200
    assert "not measured yet" in text
    assert headers["Cache-Control"] == "no-store"
    grown(store, study(12), 12)
    status, text, _ = got(port, "/")
    assert status == 200
    assert "The balance" in text
    assert "connect-src 'self'" in text
    assert got(port, "/nothing")[0] == 404


def test_its_pulse_tells_each_new_evaluation_and_who_is_at_work(store: Store, port: int, study: Callable[..., Any]) -> None:
    data = study(12)
    grown(store, data, 3)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/events")
    answer = connection.getresponse()
    assert answer.getheader("Content-Type") == "text/event-stream"

    def next_said() -> dict[str, str]:
        while not (line := answer.readline().decode()).startswith("data: "):
            pass
        found: dict[str, str] = json.loads(line[6:])
        return found

    first = next_said()
    assert "3 evaluations" in first["says"]
    assert "process" in first["says"]
    grown(store, data, 5)
    while (second := next_said())["mark"] == first["mark"]:
        pass
    assert "5 evaluations" in second["says"]
    connection.close()


def test_a_report_by_itself_asks_nobody(store: Store, study: Callable[..., Any]) -> None:
    grown(store, study(12), 12)
    from equipoise.ship.report import report

    text = report(store.path).read_text()
    assert "connect-src" not in text
    assert "EventSource" not in text
    assert "EventSource" in page(store.path)


def test_nobody_is_at_work_when_the_walker_has_ended(tmp_path: Path, study: Callable[..., Any]) -> None:
    with Store.open(tmp_path / "runs") as store:
        grown(store, study(12), 3)
    with Store.open(tmp_path / "runs", readonly=True) as store:
        assert pulse(store).says.endswith("nobody is at work.")


def test_what_cannot_be_watched_is_told(tmp_path: Path, store: Store, port: int) -> None:
    with pytest.raises(InputError):
        watching(tmp_path / "none")
    with pytest.raises(InputError, match="port must be free"):
        watching(store.path, port=port)
