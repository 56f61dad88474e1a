"""``equipoise verify ARTIFACT``: every promise of an exported folder, checked on its files in a clean process."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equipoise.cli.arguments import option, positive
from equipoise.errors import EXIT_BROKEN_PROMISE, EXIT_OK
from equipoise.units import counted

if TYPE_CHECKING:
    from rich.text import Text

    from equipoise.ship.promises import Check
    from equipoise.ship.verify import Verification


def add_parser(subparsers: Any) -> None:
    """Add the verb to the command line."""
    parser = subparsers.add_parser(
        "verify",
        help="re-measure an exported folder and hold it to its promises",
        description="Check hashes, rebuild the source model, and measure numerics, quality on the validation and test splits, "
        "latency beside the untouched model, and size again on the files. Writes verify.json beside the manifest. "
        "Exit 4 on any broken promise; what cannot be told from here is said and does not count, unless --strict.",
    )
    parser.add_argument("artifact", metavar="ARTIFACT", type=Path, help="the folder that export wrote")
    parser.add_argument("--workload", metavar="SPEC", help="source model and data; default: what the manifest names")
    option(parser, "--seconds", positive("10"), metavar="N", default=10.0, help="time for the latency comparison (10)")
    parser.add_argument(
        "--trust-nothing",
        action="store_true",
        help="execute no code that the artifact names: check only files, probe, sizes, structure and the ratio of latencies",
    )
    parser.add_argument("--strict", action="store_true", help="exit 4 also where a promise cannot be told kept or broken here")
    parser.add_argument("--json", action="store_true", help="print the checks as JSON")


def run(args: argparse.Namespace) -> int:
    """Say what will be executed, verify, print the test figures, one row per check and the verdict; return 0 or 4."""
    import json
    import sys

    from equipoise.ship.verify import verify

    def announce(executed: str) -> None:
        print(f"verify executes, in a clean process: {executed}", file=sys.stderr, flush=True)

    found = verify(
        args.artifact,
        workload=args.workload,
        seconds=args.seconds,
        trust_nothing=args.trust_nothing,
        announce=announce,
    )
    if args.json:
        print(json.dumps(found.as_dict(), indent=2))
    else:
        _show(found)
    if not found.saved:
        print(f"verify.json was not written: {args.artifact} is read-only", file=sys.stderr)
    elif found.headline:
        print("a report of the study shows these figures once it is written again: equipoise report STUDY", file=sys.stderr)
    passed = found.ok and not (args.strict and found.untold)
    return EXIT_OK if passed else EXIT_BROKEN_PROMISE


def _show(found: Verification) -> None:
    from rich.table import Table
    from rich.text import Text

    from equipoise.cli.terminal import console

    table = Table(box=None, pad_edge=False)
    for column in ("", "check", "promised", "found", "note"):
        table.add_column(column)
    for check in found.checks:
        table.add_row(*_row(check))
    out = console(width=180)
    if found.headline:
        out.print(Text(found.headline, style="bold"), soft_wrap=True)
    out.print(table)
    if found.recorded:
        out.print(Text(f"recorded, not checked: {found.recorded}"), soft_wrap=True)
    for check in found.untold:
        out.print(Text(f"cannot tell here: {check.name}: {check.note}"), soft_wrap=True)
    out.print(Text(f"{_verdict(found)} ({len(found.checks)} checks, {found.seconds:.0f} s)"))


def _verdict(found: Verification) -> str:
    """Say it in one line: what is broken, else what could not be told, else that all is kept."""
    broken, untold = len(found.broken), len(found.untold)
    if broken:
        return counted(broken, "broken promise")
    return f"no promise is broken, {untold} cannot be told from here" if untold else "every promise is kept"


def _row(check: Check) -> tuple[Text, ...]:
    """A table row in which no text is markup: names and reasons come from files."""
    from rich.text import Text

    word, style = {"kept": ("ok", "green"), "broken": ("BROKEN", "red"), "cannot tell": ("?", "yellow")}[check.state]
    return (Text(word, style=style), *(Text(text) for text in (check.name, check.promised, check.found, check.note)))
