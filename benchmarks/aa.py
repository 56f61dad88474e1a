"""A/A: the same model against itself must hardly ever be called faster.

Each comparison loads the same program twice, as `equipoise verify` would load two models, and asks for a verdict. Both "faster"
and "slower" are false alarms; at 95 % confidence each is expected in at most 2.5 % of comparisons.

    python benchmarks/aa.py              # 100 comparisons, about 2 minutes on two cores
    python benchmarks/aa.py --n 10 --out /tmp/aa.json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

from equipoise.measure import latency, machine
from equipoise.runtimes.base import Target, get
from equipoise.runtimes.export import Exporter
from equipoise.stats import Verdict, median, quantile, verdict
from equipoise.workloads.digits import digits_net, digits_splits

LIMIT = 0.05


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=100, help="comparisons (100)")
    parser.add_argument("--rounds", type=int, default=12, help="rounds of one comparison (12)")
    parser.add_argument("--target", default="onnxruntime:cpu?threads=1&batch=1")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "aa.json")
    args = parser.parse_args()

    target = Target.parse(args.target)
    runtime, example = get(target.runtime), digits_splits()[1].take(2).tensors()[0]
    program = runtime.compile(Exporter().source(digits_net(0).eval(), example, topology="digits"))
    rows = np.resize(example.numpy(), (target.batch, *example.shape[1:]))
    before, began = machine.describe(), time.perf_counter()
    ratios: list[float] = []
    said: list[Verdict] = []
    for i in range(args.n):
        sessions = {name: runtime.load(program, threads=target.threads, batch=target.batch) for name in ("a", "b")}
        calls = {name: (lambda held=held: held.run(rows)) for name, held in sessions.items()}
        found = latency.compare(calls, rounds=args.rounds, seed=i).speedup("a", "b")
        ratios.append(found.value)
        said.append(verdict(found))
        print(
            f"\r{i + 1}/{args.n} {found.value:.3f} [{found.low:.3f}, {found.high:.3f}] {said[-1]:<12}", end="", file=sys.stderr
        )
    print(file=sys.stderr)

    shares = {word: said.count(word) / len(said) for word in ("faster", "slower", "cannot tell")}
    result = {
        "what": "the same program loaded twice, compared with itself",
        "target": str(target),
        "n": args.n,
        "rounds": args.rounds,
        "shares": shares,
        "ratio": {"median": median(ratios), "p05": quantile(ratios, 0.05), "p95": quantile(ratios, 0.95), "all": ratios},
        "limit": LIMIT,
        "seconds": time.perf_counter() - began,
        "machine": before,
        "load_after": machine.describe()["load"],
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"faster {shares['faster']:.1%}, slower {shares['slower']:.1%} of {args.n} comparisons; limit {LIMIT:.0%} each")
    print(args.out)
    return 0 if max(shares["faster"], shares["slower"]) <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
