"""The record in a PostgreSQL database: what SQLite promises, and what only many machines need."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from databases import Server, served

from equipoise.errors import InputError, StoreError
from equipoise.road.worker import work
from equipoise.study import postgres
from equipoise.study.listing import studies
from equipoise.study.orders import POISON, TRIES, Orders
from equipoise.study.postgres import PostgresStore
from equipoise.study.store import SCHEMA, Store, files_of, folder_at, is_study

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("server")]
RECIPE = "r" * 64


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the folders of studies are made here


@pytest.fixture
def address(server: Server, request: pytest.FixtureRequest) -> str:
    return server.address("".join(c if c.isalnum() else "-" for c in request.node.name)[:60])


@pytest.fixture
def orders(address: str) -> Iterator[Orders]:
    with Store.open(address) as store:
        found = Orders(address)
        found.open(RECIPE)
        yield found
        found.close()
        assert store.all("nothing") == []


def posted(orders: Orders, count: int) -> list[int]:
    return orders.post([("evaluation", str(number), {"number": number}, 1.0) for number in range(count)])


# ---- the record --------------------------------------------------------------------------------------------------------------


def test_a_record_is_kept_in_order_and_never_twice(address: str) -> None:
    with Store.open(address) as store:
        assert store.once("step", "b", lambda: {"pair": (1, 2), "x": 0.1}) == {"pair": [1, 2], "x": 0.1}
        store.put("step", "a", {"i": 1}, seconds=1.5)
        store.put("step", "a", {"i": 1}, seconds=1.5)
        assert store.once("step", "b", lambda: pytest.fail("done before")) == {"pair": [1, 2], "x": 0.1}
        with pytest.raises(StoreError, match="another result"):
            store.put("step", "a", {"i": 2}, seconds=0)
        with pytest.raises(StoreError, match="finite JSON"):
            store.put("step", "c", {"i": float("nan")}, seconds=0)
        sha = store.blob(b"\0weights" * 1000)
        assert store.read_blob(sha) == b"\0weights" * 1000
    with Store.open(address, readonly=True) as store:
        assert store.all("step") == [{"pair": [1, 2], "x": 0.1}, {"i": 1}]
        assert store.spent() >= 1.5
        with pytest.raises(StoreError, match="read-only"):
            store.put("step", "d", {}, seconds=0)
    folder = folder_at(address)
    with Store.open(folder, readonly=True) as store:  # its folder stands for it on this machine
        assert len(store.all("step")) == 2
    files = files_of(folder)
    assert files.read_blob(sha).startswith(b"\0weights")
    with pytest.raises(StoreError, match="missing"):
        files.read_blob("0" * 64)
    files._connection.close()


def test_a_study_is_of_one_thing(address: str) -> None:
    with Store.open(address) as store:
        store.identity({"seed": 0})
        with pytest.raises(InputError, match="recorded 0, now 1"):
            store.identity({"seed": 1})


def test_a_database_of_another_version_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    with served() as server:
        with Store.open(server.address("a")) as store:
            store.put("step", "0", {"i": 0}, seconds=0)
        for schema, which in ((SCHEMA + 1, "a newer"), (SCHEMA - 1, "an earlier")):
            with psycopg.connect(server.address()) as db:
                db.execute("UPDATE equipoise.meta SET schema=%s", (schema,))
            said = f"written by {which} Equipoise .schema {schema}, here {SCHEMA}.. Use the same version on every machine"
            for readonly in (False, True):
                with pytest.raises(StoreError, match=said):
                    Store.open(server.address("a"), readonly=readonly)
            with pytest.raises(StoreError, match=said):
                work(server.address("a"), told=lambda _: None, stop=threading.Event())
            with psycopg.connect(server.address()) as db:
                assert db.execute("SELECT schema FROM equipoise.meta").fetchall() == [(schema,)]
                assert db.execute("SELECT walking FROM equipoise.studies").fetchall() == [(False,)]
        with psycopg.connect(server.address()) as db:
            db.execute("UPDATE equipoise.meta SET schema=%s", (SCHEMA,))
        with Store.open(server.address("a")) as store:
            assert store.all("step") == [{"i": 0}]


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("postgresql://me:secret@host/db#a", "without a password"),
        ("postgresql://host/db?password=secret#a", "without a password"),
        ("postgresql://host#a", "names a database"),
        ("postgresql://host/db", "ends with #NAME"),
        ("postgresql://host/db#../a", "ends with #NAME"),
    ],
)
def test_an_address_says_all_and_no_secret(place: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as told:
        Store.open(place)
    assert "secret" not in str(told.value)


def test_what_is_not_there_is_told_and_nothing_is_left(server: Server, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot reach"):
        Store.open("postgresql:///postgres?host=/nowhere#a")
    with pytest.raises(InputError, match="has begun"):
        Store.open(server.address("never"), create=False, readonly=True)
    assert not is_study(server.address("never"))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_another_study_is_left_alone(server: Server, address: str) -> None:
    name = address.partition("#")[2]
    with Store.open(Path("runs") / name):
        pass
    with pytest.raises(InputError, match="another study than that of the folder"):
        Store.open(address)
    with Store.open(server.address("mine")), pytest.raises(InputError, match="another study"):
        Store.open(server.address("mine").replace("user=postgres", "user=postgres&connect_timeout=5"))


def test_studies_are_listed(server: Server, address: str) -> None:
    with Store.open(address) as store:
        store.identity({"seed": 0})
    assert address in [row.place for row in studies(server.address())]
    assert address.partition("#")[2] in [Path(row.place).name for row in studies("runs")]


def test_one_walks_at_a_time(address: str) -> None:
    with Store.open(address) as first:
        assert first.walker().endswith(f"process {os.getpid()}")
        with pytest.raises(StoreError, match=f"in use by .*process {os.getpid()}"):
            Store.open(address)
    with Store.open(address):
        pass


def test_who_lost_its_place_writes_nothing_more(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Store.open(address)
    assert isinstance(first, PostgresStore)
    _end(first)  # the server thinks that the first is gone
    with Store.open(address) as second:
        second.put("step", "a", {"by": 2}, seconds=0)
        with pytest.raises(StoreError, match="in use by"):
            first.put("step", "b", {"by": 1}, seconds=0)
        assert second.all("step") == [{"by": 2}]
    with pytest.raises(StoreError, match="taken over"):  # the place is free again, but it is not the first's any more
        first.put("step", "b", {"by": 1}, seconds=0)
    first.close()


def _end(store: PostgresStore) -> None:
    """End the store's connection at the server."""
    said = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name=%s"
    with psycopg.connect(store.connection.address, autocommit=True) as admin:
        admin.execute(said, (store.connection._name,))


def test_a_broken_connection_is_made_again(address: str, server: Server) -> None:
    with Store.open(address) as store:
        assert isinstance(store, PostgresStore)
        for number in range(5):
            _end(store)
            store.put("step", str(number), {"i": number}, seconds=0)
        assert store.all("step") == [{"i": i} for i in range(5)]


def test_the_server_restarts_in_the_midst(tmp_path: Path) -> None:
    with served() as server, Store.open(server.address("a")) as store:
        store.put("step", "0", {}, seconds=0)
        for number in range(1, 4):
            server.stop("immediate")  # as a power cut
            back = threading.Timer(0.7, server.start)
            back.start()
            store.put("step", str(number), {}, seconds=0)
            back.join()
        assert len(store.all("step")) == 4


def test_a_server_that_stays_away_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "PATIENCE_S", 0.3)
    with served() as server:
        store = Store.open(server.address("a"))
        server.stop()
        with pytest.raises(StoreError, match="the same command goes on"):
            store.put("step", "0", {}, seconds=0)
        store.close()
        server.start()


def _walker(address: str, folder: str) -> None:
    os.chdir(folder)
    with Store.open(address) as store:
        for number in range(10_000):
            data = bytes([number % 256]) * 5000
            store.once("step", str(number), lambda number=number, data=data: {"i": number, "blob": store.blob(data)})


def test_a_killed_walker_loses_nothing_acknowledged(address: str, tmp_path: Path) -> None:
    seen = 0
    for turn in range(20):
        walker = multiprocessing.get_context("spawn").Process(target=_walker, args=(address, str(tmp_path)))
        walker.start()
        until = time.monotonic() + 60
        count = seen
        while count < seen + 3 and time.monotonic() < until:
            time.sleep(0.01 * (turn % 5 + 1))
            if is_study(address):
                with Store.open(address, readonly=True) as store:
                    count = len(store.all("step"))
        assert walker.pid
        os.kill(walker.pid, signal.SIGKILL)
        walker.join()
        with Store.open(address, readonly=True) as store:
            rows = store.all("step")
            assert [row["i"] for row in rows] == list(range(len(rows)))
            assert all(store.read_blob(row["blob"]) == bytes([row["i"] % 256]) * 5000 for row in rows[-5:])
            assert store.walker() == ""
        assert len(rows) >= count > seen
        seen = len(rows)


# ---- orders ------------------------------------------------------------------------------------------------------------------


def test_an_order_is_claimed_once_and_finished_once(orders: Orders) -> None:
    ids = posted(orders, 3)
    first, second = orders.claim("a", RECIPE), orders.claim("b", RECIPE)
    assert first is not None
    assert second is not None
    assert (first.key, first.args, second.key) == ("0", {"number": 0}, "1")
    assert orders.beat(first)
    assert orders.finish(first, {"x": 1})
    assert orders.finish(first, {"x": 1})  # said twice, as after a broken connection
    assert not orders.finish(first, {"x": 2})
    assert orders.results(ids) == {ids[0]: {"x": 1}}
    assert orders.claim("c", "other" * 10) is None  # who has prepared another workload gets none
    assert posted(orders, 3) == ids  # a walker that is killed and comes again finds what was done meanwhile
    assert orders.results(ids) == {ids[0]: {"x": 1}}


def test_what_changed_is_done_anew(orders: Orders) -> None:
    (number,) = orders.post([("evaluation", "a", {"seconds": 1}, 1.0)])
    held = orders.claim("a", RECIPE)
    assert held is not None
    assert orders.post([("evaluation", "a", {"seconds": 2}, 1.0)]) == [number]
    assert not orders.finish(held, {"late": True})
    again = orders.claim("b", RECIPE)
    assert again is not None
    assert again.args == {"seconds": 2}
    orders.open("s" * 64)  # another recipe
    assert not orders.finish(again, {"late": True})
    assert orders.results([number]) == {}


def test_a_zombie_is_refused(orders: Orders) -> None:
    posted(orders, 1)
    zombie = orders.claim("zombie", RECIPE, lease_s=0.2)
    assert zombie is not None
    assert orders.claim("b", RECIPE) is None
    time.sleep(0.3)
    heir = orders.claim("heir", RECIPE)
    assert heir is not None
    assert (heir.id, heir.epoch) == (zombie.id, zombie.epoch + 1)
    assert not orders.beat(zombie)
    assert not orders.finish(zombie, {"by": "zombie"})
    orders.release(zombie)  # it is not its to give back
    assert orders.claim("c", RECIPE) is None
    assert orders.finish(heir, {"by": "heir"})
    assert orders.results([heir.id]) == {heir.id: {"by": "heir"}}


def test_poison_is_set_aside_and_what_is_given_back_is_not(orders: Orders) -> None:
    ids = posted(orders, 2)
    for _ in range(TRIES + 2):
        back = orders.claim("careful", RECIPE)
        assert back is not None
        orders.release(back)
    for turn in range(TRIES):
        held = orders.claim(str(turn), RECIPE, lease_s=0.05)
        assert held is not None
        assert held.id == ids[0]
        time.sleep(0.1)
    other = orders.claim("next", RECIPE)
    assert other is not None
    assert other.id == ids[1]
    assert orders.results(ids) == {ids[0]: {"died": POISON}}
    orders.died(other, "its process was killed by SIGSEGV")
    for turn in range(1, TRIES):
        assert orders.results(ids[1:]) == {}
        again = orders.claim(str(turn), RECIPE)
        assert again is not None
        orders.died(again, "its process was killed by SIGSEGV")
    assert orders.claim("careful", RECIPE) is None
    assert orders.results(ids[1:]) == {ids[1]: {"died": f"its process was killed by SIGSEGV; {POISON}"}}


def _claims(address: str, start: object, out: object) -> None:
    mine = Orders(address)
    waits, got = [], []
    start.wait()  # type: ignore[attr-defined]
    while True:
        began = time.perf_counter()
        order = mine.claim(str(os.getpid()), RECIPE)
        waits.append(time.perf_counter() - began)
        if order is None:
            break
        got.append(order.id)
        assert mine.finish(order, {"by": os.getpid()})
    mine.close()
    out.put((got, waits))  # type: ignore[attr-defined]


def test_many_workers_claim_each_order_once(orders: Orders) -> None:
    ids = posted(orders, 640)
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    start, out = context.Event(), context.Queue()
    orders.close()
    workers = [context.Process(target=_claims, args=(orders.address, start, out)) for _ in range(32)]
    for worker in workers:
        worker.start()
    start.set()
    found = [out.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    claimed = [number for got, _ in found for number in got]
    assert sorted(claimed) == sorted(ids)
    assert len(orders.results(ids)) == len(ids)
