"""A thousand workers of one study on one PostgreSQL: what do their claims and heartbeats take, and where does it break?

    python benchmarks/claims.py runs/digits               # 5 minutes; PostgreSQL must be installed, it is started on a socket
    python benchmarks/claims.py runs/digits --workers 100 300 1000

No model is run: a worker claims an order, holds it for as long as a recorded evaluation of the study took, drawn at random,
with a heartbeat as a real one, and finishes it. Each has connections of its own. There is always an order to claim. Printed for
each number of workers: claims a second, what a claim takes (median, 99th of a hundred, most), and the server's share of the
cores. Then the jobs are made shorter and shorter, until a claim takes a second at the 99th: that is where it breaks.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import sys
import threading
import time
from pathlib import Path
from statistics import mean, median
from typing import Any

import psutil

from equipoise.measure import machine
from equipoise.stats import quantile
from equipoise.study.orders import LEASE_S, Orders
from equipoise.study.record import Study
from equipoise.study.store import Store

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from databases import served

RESULT = Path(__file__).parent / "results" / "claims.json"
RECIPE = "r" * 64
PROCESSES = 8
BEAT_S = 1.0
"""Seconds between heartbeats, as of `road.worker`."""
BROKEN_S = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="whose recorded lengths are drawn")
    parser.add_argument("--workers", type=int, nargs="+", default=[10, 100, 300, 1000])
    parser.add_argument("--seconds", type=float, default=30.0, help="of each count (%(default)s)")
    args = parser.parse_args()
    lengths = [e.seconds for e in Study.load(args.study).evaluations if e.ok]
    rows = []
    with served(connections=2 * max(args.workers) + 50) as server, Store.open(server.address("load"), create=True):
        for count in args.workers:
            rows.append(loaded(server.address("load"), count, lengths, args.seconds))
        shorter, row = 1.0, rows[-1]
        while row["claim_p99_s"] < BROKEN_S and shorter > 1e-3:
            shorter /= 3
            row = loaded(server.address("load"), args.workers[-1], [s * shorter for s in lengths], args.seconds)
            rows.append({**row, "shorter": shorter})
    found = {"rows": rows, "length_s": median(lengths), "machine": machine.describe(), "postgres": "its own, on a socket"}
    RESULT.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


def loaded(address: str, count: int, lengths: list[float], seconds: float) -> dict[str, Any]:
    """Let `count` workers work, and say what their claims took."""
    orders = Orders(address)
    orders.open(RECIPE)
    orders.clear()
    stock = int(2 * count + 1.3 * count * seconds / mean(lengths))
    for begin in range(0, stock, 1000):
        orders.post([("evaluation", str(n), {"n": n}, 1.0) for n in range(begin, min(stock, begin + 1000))])
    context = multiprocessing.get_context("spawn")
    out, start = context.Queue(), context.Event()
    shares = [count // PROCESSES + (n < count % PROCESSES) for n in range(PROCESSES)]
    workers = [
        context.Process(target=worked, args=(address, share, lengths, seconds, n, start, out)) for n, share in enumerate(shares)
    ]
    for worker in workers:
        worker.start()
    for _ in workers:
        out.get()  # connected
    before = server_cpu_s()
    start.set()
    began = time.perf_counter()
    found = [out.get() for _ in workers]
    spent, used = time.perf_counter() - began, server_cpu_s() - before
    for worker in workers:
        worker.join()
    waits = [wait for part, _ in found for wait in part]
    refused = sum(lost for _, lost in found)
    orders.close()
    row = {
        "workers": count,
        "claims_per_s": len(waits) / spent,
        "claim_p50_s": median(waits),
        "claim_p99_s": quantile(waits, 0.99),
        "claim_most_s": max(waits),
        "claims": len(waits),
        "refused": refused,
        "server_cores": used / spent,
        "length_s": median(lengths),
    }
    print(json.dumps({k: round(v, 4) for k, v in row.items()}), flush=True)
    return row


def server_cpu_s() -> float:
    """CPU seconds of all processes of PostgreSQL, those that ended since included: the first of them counts its children."""
    spent = 0.0
    for process in psutil.process_iter(["name", "cpu_times"]):
        times = process.info["cpu_times"]
        if process.info["name"] == "postgres" and times:
            spent += times.user + times.system + times.children_user + times.children_system
    return spent


def worked(address: str, count: int, lengths: list[float], seconds: float, seed: int, start: Any, out: Any) -> None:
    """A process of several workers, a thread each."""
    waits: list[float] = []
    lost: list[int] = []
    ready = threading.Barrier(count + 1)
    draws = [random.Random((seed << 16) + n) for n in range(count)]
    given = (ready, start, waits, lost)
    threads = [threading.Thread(target=one, args=(address, lengths, seconds, draw, *given)) for draw in draws]
    for thread in threads:
        thread.start()
    ready.wait()
    out.put("connected")
    for thread in threads:
        thread.join()
    out.put((waits, len(lost)))


def one(
    address: str,
    lengths: list[float],
    seconds: float,
    draw: random.Random,
    ready: Any,
    start: Any,
    waits: list[float],
    lost: list[int],
) -> None:
    """One worker."""
    orders, beats = Orders(address), Orders(address)
    for mine in (orders, beats):
        mine.recipe()
    ready.wait()
    start.wait()
    until = time.perf_counter() + seconds
    time.sleep(draw.uniform(0, min(1.0, median(lengths))))  # they did not all begin at once
    while time.perf_counter() < until:
        began = time.perf_counter()
        order = orders.claim(f"{os.getpid()}", RECIPE, lease_s=LEASE_S)
        waits.append(time.perf_counter() - began)
        if order is None:
            break  # all done: the server kept up with more than was foreseen
        ends = time.perf_counter() + draw.choice(lengths)
        while (left := ends - time.perf_counter()) > 0:
            time.sleep(min(left, BEAT_S))
            if left > BEAT_S and not beats.beat(order):
                lost.append(order.id)
        if not orders.finish(order, {"by": "a worker", "padding": "x" * 10_000}):
            lost.append(order.id)
    orders.close()
    beats.close()


if __name__ == "__main__":
    main()
