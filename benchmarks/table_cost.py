"""What the one-knob loss tables cost, today's way and by suffixes, in one run: seconds of both and how alike they rank.

    python benchmarks/table_cost.py resnet20 --data CIFAR.zip --weights W.safetensors     # 4 min on 2 cores
    PHOTOGRAPHS=... WEIGHTS=... python benchmarks/table_cost.py efficientnet --entries 40   # 20 min, see efficientnet.py

*whole* builds each changed model anew, re-solves every layer downstream of the change on 256 calibration inputs and runs it on
up to 1,000 validation samples: what the road did before. *local* is `road.probing`: what comes before the change is kept, the
layers near it are re-solved, 64 samples first, more where two changes cannot be told apart. *downstream*, if asked for, is the
same on 256 samples, but every layer downstream is re-solved, as in *whole*. All take turns, entry by entry, on one thread, in
random order. What is prepared once is shared out over all entries of the table. The interval is that of 2,000 draws of the
entries. Ranks are Spearman's; those above the floor leave out what both ways call free (`entries.LEAST`).
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from equipoise import workloads
from equipoise.batch import mapped
from equipoise.compress import fakequant
from equipoise.measure import machine
from equipoise.records import Knob, Plan
from equipoise.road import entries, probing
from equipoise.road.bench import Workbench
from equipoise.road.prober import Prober
from equipoise.runtimes import parse_targets
from equipoise.workloads import Workload, predict
from equipoise.workloads.running import one_thread

SAMPLES = 1000
LEAST_TIMES, LEAST_RANK = 5.0, 0.95
Entry = tuple[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=("resnet20", "efficientnet"))
    parser.add_argument("--data", help="of resnet20: zip or folder of CIFAR-10 images")
    parser.add_argument("--weights", help="of resnet20: safetensors")
    parser.add_argument("--entries", type=int, default=0, help="how many of the table's entries, drawn at random; 0 for all")
    parser.add_argument("--seconds", type=float, default=0, help="after which no further entry is begun; 0 for no limit")
    parser.add_argument("--downstream", action="store_true", help="also with every layer downstream re-solved")
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    torch.set_num_threads(1)
    bench = Workbench(workload(args), parse_targets("openvino:cpu"), lambda content: "")
    bench.reference  # noqa: B018 - the road has it before its tables
    every = [(knob, choice) for knob in bench.facts.space.knobs for choice in knob.menu[1:]]
    drawn = random.Random(0).sample(every, len(every))[: args.entries or None]
    prober, setup = timed(lambda: prepared(bench))
    changes = {(k.name, c): probing.change_of(bench.builder, prober, k.name, c) for k, c in drawn}
    further = {key: replace(change, mending=None) for key, change in changes.items()}
    ways = ("whole", "local", "downstream") if args.downstream else ("whole", "local")
    losses: dict[str, dict[Entry, Any]] = {"downstream": {}} | {way: {} for way in ways}
    seconds: dict[str, dict[Entry, tuple[float, float]]] = {way: {} for way in ways}
    began = time.perf_counter()
    for turn, (knob, choice) in enumerate(drawn):
        if args.seconds and time.perf_counter() - began > args.seconds:
            break
        key = (knob.name, choice)
        read = {
            "whole": lambda k=knob, c=choice: whole_loss(bench, k, c),
            "local": lambda key=key: prober.loss(changes[key]),
            "downstream": lambda key=key: prober.loss(further[key], entries.MOST_SAMPLES),
        }
        for way in ways[turn % len(ways) :] + ways[: turn % len(ways)]:
            losses[way][key], seconds[way][key] = timed(read[way])
        took = {way: round(seconds[way][key][0], 2) for way in ways}
        print(f"{turn + 1}/{len(drawn)} {key[0]}={choice}: {[losses[way][key] for way in ways]} nats; {took} s", flush=True)
    whole, local = losses["whole"], losses["local"]
    changes = {key: changes[key] for key in whole}
    first = dict(local)
    while unsure := entries.unsure(local, most=prober.most):
        for key in unsure:
            local[key], more = timed(lambda key=key: prober.loss(changes[key], 2 * local[key].samples))
            seconds["local"][key] = tuple(a + b for a, b in zip(seconds["local"][key], more, strict=True))
    guesses, guessing = timed(lambda: prober.estimate(changes))
    part = dict(list(local.items())[::3])
    mixed = part | entries.calibrated(guesses, part, {key: key[0].partition(".")[0] for key in guesses})
    result = {
        "what": __doc__.splitlines()[0],
        "model": args.model,
        "n": len(whole),
        "of": len(every),
        "setup_s": {"wall": setup[0], "cpu": setup[1]},
        **{
            way: {
                "wall": compared(seconds, way, 0, setup, len(every)),
                "cpu": compared(seconds, way, 1, setup, len(every)),
                "ranks": ranks(whole, means(losses[way])),
                "median_loss_of_whole": float(np.median([losses[way][key].mean / whole[key] for key in whole])),
            }
            for way in ways[1:]
        },
        "ranks_local_at_first_samples": ranks(whole, means(first)),
        **({"ranks_local_of_downstream": ranks(means(losses["downstream"]), means(local))} if args.downstream else {}),
        "estimates": {
            "s": {"wall": guessing[0], "cpu": guessing[1]},
            "ranks": ranks(whole, means(guesses)),
            "ranks_with_a_third_measured": ranks(whole, means(mixed)),
        },
        "kept_bytes": prober.kept_bytes,
        "entries": {f"{n}={c}": [whole[n, c], *local[n, c], *losses["downstream"].get((n, c), ())] for n, c in whole},
        "machine": machine.describe(),
    }
    out = args.out or Path(__file__).parent / "results" / f"table_cost_{args.model}.json"
    out.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    print(json.dumps({key: result[key] for key in ("n", "of", "setup_s", *ways[1:], "estimates")}, indent=1))
    held = result["local"]["wall"]["times"] >= LEAST_TIMES and result["local"]["ranks"]["all"]["rank"] >= LEAST_RANK
    return 0 if held else 1


def workload(args: argparse.Namespace) -> Workload:
    """Load the model and its data."""
    if args.model == "resnet20":
        return workloads.load(f"cifar10:{args.data}?weights={args.weights}&holdout=3000&shift=2")
    from efficientnet import make_workload

    return make_workload()


def prepared(bench: Workbench) -> Prober:
    """Make the prober with all that it prepares once."""
    prober = probing.prober(bench)
    prober.prepare()
    return prober


def whole_loss(bench: Workbench, knob: Knob, choice: Any) -> float:
    """Read one entry the way the road did before `road.prober`; kept as it was."""
    if knob.kind == "bits":
        calibration = mapped(bench.calibration, torch.from_numpy)
        model = fakequant.simulate(bench.teacher, calibration, layers={knob.place}, weight_bits=8)
    else:
        model = bench.build(Plan({knob.name: choice})).model
    with one_thread():
        found, _ = predict(model, bench.work.validation.take(SAMPLES), batch=250)
    return bench.damage(found.numpy())


def means(losses: Mapping[Entry, entries.Loss]) -> dict[Entry, float]:
    """Return the mean of every loss."""
    return {key: loss.mean for key, loss in losses.items()}


def timed(call: Callable[[], Any]) -> tuple[Any, tuple[float, float]]:
    """Return what `call` returns, and its wall and processor seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = call()
    return found, (time.perf_counter() - wall, time.process_time() - cpu)


def compared(
    seconds: Mapping[str, Mapping[Entry, tuple[float, float]]], way: str, clock: int, setup: tuple[float, float], entries: int
) -> dict[str, Any]:
    """Seconds of a whole table this way and the old one, and how many times cheaper it is, with its interval."""
    whole, local = (np.array([took[clock] for took in seconds[w].values()]) for w in ("whole", way))
    draws = np.random.default_rng(0).integers(0, len(whole), (2000, len(whole)))
    times = whole[draws].mean(1) * entries / (local[draws].mean(1) * entries + setup[clock])
    low, high = np.quantile(times, (0.025, 0.975))
    tables = {"whole": float(whole.mean() * entries), way: float(local.mean() * entries + setup[clock])}
    return {"table_s": tables, "times": tables["whole"] / tables[way], "low": float(low), "high": float(high)}


def ranks(whole: Mapping[Entry, float], other: Mapping[Entry, float]) -> dict[str, Any]:
    """Rank correlation over all entries and over each kind; and of those that the table does not call free."""
    kinds = {"all": list(other)} | {
        k: [e for e in other if e[0].startswith(f"{k}.")] for k in ("width", "depth", "rank", "bits")
    }
    out = {}
    for kind, keys in kinds.items():
        above = [key for key in keys if whole[key] > entries.LEAST or other[key] > entries.LEAST]
        out[kind] = {"n": len(keys), "rank": _rank(whole, other, keys), "above_floor": len(above),
                     "rank_above_floor": _rank(whole, other, above)}  # fmt: skip
    return out


def _rank(whole: Mapping[Entry, float], other: Mapping[Entry, float], keys: list[Entry]) -> float | None:
    if len(keys) < 3:
        return None
    return float(spearmanr([whole[key] for key in keys], [other[key] for key in keys]).statistic)


if __name__ == "__main__":
    raise SystemExit(main())
