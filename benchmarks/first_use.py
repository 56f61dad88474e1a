"""From nothing to the demo's sentence, as a first visitor meets it: a bare environment, pip, the demo, the time of an import.

    python benchmarks/first_use.py

Builds the wheel (hatchling is of the dev extra), installs it with the pins of `constraints.txt`, checks the environment, runs
`equipoise demo` without a network where the system allows that, and times `import equipoise` in fresh processes, beside a
Python that imports nothing. Two to three minutes on two cores, what pip downloads aside.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from equipoise.measure import machine

ROOT = Path(__file__).resolve().parent.parent
OUT = Path(__file__).parent / "results" / "first_use.json"
REPEATS = 21
"""Starts of Python for each of the two times."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="that makes the environment (this one)")
    parser.add_argument("--time", default="60s", help="of the demo's search (60s)")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    before = machine.describe()
    with tempfile.TemporaryDirectory() as name:
        entry = first_use(Path(name), args.python, args.time)
    entry |= {"machine": before, "load_after": machine.describe()["load"]}
    args.out.write_text(json.dumps(entry, indent=1, sort_keys=True) + "\n")
    print(json.dumps({key: entry[key] for key in ("demo_s", "import_s", "pip_check", "sentence")}, indent=1))
    return 0


def first_use(folder: Path, python: str, search: str) -> dict[str, Any]:
    """Walk the way of a visitor, each step timed in seconds."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def run(*words: str | Path) -> tuple[str, float]:
        began = time.perf_counter()
        done = subprocess.run(list(map(str, words)), cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        return done.stdout.strip(), time.perf_counter() - began

    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=ROOT, check=True)
    programs = folder / "bare" / "bin"
    _, venv_s = run(python, "-m", "venv", folder / "bare")
    _, pip_s = run(programs / "pip", "install", "--quiet", next(folder.glob("*.whl")), "-c", ROOT / "constraints.txt")
    checked, _ = run(programs / "pip", "check")
    can = shutil.which("unshare") and subprocess.run(["unshare", "--net", "true"]).returncode == 0
    alone = ["unshare", "--net"] if can else []
    printed, demo_s = run(*alone, programs / "equipoise", "demo", "--time", search)
    starts: dict[str, list[float]] = {"import equipoise": [], "pass": []}
    for _ in range(REPEATS):
        for code, seconds in starts.items():  # side by side, so that both meet the same state of the machine
            seconds.append(run(programs / "python", "-c", code)[1])
    return {
        "n": REPEATS,
        "time": search,
        "offline": bool(alone),
        "python": run(programs / "python", "-c", "import platform; print(platform.python_version())")[0],
        "venv_s": venv_s,
        "pip_s": pip_s,
        "pip_check": checked,
        "demo_s": demo_s,
        "sentence": printed.splitlines()[-1],
        "import_s": median(a - b for a, b in zip(starts["import equipoise"], starts["pass"], strict=True)),
        "starts_s": starts,
    }


if __name__ == "__main__":
    sys.exit(main())
