"""What harms a server: bad requests beside good ones, an end under load, a damaged rung; and half an hour near its capacity.

    python benchmarks/serve_faults.py faults runs/digits            # 4 min: 1,000 bad requests, ten ends, one damaged file
    python benchmarks/serve_faults.py soak runs/digits              # 31 min; --minutes 2 for a look

*faults*: bad requests (malformed, oversized, slow, aborted) go to a real server from several clients at once while good ones
arrive at random, 50 a second. No bad one may be answered with 200 or 5xx; every good one must be answered with 200, and as the
same rung answers offline: a *wrong answer* is further off than a thousandth of the largest value, or nearer to what another
request should get. *Ends*: SIGTERM while eight clients ask without pause; a request that was sent before the signal and is not
answered is lost. *Damaged*: the front as exported folders, a byte of one file flipped; the rest must serve.

*soak*: the server's capacity is what 32 clients that ask without pause get for ten seconds. Requests then arrive at random at
0.8 times that rate; memory (RSS) and threads of the server are read every five seconds. *Growth* is that of the mean memory
from the second quarter of the time to the last; the first is warm-up.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable
from pathlib import Path
from statistics import mean
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from psutil import Process
from serve import RESULTS, closed, kept, rungs_of, serving

from equipoise.batch import named, size, take
from equipoise.serve.ladder import Ladder
from equipoise.serve.loadtest import LOST, Body, Client, bodies, metadata, poisson, run
from equipoise.serve.protocol import WORDS
from equipoise.ship.artifact import pack
from equipoise.ship.promises import FP32_SLACK
from equipoise.study.record import Study
from equipoise.study.store import Store

SLO = "p99<=30s"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name in ("faults", "soak"):
        verb = verbs.add_parser(name)
        verb.add_argument("study", type=Path)
        verb.add_argument("--out", type=Path, default=RESULTS / f"serve_{name}.json")
        verb.add_argument("--at-least", default="drop<=5", help="as of serve (drop<=5)")
        if name == "soak":
            verb.add_argument("--minutes", type=float, default=30.0)
            verb.add_argument("--share", type=float, default=0.8, help="of the capacity (0.8)")
        else:
            verb.add_argument("--n", type=int, default=1000, help="bad requests (1000)")
            verb.add_argument("--ends", type=int, default=10, help="ends under load (10)")
    args = parser.parse_args()
    return soak(args) if args.verb == "soak" else faults(args)


# ------------------------------------------------------------------------------------------------------------ good requests


def good(made: Ladder) -> tuple[list[Body], dict[str, list[np.ndarray]]]:
    """Return requests of one real sample each, and what each rung answers to them offline."""
    probe = made.rungs[0].probe
    count = min(16, size(probe))
    rows = [{name: np.ascontiguousarray(value) for name, value in named(take(probe, [n])).items()} for n in range(count)]
    sent = []
    for row in rows:
        told, raw = [], b""
        for name, value in row.items():
            told.append({"name": name, "datatype": WORDS[value.dtype.name], "shape": [*value.shape]})
            told[-1]["parameters"] = {"binary_data_size": value.nbytes}
            raw += value.tobytes()
        head = json.dumps({"inputs": told}).encode()
        sent.append(Body(head + raw, len(head)))
    asked = [row if len(row) > 1 else next(iter(row.values())) for row in rows]
    return sent, {rung.name: [rung.session.run(each)[0] for each in asked] for rung in made.rungs}


def judged(content: bytes, number: int, wanted: dict[str, list[np.ndarray]]) -> float:
    """Return how far an answer is off, relative to the largest value; infinite where another request's is nearer."""
    told = json.loads(content)
    out = told["outputs"][0]
    given = np.array(out["data"], np.float32).reshape(out["shape"])[0]
    offline = wanted[told["model_version"]]
    offs = [float(np.abs(given - each).max() / np.abs(each).max()) for each in offline]
    return offs[number] if offs[number] <= min(offs) + FP32_SLACK else float("inf")


# ------------------------------------------------------------------------------------------------------------- bad requests


def heads(path: str, body: bytes, *, length: int | None = None, more: str = "") -> bytes:
    count = len(body) if length is None else length
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {count}\r\n{more}\r\n".encode() + body


def bad(path: str, body: Body, about: dict[str, Any], rng: random.Random) -> dict[str, tuple[list[bytes], float, set[int]]]:
    """Return kind -> what is sent piece by piece, seconds between the pieces (below 0: hang up after the last), statuses due.

    Status 0 is a connection that is closed without a word.
    """
    first = {**about["inputs"][0]}
    row = [1, *(4 if axis == -1 else axis for axis in first["shape"][1:])]
    tensor = {"name": first["name"], "datatype": first["datatype"], "shape": row, "data": [1]}
    whole, nonsense = heads(path, body.content, more=f"Inference-Header-Content-Length: {body.head}\r\n"), rng.randbytes(200)

    def told(**other: Any) -> bytes:
        return heads(path, json.dumps({"inputs": [{**tensor, **other}]}).encode())

    cut = rng.randrange(1, len(whole))
    return {
        "noise": ([nonsense + b"\r\n\r\n"], 0, {0, 400}),
        "no json": ([heads(path, b"{" + nonsense)], 0, {400}),
        "deep json": ([heads(path, b"[" * 50_000)], 0, {400}),
        "no inputs": ([heads(path, b"{}")], 0, {400}),
        "other shape": ([told(shape=[1, 10**9])], 0, {400}),
        "other type": ([told(datatype="STRING")], 0, {400}),
        "too few values": ([told(shape=[2, *row[1:]])], 0, {400}),
        "length of head lies": (
            [heads(path, body.content, more=f"Inference-Header-Content-Length: {10**9}\r\n")],
            0,
            {400},
        ),
        "binary size lies": ([told(parameters={"binary_data_size": 10**12})], 0, {400}),
        "said to be huge": ([heads(path, b"abc", length=10**12)], 0, {413}),
        "huge": ([heads(path, b"x" * 2**20, length=2**26)], 0, {413}),
        "other version": ([heads(path.replace("/infer", "/versions/none/infer"), body.content)], 0, {404}),
        "other method": ([f"PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode()], 0, {405}),
        "slow body": ([heads(path, body.content[:9], length=len(body.content)), b"a", b"b", b"c", b"d"], 4, {0, 408}),
        "slow headers": ([b"POST / HTTP/1.1\r\n", b"a: b\r\n", b"c: d\r\n", b"e: f\r\n", b"g: h\r\n", b"i: j\r\n"], 4, {0}),
        "aborted": ([whole[:cut]], -1, {0}),
        "aborted at the end": ([whole], -1, {0}),
    }


async def one_bad(host: str, port: int, pieces: list[bytes], pause: float) -> int:
    """Send the pieces of a bad request and return the status of its answer, 0 where none came."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            if pause > 0:
                await asyncio.wait([asyncio.ensure_future(asyncio.sleep(pause))])
        if pause < 0:
            return 0
        head = await asyncio.wait_for(reader.read(200), 30)
        return int(head.split(b" ")[1]) if head.startswith(b"HTTP/") else 0
    except (*LOST, TimeoutError):
        return 0
    finally:
        writer.close()


async def beside(url: str, made: Ladder, args: argparse.Namespace) -> dict[str, Any]:
    """Send bad requests from 32 clients while good ones arrive; return what became of both."""
    at, about = urlsplit(url), dict(await metadata(url))
    sent, wanted = good(made)
    rng, unexpected, statuses = random.Random(0), list[str](), Counter[str]()
    left, stop = list(range(args.n)), asyncio.Event()

    async def harm() -> None:
        while left:
            left.pop()
            kinds = bad(at.path, rng.choice(sent), about, rng)
            kind = rng.choice(list(kinds))
            pieces, pause, due = kinds[kind]
            status = await one_bad(str(at.hostname), int(at.port or 0), pieces, pause)
            statuses[f"{kind}: {status}"] += 1
            if status not in due:
                unexpected.append(f"{kind}: {status}")

    async def ask() -> tuple[list[float], Counter[int]]:
        to, offs, found, tasks = Client(url), list[float](), Counter[int](), list[asyncio.Task[None]]()

        async def one(number: int) -> None:
            try:
                status, content = await to.ask("POST", to.path, sent[number])
            except LOST:
                status, content = 0, b""
            found[status] += 1
            if status == 200:
                offs.append(judged(content, number, wanted))

        while not stop.is_set():
            tasks.append(asyncio.create_task(one(rng.randrange(len(sent)))))
            await asyncio.sleep(rng.expovariate(50))
        await asyncio.gather(*tasks)
        await to.close()
        return offs, found

    asking = asyncio.create_task(ask())
    await asyncio.gather(*(harm() for _ in range(32)))
    stop.set()
    offs, found = await asking
    return {
        "bad": args.n,
        "bad_statuses": dict(sorted(statuses.items())),
        "unexpected": unexpected,
        "good": sum(found.values()),
        "good_statuses": dict(found),
        "wrong": sum(not off <= FP32_SLACK for off in offs),
        "most_off": max(offs, default=None),
    }


# --------------------------------------------------------------------------------------------------- ends and damaged files


def ended(args: argparse.Namespace, seed: int) -> dict[str, int]:
    """End a server while eight clients ask; return how many requests were answered, refused after the signal, and lost."""
    rng, tally, signalled = random.Random(seed), Counter[str](), [float("inf")]
    with serving(str(args.study), "--slo", SLO, "--at-least", args.at_least) as (process, url):
        sent = bodies(asyncio.run(metadata(url)), seed=seed)

        async def client() -> None:
            to = Client(url)
            while True:
                began = time.perf_counter()
                try:
                    status, _ = await to.ask("POST", to.path, rng.choice(sent))
                except LOST:
                    tally["lost" if began < signalled[0] else "not taken"] += 1
                    return
                tally["answered" if status == 200 else "told no"] += 1

        async def load() -> None:
            clients = [asyncio.create_task(client()) for _ in range(8)]
            await asyncio.sleep(0.5 + rng.random())
            process.send_signal(signal.SIGTERM)
            signalled[0] = time.perf_counter() - 1e-3  # what is sent in the same millisecond may come after it
            await asyncio.gather(*clients)

        asyncio.run(load())
        tally["exit"] = process.wait(60)
    return dict(tally)


def damaged(args: argparse.Namespace) -> dict[str, Any]:
    """Serve exported folders of which one has a flipped byte; return who serves."""
    with tempfile.TemporaryDirectory() as root, Store.open(args.study, create=False, readonly=True) as store:
        front = Study.read(store).front
        folders = [pack(e, store, Path(root) / f"rung{n}").path for n, e in enumerate(front)]
        file = max((f for f in folders[0].iterdir() if f.suffix in {".onnx", ".bin", ".pt2"}), key=lambda f: f.stat().st_size)
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        with serving(*map(str, folders), "--slo", SLO) as (_, url):
            about = asyncio.run(metadata(url))
            load = asyncio.run(run(url, poisson(20, 3, seed=0), bodies(about, seed=0), slo_s=30.0))
    return {"folders": len(folders), "damaged": folders[0].name, "served": about["versions"], "attainment": load.attainment}


def faults(args: argparse.Namespace) -> int:
    """Run all three, print and keep what was found."""
    made = rungs_of(args.study, args.at_least)
    with serving(str(args.study), "--slo", SLO, "--at-least", args.at_least, "--body", "1") as (process, url):
        found = asyncio.run(beside(url, made, args))
        found["crashed"] = process.poll() is not None
        found["threads"] = 0 if found["crashed"] else Process(process.pid).num_threads()
    print(json.dumps(found, indent=1), file=sys.stderr)
    found["ends"] = [ended(args, seed) for seed in range(args.ends)]
    found["damage"] = damaged(args)
    lost = sum(end.get("lost", 0) for end in found["ends"])
    found["met"] = {
        "0 crashes": not found["crashed"],
        "0 wrong answers": not found["wrong"] and set(found["good_statuses"]) == {200} and not found["unexpected"],
        "0 accepted requests lost": not lost and all(end["exit"] == 0 for end in found["ends"]),
        "the rest serve": found["damage"]["attainment"] == 1.0 and found["damage"]["damaged"] not in found["damage"]["served"],
    }
    kept(args, found)
    print(json.dumps({key: found[key] for key in ("bad", "good", "wrong", "unexpected", "ends", "damage", "met")}, indent=1))
    return 0 if all(found["met"].values()) else 1


# --------------------------------------------------------------------------------------------------------------------- soak


def soak(args: argparse.Namespace) -> int:
    """Load the server for long; print and keep how its memory and its threads went."""
    with serving(str(args.study), "--slo", SLO, "--at-least", args.at_least) as (process, url):
        sent = bodies(asyncio.run(metadata(url)), seed=0)
        watched = Process(process.pid)
        rate = args.share * len(asyncio.run(closed(url, sent, clients=32, seconds=10.0))) / 10.0
        print(f"{rate:.0f} requests a second", file=sys.stderr)
        samples, statuses, until = list[tuple[float, int, int]](), Counter[int](), time.time() + 60 * args.minutes
        part = 0
        while (left := until - time.time()) > 1:
            load = asyncio.run(watching(run(url, poisson(rate, min(30.0, left), seed=part), sent, slo_s=1.0), watched, samples))
            statuses.update(load.statuses)
            part += 1
            row = {"p50_ms": 1e3 * load.latency_s(0.5), "p99_ms": 1e3 * load.latency_s(0.99), "behind_s": load.behind_s}
            print(part, json.dumps({**row, "rss_mb": samples[-1][1] / 1e6, "threads": samples[-1][2]}), file=sys.stderr)
    began, whole = samples[0][0], samples[-1][0] - samples[0][0]
    quarters = [[each for each in samples if n <= 3.999 * (each[0] - began) / whole < n + 1] for n in range(4)]
    memory = [mean(each[1] for each in quarter) for quarter in quarters]
    growth = memory[3] / memory[1] - 1
    threads = [max(each[2] for each in quarter) for quarter in quarters]
    told = {
        "minutes": args.minutes,
        "rate_per_s": rate,
        "statuses": dict(statuses),
        "growth": growth,
        "most_threads": threads,
        "met": {
            "memory within 2 %": growth <= 0.02,
            "no leaked threads": threads[3] <= threads[1],
            "every request is answered": set(statuses) == {200},
        },
    }
    kept(args, {**told, "samples": samples})
    print(json.dumps(told, indent=1))
    return 0 if all(told["met"].values()) else 1


async def watching(load: Awaitable[Any], watched: Process, samples: list[tuple[float, int, int]]) -> Any:
    """Return what a load gives, and note time, memory and threads of a process beside it."""

    async def look() -> None:
        while True:
            samples.append((time.time(), watched.memory_info().rss, watched.num_threads()))
            await asyncio.sleep(5.0)

    looking = asyncio.create_task(look())
    try:
        return await load
    finally:
        looking.cancel()


if __name__ == "__main__":
    sys.exit(main())
