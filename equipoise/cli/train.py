"""``equipoise train FAMILY TASK``: train a model of a family, see why it stops getting better."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equipoise.built_in import FAMILIES, TASKS, forms, workload_of
from equipoise.cli.arguments import (
    check_named,
    check_store,
    duration,
    numbers,
    one_of,
    option,
    positive,
    watts,
    whole,
)
from equipoise.cli.terminal import Pace, doing, visible
from equipoise.errors import EXIT_OK, unknown

if TYPE_CHECKING:
    from equipoise.training.progress import Progress

KINDS, OFFLOADS = ("ddp", "fsdp", "pipeline"), ("activations", "optimizer", "parameters")
RANKS_PER_CORE = 4
"""Processes that share a core beyond which none of them gets on."""


def add_parser(subparsers: Any) -> None:
    """Add the verb to the command line."""
    parser = subparsers.add_parser(
        "train",
        help="train a model of a family, and see what holds it back",
        description="Train a model of a family on a task. The same command again goes on where a killed one stopped. Weights, "
        "the curve (CSV) and the figures (JSON) are written to the store, with a report.",
    )
    parser.add_argument("family", metavar="FAMILY", help=" | ".join(forms(FAMILIES)))
    parser.add_argument("task", metavar="TASK", help=" | ".join(forms(TASKS)))
    dimensions = "dimensions, such as width=32,depth=20"
    option(parser, "--scale", numbers("width=32,depth=20"), default={}, metavar="NAME=VALUE,...", help=dimensions)
    option(parser, "--epochs", positive("10"), help="length in passes over the data (default: 10)")
    option(parser, "--steps", whole(least=1), help="length in steps")
    option(parser, "--time", duration(), help="length as wall time, such as 10min")
    parser.add_argument(
        "--recipe", default="", metavar="NAME=VALUE,...", help="such as optimizer=sgd,lr=0.1,schedule=cosine,ema=0.999"
    )
    parser.add_argument("--store", type=Path, default=None, help="folder of the run (default: runs/FAMILY-TASK)")
    option(parser, "--seed", whole(), default=0, help="of weights, order and augmentation (default: %(default)s)")
    most = max(8, RANKS_PER_CORE * (os.cpu_count() or 1))
    later = "weights of an earlier run to go on from; what is new in the data gets rows of its own"
    parser.add_argument("--start", type=Path, default=None, metavar="FILE", help=later)
    shared = "processes on this machine that share the work (default: %(default)s)"
    option(parser, "--ranks", whole(least=1, most=most), default=1, help=shared)
    how = "how they share it: ddp, fsdp or pipeline (default: ddp for several ranks)"
    option(parser, "--kind", one_of("single", *KINDS), metavar="KIND", help=how)
    parser.add_argument("--offload", default="", help="what to keep in host memory: activations, optimizer, parameters")
    option(parser, "--price-per-hour", positive("0.10"), metavar="USD", help="price of this machine")
    estimate = "6 or 4..9: for an energy estimate where no meter can be read"
    option(parser, "--watts-per-core", watts(), metavar="W", help=estimate)
    parser.add_argument("--tensorboard", action="store_true", help="write TensorBoard event files, too")
    parser.add_argument("--test", action="store_true", help="score the test split, once, at the end")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON document")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def run(args: argparse.Namespace) -> int:
    """Train, or start the ranks that do; print what came out."""
    from equipoise.units import parse

    check_named("family", args.family, FAMILIES)  # bad input is told before torch is imported
    check_named("task", args.task, TASKS)
    _check_sharing(args)
    seconds = None if args.time is None else parse(args.time, "s", name="--time")
    store = args.store or Path("runs") / plain(f"{args.family}-{args.task}")
    first = os.environ.get("RANK", "0") == "0"
    if first:
        check_store(store, study=False)
    doing("loading torch", quiet=args.quiet or not first)
    if args.ranks > 1 and "RANK" not in os.environ:
        from equipoise.training.distribution.launch import launch

        return launch([sys.executable, "-m", "equipoise", *sys.argv[1:]], args.ranks)
    from equipoise.pages import render_train
    from equipoise.study.files import write_atomic
    from equipoise.training.distribution.launch import connect
    from equipoise.verbs.train import recipe_of, train, usual_recipe
    from equipoise.workloads import load_family, load_task

    doing(f"loading {args.task}", quiet=args.quiet or not first)
    family = load_family(args.family)
    task = load_task(args.task, family=family)
    recipe = recipe_of(args.recipe, usual_recipe(task, family))
    kind = args.kind or ("ddp" if int(os.environ.get("WORLD_SIZE", "1")) > 1 else "single")
    where = connect(kind, offload=tuple(filter(None, args.offload.split(","))), precision=recipe.precision)
    try:
        found = train(
            family,
            task,
            args.scale,
            store=store,
            epochs=args.epochs,
            steps=args.steps,
            seconds=seconds,
            recipe=recipe,
            seed=args.seed,
            start=args.start,
            distribution=where,
            price_per_hour=args.price_per_hour,
            watts_per_core=args.watts_per_core,
            tensorboard=args.tensorboard,
            test=args.test,
            on_step=None if args.quiet or where.rank else partial(_told, pace=Pace()),
        )
    finally:
        where.close()
    if where.rank:
        return EXIT_OK
    page, work = store / "report.html", workload_of(args.family, args.task, found.header["scale"], store)
    write_atomic(page, render_train(found.summary()).encode())
    if args.json:
        from equipoise.records import dumps

        named = {"sentence": found.sentence(), "report": str(page), "workload": work or None}
        print(dumps({"schema_version": 1, **named, **found.summary()}))
        return EXIT_OK
    print(visible(found.sentence()))
    for note in found.notes:
        print(visible(f"  note: {note}"))
    if found.classification is not None:
        from equipoise.workloads.classification import lines

        print(*map(visible, lines(found.classification)), sep="\n")
    if found.diagnosis is not None:
        for sign in found.diagnosis.evidence:
            print(f"  {sign.text}")
        for remedy in found.diagnosis.remedies[:4]:
            gain = (
                ""
                if remedy.gain is None
                else f" (loss {-remedy.gain.value:+.3g} [{-remedy.gain.high:+.3g}, {-remedy.gain.low:+.3g}], {remedy.basis})"
            )
            print(f"  try: {remedy.name}{gain}")
    print(f"weights: {store / 'model.safetensors'}\nreport: {page}")
    if work:
        words = ["equipoise", "optimize", work, "--budget", "drop<=1", "--time", "30min", "--store", f"{store}-small"]
        print(visible(f"next: {shlex.join(words)}"))
    return EXIT_OK


def _check_sharing(args: argparse.Namespace) -> None:
    """Raise for a way of sharing the work that does not exist."""
    for name in filter(None, args.offload.split(",")):
        if name not in OFFLOADS:
            raise unknown("--offload", name, OFFLOADS)


def plain(text: str) -> str:
    """Return a folder name for what the command line names."""
    return "-".join(
        "".join(c if c.isalnum() else "-" for c in part.rsplit("/", 1)[-1]) for part in text.partition("?")[0].split(":")
    )


def _told(progress: Progress, pace: Pace) -> None:
    """Write a line with the time that is left, when one is due."""
    from equipoise.units import show

    if not pace.due(progress.stage, now=progress.fraction >= 1):
        return
    point = progress.point
    seen = "" if point is None else f", validation loss {point.validation_loss:.4g}"
    if point is not None and point.validation_metric is not None:
        seen += f", metric {point.validation_metric:.2f}"
    epoch = "" if progress.stage else f", epoch {progress.epoch:.1f}"
    told = f"{progress}{epoch}, {show(progress.left_s, 's')} left{seen}"
    print(visible(told), file=sys.stderr, flush=True)
