"""Every model of the zoo through all that compresses: what applies, what is refused and why, and whether all is right.

    python benchmarks/zoo.py                      # all of them; writes results/zoo.json and docs/zoo.md
    python benchmarks/zoo.py --only swin own:     # those whose names hold one of these words; the other rows stay
    python benchmarks/zoo.py --page               # docs/zoo.md again from results/zoo.json

Each model has a process of its own: one that crashes or hangs loses its row alone. The models are listed in tests/zoo/; they
are built small, with random weights, and nothing is downloaded. `EQUIPOISE_ZOO=all pytest tests/zoo` holds them to be right.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

for _pool in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # before anything imports them
    os.environ.setdefault(_pool, "1")
ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "zoo")]

import hugging_face  # noqa: E402
import psutil  # noqa: E402
import torch  # noqa: E402
from zoo_models import ZOO, missing, record_of  # noqa: E402
from zoo_page import page  # noqa: E402

from equipoise.measure import machine  # noqa: E402

RESULTS, PAGE = ROOT / "benchmarks" / "results" / "zoo.json", ROOT / "docs" / "zoo.md"
PATIENCE_S, WAITING = 300, 20
"""Seconds of work after which a model is taken for one that hangs; so many times as long where it does not even work."""
PACKAGES = ("torch", "timm", "torchvision", "transformers", "onnx", "onnxscript", "onnxruntime", "torch-pruning")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=(), metavar="WORD", help="models whose names hold one of these")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time (%(default)s)")
    parser.add_argument("--rest", action="store_true", help="only those that the result file does not hold as right yet")
    parser.add_argument("--page", action="store_true", help="write the page alone")
    args = parser.parse_args()
    found = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {"models": {}}
    if not args.page:
        torch.set_num_threads(1)
        names = list(dict.fromkeys(name for word in args.only or [""] for name in ZOO if word in name))
        if args.rest:
            names = [name for name in names if not found["models"].get(name, {"kept": False})["kept"]]
        for name in [name for name in names if missing(name)]:
            print(f"left out: {missing(name)}", flush=True)
            names.remove(name)
        hugging_face.transformers()
        began = time.time()
        for record in walked(names, args.jobs):
            took, why = f"{record['seconds']:6.1f} s", f"{record['stage']:10} {record['why'][:200]}"
            print(f"{record['verdict']:8} {took}  {record['name']:45} {why}", flush=True)
            found["models"][record["name"]] = record
            save(found)
        print(f"{len(names)} models in {time.time() - began:.0f} s", flush=True)
    PAGE.write_text(page(json.loads(RESULTS.read_text(encoding="utf-8"))), encoding="utf-8")
    wrong = [name for name, record in found["models"].items() if not record["kept"]]
    raise SystemExit(f"not as they must be: {', '.join(wrong)}" if wrong else 0)


def save(found: dict[str, Any]) -> None:
    """Write what is known, in the order of the table, without what is no longer in it."""
    known = {name: found["models"][name] for name in ZOO if name in found["models"]}
    where = {"machine": machine.describe(), "packages": {name: version(name) for name in PACKAGES}, "listed": len(ZOO)}
    partial = RESULTS.with_suffix(".part")
    partial.write_text(json.dumps({**where, "models": known}, indent=1) + "\n", encoding="utf-8")
    partial.replace(RESULTS)


def walked(names: list[str], jobs: int) -> Any:
    """Yield the record of each model as it ends; `jobs` of them run at a time, each in a child of this process."""
    fork = multiprocessing.get_context("fork")
    waiting, running = list(names), list[tuple[Any, Any, str, float]]()
    while waiting or running:
        while waiting and len(running) < jobs:
            ours, theirs = fork.Pipe(duplex=False)
            child = fork.Process(target=_child, args=(waiting[0], theirs), daemon=True)
            child.start()
            theirs.close()
            running.append((child, ours, waiting.pop(0), time.time()))
        for each in list(running):
            child, ours, name, began = each
            late = worked(child.pid) > PATIENCE_S or time.time() - began > WAITING * PATIENCE_S
            if not (late or ours.poll(0.05)):
                continue
            yield _ended(child, ours, name, time.time() - began, late=late)
            running.remove(each)


def worked(process: int) -> float:
    """Return the seconds of CPU that a process has had: on a busy machine all take long."""
    try:
        spent = psutil.Process(process).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(spent.user + spent.system)


def _ended(child: Any, ours: Any, name: str, seconds: float, *, late: bool) -> dict[str, Any]:
    lost = {"name": name, "kind": ZOO[name].kind, "verdict": "broken", "kept": False, "stage": "", "stages": {}}
    lost |= {"seconds": round(seconds, 1), "why": f"it has not ended after {PATIENCE_S} seconds of work"}
    if not late:
        try:
            return dict(ours.recv())
        except EOFError:
            child.join()
            return lost | {"why": f"its process ended with {child.exitcode}"}
        finally:
            child.join()
    child.kill()
    child.join()
    return lost


def _child(name: str, answer: Any) -> None:
    answer.send(record_of(name))
    answer.close()


if __name__ == "__main__":
    main()
