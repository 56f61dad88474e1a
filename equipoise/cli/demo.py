"""``equipoise demo``: the whole road on real handwritten digits, offline, in under two minutes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from equipoise.cli.arguments import duration, option
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
    from equipoise.cli import main
    from equipoise.study.record import Study
    from equipoise.study.tested import verified

    study, artifact = str(args.store), str(args.store.with_name(args.store.name + "-artifact"))
    code = main(["optimize", "digits", "--budget", BUDGET, "--time", args.time, "--store", study])
    if code != EXIT_OK:
        return code
    code = main(["export", study, "--pick", "best", "--out", artifact, "--overwrite"]) or main(["verify", artifact])
    main(["report", study])
    found = Study.load(args.store)
    print(f"report: {args.store / 'report.html'}")
    rows = [row for row in verified(args.store) if row.key == found.best.key]
    print(rows[-1].headline if rows else found.sentence(found.best))
    return code
