"""A study in a database, whose connections are cut and parted, and whose workers sleep through their leases."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from databases import Line, Server, line_to
from hands import Slow

from equipoise.road import worker
from equipoise.study.orders import Orders
from equipoise.study.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("server")]
RECIPE = "r" * 64
LEASE_S = 0.5


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def line(server: Server) -> Iterator[Line]:
    with line_to(server) as way:
        yield way


def slow(name: str, seconds: float) -> Any:
    """A child that answers by its name."""
    return Slow(seconds, lambda job: {"by": name, "key": job.key})


def posted(orders: Orders, count: int) -> list[int]:
    orders.open(RECIPE)
    return orders.post([("evaluation", str(number), {"number": number}, 1.0) for number in range(count)])


@pytest.mark.parametrize("unanswered", [False, True], ids=["lost", "unanswered"])
def test_wherever_a_connection_is_cut_each_result_is_recorded_once(line: Line, unanswered: bool) -> None:
    """At every message of a commit, and of the new connection's after it; what arrived unanswered is not done twice."""
    with Store.open(line.address(f"cut-{unanswered}")) as store:
        store.put("step", "first", {"i": 0}, seconds=0)
        began = line.pieces
        store.put("step", "second", {"i": 1}, seconds=0)
        messages = line.pieces - began
        assert messages >= 4  # begin, look, write, commit
        for number in range(1, messages + 4):
            line.cut_at(number, unanswered=unanswered)
            store.put("step", str(number), {"i": 1 + number}, seconds=0)
        assert [row["i"] for row in store.all("step")] == list(range(messages + 5))


@pytest.mark.parametrize("unanswered", [False, True], ids=["lost", "unanswered"])
def test_wherever_a_workers_connection_is_cut_its_order_is_done_once(line: Line, server: Server, unanswered: bool) -> None:
    name = f"worker-cut-{unanswered}"
    with Store.open(server.address(name)), closing(Orders(server.address(name))) as orders:
        orders.open(RECIPE)
        for number in range(1, 12):
            (order,) = orders.post([("evaluation", str(number), {"number": number}, 1.0)])
            with closing(Orders(line.address(name))) as cut:
                assert cut.recipe() == (RECIPE, True)  # connected
                line.cut_at(number, unanswered=unanswered)
                finished, until = 0, time.monotonic() + 60.0
                while not orders.results([order]) and time.monotonic() < until:
                    held = cut.claim("a", RECIPE, lease_s=0.2)
                    finished += held is not None and cut.finish(held, {"number": number})
                    time.sleep(0.02)
                line.cut_at(0, unanswered=False)  # where it needed fewer messages
            assert orders.results([order]) == {order: {"number": number}}
            assert finished == 1


def test_workers_that_are_parted_for_longer_than_a_lease_are_taken_over_and_nothing_is_done_twice(
    line: Line, server: Server
) -> None:
    address, done, stop = server.address("parted"), dict[str, int](), threading.Event()
    with Store.open(line.address("parted")) as store, closing(Orders(address)) as orders:
        ids = posted(orders, 24)

        def serves(name: str, where: str) -> None:
            with closing(Orders(where)) as mine:
                child = slow(name, 0.2)
                done[name] = worker.serve(mine, child, RECIPE, told=lambda _: None, stop=stop, lease_s=LEASE_S)

        places = {"far": line.address("parted"), "further": line.address("parted"), "near": address}
        workers = [threading.Thread(target=serves, args=item) for item in places.items()]
        for one in workers:
            one.start()
        time.sleep(1.0)
        line.through.clear()
        walking = threading.Thread(target=lambda: store.put("step", "0", {"i": 0}, seconds=0))
        walking.start()
        time.sleep(4 * LEASE_S)
        line.through.set()
        until = time.monotonic() + 120.0
        while len(orders.results(ids)) < len(ids) and time.monotonic() < until:
            time.sleep(0.1)
        walking.join()
        found = orders.results(ids)
        stop.set()
        for one in workers:
            one.join()
        assert store.all("step") == [{"i": 0}]
    assert sorted(int(row["key"]) for row in found.values()) == list(range(24))
    assert sum(done.values()) == 24  # who said that it finished is who is recorded, and nobody else said so
    assert done == {name: sum(row["by"] == name for row in found.values()) for name in places}
    assert done["near"] > 0


def _serves(address: str, folder: str, out: Any) -> None:
    os.chdir(folder)
    with closing(Orders(address)) as mine:
        child = slow("zombie", 1.0)
        out.put(worker.serve(mine, child, RECIPE, told=lambda _: None, stop=threading.Event(), lease_s=LEASE_S))


@pytest.mark.parametrize("finished", [True, False], ids=["done by the heir", "held by the heir"])
def test_a_worker_that_slept_through_its_leases_says_nothing_when_it_wakes(
    server: Server, tmp_path: Path, finished: bool
) -> None:
    """As a virtual machine that was suspended: its process stands still for four leases and goes on where it stood."""
    address = server.address(f"slept-{finished}")
    context = multiprocessing.get_context("spawn")
    with Store.open(address), closing(Orders(address)) as orders:
        (number,) = posted(orders, 1)
        out = context.Queue()
        zombie = context.Process(target=_serves, args=(address, str(tmp_path), out))
        zombie.start()
        assert zombie.pid
        until = time.monotonic() + 60.0
        while not orders.held() and time.monotonic() < until:
            time.sleep(0.01)
        os.kill(zombie.pid, signal.SIGSTOP)
        time.sleep(4 * LEASE_S)
        heir = orders.claim("heir", RECIPE, lease_s=60.0)
        assert heir is not None
        assert heir.id == number
        if finished:
            assert orders.finish(heir, {"by": "heir"})
        os.kill(zombie.pid, signal.SIGCONT)
        time.sleep(2.0)  # longer than its work takes
        assert orders.results([number]) == ({number: {"by": "heir"}} if finished else {})
        assert orders.finish(heir, {"by": "heir"})
        assert orders.results([number]) == {number: {"by": "heir"}}
    assert out.get(timeout=60) == 0  # it counts nothing as done, and ends as nobody walks
    zombie.join()
    assert zombie.exitcode == 0


def test_no_clock_but_the_servers_says_whose_an_order_is(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    address, clock = server.address("clocks"), time.time
    with Store.open(address), closing(Orders(address)) as orders:
        (number,) = posted(orders, 1)
        held = orders.claim("a", RECIPE)
        assert held is not None
        for hours in (1, -1):
            monkeypatch.setattr(time, "time", lambda hours=hours: clock() + 3600 * hours)
            assert orders.claim("b", RECIPE) is None
            assert orders.beat(held)
        assert orders.finish(held, {"by": "a"})
        assert orders.results([number]) == {number: {"by": "a"}}
