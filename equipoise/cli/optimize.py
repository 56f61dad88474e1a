"""``equipoise optimize WORKLOAD``: the main job."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equipoise.built_in import FAMILIES, WORKLOADS, forms, scaled, trained_on_loading
from equipoise.cli.arguments import (
    budget,
    check_named,
    check_store,
    duration,
    option,
    place,
    positive,
    targets,
    whole,
)
from equipoise.errors import EXIT_FAILED, EXIT_OK, must_be
from equipoise.techniques import TECHNIQUES, named
from equipoise.units import counted

if TYPE_CHECKING:
    from equipoise.study.record import Study
    from equipoise.study.store import Store

SHOWN_DROP = 5.0
"""Points of drop beyond which the terminal leaves a point of the front to the report."""


def add_parser(subparsers: Any) -> None:
    """Add the verb to the command line."""
    parser = subparsers.add_parser(
        "optimize",
        help="search the best balance of quality and cost within a budget",
        description="Search widths, depth, rank, resolution, precision and target together, on measured cost. The same "
        "command again goes on where the last one stopped. Exit code 1 when the budget cannot be met.",
    )
    parser.add_argument("workload", metavar="WORKLOAD", help=" | ".join(forms(WORKLOADS)))
    where = "runtime[:device][?threads=N&batch=N], several with commas (default: %(default)s)"
    option(parser, "--target", targets(), default="onnxruntime:cpu", help=where)
    bounds = 'bounds, such as "latency<=1ms, size<=300KB, drop<=1" (default: none, which asks for the knee)'
    option(parser, "--budget", budget(), default="", help=bounds)
    option(parser, "--time", duration(zero=True), default="10min", help="wall time for the whole run (default: %(default)s)")
    kept = "folder of the study (default: runs/NAME), or postgresql://HOST/DATABASE, which workers of other machines share"
    parser.add_argument("--store", metavar="DIR|URL", default=None, help=kept)
    parser.add_argument("--study", metavar="NAME", default="", help="of a study in a database (default: the workload's)")
    option(parser, "--seed", whole(), default=0, help="of every random choice (default: %(default)s)")
    family = 'new models of a family compete too, distilled from scratch: "cnn", "cnn:0.25" of its size, "cnn:width=8,depth=3"'
    option(parser, "--student", _student, default="", metavar="FAMILY[:SCALE]", help=family)
    kinds = f"techniques to search, several with commas: {', '.join(TECHNIQUES)} (default: all that the model offers)"
    option(parser, "--only", named_techniques, default=(), metavar="TECHNIQUES", help=kinds)
    begun = "a study of another model, other data or another space: what it found is tried first"
    option(parser, "--fork", place, default=None, metavar="STUDY", help=begun)
    other = "a sampler of Optuna's in place of the guided search, to compare: tpe, nsga2, gp or random"
    parser.add_argument("--sampler", metavar="NAME", default="", help=other)
    paid = "price of this machine, for a bound on the price (dollars per million samples)"
    option(parser, "--price-per-hour", positive("0.10"), metavar="USD", help=paid)
    option(parser, "--grid", positive("250"), metavar="GRAMS", help="CO2e of a kilowatt-hour, for a bound on carbon")
    apart = "make and score each candidate in a process of its own: one that crashes or hangs is a failed trial"
    parser.add_argument("--isolate", action="store_true", help=apart)
    beside = "processes that make, train and score candidates side by side, from 2 on isolated (default: %(default)s)"
    option(parser, "--workers", whole(), default=1, help=beside)
    parser.add_argument("--engine", metavar="ray[:ADDRESS]", default="", help="workers are actors of a Ray cluster")
    parser.add_argument("--no-recovery", action="store_true", help="do not distil the survivors")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON document")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def run(args: argparse.Namespace) -> int:
    """Run or resume the study, print the front, and say whether the budget was met."""
    import time

    began = time.perf_counter()
    check_named("workload", args.workload, WORKLOADS)  # bad input is told before torch is imported
    _check_meters(args)
    store = _store(args)
    if isinstance(store, Path):
        check_store(store)
    _announce(store)
    from equipoise.cli.live import Live

    with Live(quiet=args.quiet, budget=args.budget) as live:
        live.doing("loading torch")
        from equipoise import workloads
        from equipoise.road.walk import optimize

        state = _state(store)
        trains = trained_on_loading(args.workload) and state is None
        live.doing(f"loading {args.workload}" + (", training its net" if trains else ""))
        study = optimize(
            workloads.load(args.workload, state=state),
            target=args.target,
            budget=args.budget,
            time=args.time,
            store=store,
            seed=args.seed,
            recovery=not args.no_recovery,
            student=args.student,
            only=args.only,
            sampler=args.sampler,
            fork=args.fork,
            price_per_hour=args.price_per_hour,
            grid=args.grid,
            isolate=args.isolate,
            workers=args.workers,
            engine=args.engine,
            spec=args.workload,
            listen=live,
            began=began,
        )
    show(study, as_json=args.json)
    return EXIT_OK if study.answered else EXIT_FAILED


def _check_meters(args: argparse.Namespace) -> None:
    """Refuse a bound on what cannot be measured here, before anything slow is imported."""
    from equipoise.budget import parse_budget
    from equipoise.meters import Meters

    Meters(args.target[0].batch if isinstance(args.target, tuple) else 1, args.price_per_hour, args.grid).check(
        parse_budget(args.budget)
    )


def _student(name: str, text: str) -> str:
    """Read ``--student``: the family's name is judged here, its scale where torch is loaded; none is named without it."""
    if text:
        check_named(name, scaled(text)[0], FAMILIES)
    return text


def named_techniques(name: str, text: str) -> tuple[str, ...]:
    """Read ``--only``."""
    if not text.strip(" ,"):
        raise must_be(name, "one or more techniques", text, "Leave it out to search all.")
    return named(text, name)


def _name(workload: str) -> str:
    """Folder name of a workload's default store."""
    last = workload.partition("?")[0].rstrip("/").rsplit("/", 1)[-1]  # with its slash, a folder would leave no name at all
    return "".join(c if c.isalnum() else "-" for c in last).strip("-") or "study"


def _store(args: argparse.Namespace) -> Path | str:
    """Where the study is, or is to be."""
    from equipoise.study.place import is_address

    if not args.store or not is_address(args.store):
        if args.study:
            raise must_be("--study", "left out where the store is a folder", args.study, "Give --store another folder instead.")
        return Path(args.store or Path("runs") / _name(args.workload))
    address = args.store if "#" in args.store else f"{args.store}#{args.study or _name(args.workload)}"
    where: Path | str = place("--store", address)
    return where


def _announce(store: Path | str) -> None:
    """Say at once, before anything slow is imported, whether a study is being resumed."""
    with _begun(store) as opened:
        if opened is not None:
            count = counted(len(opened.all("evaluation")), "evaluation")
            print(f"resuming {store}: {count} recorded", file=sys.stderr, flush=True)


def _state(store: Path | str) -> Mapping[str, Any] | None:
    """Return the weights that the study keeps of a model which loading would train anew; None where it keeps none."""
    with _begun(store) as opened:
        headers = opened.all("study") if opened is not None else []
        sha = headers[-1]["header"]["source_state"] if headers else ""
        if opened is None or not sha:
            return None
        from safetensors.torch import load

        return load(opened.read_blob(sha))


@contextlib.contextmanager
def _begun(store: Path | str) -> Iterator[Store | None]:
    """Look at a study that has begun; give None where there is none yet."""
    from equipoise.study.store import Store, is_study

    if not is_study(store):
        yield None
        return
    with Store.open(store, create=False, readonly=True) as opened:
        yield opened


def show(study: Study, *, as_json: bool = False) -> None:
    """Print the front, the pick and the verdict on the budget."""
    best = study.best
    if as_json:
        from equipoise.records import as_data, dumps

        front = [{**as_data(e), "key": e.key} for e in study.front]
        told = {
            "schema_version": 1,
            "met": study.met,
            "verdict": study.verdict(),
            "pick": best.key,
            "sentence": study.sentence(best),
            "knee": study.knee.key,
            "front": front,
            "searched": study.searched,
            "failed": study.failed(),
        }
        print(dumps(told))
        return
    from equipoise.cli.live import table
    from equipoise.cli.terminal import console

    out = console(width=120)
    marked = {study.knee.key: "knee", best.key: "pick"}
    worth = [e for e in study.front if e.drop.get() <= SHOWN_DROP or e.key in marked]
    beside = [] if any(e.key == study.baseline.key for e in worth) else [study.baseline]
    words = [c.word for c in study.budget.constraints if c.word not in ("latency", "size", "quality", "drop")]
    shown = [*worth, *beside]
    out.print(table(study.header.metric["name"], shown, study.baseline, marked=marked, words=list(dict.fromkeys(words))))
    if more := len(study.front) - len(worth):
        out.print(f"(and {counted(more, 'point')} of the front with a drop of more than {SHOWN_DROP:g})", style="dim")
    if point := study.header.metric.get("point"):
        out.print(point, style="dim")
    out.print(study.verdict(), soft_wrap=True)
    if (failed := study.failed()) and failed not in study.verdict():
        out.print(failed, soft_wrap=True)
    out.print(study.sentence(best), style="bold", soft_wrap=True)
    out.print(f"study: {study.path}", soft_wrap=True)
