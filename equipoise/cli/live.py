"""The running view: stage, time left and the front so far, on stderr; plain lines where there is no terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live as RichLive
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from equipoise.cli.terminal import Pace, progress_line
from equipoise.pareto import non_dominated
from equipoise.records import Evaluation
from equipoise.road import Event
from equipoise.study import AXES, describe
from equipoise.units import show


class Live:
    """A listener for `optimize` that draws; use it in a ``with`` block."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(stderr=True, quiet=quiet)
        self._live = RichLive(console=self._console, refresh_per_second=4) if self._console.is_terminal and not quiet else None
        self._rows: list[Evaluation] = []
        self._pace = Pace()

    def __enter__(self) -> Live:
        if self._live:
            self._live.__enter__()
        return self

    def __exit__(self, *details: Any) -> None:
        if self._live:
            self._live.__exit__(*details)

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if event.evaluation is not None and event.evaluation.ok:
            self._rows.append(event.evaluation)
        if self._live:
            self._live.update(self._view(event))
        elif not self._console.quiet:
            self._line(event)

    def _line(self, event: Event) -> None:
        urgent = event.evaluation is not None or event.text.startswith(("predicted", "WARNING"))
        if self._pace.due(event.stage, now=urgent):
            text = event.text if event.evaluation is None else _short(event.evaluation)
            progress_line(event.spent_s, event.limit_s, event.stage, text)

    def _view(self, event: Event) -> Group:
        left = max(0.0, event.limit_s - event.spent_s)
        head = Text.assemble((f"{event.stage}  ", "bold"), event.text)
        bar = ProgressBar(total=max(1.0, event.limit_s), completed=min(event.spent_s, event.limit_s), width=40)
        foot = Text(f"{len(self._rows)} evaluations, {show(left, 's') if left else 'no time'} left", style="dim")
        return Group(head, bar, self._front(), foot)

    def _front(self) -> Table | Text:
        if not self._rows:
            return Text("")
        known = [e for e in self._rows if all(e.axis(a).known for a in AXES)]
        best = [known[i] for i in non_dominated([[e.axis(a).get() for a in AXES] for e in known])]
        best = sorted(best, key=lambda e: e.axis("latency_s").get())
        return table("quality", best[:14], self._rows[0], marked={})


def table(metric: str, front: Sequence[Evaluation], baseline: Evaluation, *, marked: Mapping[str, str]) -> Table:
    """Return the front as a table, fastest first; `marked` names evaluations by key."""
    out = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("plan", "latency", "faster", "size", metric, "drop [95 %]", "trained", ""):
        out.add_column(name, justify="left" if name in ("plan", "trained", "") else "right", no_wrap=name != "plan")
    base = baseline.axis("latency_s").get()
    for e in front:
        latency = e.axis("latency_s").get()
        mark = marked.get(e.key, "untouched" if e.key == baseline.key else "")
        out.add_row(
            describe(e, baseline), show(latency, "s"), f"{base / latency:.2f}×", show(e.axis("size_bytes").get(), "B"),
            f"{e.quality.get():.2f}", str(e.drop), "distilled" if e.fidelity == "recovered" else "no", mark,
            style="bold" if e.key in marked else None,
        )  # fmt: skip
    return out


def _short(e: Evaluation) -> str:
    if not e.ok:
        return "failed: " + e.error.strip().splitlines()[-1]
    latency, size = show(e.axis("latency_s").get(), "s"), show(e.axis("size_bytes").get(), "B")
    return f"{latency}, {size}, drop {e.drop.get():.2f} ({e.fidelity})"
