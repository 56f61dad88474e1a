"""``equipoise verify ARTIFACT``: every promise of an exported folder, checked on its files in a clean process."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equipoise.errors import EXIT_BROKEN_PROMISE, EXIT_OK

if TYPE_CHECKING:
    from rich.text import Text

    from equipoise.verify import Check, Verification


def add_parser(subparsers: Any) -> None:
    """Add the verb to the command line."""
    parser = subparsers.add_parser(
        "verify",
        help="re-measure an exported folder and hold it to its promises",
        description="Check hashes, rebuild the source model, and measure numerics, quality on the validation and test splits, "
        "latency beside the untouched model, and size again on the files. Writes verify.json beside the manifest. "
        "Exit 4 on any broken promise.",
    )
    parser.add_argument("artifact", metavar="ARTIFACT", type=Path, help="the folder that export wrote")
    parser.add_argument("--workload", metavar="SPEC", help="source model and data; default: what the manifest names")
    parser.add_argument("--seconds", metavar="N", type=float, default=10.0, help="time for the latency comparison (10)")
    parser.add_argument("--json", action="store_true", help="print the checks as JSON")


def run(args: argparse.Namespace) -> int:
    """Verify, print one row per check, and return 0 or 4."""
    import json
    import sys

    from equipoise.verify import verify

    print("verifying in a clean process ...", file=sys.stderr)
    found = verify(args.artifact, workload=args.workload, seconds=args.seconds)
    if args.json:
        print(json.dumps(found.as_dict(), indent=2))
    else:
        _show(found)
    if not found.saved:
        print(f"verify.json was not written: {args.artifact} is read-only", file=sys.stderr)
    return EXIT_OK if found.ok else EXIT_BROKEN_PROMISE


def _show(found: Verification) -> None:

    from rich.table import Table

    from equipoise.cli.terminal import console

    table = Table(box=None, pad_edge=False)
    for column in ("", "check", "promised", "found", "note"):
        table.add_column(column)
    for check in found.checks:
        table.add_row(*_row(check))
    out = console(width=180)
    out.print(table)
    broken = len(found.broken)
    verdict = "every promise is kept" if found.ok else f"{broken} broken promise{'s' if broken > 1 else ''}"
    out.print(f"{verdict} ({len(found.checks)} checks, {found.seconds:.0f} s)", highlight=False)


def _row(check: Check) -> tuple[str | Text, ...]:
    from rich.text import Text

    mark = Text("ok", style="green") if check.ok else Text("BROKEN", style="red")
    return mark, check.name, check.promised, check.found, check.note
