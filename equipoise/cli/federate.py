"""``equipoise federate``: one model from data that stay with their holders."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from equipoise.built_in import FAMILIES, TASKS, forms
from equipoise.cli.arguments import Reader, check_named, check_store, duration, numbers, option, positive, whole
from equipoise.cli.terminal import doing, visible
from equipoise.errors import EXIT_OK, must_be


def add_parser(subparsers: Any) -> None:
    """Add the verb to the command line."""
    parser = subparsers.add_parser(
        "federate",
        help="train one model on data that stay with their holders",
        description="Share the training split of a task out over clients; each trains on its own part, and a server makes one "
        "model of what they learned, round after round. The same command again goes on where a killed one stopped.",
    )
    parser.add_argument("family", metavar="FAMILY", help=" | ".join(forms(FAMILIES)))
    parser.add_argument("task", metavar="TASK", help=" | ".join(forms(TASKS)))
    dimensions = "dimensions of the whole model, such as width=32,depth=20"
    option(parser, "--scale", numbers("width=32,depth=20"), default={}, metavar="NAME=VALUE,...", help=dimensions)
    option(parser, "--clients", whole(least=1), default=10, help="how many share the data (default: %(default)s)")
    uneven = "how alike their data are: 0.1 hardly, 100 nearly (default: %(default)s)"
    option(parser, "--alpha", positive("0.5"), default=0.5, help=uneven)
    option(parser, "--rounds", whole(least=1), default=30, help="(default: %(default)s)")
    passes = "passes of a client over its data in a round (default: %(default)s)"
    option(parser, "--epochs", positive("1"), default=3.0, help=passes)
    known = (
        "fedavg, fedprox, fedadam, scaffold, median, trimmed or centered, with numbers: fedprox:mu=0.1 (default: %(default)s)"
    )
    parser.add_argument("--strategy", default="fedavg", metavar="NAME", help=known)
    option(parser, "--share", positive("0.5"), default=1.0, help="fraction of the clients in a round (default: %(default)s)")
    needed = "fraction of those asked that must answer (default: a third)"
    option(parser, "--quorum", positive("0.5"), default=1 / 3, metavar="SHARE", help=needed)
    ratios = "of the channels that clients hold, in turn, such as 1,0.5,0.25; 0 leaves one out"
    option(parser, "--ratios", _ratios(), default=(1.0,), metavar="F,F,...", help=f"fractions {ratios}")
    option(parser, "--clip", positive("1"), metavar="NORM", help="largest norm of a client's change")
    spread = "deviation of Gaussian noise, as a multiple of --clip; what that guarantees is told (default: none)"
    option(parser, "--noise", positive("1"), default=0.0, metavar="Z", help=spread)
    option(parser, "--delta", positive("1e-5"), help="of the guarantee (default: 1 / clients^1.1)")
    option(parser, "--bits", whole(least=8, most=32), default=32, help="8 rounds changes to bytes (default: %(default)s)")
    parser.add_argument("--secure", action="store_true", help="let the server see the sum of the changes alone")
    parser.add_argument("--processes", action="store_true", help="make each client a process that talks HTTP to the server")
    option(parser, "--limit", duration(), default="10min", metavar="T", help="after which an answer is late (default: 10min)")
    rehearsed = "what is to go wrong, such as die=0.3,sign=2: to see what the strategy bears"
    parser.add_argument("--rehearse", default="", metavar="FAULT=N,...", help=rehearsed)
    parser.add_argument("--recipe", default="", metavar="NAME=VALUE,...", help="such as optimizer=sgd,lr=0.1")
    parser.add_argument("--store", type=Path, default=None, help="folder of the run (default: runs/federated-FAMILY-TASK)")
    option(parser, "--seed", whole(), default=0, help="of weights, shares and order (default: %(default)s)")
    parser.add_argument("--central", action="store_true", help="train on all of the data in one place too, to compare")
    parser.add_argument("--test", action="store_true", help="score the test split, once, at the end")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON document")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def run(args: argparse.Namespace) -> int:
    """Federate; print what came out."""
    from equipoise.cli.train import plain
    from equipoise.units import parse

    check_named("family", args.family, FAMILIES)  # bad input is told before torch is imported
    check_named("task", args.task, TASKS)
    limit_s = parse(args.limit, "s", name="--limit")
    store = args.store or Path("runs") / plain(f"federated-{args.family}-{args.task}")
    check_store(store, study=False)
    doing("loading torch", quiet=args.quiet)
    from equipoise.federated.federate import federate, usual
    from equipoise.federated.terms import Faults, Terms
    from equipoise.verbs.train import recipe_of
    from equipoise.workloads import load_family, load_task

    terms = Terms(
        clients=args.clients,
        alpha=args.alpha,
        rounds=args.rounds,
        epochs=args.epochs,
        strategy=args.strategy,
        share=args.share,
        quorum=args.quorum,
        scales=args.ratios,
        clip=args.clip,
        noise=args.noise,
        delta=args.delta,
        bits=args.bits,
        secure=args.secure,
        seed=args.seed,
        limit_s=limit_s,
        faults=Faults.read(args.rehearse),
    )
    doing(f"loading {args.task}", quiet=args.quiet)
    family = load_family(args.family)
    task = load_task(args.task, family=family)
    found = federate(
        args.family if args.processes else family,
        args.task if args.processes else task,
        args.scale,
        store=store,
        terms=terms,
        recipe=recipe_of(args.recipe, usual(task, family, terms)) if args.recipe else None,
        processes=args.processes,
        central=args.central,
        test=args.test,
        on_round=None if args.quiet else _told,
    )
    if args.json:
        from equipoise.records import dumps

        print(dumps({"schema_version": 1, "sentence": found.sentence(), **found.summary()}))
        return EXIT_OK
    print(visible(found.sentence()))
    for note in found.notes:
        print(visible(f"  {note}"))
    print(f"weights: {store / 'model.safetensors'}\nrounds: {store / 'rounds.csv'}")
    return EXIT_OK


def _told(one: Any) -> None:
    """Write a line for a round."""
    lost = [share for share in one.shares if share.lost]
    why = "" if not lost else f", without {', '.join(f'{s.client} ({s.lost.splitlines()[0][:80]})' for s in lost)}"
    spent = "" if one.epsilon is None else f", epsilon {one.epsilon:.3g}"
    doing(f"round {one.number}: quality {one.quality:.2f}, loss {one.validation_loss:.4g}{spent}{why}")


def _ratios() -> Reader:
    """Return a reader of ``1,0.5,0.25``."""

    def read(name: str, text: str) -> tuple[float, ...]:
        try:
            found = tuple(float(part) for part in text.split(","))
        except ValueError as error:
            raise must_be(name, "fractions with commas between them", text, f"Write for example {name} 1,0.5.") from error
        if not all(0 <= ratio <= 1 for ratio in found) or not any(found):
            raise must_be(name, "fractions from 0 to 1, one of them above 0", text, f"Write for example {name} 1,0.5.")
        return found

    return read
