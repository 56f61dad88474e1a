"""``equipoise explain STUDY``: what each change brought and cost, what was left and why, and what to change next."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from equipoise.cli.arguments import option, place
from equipoise.errors import EXIT_OK

if TYPE_CHECKING:
    from equipoise.records import Reading
    from equipoise.road.explain import Change, Explanation

SHOWN, FEWER = 12, 6
"""Rows of a table on the terminal, of what was done and of what was left; --json has all."""


def add_parser(subparsers: Any) -> None:
    """Add the verb to the command line."""
    parser = subparsers.add_parser(
        "explain",
        help="why a point of a study is as it is: what each change brought, what was left and why",
        description="Read off the record what each change of a pick gained in time, bytes and MACs on its target and lost in "
        "quality, which choices were left because they gain no time here, and which would be the next. Estimates are marked.",
    )
    option(parser, "study", place, metavar="STUDY", help="folder of the study, or its address (what --store named)")
    which = 'best (the default), knee, fastest, smallest, a budget such as "latency<=1ms", or the key of an evaluation'
    parser.add_argument("--pick", metavar="WHICH", default="best", help=which)
    parser.add_argument("--json", action="store_true", help="print one JSON document with every change")


def run(args: argparse.Namespace) -> int:
    """Read the record and print what it tells."""
    from equipoise.road.explain import explain

    found = explain(args.study, args.pick)
    if args.json:
        from equipoise.records import as_data, dumps

        print(dumps({"schema_version": 1, **as_data(found)}))
    else:
        show(found)
    return EXIT_OK


def show(found: Explanation) -> None:
    """Print an explanation."""
    from equipoise.cli.terminal import console

    out = console(width=150)
    out.print(f"{found.key[:8]}, {found.what}, on {found.target}", style="bold", soft_wrap=True)
    out.print(found.sentence, soft_wrap=True)
    typical = "" if found.typical_error is None else f" (such predictions are {found.typical_error:.1%} off in the median)"
    out.print(f"latency: measured {found.latency}, from the tables {_short(found.predicted)}{typical}", soft_wrap=True)
    gains = _columns(found)
    _table(out, "What each technique brought", found.techniques, gains, "the pick is the untouched model: nothing was changed")
    if found.changes:
        _table(out, "What each change brought", found.changes, gains, "")
    rate: list[tuple[str, Callable[[Change], str]]] = [("points for 1 % of time", _rate)]
    told = "no unused choice is predicted to gain time"
    _table(out, "What to change next", found.next, [*gains, *rate], told, most=FEWER)
    why: list[tuple[str, Callable[[Change], str]]] = [("why not", lambda change: change.remark)]
    told = "no unused choice makes it smaller without gaining time"
    _table(out, "What was left, as it gains nothing here", found.rejected, [*gains[:3], *why], told, most=FEWER)
    for beaten in found.beaten[:FEWER]:
        words = f"{beaten.times_smaller.get():.2f}× smaller but slower: {beaten.times_faster} × as fast"
        out.print(f"- measured as a whole, {beaten.what}: {words}", soft_wrap=True)
    for name, reason in list(found.left_whole.items())[:SHOWN]:
        out.print(f"- {name} was left whole: {reason}", soft_wrap=True)
    for choice, reason in list(found.failed.items())[:SHOWN]:
        out.print(f"- {choice} was left out, its probe failed: {reason}", soft_wrap=True)
    out.print()
    out.print(
        "~ is an estimate, [ ] its interval. Gains: the change alone undone (or made) in this plan, so those of one layer do "
        f"not add up. Losses: the change alone, repaired, not trained; points: {found.points_per_loss.note}.",
        style="dim",
        soft_wrap=True,
    )


def _columns(found: Explanation) -> list[tuple[str, Callable[[Change], str]]]:
    return [
        ("time gained", lambda change: _ends(change.seconds)),
        ("size gained", lambda change: _short(change.bytes)),
        ("MACs gained", lambda change: _short(change.macs)),
        (f"loss, {found.unit}", lambda change: _loss(change.loss)),
        ("points", lambda change: _short(change.points)),
    ]


def _table(
    out: Any,
    title: str,
    changes: Sequence[Change],
    columns: Sequence[tuple[str, Callable[[Change], str]]],
    nothing: str,
    *,
    most: int = SHOWN,
) -> None:
    """Print the first `most` changes, or that there is nothing."""
    from rich.table import Table

    out.print()
    out.print(title if changes else f"{title}: {nothing}", style="bold", soft_wrap=True)
    if not changes:
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("where")
    table.add_column("what")
    for name, _ in columns:
        table.add_column(name, justify="left" if name == "why not" else "right")
    for change in changes[:most]:
        table.add_row(change.where, change.what.partition(":")[0], *(cell(change) for _, cell in columns))
    out.print(table)
    if len(changes) > most:
        out.print(f"… and {len(changes) - most} more (--json has all)", style="dim")


def _short(reading: Reading) -> str:
    """The value without its interval, ``~`` before an estimate, a dash for what is unavailable."""
    from equipoise.units import show

    if reading.value is None:
        return "–"
    text = show(reading.value, reading.unit)
    return f"~{text}" if reading.provenance == "estimated" else text


def _ends(reading: Reading) -> str:
    """The value with its interval."""
    from equipoise.units import show

    if reading.low is None or reading.high is None:
        return _short(reading)
    return f"{_short(reading)} [{show(reading.low, reading.unit)}, {show(reading.high, reading.unit)}]"


def _loss(reading: Reading) -> str:
    """A loss without its unit, which heads the column."""
    if reading.value is None:
        return "–"
    return ("~" if reading.provenance == "estimated" else "") + f"{reading.value:.2g}"


def _rate(change: Change) -> str:
    return "–" if change.rate is None else f"~{change.rate:.2g}"
