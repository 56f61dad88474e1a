"""``equipoise demo``: the whole road on real handwritten digits, offline, in under two minutes."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from equipoise.cli.arguments import check_store, duration, option
from equipoise.errors import EXIT_OK

TIME = "60s"
BUDGET = "drop<=1"


def add_parser(subparsers: Any) -> None:
    """Add the verb to the command line."""
    parser = subparsers.add_parser(
        "demo",
        help="the whole road on handwritten digits, offline, in two minutes",
        description="Train a small conv net on scikit-learn's 1,797 real digits, search its best balance within 'drop<=1', "
        "export the pick, verify the exported file on the test split in a clean process, and write the report.",
    )
    parser.add_argument("--store", type=Path, default=Path("runs/demo"), help="folder of the study (default: %(default)s)")
    option(parser, "--time", duration(zero=True), default=TIME, help="wall time of the search (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Optimize, export, verify and report; end with the report's path and one sentence."""
    check_store(args.store)
    from equipoise.cli import main
    from equipoise.study.record import Study
    from equipoise.study.tested import verified

    def step(number: int, says: str, *words: str) -> int:
        """Say what comes and the command that does it, and run it."""
        above = "\n" if number > 1 else ""
        print(f"{above}{number}/4 {says}\n    equipoise {shlex.join(words)}", file=sys.stderr, flush=True)
        return main(words)

    study, artifact = str(args.store), str(args.store.with_name(args.store.name + "-artifact"))
    asked = ("optimize", "digits", "--budget", BUDGET, "--time", args.time, "--store", study)
    code = step(1, "search the best balance of a conv net that reads handwritten digits, at most one point worse", *asked)
    if code != EXIT_OK:
        return code
    code = step(2, "export the best point: the very file that was scored", "export", study, "--out", artifact, "--overwrite")
    code = code or step(3, "verify that file, on images that the search never saw", "verify", artifact)
    step(4, "write the report: a page to open in a browser", "report", study)
    found = Study.load(args.store)
    rows = [row for row in verified(args.store) if row.key == found.best.key]
    print("\nin one sentence (your own model next: equipoise optimize FILE.py:FUNCTION)", file=sys.stderr, flush=True)
    print(rows[-1].headline if rows else found.sentence(found.best))
    return code
