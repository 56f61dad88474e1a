"""A worker: takes the orders of a study's walker, one after the other, and answers them by a child process.

Workers may come and go at any time, on any machine that reaches the database and can load the workload by the same name. They
time nothing: what is timed is timed by the walker, alone on its machine.
"""

from __future__ import annotations

import json
import os
import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import torch

from equipoise import __version__
from equipoise.errors import InputError, StoreError
from equipoise.road.answers import Died
from equipoise.road.isolated import Child, children
from equipoise.road.jobs import Job
from equipoise.runtimes.cpu import SHARE
from equipoise.study.files import make_rooms
from equipoise.study.orders import LEASE_S, Order, Orders
from equipoise.study.place import keep, located
from equipoise.study.postgres import PATIENCE_S, Connection, DatabaseFiles, prepare

Told = Callable[[str], None]
LOOK_S, LONGEST_S = 0.1, 2.0
"""Seconds between two looks for an order, at first and when there was none for long."""
LINGER_S = 60.0
"""How long a worker stays when nobody walks the study any more."""


def work(address: str, *, told: Told, stop: threading.Event, threads: int | None = None, lease_s: float = LEASE_S) -> int:
    """Do the orders of a study until nobody walks it any more, and return how many were done.

    Args:
        address: ``postgresql://HOST/DATABASE#STUDY``.
        told: Told what is done, a line each.
        stop: Once set, the order at hand is given back and the worker ends.
        threads: Cores that training and scoring may use; None for all.
        lease_s: Seconds for which an order is this worker's without a heartbeat.
    Raises:
        InputError: The workload cannot be loaded here.
        StoreError: The database is out of reach, or the walker is of another version.
    """
    folder, _ = located(address)
    if threads is not None:
        os.environ[SHARE] = str(threads)
        torch.set_num_threads(threads)
    done = 0
    with closing(Orders(address, patience_s=PATIENCE_S)) as orders:
        prepare(orders.connection, create=True)
        keep(folder, address)
        make_rooms(folder)
        while recipe := _recipe(orders, stop):
            with prepared(folder, orders.connection, recipe, told) as child:
                done += serve(orders, child, recipe, told=told, stop=stop, lease_s=lease_s)
    return done


def _recipe(orders: Orders, stop: threading.Event) -> str:
    """Wait for a study that is walked, and return its recipe; empty where there was none for a while."""
    waited = 0.0
    while not stop.is_set() and waited < LINGER_S:
        recipe, walking = orders.recipe()
        if recipe and walking:
            return recipe
        stop.wait(LONGEST_S)
        waited += LONGEST_S
    return ""


@contextmanager
def prepared(folder: Path, connection: Connection, recipe: str, told: Told) -> Iterator[Child]:
    """Give a child that has loaded and prepared the workload of a recipe."""
    blobs = DatabaseFiles(folder, connection)
    said = json.loads(blobs.read_blob(recipe))
    if said["version"] != __version__:
        raise StoreError(f"the study is walked by Equipoise {said['version']}; this is {__version__}. Use the same everywhere.")
    told(f"prepares {said['spec'] or 'the workload'}")
    with children(said, blobs.read_blob(said["held"]), folder, lambda *_: None) as (child,):
        try:
            child.facts()
        except Died as error:
            raise InputError(f"the workload must load in a process of its own; here {error}") from error
        told("ready")
        yield child


def serve(orders: Orders, child: Child, recipe: str, *, told: Told, stop: threading.Event, lease_s: float = LEASE_S) -> int:
    """Do the orders of one recipe, until another is needed or nobody walks the study; return how many were done."""
    me = f"{socket.gethostname()}, process {os.getpid()}"
    chance, wait, done = random.Random(me), LOOK_S, 0
    while not stop.is_set():
        order = orders.claim(me, recipe, lease_s=lease_s)
        if order is None:
            if orders.recipe() != (recipe, True):
                return done
            stop.wait(wait * chance.uniform(0.5, 1.0))
            wait = min(LONGEST_S, 1.5 * wait)
            continue
        wait = LOOK_S
        if answered(orders, order, child, stop=stop, lease_s=lease_s):
            done += 1
            told(f"did {order.kind} {order.key}")
        elif not stop.is_set():
            told(f"{order.kind} {order.key} was not finished here: its process died, or another worker has it")
    return done


def answered(orders: Orders, order: Order, child: Child, *, stop: threading.Event, lease_s: float = LEASE_S) -> bool:
    """Do one order under a heartbeat and give its result; False where its process died, it was refused, or `stop` ended it."""
    job = Job(order.kind, order.key, order.args, expected_s=order.expected_s)
    lost = threading.Event()
    ended = threading.Event()

    def beat() -> None:
        with closing(Orders(orders.address, patience_s=lease_s)) as beats:
            held = True
            while held and not ended.wait(min(lease_s / 4, 1.0)):
                with suppress(StoreError):  # out of reach for longer than the lease: another has the order by now
                    held = False
                    held = not stop.is_set() and beats.beat(order, lease_s=lease_s)
        if not held:
            lost.set()
            child.stop()

    beating = threading.Thread(target=beat, daemon=True, name="equipoise-heartbeat")
    beating.start()
    try:
        answer = child.answer(job)
    except BaseException:
        orders.release(order)
        raise
    finally:
        ended.set()
        beating.join()
    if stop.is_set():
        orders.release(order)
        return False
    if "store" in answer:
        orders.release(order)
        raise StoreError(answer["store"])
    if lost.is_set():
        return False
    if "died" in answer:
        orders.died(order, answer["died"])
        return False
    return orders.finish(order, answer)
