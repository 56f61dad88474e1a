"""What the verbs write on a terminal alike: text that is never markup, tables that a pipe can take, progress in good time.

Names of layers, workloads, metrics and files are the user's, and so are the messages of errors: whatever stands in them is
shown as it is. So nothing here reads markup. Style is given beside the text (``Text("yes", style="green")``), never in it.
"""

from __future__ import annotations

import os
import sys
import time
import unicodedata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

LINE_S = 5.0
"""Seconds between lines of progress."""


def console(*, width: int = 140, stderr: bool = False, quiet: bool = False) -> Console:
    """Return a console that takes every text as it is: the only one that the verbs print on.

    Args:
        width: Characters to a line where the stream is no terminal and COLUMNS is not set.
        stderr: Whether it writes to stderr rather than to stdout.
        quiet: Whether it writes nothing.
    """
    from rich.console import Console

    class Plain(Console):
        """Every text that is not styled by us comes through here."""

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # for `main`, which knows that the reader left; rich would end the program by an exit code

        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(visible(text), **options)

    stream = sys.stderr if stderr else sys.stdout
    fitted = stream.isatty() or "COLUMNS" in os.environ
    return Plain(stderr=stderr, quiet=quiet, width=None if fitted else width, markup=False, emoji=False, highlight=False)


def visible(text: str) -> str:
    """Return `text` with control characters (but for line ends) written out, so that no name can steer the terminal.

    Example:
        >>> visible("conv\\x1b[2J")
        'conv\\\\x1b[2J'
    """
    return "".join(repr(c)[1:-1] if unicodedata.category(c)[0] == "C" and c not in "\n\t" else c for c in text)


def doing(text: str, *, quiet: bool = False) -> None:
    """Say on stderr what begins now: before anything slow is imported or read."""
    if not quiet:
        print(visible(f"{text} ..."), file=sys.stderr, flush=True)


class Pace:
    """Says when a line of progress is due: at a new stage, and then every `LINE_S` seconds."""

    def __init__(self) -> None:
        self._said: tuple[str, float] | None = None

    def due(self, stage: str = "", *, now: bool = False) -> bool:
        """Return whether to write a line for `stage`, which is then taken as written; `now` does not wait."""
        clock = time.monotonic()
        if not now and self._said is not None and stage == self._said[0] and clock - self._said[1] < LINE_S:
            return False
        self._said = (stage, clock)
        return True


def progress_line(spent_s: float, limit_s: float, stage: str, text: str) -> None:
    """Write one line of progress to stderr."""
    print(visible(f"[{spent_s:6.1f}/{limit_s:.0f} s] {stage:8s} {text}"), file=sys.stderr, flush=True)
