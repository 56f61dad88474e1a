"""``equipoise profile MODEL``: what a model costs on this machine, from params to price."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from equipoise.built_in import WORKLOADS
from equipoise.cli.arguments import check_named, option, positive, targets, watts, whole
from equipoise.errors import EXIT_FAILED, EXIT_OK

if TYPE_CHECKING:
    from equipoise.measure.counts import Counts
    from equipoise.records import Reading
    from equipoise.verbs.profile import Profile, TargetProfile

LAYERS_SHOWN = 12


def add_parser(subparsers: Any) -> None:
    """Add the verb to the command line."""
    parser = subparsers.add_parser(
        "profile",
        help="what a model costs here, from params to price",
        description="Count a model's params and MACs by layer, and measure size, peak memory, latency and energy on each "
        "runtime of this machine. What cannot be measured is said to be unavailable, with the reason.",
    )
    parser.add_argument("workload", metavar="MODEL", help="as for optimize: digits, cifar10:DATA?weights=FILE, ...")
    where = "such as onnxruntime:cpu?threads=1; default: every runtime, one thread"
    option(parser, "--target", targets(), metavar="T[,T]", help=where)
    option(parser, "--batch", whole(least=1), metavar="N", default=32, help="second batch size timed, beside 1 (32)")
    price = "price of this machine, for dollars a million"
    option(parser, "--price-per-hour", positive("0.10"), metavar="USD", help=price)
    estimate = "6 or 4..9: estimate the energy where no meter can be read; labelled as estimate"
    option(parser, "--watts-per-core", watts(), metavar="W", help=estimate)
    option(parser, "--seconds", positive("10"), metavar="N", default=10.0, help="time for all latency measurements (10)")
    parser.add_argument("--json", action="store_true", help="print one JSON document, raw samples included")


def run(args: argparse.Namespace) -> int:
    """Profile, print the tables and return 0; 1 when no target could run the model."""
    check_named("workload", args.workload, WORKLOADS)
    from rich.text import Text

    from equipoise.cli.terminal import console, doing

    doing("loading torch")
    from equipoise.verbs.profile import profile
    from equipoise.workloads.spec import load

    doing(f"loading {args.workload}")
    with console(stderr=True).status(Text(f"loading {args.workload}")) as status:
        found = profile(
            load(args.workload),
            targets=args.target,
            batch=args.batch,
            price_per_hour=args.price_per_hour,
            watts_per_core=args.watts_per_core,
            seconds=args.seconds,
            on_step=lambda text: status.update(Text(text)),
        )
    if args.json:
        _print_json(found)
    else:
        _show(found)
    return EXIT_OK if any(not target.reason for target in found.targets) else EXIT_FAILED


def _print_json(found: Profile) -> None:
    import json

    from equipoise.records import as_data

    document = {"schema_version": 1, **as_data(found), "complete": found.counts.complete}
    print(json.dumps(document, indent=2, allow_nan=False))


def _show(found: Profile) -> None:
    from equipoise.cli.terminal import console

    out = console()
    _show_counts(out, found.name, found.counts)
    _show_targets(out, found.targets)
    _show_notes(out, found)


def _show_counts(console: Any, name: str, counts: Counts) -> None:
    """Totals, the layers that cost most, and what the totals cover."""
    from rich.table import Table
    from rich.text import Text

    from equipoise.units import show

    told = (
        f": {show(counts.params, '1')} params, {counts.reading()} MACs "
        f"({show(2 * counts.macs, '1')} FLOPs) a sample, {show(counts.activations, '1')} activations"
    )
    console.print(Text.assemble((name, "bold"), told))
    table = Table(box=None, pad_edge=False)
    table.add_column("layer")
    table.add_column("kind")
    for column in ("params", "MACs", "share", "output"):
        table.add_column(column, justify="right")
    shown = sorted(counts.by_layer, key=lambda layer: (-layer.macs, -layer.params))[:LAYERS_SHOWN]
    for layer in (layer for layer in counts.by_layer if layer in shown):
        share = f"{layer.macs / counts.macs:.0%}" if counts.macs else ""
        output = "×".join(map(str, layer.output[1:]))
        row = (layer.name or "(model)", layer.kind, show(layer.params, "1"), show(layer.macs, "1"), share, output)
        table.add_row(*row)
    console.print(table)
    if len(counts.by_layer) > len(shown):
        console.print(f"… and {len(counts.by_layer) - len(shown)} more (--json has all)", style="dim")
    console.print(
        f"operators: {sum(counts.counted.values())} counted, {sum(counts.ignored.values())} ignored (no MACs by convention), "
        f"{sum(counts.unsupported.values())} unsupported"
    )


def _show_targets(console: Any, targets: tuple[TargetProfile, ...]) -> None:
    """One row per target and batch size."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column("target")
    for column in ("batch", "p50 [95 %]", "p95", "items/s", "stable", "size", "peak memory", "energy", "FLOPs/J", "$/million"):
        table.add_column(column, justify="right")
    for target in targets:
        place = target.target.partition("&batch")[0]  # the batch has a column of its own
        if target.reason:
            table.add_row(place, "", Text.assemble(("unavailable", "red"), ", see below"))
        for i, timing in enumerate(target.timings):
            held = timing.latency
            first = (target.size_bytes, target.memory.added, target.energy_j, target.flops_per_joule)
            table.add_row(
                place if i == 0 else "",
                str(timing.batch),
                *(str(held.p50), _short(held.p95), _short(held.throughput)),
                "yes" if held.stable else Text("no", style="yellow"),
                *(_short(reading) if i == 0 else "" for reading in first),
                _short(timing.price_per_million),
            )
    console.print()
    console.print(table)


def _show_notes(console: Any, found: Profile) -> None:
    """Every dash, every ``~`` and every `no` of the tables, each reason once."""
    notes: dict[str, dict[str, None]] = {}
    if not found.counts.complete:
        notes[found.counts.reading().note] = {"MACs": None}
    for target in found.targets:
        place = target.target.partition("?")[0]
        if target.reason:
            notes.setdefault(target.reason, {})[place] = None
            continue
        for timing in target.timings:
            if timing.latency.advice:
                notes.setdefault(timing.latency.advice, {})[f"{place} at batch {timing.batch}"] = None
        readings = {"peak memory": target.memory.added, "energy": target.energy_j, "price": target.timings[0].price_per_million}
        for what, reading in readings.items():
            if reading.provenance != "measured":
                notes.setdefault(f"{reading.provenance}: {reading.note}", {})[what] = None
    console.print()
    for note, places in notes.items():
        console.print(f"- {', '.join(places)}: {note}", soft_wrap=True)
    held = found.machine
    load = "" if held["load"] is None else f", load {held['load']}"
    console.print(
        f"{held['cpu']}, {held['threads']} threads{load}, torch {held['versions'].get('torch', '?')}; "
        f"targets timed side by side; {found.seconds:.0f} s in all",
        style="dim",
    )


def _short(reading: Reading) -> str:
    """The value without its interval, ``~`` before an estimate, a dash for what is unavailable."""
    from equipoise.units import show

    if reading.value is None:
        return "–"
    text = show(reading.value, reading.unit).removesuffix("/s")
    return f"~{text}" if reading.provenance == "estimated" else text
