"""Progress of what is called from Python: in a notebook or an interactive session a line that renews itself, elsewhere nothing.

Needs no package: it is used where IPython is already running, and rich draws it. Whatever fails in showing it ends the showing,
never the run. A listener of one's own takes its place.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from equipoise.units import show

if TYPE_CHECKING:
    from equipoise.events import Event
    from equipoise.training.progress import Progress

EVERY_S = 0.5
"""Seconds between two pictures of the same stage."""

_FAILURES = (ImportError, AttributeError, TypeError, ValueError, RuntimeError, OSError)


class Line:
    """One line of progress in the session `shell`: a display that is updated, or a line of a terminal that is written over."""

    def __init__(self, shell: Any) -> None:
        self._in_notebook = hasattr(shell, "kernel")
        self._handle: Any = None
        self._broken = False
        self._last = ("", -EVERY_S)

    def __call__(self, stage: str, text: str, fraction: float | None = None, left_s: float | None = None) -> None:
        """Show where the run is.

        Args:
            stage: What is being done; a new one is shown at once.
            text: More of it.
            fraction: Done of the whole, 0 to 1, where it is known.
            left_s: Seconds left, where they are known.
        """
        clock = time.monotonic()
        if self._broken or (stage == self._last[0] and clock - self._last[1] < EVERY_S and fraction != 1.0):
            return
        self._last = (stage, clock)
        left = "" if left_s is None else f"{show(left_s, 's') if left_s > 0 else 'no time'} left"
        try:
            self._draw(stage, text, fraction, left)
        except _FAILURES:
            self._broken = True

    def _draw(self, stage: str, text: str, fraction: float | None, left: str) -> None:
        done = "" if fraction is None else f"{100 * fraction:3.0f} % "
        plain = "  ".join(word for word in (done + stage, text, left) if word)
        if not self._in_notebook:
            sys.stderr.write("\r" + plain.replace("\n", " ")[:100].ljust(100))
            sys.stderr.flush()
            return
        bundle = {"text/plain": plain, "text/html": _page(stage, text, fraction, left)}
        if self._handle is None:
            from IPython.display import display  # type: ignore[import-not-found,unused-ignore]

            self._handle = display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)


def _page(stage: str, text: str, fraction: float | None, left: str) -> str:
    """The line as HTML, drawn by rich: a bar where a fraction is known, and the words, none of them markup."""
    from rich.console import Console
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    console = Console(file=io.StringIO(), record=True, force_jupyter=False, force_terminal=True, width=110, markup=False)
    line = Table.grid(padding=(0, 2))
    bar = [] if fraction is None else [ProgressBar(total=1.0, completed=fraction, width=24)]
    line.add_row(*bar, Text(stage, style="bold"), Text(text), Text(left, style="dim"))
    console.print(line)
    return console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")


def _line() -> Line | None:
    """A line in the interactive session that this is; None in a script."""
    session = sys.modules.get("IPython")
    shell = session.get_ipython() if session is not None and hasattr(session, "get_ipython") else None
    return None if shell is None else Line(shell)


def of_events() -> Callable[[Event], None]:
    """Return a listener for `optimize` and `scale`."""
    line = _line()

    def listen(event: Event) -> None:
        if line is not None:
            spent, limit = event.spent_s, event.limit_s
            line(event.stage, event.text, min(1.0, spent / limit) if limit > 0 else None, max(0.0, limit - spent))

    return listen


def of_steps() -> Callable[[Progress], None]:
    """Return an ``on_step`` for `train`."""
    line = _line()

    def listen(progress: Progress) -> None:
        if line is not None:
            line("train", str(progress), progress.fraction, progress.left_s)

    return listen


def of_words() -> Callable[[str], None]:
    """Return an ``on_step`` for `profile`."""
    line = _line()

    def listen(text: str) -> None:
        if line is not None:
            line(text, "")

    return listen
