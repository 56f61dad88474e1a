"""A step that takes far longer than it should is named while it goes on: nothing is stopped, but nobody waits in the dark."""

from __future__ import annotations

import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from equipoise.units import show

PATIENCE_S = 30.0
"""A step is given at least this long, whatever was expected of it."""
GENEROUS = 5.0
"""Times the expected duration after which a step is told."""


@contextmanager
def watched(what: str, tell: Callable[[str], None], *, expected_s: float = 0.0, least_s: float | None = None) -> Iterator[None]:
    """Tell when the block is still running after a generous time, and again each time that span has doubled.

    Args:
        what: The step, as its user knows it.
        tell: Given one sentence; called from another thread.
        expected_s: Seconds that the step ought to take; 0 where nothing is known.
        least_s: Seconds that it is given in any case; None takes `PATIENCE_S`.
    Limits:
        Code that holds the interpreter's lock without end cannot be told of.
    """
    over, caller, began = threading.Event(), threading.get_ident(), time.monotonic()
    first = max(PATIENCE_S if least_s is None else least_s, GENEROUS * expected_s)

    def wait() -> None:
        span = first
        while not over.wait(began + span - time.monotonic()):
            tell(f"WARNING: {what} has taken {show(span, 's')} and is still going on{_where(caller)}")
            span *= 2

    thread = threading.Thread(target=wait, name="equipoise-watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(1.0)


def _where(thread: int) -> str:
    """Say where a thread is: its innermost line that belongs to no installed library, the user's metric for example."""
    frame: FrameType | None = sys._current_frames().get(thread)
    libraries = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
    while frame is not None and frame.f_code.co_filename.startswith((*libraries, "<")):
        frame = frame.f_back
    if frame is None:
        return ""
    return f", in {frame.f_code.co_name} ({Path(frame.f_code.co_filename).name}:{frame.f_lineno})"
