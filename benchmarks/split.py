"""A model between a device of one thread and a server of two: where to cut it at four uplinks, end to end as two processes.

    PHOTOGRAPHS=clothing.zip WEIGHTS=efficientnet-lite0.pth HEAD=head.pth python benchmarks/split.py
    python benchmarks/split.py --workload "cifar10:CIFAR.zip?weights=W.safetensors" --batch 1

EfficientNet-Lite0 on photographs (benchmarks/efficientnet.py) unless --workload says otherwise. For each --batch of photographs
in a request, at each of --uplinks: all on the device, all on the server and the cuts that are predicted best, raced over fresh
pairs of processes; then the pick and both ends once more, in a race of its own, whose ratios are the ones to quote: the first
race chose. The drop is read on the test split too, which nothing has chosen by. "here" and "there" are the two ends.
Result: results/split.json, by workload and batch, with n, CPU, threads and versions. On two quiet cores 10 minutes a batch.
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
from pathlib import Path
from typing import Any

import equipoise as eq
from equipoise.halves.pair import HERE, first, load
from equipoise.halves.places import arrays
from equipoise.halves.split import THERE, Ride, Splits
from equipoise.halves.timing import race_link
from equipoise.records import as_data
from equipoise.runtimes.base import Target
from equipoise.workloads import load as workload_of
from equipoise.workloads import predict
from equipoise.workloads.scoring import drop_reading

RESULTS = Path(__file__).parent / "results" / "split.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", help="default: EfficientNet-Lite0 on photographs")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="samples of a request (1 and 8)")
    parser.add_argument("--uplinks", default="0.5Mbit/s,2Mbit/s,10Mbit/s,100Mbit/s", help="(%(default)s)")
    parser.add_argument("--rtt", default="1ms", help="there and back (%(default)s)")
    parser.add_argument("--budget", default="drop<=0.5", help="on validation (%(default)s)")
    parser.add_argument("--runtime", nargs=2, default=["onnxruntime", "onnxruntime"], help="of the device and of the server")
    parser.add_argument("--seconds", type=float, default=40, help="of each race (%(default)s)")
    args = parser.parse_args()
    work = workload_of(args.workload) if args.workload else importlib.import_module("efficientnet").make_workload()
    for batch in args.batch:
        device, server = (Target(name, threads=n, batch=batch) for n, name in enumerate(args.runtime, 1))
        began = time.perf_counter()
        found = eq.split(
            work, device=device, server=server, uplink=args.uplinks, rtt=args.rtt, budget=args.budget, time=args.seconds,
            on_step=lambda text: print(f"  {text}", flush=True),
        )  # fmt: skip
        again = [confirmed(found, ride, args.seconds) for ride in found.rides]
        picks = {ride.pick for ride in found.rides} - {HERE}
        row = {
            **found.data(),
            "confirmed": again,
            "test_drop": {name: as_data(tested(work, found, found.cuts[name].number or 0)) for name in picks},
            "rtt": args.rtt,
            "budget": args.budget,
            "seconds": time.perf_counter() - began,
        }
        results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
        results.setdefault(work.name, {})[f"{device.runtime} to {server.runtime}, batch {batch}"] = row
        RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        show(found, again, row)


def confirmed(found: Splits, ride: Ride, seconds: float) -> dict[str, Any]:
    """Race the pick and both ends anew: seconds of each, and how many times faster the pick is than either end."""
    pick = "0" if ride.pick == THERE else ride.pick
    if not ride.late.known:  # nothing was worth sending
        return {"uplink": ride.link.uplink, "pick": ride.pick, "latency": {}, "times_faster": {}, "processes": 0}
    numbers = dict.fromkeys([*([0] if ride.over_there else []), *([int(pick)] if pick != HERE else [])])
    sent = int(found.cuts[ride.pick].sent.get())
    raced = race_link(found.everything, numbers, ride.link, echo=sent, seconds=seconds, seed=1)
    over = {end: raced.speedup(key, pick) for end, key in ((HERE, HERE), (THERE, "0")) if key != pick and key in raced.rounds}
    latency = {name: as_data(raced.latency(name)) for name in raced.rounds}
    ratios = {end: [ratio.value, ratio.low, ratio.high] for end, ratio in over.items()}
    return {
        "uplink": ride.link.uplink,
        "pick": ride.pick,
        "latency": latency,
        "times_faster": ratios,
        "processes": raced.processes,
    }


def tested(work: eq.Workload, found: Splits, number: int) -> Any:
    """Return the drop of a cut on the test split, from the whole model."""
    bundle = found.everything
    pair = bundle.pairs[number]
    whole, begin, end = load(bundle.whole, bundle.device), first(pair, bundle.device), load(pair.server, bundle.server)
    wanted, targets = predict(lambda given: whole.run(arrays(given)), work.test)
    answers, _ = predict(lambda given: pair.end(end, pair.begin(begin, arrays(given))), work.test)
    return drop_reading(work.metric, wanted.numpy(), answers.numpy(), targets)


def show(found: Splits, again: list[dict[str, Any]], row: dict[str, Any]) -> None:
    """Print the cuts, and of each uplink the pick and what it is beside both ends."""
    for name, cut in found.cuts.items():
        print(f"{name:>6} {cut.after:32} levels {cut.levels:3}", cut.sent, cut.drop, cut.device_s, cut.server_s, sep="; ")
    for ride, once in zip(found.rides, again, strict=True):
        print(found.sentence(ride))
        ratios = ", ".join(
            f"{v:.2f} [{low:.2f}, {high:.2f}] times {end}" for end, (v, low, high) in once["times_faster"].items()
        )
        lost = row["test_drop"].get(ride.pick, {}).get("value")
        print(f"    anew, {once['processes']} processes: {ratios}; drop on test {lost}")
    print(f"energy: {found.energy}; {row['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
