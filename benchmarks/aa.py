"""A/A over loads: the same program against itself must hardly ever be called faster.

Each comparison loads the same program anew, many times for either side, as the search does with a candidate (`loads`) or as
the last race, export and verify do in fresh processes (`race`), and asks for a verdict. Both "faster" and "slower"
are false alarms.

    python benchmarks/aa.py              # 100 comparisons over loads and 20 races, about 6 minutes on two cores
    python benchmarks/aa.py --n 10 --races 2 --out /tmp/aa.json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from equipoise.measure import machine
from equipoise.measure.loads import compare_loads
from equipoise.road.racing import Contender, race_programs
from equipoise.runtimes.base import Target, get
from equipoise.runtimes.export import Exporter
from equipoise.stats import Interval, median, quantile, verdict
from equipoise.workloads.digits import digits_net, digits_splits

LIMIT = 0.05


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=100, help="comparisons over loads in one process (100)")
    parser.add_argument("--races", type=int, default=20, help="comparisons in fresh processes (20)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of one comparison over loads (1)")
    parser.add_argument("--target", default="onnxruntime:cpu?threads=1&batch=1")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "aa.json")
    args = parser.parse_args()

    target = Target.parse(args.target)
    runtime, example = get(target.runtime), digits_splits()[1].take(2).tensors()[0]
    program = runtime.compile(Exporter().source(digits_net(0).eval(), example, topology="digits"))
    pair = {"a": Contender(program, target), "b": Contender(program, target)}
    inputs = example.numpy()

    def loads() -> Iterator[Interval]:
        for seed in range(args.n):
            contenders = {name: held.load(inputs) for name, held in pair.items()}
            yield compare_loads(contenders, seconds=args.seconds, seed=seed).speedup("a", "b")

    def races() -> Iterator[Interval]:
        for seed in range(args.races):
            yield race_programs(pair, inputs, baseline="a", seconds=10.0, seed=seed).speedup("a", "b")

    before, began = machine.describe(), time.perf_counter()
    result = {"what": "the same program loaded anew, compared with itself", "target": str(target), "limit": LIMIT}
    worst = 0.0
    for name, made in (("loads", loads()), ("races", races())):
        found = []
        for ratio in made:
            found.append(ratio)
            print(f"\r{name} {len(found)}: {ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]", end="  ", file=sys.stderr)
        if not found:
            continue
        said = [verdict(ratio) for ratio in found]
        shares = {word: said.count(word) / len(said) for word in ("faster", "slower", "cannot tell")}
        values = [ratio.value for ratio in found]
        result[name] = {
            "n": len(found),
            "shares": shares,
            "half_width": {"median": median([ratio.half_width for ratio in found])},
            "ratio": {"median": median(values), "p05": quantile(values, 0.05), "p95": quantile(values, 0.95), "all": values},
        }
        worst = max(worst, shares["faster"], shares["slower"])
        print(f"\n{name}: faster {shares['faster']:.1%}, slower {shares['slower']:.1%} of {len(found)}; limit {LIMIT:.0%} each")
    result |= {"seconds": time.perf_counter() - began, "machine": before, "load_after": machine.describe()["load"]}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(args.out)
    return 0 if worst <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
