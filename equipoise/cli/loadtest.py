"""``equipoise loadtest URL --rate 100``: an open-loop load on a server, and how many answers came in time."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from equipoise.cli.arguments import duration, option, positive, slo, token_in, whole
from equipoise.errors import EXIT_FAILED, EXIT_OK
from equipoise.units import parse


def add_parser(subparsers: Any) -> None:
    """Add the verb to the command line."""
    parser = subparsers.add_parser(
        "loadtest",
        help="load a server as its users would, and count the answers in time",
        description="Requests go out when they are due, by a recorded trace or at random, whether or not earlier ones came "
        "back, and each is timed from when it was due. Exit 1 where fewer are in time than --slo asks for.",
    )
    parser.add_argument("url", metavar="URL", help="http(s)://HOST:PORT/v2/models/NAME/infer, as `equipoise serve` printed it")
    option(parser, "--rate", positive("100"), required=True, metavar="N", help="requests a second, on average")
    option(parser, "--slo", slo, metavar="BOUND", default=slo("--slo", "p99<=100ms"), help="when an answer counts: p99<=20ms")
    option(parser, "--time", duration(), default="30s", help="how long (30s)")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="CSV with a column arrival_ms, .gz too; scaled to --rate")
    option(parser, "--length", whole(least=1, most=100_000), default=16, help="of sequences, where the model takes any (16)")
    option(parser, "--seed", whole(), default=0, help="of the arrivals and the inputs (0)")
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="the word that the server asks for")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def run(args: argparse.Namespace) -> int:
    """Send the load and print what came of it; return 1 where too few answers came in time."""
    import asyncio
    import json

    from equipoise.serve.loadtest import bodies, metadata, poisson, trace
    from equipoise.serve.loadtest import run as send

    share, slo_s = args.slo
    seconds, token = parse(args.time, "s", name="--time"), token_in(args.token_file)
    due = trace(args.trace, args.rate, seconds) if args.trace else poisson(args.rate, seconds, seed=args.seed)
    offered = len(due) / seconds
    about = asyncio.run(metadata(args.url, token))
    load = asyncio.run(send(args.url, due, bodies(about, seed=args.seed, length=args.length), slo_s=slo_s, token=token))
    told: dict[str, Any] = {
        "requests": len(load.sent),
        "rate": offered,
        "attainment": load.attainment,
        "quality": load.quality,
        "p50_s": load.latency_s(0.5),
        "p99_s": load.latency_s(0.99),
        "statuses": load.statuses,
        "rungs": load.rungs,
        "behind_s": load.behind_s,
    }
    if args.json:
        print(json.dumps(told, indent=2))
    else:
        apart = abs(offered - args.rate) > 0.1 * args.rate
        when = f"{seconds:g} s" + (f" ({offered:.3g} a second, where --rate asks for {args.rate:g})" if apart else "")
        print(f"{len(load.sent)} requests in {when}: {100 * load.attainment:.2f} % answered within {1e3 * slo_s:g} ms")
        print(f"p50 {1e3 * told['p50_s']:.3g} ms, p99 {1e3 * told['p99_s']:.3g} ms; mean quality in time {load.quality:.2f}")
        statuses = ", ".join(f"{status or 'no answer'}: {count}" for status, count in load.statuses.items())
        rungs = ", ".join(f"{rung}: {100 * part:.1f} %" for rung, part in load.rungs.items())
        print(f"answers by status: {statuses}; by rung: {rungs or 'none'}")
        if load.behind_s > slo_s / 10:
            print(f"WARNING: the client itself was up to {1e3 * load.behind_s:.3g} ms behind; its figures are too pessimistic")
    return EXIT_OK if load.attainment >= share else EXIT_FAILED
