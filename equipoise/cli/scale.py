"""``equipoise scale``: how large a model the data and the limits deserve, before it is trained."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equipoise.built_in import FAMILIES, TASKS, forms
from equipoise.cli.arguments import (
    budget,
    check_named,
    check_store,
    duration,
    option,
    positive,
    targets,
    whole,
)
from equipoise.cli.terminal import Pace, console, doing, progress_line
from equipoise.cli.train import plain
from equipoise.errors import EXIT_FAILED, EXIT_OK, InputError, must_be

if TYPE_CHECKING:
    from equipoise.events import Event
    from equipoise.scaling import Fit
    from equipoise.sizing.advice import Advice


def add_parser(subparsers: Any) -> None:
    """Add the verb to the command line."""
    parser = subparsers.add_parser(
        "scale",
        help="how large a model the data and the limits deserve",
        description="""\
scale FAMILY TASK         a dozen small runs and a law: which sizes have next to no regret, which is cheapest to serve
scale table FAMILY TASK   what every size costs, without training
scale fit RUNS.csv        fit the law to runs of your own
scale efficiency          the mission's E(S, R, T, V), and what it says

Exit code 1 when no size can be recommended.""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"FAMILY  {' | '.join(forms(FAMILIES))}\nTASK    {' | '.join(forms(TASKS))}",
    )
    parser.add_argument("words", nargs="+", metavar="[table|fit|efficiency] FAMILY TASK", help="see above")
    limits = 'such as "train<=2h, latency<=5ms, cost<=50$, size<=5MB"'
    option(parser, "--limits", budget(scale=True), default="", help=limits)
    option(parser, "--time", duration(), default="30min", help="wall time for all small runs (default: %(default)s)")
    where = "where it will be served (default: %(default)s)"
    option(parser, "--target", targets(one=True), default="onnxruntime:cpu", help=where)
    option(parser, "--requests", positive("1e6"), help="expected over the life of the model")
    option(parser, "--price-per-hour", positive("0.10"), metavar="USD", help="price of this machine")
    parser.add_argument(
        "--recipe", default="", metavar="NAME=VALUE,...", help="of the small runs (default: found on the smallest)"
    )
    option(parser, "--flops", positive("1e18"), help="with fit: training FLOPs to find the best size for")
    factors = "with table: sizes over the default (default: 1/8 to 8)"
    option(parser, "--scales", _factors, default=[2.0**k for k in range(-3, 4)], metavar="F,F,...", help=factors)
    parser.add_argument("--no-shape", action="store_true", help="do not search the shape")
    parser.add_argument("--no-compress", action="store_true", help='do not let "train larger, compress down" compete')
    parser.add_argument("--store", type=Path, default=None, help="folder of the record (default: runs/scale-FAMILY-TASK)")
    option(parser, "--seed", whole(), default=0, help="of every random choice (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON document")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def run(args: argparse.Namespace) -> int:
    """Do what the first word says; without one, advise."""
    first, *rest = args.words
    wanted, do = {"efficiency": (0, _efficiency), "fit": (1, _fit), "table": (2, _table)}.get(first, (1, _advise))
    if len(rest) != wanted:
        forms = "FAMILY TASK, table FAMILY TASK, fit RUNS.csv or efficiency"
        raise must_be("scale", forms, " ".join(args.words), "See equipoise scale --help.")
    if do in (_table, _advise):
        check_named("family", args.words[-2], FAMILIES)
        check_named("task", args.words[-1], TASKS)
    return do(args)


def _factors(name: str, text: str) -> list[float]:
    """Read the sizes of ``--scales``."""
    read = positive("0.25,1,4")
    return [read(name, part) for part in text.split(",")]


def _advise(args: argparse.Namespace) -> int:
    from equipoise.axes import SCALE_AXES
    from equipoise.budget import parse_budget

    family, task = args.words
    bounds = parse_budget(args.limits, axes=SCALE_AXES)
    if args.price_per_hour is None and any(bounds.bound(word) is not None for word in ("cost", "price")):
        raise must_be("--price-per-hour", "given with a limit on cost or price", None, "Give the price of this machine.")
    store = args.store or Path("runs") / f"scale-{plain(f'{family}-{task}')}"
    check_store(store)
    doing("loading torch", quiet=args.quiet)
    from equipoise.pages import render_scale
    from equipoise.sizing.small_runs import recipe_for
    from equipoise.sizing.walk import scale
    from equipoise.study.files import write_atomic
    from equipoise.verbs.train import recipe_of
    from equipoise.workloads import load_family, load_task

    doing(f"loading {task}", quiet=args.quiet)
    kind, data = load_family(family), load_task(task)
    found = scale(
        kind,
        data,
        limits=args.limits,
        time=args.time,
        target=args.target,
        requests=args.requests,
        price_per_hour=args.price_per_hour,
        store=store,
        seed=args.seed,
        shape=not args.no_shape,
        compress=not args.no_compress,
        recipe=recipe_of(args.recipe, recipe_for(data)) if args.recipe else None,
        spec=f"{family} {task}",
        listen=(lambda event: None) if args.quiet else partial(_told, pace=Pace()),
    )
    page = store / "report.html"
    write_atomic(page, render_scale(found.summary()).encode())
    if args.json:
        from equipoise.pages import finite
        from equipoise.records import dumps

        print(dumps(finite({"schema_version": 1, "sentence": found.sentence(), "report": str(page), **found.summary()})))
    else:
        _show(found)
        print(f"report: {page}")
    return EXIT_OK if found.decision.answered else EXIT_FAILED


def _show(found: Advice) -> None:
    from rich.table import Table

    from equipoise.units import show

    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("size", "params", "loss [90 %]", "regret", "train", "latency", "file", ""):
        table.add_column(name, justify="left" if name in ("size", "") else "right")
    decision = found.decision
    for i in found.shown:
        option = decision.options[i]
        costs, c = found.rows[i], option.candidate
        mark = (
            "recommended"
            if option is decision.recommended
            else "best within reach"
            if decision.within is not None and c.available == decision.within.candidate.available and not c.label
            else "in range"
            if option in decision.range
            else ", ".join(f"breaks {what}" for what in found.breaks(option))
        )
        words = ", ".join(f"{k} {v:g}" for k, v in c.available.scale.items()) + (f" ({c.label})" if c.label else "")
        table.add_row(
            words,
            show(c.available.params, "1"),
            f"{option.loss.value:.4g} [{option.loss.low:.4g}, {option.loss.high:.4g}]",
            f"{option.regret:.2%}",
            show(costs["train_s"].get(), "s"),
            show(costs["latency_s"].get(), "s"),
            show(costs["size_bytes"].get(), "B"),
            mark,
            style="bold" if option is decision.recommended else None,
        )
    out = console()
    out.print(table)
    out.print(found.sentence(), style="bold", soft_wrap=True)
    if decision.answered:  # a refusal's sentence holds its reason
        out.print(decision.reason, soft_wrap=True)
    for added in decision.add:
        out.print(f"  add: {added.available.params:.3g} params on {added.samples:.3g} samples", soft_wrap=True)


def _table(args: argparse.Namespace) -> int:
    """Print what a family costs over its scales."""
    doing("loading torch", quiet=args.quiet)
    from equipoise.runtimes import Target
    from equipoise.sizing.costs import costs, named
    from equipoise.sizing.small_runs import recipe_for
    from equipoise.units import show
    from equipoise.workloads import load_family, load_task

    _, family_name, task_name = args.words
    family, task = load_family(family_name), load_task(task_name)
    grown = {}
    for factor in args.scales:
        try:
            made = family.grow(factor)
        except InputError:
            continue  # the family does not reach that far
        grown[named(made)] = made
    if not grown:
        raise must_be("--scales", f"sizes that {family_name} can take", args.scales, "Write for example --scales 0.5,1,2.")
    recipe = recipe_for(task)
    told = (lambda text: None) if args.quiet else (lambda text: print(text, file=sys.stderr, flush=True))
    rows = costs(family, task, list(grown.values()), target=Target.parse(args.target), recipe=recipe, on_step=told)
    epoch = float(len(task.train) * (task.train.take(1).tensors()[1].numel() if task.shape.dense else 1))
    if args.json:
        from equipoise.records import as_data, dumps

        print(dumps({"schema_version": 1, "family": family.name, "task": task.name, "rows": [as_data(r) for r in rows]}))
        return EXIT_OK
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in (
        "size",
        "params",
        "MACs",
        "file",
        "latency",
        "train memory",
        "an epoch",
        *(["$ an epoch"] if args.price_per_hour else []),
    ):
        table.add_column(name, justify="left" if name == "size" else "right")
    for r in rows:
        seconds = r.train_s(epoch)
        price = [show(args.price_per_hour * seconds / 3600, "$")] if args.price_per_hour else []
        table.add_row(
            named(r.scale),
            show(r.params, "1"),
            show(r.macs, "1"),
            show(r.size_bytes.get(), "B"),
            show(r.latency_s.get(), "s"),
            show(r.train_memory_bytes.get(), "B"),
            show(seconds, "s"),
            *price,
        )
    out = console()
    out.print(table)
    out.print(
        f"{family.name} on {task.name}: latency on {args.target}, an epoch of {epoch:g}, batch {recipe.batch}; not trained",
        style="dim",
    )
    return EXIT_OK


def _fit(args: argparse.Namespace) -> int:
    """Fit the law to a CSV of runs."""
    from equipoise.scaling import describe, fit, read_csv
    from equipoise.scaling.decide import REACH

    fitted = fit(read_csv(args.words[1]), seed=args.seed)
    told = describe(fitted, seed=args.seed)
    best = None if args.flops is None else fitted.optimum(args.flops)
    reach = 0.0 if args.flops is None else args.flops / max(r.flops for r in fitted.runs)
    refused = reach > REACH**2
    why = f"{reach:.3g}× the compute of the largest run; small runs hold to {REACH**2:g}×. Add larger ones." if refused else ""
    if args.json:
        from equipoise.pages import finite
        from equipoise.records import as_data, dumps

        print(dumps(finite({"schema_version": 1, **told, "optimum": as_data(best), "refused": why})))
        return EXIT_FAILED if refused else EXIT_OK
    _show_fit(fitted, told)
    if best is not None:
        print(
            f"best for {args.flops:.3g} FLOPs: "
            + ", ".join(f"{name} {_span(best[name])}" for name in ("size", "samples", "loss"))
        )
    if refused:
        print(f"REFUSED: {why}")
    return EXIT_FAILED if refused else EXIT_OK


def _show_fit(fitted: Fit, told: dict[str, Any]) -> None:
    print(f"{told['law']['text']}   (N = {fitted.law.size}, {len(fitted.runs)} runs, noise {fitted.noise:.2%})")
    for name, c in told["law"]["constants"].items():
        print(f"  {name:10s} {c['value']:.4g} [{c['low']:.4g}, {c['high']:.4g}]")
    for held in told["hold_out"]:
        others = ", ".join(f"{k} {v:+.2%}" for k, v in held["rules"].items() if v is not None)
        print(
            f"held out {held['run']['params']:.3g} params: foretold {held['error']:+.2%} "
            f"({'in' if held['covered'] else 'OUT OF'} its interval); {others}"
        )
    assumed = all(run.flops_per_sample == 2.0 * run.params for run in fitted.runs)
    for note in (*told["notes"], *(["2 FLOPs for each parameter and sample, as in a dense transformer"] if assumed else [])):
        print(f"note: {note}")


def _span(interval: Any) -> str:
    return f"{interval.value:.4g} [{interval.low:.4g}, {interval.high:.4g}]"


def _efficiency(args: argparse.Namespace) -> int:
    from equipoise.scaling import statement, worked_case

    cases = worked_case()
    if args.json:
        from equipoise.records import as_data, dumps

        print(dumps({"schema_version": 1, "cases": [as_data(c) for c in cases], "statement": statement(cases)}))
    else:
        print(statement(cases))
    return EXIT_OK


def _told(event: Event, pace: Pace) -> None:
    if pace.due(event.stage):
        progress_line(event.spent_s, event.limit_s, event.stage, event.text)
