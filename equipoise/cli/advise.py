"""``equipoise advise MODEL``: what is worth trying on a model and this machine, in a minute and without training."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from equipoise.built_in import WORKLOADS
from equipoise.cli.arguments import check_named, duration, option, targets
from equipoise.errors import EXIT_OK

if TYPE_CHECKING:
    from equipoise.records import Reading
    from equipoise.verbs.prospect import Prospect

LAYERS_SHOWN = 8
REASONS_SHOWN = 6
"""Layers, and places that are left whole, on the terminal; --json has all."""


def add_parser(subparsers: Any) -> None:
    """Add the verb to the command line."""
    parser = subparsers.add_parser(
        "advise",
        help="what is worth trying on a model and this machine, in a minute, without training",
        description="Measure the model on the runtimes of this machine, in floats and in int8, time its layers, and read what "
        "single changes lose, as far as the time goes. From these it tells for each technique what it would gain, with its "
        "range, and what it risks; what does not pay here; and the command to run next. Nothing is trained, no study is made.",
    )
    parser.add_argument("workload", metavar="MODEL", help="as for optimize: digits, cifar10:DATA?weights=FILE, ...")
    where = "runtime[:device][?threads=N&batch=N] (default: %(default)s)"
    option(parser, "--target", targets(one=True), default="onnxruntime:cpu", metavar="T", help=where)
    within = "wall time, loading included; what does not fit is left out and named (default: %(default)s)"
    option(parser, "--time", duration(), default="60s", metavar="T", help=within)
    parser.add_argument("--json", action="store_true", help="print one JSON document with every layer")


def run(args: argparse.Namespace) -> int:
    """Measure, predict, print."""
    began = time.perf_counter()
    check_named("workload", args.workload, WORKLOADS)
    from rich.text import Text

    from equipoise.cli.terminal import console, doing

    doing("loading torch")
    from equipoise.verbs.advise import advise
    from equipoise.workloads.spec import load

    doing(f"loading {args.workload}")
    with console(stderr=True).status(Text(f"loading {args.workload}")) as status:
        found = advise(
            load(args.workload),
            target=args.target if isinstance(args.target, str) else args.target[0],
            time=args.time,
            spec=args.workload,
            began=began,
            on_step=lambda text: status.update(Text(text)),
        )
    if args.json:
        from equipoise.records import as_data, dumps

        print(dumps({"schema_version": 1, **as_data(found)}))
    else:
        show(found)
    return EXIT_OK


def show(found: Prospect) -> None:
    """Print what was found."""
    from equipoise.cli.terminal import console

    out = console(width=150)
    out.print(f"{found.name} on {found.target}", style="bold", soft_wrap=True)
    _contests(out, found)
    _layers(out, found)
    _techniques(out, found)
    for text in found.skipped:
        out.print(f"- {text}", soft_wrap=True)
    for place, reason in list(found.left_whole.items())[:REASONS_SHOWN]:
        out.print(f"- {place} is left whole: {reason}", soft_wrap=True)
    if (more := len(found.left_whole) - REASONS_SHOWN) > 0:
        out.print(f"- and {more} more that are left whole (--json has all)", style="dim")
    out.print()
    out.print(
        f"~ is an estimate, [ ] its range. Losses are of models that were not trained; {_inputs(found)}. "
        f"Took {found.seconds:.0f} s.",
        style="dim",
        soft_wrap=True,
    )
    out.print(f"next: {found.command}", style="bold", soft_wrap=True)


def _inputs(found: Prospect) -> str:
    if not found.inputs:
        return "no real inputs were given, so none is known"
    return f"{found.read} of {found.entries} single changes were read, on {found.inputs} inputs"


def _contests(out: Any, found: Prospect) -> None:
    """The runtimes side by side."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for column in ("runtime", "computes in"):
        table.add_column(column)
    for column in ("latency", "times faster", "size", f"loss, {found.unit}"):
        table.add_column(column, justify="right")
    table.add_column("")
    for row in found.contests:
        place = row.target.replace("?threads=1&batch=1", "")
        if row.reason:
            table.add_row(place, row.precision, "–", "–", "–", "–", row.reason)
            continue
        said = Text("SLOWER here", style="yellow") if row.verdict == "slower" else Text(row.verdict)
        times = (str(row.latency), _ratio(row.times_faster), str(row.size_bytes), _loss(row.loss))
        table.add_row(place, row.precision, *times, said)
    out.print()
    out.print("The untouched model, timed side by side", style="bold")
    out.print(table)


def _layers(out: Any, found: Prospect) -> None:
    """Where the time goes."""
    from rich.table import Table

    from equipoise.units import show as quantity

    table = Table(box=None, pad_edge=False)
    table.add_column("layer")
    table.add_column("kind")
    for column in ("time alone", "share", "params", "MACs"):
        table.add_column(column, justify="right")
    for part in found.parts[:LAYERS_SHOWN]:
        seconds = "–" if part.seconds.value is None else str(part.seconds)
        share = "–" if part.share is None else f"{part.share:.0%}"
        table.add_row(part.name or "(model)", part.kind, seconds, share, quantity(part.params, "1"), quantity(part.macs, "1"))
    out.print()
    out.print("Where time and bytes are", style="bold")
    out.print(table)
    if len(found.parts) > LAYERS_SHOWN:
        out.print(f"… and {len(found.parts) - LAYERS_SHOWN} more (--json has all)", style="dim")


def _techniques(out: Any, found: Prospect) -> None:
    """What each technique would bring."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("technique")
    table.add_column("use")
    for column in ("times faster", "times smaller", "times fewer MACs", f"loss, {found.unit}"):
        table.add_column(column, justify="right")
    table.add_column("")
    for row in found.techniques:
        for i, level in enumerate(row.levels):
            figures = (level.times_faster, level.times_smaller, level.times_fewer_macs)
            name, said = (row.technique, row.verdict) if i == 0 else ("", "")
            table.add_row(name, level.what, *map(_ratio, figures), _loss(level.loss), said)
    for level in found.together:
        figures = (level.times_faster, level.times_smaller, level.times_fewer_macs)
        table.add_row(
            "together" if level is found.together[0] else "",
            level.what.removeprefix("all together, "),
            *map(_ratio, figures),
            _loss(level.loss),
            "",
        )
    out.print()
    out.print("What each technique would bring, not trained", style="bold")
    out.print(table)
    out.print()


def _ratio(found: Reading) -> str:
    """A ratio with its range, ``~`` before an estimate."""
    if found.value is None:
        return "–"
    mark = "~" if found.provenance == "estimated" else ""
    spread = f" [{found.low:.2f}, {found.high:.2f}]" if found.low is not None and found.high is not None else ""
    return f"{mark}{found.value:.2f}{spread}"


def _loss(found: Reading) -> str:
    """A loss with its range."""
    if found.value is None:
        return "unknown"
    mark = "~" if found.provenance == "estimated" else ""
    spread = f" [{found.low:.2g}, {found.high:.2g}]" if found.low is not None and found.high is not None else ""
    return f"{mark}{found.value:.2g}{spread}"
