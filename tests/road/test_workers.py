"""A study in a database, walked here and worked for by processes that come, go and are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from databases import Server
from hands import Slow

from equipoise.errors import InputError
from equipoise.events import Event
from equipoise.listeners import Stop
from equipoise.road import worker
from equipoise.road.walk import optimize
from equipoise.study.orders import Orders
from equipoise.study.store import Store
from equipoise.workloads import load

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("server")]
RECIPE = "r" * 64


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def begun(address: str, folder: Path, *words: str) -> subprocess.Popen[str]:
    """Start a worker as on another machine: a process of its own, in a folder of its own."""
    folder.mkdir(exist_ok=True)
    url, _, name = address.partition("#")
    command = [sys.executable, "-m", "equipoise", "worker", "--store", url, "--study", name, "--threads", "1", *words]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_workers_make_what_this_machine_times(server: Server, tmp_path: Path) -> None:
    address = server.address("digits")
    helpers = [begun(address, tmp_path / name, "--lease", "3s") for name in ("a", "b")]
    killed = threading.Event()
    scored: list[Event] = []

    def listen(event: Event) -> None:
        if event.evaluation is not None:
            scored.append(event)
            if event.evaluation.fidelity == "one-shot" and len(scored) > 4 and not killed.is_set():
                killed.set()
                helpers[0].kill()  # in the midst of what it was given
                scored.clear()
            if killed.is_set() and len(scored) == 10:  # most of them are the other's, however few it had made before
                raise Stop

    study = optimize(
        load("digits"), budget="drop<=1", time=150, store=address, spec="digits", workers=0, only="width,bits", listen=listen
    )
    assert killed.is_set()
    assert study.searched
    assert not study.failures
    keys = [e.key for e in study.evaluations]
    assert len(keys) == len(set(keys))
    helpers[0].communicate()
    helpers[1].terminate()  # by itself it ends a minute after the study
    done, said = helpers[1].communicate(timeout=60)
    assert int(done.split()[0]) > 5, said
    assert helpers[1].returncode == 0
    with Store.open(address, readonly=True) as store:
        assert store.walker() == ""
        again = [e.key for e in type(study).read(store).evaluations]
    assert again == keys


def slow(seconds: float) -> Any:
    return Slow(seconds, lambda job: {"evaluation": {"key": job.key}})


@pytest.fixture
def orders(server: Server, request: pytest.FixtureRequest) -> Iterator[Orders]:
    address = server.address(request.node.name.replace("_", "-")[:60])
    with Store.open(address):
        found = Orders(address)
        found.open(RECIPE)
        yield found
        found.close()


def test_a_heartbeat_holds_an_order_for_longer_than_its_lease(orders: Orders) -> None:
    (number,) = orders.post([("evaluation", "a", {}, 1.0)])
    order = orders.claim("a", RECIPE, lease_s=0.8)
    assert order is not None
    child = slow(2.0)
    assert worker.answered(orders, order, child, stop=threading.Event(), lease_s=0.8)
    assert orders.results([number]) == {number: {"evaluation": {"key": "a"}}}


def test_who_lost_an_order_stops_and_says_nothing(orders: Orders) -> None:
    (number,) = orders.post([("evaluation", "a", {"x": 1}, 1.0)])
    order = orders.claim("a", RECIPE, lease_s=1.0)
    assert order is not None

    def cleared() -> None:
        with closing(Orders(orders.address)) as other:
            other.clear()

    threading.Timer(0.3, cleared).start()
    child = slow(60.0)
    began = time.monotonic()
    assert not worker.answered(orders, order, child, stop=threading.Event(), lease_s=1.0)
    assert time.monotonic() - began < 30
    assert orders.results([number]) == {}


def test_a_worker_that_is_told_to_end_gives_its_order_back(orders: Orders) -> None:
    orders.post([("evaluation", "a", {}, 1.0)])
    order, stop = orders.claim("a", RECIPE), threading.Event()
    assert order is not None
    threading.Timer(0.2, stop.set).start()
    child = slow(60.0)
    assert not worker.answered(orders, order, child, stop=stop, lease_s=60)
    assert orders.claim("b", RECIPE) is not None  # at once, not when the lease is over


def test_a_worker_whose_workload_does_not_load_says_so_and_harms_nothing(server: Server, tmp_path: Path) -> None:
    address = server.address("elsewhere")
    lost = begun(address, tmp_path / "a")
    (tmp_path / "b").mkdir()
    with Store.open(address) as store:
        orders = Orders(address)
        said = {"spec": "cifar10:/nowhere.zip", "fingerprint": "x", "targets": "onnxruntime:cpu", "seed": 0, "student": ""}
        from equipoise import __version__
        from equipoise.records import dumps

        recipe = store.blob(dumps({**said, "version": __version__, "held": store.blob(b"")}).encode())
        orders.post([("evaluation", "a", {}, 1.0)])
        orders.open(recipe)
        _, told = lost.communicate(timeout=120)
        assert lost.returncode == 2
        assert "/nowhere.zip" in told
        assert len(told.strip().splitlines()[-1]) < 500
        orders.close()


def test_a_worker_ends_by_a_signal(server: Server, tmp_path: Path) -> None:
    waiting = begun(server.address("not-begun"), tmp_path / "a")
    time.sleep(6.0)
    os.kill(waiting.pid, signal.SIGTERM)
    done, _ = waiting.communicate(timeout=30)
    assert waiting.returncode == 0
    assert done.startswith("0 orders")


def test_a_worker_needs_a_database(capsys: pytest.CaptureFixture[str]) -> None:
    from equipoise.cli import main

    assert main(["worker", "--store", "runs/a"]) == 2
    assert "--workers" in capsys.readouterr().err
    with pytest.raises(InputError, match="from 1 on"):
        optimize("digits", store="runs/a", workers=0)
