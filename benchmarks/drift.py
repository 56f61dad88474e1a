"""How far the state of the machine moves a speed-up from one race to the next, and how much of that a race can account for.

The fastest pick of a study is raced beside its untouched model again and again, every third time beside two busy loops. Each
race's interval is then held against every other race: as it was found, and carried to the state of the first
(`equipoise.measure.race`).

    python benchmarks/drift.py runs/efficientnet --sittings 12

About 20 s a sitting for a model of milliseconds, 3 to 8 s for one of microseconds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from itertools import permutations
from math import log
from pathlib import Path
from statistics import median, pstdev

from promises import hogs
from safetensors.numpy import load

from equipoise.measure import machine
from equipoise.measure.race import Race
from equipoise.records import program_ref
from equipoise.road.racing import Contender, race_programs
from equipoise.runtimes.base import Program, Target
from equipoise.stats import Interval
from equipoise.study.record import Study
from equipoise.study.store import Store

OUT = Path(__file__).parent / "results" / "drift.json"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--sittings", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each race (20)")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    before, began = machine.describe(), time.perf_counter()
    with Store.open(args.store, create=False, readonly=True) as store:
        study = Study.read(store)
        inputs = load(store.read_blob(study.header.probe))["inputs"]
        contenders = {
            name: Contender(Program.stored(program_ref(e), store.read_blob), Target.parse(program_ref(e).target))
            for name, e in (("reference", study.baseline), ("pick", study.pick("fastest")))
        }
    races = []
    for number in range(args.sittings):
        with hogs(2 if number % 3 == 2 else 0):
            found = race_programs(contenders, inputs, baseline="reference", seconds=args.seconds, patience=6.0, seed=number)
        races.append(found)
        slope, error = found.elasticity("reference", "pick")
        ratio, latency = found.speedup("reference", "pick"), found.latency("reference")
        print(f"{ratio.value:.3f} ± {ratio.half_width:.3f} beside {latency}, elasticity {slope:.2f} ± {error:.2f}", flush=True)
    entry = {
        "n": args.sittings,
        "raw": held([(races[i].speedup("reference", "pick"), races[j].speedup("reference", "pick")) for i, j in pairs(races)]),
        "carried": held([carried(races[i], races[j]) for i, j in pairs(races)]),
        "half_width": median(r.half_width / r.value for r in (race.speedup("reference", "pick") for race in races)),
        "reference_s": [race.latency("reference").get() for race in races],
        "elasticity": [race.elasticity("reference", "pick") for race in races],
        "seconds": time.perf_counter() - began,
        "machine": before,
        "load_after": machine.describe()["load"],
    }
    kept = json.loads(args.out.read_text()) if args.out.is_file() else {}
    args.out.write_text(json.dumps({**kept, args.store.name: entry}, indent=1, sort_keys=True) + "\n")
    print(json.dumps({key: entry[key] for key in ("raw", "carried", "half_width")}))
    return 0


def pairs(races: list[Race]) -> list[tuple[int, int]]:
    return list(permutations(range(len(races)), 2))


def carried(promise: Race, found: Race) -> tuple[Interval, Interval]:
    """What the first race promises, and what the second finds in the first one's state."""
    state = promise.latency("reference").get()
    return promise.speedup("reference", "pick"), found.speedup("reference", "pick", at=state)


def held(rows: list[tuple[Interval, Interval]]) -> dict[str, float]:
    """Scatter of a race, the share within the promised interval, and what would be called broken, also of planted promises."""
    return {
        "sd": pstdev(log(found.value / promise.value) for promise, found in rows) / 2**0.5,
        "within": sum(promise.low <= found.value <= promise.high for promise, found in rows) / len(rows),
        "falsely_broken": sum(found.high < promise.low for promise, found in rows) / len(rows),
        **{f"planted_{f}_caught": sum(found.high < f * p.low for p, found in rows) / len(rows) for f in (1.15, 1.25)},
    }


if __name__ == "__main__":
    sys.exit(main())
