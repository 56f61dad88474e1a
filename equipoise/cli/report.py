"""``equipoise report STUDY``: one self-contained HTML page."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

from equipoise.errors import EXIT_OK, StoreError, must_be


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
    from equipoise.records import dumps
    from equipoise.report import render
    from equipoise.store import Store
    from equipoise.summary import summarize

    if not args.study.is_dir():
        raise must_be("STUDY", "the folder of a study", str(args.study), "Give the folder that --store named in optimize.")
    summary = summarize(Store(args.study))
    if args.json:
        print(dumps(summary))
        return EXIT_OK
    out = args.out or args.study / "report.html"
    write_whole(out, render(summary))
    print(out)
    return EXIT_OK


def write_whole(path: Path, text: str) -> None:
    """Write `text` to `path` so that a reader sees the old file or the whole new one.

    Raises:
        InputError: `path` is a folder, or its folder does not exist.
        StoreError: The disk refused.
    """
    if path.is_dir() or not path.parent.is_dir():
        raise must_be("--out", "a file in a folder that exists", str(path), "Create the folder first, or name a file.")
    scratch = ""
    try:
        handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(scratch, 0o666 & ~_umask())
        os.replace(scratch, path)
    except OSError as error:
        if scratch:
            Path(scratch).unlink(missing_ok=True)
        raise StoreError(f"{path} could not be written: {error.strerror}. Free space there, or name another --out.") from error


def _umask() -> int:
    """Return the process's umask (it can only be read by setting it)."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
