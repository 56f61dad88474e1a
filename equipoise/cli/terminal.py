"""What the verbs write on a terminal alike: tables of a width that a pipe can take, and lines of progress in good time."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

LINE_S = 5.0
"""Seconds between lines of progress."""


def console(*, width: int = 140) -> Console:
    """Return a console on stdout: as wide as the terminal or COLUMNS, else `width` characters."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else width)


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
    print(f"[{spent_s:6.1f}/{limit_s:.0f} s] {stage:8s} {text}", file=sys.stderr, flush=True)
