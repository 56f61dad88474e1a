"""Kill a running study at random moments with ``kill -9``, start it again each time, and count what is lost or doubled.

    python benchmarks/crash.py --kills 50 --out benchmarks/results/crash.json     # the store alone, half a minute
    python benchmarks/crash.py --kills 50 --window 20 --after tables -- equipoise optimize digits --store {store} --time 60s

``{store}`` in a command is replaced by a study folder; when the command ends before all kills are spent, the next ones go to a
fresh folder. After each kill the study is opened read-only, and every record ever seen in it must still be there, unchanged and
once, with its blobs. Every line ``recorded KIND KEY`` or ``done N`` on stdout is an acknowledgement that must be in it too.
Exit 1 when anything is lost or doubled, or when a resume takes longer than ``--limit`` seconds until its first line of output.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from equipoise.errors import EquipoiseError
from equipoise.study.store import Store

Record = tuple[str, str]


@dataclasses.dataclass
class Tally:
    """What the kills did."""

    kills: int = 0
    runs_ended: int = 0
    records: int = 0
    lost: int = 0
    doubled: int = 0
    computed_again: int = 0
    damaged: list[str] = dataclasses.field(default_factory=list)
    resume_s: list[float] = dataclasses.field(default_factory=list)


def walk(folder: str, steps: int) -> None:
    """The built-in victim: short steps, so that most kills land inside a write."""
    with Store.open(folder) as store:
        print("open", flush=True)
        for i in range(steps):

            def step(i: int = i) -> dict[str, Any]:
                print(f"computing {i}", flush=True)
                time.sleep(0.001)
                return {"i": i, "files": {"program": store.blob(f"{i}".encode() * 20_000)}}

            store.once("step", str(i), step)
            print(f"done {i}", flush=True)


def read_records(folder: Path) -> tuple[list[tuple[int, Record]], dict[Record, str]]:
    """Return (sequence numbers with names, name -> text) of a study, its blobs checked."""
    with Store.open(folder, create=False, readonly=True) as store:
        rows = store._db.execute("SELECT seq, kind, key, data FROM records ORDER BY seq").fetchall()
        for _, kind, key, _ in rows:
            for sha in (store.get(kind, key) or {}).get("files", {}).values():
                store.read_blob(sha)
    return [(seq, (kind, key)) for seq, kind, key, _ in rows], {(kind, key): data for _, kind, key, data in rows}


def one_run(command: list[str], log: Path, *, kill_after_s: float | None, after: str | None) -> tuple[int, float]:
    """Run until the end or the kill; return (exit code, seconds until the first output).

    The kill is timed from the start, or from when `after` (an empty text is any output) has been printed.
    """
    begun, first = time.perf_counter(), float("nan")
    clock = begun if after is None else float("nan")
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    while process.poll() is None:
        now = time.perf_counter() - begun
        if first != first and log.stat().st_size:
            first = now
        if clock != clock and first == first and after is not None and after in log.read_text(errors="replace"):
            clock = time.perf_counter()
        if kill_after_s is not None and time.perf_counter() - clock >= kill_after_s:  # never while the clock is NaN
            process.send_signal(signal.SIGKILL)  # this process only: what it leaves running must not disturb the next
            break
        time.sleep(0.002)
    return process.wait(), first


def judge(folder: Path, log: Path, known: dict[Record, str], acknowledged: set[Record], tally: Tally) -> None:
    """Compare the study with all that was known of it, and learn what is new."""
    lines = log.read_text(errors="replace").splitlines()
    tally.computed_again += sum(("step", line[10:]) in known for line in lines if line.startswith("computing "))
    acknowledged |= {("step", m[1]) for line in lines if (m := re.fullmatch(r"done (\d+)", line))}
    acknowledged |= {(m[1], m[2]) for line in lines if (m := re.match(r"recorded (\S+) (\S+)", line))}
    if not (folder / "study.db").exists():
        tally.lost += len(known)
        return
    try:
        numbered, found = read_records(folder)
    except EquipoiseError as error:
        if "begun" not in str(error):  # killed before the table was made
            tally.damaged.append(str(error))
        return
    tally.lost += sum(found.get(name) != text for name, text in known.items()) + len(acknowledged - found.keys())
    names = [name for _, name in numbered]
    tally.doubled += len(names) - len(set(names)) + sum(seq != i + 1 for i, (seq, _) in enumerate(numbered))
    known |= found


def sweep(command: list[str], base: Path, *, kills: int, window_s: float, after: str, seed: int) -> Tally:
    """Kill `kills` times at random moments within `window_s` of the start or, four times in five, of the output `after`."""
    rng, tally, study = random.Random(seed), Tally(), 0
    while tally.kills < kills or study == 0:
        folder, log = base / f"study-{study}", base / "log"
        here = [part.replace("{store}", str(folder)) for part in command]
        known: dict[Record, str] = {}
        acknowledged: set[Record] = set()
        study, code = study + 1, -signal.SIGKILL
        while code == -signal.SIGKILL:
            kill_after_s = rng.uniform(0, window_s) if tally.kills < kills else None
            had = len(known)
            code, first = one_run(here, log, kill_after_s=kill_after_s, after=after if rng.random() < 0.8 else None)
            tally.kills += code == -signal.SIGKILL
            if had and first == first:
                tally.resume_s.append(round(first, 3))
            judge(folder, log, known, acknowledged, tally)
            print(f"kill {tally.kills}/{kills}: study {study}, {len(known)} records, lost {tally.lost}", file=sys.stderr)
        tally.runs_ended += 1
        tally.records += len(known)
        if code not in (0, 1) or not known:
            tally.damaged.append(f"exit {code}, {len(known)} records: {log.read_text(errors='replace')[-500:]}")
            break
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--window", type=float, default=0.6, help="seconds within which a kill falls")
    parser.add_argument("--after", default="", help="text of the output from which the window counts; default any output")
    parser.add_argument("--limit", type=float, default=5.0, help="longest allowed resume in seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--walk", nargs=2, metavar=("FOLDER", "STEPS"), help=argparse.SUPPRESS)
    parser.add_argument("command", nargs="*", help="the command to kill, with {store} in it")
    args = parser.parse_args()
    if args.walk:
        walk(args.walk[0], int(args.walk[1]))
        return 0
    from equipoise.measure.machine import describe  # here: the victim's start counts

    command = args.command or [sys.executable, __file__, "--walk", "{store}", "400"]
    with tempfile.TemporaryDirectory() as base:
        tally = sweep(command, Path(base), kills=args.kills, window_s=args.window, after=args.after, seed=args.seed)
    waits = tally.resume_s or [float("inf")]
    resume = {"n": len(tally.resume_s), "median": statistics.median(waits), "max": max(waits)}
    ok = not (tally.lost or tally.doubled or tally.computed_again or tally.damaged) and resume["max"] <= args.limit
    shown = ["equipoise store walk"] if not args.command else args.command
    found = {**dataclasses.asdict(tally), "resume_s": resume, "ok": ok}
    found |= {"command": shown, "window_s": args.window, "seed": args.seed, "machine": describe()}
    text = json.dumps(found, indent=2)
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
