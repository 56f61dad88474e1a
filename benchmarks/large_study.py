"""A study of ten thousand trials: how long do `studies`, `report` and one more record take, and how large is the record?

    python benchmarks/large_study.py runs/digits                # 2 minutes; --count 1000 for a look
    python benchmarks/large_study.py runs/digits --address "postgresql:///db?host=/run/postgresql"

The trials are those of a real study over and over, each with a plan of its own drawn from the space; weights and programs are
named and not stored. The verbs run as their users run them, a process each.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from equipoise.measure import machine
from equipoise.records import Plan, as_data, evaluation_from
from equipoise.study.store import Store

RESULT = Path(__file__).parent / "results" / "large_study.json"
LIMITS = {"studies_s": 1.0, "report_s": 10.0, "record_s": 0.010, "database_bytes": 100e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--address", default="", help="of a database; a folder without it")
    args = parser.parse_args()
    source = args.study.resolve()
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):  # where the folder of a database's study is made
        folder = Path(name) / "runs" / "large"
        place = f"{args.address}#large" if args.address else str(folder)
        took = grown(source, place, args.count)
        whole = args.address or str(folder.parent)
        found: dict[str, Any] = {
            "count": args.count,
            "record_s": median(took),
            "studies_s": timed("studies", whole),
            "report_s": timed("report", place, "--out", str(Path(name) / "report.html")),
            "page_bytes": (Path(name) / "report.html").stat().st_size,
            "table_s": timed("report", place, "--out", str(Path(name) / "trials.csv")),
        }
        if not args.address:
            found["database_bytes"] = (folder / "study.db").stat().st_size
    found["met"] = {key: found[key] <= most for key, most in LIMITS.items() if key in found}
    print(json.dumps(found, indent=1))
    rows = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    rows["database" if args.address else "folder"] = {**found, "machine": machine.describe()}
    RESULT.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n")


def grown(source: Path, place: str, count: int) -> list[float]:
    """Make a study of `count` evaluations; return the seconds that each of the last hundred took to record."""
    draw, took = np.random.default_rng(0), list[float]()
    with Store.open(source, create=False, readonly=True) as old, Store.open(place) as new:
        for kind in ("prepare", "notes", "study", "table", "lut", "extent", "asking"):
            for index, row in enumerate(old.all(kind)):
                key = row["header"]["asked"] if kind == "study" and "asked" in row["header"] else str(index)
                new.put(kind, key, row, seconds=0.1)
        rows = [evaluation_from(row["evaluation"]) for row in old.all("evaluation")]
        header = old.all("study")[-1]["header"]
        menus = {row["knob"]["name"]: row["knob"]["menu"] for row in header["space"]}
        seen = set()
        for index in range(count):
            like = rows[index % len(rows)]
            if index >= len(rows):
                choices = {**like.plan.choices, **{k: menu[int(draw.integers(len(menu)))] for k, menu in menus.items()}}
                like = replace(like, plan=Plan(choices))
            if like.key in seen:
                continue
            seen.add(like.key)
            began = time.perf_counter()
            new.put("evaluation", like.key, {"evaluation": as_data(like)}, seconds=1.0)
            took.append(time.perf_counter() - began)
    print(f"{len(seen)} evaluations", flush=True)
    return took[-100:]


def timed(*words: str) -> float:
    """Return the least seconds of three runs of a verb."""
    took = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "equipoise", *words], check=True, stdout=subprocess.DEVNULL)
        took.append(time.perf_counter() - began)
    return min(took)


if __name__ == "__main__":
    main()
