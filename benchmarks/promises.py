"""Promises held later: does the speed that `export` promises hold in the processes that come after, on a busy machine too?

For each subject a study is made once. Then, again and again, the pick is exported (its race in fresh processes is run anew) and
`equipoise verify` is run on the folder some time later, every second time beside busy loops. A planted promise is the same
folder with a speed-up that the file does not have, all hashes, card and digest rewritten.

    python benchmarks/promises.py study digits --store runs/promises/digits
    python benchmarks/promises.py study "cifar10:CIFAR.zip?weights=W.safetensors" --time 4min --store runs/promises/resnet20
    python benchmarks/promises.py hold runs/promises/digits --n 14 --planted 7
    python benchmarks/promises.py hold runs/promises/resnet20 --n 13 --planted 7
    python benchmarks/promises.py jobs digits --n 20                                # 20 to 30 minutes

`jobs` is the whole road with one seed after the other: a study, its pick exported, and the file verified in a process of its
own; are the drop on test, which chose nothing, and the speed-up what was promised? Its studies are thrown away.

`hold` adds to the result file, one entry a study, and prints the share of ratios found within the promised interval, what was
falsely called broken, and how often a planted promise was caught. About half a minute for each export and verify of a small
model on two cores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from math import log
from pathlib import Path
from statistics import stdev
from typing import Any

from equipoise.measure import machine
from equipoise.road.racing import race_stored
from equipoise.ship.artifact import Artifact, pack
from equipoise.ship.card import card
from equipoise.stats import median
from equipoise.study.record import Study
from equipoise.study.store import Store

OUT = Path(__file__).parent / "results" / "promises.json"
HOG = "while True: pass"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    study = verbs.add_parser("study")
    study.add_argument("workload")
    study.add_argument("--store", type=Path, required=True)
    study.add_argument("--time", default="60s")
    study.add_argument("--budget", default="drop<=2")
    hold = verbs.add_parser("hold")
    hold.add_argument("store", type=Path)
    hold.add_argument("--pick", default="fastest")
    hold.add_argument("--n", type=int, default=14)
    hold.add_argument("--planted", type=int, default=7)
    hold.add_argument("--busy", type=int, default=2, help="busy loops beside every second verify (2)")
    hold.add_argument("--seconds", type=float, default=20.0, help="of each race (20)")
    hold.add_argument("--out", type=Path, default=OUT)
    jobs = verbs.add_parser("jobs")
    jobs.add_argument("workload")
    jobs.add_argument("--n", type=int, default=20)
    jobs.add_argument("--time", default="30s")
    jobs.add_argument("--budget", default="drop<=2")
    jobs.add_argument("--seconds", type=float, default=10.0, help="of each check of the speed (10)")
    jobs.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    if args.verb == "jobs":
        return walked(args)
    if args.verb == "study":
        command = ["optimize", args.workload, "--time", args.time, "--budget", args.budget, "--store", str(args.store)]
        return subprocess.run([sys.executable, "-m", "equipoise", *command], check=False).returncode
    return held(args)


def held(args: argparse.Namespace) -> int:
    """Export and verify again and again; print and keep what was found."""
    before, began = machine.describe(), time.perf_counter()
    real = [one(args, number, factor=1.0) for number in range(args.n)]
    latency_s = median([row["latency_s"] for row in real])
    factor = 1.15 if latency_s >= 3e-4 else 1.25
    planted = [one(args, number, factor=factor) for number in range(args.planted)]
    within = sum(row["low"] <= row["found"] <= row["high"] for row in real) / len(real)
    entry = {
        "n": args.n,
        "latency_s": latency_s,
        "within": within,
        "falsely_broken": sum(row["state"] == "broken" for row in real),
        "cannot_tell": sum(row["state"] == "cannot tell" for row in real),
        "load_sd": median([row["load_sd"] for row in real]),
        "half_width": {"median": median([(row["high"] - row["low"]) / 2 / row["promised"] for row in real])},
        "planted": {"factor": factor, "n": args.planted, "caught": sum(row["state"] == "broken" for row in planted)},
        "real": real,
        "planted_rows": planted,
        "seconds": time.perf_counter() - began,
        "machine": before,
        "load_after": machine.describe()["load"],
    }
    written(args.out, args.store.name, entry)
    shown = ("within", "falsely_broken", "cannot_tell", "half_width", "load_sd", "planted")
    print(args.store.name, json.dumps({key: entry[key] for key in shown}))
    return 0 if within >= 0.95 and not entry["falsely_broken"] else 1


PROMISES = ("drop on test", "times faster")


def walked(args: argparse.Namespace) -> int:
    """Walk the road `n` times and keep which promises held."""
    before, rows = machine.describe(), []
    for seed in range(args.n):
        with tempfile.TemporaryDirectory() as root:
            store, out = str(Path(root) / "study"), str(Path(root) / "artifact")
            asked = ["--budget", args.budget, "--time", args.time, "--seed", str(seed), "--quiet"]
            for words in (["optimize", args.workload, "--store", store, *asked], ["export", store, "--out", out]):
                subprocess.run([sys.executable, "-m", "equipoise", *words], stdout=subprocess.DEVNULL, check=False)
            command = [sys.executable, "-m", "equipoise", "verify", out, "--json", "--seconds", str(args.seconds)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        checks = {c["name"]: c for c in json.loads(done.stdout)["checks"]}
        row = {name: {key: checks[name][key] for key in ("state", "promised", "found")} for name in PROMISES}
        rows.append({"seed": seed, "broken": json.loads(done.stdout)["broken"], **row})
        print(rows[-1], file=sys.stderr, flush=True)
    states = [row[name]["state"] for row in rows for name in PROMISES]
    kept = states.count("kept") / (len(states) - states.count("cannot tell"))
    entry = {"n": args.n, "time": args.time, "budget": args.budget, "kept": kept, "rows": rows, "machine": before}
    entry["cannot_tell"] = states.count("cannot tell")
    written(args.out, f"jobs {args.workload}", entry)
    print(f"{kept:.3f} of {len(states) - entry['cannot_tell']} promises kept; {entry['cannot_tell']} cannot be told")
    return 0 if kept >= 0.95 else 1


def written(out: Path, name: str, entry: dict[str, Any]) -> None:
    """Add an entry to the result file."""
    kept = json.loads(out.read_text()) if out.is_file() else {}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({**kept, name: entry}, indent=1, sort_keys=True) + "\n")


def one(args: argparse.Namespace, number: int, *, factor: float) -> dict[str, Any]:
    """Export once, verify once in a new process; `factor` > 1 promises so many times the speed that was found."""
    with tempfile.TemporaryDirectory() as root, ExitStack() as stack:
        folder = Path(root) / "artifact"
        with Store.open(args.store, create=False) as store:
            study = Study.read(store)
            pick = study.pick(args.pick)
            row = race_stored(store, study.baseline, [pick], seconds=args.seconds, seed=number)
            store.put("final", f"promise:{time.time_ns()}", row, seconds=0.0)
            pack(pick, store, folder, pick=args.pick)
        if factor != 1.0:
            plant(folder, factor)
        promised = Artifact.load(folder).promise["speed_up"]
        busy = bool(number % 2 and args.busy)
        if busy:
            stack.enter_context(hogs(args.busy))
        command = [sys.executable, "-m", "equipoise", "verify", str(folder), "--json", "--seconds", str(args.seconds)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        told = json.loads(done.stdout)
    check = next(c for c in told["checks"] if c["name"] == "times faster")
    found = told["test"]["speed_up"]
    result = {
        "promised": promised.get(),
        "low": promised.low,
        "high": promised.high,
        "found": found["value"],
        "found_low": found["low"],
        "found_high": found["high"],
        "state": check["state"],
        "note": check["note"],
        "busy": busy,
        "exit": done.returncode,
        "broken": told["broken"],
        "latency_s": told["test"]["latency_s"]["value"],
        "load_sd": median([stdev(map(log, loads)) for loads in row["times"][pick.key] if len(loads) > 1]),
    }
    words = f"{promised.get():.3f} [{promised.low:.3f}, {promised.high:.3f}] found {found['value']:.3f} {check['state']}"
    print(f"{number} {'busy' if busy else 'idle'} × {factor:g}: {words} {told['broken'] or ''}", file=sys.stderr)
    return result


def plant(folder: Path, factor: float) -> None:
    """Promise `factor` times the speed-up, with everything else made to agree."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for end in ("value", "low", "high"):
        manifest["promise"]["speed_up"][end] *= factor
    base, ratio = manifest["baseline"]["latency_s"]["value"], manifest["promise"]["speed_up"]
    manifest["promise"]["latency_s"] |= {
        "value": base / ratio["value"],
        "low": base / ratio["high"],
        "high": base / ratio["low"],
    }
    manifest["digest"] = Artifact(folder, manifest).digest
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    (folder / "README.md").write_text(card(manifest))


@contextmanager
def hogs(count: int) -> Iterator[None]:
    """Keep `count` cores busy for as long as it lasts."""
    running = [subprocess.Popen([sys.executable, "-c", HOG]) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


if __name__ == "__main__":
    sys.exit(main())
