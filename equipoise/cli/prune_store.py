"""``equipoise prune-store STUDY``: free the files of points that nobody would pick."""

from __future__ import annotations

import argparse
from typing import Any

from equipoise.cli.arguments import option, place
from equipoise.errors import EXIT_OK
from equipoise.units import counted, show


def add_parser(subparsers: Any) -> None:
    """Add the verb to the command line."""
    parser = subparsers.add_parser(
        "prune-store",
        help="free the files of points that nobody would pick",
        description="Remove the model files of every evaluation but the untouched model, the front, the knee and the pick. All "
        "figures stay; the study is read, reported and exported from as before, but not searched on.",
    )
    option(parser, "study", place, metavar="STUDY", help="folder of the study, or its address (what --store named)")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be freed")


def run(args: argparse.Namespace) -> int:
    """Free them, and say how much that was."""
    from equipoise.study.pruning import prune_store
    from equipoise.study.store import Store

    with Store.open(args.study, create=False, readonly=args.dry_run) as store:
        found = prune_store(store, dry=args.dry_run)
    verb = "would free" if args.dry_run else "freed"
    print(f"{verb} {counted(found.files, 'file')}, {show(found.freed_bytes, 'B')}; {show(found.kept_bytes, 'B')} stay")
    return EXIT_OK
