"""``equipoise worker --store postgresql://HOST/DATABASE --study NAME``: work for a study that another machine walks."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from typing import Any

from equipoise.cli.arguments import duration, option, place, whole
from equipoise.errors import EXIT_OK, must_be
from equipoise.units import counted, parse


def add_parser(subparsers: Any) -> None:
    """Add the verb to the command line."""
    parser = subparsers.add_parser(
        "worker",
        help="work for a study that another machine walks",
        description="Make, train and score the candidates of a study that `equipoise optimize` walks with the same --store, on "
        "this machine or any other that loads the workload by the same name. It times nothing. It waits for the study to "
        "begin, ends a minute after it, and may be stopped or killed at any time: another worker takes over.",
    )
    parser.add_argument("--store", metavar="URL", required=True, help="postgresql://HOST/DATABASE, as of optimize")
    parser.add_argument("--study", metavar="NAME", default="", help="of the study")
    option(parser, "--threads", whole(least=1), default=None, help="cores that it may use (default: all)")
    lease = "how long what it took waits for it when it is no longer heard of (default: %(default)s)"
    option(parser, "--lease", duration(), default="60s", help=lease)
    parser.add_argument("--quiet", action="store_true", help="no line for each order")


def run(args: argparse.Namespace) -> int:
    """Work until the study is at its end, or the process is asked to end."""
    from equipoise.study.place import is_address

    if not is_address(args.store):
        remedy = "On one machine, `equipoise optimize --workers N` needs none."
        raise must_be("--store", "the address of a database", args.store, remedy)
    if ("#" in args.store) == bool(args.study):
        raise must_be("--study", "the study's name, once", args.study, "Give the name that optimize has.")
    address = args.store if "#" in args.store else f"{args.store}#{args.study}"
    place("--store", address)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    from equipoise.road.worker import work

    def told(text: str) -> None:
        if not args.quiet:
            print(text, file=sys.stderr, flush=True)

    done = work(address, told=told, stop=stop, threads=args.threads, lease_s=parse(args.lease, "s", name="--lease"))
    print(f"{counted(done, 'order')} done")
    return EXIT_OK
