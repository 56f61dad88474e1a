"""``equipoise split MODEL --device T --server T --uplink 10Mbit/s --rtt 20ms``: where to cut a model between two machines."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equipoise.built_in import WORKLOADS
from equipoise.cli.arguments import check_named, check_store, duration, option, targets, whole
from equipoise.errors import EXIT_OK, must_be
from equipoise.units import parse

if TYPE_CHECKING:
    from equipoise.halves.split import Splits


def add_parser(subparsers: Any) -> None:
    """Add the verb to the command line."""
    parser = subparsers.add_parser(
        "split",
        help="where to cut a model between a device and a server, measured as two processes",
        description="Cuts a model where little passes, rounds that to the fewest levels that keep the budget, times each half, "
        "and runs the best end to end as two processes over a loopback link shaped to --uplink and --rtt. All on the device "
        "and all on the server compete. Both run here: the threads of each target are what tells them apart.",
    )
    parser.add_argument("workload", metavar="MODEL", help="as for optimize: digits, images:DATA?..., FILE.py:FUNCTION, ...")
    one, two = "onnxruntime:cpu?threads=1", "onnxruntime:cpu?threads=2"
    option(parser, "--device", targets(one=True), metavar="T", default=one, help=f"where the first half runs ({one})")
    option(parser, "--server", targets(one=True), metavar="T", default=two, help=f"where the second half runs ({two})")
    option(parser, "--uplink", _rates, metavar="RATE[,RATE]", required=True, help="such as 10Mbit/s; of each a pick")
    option(parser, "--rtt", _delay, metavar="TIME", default="20ms", help="there and back of a bit (20ms)")
    option(parser, "--budget", _bound, metavar="BOUND", default="drop<=0.5", help="points that may be lost (drop<=0.5)")
    option(parser, "--time", duration(), metavar="T", default="30s", help="of each race: halves, every uplink (30s)")
    option(parser, "--seed", whole(), default=0, help="of the order of the races (0)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write both halves of each pick; serve them with "
                        "python -m equipoise.halves.far FOLDER")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def run(args: argparse.Namespace) -> int:
    """Split, print the cuts and what each uplink asks for, and write the halves."""
    check_named("workload", args.workload, WORKLOADS)
    if args.out is not None:
        from equipoise.halves.pair import check_out

        check_store(args.out, name="--out", study=False)
        check_out(args.out)
    from equipoise.cli.terminal import doing, visible
    from equipoise.halves.split import split

    found = split(
        args.workload, device=args.device, server=args.server, uplink=args.uplink, rtt=args.rtt, budget=args.budget,
        time=args.time, seed=args.seed, on_step=lambda text: doing(text, quiet=args.quiet),
    )  # fmt: skip
    if args.json:
        from equipoise.records import dumps

        print(dumps({"schema_version": 1, **found.data()}))
    else:
        _show(found)
    if args.out is not None:
        found.save(args.out)
        if not args.json:
            print(visible(f"halves: {args.out}"))
    return EXIT_OK


def _show(found: Splits) -> None:
    from rich.table import Table

    from equipoise.cli.terminal import console, visible

    out = console()
    table = Table(box=None, pad_edge=False)
    for number, column in enumerate(("cut", "after", "levels", "sent", "drop", "device", "server")):
        table.add_column(column, justify="left" if number < 2 else "right")
    for name, cut in found.cuts.items():
        sizes = str(cut.sent).partition(" [")[0] if cut.number is not None else ""
        levels = str(cut.levels or "") if cut.number is not None else ""
        row = (name, cut.after if cut.after != name else "", levels, sizes, str(cut.drop))
        table.add_row(*row, *(str(half).partition(" [")[0] for half in (cut.device_s, cut.server_s)))
    out.print(table)
    for ride in found.rides:
        print(visible(found.sentence(ride)))
        others = ", ".join(f"{name} {latency}" for name, latency in ride.latency.items() if name != ride.pick)
        late = f"; the link itself was {ride.late} late" if ride.late.known else "; nothing was worth sending"
        print(visible(f"  beside it: {others}{late}"))
    print(visible(f"{found.metric} {found.quality} all on the device; energy of the device's part: {found.energy}"))


def _rates(name: str, text: str) -> str:
    """Read one or several rates, which stay as they were written."""
    for rate in text.split(","):
        if parse(rate, "bit/s", name=name) <= 0:
            raise must_be(name, "above 0", rate, f"Write for example {name} 10Mbit/s.")
    return text


def _delay(name: str, text: str) -> str:
    """Read a time there and back, which stays as it was written."""
    if not 0 <= parse(text, "s", name=name) <= 60:
        raise must_be(name, "a time from 0 to a minute with its unit", text, f"Write for example {name} 20ms.")
    return text


def _bound(name: str, text: str) -> str:
    """Read a bound of the drop, which stays as it was written."""
    from equipoise.axes import AXES
    from equipoise.budget import parse_budget

    if parse_budget(text, axes={"drop": AXES["drop"]}).bound("drop") is None:
        raise must_be(name, "drop<=POINTS", text, f"Write for example {name} drop<=0.5.")
    return text
