"""The running view: stage, time left and the front so far, on stderr; plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.live import Live as RichLive
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from equipoise.axes import AXES, TRADED
from equipoise.budget import parse_budget
from equipoise.cli.terminal import Pace, console, doing, progress_line, visible
from equipoise.pareto import non_dominated
from equipoise.records import Evaluation
from equipoise.study.picks import promising
from equipoise.study.record import describe
from equipoise.units import counted, show

if TYPE_CHECKING:  # it imports torch, which takes seconds; the view is up before
    from equipoise.events import Event


class Live:
    """A listener for `optimize` that draws; use it in a ``with`` block, before anything slow is imported.

    The time left goes on between events, so that a long step is seen to be one.

    Args:
        budget: The best within it so far is marked.
    """

    def __init__(self, *, quiet: bool = False, budget: str = "") -> None:
        self._console = console(stderr=True, quiet=quiet)
        self._spinner = Spinner("dots")
        self._event: Event | None = None
        self._doing = ("start", "")
        self._since = time.monotonic()
        self._rows: list[Evaluation] = []
        self._failed, self._budget = 0, budget
        self._pace = Pace()
        self._live = None
        if self._console.is_terminal and not quiet:
            self._live = RichLive(console=self._console, refresh_per_second=4, get_renderable=self._view, transient=True)

    def __enter__(self) -> Live:
        if self._live:
            self._live.__enter__()
        return self

    def __exit__(self, *details: Any) -> None:
        if self._live:
            self._live.__exit__(*details)

    def doing(self, text: str) -> None:
        """Say what is done before the run tells of itself: imports, loading."""
        self._doing, self._since = ("start", text), time.monotonic()
        if self._live:
            self._live.refresh()
        else:
            doing(text, quiet=self._console.quiet)

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if event.evaluation is not None:
            self._rows += [event.evaluation] if event.evaluation.ok else []
            self._failed += not event.evaluation.ok
        self._event, self._doing, self._since = event, (event.stage, event.text), time.monotonic()
        if not self._live and not self._console.quiet:
            self._line(event)

    def _line(self, event: Event) -> None:
        urgent = event.evaluation is not None or event.text.startswith(("predicted", "WARNING"))
        if self._pace.due(event.stage, now=urgent):
            text = event.text if event.evaluation is None else _short(event.evaluation)
            progress_line(event.spent_s, event.limit_s, event.stage, text)

    def _view(self) -> Group:
        stage, text = self._doing
        going_s = time.monotonic() - self._since
        heading = Text.assemble((f"{stage}  ", "bold"), visible(text), (f"  {going_s:.0f} s" if going_s >= 2 else "", "dim"))
        self._spinner.update(text=heading)
        if self._event is None:
            return Group(self._spinner)
        limit_s = self._event.limit_s
        spent_s = min(limit_s, self._event.spent_s + going_s)
        left = show(limit_s - spent_s, "s") if limit_s > spent_s else "no time"
        line = Table.grid(padding=(0, 2))  # a line of its own: a bar alone does not end its line
        bar = ProgressBar(total=max(1.0, limit_s), completed=spent_s, width=40)
        failed = f", {self._failed} failed" if self._failed else ""
        line.add_row(bar, Text(f"{left} left, {counted(len(self._rows), 'evaluation')}{failed}", style="dim"))
        return Group(self._spinner, line, Text(""), self._front()) if self._rows else Group(self._spinner, line)

    def _front(self) -> Table:
        known = [e for e in self._rows if all(e.axis(a).known for a in TRADED)]
        best = [known[i] for i in non_dominated([[e.axis(a).get() for a in TRADED] for e in known])]
        best = sorted(best, key=lambda e: e.axis("latency_s").get())
        within = promising(known, parse_budget(self._budget or None))[:1]
        shown = [*best[:14], *(e for e in within if e not in best[:14])]
        return table("quality", shown, self._rows[0], marked={e.key: "best within the budget" for e in within})


def table(
    metric: str, front: Sequence[Evaluation], baseline: Evaluation, *, marked: Mapping[str, str], words: Sequence[str] = ()
) -> Table:
    """Return the front as a table, fastest first; `marked` names evaluations by key, `words` the budget's further axes."""
    out = Table(box=None, pad_edge=False, header_style="dim")
    further = [AXES[word].label.lower() for word in words]
    for name in ("plan", "latency", "faster", "size", *further, metric, "drop [95 %]", "trained", ""):
        out.add_column(name, justify="left" if name in ("plan", "trained", "") else "right", no_wrap=name != "plan")
    base = baseline.axis("latency_s").get()
    for e in front:
        latency = e.axis("latency_s").get()
        mark, found = marked.get(e.key, ""), [e.axis(AXES[word].key) for word in words]
        out.add_row(
            describe(e, baseline),
            show(latency, "s"),
            f"{base / latency:.2f}×",
            show(e.axis("size_bytes").get(), "B"),
            *(show(r.get(), r.unit) if r.known else "not measured" for r in found),
            f"{e.quality.get():.2f}",
            str(e.drop),
            {"recovered": "distilled", "told": "told"}.get(e.fidelity, "no"),
            mark,
            style="bold" if e.key in marked else None,
        )
    return out


def _short(e: Evaluation) -> str:
    if not e.ok:
        return "failed: " + e.reason
    latency, size = show(e.axis("latency_s").get(), "s"), show(e.axis("size_bytes").get(), "B")
    return f"{latency}, {size}, drop {e.drop.get():.2f} ({e.fidelity})"
