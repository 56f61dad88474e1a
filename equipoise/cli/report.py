"""``equipoise report STUDY``: one self-contained HTML page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from equipoise.errors import EXIT_OK, must_be


def add_parser(subparsers: Any) -> None:
    """Add the verb to the command line."""
    parser = subparsers.add_parser(
        "report",
        help="write a study as one self-contained HTML page",
        description="Write a study as one HTML page that needs no network: the front, the pick, what was cut and why, "
        "the search's progress and every evaluation. The path of the page is printed on stdout.",
    )
    parser.add_argument("study", metavar="STUDY", type=Path, help="folder of the study (what --store named)")
    parser.add_argument("--out", metavar="FILE", type=Path, help="where to write; default STUDY/report.html")
    parser.add_argument("--json", action="store_true", help="print the data behind the page instead of writing it")


def run(args: argparse.Namespace) -> int:
    """Read the study, write the page, print its path."""
    from equipoise.pages import finite, render, render_scale
    from equipoise.records import dumps
    from equipoise.study.store import Store, write_atomic
    from equipoise.study.summary import summarize

    out = args.out or args.study / "report.html"
    if args.study.is_dir() and (not out.parent.is_dir() or out.is_dir()):
        raise must_be("--out", "a file in a folder that exists", str(out), "Create the folder first, or name a file.")
    with Store.open(args.study, create=False, readonly=True) as store:
        advised = bool(store.all("asked"))
        if advised:
            from equipoise.advise.advice import read

            summary = read(store).summary()
        else:
            summary = summarize(store)
    if args.json:
        print(dumps(finite(summary)))
        return EXIT_OK
    write_atomic(out, (render_scale if advised else render)(summary).encode())
    print(out)
    return EXIT_OK
