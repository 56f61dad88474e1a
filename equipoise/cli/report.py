"""``equipoise report STUDY``: one self-contained HTML page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from equipoise.cli.arguments import option, place
from equipoise.errors import EXIT_OK


def add_parser(subparsers: Any) -> None:
    """Add the verb to the command line."""
    parser = subparsers.add_parser(
        "report",
        help="write a study as one self-contained HTML page",
        description="Write a study as one HTML page that needs no network: the front, the pick, what was cut and why, "
        "the search's progress and every evaluation. The path of the page is printed on stdout.",
    )
    option(parser, "study", place, metavar="STUDY", help="folder of the study, or its address (what --store named)")
    parser.add_argument(
        "--out", metavar="FILE", type=Path, help="default STUDY/report.html; .json has its data, .csv a row a trial"
    )
    parser.add_argument("--json", action="store_true", help="print the data behind the page instead of writing it")


def run(args: argparse.Namespace) -> int:
    """Read the study, write the page, print its path."""
    if args.json:
        from equipoise.pages import finite
        from equipoise.records import dumps
        from equipoise.ship.report import told

        print(dumps(finite(told(args.study)[0])))
        return EXIT_OK
    from equipoise.ship.report import report

    print(report(args.study, out=args.out))
    return EXIT_OK
