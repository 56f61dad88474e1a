"""A front served as a ladder, beside its rungs served alone and an oracle; and what the server costs beside the bare session.

    equipoise optimize digits --time 60s --store runs/digits                       # any study will do
    python benchmarks/serve.py foresee runs/NAME --trace CODE.csv.gz CONV.csv.gz   # no server: which SLO tells them apart?
    python benchmarks/serve.py ladder runs/NAME --trace CODE.csv.gz CONV.csv.gz    # it says at first how many minutes
    python benchmarks/serve.py overhead runs/NAME                                  # 3 min

Traces are CSVs with a column ``arrival_ms``, as `equipoise loadtest` reads them; they are brought to a mean of 0.4 times what
the largest rung answers a second, and cut into one window for each repeat. Within a repeat the ladder and every rung alone (the
same server, asked for that version) get the same window, in a random order. The client runs beside the server, on the same
cores, and sends validation inputs, one a request.

*Attainment* is the share of all requests that were answered within the SLO, counted by the client from when they were due; the
server refuses what it would answer late. The *quality* of a rung is that of the untouched model less the rung's certified drop,
both on the same samples; reported is the mean of the answers in time, and as *effective* that over all requests, where what was
late or refused counts 0. The *best static* is the rung of the highest effective quality, chosen afterwards.

The *oracle* knows all arrivals beforehand and the median seconds of every (rung, batch) of the bare session: no HTTP, no noise.
It answers in order of arrival, drops whom it likes, and has the highest effective quality that is then possible: an exact
dynamic programme over (next request, moment at which the machine is free), where each moment is rounded down to a fiftieth of
the quickest run, so that it is a bound from above. What no dispatcher can know is in its favour.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from psutil import Process

from equipoise.batch import named, size
from equipoise.measure import machine
from equipoise.serve.dispatch import Cost, Dispatcher
from equipoise.serve.ladder import Ladder, ladder
from equipoise.serve.loadtest import Body, Client, Load, body, metadata, trace
from equipoise.serve.loadtest import run as send
from equipoise.stats import median, student_t
from equipoise.study.record import Study

RESULTS = Path(__file__).parent / "results"
OF_CAPACITY = 0.4
"""Mean rate, as a fraction of what the largest rung answers a second, one request after the other."""
BATCHES = (1, 2, 4, 8, 16)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name in ("foresee", "ladder", "overhead"):
        verb = verbs.add_parser(name)
        verb.add_argument("study", type=Path)
        verb.add_argument("--out", type=Path, default=RESULTS / f"serve_{name}.json")
        verb.add_argument("--at-least", default="drop<=5", help="as of serve (drop<=5)")
        if name == "overhead":
            verb.add_argument("--rounds", type=int, default=10)
            verb.add_argument("--seconds", type=float, default=5.0, help="of each part of a round (5)")
            verb.add_argument("--clients", type=int, default=64, help="that ask at once for saturation (64)")
        else:
            verb.add_argument("--trace", type=Path, nargs="+", required=True)
            verb.add_argument("--repeats", type=int, default=3)
            verb.add_argument("--seconds", type=float, default=60.0, help="of a window (60)")
            verb.add_argument("--slo", type=float, default=4.0, help="in medians of the largest rung (4)")
    args = parser.parse_args()
    return {"foresee": foresee, "ladder": compare, "overhead": overhead}[args.verb](args)


# ------------------------------------------------------------------------------------------------------------- what serves


def rungs_of(study: Path, at_least: str, slo_s: float = math.inf) -> Ladder:
    """Return the ladder as the server will load it, timed in this process."""
    word, bound = re.split("[<>]=", at_least)
    return ladder([study], threads=1, batches=BATCHES, share=0.99, slo_s=slo_s, tell=print, least=(word, float(bound)))


@contextlib.contextmanager
def serving(*words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start `equipoise serve` on a free port; give the process and the address that ends in ``/infer``."""
    command = [sys.executable, "-m", "equipoise", "serve", *words, "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if found := re.search(r"http://\S+/infer", line):
            break
    else:
        raise SystemExit("".join(said))
    threading.Thread(target=deque, args=(process.stderr, 0), daemon=True).start()  # a pipe that is full stops the server
    for _ in range(100):
        with contextlib.suppress(Exception):
            asyncio.run(metadata(found[0]))
            break
        time.sleep(0.1)
    try:
        yield process, found[0]
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(60)


def real(about: Mapping[str, Any], made: Ladder) -> list[Body]:
    """Return a request for each of the validation inputs that the rungs were timed with."""
    probe = named(made.rungs[0].probe)
    return [body(about, {name: rows[number : number + 1] for name, rows in probe.items()}) for number in range(size(probe))]


def pinned(url: str, rung: str) -> str:
    """Return the address at which one rung alone answers."""
    return f"{url.removesuffix('/infer')}/versions/{rung}/infer"


def qualities_of(study: Path) -> dict[str, float]:
    """Return the quality of each point of the front: that of the untouched model less the point's drop."""
    read = Study.load(study)
    return {e.key: read.baseline.quality.get() - e.drop.get() for e in read.front}


def described(made: Ladder) -> list[dict[str, Any]]:
    rows = zip(made.rungs, made.costs, strict=True)
    return [{"rung": r.name, "quality": r.quality.get(), "drop": r.drop.get(), "seconds": dict(c.usual)} for r, c in rows]


def kept(args: argparse.Namespace, found: dict[str, Any]) -> None:
    """Write the result beside the machine that it was found on."""
    args.out.parent.mkdir(parents=True, exist_ok=True)
    whole = {"study": args.study.name, **found, "machine": machine.describe()}
    args.out.write_text(json.dumps(whole, indent=1, sort_keys=True) + "\n")


# ---------------------------------------------------------------------------------------------- what could have been had


def oracle(costs: Sequence[Cost], qualities: Sequence[float], arrivals: Sequence[float], slo_s: float) -> tuple[float, float]:
    """Return attainment and mean quality of the answers in time with the highest effective quality, as the head describes."""
    step = min(cost.usual[1] for cost in costs) / 50
    options = [
        (batch, cost.usual[batch], quality) for cost, quality in zip(costs, qualities, strict=True) for batch in cost.usual
    ]
    count = len(arrivals)
    best: list[dict[int, tuple[float, int]]] = [{} for _ in range(count + 1)]  # moment -> sum of qualities, answered
    best[0][0] = (0.0, 0)
    for here in range(count):
        come, until = arrivals[here], arrivals[here] + slo_s
        merged: dict[int, tuple[float, int]] = {}
        for moment, value in best[here].items():
            free = max(moment, int(come / step))
            merged[free] = max(merged.get(free, value), value)
        top = (-1.0, 0)
        for moment, value in sorted(merged.items()):
            if value <= top:
                continue  # free later, and no better for it
            top = value
            _offer(best[here + 1], moment, value)  # dropped
            for batch, seconds, quality in options:
                if here + batch <= count:
                    done = max(moment * step, arrivals[here + batch - 1]) + seconds
                    if done <= until:
                        _offer(best[here + batch], int(done / step), (value[0] + batch * quality, value[1] + batch))
        best[here] = {}
    total, answered = max(best[count].values())
    return answered / count, total / max(1, answered)


def _offer(into: dict[int, tuple[float, int]], moment: int, value: tuple[float, int]) -> None:
    if value > into.get(moment, (-1.0, 0)):
        into[moment] = value


def simulated(
    costs: Sequence[Cost], qualities: Sequence[float], arrivals: Sequence[float], slo_s: float, pin: int | None = None
) -> tuple[float, float]:
    """Return attainment and quality of the real dispatcher on a made-up clock, where every run takes its median."""
    chooser = Dispatcher([Cost(cost.usual, cost.most) for cost in costs], slo_s)
    waiting: deque[float] = deque()
    free, place, qualities_given = 0.0, 0, []
    while place < len(arrivals) or waiting:
        now = max(free, arrivals[place]) if not waiting else free
        while place < len(arrivals) and arrivals[place] <= now:
            come = arrivals[place]
            chooser.arrivals.seen(come)
            ahead = max(0.0, free - come) + chooser.wait({pin: len(waiting) + 1})
            if ahead <= slo_s:
                waiting.append(come + slo_s)
            place += 1
        if not waiting:
            continue
        turn = chooser.turn(now, list(waiting), [pin] * len(waiting))
        free = now + costs[turn.rung].usual[turn.batch]
        due = [waiting.popleft() for _ in range(turn.batch)]
        qualities_given += [qualities[turn.rung] for each in due if free <= each]
    return len(qualities_given) / len(arrivals), mean(qualities_given or [math.nan])


def windows(file: Path, rate: float, seconds: float, repeats: int) -> list[list[float]]:
    """Return the arrivals of each repeat, from 0."""
    whole = trace(file, rate, seconds * repeats)
    parts = [[at - seconds * k for at in whole if seconds * k <= at < seconds * (k + 1)] for k in range(repeats)]
    if not all(parts):
        raise SystemExit(f"{file} is too short for {repeats} windows of {seconds:g} s at {rate:.3g} a second")
    return parts


def foresee(args: argparse.Namespace) -> int:
    """Print what the dispatcher, every rung alone and the oracle would reach for some SLOs, without a server."""
    made = rungs_of(args.study, args.at_least)
    known = qualities_of(args.study)
    qualities = [known[rung.name] for rung in made.rungs]
    largest = made.costs[0].usual[1]
    rate = OF_CAPACITY / largest
    print(json.dumps(described(made), indent=1))
    rows = []
    for file in args.trace:
        parts = windows(file, rate, args.seconds, args.repeats)
        for times in (2.0, 3.0, 4.0, 6.0, 10.0):
            slo_s = times * largest
            contenders = {"ladder": None, **{rung.name: place for place, rung in enumerate(made.rungs)}}
            row: dict[str, Any] = {"trace": file.name, "slo": times, "rates": [len(part) / args.seconds for part in parts]}
            for name, pin in contenders.items():
                row[name] = np.mean([simulated(made.costs, qualities, part, slo_s, pin) for part in parts], 0).tolist()
            row["oracle"] = np.mean([oracle(made.costs, qualities, part, slo_s) for part in parts], 0).tolist()
            rows.append(row)
            told = ", ".join(f"{n} {100 * row[n][0]:.2f} % {row[n][1]:.3f}" for n in (*contenders, "oracle"))
            print(f"{file.name} SLO {times:g}x = {1e3 * slo_s:.3g} ms: {told}", flush=True)
    kept(args, {"rows": rows, "rungs": described(made)})
    return 0


# ----------------------------------------------------------------------------------------------------------- under a trace


def compare(args: argparse.Namespace) -> int:
    """Run the ladder and every rung alone under the traces; print, keep and hold to the floors what was found."""
    made = rungs_of(args.study, args.at_least)
    qualities = qualities_of(args.study)
    rate, slo_s = OF_CAPACITY / made.costs[0].usual[1], args.slo * made.costs[0].usual[1]
    minutes = len(args.trace) * args.repeats * (1 + len(made.rungs)) * (args.seconds + 3) / 60
    print(
        f"{len(made.rungs)} rungs, SLO {1e3 * slo_s:.3g} ms, {rate:.3g} requests a second: {minutes:.0f} min", file=sys.stderr
    )
    shuffle, found = random.Random(0), dict[str, Any]()
    with serving(str(args.study), "--slo", f"p99<={1e3 * slo_s}ms", "--at-least", args.at_least) as (_, url):
        about = asyncio.run(metadata(url))
        sent = real(about, made)
        both = [
            name for name in about["versions"] if name in made.places
        ]  # two rungs as quick as one another may change places
        largest, smallest, served = both[0], both[-1], ["ladder", *both]
        for file in args.trace:
            rows = []
            for number, part in enumerate(windows(file, rate, args.seconds, args.repeats)):
                row: dict[str, Any] = {"requests": len(part), "rate": len(part) / args.seconds}
                for name in shuffle.sample(served, len(served)):
                    time.sleep(2.5)  # what came before is forgotten
                    at = url if name == "ladder" else pinned(url, name)
                    row[name] = figures(asyncio.run(send(at, part, sent, slo_s=slo_s)), qualities)
                attainment, quality = oracle(made.costs, [qualities[rung.name] for rung in made.rungs], part, slo_s)
                row["oracle"] = {"attainment": attainment, "quality": quality, "effective": attainment * quality}
                rows.append(row)
                told = {n: f"{100 * row[n]['attainment']:.2f} % {row[n]['quality']:.2f}" for n in (*served, "oracle")}
                print(f"{file.name} {number}: {told}", file=sys.stderr)
            found[file.name] = summary(rows, served, largest, smallest)
    kept(args, {"slo_s": slo_s, "of_capacity": OF_CAPACITY, "seconds": args.seconds, "rungs": described(made), "traces": found})
    met = True
    for file_name, each in found.items():
        met &= all(each["met"].values())
        print(file_name, json.dumps({key: each[key] for key in ("ladder", "oracle", "best_static", "gaps", "met")}, indent=1))
    return 0 if met else 1


def figures(load: Load, qualities: Mapping[str, float]) -> dict[str, Any]:
    """Return what is kept of a run."""
    timely = [qualities[each.rung] for each in load.sent if each.status == 200 and each.latency_s <= load.slo_s]
    return {
        "attainment": load.attainment,
        "quality": mean(timely) if timely else 0.0,
        "effective": sum(timely) / len(load.sent),
        "p50_s": load.latency_s(0.5),
        "p99_s": load.latency_s(0.99),
        "statuses": load.statuses,
        "rungs": load.rungs,
        "behind_s": load.behind_s,
    }


def summary(rows: Sequence[dict[str, Any]], served: Sequence[str], largest: str, smallest: str) -> dict[str, Any]:
    """Return means over the repeats with their intervals, paired differences, and which floors are met."""
    told: dict[str, Any] = {"rows": list(rows)}
    keys = ("attainment", "quality", "effective")
    for name in (*served, "oracle"):
        told[name] = {key: spread([row[name][key] for row in rows]) for key in keys}
    told["best_static"] = max(served[1:], key=lambda name: told[name]["effective"]["mean"])
    beside = {"oracle": "oracle", "largest": largest, "smallest": smallest, "best_static": told["best_static"]}
    told["gaps"] = {
        f"{key} over {word}": spread([row["ladder"][key] - row[name][key] for row in rows])
        for word, name in beside.items()
        for key in keys
    }
    gaps = {name: gap["mean"] for name, gap in told["gaps"].items()}
    told["met"] = {
        "attainment of 99 %": told["ladder"]["attainment"]["mean"] >= 0.99,
        "quality within 0.3 of the oracle": gaps["quality over oracle"] >= -0.3,
        "10 points more attainment than the largest": gaps["attainment over largest"] >= 0.10,
        "1 point more quality than the smallest": gaps["quality over smallest"] >= 1.0,
    }
    return told


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return a mean with its 95 % interval over repeats, none where there is one repeat."""
    if len(values) < 2:
        return {"mean": values[0], "n": 1}
    half = student_t(0.975, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return {"mean": mean(values), "low": mean(values) - half, "high": mean(values) + half, "n": len(values)}


# -------------------------------------------------------------------------------------------- beside the bare session


def overhead(args: argparse.Namespace) -> int:
    """Compare the largest rung behind the server with its bare session: one request after the other, and as many as it can."""
    made = rungs_of(args.study, args.at_least)
    rung = made.rungs[0]
    rows = []
    with serving(str(args.study), "--slo", "p99<=60s", "--at-least", args.at_least) as (process, url):
        sent = real(asyncio.run(metadata(url)), made)
        at = pinned(url, rung.name)
        asyncio.run(closed(at, sent, clients=1, seconds=1.0))
        for number in range(args.rounds):
            bare = {batch: rung.cost([batch], 0.99).usual[batch] for batch in BATCHES}
            alone = asyncio.run(closed(at, sent, clients=1, seconds=args.seconds))
            many = asyncio.run(closed(at, sent, clients=args.clients, seconds=args.seconds))
            best = max(batch / seconds for batch, seconds in bare.items())
            row = {
                "bare_s": bare[1],
                "served_s": median(alone),
                "overhead_s": median(alone) - bare[1],
                "bare_per_s": best,
                "served_per_s": len(many) / args.seconds,
                "share": len(many) / args.seconds / best,
            }
            rows.append(row)
            print(number, json.dumps({key: round(value, 6) for key, value in row.items()}), file=sys.stderr)
        rss = Process(process.pid).memory_info().rss
    told = {key: spread([row[key] for row in rows]) for key in rows[0]}
    told["met"] = {"0.6 ms": told["overhead_s"]["mean"] <= 0.6e-3, "80 %": told["share"]["mean"] >= 0.8}
    kept(args, {**told, "rung": rung.name, "clients": args.clients, "rss_bytes": rss, "rows": rows})
    print(json.dumps(told, indent=1))
    return 0 if all(told["met"].values()) else 1


async def closed(url: str, sent: Sequence[Body], *, clients: int, seconds: float) -> list[float]:
    """Return the latencies of clients that ask again as soon as they were answered."""
    times: list[float] = []
    until = time.perf_counter() + seconds
    statuses: Counter[int] = Counter()

    async def one(number: int) -> None:
        to = Client(url)
        while (began := time.perf_counter()) < until:
            status, _ = await to.ask("POST", to.path, sent[number % len(sent)])
            statuses[status] += 1
            times.append(time.perf_counter() - began)
        await to.close()

    await asyncio.gather(*(one(number) for number in range(clients)))
    if set(statuses) != {200}:
        raise SystemExit(f"not all were answered: {dict(statuses)}")
    return times


if __name__ == "__main__":
    sys.exit(main())
