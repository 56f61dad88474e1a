"""``equipoise studies PATH``: the studies of a folder or a database."""

from __future__ import annotations

import argparse
from typing import Any

from equipoise.errors import EXIT_OK
from equipoise.units import counted, show


def add_parser(subparsers: Any) -> None:
    """Add the verb to the command line."""
    parser = subparsers.add_parser(
        "studies",
        help="list the studies of a folder or a database",
        description="List every study of a folder, or of a database, with what was asked, how far it is, and its pick.",
    )
    parser.add_argument("place", metavar="PATH", nargs="?", default="runs", help="folder, or postgresql://HOST/DATABASE (runs)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    """Print the list."""
    from equipoise.study.listing import studies

    found = studies(args.place)
    if args.json:
        from equipoise.records import as_data, dumps

        print(dumps({"schema_version": 1, "studies": [as_data(row) for row in found]}))
        return EXIT_OK
    for row in found:
        asked = f"{row.workload}, {row.budget or 'the knee'}: " if row.workload else ""
        counts = f"{counted(row.evaluations, 'evaluation')} ({row.failed} failed), {show(row.spent_s, 's')}; " if asked else ""
        print(f"{row.place}\n    {asked}{counts}{row.says}")
    if not found:
        print(f"no studies in {args.place}")
    return EXIT_OK
